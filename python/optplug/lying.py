"""Where tensors lie, and as what, compared by C: each answer of torch's takes a tenth of a microsecond."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from optplug import host
from optplug._optplug import ffi, lib
from optplug.torch_private import exchange

_look = host.table.look


class Lying:
    """Some tensors, and where they lay when they were noted."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        #: The tensors.  Others of the same forms may come into their places.
        self.tensors = list(tensors)
        self._count = len(self.tensors)
        #: Their addresses, as C takes them.
        self.places = ffi.new("void *[]", self._count)
        self._numbers = ffi.new("int64_t[]", self._count * lib.LYING_NUMBERS)
        stated = [address(exchange), self._count, address(self.tensors), self._numbers, self.places]
        #: All of that, as C takes it.
        self.stated = ffi.new("optplug_lying *", stated)
        self._forms: list[Any] = []  # where C cannot tell
        #: Whether C can tell where they lie.
        self.is_told_by_c = self._count == 0 or _look(self.stated, True) == self._count
        if not self.is_told_by_c:
            self._note(list(map(_form, self.tensors)))

    def _note(self, forms: list[Any]) -> None:
        self._forms = forms
        self.stated.count = 0
        for i, (place, *_) in enumerate(forms):
            self.places[i] = ffi.cast("void *", place)

    def are_there(self) -> bool:
        """Tell whether all lie as they did, and note where those do that have come into others' places."""
        if self.is_told_by_c:
            return bool(_look(self.stated, False) == self._count)
        forms = list(map(_form, self.tensors))
        for now, before in zip(forms, self._forms, strict=True):
            if now != before and (now[1] == before[1] or now[2:] != before[2:]):
                return False
        self._note(forms)
        return True


def _form(t: Tensor) -> tuple[Any, ...]:
    if t.layout != torch.strided:
        return 0, id(t), t.layout
    return t.data_ptr(), id(t), t.dtype, t.device, t.size(), t.stride()


def address(value: Any) -> Any:
    """Return an object of Python's as C takes it; it is to be kept meanwhile."""
    return ffi.cast("void *", id(value))
