"""Whose memory is whose: arrays of one optimizer's parameters that share memory are a slip of the host's."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
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
    step: int = field(compare=False)  # bytes from one element to the next, where it has one dimension

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

    @property
    def bits(self) -> int:
        """How long it is: fewer bytes than the power of two of so many bits."""
        return (self.end - self.start).bit_length()

    def shares(self, other: _Claim) -> bool:
        """Tell whether a byte belongs to both, where their extents overlap."""
        if not (self.start < other.end and other.start < self.end) or self._lies_between(other):
            return False
        try:
            return bool(np.shares_memory(np.asarray(self), np.asarray(other), max_work=_MOST_WORK))  # type: ignore[arg-type,unused-ignore]
        except np.exceptions.TooHardError:
            return False

    def _lies_between(self, other: _Claim) -> bool:
        """Tell whether both are such as two columns of a matrix, of which there may be many."""
        if not self.step == other.step > 0:
            return False
        place = (other.start - self.start) % self.step
        return self.memory.itemsize <= place <= self.step - other.memory.itemsize


class Claims:
    """The arrays that are bound, and what they may not share.

    A name that is new is checked when it is bound.  Names that are bound again are checked together before
    the next step, since a host that moves many arrays binds them one by one, where others were before.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[_Claim, ...]] = {}
        self._sorted: dict[int, list[_Claim]] = {}  # by their bits: a long one is in no short one's way
        self._unchecked = False

    def check(self, name: str, data: Tensor, grad: Tensor) -> tuple[_Claim, ...]:
        """Check the arrays that a parameter is to have, and return them for `put`.

        Raises:
            ValueError: ``data`` and ``grad`` share memory, or, where the name is new, ``data`` is another
                parameter's, or ``grad`` another's data.
        """
        mine = _claim(name, "data", data), _claim(name, "grad", grad)
        if mine[0].shares(mine[1]):
            raise ValueError(f"parameter {shown(name)}: grad shares memory with data")
        if name not in self._known:
            for claim in mine:
                self._check(claim)
        return mine

    def put(self, name: str, claims: tuple[_Claim, ...]) -> None:
        """Take the arrays of a parameter, in the place of those that it had."""
        if name in self._known:
            for claim in self._known[name]:
                self._remove(claim)
            self._unchecked = True
        self._known[name] = tuple([claim for claim in claims if claim.end > claim.start])
        for claim in self._known[name]:
            bisect.insort(self._sorted.setdefault(claim.bits, []), claim)

    def check_moved(self) -> None:
        """Check all, if names were bound again since.

        Raises:
            ValueError: two parameters share memory.
        """
        if self._unchecked:
            for claims in self._known.values():
                for claim in claims:
                    self._check(claim)
            self._unchecked = False

    def _remove(self, claim: _Claim) -> None:
        there = self._sorted[claim.bits]
        i = bisect.bisect_left(there, claim)
        while there[i] is not claim:
            i += 1
        del there[i]

    def _check(self, claim: _Claim) -> None:
        is_told = False
        for other in self._near(claim):
            are_grads = claim.what == other.what == "grad"
            if other.name == claim.name or (are_grads and is_told) or not claim.shares(other):
                continue
            if not are_grads:
                raise ValueError(f"{claim} shares memory with the {other}: each needs an array of its own")
            warn(f"{claim} shares memory with the {other}: clipping, for example, would scale it twice")
            is_told = True

    def _near(self, claim: _Claim) -> Iterator[_Claim]:
        """Return all whose extents may overlap an array's."""
        for bits, there in self._sorted.items():
            i = bisect.bisect_left(there, claim.end, key=_start)
            while i > 0 and there[i - 1].start > claim.start - (1 << bits):
                i -= 1
                yield there[i]


def _start(claim: _Claim) -> int:
    return claim.start


def _claim(name: str, what: str, memory: Tensor) -> _Claim:
    start, size, shape, strides = memory.data_ptr(), memory.itemsize, memory.shape, memory.stride()
    last = sum([(n - 1) * s for n, s in zip(shape, strides, strict=True)])
    end = start if 0 in shape else start + (last + 1) * size
    return _Claim(start, end, name, what, memory, strides[0] * size if len(shape) == 1 else 0)
