"""Modes of PyTorch's that a Python host may have on around a call, such as ``torch.inference_mode()``.

A default device, inference mode or a fake-tensor mode is meant for the host's own tensors.  An optimizer that
met one would make its state in it, and fail at every later step.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

from optplug import torch_private as private

_here = threading.local()  # .inference: whether the host's thread was in inference mode; .modes: its others


def are_off() -> bool:
    """Tell whether no mode is on in this thread that concerns us."""
    return not (
        torch.is_inference_mode_enabled() or private.count_function_modes() or private.count_dispatch_modes()
    )


def set_aside() -> contextlib.AbstractContextManager[None]:
    """Run a block as if no mode were on."""
    return contextlib.nullcontext() if are_off() else _set_aside()


@contextlib.contextmanager
def _set_aside() -> Iterator[None]:
    before = vars(_here).copy()
    _here.inference = torch.is_inference_mode_enabled()
    _here.modes = _pop()
    try:
        with torch.inference_mode(False):
            yield
    finally:
        _push(_here.modes)
        vars(_here).clear()
        vars(_here).update(before)


def are_set_aside() -> bool:
    """Tell whether this thread is in such a block."""
    return hasattr(_here, "modes")


@contextlib.contextmanager
def given_back() -> Iterator[None]:
    """Run a function of the host's, within such a block, with the modes that the host had on."""
    _push(_here.modes)
    try:
        with torch.inference_mode(_here.inference):
            yield
    finally:
        _here.modes = _pop()  # it may have chosen others


def _pop() -> tuple[list[Any], list[Any]]:
    """Take off the modes that change torch's functions, as a default device does, and its operators."""
    functions = [private.pop_function_mode() for _ in range(private.count_function_modes())]
    operators = [private.pop_dispatch_mode() for _ in range(private.count_dispatch_modes())]
    return functions, operators


def _push(modes: tuple[list[Any], list[Any]]) -> None:
    functions, operators = modes
    for mode in reversed(functions):
        private.push_function_mode(mode)
    for mode in reversed(operators):
        private.push_dispatch_mode(mode)
