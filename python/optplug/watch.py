"""Whether a step of a class outside torch has changed something that the optimizer holds, or may, unseen."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

from optplug.generators import states
from optplug.holdings import CONSTANT, ENDS, HOOKS, Slots, holdings, package_of
from optplug.torch_private import is_wrapped_by_scheduler, note_step

_DEPTH = 10  # of functions that wrap others


def is_its_own(value: Any, package: str) -> bool:
    """Tell whether an object is of the optimizer's own package, or an optimizer that it wraps."""
    return isinstance(value, torch.optim.Optimizer) or package_of(value) == package


def opaque(optimizer: torch.optim.Optimizer, but_methods: bool = False) -> str:
    """Name the type of something that an optimizer holds and that may change unseen; "" if nothing may.

    Args:
        but_methods: whether methods of its own are none such.
    """
    package = package_of(optimizer)
    for container in holdings(optimizer).containers:
        found = list(container.values()) if isinstance(container, dict) else list(container)
        if container is vars(optimizer):  # but for the step, which torch's schedulers replace
            found = [v for k, v in container.items() if k != "step" and not k.startswith(HOOKS)]
        while found:
            value = found.pop()
            if isinstance(value, tuple):
                found += value
            elif but_methods and isinstance(value, MethodType) and value.__self__ is optimizer:
                continue
            elif not _is_seen_through(value, package):
                return type(value).__name__
    return ""


def _is_seen_through(value: Any, package: str) -> bool:
    """Tell whether `Watch` sees if a value changes, or it never does."""
    kind = type(value)
    if kind in ENDS or isinstance(value, (Tensor, *CONSTANT)):
        return True
    if isinstance(value, FunctionType):
        return is_constant(value)
    if type(value) is partial:  # whose keywords are among the containers
        return not vars(value) and all(_is_seen_through(v, package) for v in (value.func, *value.args))
    if isinstance(value, dict | list | set | deque):
        return not getattr(value, "__dict__", None)
    has_slots = any(vars(each).get("__slots__") for each in kind.__mro__)
    return hasattr(value, "__dict__") and is_its_own(value, package) and not has_slots


def is_constant(function: FunctionType, depth: int = 0) -> bool:
    """Tell whether a function has no variables of its own but functions that have none, and types."""
    given = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    variables = [v for cell in function.__closure__ or () for v in Slots(cell, ("cell_contents",))]
    variables += vars(function).values()
    return (
        all(type(v) in ENDS for v in given)
        and depth < _DEPTH
        and all(
            is_constant(v, depth + 1)
            if isinstance(v, FunctionType)
            else isinstance(v, type | ModuleType | BuiltinFunctionType)
            for v in variables
        )
    )


class Watch:
    """Sees whether a step changes anything besides what it is known to change.

    Args:
        known: tensors that it may change.
        changing: what it may change in dictionaries: their ids, and the keys.
        may_draw: whether it may draw random numbers.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        known: Iterable[Tensor],
        changing: Collection[tuple[int, str]] = (),
        may_draw: bool = False,
    ) -> None:
        ids, self._changing = {id(t) for t in known}, changing
        if is_wrapped_by_scheduler(vars(optimizer).get("step")):
            note_step(optimizer)  # which the scheduler would do, and no step of the class's
        held = holdings(optimizer)
        self._owners, containers, tensors = held.owners, held.containers, held.tensors
        self._count, self._bare = len(containers), [vars(t) for t in tensors if not vars(t)]
        self._containers = [(c, c.copy()) for c in containers]
        self._tensors = [(t, t.clone()) for t in tensors if id(t) not in ids]
        self._random = None if may_draw else states()  # which imports numpy's

    def found(self, optimizer: torch.optim.Optimizer) -> str:
        """Say what a step has changed; "" if nothing."""
        if self._random is not None and self._random != states():
            return "a step draws random numbers"
        are_whole = all(type(o) is class_ and vars(o) is attributes for o, class_, attributes in self._owners)
        if len(holdings(optimizer).containers) != self._count or not are_whole or any(self._bare):
            return "a step changes what the optimizer holds"
        for container, before in self._containers:
            if not self._is_as_before(container, before):
                return "a step changes what the optimizer holds"
        if not all(t.dtype == before.dtype and t.equal(before) for t, before in self._tensors):
            return "a step changes a tensor that belongs to no parameter"
        return ""

    def _is_as_before(self, container: Any, before: Any) -> bool:
        if len(container) != len(before):
            return False
        if isinstance(container, dict):
            return all(
                key in container
                and ((id(container), key) in self._changing or _is_alike(container[key], value))
                for key, value in before.items()
            )
        return container == before if isinstance(container, set) else all(map(_is_alike, container, before))


def _is_alike(value: Any, before: Any) -> bool:
    return value is before or (type(value) is type(before) and type(value) in ENDS and value == before)
