"""All that an optimizer of a class outside torch holds: C goes through it, and asks what it does not know.

Nobody knows what such a class keeps: whatever its attributes lead to, by containers and objects of its own.
"""

from __future__ import annotations

import logging
import random
import re
import threading
from collections import UserDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from enum import Enum
from functools import cache, partial
from itertools import chain
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CellType,
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

from optplug import host
from optplug._optplug import ffi, lib
from optplug.lying import address
from optplug.torch_private import exchange, is_wrapped_by_scheduler

#: What leads nowhere, as most values do: asked first.
ENDS = frozenset({NoneType, bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})
# What does not change.
CONSTANT = (type, ModuleType, np.generic, Enum, range, frozenset)
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
#: What torch's own attributes for hooks begin with.
HOOKS = "_optimizer_"
#: The same as C looks for it, the most frequent first, with more that may be said of a type.
_FREQUENT = bool, float, int, NoneType, str
_ENDS = (*_FREQUENT, type, *ENDS - {*_FREQUENT}, BuiltinFunctionType)
_KINDS = {
    dict: lib.HELD_DICT,
    Tensor: lib.HELD_TENSOR,
    nn.Parameter: lib.HELD_TENSOR,
    list: lib.HELD_LIST,
    tuple: lib.HELD_TUPLE,
    set: lib.HELD_ITERABLE,
    deque: lib.HELD_ITERABLE,
    defaultdict: lib.HELD_DICT,
    CellType: lib.HELD_CELL,
}
#: The kinds of what has values.
CONTAINERS = frozenset(
    (lib.HELD_DICT, lib.HELD_DICT_READ, lib.HELD_LIST, lib.HELD_ITERABLE, lib.HELD_CELL, lib.HELD_READ)
)
_NAMES = "__dict__", "data", "grad", "requires_grad", "is_leaf"
_note, _forget = host.table.note, host.table.forget


def is_thing(value: Any) -> bool:
    """Tell whether something has a state that is not among its attributes."""
    return isinstance(value, _THINGS) or any(c.__module__ in _GENERATORS for c in type(value).__mro__)


class _Teller:
    """Says what C does not know of objects.

    Args:
        packages: whose objects and functions are looked into.
    """

    def __init__(self, packages: set[str]) -> None:
        #: Types that lead nowhere, as far as they are known.
        self.ends = list(_ENDS)
        self._packages, self._passed_over = packages, dict[int, Any]()  # objects by their ids

    def tell(self, value: Any) -> tuple[int, list[Any] | None]:
        """Return what an object is, and what it leads to besides its values."""
        kind = type(value)
        if id(value) in self._passed_over:
            return lib.HELD_OTHER, None
        if isinstance(value, dict):
            return lib.HELD_DICT_READ, self._attributes(value) or None
        if isinstance(value, tuple):
            return lib.HELD_OTHER, list(value)
        if isinstance(value, list | set | deque | Slots):
            return lib.HELD_READ, None
        if isinstance(value, Tensor):
            return (lib.HELD_OTHER, [vars(value)]) if _is_wrapper(value) else (lib.HELD_TENSOR, None)
        if isinstance(value, CONSTANT):
            return self._note_end(kind)
        if isinstance(value, FunctionType):
            package = (value.__module__ or "").partition(".")[0]
            is_own = package in self._packages and not is_wrapped_by_scheduler(value)
            return lib.HELD_OTHER, _of_function(value) if is_own else None
        if isinstance(value, MethodType):
            return lib.HELD_OTHER, [value.__self__]
        if isinstance(value, partial):
            return lib.HELD_OTHER, [value.func, value.args, value.keywords]
        if is_thing(value):
            has_objects = isinstance(value, np.ndarray) and value.dtype == object
            return lib.HELD_THING, list(value.flat) if has_objects else None
        if isinstance(value, _LEADING) or package_of(value) in self._packages:
            attributes, names = self._attributes(value), slots_of(kind)  # type: ignore[arg-type]
            leads = [*attributes, Slots(value, names)] if names else attributes
            return lib.HELD_OBJECT if attributes else lib.HELD_OTHER, leads
        if isinstance(value, _HARMLESS) or callable(value) or kind is object:
            return self._note_end(kind)
        return lib.HELD_STRANGE, None

    def _note_end(self, kind: type) -> tuple[int, None]:
        self.ends.append(kind)
        return lib.HELD_OTHER, None

    def _attributes(self, value: Any) -> list[Any]:
        """Return an object's class and its attributes, but for hooks and a scheduler's step, which stay."""
        if not hasattr(value, "__dict__"):
            return []
        attributes = vars(value)
        is_optimizer = isinstance(value, torch.optim.Optimizer)
        for key, v in attributes.items():
            if type(key) is str and (key.startswith(HOOKS) or (is_optimizer and key == "step")):
                self._passed_over[id(v)] = v
        return [type(value), attributes]


class Holdings:
    """All that an optimizer holds, as far as it may change; of a tensor's subclass, the tensors in it.

    Args:
        parameters: those that it steps, whose gradients are not its own: the ones of its groups by default.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor] | None = None) -> None:
        if parameters is None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
        stepped = {id(p): p for p in parameters}
        packages = {base.__module__.partition(".")[0] for base in type(optimizer).__mro__}
        teller = _Teller(packages - _NOBODYS)
        #: All objects, as C has come to them, and what they lead to: see ``csrc/bridge.h``.
        self.objects: list[Any] = []
        self.leads: list[Any] = []
        #: The keys and the values of all of them, in turn.
        self.keys: list[Any] = []
        self.values: list[Any] = []
        self._raised: list[BaseException] = []
        # What C has by its address is to stay.
        lists = [self.objects, self.leads, self.keys, self.values, [], self._raised]
        self._given = [optimizer, *stepped.values()], teller.tell, _read, teller.ends, list(_KINDS), lists
        self._kinds = ffi.new("char[]", bytes(_KINDS.values()))
        roots, tell, read, ends, types, _ = map(address, self._given)
        stated = [roots, len(stepped), tell, read, ends, types, self._kinds]
        stated += map(address, (Tensor, nn.Parameter, NOTHING, None, True, exchange, *_NAMES, *lists))
        #: What C says of them.
        self.stated = ffi.gc(ffi.new("optplug_holdings *", stated), _forget)

    def note(self, takes: bool) -> int:
        """Note what there is now; return how many objects are left to copy.

        Args:
            takes: whether to copy the values of tensors.
        """
        marked = int(_note(self.stated, takes))
        if marked < 0:
            raise self._raised.pop() if self._raised else MemoryError("there is no memory to note a state")
        return marked

    def each(self) -> Any:
        """Return what C says of each object."""
        return self.stated.held[0 : self.stated.count]

    def of(self, *kinds: int) -> Iterator[tuple[int, Any]]:
        """Yield the objects of some kinds, with their places."""
        both = enumerate(zip(self.objects, self.each(), strict=True))
        return ((i, value) for i, (value, each) in both if each.kind in kinds)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors."""
        return [t for _, t in self.of(lib.HELD_TENSOR)]

    @property
    def containers(self) -> list[Any]:
        """What has values; of a tensor no dict of attributes while that is empty."""
        return [as_container(value) for _, value in self.of(*CONTAINERS)]

    @property
    def owners(self) -> list[tuple[Any, type, dict[str, Any]]]:
        """The objects that have attributes in a dict, with their classes and these."""
        found = self.of(lib.HELD_OBJECT, lib.HELD_DICT_READ)
        return [(value, *self.leads[i][:2]) for i, value in found if self.leads[i]]

    @property
    def strange(self) -> list[str]:
        """The types of what nobody can see through."""
        return list({type(value).__name__: None for _, value in self.of(lib.HELD_STRANGE)})


def holdings(optimizer: torch.optim.Optimizer) -> Holdings:
    """Return what an optimizer holds."""
    found = Holdings(optimizer)
    found.note(takes=False)
    return found


def _read(container: Any) -> list[Any]:
    """Return the values in a container that C cannot go through, of a dict each after its key."""
    return list(chain.from_iterable(container.items())) if isinstance(container, dict) else list(container)


def as_container(value: Any) -> Any:
    """Return what has values so that they can be gone through, and put back."""
    return Slots(value, ("cell_contents",)) if type(value) is CellType else value


def _of_function(function: FunctionType) -> list[Any]:
    attributes = (function.__kwdefaults__, vars(function))
    return [*(function.__defaults__ or ()), *(a for a in attributes if a), *(function.__closure__ or ())]


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


@cache
def slots_of(kind: type) -> tuple[str, ...]:
    """Return the names of the slots of a class's objects."""
    return tuple(
        name
        for base in kind.__mro__
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType) and base.__module__ not in _NOBODYS
    )


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


def package_of(value: Any) -> str:
    """Return the package that an object's class is of."""
    return type(value).__module__.partition(".")[0]
