"""What an optimizer of a class outside torch held before a step, put back after one that has failed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug._optplug import ffi, lib
from optplug.copies import put, without_repeats
from optplug.errors import warn
from optplug.holdings import CONTAINERS, Holdings, Slots, as_container
from optplug.torch_private import grad_mode


class Snapshot:
    """What an optimizer and its parameters were when it was taken last."""

    def __init__(self) -> None:
        self._optimizer: torch.optim.Optimizer | None = None
        self._parameters: Sequence[Tensor] = ()
        self._held: Holdings | None = None
        self._things: list[Callable[[], object]] = []  # what puts them back
        self._tensors: list[_Copy] = []  # of those that C does not copy

    def take(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """Note all that an optimizer holds, and these tensors."""
        held = self._held
        if held is None or self._optimizer is not optimizer or self._parameters is not parameters:
            held = Holdings(optimizer, parameters)
            self._optimizer, self._parameters = optimizer, parameters
        self._held = None  # until all of it is noted
        marked = held.note(takes=True)
        if marked or self._things or self._tensors:
            self._copy(held, held.stated.marked[0:marked])
        self._held = held

    def _copy(self, held: Holdings, marked: Sequence[int]) -> None:
        """Copy what C has not."""
        objects, before = [held.objects[i] for i in marked], iter(self._tensors)
        self._things = [_as_it_is(thing) for thing in objects if not isinstance(thing, Tensor)]
        with grad_mode(False):
            self._tensors = [_Copy(t, next(before, None)) for t in objects if isinstance(t, Tensor)]

    def restore(self) -> None:
        """Put everything back; warn of what cannot be."""
        held = self._held
        assert held
        _fill_containers(held)
        for value, class_, attributes in held.owners:
            if type(value) is not class_:
                object.__setattr__(value, "__class__", class_)
            if vars(value) is not attributes:
                object.__setattr__(value, "__dict__", attributes)
        with grad_mode(False):
            self._put_tensors(held)
        for put_back in self._things:
            put_back()
        if held.strange:
            warn(
                f"{type(self._optimizer).__name__} holds objects that cannot be restored after a failed step "
                f"and may have changed: {', '.join(held.strange)}"
            )

    def _put_tensors(self, held: Holdings) -> None:
        row, others, known = held.stated.row, iter(self._tensors), set(map(id, held.objects))
        for tensor, memory, each in zip(held.objects, held.leads, held.each(), strict=True):
            if each.kind != lib.HELD_TENSOR:
                continue
            if id(vars(tensor)) not in known:  # since it was empty
                vars(tensor).clear()
            if each.span < 0:
                next(others).put()
            else:
                _put_into(tensor, memory, each.span)
                put(memory, ffi.buffer(row, each.span))
                row += each.span
            if each.wants >= 0 and tensor.requires_grad != bool(each.wants):
                tensor.requires_grad_(bool(each.wants))


class _Copy:
    """A copy of a tensor's values, with what is its memory, whatever a step makes of it.

    Args:
        before: one whose memory may be used again: to have it from the system anew takes longer than to copy.
    """

    def __init__(self, tensor: Tensor, before: _Copy | None) -> None:
        self._tensor, self._is_strided = tensor, tensor.layout == torch.strided
        self._memory = tensor.detach() if self._is_strided else tensor
        values = self._values()
        is_again = before is not None and before._fits(values)
        self._copied: Tensor = before._copied.copy_(values) if before and is_again else values.clone()

    def _values(self) -> Tensor:
        return without_repeats(self._memory) if self._is_strided else self._memory

    def _fits(self, values: Tensor) -> bool:
        had, is_strided = self._copied, self._is_strided and values.layout == torch.strided
        return is_strided and (had.shape, had.dtype, had.device) == (
            values.shape,
            values.dtype,
            values.device,
        )

    def put(self) -> None:
        """Put the values back."""
        if self._is_strided:
            _put_into(self._tensor, self._memory, 0)
        self._values().copy_(self._copied)


def _put_into(tensor: Tensor, memory: Tensor, span: int) -> None:
    """Put a tensor into its memory, which may have become too small for so many bytes."""
    size = int(memory.storage_offset()) * memory.itemsize + span
    if memory.untyped_storage().nbytes() < size:
        memory.untyped_storage().resize_(size)
    if tensor.dtype != memory.dtype or not tensor.is_set_to(memory):
        tensor.data = memory


def _fill_containers(held: Holdings) -> None:
    """Put keys and values back, and tensors' gradients."""
    keys, values = iter(held.keys), iter(held.values)
    for value, each in zip(held.objects, held.each(), strict=True):
        had = list(islice(values, each.length))
        if each.kind in (lib.HELD_DICT, lib.HELD_DICT_READ):
            pairs = list(zip(islice(keys, each.length), had, strict=True))
            value.clear()
            value.update(pairs)
        elif each.kind in CONTAINERS:
            _fill(as_container(value), had)
        elif had and value.grad is not had[0]:
            value.grad = had[0]


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
