"""All that an optimizer of a class outside torch holds, and putting it back as it was.

Nobody knows what such a class keeps: whatever its attributes lead to, by containers and objects of its own.
"""

from __future__ import annotations

import contextlib
import operator
import random
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from enum import Enum
from types import FunctionType, ModuleType, NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optplug.torch_private import foreach_copy_, grad_mode

# What leads nowhere, as most values do: asked first.
_ENDS = frozenset({NoneType, bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})
# What does not change.
_CONSTANT = (type, ModuleType, np.generic, Enum, range)
#: What torch's own attributes for hooks begin with.
HOOKS = "_optimizer_"


def holdings(optimizer: torch.optim.Optimizer, more: Iterable[Any] = ()) -> tuple[list[Any], list[Tensor]]:
    """Return the containers and the tensors that an optimizer holds; of a tensor's subclass, those in it.

    Args:
        more: what else to look at.
    """
    package = package_of(optimizer)
    containers: list[Any] = []
    tensors: list[Tensor] = []
    seen = set()
    found: list[Any] = [optimizer, *more]
    while found:
        value = found.pop()
        kind = type(value)
        if kind in _ENDS or id(value) in seen:
            continue
        seen.add(id(value))
        inside: Iterable[Any] = ()
        if kind is Tensor or kind is nn.Parameter:
            tensors.append(value)
        elif isinstance(value, dict):
            containers.append(value)
            inside = value.values()
        elif isinstance(value, list | set | deque):
            containers.append(value)
            inside = value
        elif isinstance(value, tuple):
            inside = value
        elif hasattr(value, "__tensor_flatten__"):
            containers.append(vars(value))  # where a step may put another tensor
            inside = [getattr(value, name) for name in value.__tensor_flatten__()[0]]
        elif isinstance(value, Tensor):
            tensors.append(value)
        elif hasattr(value, "__dict__") and is_its_own(value, package):
            attributes = vars(value)
            containers.append(attributes)
            inside = [v for key, v in attributes.items() if not key.startswith(HOOKS)]
        found += [v for v in inside if type(v) not in _ENDS]
    return containers, tensors


def is_its_own(value: Any, package: str) -> bool:
    """Tell whether an object is of the optimizer's own package, or an optimizer that it wraps."""
    return isinstance(value, torch.optim.Optimizer) or package_of(value) == package


def package_of(value: Any) -> str:
    """Return the package that an object's class is of."""
    return type(value).__module__.partition(".")[0]


def opaque(optimizer: torch.optim.Optimizer) -> str:
    """Name the type of something that an optimizer holds and that may change unseen; "" if nothing may."""
    package = package_of(optimizer)
    for container in holdings(optimizer)[0]:
        found = list(container.values()) if isinstance(container, dict) else list(container)
        if container is vars(optimizer):  # but for the step, which torch's schedulers replace
            found = [v for k, v in container.items() if k != "step" and not k.startswith(HOOKS)]
        while found:
            value = found.pop()
            if isinstance(value, tuple):
                found += value
            elif not _is_seen_through(value, package):
                return type(value).__name__
    return ""


def _is_seen_through(value: Any, package: str) -> bool:
    """Tell whether `Watch` sees if a value changes, or it never does."""
    kind = type(value)
    if kind in _ENDS or isinstance(value, (Tensor, *_CONSTANT)):
        return True
    if isinstance(value, FunctionType):
        return not (value.__closure__ or value.__defaults__ or value.__kwdefaults__ or vars(value))
    if isinstance(value, dict | list | set | deque):
        return not getattr(value, "__dict__", None)
    has_slots = any(vars(each).get("__slots__") for each in kind.__mro__)
    return hasattr(value, "__dict__") and is_its_own(value, package) and not has_slots


@contextlib.contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Let what draws random numbers of torch's, Python's or numpy's leave the next ones as they would be."""
    of_torch, of_python, of_numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(of_torch)
        random.setstate(of_python)
        np.random.set_state(of_numpy)


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
        containers, tensors = holdings(optimizer)
        containers += [vars(t) for t in tensors]
        self._containers = [(c, c.copy()) for c in containers]
        self._count = len(containers) - len(tensors)
        self._tensors = [(t, t.clone()) for t in tensors if id(t) not in ids]
        self._random = None if may_draw else _random_states()  # which imports numpy's

    def found(self, optimizer: torch.optim.Optimizer) -> str:
        """Say what a step has changed; "" if nothing."""
        if self._random is not None and self._random != _random_states():
            return "a step draws random numbers"
        if len(holdings(optimizer)[0]) != self._count:
            return "a step changes what the optimizer holds"
        for container, before in self._containers:
            if not self._is_as_before(container, before):
                return "a step changes what the optimizer holds"
        if not all(t.equal(before) for t, before in self._tensors):
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
    return value is before or (type(value) is type(before) and type(value) in _ENDS and value == before)


def _random_states() -> tuple[Any, ...]:
    _, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.asarray(keys).tobytes(), rest


class Snapshot:
    """What an optimizer and its parameters were, in memory that is used again for the next one.

    Most steps leave all as it is but for numbers, in arrays and in Python: then it is known where to look.
    """

    def __init__(self) -> None:
        self._optimizer: torch.optim.Optimizer | None = None
        self._given: list[Tensor] = []
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: list[Tensor] = []
        self._memory: list[Tensor] = []  # where the tensors were, and
        self._copies: list[Tensor] = []  # what was in it
        self._others: list[tuple[Tensor, Tensor]] = []  # the same of sparse ones

    def take(self, optimizer: torch.optim.Optimizer, tensors: Iterable[Tensor]) -> None:
        """Note all that an optimizer holds, and these tensors."""
        given = list(tensors)
        if self._optimizer is optimizer and self._looks_the_same(given):
            with grad_mode(False):
                foreach_copy_(self._copies, self._memory)
            return
        self._optimizer, self._given = optimizer, given
        containers, found = holdings(optimizer, given)
        self._containers = [(c, c.copy()) for c in containers]
        strided = [t for t in found if t.layout == torch.strided]
        with grad_mode(False):
            self._others = [(t, t.clone()) for t in found if t.layout != torch.strided]
            if not self._knows(strided):
                self._tensors, self._copies = [], []  # their memory may be needed for the new ones
                strided = [t for t in strided if 0 not in t.stride() or t.numel() <= 1]
                self._memory = [t.detach() for t in strided]
                self._copies = [t.clone() for t in strided]
                self._tensors = strided
            elif strided:
                foreach_copy_(self._copies, self._memory)

    def _looks_the_same(self, given: list[Tensor]) -> bool:
        """Tell whether only numbers are others than in the snapshot before, and note those of Python's."""
        if self._others or not self._copies or not _are(given, self._given):
            return False
        if not all(map(Tensor.is_set_to, self._tensors, self._memory)):
            return False
        fresh = []
        for container, before in self._containers:
            now = container.copy()
            if not _holds_the_same(now, before):
                return False
            fresh.append((container, now))
        self._containers = fresh
        return True

    def _knows(self, tensors: list[Tensor]) -> bool:
        """Tell whether these are the tensors of the snapshot before, in the same memory."""
        return _are(tensors, self._tensors) and all(map(Tensor.is_set_to, tensors, self._memory))

    def restore(self) -> None:
        """Put everything back."""
        for container, content in self._containers:
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(content)
        with grad_mode(False):
            for tensor, memory, values in zip(self._tensors, self._memory, self._copies, strict=True):
                if not tensor.is_set_to(memory):
                    tensor.data = memory
                memory.copy_(values)
            for tensor, values in self._others:
                tensor.copy_(values)


def _are(values: Collection[Any], others: Collection[Any]) -> bool:
    return len(values) == len(others) and all(map(operator.is_, values, others))


def _holds_the_same(now: Any, before: Any) -> bool:
    """Tell whether two containers hold the same but for what leads nowhere."""
    if isinstance(now, dict):
        if now.keys() != before.keys():
            return False
        pairs = zip(now.values(), map(before.__getitem__, now), strict=True)
    elif isinstance(now, set):
        return _are(now, before)
    elif len(now) != len(before):
        return False
    else:
        pairs = zip(now, before, strict=True)
    return all(a is b or (type(a) in _ENDS and type(b) in _ENDS) for a, b in pairs)
