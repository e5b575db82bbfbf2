"""Parameters that all ranks have whole, and each steps a slice of.

The gradients are reduced before a step, and the slices gathered after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from optplug import elementwise
from optplug._optplug import lib
from optplug.buffers import is_dense, layout_of, same_order
from optplug.kinds import HALF, Beside, Grad, Parameter
from optplug.plans import Slice
from optplug.spec import shown
from optplug.torch_private import grad_mode
from optplug.world import World

#: What C exchanges: a collective for each dtype.
Exchanges = list[tuple[list[Slice], list[Tensor], int]]
_REDUCTIONS = {"": lib.REDUCTION_NONE, "sum": lib.REDUCTION_SUM, "mean": lib.REDUCTION_MEAN}
_IN_C = (torch.float32, torch.float64)
_MOST_IN_C = 1 << 18  # values: copying more takes so long that Python does not matter, and its room is kept
#: Slices end at multiples of so many values, where torch's kernels have the same bits as on the whole.
_UNIT = 64


class Slices:
    """The slices of a whole of n values, as long as each other but at the end: rank r has ``mine`` of it.

    Args:
        width: how many numbers a value is, which are cut and joined: two if it is complex.
    """

    def __init__(self, n: int, width: int, world: World) -> None:
        self.n, self.width = n, width
        self.length = -(-n // (world.size * _UNIT)) * _UNIT  # of each
        start = min(world.rank * self.length, n)
        self.mine = slice(start, min(start + self.length, n))
        #: The numbers in a row, and which are this rank's.
        self.row = self.length * width
        self.my_numbers = slice(self.mine.start * width, self.mine.stop * width)
        self._numbers = n * width
        self._full = n // self.length if n else 0  # those that are as long as that

    def cut(self, flat: Tensor, rows: Tensor) -> None:
        """Copy the whole to rows, one for each rank."""
        end = self._full * self.row
        rows[: self._full].copy_(flat[:end].view(self._full, self.row))
        if end < self._numbers:
            rows[self._full, : self._numbers - end].copy_(flat[end:])

    def join(self, rows: Tensor, flat: Tensor) -> None:
        """Copy the ranks' rows to the whole."""
        end = self._full * self.row
        flat[:end].view(self._full, self.row).copy_(rows[: self._full])
        if end < self._numbers:
            flat[end:].copy_(rows[self._full, : self._numbers - end])


class Sliced(Beside):
    """A parameter of which this rank steps a slice, in the host's own array.

    Args:
        reduction: "mean" or "sum" of the ranks' gradients; "" if they are the same already.
    """

    def __init__(self, name: str, data: Tensor, grad: Grad, reduction: str, exchange: Exchange) -> None:
        self.reduction, self._exchange = reduction, exchange
        self._take(name, data, grad)
        self.slices = Slices(data.numel(), 2 if data.is_complex() else 1, exchange.world)
        super().__init__(name, nn.Parameter(self._mine(self.flat_data)))
        self._put_grad()

    def _take(self, name: str, data: Tensor, grad: Grad) -> None:
        if not (
            isinstance(grad, Tensor)
            and is_dense(data.shape, data.stride())
            and same_order(data.shape, data.stride(), grad.stride())
        ):
            raise ValueError(
                f"parameter {shown(name)}: with a placement of Replicate(), data and grad must be dense, "
                f"without gaps and in the same layout, got {layout_of(data)} and "
                f"{layout_of(grad) if isinstance(grad, Tensor) else grad}: bind it contiguous"
            )
        self._data, self._grad = data, grad
        self.flat_data, self.flat_grad = _flat(data), _flat(grad)

    def _mine(self, flat: Tensor) -> Tensor:
        """Return this rank's slice as the optimizer has it: of real numbers or complex ones."""
        mine = flat[self.slices.my_numbers]
        return torch.view_as_complex(mine.view(-1, 2)) if self._data.is_complex() else mine

    def _put_grad(self) -> None:
        mine = self._mine(self.flat_grad)
        self.tensor.grad = torch.zeros_like(mine) if self.reduction else mine

    def move(self, data: Tensor, grad: Grad) -> None:
        self._take(self.name, data, grad)
        self.tensor.data = self._mine(self.flat_data)
        self._put_grad()

    def whole(self, part: Tensor) -> Tensor:
        """Return the whole of which each rank has a slice, laid out as the host's array."""
        part = _flat(part)
        row = part.new_zeros(self.slices.row)
        row[: part.numel()].copy_(part)
        flat = part.new_empty(self.flat_data.numel())
        if self.slices.n:
            self.slices.join(self._exchange.world.all_gather(row), flat)
        if self._data.is_complex():
            flat = torch.view_as_complex(flat.view(-1, 2))
        return flat.as_strided(self._data.shape, self._data.stride())

    @staticmethod
    def publish(parameters: Sequence[Parameter]) -> None:
        members = [p for p in parameters if isinstance(p, Sliced)]
        members[0]._exchange.publish(members)


class Exchange:
    """What moves the gradients and values of all sliced parameters: a collective for each dtype."""

    def __init__(self, world: World) -> None:
        self.world = world
        #: What has become of this step's gradients, RANKS_NEW for example: C shares it.
        self.state = np.zeros(1, np.int32)
        self._stated: tuple[list[int], Exchanges] = [], []

    @property
    def is_reduced(self) -> bool:
        """Whether this step's gradients have been reduced."""
        return bool(self.state[0] == lib.RANKS_REDUCED)

    @is_reduced.setter
    def is_reduced(self, value: bool) -> None:
        self.state[0] = lib.RANKS_REDUCED if value else lib.RANKS_NEW

    def takes_failure(self) -> bool:
        """Tell whether C has seen that a rank has failed in a step, once."""
        has_failed = bool(self.state[0] == lib.RANKS_FAILED)
        if has_failed:
            self.state[0] = lib.RANKS_NEW
        return has_failed

    def stated(self, members: Sequence[Sliced]) -> Exchanges | None:
        """State for C what `reduce` and `publish` do, if that is little enough to be worth it."""
        dtypes = sorted({p.tensor.dtype for p in members}, key=str)
        found = {dtype: elementwise.choose("div scalar", dtype) for dtype in dtypes if dtype in _IN_C}
        divisions = {dtype: number for dtype, number in found.items() if number is not None}
        if len(divisions) < len(dtypes) or sum(p.slices.n for p in members) > _MOST_IN_C:
            return None
        addresses = [t.data_ptr() for p in members for t in (p.flat_data, p.flat_grad, p.stepped_memory())]
        if addresses != self._stated[0]:
            self._stated = addresses, [self._exchange(members, dtype, divisions[dtype]) for dtype in dtypes]
        return self._stated[1]

    def _exchange(
        self, members: Sequence[Sliced], dtype: torch.dtype, division: int
    ) -> tuple[list[Slice], list[Tensor], int]:
        alike = sorted((p for p in members if p.tensor.dtype == dtype), key=_name)
        slices = [
            Slice(p.slices.length, p.flat_data, p.flat_grad, _REDUCTIONS[p.reduction], p.stepped_memory())
            for p in alike
        ]
        size, length = self.world.size, sum(p.slices.length for p in alike)
        reduced = sum(p.slices.length for p in alike if p.reduction) + 1
        room = [torch.zeros(n, dtype=dtype) for n in (size * reduced, reduced, length, size * length)]
        return slices, room, division

    def reduce(self, members: Sequence[Sliced], has_failed: bool) -> bool:
        """Reduce gradients, and tell whether any rank has failed."""
        size, failed = self.world.size, False
        reduced = sorted((p for p in members if p.reduction), key=_name)
        with grad_mode(False):
            for dtype in sorted({_sum_dtype(p) for p in reduced}, key=str):
                alike = [p for p in reduced if _sum_dtype(p) == dtype]
                lengths = [p.slices.row for p in alike]
                rows = torch.zeros(size, sum(lengths) + 1, dtype=dtype)
                rows[:, -1] = has_failed  # which costs no collective of its own
                for p, part in zip(alike, rows[:, :-1].split(lengths, 1), strict=True):
                    p.slices.cut(p.flat_grad, part)
                got = torch.empty(rows.shape[1], dtype=dtype)
                self.world.reduce_scatter(rows, got)
                failed |= bool(got[-1] != 0)
                for p, part in zip(alike, got[:-1].split(lengths), strict=True):
                    grad = _flat(p.stepped_memory())
                    part = part[: grad.numel()]
                    grad.copy_(part.div_(size) if p.reduction == "mean" else part)
        self.is_reduced = not failed
        return failed

    def publish(self, members: Sequence[Sliced]) -> None:
        """Let all ranks have the values of all slices."""
        self.is_reduced = False
        with grad_mode(False):
            for dtype in sorted({p.flat_data.dtype for p in members}, key=str):
                alike = sorted((p for p in members if p.flat_data.dtype == dtype), key=_name)
                lengths = [p.slices.row for p in alike]
                row = torch.zeros(sum(lengths), dtype=dtype)
                for p, part in zip(alike, row.split(lengths), strict=True):
                    mine = p.flat_data[p.slices.my_numbers]
                    part[: mine.numel()].copy_(mine)
                rows = self.world.all_gather(row)
                for p, part in zip(alike, rows.split(lengths, 1), strict=True):
                    p.slices.join(part, p.flat_data)


def _name(p: Sliced) -> str:
    return p.name  # ranks may bind in another order


def _sum_dtype(p: Sliced) -> torch.dtype:
    return torch.float32 if p.flat_data.dtype in HALF else p.flat_data.dtype


def _flat(array: Tensor) -> Tensor:
    """Return the values of a dense array as they lie in memory; of complex numbers both parts."""
    flat = array.as_strided((array.numel(),), (1,))
    return torch.view_as_real(flat).view(-1) if array.is_complex() else flat
