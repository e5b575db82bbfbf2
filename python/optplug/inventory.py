"""What the library is and has, in lines: for opt_describe(0) and opt_list."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterable

import torch

from optplug import buffers, devices, recipe, schedules, spec
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


def lines(kind: str) -> Iterable[str]:
    """Return the names of a kind, or what a class of that name takes, a line each.

    Raises:
        ValueError: there is no such list.
    """
    classes = {**recipe.classes(), **schedules.classes()}
    lists: dict[str, Iterable[str]] = {
        "optimizers": recipe.classes(),
        "schedulers": schedules.classes(),
        "dtypes": buffers.DTYPES,
        "devices": devices.names(),
    }
    spec.check_name(kind, [*lists, *classes], "list")
    return lists[kind] if kind in lists else spec.arguments_of(classes[kind])


def _written(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
