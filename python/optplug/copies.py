"""Copies of the values of many tensors, which C makes at once: torch takes a microsecond for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optplug import host
from optplug._optplug import ffi
from optplug.buffers import is_dense
from optplug.torch_private import foreach_copy_, grad_mode

#: Of more bytes, torch's threads copy faster.
_MOST_BYTES = 1 << 18
_copy, _take = host.table.copy, host.table.take


class Moves:
    """Values that are copied from some tensors to others of the same forms.

    The memory of all of them stays where it is.
    """

    def __init__(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        pairs = [(a.detach(), b.detach()) for a, b in zip(sources, targets, strict=True)]
        by_c = [pair for pair in pairs if _lie_alike(*pair)]
        by_torch = [pair for pair in pairs if not _lie_alike(*pair)]
        self._from, self._to = _Parts([a for a, _ in by_c]), _Parts([b for _, b in by_c])
        self._sources, self._targets = [a for a, _ in by_torch], [b for _, b in by_torch]

    def make(self) -> None:
        """Copy all."""
        if self._from.count:
            _copy(self._from.stated, self._to.stated)
        if self._sources:
            with grad_mode(False):
                foreach_copy_(self._targets, self._sources)


class Copies:
    """Copies of what tensors have now, to be put back."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        whole = [_without_repeats(t.detach()) for t in tensors]
        plain, others = [t for t in whole if _is_plain(t)], [t for t in whole if not _is_plain(t)]
        self._parts, self._others = _Parts(plain), others
        self._row = ffi.new("char[]", max(self._parts.bytes, 1))
        self._copies = [torch.empty_like(t) for t in others]
        counts = [0, 0]
        #: Of each tensor: whether C copies it, and where it is among those.
        self._places: list[tuple[bool, int]] = []
        for t in whole:
            is_plain = _is_plain(t)
            self._places.append((is_plain, counts[is_plain]))
            counts[is_plain] += 1

    def replace(self, i: int, tensor: Tensor) -> None:
        """Copy another tensor, of the same form, in the place of one."""
        is_plain, place = self._places[i]
        whole = _without_repeats(tensor)
        if is_plain:
            self._parts.replace(place, whole)
        else:
            self._others[place] = whole

    def are_there(self) -> bool:
        """Tell whether the memory is where it was: a tensor's may be made anew, and stay its own."""
        return self._parts.are_there()

    def take(self) -> None:
        """Copy what is there now."""
        if self._parts.count:
            _take(self._parts.stated, self._row)
        if self._others:
            with grad_mode(False):
                foreach_copy_(self._copies, self._others)

    def put(self) -> None:
        """Put it back."""
        self._parts.find_again()
        if self._parts.count:
            host.table.put(self._parts.stated, self._row)
        if self._others:
            with grad_mode(False):
                foreach_copy_(self._others, self._copies)


class _Parts:
    """Where tensors are, as C takes it."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.count, self._tensors = len(tensors), list(tensors)  # whose memory is not to go
        lengths = [t.numel() * t.itemsize for t in tensors]
        self.bytes = sum(lengths)
        self._places = [t.data_ptr() for t in tensors]
        self._arrays = ffi.new("void *[]", [ffi.cast("void *", place) for place in self._places])
        self._lengths = ffi.new("int64_t[]", lengths)
        self.stated = ffi.new("optplug_parts *", [1, self.count, self._arrays, self._lengths])

    def replace(self, i: int, tensor: Tensor) -> None:
        """Take another tensor, of as many bytes, in the place of one."""
        self._tensors[i], self._places[i] = tensor, tensor.data_ptr()
        self._arrays[i] = ffi.cast("void *", self._places[i])

    def are_there(self) -> bool:
        """Tell whether all are where they were."""
        return list(map(Tensor.data_ptr, self._tensors)) == self._places

    def find_again(self) -> None:
        """Look where those are whose memory was made anew, which may have become too small."""
        if self.are_there():
            return
        for i, t in enumerate(self._tensors):
            size = int(t.storage_offset() + t.numel()) * t.itemsize
            if t.untyped_storage().nbytes() < size:
                t.untyped_storage().resize_(size)
            self.replace(i, t)


def _is_plain(t: Tensor) -> bool:
    """Tell whether C can copy a tensor's values as they lie."""
    return (
        type(t) is Tensor
        and t.device.type == "cpu"
        and t.numel() * t.itemsize <= _MOST_BYTES
        and is_dense(t.shape, t.stride())
    )


def _lie_alike(a: Tensor, b: Tensor) -> bool:
    return _is_plain(a) and _is_plain(b) and a.stride() == b.stride()


def _without_repeats(t: Tensor) -> Tensor:
    """Return a tensor with each of its values once, where `expand` has repeated them."""
    if 0 not in t.stride():
        return t
    return t.as_strided([1 if s == 0 else n for n, s in zip(t.shape, t.stride(), strict=True)], t.stride())
