"""Parameters that all ranks have whole, and each steps a slice of.

The gradients are reduced before a step, and the slices gathered after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from optplug.buffers import is_dense, layout_of, same_order
from optplug.kinds import HALF, Beside, Grad, Parameter
from optplug.spec import shown
from optplug.torch_private import grad_mode
from optplug.world import World

#: Slices end at multiples of so many values, where torch's kernels have the same bits as on the whole.
_UNIT = 64


class Slices:
    """The slices of a whole of n values, as long as each other but at the end: rank r has ``mine`` of it."""

    def __init__(self, n: int, world: World) -> None:
        self.n = n
        self.length = -(-n // (world.size * _UNIT)) * _UNIT  # of each
        start = min(world.rank * self.length, n)
        self.mine = slice(start, min(start + self.length, n))
        self._full = n // self.length if n else 0  # those that are as long as that

    def cut(self, flat: Tensor, rows: Tensor) -> None:
        """Copy the whole to rows, one for each rank."""
        end = self._full * self.length
        rows[: self._full].copy_(flat[:end].view(self._full, self.length))
        if end < self.n:
            rows[self._full, : self.n - end].copy_(flat[end:])

    def join(self, rows: Tensor, flat: Tensor) -> None:
        """Copy the ranks' rows to the whole."""
        end = self._full * self.length
        flat[:end].view(self._full, self.length).copy_(rows[: self._full])
        if end < self.n:
            flat[end:].copy_(rows[self._full, : self.n - end])


class Sliced(Beside):
    """A parameter of which this rank steps a slice, in the host's own array.

    Args:
        reduction: "mean" or "sum" of the ranks' gradients; "" if they are the same already.
    """

    def __init__(self, name: str, data: Tensor, grad: Grad, reduction: str, exchange: Exchange) -> None:
        self.reduction, self._exchange = reduction, exchange
        self.slices = Slices(data.numel(), exchange.world)
        self._take(name, data, grad)
        super().__init__(name, nn.Parameter(self.flat_data[self.slices.mine]))
        self._put_grad()

    def _take(self, name: str, data: Tensor, grad: Grad) -> None:
        if not (
            isinstance(grad, Tensor)
            and is_dense(data.shape, data.stride())
            and same_order(data.shape, data.stride(), grad.stride())
        ):
            raise ValueError(
                f"parameter {shown(name)}: with a placement of Replicate() data and grad must be dense, "
                f"without gaps and laid out alike, got {layout_of(data)} and "
                f"{layout_of(grad) if isinstance(grad, Tensor) else grad}: bind it contiguous"
            )
        if data.is_complex():
            raise ValueError(
                f"parameter {shown(name)}: complex numbers with a placement of Replicate() are not built: "
                "bind them as twice as many real ones"
            )
        n = data.numel()
        self._data, self._grad = data, grad
        self.flat_data, self.flat_grad = data.as_strided((n,), (1,)), grad.as_strided((n,), (1,))

    def _put_grad(self) -> None:
        mine = self.flat_grad[self.slices.mine]
        self.tensor.grad = torch.zeros_like(mine) if self.reduction else mine

    def move(self, data: Tensor, grad: Grad) -> None:
        self._take(self.name, data, grad)
        self.tensor.data = self.flat_data[self.slices.mine]
        self._put_grad()

    def whole(self, part: Tensor) -> Tensor:
        """Return the whole of which each rank has a slice, laid out as the host's array."""
        row = part.new_zeros(self.slices.length)
        row[: part.numel()].copy_(part)
        flat = part.new_empty(self.slices.n)
        if self.slices.n:
            self.slices.join(self._exchange.world.all_gather(row), flat)
        return flat.as_strided(self._data.shape, self._data.stride())

    @staticmethod
    def publish(parameters: Sequence[Parameter]) -> None:
        members = [p for p in parameters if isinstance(p, Sliced)]
        members[0]._exchange.publish(members)


class Exchange:
    """What moves the gradients and values of all sliced parameters: a collective for each dtype."""

    def __init__(self, world: World) -> None:
        self.world = world
        #: Whether this step's gradients have been reduced.
        self.is_reduced = False

    def reduce(self, members: Sequence[Sliced], has_failed: bool) -> bool:
        """Reduce gradients, and tell whether any rank has failed."""
        size, failed = self.world.size, False
        reduced = sorted((p for p in members if p.reduction), key=_name)
        with grad_mode(False):
            for dtype in sorted({_sum_dtype(p) for p in reduced}, key=str):
                alike = [p for p in reduced if _sum_dtype(p) == dtype]
                lengths = [p.slices.length for p in alike]
                rows = torch.zeros(size, sum(lengths) + 1, dtype=dtype)
                rows[:, -1] = has_failed  # which costs no collective of its own
                for p, part in zip(alike, rows[:, :-1].split(lengths, 1), strict=True):
                    p.slices.cut(p.flat_grad, part)
                got = torch.empty(rows.shape[1], dtype=dtype)
                self.world.reduce_scatter(rows, got)
                failed |= bool(got[-1] != 0)
                for p, part in zip(alike, got[:-1].split(lengths), strict=True):
                    grad = p.stepped_memory()
                    part = part[: grad.numel()]
                    grad.copy_(part.div_(size) if p.reduction == "mean" else part)
        self.is_reduced = not failed
        return failed

    def publish(self, members: Sequence[Sliced]) -> None:
        """Let all ranks have the values of all slices."""
        self.is_reduced = False
        with grad_mode(False):
            for dtype in sorted({p.tensor.dtype for p in members}, key=str):
                alike = sorted((p for p in members if p.tensor.dtype == dtype), key=_name)
                lengths = [p.slices.length for p in alike]
                row = torch.zeros(sum(lengths), dtype=dtype)
                for p, part in zip(alike, row.split(lengths), strict=True):
                    part[: p.tensor.numel()].copy_(p.tensor)
                rows = self.world.all_gather(row)
                for p, part in zip(alike, rows.split(lengths, 1), strict=True):
                    p.slices.join(part, p.flat_data)


def _name(p: Sliced) -> str:
    return p.name  # ranks may bind in another order


def _sum_dtype(p: Sliced) -> torch.dtype:
    return torch.float32 if p.tensor.dtype in HALF else p.tensor.dtype
