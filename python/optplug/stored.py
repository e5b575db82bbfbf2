"""What stands for a tensor, or for an object, that is in a file: a note of it, until it is known to fit."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

from optplug.buffers import is_dense
from optplug.spec import shown

_CHUNK = 1 << 24
_FAR = 1 << 12  # bytes between rows that are read one by one


class DamagedError(ValueError):
    """Bytes that ``torch.save`` does not write."""


@dataclass(frozen=True, repr=False)
class Foreign:
    """A stand-in for what is no plain value and no plain tensor, such as an object of a class."""

    name: str

    def __repr__(self) -> str:
        return f"a {shown(self.name)}"


@dataclass(frozen=True, repr=False)
class Stored:
    """A tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int  # in elements
    storage: Storage

    def __repr__(self) -> str:
        return f"a tensor of {str(self.dtype).removeprefix('torch.')} of shape {self.shape}"

    @property
    def nbytes(self) -> int:
        """How many bytes it takes as a tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """Read it, into memory of its own."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype, device="cpu")
        size = self.dtype.itemsize
        extent = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if extent > 2 * math.prod(self.shape) and max(self.strides) * size >= _FAR:
            return self._by_rows()
        content = memory(extent * size)
        self.storage.read(self.offset * size, content)
        result = content.view(self.dtype).as_strided(self.shape, self.strides)
        return result if is_dense(self.shape, self.strides) else result.contiguous()

    def _by_rows(self) -> Tensor:
        """Read it row by row, since most of what lies between its ends is not its own."""
        dim = max(range(len(self.shape)), key=lambda i: self.strides[i])
        shape, strides = (s[:dim] + s[dim + 1 :] for s in (self.shape, self.strides))
        offsets = (self.offset + i * self.strides[dim] for i in range(self.shape[dim]))
        rows = (Stored(self.dtype, shape, strides, offset, self.storage).tensor() for offset in offsets)
        return torch.stack(list(rows), dim).contiguous()


def memory(size: int) -> Tensor:
    """Return so many bytes."""
    return torch.empty(size, dtype=torch.uint8, device="cpu")


class Storage:
    """A part of a file, with the memory of one tensor or more.

    Args:
        checksum: its CRC-32, if the file says that.
        is_checked: whether somebody knows already that it has this.
    """

    def __init__(
        self,
        file: BinaryIO,
        start: int,
        size: int,
        checksum: int | None = None,
        is_checked: bool = False,
    ) -> None:
        self._file, self.start, self.size = file, start, size
        self._checksum, self._is_checked = checksum, is_checked

    @property
    def checksum(self) -> int:
        """Its CRC-32."""
        if self._checksum is None:
            self._checksum, self._is_checked = self._found(), True
        return self._checksum

    def read(self, offset: int, into: Tensor) -> None:
        """Read what is from an offset on."""
        if self._checksum is not None and not self._is_checked:
            if self._found() != self._checksum:
                raise DamagedError("damaged: checksum mismatch")
            self._is_checked = True
        self._file.seek(self.start + offset)
        if self._file.readinto(into.numpy()) != into.numel():  # type: ignore[attr-defined]
            raise DamagedError("damaged: it shrank while it was being read")

    def _found(self) -> int:
        self._file.seek(self.start)
        found, rest = 0, self.size
        while rest:
            chunk = self._file.read(min(rest, _CHUNK))
            if not chunk:
                raise DamagedError("damaged: it shrank while it was being read")
            found, rest = zlib.crc32(chunk, found), rest - len(chunk)
        return found
