"""Parameters that all ranks have whole, and each steps a slice of, or some of the parameters.

The gradients are reduced before a step, and what ranks have stepped is gathered after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from optplug import elementwise
from optplug._optplug import lib
from optplug.buffers import is_dense, layout_of, same_order
from optplug.errors import StateError
from optplug.kinds import HALF, Beside, Grad, Mastered, Parameter, stand_in
from optplug.parameters import make
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
    """The slices of a whole of n values, as long as each other but at the end: this rank has ``mine`` of it.

    Args:
        width: how many numbers a value is, which are cut and joined: two if it is complex.
        owner: the rank that has all of it, if one has.
    """

    def __init__(self, n: int, width: int, world: World, owner: int | None = None) -> None:
        self.n = n
        #: The ranks that have some of it, and how much each.
        self.ranks = slice(0, world.size) if owner is None else slice(owner, owner + 1)
        self.length = -(-n // (world.size * _UNIT)) * _UNIT if owner is None else n
        #: Whether this is one of them.
        self.is_here = owner is None or owner == world.rank
        start = min((world.rank - self.ranks.start) * self.length, n) if self.is_here else n
        self.mine = slice(start, min(start + self.length, n))
        #: The numbers in a row, and which are this rank's.
        self.row = self.length * width
        self.my_numbers = slice(self.mine.start * width, self.mine.stop * width)
        self._numbers = n * width
        self._full = n // self.length if n else 0  # those that are as long as that

    def cut(self, flat: Tensor, rows: Tensor) -> None:
        """Copy the whole to rows, one for each of those ranks."""
        end = self._full * self.row
        rows[: self._full].copy_(flat[:end].view(self._full, self.row))
        if end < self._numbers:
            rows[self._full, : self._numbers - end].copy_(flat[end:])

    def join(self, rows: Tensor, flat: Tensor) -> None:
        """Copy those ranks' rows to the whole."""
        end = self._full * self.row
        flat[:end].view(self._full, self.row).copy_(rows[: self._full])
        if end < self._numbers:
            flat[end:].copy_(rows[self._full, : self._numbers - end])


class Sliced(Beside):
    """A parameter of which this rank steps a part, in the host's own array: a slice, or all of it or nothing.

    Args:
        reduction: "mean" or "sum" of the ranks' gradients; "" if they are the same already.
        has_master: whether the part is stepped in a copy in float32.
        is_owned: whether one rank steps all of it, which `own` says.
    """

    def __init__(
        self,
        name: str,
        data: Tensor,
        grad: Grad,
        reduction: str,
        exchange: Exchange,
        has_master: bool,
        is_owned: bool,
    ) -> None:
        self.reduction, self._exchange, self.is_owned = reduction, exchange, is_owned
        self._take(name, data, grad)
        self._width = 2 if data.is_complex() else 1
        self._owner: int | None = None
        self._memory: Tensor | None = None
        of_all = exchange.world.rank if is_owned else None
        self.slices = Slices(data.numel(), self._width, exchange.world, of_all)
        self._part = make(name, self._mine(data, self.flat_data), self._reduced(has_master), has_master)
        super().__init__(name, self._part.tensor)

    @property
    def is_read(self) -> bool:  # type: ignore[override]
        """Whether a step reads the host's values."""
        return self._part.is_read

    @property
    def note(self) -> str:  # type: ignore[override]
        """What describe says besides."""
        return self._part.note + ("" if self._owner is None else f", stepped by rank {self._owner}")

    def own(self, owner: int) -> None:
        """Let one rank step all of it; on the others it has no gradient, for which torch leaves it alone."""
        self._owner, self.slices = owner, Slices(self.slices.n, self._width, self._exchange.world, owner)
        self._memory = None
        self.move(self._data, self._grad)

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

    def _mine(self, whole: Tensor, flat: Tensor) -> Tensor:
        """Return this rank's part as the optimizer has it: a slice, of real or complex numbers, or all."""
        if self.is_owned:
            return whole
        mine = flat[self.slices.my_numbers]
        return torch.view_as_complex(mine.view(-1, 2)) if whole.is_complex() else mine

    def _reduced(self, has_master: bool) -> Tensor:
        """Return the memory of this rank's part of the gradient of all, which outlives the host's arrays."""
        mine = self._mine(self._grad, self.flat_grad)
        if not (self.reduction and self.slices.is_here):
            return mine
        if self._memory is None:
            self._memory = torch.zeros_like(mine, dtype=torch.float32 if has_master else None)
        return self._memory

    def stepped_memory(self) -> Tensor:
        return self._part.stepped_memory() if self.slices.is_here else self.flat_grad[:0]

    def clipped_memory(self) -> Tensor:
        return self._part.memory() if self.slices.is_here else self.flat_grad[:0]

    def clippable(self) -> Tensor | None:
        return self._part.clippable() if self.slices.is_here else stand_in(self.flat_grad[:0])

    def master(self) -> Mastered | None:
        return self._part.master()

    def move(self, data: Tensor, grad: Grad) -> None:
        self._take(self.name, data, grad)
        self._part.move(self._mine(data, self.flat_data), self._reduced(self.master() is not None))
        if not self.slices.is_here:
            self.tensor.grad = None

    def stepped_values(self) -> Tensor:
        """Return the numbers that this rank steps, those of a master copy if there is one."""
        return _flat(self._part.tensor.detach()) if self.slices.is_here else self.flat_data[:0]

    def whole(self, part: Tensor) -> Tensor:
        """Return the whole of which each rank has a part, laid out as the host's array."""
        part, world = _flat(part), self._exchange.world
        row = part.new_zeros(self.slices.row)
        rows = row.new_empty(world.size, *row.shape)
        flat = part.new_empty(self.flat_data.numel())
        if self.slices.is_here:
            row[: part.numel()].copy_(part)
        world.share()  # that all have the memory
        if self.slices.n:
            self.slices.join(world.all_gather(row, rows)[self.slices.ranks], flat)
        if self._data.is_complex():
            flat = torch.view_as_complex(flat.view(-1, 2))
        return flat.as_strided(self._data.shape, self._data.stride())

    @staticmethod
    def gather(parameters: Sequence[Parameter]) -> None:
        if masters := _masters(parameters):
            Mastered.gather(masters)

    @staticmethod
    def publish(parameters: Sequence[Parameter]) -> None:
        members = [p for p in parameters if isinstance(p, Sliced)]
        members[0]._exchange.publish(members)


class Exchange:
    """What moves the gradients and values of all sliced parameters: a collective for each dtype.

    With the gradients each rank sends a digest of what must be alike on all: ``digest`` returns it.
    """

    def __init__(self, world: World, digest: Callable[[], int]) -> None:
        self.world, self._digest = world, digest
        #: What has become of this step's gradients, RANKS_NEW for example: C shares it.
        self.state = np.zeros(2, np.int32)
        #: A checksum of some values of the gradients that a clip has reduced: C shares it, too.
        self.seen = np.zeros(1, np.uint64)
        self._stated: tuple[list[int], Exchanges] = [], []
        self._rooms = dict[torch.dtype, tuple[Tensor, Tensor]]()

    @property
    def is_reduced(self) -> bool:
        """Whether this step's gradients have been reduced."""
        return bool(self.state[0] > 0)

    @is_reduced.setter
    def is_reduced(self, value: bool) -> None:
        self.state[0] = lib.RANKS_REDUCED if value else lib.RANKS_NEW

    def pause(self, is_paused: bool) -> None:
        """Let C leave all to Python, or no longer."""
        self.state[1] = is_paused

    def settle(self, is_kept: bool, members: Sequence[Sliced] = ()) -> None:
        """Let gradients that this call has reduced stay so, or be new again where it has failed."""
        if self.state[0] == lib.RANKS_REDUCED_NOW:
            self.is_reduced = is_kept
            if is_kept:
                self.seen[0] = _look(members)

    def check_seen(self, members: Sequence[Sliced]) -> None:
        """Check that the gradients are those that a clip has reduced, if one has.

        Raises:
            StateError: they are others.
        """
        if self.state[0] == lib.RANKS_REDUCED and self.seen[0] != _look(members):
            raise StateError(
                "the gradients have changed since opt_clip_grad_norm or opt_clip_grad_value reduced them: if "
                "you leave a step out, call opt_zero_grad before you compute the next gradients"
            )

    def take_failure(self) -> int:
        """Return, once, what C has seen to be wrong: 0, or RANKS_FAILED and what is below it."""
        state = int(self.state[0])
        if state >= 0:
            return 0
        self.state[0] = lib.RANKS_NEW
        return state

    def share_out(self, members: Sequence[Sliced]) -> None:
        """Let parameters that one rank steps be each rank's so that all have about as much to do."""
        loads = [0] * self.world.size
        for p in sorted((p for p in members if p.is_owned), key=lambda p: (-p.slices.n, p.name)):
            owner = loads.index(min(loads))
            loads[owner] += p.slices.n
            p.own(owner)

    def prepare(self, members: Sequence[Sliced]) -> None:
        """Have the room for what is sent."""
        reduced = [p for p in members if p.reduction]
        for dtype, _, length, _ in _layouts(reduced, _sum_dtype, self.world.size):
            self._room(dtype, length + lib.RANKS_FLAGS)
        for dtype, _, length, _ in _layouts(members, _dtype, self.world.size):
            self._room(dtype, length + 1)

    def _room(self, dtype: torch.dtype, width: int) -> tuple[Tensor, Tensor]:
        """Return room for so many numbers of one rank, and of all: the same each time."""
        size = self.world.size
        if dtype not in self._rooms or self._rooms[dtype][0].numel() < width:
            self._rooms[dtype] = torch.empty(width, dtype=dtype), torch.empty(size * width, dtype=dtype)
        one, all_ = self._rooms[dtype]
        return one[:width], all_[: size * width].view(size, width)

    def stated(self, members: Sequence[Sliced]) -> Exchanges | None:
        """State for C what `reduce` and `publish` do, if that is little enough to be worth it."""
        dtypes = sorted({p.data.dtype for p in members}, key=str)
        found = {dtype: elementwise.choose("div scalar", dtype) for dtype in dtypes if dtype in _IN_C}
        divisions = {dtype: number for dtype, number in found.items() if number is not None}
        is_much = sum(p.slices.n for p in members) > _MOST_IN_C
        if len(divisions) < len(dtypes) or is_much or any(p.is_owned for p in members):
            return None
        addresses = [t.data_ptr() for p in members for t in (p.flat_data, p.flat_grad, p.stepped_memory())]
        if addresses != self._stated[0]:
            self._stated = addresses, [self._exchange(members, dtype, divisions[dtype]) for dtype in dtypes]
        return self._stated[1]

    def _exchange(
        self, members: Sequence[Sliced], dtype: torch.dtype, division: int
    ) -> tuple[list[Slice], list[Tensor], int]:
        alike = sorted((p for p in members if p.data.dtype == dtype), key=_name)
        slices = [
            Slice(p.slices.length, p.flat_data, p.flat_grad, _REDUCTIONS[p.reduction], p.stepped_memory())
            for p in alike
        ]
        size, length = self.world.size, sum(p.slices.length for p in alike)
        reduced = sum(p.slices.length for p in alike if p.reduction) + lib.RANKS_FLAGS
        room = [
            torch.zeros(n, dtype=dtype) for n in (size * reduced, reduced, length + 1, size * (length + 1))
        ]
        return slices, room, division

    def reduce(self, members: Sequence[Sliced], has_failed: bool) -> int:
        """Reduce gradients, and return what is wrong: 0, RANKS_FAILED or RANKS_DIFFER."""
        size, wrong = self.world.size, 0
        digest = self._digest()
        reduced = [p for p in members if p.reduction]
        with grad_mode(False):
            for dtype, alike, length, columns in _layouts(reduced, _sum_dtype, size):
                got, rows = self._room(dtype, length + lib.RANKS_FLAGS)
                rows.zero_()
                # Whether this rank has failed, and its digest, bit by bit, which cost no collective.
                flags = [has_failed, *(digest >> i & 1 for i in range(lib.RANKS_FLAGS - 1))]
                rows[:, length:] = torch.tensor(flags, dtype=dtype)
                for p, columns_of in zip(alike, columns, strict=True):
                    p.slices.cut(p.flat_grad, rows[p.slices.ranks, columns_of])
                self.world.reduce_scatter(rows, got)
                failed, *bits = got[length:].tolist()
                if failed or wrong == lib.RANKS_FAILED:
                    wrong = lib.RANKS_FAILED
                elif any(bit not in (0, size) for bit in bits):
                    wrong = lib.RANKS_DIFFER
                for p, columns_of in zip(alike, columns, strict=True):
                    if p.slices.is_here:
                        grad = _flat(p.clipped_memory())
                        part = got[columns_of][: grad.numel()]
                        grad.copy_(part.div_(size) if p.reduction == "mean" else part)
        self.state[0] = lib.RANKS_NEW if wrong else lib.RANKS_REDUCED_NOW
        return wrong

    def publish(self, members: Sequence[Sliced], has_failed: bool = False) -> bool:
        """Let all ranks have the values that each has stepped; if one has failed, return False and do not."""
        size = self.world.size
        with grad_mode(False):
            for dtype, alike, length, columns in _layouts(members, _dtype, size):
                row, rows = self._room(dtype, length + 1)
                row[length] = has_failed
                for p, columns_of in zip(alike, columns, strict=True):
                    mine = p.stepped_values()
                    row[columns_of][: mine.numel()].copy_(mine)
                self.world.all_gather(row, rows)
                if rows[:, length].any():
                    return False
                for p, columns_of in zip(alike, columns, strict=True):
                    p.slices.join(rows[p.slices.ranks, columns_of], p.flat_data)
        self.is_reduced = False
        return True


def _by_dtype(
    members: Sequence[Sliced], dtype_of: Callable[[Sliced], torch.dtype]
) -> Iterator[tuple[torch.dtype, list[Sliced]]]:
    """Yield what is sent in one collective: the parameters of a dtype, ordered as on all ranks."""
    for dtype in sorted({dtype_of(p) for p in members}, key=str):
        yield dtype, sorted((p for p in members if dtype_of(p) == dtype), key=_name)


def _layouts(
    members: Sequence[Sliced], dtype_of: Callable[[Sliced], torch.dtype], size: int
) -> Iterator[tuple[torch.dtype, list[Sliced], int, list[slice]]]:
    """Yield the same, with how they lie in the rows of ranks."""
    for dtype, alike in _by_dtype(members, dtype_of):
        yield dtype, alike, *_columns(alike, size)


def _look(members: Sequence[Sliced]) -> int:
    """Return a checksum of some values of the host's gradients, as csrc/ranks.c does."""
    total, weight = np.zeros((), np.uint64), 1
    for _, alike in _by_dtype([p for p in members if p.reduction], _dtype):
        for p in alike:
            some = p.flat_grad[:: -(-p.flat_grad.numel() // lib.RANKS_SEEN) or 1].contiguous()
            bits = some.view(torch.uint8).numpy().view(f"u{some.itemsize}").astype(np.uint64)
            weights = np.arange(weight, weight + 2 * bits.size, 2, dtype=np.uint64)
            total += (bits * weights).sum(dtype=np.uint64)
            weight += 2 * bits.size
    return int(total)


def _columns(members: Sequence[Sliced], size: int) -> tuple[int, list[slice]]:
    """Return how long the rows of ranks are that have these, and in which columns each is."""
    filled, columns = np.zeros(size, np.int64), []
    for p in members:
        start = int(filled[p.slices.ranks].max())
        columns.append(slice(start, start + p.slices.row))
        filled[p.slices.ranks] = start + p.slices.row
    return int(filled.max()), columns


def _masters(parameters: Sequence[Parameter]) -> list[Mastered]:
    """Return the master copies of what this rank steps."""
    return [m for p in parameters if isinstance(p, Sliced) and p.slices.is_here and (m := p.master())]


def _name(p: Sliced) -> str:
    return p.name  # ranks may bind in another order


def _dtype(p: Sliced) -> torch.dtype:
    return p.flat_data.dtype


def _sum_dtype(p: Sliced) -> torch.dtype:
    return torch.float32 if _dtype(p) in HALF else _dtype(p)


def _flat(array: Tensor) -> Tensor:
    """Return the values of a dense array as they lie in memory; of complex numbers both parts."""
    flat = array.as_strided((array.numel(),), (1,))
    return torch.view_as_real(flat).view(-1) if array.is_complex() else flat
