"""Checkpoints: in files that ``torch.load(weights_only=True)`` reads as well, and in memory.

A checkpoint is what ``torch.save`` makes of a dict, followed by a seal: some words and the SHA-256 of all
that is before them.  Zip archives may be followed by other bytes, so PyTorch does not mind it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import torch
import torch.utils.serialization  # which torch.save would import when the file system may have gone

from optplug import archive, files, stored
from optplug.errors import FileError
from optplug.spec import shown
from optplug.world import is_of_all

SEAL = b"\noptplug checkpoint, sha256 "
_DIGEST = hashlib.sha256().digest_size
_CHUNK = 1 << 20
_SPARE = 16 << 20  # bytes of memory that a save may take to be made in one pass
_PIECE = 64 << 20  # bytes of a long tensor between two reports
#: Takes how many bytes of how many have been written or checked.
Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """Report nothing."""


def write(file: Any, content: dict[str, Any], progress: Progress = _silent) -> None:
    """Write a checkpoint, of tensors, numbers, strings and containers of them, in one go."""
    sealing: Any = _Sealing(file, _bytes_of(content), progress)
    try:
        torch.save(content, sealing)
    except Exception:
        if sealing.error:  # which torch makes something else of
            raise sealing.error from None
        raise
    sealing.end()


def _bytes_of(content: Any) -> int:
    """Return how many bytes the tensors in a value take, each counted once."""
    sizes: dict[int, int] = {}
    rest = [content]
    while rest:
        value = rest.pop()
        if id(value) in sizes:
            continue
        is_strided = isinstance(value, torch.Tensor) and value.layout == torch.strided
        sizes[id(value)] = value.nbytes if is_strided else 0  # sparse ones come into files of tests only
        if isinstance(value, dict):
            rest.extend(value.values())
        elif isinstance(value, list | tuple):
            rest.extend(value)
    return sum(sizes.values())


def read(file: BinaryIO, progress: Progress = _silent) -> dict[str, Any]:
    """Read a checkpoint, or what plain PyTorch has saved: see `archive`, which says what tensors are in it.

    Raises:
        ValueError: it is damaged, or neither.
    """
    is_sealed = _check_seal(file, progress)
    content = archive.read(file, is_sealed)
    if not isinstance(content, dict):
        kind = "Tensor" if isinstance(content, stored.Stored) else type(content).__name__
        kind = content.name if isinstance(content, stored.Foreign) else kind
        raise ValueError(f"not a checkpoint: it contains a {kind}")
    if "optplug" in content and not is_sealed:
        raise ValueError("damaged: the end is missing or has changed")
    return content


class _Sealing:
    """What writes to a file and takes its checksum, in large pieces: torch writes many small ones."""

    def __init__(self, file: BinaryIO, total: int, progress: Progress) -> None:
        self._file, self._hash, self._small = file, hashlib.sha256(), bytearray()
        self._done, self._total, self._progress = 0, total, progress
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        is_small = view.nbytes < _CHUNK
        if is_small:
            self._small += view
        if not is_small or len(self._small) >= _CHUNK:
            self._put(self._small)
            self._small.clear()
        if not is_small:
            for start in range(0, view.nbytes, _PIECE):
                self._put(view[start : start + _PIECE])
        return view.nbytes

    def flush(self) -> None:
        """Do nothing: torch asks for it, and `end` does it."""

    def end(self) -> None:
        """Write what is left, and the seal."""
        self._put(self._small)
        self._file.write(SEAL + self._hash.digest())

    def _put(self, piece: bytearray | memoryview) -> None:
        # Both let go of Python's lock, and take about as long.
        hashing = threading.Thread(target=self._hash.update, args=(piece,))
        is_beside = len(piece) >= _CHUNK
        if is_beside:
            try:
                hashing.start()
            except RuntimeError:  # the system has no thread for us
                is_beside = False
        if not is_beside:
            self._hash.update(piece)
        try:
            self._file.write(piece)
        except OSError as error:
            self.error = error
            raise
        finally:
            if is_beside:
                hashing.join()
        self._done += len(piece)
        self._progress(min(self._done, self._total), self._total)


def _check_seal(file: BinaryIO, progress: Progress) -> bool:
    """Tell whether there is a seal, and check it."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise ValueError("it is empty")
    rest = size - len(SEAL) - _DIGEST
    if rest < 0:
        return False
    file.seek(rest)
    seal, digest = file.read(len(SEAL)), file.read(_DIGEST)
    if seal != SEAL:
        return False
    file.seek(0)
    found = hashlib.sha256()
    while rest:
        chunk = file.read(min(rest, _CHUNK))
        if not chunk:
            raise ValueError("damaged: it shrank while it was being read")
        found.update(chunk)
        rest -= len(chunk)
        progress(size - rest, size)
    if found.digest() != digest:
        raise ValueError("damaged: checksum mismatch")
    return True


# ---- files ----


def save(path: str, content: dict[str, Any], progress: Progress = _silent) -> None:
    """Write a checkpoint so that at any moment the file is the old one or the new one, whole.

    Raises:
        FileError: the system refuses, or the path leads to what is no file.
    """
    with file_errors(path), files.replacing(path) as file:
        write(file, content, progress)


@contextlib.contextmanager
def load(path: str, progress: Progress = _silent) -> Iterator[dict[str, Any]]:
    """Read a checkpoint from a file, for a block in which its tensors can be read.

    Raises:
        FileError: the system refuses.
        ValueError: it is damaged, or no checkpoint; or what the block has raised, with the path.
    """
    with _named(f"path {shown(path)}"), file_errors(path), open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "it is not a regular file")
        yield read(file, progress)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # where it is a pipe nobody may ever write to it


@contextlib.contextmanager
def file_errors(path: str) -> Iterator[None]:
    """Let what the system says in a block name the file."""
    try:
        yield
    except OSError as error:
        raise FileError(f"path {shown(path)}: {error.strerror or error}") from error


# ---- memory ----


class _Room:
    """Memory that is written to as far as it goes, and a count of how much it must be."""

    def __init__(self, room: Any = b"") -> None:
        self.room, self.written = memoryview(room).cast("B"), 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        end = self.written + view.nbytes
        if end <= len(self.room):
            self.room[self.written : end] = view
        self.written = end
        return view.nbytes

    def flush(self) -> None:
        """Do nothing: torch asks for it."""


def save_memory(room: Any, content: dict[str, Any], progress: Progress = _silent) -> int:
    """Write a checkpoint to memory, and return its size; with None for the memory, only that.

    Raises:
        ValueError: the memory is too small, and is as it was.
    """
    in_one_pass = room is not None and len(room) <= _SPARE
    made: Any = _Room(bytearray(len(room)) if in_one_pass else b"")
    if in_one_pass:
        write(made, content, progress)
        size = made.written
    else:
        torch.save(content, made)
        size = made.written + len(SEAL) + _DIGEST
    if room is None:
        return size
    if size > len(room):
        raise ValueError(f"size must be at least {size}, got {len(room)}")
    if in_one_pass:
        room[:size] = made.room[:size]
    else:
        write(_Room(room), content, progress)
    return size


@contextlib.contextmanager
def load_memory(room: Any, progress: Progress = _silent) -> Iterator[dict[str, Any]]:
    """Read a checkpoint from memory, for a block in which its tensors can be read.

    Raises:
        ValueError: it is damaged, or no checkpoint; or what the block has raised.
    """
    with _named("buffer"):
        yield read(io.BytesIO(room), progress)


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if is_of_all(error):  # and says where by itself
            raise
        raise ValueError(f"{where}: {error}") from error
