"""Copies of the values of many tensors, which C makes at once: torch takes a microsecond for each."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optplug import host
from optplug._optplug import ffi
from optplug.buffers import is_dense
from optplug.lying import Lying
from optplug.torch_private import foreach_copy_, grad_mode

#: Of more bytes, torch's threads copy faster.
_MOST_BYTES = 1 << 18
_take = host.table.take


class Moves:
    """Values that are copied from some tensors to others of the same forms.

    The memory of all of them stays where it is.
    """

    def __init__(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        pairs = [(a.detach(), b.detach()) for a, b in zip(sources, targets, strict=True)]
        by_c = [pair for pair in pairs if _lie_alike(*pair)]
        by_torch = [pair for pair in pairs if not _lie_alike(*pair)]
        self._by_c = by_c  # whose memory is not to go
        self._from, self._to = _parts([a for a, _ in by_c]), _parts([b for _, b in by_c])
        self._sources, self._targets = [a for a, _ in by_torch], [b for _, b in by_torch]

        #: What C copies, as it takes that: from where, and to where.
        self.stated = self._from.stated, self._to.stated
        #: Whether there is more to copy.
        self.has_rest = bool(by_torch)

    def make_rest(self) -> None:
        """Copy what C has not."""
        with grad_mode(False):
            foreach_copy_(self._targets, self._sources)


class Copies:
    """Copies of what tensors have now, to be put back."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._lying = Lying(tensors)
        #: The tensors, and what is their memory, whatever a step makes of them.  Others may replace them.
        self.tensors, self.memory = self._lying.tensors, [t.detach() for t in tensors]
        # C copies short ones, with what lies in their gaps, and of the others nothing.
        self._others = {i: _without_repeats(t) for i, t in enumerate(self.memory) if not _is_short(t)}
        self._copies = list(map(torch.empty_like, self._others.values()))
        self._lengths = [0 if i in self._others else _span(t) for i, t in enumerate(self.memory)]
        self._parts = _Parts(self._lying.places, self._lengths)
        self._row = ffi.new("char[]", max(sum(self._lengths), 1))
        #: For `optplug_contents`, whose comparison then leaves nothing but what `take_rest` does.
        parts = self._parts.stated if self._lying.is_told_by_c else ffi.NULL
        self.stated = self._lying.stated, parts, self._row
        #: Whether there is nothing for that to do.
        self.are_by_c = self._lying.is_told_by_c and not self._others

    def are_of(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether these are the tensors, and lie where they did."""
        is_same = len(tensors) == len(self.tensors) and all(map(operator.is_, tensors, self.tensors))
        return is_same and self.are_there()

    def are_there(self) -> bool:
        """Tell whether all lie where they did: a tensor's memory may be made anew, and stay its own."""
        return self._lying.are_there()

    def take(self) -> None:
        """Copy what is there now."""
        _take(self._parts.stated, self._row)
        self._take_by_torch()

    def take_rest(self, are_others: bool) -> bool:
        """Copy what C has not, after it compared all; False if a tensor that it cannot see lies elsewhere.

        Args:
            are_others: whether others have come into the places of some.
        """
        if are_others:
            self._others = {i: _without_repeats(self.memory[i]) for i in self._others}
        if not self._lying.is_told_by_c:
            if not self.are_there():
                return False
            _take(self._parts.stated, self._row)
        self._take_by_torch()
        return True

    def _take_by_torch(self) -> None:
        if self._others:
            with grad_mode(False):
                foreach_copy_(self._copies, list(self._others.values()))

    def put(self) -> None:
        """Put the tensors into their memory, which may have become too small, and the values into that."""
        row = self._row
        with grad_mode(False):
            for i, (tensor, memory) in enumerate(zip(self.tensors, self.memory, strict=True)):
                size = int(memory.storage_offset()) * memory.itemsize + self._lengths[i]
                if i not in self._others and memory.untyped_storage().nbytes() < size:
                    memory.untyped_storage().resize_(size)
                self._lying.places[i] = ffi.cast("void *", memory.data_ptr())
                if tensor.dtype != memory.dtype or not tensor.is_set_to(memory):
                    tensor.data = memory
                if i not in self._others:
                    _put(memory, ffi.buffer(row, self._lengths[i]))
                row += self._lengths[i]
            if self._others:
                foreach_copy_(list(self._others.values()), self._copies)


class _Parts:
    """Where tensors are, as C takes it."""

    def __init__(self, places: Any, lengths: list[int]) -> None:
        self._places, self._lengths = places, ffi.new("int64_t[]", lengths)
        self.stated = ffi.new("optplug_parts *", [1, len(lengths), places, self._lengths])


def _parts(tensors: Sequence[Tensor]) -> _Parts:
    places = [ffi.cast("void *", t.data_ptr()) for t in tensors]
    return _Parts(ffi.new("void *[]", places), [t.nbytes for t in tensors])


def _span(t: Tensor) -> int:
    """Return how many bytes there are from a tensor's first value to its last."""
    if t.numel() == 0:
        return 0
    return (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))) * t.itemsize


def _is_short(t: Tensor) -> bool:
    """Tell whether C can copy a tensor's values as they lie, and does so faster than torch's threads."""
    return type(t) is Tensor and t.is_cpu and _span(t) <= _MOST_BYTES


def _has_no_gaps(t: Tensor) -> bool:
    return t.is_contiguous() or is_dense(t.shape, t.stride())


def _lie_alike(a: Tensor, b: Tensor) -> bool:
    return _is_short(a) and _is_short(b) and _has_no_gaps(a) and a.stride() == b.stride()


def _put(t: Tensor, span: Any) -> None:
    """Put a tensor's values back from a copy of its memory, and leave what lies in its gaps."""
    if not span:
        return
    if _has_no_gaps(t):
        ffi.memmove(ffi.cast("void *", t.data_ptr()), span, len(span))
        return
    memory = torch.frombuffer(bytearray(span), dtype=torch.uint8).untyped_storage()
    _as_it_lies(t, t.untyped_storage(), int(t.storage_offset())).copy_(_as_it_lies(t, memory, 0))


def _without_repeats(t: Tensor) -> Tensor:
    """Return a tensor with each of its values once, where `expand` has repeated them."""
    if 0 not in t.stride():
        return t
    return t.as_strided([1 if s == 0 else n for n, s in zip(t.shape, t.stride(), strict=True)], t.stride())


def _as_it_lies(t: Tensor, memory: torch.UntypedStorage, offset: int) -> Tensor:
    """Return a tensor that lies as another does in other memory, without what it says of conjugates."""
    return _without_repeats(torch.empty(0, dtype=t.dtype).set_(memory, offset, t.shape, t.stride()))
