"""What the library is and has, in lines: for opt_describe(0) and opt_list."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterable

import torch

from optplug import buffers, devices, outside, recipe, schedules, spec
from optplug.log import LEVELS
from optplug.options import OptimizerOptions


def describe(options: OptimizerOptions, can_plan: bool, log_level: int) -> str:
    """Return what Python knows of the library, a ``name: value`` a line."""
    plans = options.plans if can_plan else "none: this torch lacks the C functions for them"
    log = next(name for name, number in LEVELS.items() if number == log_level)  # as log= has it
    return (
        f"python: {sys.version.split()[0]} ({sys.executable})\n"
        f"torch: {torch.__version__} ({pathlib.Path(torch.__file__).parent})\n"
        f"devices: {', '.join(devices.names())}\n"
        f"threads: {torch.get_num_threads()}\n"
        f"plans: {plans}\n"
        + "".join(f"{name}: {_written(value)}\n" for name, value in vars(options).items() if name != "plans")
        + f"log: {log}\n"
    )


def listing(kind: str, third_party: outside.Allowed) -> str:
    """Return the names of a kind, or what a class of that name takes, a line each.

    Raises:
        ValueError: there is no such list.
    """
    return "".join(f"{line}\n" for line in _lines(kind, third_party))


def _lines(kind: str, third_party: outside.Allowed) -> Iterable[str]:
    if ":" in kind:
        class_ = recipe.find_class(kind, third_party)
        return spec.arguments_of(class_, outside.supplied(class_))
    classes = {**recipe.classes(), **schedules.classes()}
    lists: dict[str, Iterable[str]] = {
        "optimizers": [*recipe.classes(), *(outside.classes_of(third_party) if kind == "optimizers" else ())],
        "schedulers": schedules.classes(),
        "dtypes": buffers.DTYPES,
        "devices": devices.names(),
    }
    spec.check_name(kind, [*lists, *classes], "list")
    return lists[kind] if kind in lists else spec.arguments_of(classes[kind], {"params", "optimizer"})


def _written(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
