"""Arrays whose parts lie on ranks: where each part lies in the whole, in memory and in a file."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug.spec import shown
from optplug.stored import Stored

Array = np.ndarray[Any, Any]

_STRETCH = 1 << 18  # values that are laid out at once for their checksum
_SPARSE = 1 << 11  # values between runs from which on it takes less to leave those out
_ONES = 0xFFFFFFFF
_POLYNOMIAL = 0xEDB88320  # of CRC-32, the highest power of x in the lowest bit, as everything here


@dataclass(frozen=True)
class Block:
    """A part of a row-major array: from ``start`` on, of ``size``, in a whole of ``shape``."""

    shape: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def strides(self) -> tuple[int, ...]:
        """Those of the whole, in elements."""
        return row_major(self.shape)

    @property
    def offset(self) -> int:
        """Where the part begins in the whole, in elements."""
        return sum(i * s for i, s in zip(self.start, self.strides, strict=True))

    def runs(self) -> Array:
        """Return where the runs begin that the whole has in one piece, all of one length, in order."""
        rest = len(self.shape)
        while rest and self.size[rest - 1] == self.shape[rest - 1]:
            rest -= 1
        starts = np.full(1 if math.prod(self.size) else 0, self.offset)
        for n, stride in zip(self.size[: max(rest - 1, 0)], self.strides, strict=False):
            starts = (starts[:, None] + stride * np.arange(n)).reshape(-1)
        return starts


def block_of(
    name: str, shape: Sequence[int], whole: Sequence[int], start: Sequence[int], size: Sequence[int] | None
) -> Block:
    """Return the block that a parameter of some shape is.

    Raises:
        ValueError: it is none, or outside of the whole.
    """
    block = Block(tuple(whole), tuple(start), tuple(shape if size is None else size))
    what = f"parameter {shown(name)}: a block of shape {block.size} at {block.start} of {block.shape}"
    if len(block.size) != len(block.shape):
        raise ValueError(f"{what}: the whole has {len(block.shape)} dimensions, so pass shape as well")
    if block.size != tuple(shape) and (math.prod(block.size),) != tuple(shape):
        raise ValueError(f"{what}: it was bound with shape {tuple(shape)}")
    ranges = zip(block.start, block.size, block.shape, strict=True)
    if not all(first >= 0 and n >= 0 and first + n <= most for first, n, most in ranges):
        raise ValueError(f"{what} lies outside of it")
    return block


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of an array in C order."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


# ---- in memory: what is to be written ----


@dataclass(frozen=True)
class Whole:
    """An array of which this rank has pieces.

    Each is at an offset in the memory of the whole, in elements, and is a block of what begins there.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    pieces: list[tuple[int, Block, Tensor]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """How many bytes the whole has."""
        return math.prod(self.shape) * self.dtype.itemsize

    def _rows(self) -> Iterator[tuple[Array, Array]]:
        """Yield where the runs of each piece begin in the whole, and their values, a row for each."""
        kind = np.dtype((np.void, self.dtype.itemsize))
        for base, block, part in self.pieces:
            starts = block.runs()
            if len(starts):
                values = part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().view(kind)
                yield base + starts, values.reshape(len(starts), -1)

    def runs(self) -> Iterator[tuple[int, memoryview]]:
        """Yield all bytes that this rank has, in order, each run with where it begins in the whole."""
        for starts, rows in self._rows():
            content, length = rows.view(np.uint8).reshape(-1).data, rows.nbytes // len(rows)
            for i, start in enumerate((starts * self.dtype.itemsize).tolist()):
                yield start, content[i * length : (i + 1) * length]

    def stretches(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the same, of runs that lie close together as one, with zeros for what is between them."""
        itemsize = self.dtype.itemsize
        for starts, rows in self._rows():
            first, length = 0, rows.shape[1]
            while first < len(starts):
                end = max(int(np.searchsorted(starts, starts[first] + _STRETCH)), first + 1)
                places = starts[first:end] - starts[first]
                if int(places[-1]) > len(places) * _SPARSE:
                    end, places = first + 1, places[:1]
                stretch = np.zeros(int(places[-1]) + length, rows.dtype) if len(places) > 1 else rows[first]
                if len(places) > 1:
                    stretch[places[:, None] + np.arange(length)] = rows[first:end]
                yield int(starts[first]) * itemsize, stretch.view(np.uint8).data
                first = end

    def stand_in(self) -> Tensor:
        """Return a tensor of this form whose memory nobody has touched."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype)


def of_one(tensor: Tensor, is_here: bool) -> Whole:
    """Return a tensor that all ranks have as the one that this rank has, or another one."""
    pieces = [(0, Block((n := tensor.numel(),), (0,), (n,)), tensor.contiguous().reshape(-1))]
    return Whole(tensor.dtype, tuple(tensor.shape), row_major(tensor.shape), pieces if is_here else [])


# ---- in memory and in a file: where it lies ----


@dataclass(frozen=True)
class Place:
    """Where this rank's part of a parameter lies in the whole.

    The whole has ``shape`` and ``strides``, without gaps; ``block`` is the part of that, or of its memory
    where that has another shape.  The parameter itself has ``size``.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    block: Block
    size: tuple[int, ...]

    def whole(self, part: Tensor) -> Whole:
        """Return what the parts of all ranks are."""
        return Whole(part.dtype, self.shape, self.strides, [(0, self.block, part)])

    def part(self, what: str, stored: Stored) -> Stored:
        """Return this rank's part of what a file has.

        Raises:
            ValueError: it has another shape.
        """
        if stored.shape != self.shape:
            raise ValueError(f"{what} has shape {stored.shape}, and must have {self.shape}")
        if self.block.shape == self.shape:
            offset = sum(i * s for i, s in zip(self.block.start, stored.strides, strict=True))
            return _cut(stored, self.block.size, stored.strides, stored.offset + offset)
        if len(self.shape) == 1:
            return _cut_memory(stored, self.block, 0, stored.strides[0], self.size)
        if all(n == 1 or s == t for n, s, t in zip(self.shape, stored.strides, self.strides, strict=True)):
            return _cut_memory(stored, self.block, 0, 1, self.size)

        def read() -> Tensor:
            laid_out = torch.empty_strided(self.shape, self.strides, dtype=stored.dtype, device="cpu")
            flat = laid_out.copy_(stored.tensor()).as_strided(self.block.shape, (1,))
            return flat[self.block.offset :][: self.block.size[0]].clone()

        return _made(stored, self.block.size, read)


def join(wholes: Iterable[Place], is_complex: Iterable[bool]) -> tuple[int, list[tuple[int, Block]]]:
    """Return how long a vector of all numbers of some arrays is, and this rank's blocks in it."""
    total, blocks = 0, []
    for place, has_pairs in zip(wholes, is_complex, strict=True):
        pair = (2,) if has_pairs else ()
        block = place.block
        block = Block(block.shape + pair, block.start + (0,) * len(pair), block.size + pair)
        blocks.append((total, block))
        total += math.prod(block.shape)
    return total, blocks


def cut_vector(stored: Stored, blocks: Sequence[tuple[int, Block]]) -> Stored:
    """Return this rank's part of a vector in a file: the numbers of its blocks."""
    (step,) = stored.strides
    lengths = [math.prod(block.size) for _, block in blocks]
    parts = [
        _cut_memory(stored, block, base, step, (length,))
        for (base, block), length in zip(blocks, lengths, strict=True)
    ]
    return _made(stored, (sum(lengths),), lambda: torch.cat([part.tensor() for part in parts]))


def _cut_memory(stored: Stored, block: Block, base: int, step: int, size: tuple[int, ...]) -> Stored:
    """Return a block of what begins at a place in the memory of a whole, as of another shape."""
    strides = tuple(s * step for s in block.strides)
    cut = _cut(stored, block.size, strides, stored.offset + (base + block.offset) * step)
    return cut if block.size == size else _made(stored, size, lambda: cut.tensor().reshape(size))


def _cut(stored: Stored, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Stored:
    return Stored(stored.dtype, shape, strides, offset, stored.storage)


@dataclass(frozen=True, repr=False)
class _Made(Stored):
    """A tensor that several in a file make."""

    make: Callable[[], Tensor]

    def tensor(self) -> Tensor:
        return self.make()


def _made(stored: Stored, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Stored:
    return _Made(stored.dtype, shape, row_major(shape), stored.offset, stored.storage, make)


def check_tiling(name: str, blocks: Sequence[Block]) -> None:
    """Check that the blocks of all ranks are the whole, each value once.

    Raises:
        ValueError: they are not.
    """
    shape = blocks[0].shape
    filled = [i for i, block in enumerate(blocks) if math.prod(block.size)]
    if filled:
        starts = np.array([blocks[i].start for i in filled])
        ends = starts + np.array([blocks[i].size for i in filled])
        for i in range(len(filled)):
            meets = ((starts[i + 1 :] < ends[i]) & (starts[i] < ends[i + 1 :])).all(1)
            if meets.any():
                other = filled[i + 1 + int(meets.argmax())]
                raise ValueError(
                    f"ranks {filled[i]} and {other} both have a part of parameter {shown(name)}: blocks at "
                    f"{blocks[filled[i]].start} and {blocks[other].start} overlap"
                )
    have, need = sum(math.prod(block.size) for block in blocks), math.prod(shape)
    if have != need:
        raise ValueError(
            f"the blocks of parameter {shown(name)} on all ranks have {have} values, the whole {shape} has "
            f"{need}"
        )


# ---- checksums of a whole, by ranks that have a part each ----


def checksum_part(whole: Whole) -> int:
    """Return what this rank's bytes add to the CRC-32 of a whole: see `checksum`.

    It is the remainder of the whole with zeros in the place of the others' bytes.
    """
    remainder, at = 0, 0
    for start, content in whole.stretches():
        remainder = _multiply(_power(start - at), remainder)
        remainder = zlib.crc32(content, remainder ^ _ONES) ^ _ONES
        at = start + len(content)
    return _multiply(_power(whole.nbytes - at), remainder)


def checksum(nbytes: int, parts: Iterable[int]) -> int:
    """Return the CRC-32 of a whole of so many bytes, from what the ranks' bytes add to it."""
    remainder = functools.reduce(lambda a, b: a ^ b, parts, _multiply(_power(nbytes), _ONES))
    return remainder ^ _ONES


def _multiply(a: int, b: int) -> int:
    """Multiply two polynomials over the field of two elements, modulo that of CRC-32."""
    product = 0
    for bit in range(31, -1, -1):
        if not a:
            break
        if a >> bit & 1:
            product ^= b
            a ^= 1 << bit
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@functools.lru_cache(1 << 10)
def _power(nbytes: int) -> int:
    """Return x to the power of so many bits."""
    power, square = 1 << 31, 1 << 23
    while nbytes:
        if nbytes & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        nbytes >>= 1
    return power
