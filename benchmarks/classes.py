"""The times in the table of docs/modern.md: a step of each class there, by optplug and by PyTorch alone.

Run it where optplug and the packages of tests/third_party.txt are installed; it writes the figures into the
table, and leaves a row as it is whose package is missing.
"""

from __future__ import annotations

import ast
import ctypes
import functools
import importlib
import inspect
import pathlib
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cffi import FFI

import optplug
from optplug import ctypes_api

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "modern.md"
#: A row: the spec, whether it is recorded, four times, what it needs.
ROW = re.compile(
    r'^(\| `"([\w.:]+\(.*?\))"` \| (?:yes|no|one .*?) \|)(.*?\|.*?\|.*?\|.*?\|)(.*\|)$', re.MULTILINE
)
SHAPE = 10, 5
ROUNDS, STEPS, BEFORE = 25, 8, 15


lib = ctypes_api.load()
_ffi = FFI()
_ffi.cdef("int opt_step(int opt);")
#: The library by cffi, which takes a fifth of ctypes' time.
in_c = _ffi.dlopen(optplug.library())
#: The arrays that are stepped.
kept: list[Any] = []


def checked(result: int) -> int:
    """Return what a call has returned, or end with its error."""
    if result < 0:
        raise SystemExit(lib.opt_error().decode())
    return result


def options(call: str) -> dict[str, Any]:
    """Return the arguments of a call as Python has them."""
    return {k.arg: ast.literal_eval(k.value) for k in ast.parse(call, mode="eval").body.keywords}


def arrays(count: int) -> list[np.ndarray]:
    """Return so many matrices of random numbers."""
    return [np.random.default_rng(i).standard_normal(SHAPE).astype("float32") for i in range(count)]


def hosted(spec: str, group: str, count: int) -> Callable[[], int]:
    """Return a step by optplug: a call of the library's function, as a host in C makes it."""
    opt = checked(lib.opt_create(spec.encode()))
    if group:
        checked(lib.opt_group(opt, group.encode()))
    shape = (ctypes.c_int64 * len(SHAPE))(*SHAPE)
    bound = [(value, value * 0.1) for value in arrays(count)]
    for i, (value, grad) in enumerate(bound):
        lie = len(SHAPE), shape, value.ctypes.data, None, grad.ctypes.data, None
        checked(lib.opt_bind_nd(opt, f"w{i}".encode(), b"float32", b"cpu", *lie))

    kept.append(bound)
    return functools.partial(in_c.opt_step, opt)


def plain(spec: str, group: str, count: int) -> Callable[[], None]:
    """Return a step of the same class in PyTorch alone."""
    module, _, call = spec.rpartition(":")
    kind = getattr(importlib.import_module(module or "torch.optim"), call.partition("(")[0])
    parameters = [torch.nn.Parameter(torch.from_numpy(value)) for value in arrays(count)]
    for p in parameters:
        p.grad = p.detach() * 0.1
    model = torch.nn.Module()
    for i, p in enumerate(parameters):
        model.register_parameter(f"w{i}", p)
    wants_model = next(iter(inspect.signature(kind).parameters)) == "model"
    groups = [{"params": parameters, **options(f"f({group})")}]
    opt = kind(model if wants_model else groups, **options(call))
    if hasattr(opt, "train"):
        opt.train()
    return opt.step


def times(steps: list[Callable[[], int | None]]) -> list[float]:
    """Return the least processor time of each step in turns, in microseconds."""
    for step in steps:
        for _ in range(BEFORE):
            checked(step() or 0)
    best = [float("inf")] * len(steps)
    for _ in range(ROUNDS):
        for i, step in enumerate(steps):
            begin = time.process_time()
            for _ in range(STEPS):
                checked(step() or 0)
            best[i] = min(best[i], (time.process_time() - begin) / STEPS * 1e6)
    return best


def measured(row: re.Match[str]) -> str:
    """Return a row with its times."""
    first, spec, _, needs = row.groups()
    group = re.search(r'opt_group\(opt, "(.*)"\)', needs)
    options_of_group = group[1] if group else ""
    try:
        found = [
            t
            for count in (1, 20)
            for t in times([make(spec, options_of_group, count) for make in (hosted, plain)])
        ]
    except ModuleNotFoundError:
        return row[0]
    print(spec, *(f"{t:.3g}" for t in found), flush=True)
    return first + "".join(f" {t:.{1 if t < 10 else 0}f} |" for t in found) + needs


def main() -> None:
    """Write the times."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    checked(lib.opt_init(b"third_party=True, num_threads=1"))
    PAGE.write_text(ROW.sub(measured, PAGE.read_text()))


if __name__ == "__main__":
    main()
