"""Methods that a class outside torch has for its user: ``train`` and ``eval`` of the schedule-free ones.

Such a class steps other weights than those to evaluate, and moves the parameters between the two.
"""

from __future__ import annotations

import contextlib
import inspect
import re

import torch

from optplug import spec
from optplug.arguments import said
from optplug.errors import StateError
from optplug.spec import SpecError, shown

#: Those that a host may call; others may take arguments, or do what only we should.
NAMES = ("train", "eval")


def has(class_: type) -> bool:
    """Tell whether a class has them all, to be called without arguments."""
    methods = [inspect.getattr_static(class_, name, None) for name in NAMES]
    if not all(map(inspect.isfunction, methods)):
        return False
    others = [list(inspect.signature(m).parameters.values())[1:] for m in methods]
    return not any(p.default is p.empty and p.kind < p.VAR_POSITIONAL for rest in others for p in rest)


def check(class_: type, name: str) -> None:
    """Check that a host may call a method of a class, or raise ValueError."""
    spec.check_name(name, NAMES, "method")
    if not has(class_):
        raise SpecError(
            f"method {shown(name)}: {class_.__name__} has no train() and eval(), and needs none: "
            "leave out opt_call"
        )


def begin(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer be ready to step, where it has a mode for that."""
    if has(type(optimizer)):
        with contextlib.suppress(AttributeError):  # one that it wraps may have none
            optimizer.train()  # type: ignore[attr-defined]


def explain(optimizer: torch.optim.Optimizer, error: BaseException) -> None:
    """Raise StateError for an error of a step that is not possible in this mode: what to call before."""
    if not isinstance(error, Exception) or not has(type(optimizer)):
        return
    words = said(error)
    if re.search(r"\.train\(\)|\btrain mode\b", words):
        raise StateError(f'{words.rstrip(".")}: call opt_call(opt, "train")') from error
