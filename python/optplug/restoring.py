"""What an optimizer of a class outside torch held before a step, put back after one that has failed.

Most steps leave all as it is but for numbers, in arrays and in Python: then it is known where to look, and
the memory of the copies is used again.
"""

from __future__ import annotations

import operator
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug.copies import Copies
from optplug.errors import warn
from optplug.snapshot import ENDS, Slots, holdings, is_leaf
from optplug.torch_private import grad_mode

_is, _place = operator.is_, Tensor.data_ptr
_values_of = operator.methodcaller("values")
_grad_of = operator.attrgetter("grad")


def _count_of_three() -> int:
    """Return what the count of references says of a tensor that two lists and a tuple have."""
    tensors = [torch.empty(0)]
    others = list(tensors), tuple(tensors)
    count = sys.getrefcount(tensors[0])
    del others
    return count


_ALONE = _count_of_three()
_NONE = Copies([])


class Snapshot:
    """What an optimizer and its parameters were when it was taken last."""

    def __init__(self) -> None:
        self._optimizer: torch.optim.Optimizer | None = None
        self._parameters: Sequence[Tensor] = ()
        # What it holds: dicts with their keys, other containers, and how many values are in each, ...
        self._dicts: list[dict[Any, Any]] = []
        self._keys: list[Any] = []
        self._rows: list[Any] = []
        self._lengths: list[int] = []
        self._containers: list[Any] = []
        # ... all these values, their types, and those that are no mere numbers or words.
        self._values: list[Any] = []
        self._kinds: list[type] = []
        self._pick: Callable[[list[Any]], tuple[Any, ...]] = tuple
        self._steady: tuple[Any, ...] = ()
        self._tensor_of: dict[
            int, tuple[int, int, int]
        ] = {}  # of those by their places: which tensor it is, if steps may make it anew
        self._bare: list[dict[str, Any]] = []  # attributes of tensors that have none
        self._tensors: list[Tensor] = []
        self._memory: list[Tensor] = []  # where these were
        self._places: list[int] = []
        self._all_forms: list[Any] = []
        self._forms: list[Any] = []  # of those that are no parameters, which stay the host's arrays
        self._own: list[Tensor] = []  # those that are no parameters, and their gradients
        self._grads: list[Tensor | None] = []
        self._copies = _NONE
        self._others: list[tuple[Tensor, Tensor]] = []  # sparse tensors, and copies
        self._things: list[Any] = []
        self._put_back: list[Callable[[], object]] = []  # the things as they were
        self._strange: list[str] = []

    def take(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """Note all that an optimizer holds, and these tensors."""
        if self._optimizer is not optimizer or not self._is_alike(parameters):
            self._optimizer = None  # until all of it is noted
            self._look(optimizer, parameters)
            self._optimizer = optimizer
        self._copies.take()
        if self._things:
            self._put_back = [_as_it_is(thing) for thing in self._things]
        if self._others:
            self._others = [(t, t.clone()) for t, _ in self._others]

    def _look(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        held = holdings(optimizer, parameters)
        self._parameters = list(parameters)
        self._dicts = [c for c in held.containers if isinstance(c, dict)]
        self._rows = [c for c in held.containers if not isinstance(c, dict)]
        self._containers = [*self._dicts, *self._rows]
        self._keys = list(chain.from_iterable(self._dicts))
        self._lengths = list(map(len, self._containers))
        self._values = self._found()
        self._kinds = list(map(type, self._values))
        steady = [i for i, kind in enumerate(self._kinds) if kind not in ENDS]
        self._pick = operator.itemgetter(*steady)  # many: an optimizer has its groups, and its state
        self._steady = self._pick(self._values)
        self._bare = held.bare
        self._tensor_of = {}
        strided = [t for t in held.tensors if t.layout == torch.strided]
        self._others = [(t, t) for t in held.tensors if t.layout != torch.strided]
        if not self._tensors_are(strided):
            self._copies = _NONE  # whose memory may be needed for the new ones
            self._tensors, self._places = strided, list(map(_place, strided))
            self._all_forms = _forms(strided)
            with grad_mode(False):
                self._memory = [t.detach() for t in strided]
                self._copies = Copies(strided)
        known = set(map(id, self._parameters))
        self._own = [t for t in held.tensors if id(t) not in known and is_leaf(t)]
        self._note_tensors()
        self._grads, self._forms = list(map(_grad_of, self._own)), _forms(self._own)
        self._things, self._strange = held.things, list(held.strange)

    def _note_tensors(self) -> None:
        """Note which of the steady values are tensors that a step may replace by others like them."""
        own = {id(t): i for i, t in enumerate(self._own)}
        bare = {id(d): i for i, d in enumerate(self._bare)}
        where = {
            id(t): (i, own[id(t)]) for i, t in enumerate(self._tensors) if id(t) in own and type(t) is Tensor
        }
        self._tensor_of = {}
        for place, value in enumerate(self._steady):
            if id(value) in where and id(vars(value)) in bare:
                self._tensor_of[place] = (*where[id(value)], bare[id(vars(value))])

    def _takes(self, steady: tuple[Any, ...]) -> bool:
        """Take the tensors that a step has made in the place of others of their form, which it has let go."""
        changed = [i for i, (new, old) in enumerate(zip(steady, self._steady, strict=True)) if new is not old]
        if not all(map(self._tensor_of.__contains__, changed)):
            return False
        optimizer, self._optimizer = self._optimizer, None  # until all of them are taken
        for place in changed:
            at, own, bare = self._tensor_of[place]
            new, memory = steady[place], self._memory[at]
            if (
                sys.getrefcount(self._tensors[at]) > _ALONE  # somebody else has it still
                or vars(new)
                or new.requires_grad
                or new.grad is not None
                or (new.dtype, new.device, new.layout) != (memory.dtype, memory.device, memory.layout)
                or (new.size(), new.stride()) != (memory.size(), memory.stride())
            ):
                return False
            memory = new.detach()
            self._copies.replace(at, memory)
            self._tensors[at], self._memory[at], self._places[at] = new, memory, _place(new)
            self._own[own], self._bare[bare] = new, vars(new)
        self._steady, self._optimizer = steady, optimizer
        return True

    def _found(self) -> list[Any]:
        return [*chain.from_iterable(map(_values_of, self._dicts)), *chain.from_iterable(self._rows)]

    def _tensors_are(self, tensors: list[Tensor]) -> bool:
        """Tell whether these are the tensors of the snapshot before, in the same memory."""
        is_there = _are(tensors, self._tensors) and list(map(_place, tensors)) == self._places
        return is_there and _forms(tensors) == self._all_forms

    def _is_alike(self, parameters: Sequence[Tensor]) -> bool:
        """Tell whether only numbers are others than in the snapshot before, and note those of Python's."""
        if list(map(len, self._containers)) != self._lengths or any(self._bare):
            return False
        self._values = values = self._found()  # the old ones are in `_steady`, as far as they matter here
        if (
            list(map(type, values)) != self._kinds
            or not all(map(_is, chain.from_iterable(self._dicts), self._keys))
            or not _are(parameters, self._parameters)
        ):
            return False
        steady = self._pick(values)
        if not all(map(_is, steady, self._steady)) and not self._takes(steady):
            return False
        return not (
            list(map(_place, self._tensors)) != self._places
            or _forms(self._own) != self._forms
            or not all(map(_is, map(_grad_of, self._own), self._grads))
        )

    def restore(self) -> None:
        """Put everything back; warn of what cannot be."""
        values, keys = iter(self._values), iter(self._keys)
        counts = iter(self._lengths)
        for container, count in zip(self._dicts, counts, strict=False):
            pairs = list(zip(_take(keys, count), _take(values, count), strict=True))
            container.clear()
            container.update(pairs)
        for container, count in zip(self._rows, counts, strict=True):
            _fill(container, _take(values, count))
        for attributes in self._bare:
            attributes.clear()
        with grad_mode(False):
            for tensor, memory in zip(self._tensors, self._memory, strict=True):
                if not tensor.is_set_to(memory):
                    tensor.data = memory
            self._copies.put()
            for tensor, copy in self._others:
                tensor.copy_(copy)
            for tensor, grad in zip(self._own, self._grads, strict=True):
                if tensor.grad is not grad:
                    tensor.grad = grad
        for put_back in self._put_back if self._things else ():
            put_back()
        if self._strange:
            warn(
                f"{type(self._optimizer).__name__} holds objects that cannot be restored after a failed step "
                f"and may have changed: {', '.join(self._strange)}"
            )


def _forms(tensors: list[Tensor]) -> list[Any]:
    """Return how tensors lie."""
    return [*map(Tensor.size, tensors), *map(Tensor.stride, tensors)]


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
