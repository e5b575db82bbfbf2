"""All that an optimizer of a class outside torch holds, and whether a step has changed something of it.

Nobody knows what such a class keeps: whatever its attributes lead to, by containers and objects of its own.
"""

from __future__ import annotations

import logging
import operator
import random
import re
import threading
from collections import UserDict, deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, partial
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    NoneType,
    SimpleNamespace,
)
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

import numpy as np
import torch
from torch import Tensor, nn

from optplug.randomness import states
from optplug.torch_private import is_wrapped_by_scheduler, note_step

#: What leads nowhere, as most values do: asked first.
ENDS = frozenset({NoneType, bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})
# What does not change.
_CONSTANT = (type, ModuleType, np.generic, Enum, range, frozenset)
# What has a state that is not among its attributes, and that can be put back; numpy's by their modules, which
# are not loaded for this alone.
_THINGS = (np.ndarray, torch.Generator, random.Random)
_GENERATORS = ("numpy.random._generator", "numpy.random.mtrand")
# What else leads on by its attributes, whosever it is.
_LEADING = (
    *(torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, nn.Module, SimpleNamespace),
    *(UserDict, WeakKeyDictionary, WeakValueDictionary),
)
# What is no state of an optimizer's, though it may change.
_HARMLESS = (logging.Logger, re.Pattern, ref, PurePath, type(threading.Lock()), type(threading.RLock()))
# Packages whose objects and functions are no class's own.
_NOBODYS = frozenset({"torch", "builtins", "abc", "typing", "collections", "object"})
#: What is in a slot that is empty.
NOTHING = object()
_DEPTH = 10  # of functions that wrap others
#: What torch's own attributes for hooks begin with.
HOOKS = "_optimizer_"


def is_thing(value: Any) -> bool:
    """Tell whether something has a state that is not among its attributes."""
    return isinstance(value, _THINGS) or any(c.__module__ in _GENERATORS for c in type(value).__mro__)


@dataclass
class Holdings:
    """What an optimizer holds, as far as it may change."""

    #: Dicts, lists, sets and deques, and what stands for attributes that are in none: see `Slots`.
    containers: list[Any] = field(default_factory=list)
    #: The objects whose attributes are among those.
    owners: list[Any] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    #: The attributes of tensors that have none yet.
    bare: list[dict[str, Any]] = field(default_factory=list)
    #: Arrays and generators, whose content is not among their attributes.
    things: list[Any] = field(default_factory=list)
    #: The types of what nobody can see through, by the names of what holds it.
    strange: dict[str, type] = field(default_factory=dict)


def holdings(optimizer: torch.optim.Optimizer, more: Iterable[Any] = ()) -> Holdings:
    """Return what an optimizer holds; of a tensor's subclass, the tensors in it.

    Args:
        more: what else to look at: parameters, whose gradients are not the optimizer's.
    """
    packages = {base.__module__.partition(".")[0] for base in type(optimizer).__mro__} - _NOBODYS
    result = Holdings()
    containers, tensors = result.containers, result.tensors
    more = list(more)
    parameters = set(map(id, more)) or {id(p) for group in optimizer.param_groups for p in group["params"]}
    seen = set()
    found: list[Any] = [optimizer, *more]
    while found:
        value = found.pop()
        kind = type(value)
        if kind in ENDS or id(value) in seen:
            continue
        seen.add(id(value))
        inside: Iterable[Any] = ()
        if isinstance(value, dict):
            containers.append(value)
            inside = [*value.values(), *(k for k in value if type(k) is not str and isinstance(k, Tensor))]
            if hasattr(value, "__dict__"):
                inside += _attributes(value, result)
        elif isinstance(value, tuple):
            inside = value
        elif isinstance(value, (list, set, deque)):
            containers.append(value)
            inside = value
        elif kind is Tensor or kind is nn.Parameter or (isinstance(value, Tensor) and not _is_wrapper(value)):
            tensors.append(value)
            attributes = vars(value)
            if attributes:
                containers.append(attributes)
                inside = attributes.values()
            else:
                result.bare.append(attributes)
            if id(value) not in parameters and is_leaf(value) and value.grad is not None:
                found.append(value.grad)
        elif isinstance(value, Tensor):
            containers.append(vars(value))  # where a step may put another tensor
            inside = [getattr(value, name) for name in value.__tensor_flatten__()[0]]  # type: ignore[attr-defined]
        elif isinstance(value, _CONSTANT):
            pass
        elif isinstance(value, FunctionType):
            if value.__module__.partition(".")[0] in packages:
                inside = _of_function(value, containers)
        elif isinstance(value, MethodType | partial):
            inside = [value.__self__] if isinstance(value, MethodType) else [value.func, value.args]
            if isinstance(value, partial):
                containers.append(value.keywords)
                inside += value.keywords.values()
        elif is_thing(value):
            result.things.append(value)
            inside = value.flat if isinstance(value, np.ndarray) and value.dtype == object else ()
        elif isinstance(value, _LEADING) or package_of(value) in packages:
            inside = _of_object(value, result)
        elif not (isinstance(value, _HARMLESS) or callable(value) or kind is object):
            result.strange[kind.__name__] = kind
        found += [v for v in inside if type(v) not in ENDS]
    return result


def is_leaf(tensor: Tensor) -> bool:
    """Tell whether a tensor was computed from none that requires gradients, and so may have one itself."""
    try:
        return tensor.is_leaf
    except RuntimeError:  # of a view that autograd gives up
        return False


def has_graph(tensor: Tensor) -> bool:
    """Tell whether autograd knows what a tensor was computed from."""
    try:
        return not tensor.is_leaf
    except RuntimeError:
        return False


def wants_gradient(tensor: Tensor) -> bool:
    """Tell whether a tensor requires gradients."""
    try:
        return tensor.requires_grad
    except RuntimeError:
        return False


def _is_wrapper(value: Tensor) -> bool:
    """Tell whether a tensor is nothing but others in it."""
    return hasattr(value, "__tensor_flatten__")


def _attributes(value: Any, held: Holdings) -> list[Any]:
    """Note an object's attributes, and return what they lead to."""
    attributes = vars(value)
    held.containers.append(attributes)
    held.owners.append(value)
    found = [v for key, v in attributes.items() if not (type(key) is str and key.startswith(HOOKS))]
    if isinstance(value, torch.optim.Optimizer) and "step" in attributes:  # a scheduler's, around the class's
        found = [v for v in found if v is not attributes["step"]]
    return found


def _of_object(value: Any, held: Holdings) -> list[Any]:
    inside = _attributes(value, held) if hasattr(value, "__dict__") else []
    names = slots_of(type(value))  # type: ignore[arg-type]
    if names:
        slots = Slots(value, names)
        held.containers.append(slots)
        inside += slots
    return inside


def _of_function(function: FunctionType, containers: list[Any]) -> list[Any]:
    inside: list[Any] = list(function.__defaults__ or ())
    for attributes in (function.__kwdefaults__, vars(function)):
        if attributes:
            containers.append(attributes)
            inside += attributes.values()
    for cell in function.__closure__ or ():
        slots = Slots(cell, ("cell_contents",))
        containers.append(slots)
        inside += slots
    return inside


@cache
def slots_of(kind: type) -> tuple[str, ...]:
    """Return the names of the slots of a class's objects."""
    return tuple(
        name
        for base in kind.__mro__
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType) and base.__module__ not in _NOBODYS
    )


class Owners:
    """Objects, with what a step may replace in each as a whole: its class and its dict."""

    def __init__(self, objects: list[Any]) -> None:
        classes, dicts = list(map(type, objects)), list(map(vars, objects))
        #: Names of attributes, the objects, and what each has.
        self.attributes: list[tuple[str, list[Any], list[Any]]] = [
            ("__class__", objects, classes),
            ("__dict__", objects, dicts),
        ]

    def are_whole(self) -> bool:
        """Tell whether nothing of that is replaced."""
        return all(
            all(map(operator.is_, map(operator.attrgetter(name), objects), values))
            for name, objects, values in self.attributes
        )

    def put_back(self) -> None:
        """Put back what is."""
        (_, objects, classes), (_, _, dicts) = self.attributes
        for value, class_, attributes in zip(objects, classes, dicts, strict=True):
            if type(value) is not class_:
                object.__setattr__(value, "__class__", class_)
            if vars(value) is not attributes:
                object.__setattr__(value, "__dict__", attributes)


class Slots:
    """Attributes of an object that are in no dict, as a container of as many values."""

    def __init__(self, owner: Any, names: tuple[str, ...]) -> None:
        self._owner, self._names = owner, names

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Any]:
        return iter([self._get(name) for name in self._names])

    def _get(self, name: str) -> Any:
        try:
            return getattr(self._owner, name, NOTHING)
        except ValueError:  # an empty cell's
            return NOTHING

    def copy(self) -> list[Any]:
        """Return the values."""
        return list(self)

    def put(self, values: Iterable[Any]) -> None:
        """Put values back that were there."""
        for name, value in zip(self._names, values, strict=True):
            if value is not NOTHING:
                setattr(self._owner, name, value)
            elif self._get(name) is not NOTHING:
                delattr(self._owner, name)


def is_its_own(value: Any, package: str) -> bool:
    """Tell whether an object is of the optimizer's own package, or an optimizer that it wraps."""
    return isinstance(value, torch.optim.Optimizer) or package_of(value) == package


def package_of(value: Any) -> str:
    """Return the package that an object's class is of."""
    return type(value).__module__.partition(".")[0]


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
    if kind in ENDS or isinstance(value, (Tensor, *_CONSTANT)):
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
        self._count, self._owners = len(held.containers), Owners(held.owners)
        self._containers = [(c, c.copy()) for c in (*held.containers, *held.bare)]
        self._tensors = [(t, t.clone()) for t in held.tensors if id(t) not in ids]
        self._random = None if may_draw else states()  # which imports numpy's

    def found(self, optimizer: torch.optim.Optimizer) -> str:
        """Say what a step has changed; "" if nothing."""
        if self._random is not None and self._random != states():
            return "a step draws random numbers"
        if len(holdings(optimizer).containers) != self._count or not self._owners.are_whole():
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
