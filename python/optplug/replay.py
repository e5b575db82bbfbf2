"""The last step of one of torch's optimizers again, without what Python looks up for it.

A step finds parameters, gradients, state and hyperparameters, and calls one function of torch's with them for
each group.  To call that again is the same step where the step is nothing else, which two steps have to show
that are watched.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from optplug import plans
from optplug.lean import Calls, Noted, step_again
from optplug.readings import HARMLESS
from optplug.torch_private import has_hooks
from optplug.watch import Watch

#: How many steps are watched at the most.
_MOST_LOOKS = 8
#: Of which kinds steps have been proven to be their calls in this process.
_proven: set[object] = set()
_MOST_PROVEN = 1000


class _Beside(TorchFunctionMode):
    """Sees whether a step computes anything outside of the calls that are noted."""

    def __init__(self, noted: Noted) -> None:
        super().__init__()
        self._noted, self.is_something = noted, False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._noted.is_inside and getattr(function, "__name__", "") not in HARMLESS:
            self.is_something = True
        return function(*args, **(kwargs or {}))


class Replay:
    """What is known of one optimizer's steps by Python."""

    def __init__(self) -> None:
        self._calls: Calls = []  # what the last step came down to, if nothing has changed since
        self._is_proven = False
        self._looks = 0

    @property
    def has_noted(self) -> bool:
        """Whether a step has been made since something has changed."""
        return bool(self._calls)

    def forget(self) -> None:
        """Let the next step look everything up."""
        self._calls = []

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make a step."""
        before, self._calls = self._calls, []  # torch may leave a list of them changed if it fails
        if has_hooks(optimizer):
            optimizer.step()
        elif before and self._is_proven:
            step_again(before)
            self._calls = before
        else:
            self._calls = self._note(optimizer, before)

    def _note(self, optimizer: torch.optim.Optimizer, before: Calls) -> Calls:
        kind = None if self._is_proven else _kind(optimizer)
        self._is_proven = self._is_proven or kind in _proven
        noted, looks = Noted(), not self._is_proven and self._looks < _MOST_LOOKS
        beside = _Beside(noted)
        watch = Watch(optimizer, _tensors(optimizer), may_draw=True) if looks else None
        with beside if looks else contextlib.nullcontext():
            noted.step(optimizer)
        if watch:
            self._looks += 1
            if beside.is_something or watch.found(optimizer):
                self._looks = _MOST_LOOKS
            else:
                self._is_proven = bool(before) and _are_same(noted.calls, before)
            if self._is_proven and len(_proven) < _MOST_PROVEN:
                _proven.add(kind)
        return noted.calls if not optimizer.defaults.get("differentiable") else []


def _kind(optimizer: torch.optim.Optimizer) -> object:
    """Return what optimizers must have in common if the proof of one is to be that of the other."""
    groups = [
        (plans.as_key(plans.switches(group)), frozenset([(p.dtype, p.device) for p in group["params"]]))
        for group in optimizer.param_groups
    ]
    return type(optimizer), tuple(groups)


def _tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return what a step may change."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = [t for p in parameters for t in optimizer.state[p].values() if isinstance(t, Tensor)]
    return [*parameters, *(p.grad for p in parameters if p.grad is not None), *states]


def _are_same(value: Any, before: Any) -> bool:
    """Tell whether arguments are the same tensors, and equal in all else."""
    if type(value) is not type(before):
        return False
    if isinstance(value, list | tuple):
        return len(value) == len(before) and all(map(_are_same, value, before))
    if isinstance(value, dict):
        return value.keys() == before.keys() and all(_are_same(value[key], before[key]) for key in value)
    return value is before or (type(value) in (bool, int, float, str) and value == before)
