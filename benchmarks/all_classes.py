"""What a step of every class outside PyTorch takes more than in PyTorch alone, called from C.

Run it where optplug and the packages of tests/third_party.txt are installed.  It steps two arrays of the
comparison in tests/test_third_party_packages.py, prints a line for each class, and ends with how many of
those that are not recorded cost how much.  Options: names of modules, to measure only their classes.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib
import statistics
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))
import test_third_party_packages as packages
from classes import checked, in_c, lib, times

FIRST = 12  # steps, after which it is settled how an optimizer steps
LIMITS = 5, 10, 20, 50, 100, 500


def case_of(module: str, name: str) -> Any:
    """Return the first case of a class that steps in PyTorch without a closure; None if there is none."""
    for case in packages.cases(module, name):
        case.has_schedule = False
        with contextlib.suppress(Exception):
            plain = packages.Plain(case, "C")
            for i in range(3):
                plain.fill(i)
                plain.opt.step()
            return None if case.has_closure else case
    return None


def plain_step(plain: Any) -> Callable[[], None]:
    """Return a step in PyTorch alone: a class may have dropped the gradients, which a host has always."""
    grads = [p.grad for p in plain.parameters]

    def step() -> None:
        for p, grad in zip(plain.parameters, grads, strict=True):
            if p.grad is None:
                p.grad = grad
        plain.opt.step()

    return step


def measured(case: Any) -> tuple[float, float, bool]:
    """Return what a step takes more than in PyTorch, what that takes, and whether it is recorded."""
    ours, plain = packages.Hosted(case, "C"), packages.Plain(case, "C")
    for twin in (ours, plain):
        twin.fill(0)
    steps = [functools.partial(in_c.opt_step, ours.opt._handle), plain_step(plain)]
    for _ in range(FIRST):
        for step in steps:
            step()
    more, by_torch = times(steps)
    is_recorded = any(
        line.startswith("step") and "without Python" in line for line in ours.opt.describe().splitlines()
    )
    ours.opt.free()
    return more - by_torch, by_torch, is_recorded


def main(modules: list[str]) -> None:
    """Print what each class takes, and how many take how much."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = sorted({module.partition(".")[0] for module in packages.PACKAGES})
    checked(lib.opt_init(f"third_party={names}, num_threads=1".encode()))
    by_python = []
    for module, name in packages.found():
        if (modules and module not in modules) or (module, name) in packages.NOT_HERE:
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                case = case_of(module, name)
                found = measured(case) if case else None
        except (Exception, SystemExit) as error:  # of a class that so many steps are too much for
            print(f"not measured: {module}:{name}: {error}")
            continue
        if found:
            more, by_torch, is_recorded = found
            print(
                f"{more:8.1f} us more than {by_torch:6.0f}  {module}:{name}",
                "(recorded)" * is_recorded,
                flush=True,
            )
            by_python += [] if is_recorded else [more]
    print(f"not recorded: {len(by_python)}, the median {statistics.median(by_python):.1f} us")
    for limit in LIMITS:
        print(f"below {limit} us: {sum(more < limit for more in by_python)}")


if __name__ == "__main__":
    main(sys.argv[1:])
