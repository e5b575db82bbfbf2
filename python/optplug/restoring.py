"""What an optimizer of a class outside torch held before a step, put back after one that has failed.

Most steps leave all as it is but for numbers, in arrays and in Python: then it is known where to look, and
the memory of the copies is used again.
"""

from __future__ import annotations

import operator
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug import host
from optplug._optplug import ffi, lib
from optplug.copies import Copies
from optplug.errors import warn
from optplug.lying import address
from optplug.snapshot import ENDS, Owners, Slots, holdings, is_leaf
from optplug.torch_private import grad_mode

_is = operator.is_
_values_of = operator.methodcaller("values")
_grad_of = operator.attrgetter("grad")
_wants_gradient = operator.attrgetter("requires_grad")


_NONE = Copies([])
_LONGEST_PAUSE = 16  # steps
_note = host.table.note


class Snapshot:
    """What an optimizer and its parameters were when it was taken last."""

    def __init__(self) -> None:
        self._optimizer: torch.optim.Optimizer | None = None
        self._parameters: Sequence[Tensor] = ()
        # What it holds: dicts first, then other containers; how many values are in each, and all of these.
        # A step may put another list into the place of one.
        self._containers: list[Any] = []
        self._keys: list[Any] = []  # of the dicts
        self._lengths: list[int] = []
        self._values: list[Any] = []
        self._noted: Any = None  # all of that, as C takes it, and its memory
        self._memory_of_noted: list[Any] = []
        self._attributes: list[tuple[str, list[Any], list[Any]]] = []  # with objects, and what theirs are
        self._unreadable: list[tuple[int, Any]] = []  # the containers that C cannot read, and where they are
        self._ordered: list[tuple[Any, list[Any]]] = []  # dicts with an order that it cannot, and keys
        self._bare: list[dict[str, Any]] = []  # attributes of tensors that have none
        self._owners = Owners([])  # of those attributes that are among the dicts
        self._own: list[Tensor] = []  # those that are no parameters, and their gradients
        self._grads: list[Tensor | None] = []
        self._copies = _NONE
        self._others: list[tuple[Tensor, Tensor]] = []  # sparse tensors, and copies
        self._things: list[Any] = []
        self._put_back: list[Callable[[], object]] = []  # the things as they were
        self._strange: list[str] = []
        self._in_vain = 0  # how often it was not alike in a row, and
        self._pause = 0  # in how many it is not to be compared, which takes as long as to look

    def take(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """Note all that an optimizer holds, and these tensors."""
        is_another = self._optimizer is not optimizer
        if not is_another and not self._pause and self._is_alike(parameters):
            self._in_vain = 0
        else:
            self._optimizer = None  # until all of it is noted
            self._look(optimizer, parameters)
            self._in_vain = 0 if is_another else self._in_vain + 1
            self._pause = self._pause - 1 if self._pause else min(self._in_vain // 4, _LONGEST_PAUSE)
            if not self._pause:
                self._state()
            self._copies.take()
            self._optimizer = optimizer
        if self._things:
            self._put_back = [_as_it_is(thing) for thing in self._things]
        if self._others:
            self._others = [(t, t.clone()) for t, _ in self._others]

    def _look(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        held = holdings(optimizer, parameters)
        self._parameters = parameters
        dicts = [c for c in held.containers if isinstance(c, dict)]
        rows = [c for c in held.containers if not isinstance(c, dict)]
        self._containers = [*dicts, *rows]
        self._keys = list(chain.from_iterable(dicts))
        self._lengths = list(map(len, self._containers))
        self._values = [*chain.from_iterable(map(_values_of, dicts)), *chain.from_iterable(rows)]
        self._bare = held.bare
        strided = [t for t in held.tensors if t.layout == torch.strided]
        self._others = [(t, t) for t in held.tensors if t.layout != torch.strided]
        if not self._copies.are_of(strided):
            self._copies = _NONE  # whose memory may be needed for the new ones
            self._copies = Copies(strided)
        known = set(map(id, parameters))
        self._own = [t for t in held.tensors if id(t) not in known and is_leaf(t)]
        stepped = list(parameters)
        self._grads = list(map(_grad_of, self._own))
        self._owners = Owners(held.owners)
        self._attributes = [
            ("requires_grad", stepped, list(map(_wants_gradient, stepped))),
            ("requires_grad", self._own, list(map(_wants_gradient, self._own))),
            ("grad", self._own, self._grads),
            *self._owners.attributes,
        ]
        self._things, self._strange = held.things, list(held.strange)
        self._unreadable = []

    def _state(self) -> None:
        """State for C what is noted."""
        containers = self._containers
        self._unreadable = [
            (i, c)
            for i, c in enumerate(containers)
            if not (isinstance(c, dict | list) or type(c) in (set, deque))
        ]
        self._ordered = [
            (c, list(c))
            for c in containers
            if isinstance(c, dict) and len(c) > 1 and type(c) not in (dict, defaultdict)
        ]
        count = len(self._values)
        memory = [
            ffi.new("int64_t[]", self._lengths),
            ffi.new("char[]", bytes(type(value) not in ENDS for value in self._values)),
            ffi.new("int64_t[]", self._places()),
            ffi.new("int64_t[]", count),
            ffi.new("optplug_attributes[]", [list(map(address, a)) for a in self._attributes]),
        ]
        lengths, leads_on, places, others, attributes = self._memory_of_noted = memory
        lists = list(map(address, (self._bare, self._keys, self._values)))
        held = address(self._containers)
        lying, *copied = self._copies.stated
        own = list(map(address, (self._own, self._copies.memory, "__dict__", "data")))
        stated = [held, lengths, *lists, leads_on, places, others, len(self._attributes), attributes]
        self._noted = ffi.new("optplug_contents *", [*stated, lying, *own, *copied])

    def _places(self) -> list[int]:
        """Return where else each value is, as C takes it, that a step may make anew: a tensor, or a list."""
        own = {id(t): i for i, t in enumerate(self._own)}
        bare = {id(d): i for i, d in enumerate(self._bare)}
        where = {id(c): (-1, -1, -1, i) for i, c in enumerate(self._containers) if type(c) is list}
        where |= {
            id(t): (i, own[id(t)], bare[id(vars(t))], -1)
            for i, t in enumerate(self._copies.tensors)
            if id(t) in own and type(t) is Tensor and not t.requires_grad and id(vars(t)) in bare
        }
        elsewhere = (-1,) * lib.CONTENTS_PLACES
        return list(chain.from_iterable(where.get(id(value), elsewhere) for value in self._values))

    def _is_alike(self, parameters: Sequence[Tensor]) -> bool:
        """Tell whether only numbers are others than in the snapshot before, and note those of Python's."""
        if parameters is not self._parameters:  # as it is where nothing was bound since
            if not _are(parameters, self._parameters):
                return False
            self._parameters = parameters
        for i, container in self._unreadable:
            self._containers[i] = list(container)
        replaced = _note(self._noted)
        if replaced < 0 or not (self._copies.are_by_c or self._copies.take_rest(replaced > 0)):
            return False
        return not self._ordered or all(_are(list(container), keys) for container, keys in self._ordered)

    def restore(self) -> None:
        """Put everything back; warn of what cannot be."""
        values, keys = iter(self._values), iter(self._keys)
        for i, container in self._unreadable:
            self._containers[i] = container
        for container, count in zip(self._containers, self._lengths, strict=True):
            if isinstance(container, dict):
                pairs = list(zip(_take(keys, count), _take(values, count), strict=True))
                container.clear()
                container.update(pairs)
            else:
                _fill(container, _take(values, count))
        for attributes in self._bare:
            attributes.clear()
        self._owners.put_back()
        with grad_mode(False):
            self._copies.put()
            for tensor, copy in self._others:
                tensor.copy_(copy)
            for tensor, grad in zip(self._own, self._grads, strict=True):
                if tensor.grad is not grad:
                    tensor.grad = grad
            for tensor, wanting in chain(*(zip(*a[1:], strict=True) for a in self._attributes[:2])):
                if tensor.requires_grad != wanting:
                    tensor.requires_grad_(wanting)
        for put_back in self._put_back if self._things else ():
            put_back()
        if self._strange:
            warn(
                f"{type(self._optimizer).__name__} holds objects that cannot be restored after a failed step "
                f"and may have changed: {', '.join(self._strange)}"
            )


def _take(values: Iterator[Any], count: int) -> list[Any]:
    return [next(values) for _ in range(count)]


def _fill(container: Any, values: list[Any]) -> None:
    if isinstance(container, Slots):
        container.put(values)
        return
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(values)


def _as_it_is(thing: Any) -> Callable[[], object]:
    """Return a function that puts an array or a generator back as it is now."""
    if isinstance(thing, np.ndarray):
        content = thing.copy()
        return lambda: np.copyto(thing, content)
    if isinstance(thing, torch.Generator):
        state = thing.get_state()
        return lambda: thing.set_state(state)
    if isinstance(thing, random.Random):
        numbers = thing.getstate()
        return lambda: thing.setstate(numbers)
    if isinstance(thing, np.random.Generator):
        bits, place = thing.bit_generator, thing.bit_generator.state
        return lambda: setattr(bits, "state", place)
    known = thing.get_state()
    return lambda: thing.set_state(known)


def _are(values: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(values) == len(others) and all(map(_is, values, others))
