"""Whose memory is whose: arrays of one optimizer's parameters that share memory are a slip of the host's."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from optplug.errors import warn
from optplug.spec import shown

_MOST_WORK = 100_000  # for numpy, to tell whether arrays with gaps share an element


@dataclass(order=True)
class _Claim:
    """An array, by the addresses of its first byte and of the one after its last."""

    start: int
    end: int
    name: str = field(compare=False)
    what: str = field(compare=False)  # "data" or "grad"
    memory: Tensor = field(compare=False)

    def __str__(self) -> str:
        return f"{self.what} of parameter {shown(self.name)}"

    @property
    def __array_interface__(self) -> dict[str, object]:
        size = self.memory.itemsize
        return {
            "version": 3,
            "data": (self.start, True),
            "typestr": f"|V{size}",
            "shape": tuple(self.memory.shape),
            "strides": tuple(s * size for s in self.memory.stride()),
        }

    def shares(self, other: _Claim) -> bool:
        """Tell whether a byte belongs to both, where their extents overlap."""
        if not (self.start < other.end and other.start < self.end):
            return False
        try:
            return bool(np.shares_memory(np.asarray(self), np.asarray(other), max_work=_MOST_WORK))
        except np.exceptions.TooHardError:
            return False


class Claims:
    """The arrays that are bound, and what they may not share.

    A name that is new is checked when it is bound.  Names that are bound again are checked together before
    the next step, since a host that moves many arrays binds them one by one, where others were before.
    """

    def __init__(self) -> None:
        self._sorted: list[_Claim] = []
        self._names: set[str] = set()
        self._longest = 0
        self._unchecked = False

    def check(self, name: str, data: Tensor, grad: Tensor) -> None:
        """Check the arrays that a parameter is to have.

        Raises:
            ValueError: ``data`` and ``grad`` share memory, or, where the name is new, ``data`` is another
                parameter's, or ``grad`` another's data.
        """
        mine = _claim(name, "data", data), _claim(name, "grad", grad)
        if mine[0].shares(mine[1]):
            raise ValueError(f"parameter {shown(name)}: grad shares memory with data")
        if name not in self._names:
            for claim in mine:
                self._check(claim)

    def put(self, name: str, data: Tensor, grad: Tensor) -> None:
        """Take the arrays of a parameter, in the place of those that it had."""
        if name in self._names:
            self._sorted = [claim for claim in self._sorted if claim.name != name]
            self._unchecked = True
        self._names.add(name)
        for claim in (_claim(name, "data", data), _claim(name, "grad", grad)):
            if claim.end > claim.start:
                bisect.insort(self._sorted, claim)
                self._longest = max(self._longest, claim.end - claim.start)

    def check_moved(self) -> None:
        """Check all, if names were bound again since.

        Raises:
            ValueError: two parameters share memory.
        """
        if self._unchecked:
            for claim in self._sorted:
                self._check(claim)
            self._unchecked = False

    def _check(self, claim: _Claim) -> None:
        i = bisect.bisect_left(self._sorted, claim.end, key=lambda other: other.start)
        while i > 0 and self._sorted[i - 1].start > claim.start - self._longest:
            i -= 1
            other = self._sorted[i]
            if other.name == claim.name or not claim.shares(other):
                continue
            if claim.what == other.what == "grad":
                warn(f"{claim} shares memory with the {other}: clipping, for one, scales it twice")
            else:
                raise ValueError(f"{claim} shares memory with the {other}: each needs an array of its own")


def _claim(name: str, what: str, memory: Tensor) -> _Claim:
    start = memory.data_ptr()
    last = sum((n - 1) * s for n, s in zip(memory.shape, memory.stride(), strict=True))
    return _Claim(
        start, start + (last + 1) * memory.itemsize if memory.numel() else start, name, what, memory
    )
