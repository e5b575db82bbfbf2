"""Arguments of PyTorch's classes: of the kinds that their signatures say, and which of them PyTorch refuses.

PyTorch checks few kinds, and says of others what Python makes of them in the middle of its code, or
nothing: a user is to read which argument it is, and what it must be.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dis
import functools
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from optplug.spec import Call, SpecError, shown, signature_of

# Annotated as one number, and taken as one for each group as well.
_FOR_EACH_GROUP = {"swa_lr", "base_momentum", "max_momentum"}
_KINDS = {
    bool: ["True", "False"],
    float: ["a number"],
    int: ["a whole number from 0"],
    str: ["a string"],
    types.NoneType: ["None"],
    LRScheduler: ["a scheduler"],
}
_LISTS = (list, collections.abc.Iterable, collections.abc.Sequence)
# What annotations name; some of these are imported for type checkers alone.
_NAMES = {
    **vars(typing),
    **vars(collections.abc),
    "Optimizer": torch.optim.Optimizer,
    "Tensor": torch.Tensor,
    "Module": torch.nn.Module,
}


def check_kinds(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Check the kinds of arguments, as a spec has them, against the annotations of a function of torch's.

    Raises:
        SpecError: one is of another kind.
    """
    for name, value in arguments.items():
        if name == "last_epoch" and value != -1:
            raise SpecError(f"last_epoch must be left out, got {shown(value)}: opt_load resumes schedules")
        hint = _hint(function, name) if name != "last_epoch" else None
        if name in _FOR_EACH_GROUP:
            hint = float | list[float]
        if hint is not None and not _fits(value, hint):
            default = signature_of(function).parameters[name].default
            like = f", as in {default}," if isinstance(default, tuple) else ","
            raise SpecError(f"{name} must be {_kind(hint)}{like} got {shown(value)}")
        if name == "lr" and isinstance(value, float) and not math.isfinite(value):
            raise SpecError(f"lr must be finite, got {value}")


def is_count(function: Callable[..., Any], name: str) -> bool:
    """Tell whether an argument is a whole number, and takes no other, by its annotation."""
    hint = _hint(function, name)
    return int in (hint, *typing.get_args(hint)) and float not in typing.get_args(hint)


def blame(
    error: Exception,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    attempt: Callable[[dict[str, Any]], object],
) -> str:
    """Return what an error says of arguments, after the names and values of those that it is about.

    Args:
        arguments: those that were given, as a spec has them.
        attempt: tries again with some of them, and raises an error if that fails too.
    """
    words = said(error)
    parameters = signature_of(function).parameters
    succeeds, changes = [], []
    for name in arguments:
        if name not in parameters or parameters[name].default is inspect.Parameter.empty:
            changes.append(name)  # it cannot be left out to see whether it matters
            continue
        try:
            attempt({other: value for other, value in arguments.items() if other != name})
            succeeds.append(name)
        except Exception as other:
            if said(other) != words:
                changes.append(name)
    named = [name for name in parameters if re.search(rf"\b{name}\b", words)]
    found = (
        succeeds or [name for name in named if name in arguments] or ([] if named else changes or arguments)
    )
    about = ", ".join(f"{name}={shown(arguments[name])}" for name in found)
    return f"{about}: {words}" if about else words


def said(error: BaseException) -> str:
    """Return what an error says, on one line, where somebody has written that for a user to read.

    What Python says of a value that it cannot add or compare, and torch of a kernel's arguments, only its
    own developers understand.
    """
    message = error.args[0] if len(error.args) == 1 and isinstance(error.args[0], str) else str(error)
    message = " ".join(message.split())
    is_torchs = isinstance(error, RuntimeError) and "aten::" not in message
    if message and (is_torchs or _is_raised_by_python_code(error)):
        return message
    if isinstance(error, KeyError):
        return f"PyTorch finds no {message!r}"
    if isinstance(error, ZeroDivisionError):
        return "PyTorch divides by zero with it"
    return f"PyTorch rejects it ({type(error).__name__})"


def _is_raised_by_python_code(error: BaseException) -> bool:
    """Tell whether a ``raise`` has raised an error, and not an operator or a function in C."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return True
    opcode = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    return dis.opname[opcode] == "RAISE_VARARGS"


@functools.cache
def _hint(function: Callable[..., Any], name: str) -> Any:
    """Return the annotation of an argument of a function; None if it has none that is understood."""
    annotations, names, defaults = _annotations(function)
    with contextlib.suppress(NameError, TypeError):
        if name in annotations:  # one by one, since to read one takes as long as a step
            one = types.SimpleNamespace(__annotations__={name: annotations[name]})
            return typing.get_type_hints(one, names)[name]
    return defaults.get(name)


@functools.cache
def _annotations(function: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, type]]:
    """Return how a function of torch's, or a class's constructor, is annotated; others' may be wrong.

    Returns:
        What is written, what the names in it are, and of which kinds defaults are that are numbers.
    """
    made: Any = function
    function = inspect.unwrap(made.__init__ if isinstance(made, type) else made)  # type: ignore[misc]
    if not function.__module__.startswith("torch."):
        return {}, {}, {}
    names = {**_NAMES, **function.__globals__}
    defaults = {p.name: type(p.default) for p in signature_of(made).parameters.values()}
    numbers = {name: kind for name, kind in defaults.items() if kind in (bool, int, float)}
    return function.__annotations__, names, numbers


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (float, int):
        is_number = type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)
        # An infinite count is never reached, which is a use of it.
        return is_number and (hint is float or (value >= 0 and (value == math.inf or value == int(value))))
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, h) for h in inner)
    if origin is typing.Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        return isinstance(value, list | tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin in _LISTS:
        return isinstance(value, list | tuple) and all(_fits(v, inner[0]) for v in value)
    if origin is collections.abc.Callable or hint is LRScheduler:
        return isinstance(value, Call)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _kind(hint: Any) -> str:
    """Say what fits."""
    kinds = _kinds(hint)
    return " or ".join(filter(None, [", ".join(kinds[:-1]), *kinds[-1:]]))


def _kinds(hint: Any) -> list[str]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return [kind for h in inner for kind in _kinds(h)]
    if origin is typing.Literal:
        return list(map(repr, inner))
    if origin is tuple:
        return [f"{len(inner)} {_plural(inner[-1])}"]
    if origin in _LISTS:
        return [f"a list of {_plural(inner[0])}"]
    if origin is collections.abc.Callable:
        return ["a function"]
    return _KINDS.get(hint, [])


def _plural(hint: Any) -> str:
    nouns = {float: "numbers", int: "whole numbers", LRScheduler: "schedulers"}
    return next(
        (nouns[h] for h in (hint, *typing.get_args(hint)) if isinstance(h, type) and h in nouns), "values"
    )
