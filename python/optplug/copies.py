"""Copies of the values of many tensors, which C makes at once: torch takes a microsecond for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optplug._optplug import ffi, lib
from optplug.buffers import is_dense
from optplug.torch_private import foreach_copy_, grad_mode


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
    return type(t) is Tensor and t.is_cpu and _span(t) <= lib.HELD_MOST_BYTES


def _has_no_gaps(t: Tensor) -> bool:
    return t.is_contiguous() or is_dense(t.shape, t.stride())


def _lie_alike(a: Tensor, b: Tensor) -> bool:
    return _is_short(a) and _is_short(b) and _has_no_gaps(a) and a.stride() == b.stride()


def put(t: Tensor, span: Any) -> None:
    """Put a tensor's values back from a copy of its memory, and leave what lies in its gaps."""
    if not span:
        return
    if _has_no_gaps(t):
        ffi.memmove(ffi.cast("void *", t.data_ptr()), span, len(span))
        return
    memory = torch.frombuffer(bytearray(span), dtype=torch.uint8).untyped_storage()
    _as_it_lies(t, t.untyped_storage(), int(t.storage_offset())).copy_(_as_it_lies(t, memory, 0))


def without_repeats(t: Tensor) -> Tensor:
    """Return a tensor with each of its values once, where `expand` has repeated them."""
    if 0 not in t.stride():
        return t
    return t.as_strided([1 if s == 0 else n for n, s in zip(t.shape, t.stride(), strict=True)], t.stride())


def _as_it_lies(t: Tensor, memory: torch.UntypedStorage, offset: int) -> Tensor:
    """Return a tensor that lies as another does in other memory, without what it says of conjugates."""
    return without_repeats(torch.empty(0, dtype=t.dtype).set_(memory, offset, t.shape, t.stride()))
