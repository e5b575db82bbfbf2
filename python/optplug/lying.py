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
_NOTE, _TAKE, _COMPARE = lib.LYING_NOTE, lib.LYING_TAKE, lib.LYING_COMPARE


class Lying:
    """Some tensors, and where they lay when they were noted."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        #: The tensors.  Others may come into their places, before `take`.
        self.tensors = list(tensors)
        self._count = len(self.tensors)
        #: Their addresses, as C takes them.
        self.places = ffi.new("void *[]", self._count)
        self._numbers = ffi.new("int64_t[]", self._count * lib.LYING_NUMBERS)
        stated = [_address(exchange), self._count, _address(self.tensors), self._numbers, self.places]
        self._stated = ffi.new("optplug_lying *", stated)
        self._forms: list[Any] | None = None  # where C cannot tell
        if self._count and _look(self._stated, _NOTE) != self._count:
            self._note(list(map(_form, self.tensors)))

    def _note(self, forms: list[Any]) -> None:
        self._forms = forms
        for i, (place, *_) in enumerate(forms):
            self.places[i] = ffi.cast("void *", place)

    def are_there(self) -> bool:
        """Tell whether all lie as they did."""
        if self._forms is None:
            return bool(_look(self._stated, _COMPARE) == self._count)
        return list(map(_form, self.tensors)) == self._forms

    def take(self) -> bool:
        """Note where those lie that are in the list now; False if one is of another form than that before."""
        if self._forms is None:
            return bool(_look(self._stated, _TAKE) == self._count)
        forms = list(map(_form, self.tensors))
        if [form[1:] for form in forms] != [form[1:] for form in self._forms]:
            return False
        self._note(forms)
        return True


def _form(t: Tensor) -> tuple[Any, ...]:
    if t.layout != torch.strided:
        return 0, t.layout
    return t.data_ptr(), t.dtype, t.device, t.size(), t.stride()


def _address(value: Any) -> Any:
    """Return an object of Python's as C takes it; it is to be kept meanwhile."""
    return ffi.cast("void *", id(value))
