"""Checkpoints: in files that ``torch.load(weights_only=True)`` reads as well, and in memory.

A checkpoint is what ``torch.save`` makes of a dict, followed by a seal: some words and the SHA-256 of all
that is before them.  Zip archives may be followed by other bytes, so PyTorch does not mind it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import pickle
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch

from optplug.errors import FileError
from optplug.spec import shown

_SEAL = b"\noptplug checkpoint, sha256 "
_DIGEST = hashlib.sha256().digest_size
_CHUNK = 1 << 20


def write(file: BinaryIO, content: dict[str, Any]) -> None:
    """Write a checkpoint, of tensors, numbers, strings and containers of them, in one go."""
    sealing = _Sealing(file)
    try:
        torch.save(content, sealing)
    except Exception:
        if sealing.error:  # which torch makes something else of
            raise sealing.error from None
        raise
    file.write(_SEAL + sealing.digest())


def read(file: BinaryIO) -> dict[str, Any]:
    """Read a checkpoint, or what plain PyTorch has saved; no code is run.

    Raises:
        ValueError: it is damaged, or neither.
    """
    is_sealed = _check_seal(file)
    file.seek(0)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        _, _, reason = str(error).partition("WeightsUnpickler error: ")
        reason = reason.partition("\n")[0] or "PyTorch cannot read it"
        raise ValueError(f"it is no checkpoint: {reason}") from error
    except Exception as error:
        if "can't allocate memory" in str(error):
            raise
        raise ValueError("it is no checkpoint, or damaged: PyTorch cannot read it") from error
    if not isinstance(content, dict):
        raise ValueError(f"it is no checkpoint: it has a {type(content).__name__} in it")
    if "optplug" in content and not is_sealed:
        raise ValueError("it is damaged: the end is missing or has changed")
    return content


class _Sealing(io.RawIOBase):
    """A file that takes note of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        # Both let go of Python's lock, and take about as long.
        hashing = threading.Thread(target=self._hash.update, args=(data,))
        hashing.start()
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        finally:
            hashing.join()
        return memoryview(data).nbytes

    def digest(self) -> bytes:
        return self._hash.digest()


def _check_seal(file: BinaryIO) -> bool:
    """Tell whether there is a seal, and check it."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise ValueError("it is empty")
    rest = size - len(_SEAL) - _DIGEST
    if rest < 0:
        return False
    file.seek(rest)
    seal, digest = file.read(len(_SEAL)), file.read(_DIGEST)
    if seal != _SEAL:
        return False
    file.seek(0)
    found = hashlib.sha256()
    while rest:
        chunk = file.read(min(rest, _CHUNK))
        if not chunk:
            raise ValueError("it is damaged: it has become shorter")
        found.update(chunk)
        rest -= len(chunk)
    if found.digest() != digest:
        raise ValueError("it is damaged: its checksum is another")
    return True


# ---- files ----


def save(path: str, content: dict[str, Any]) -> None:
    """Write a checkpoint so that at any moment the file is the old one or the new one, whole.

    It is written beside, to ``path.tmp``, and takes the file's place once it is on the disk.

    Raises:
        FileError: the system refuses.
    """
    with _file_errors(path):
        target = os.path.realpath(path)
        if os.path.isdir(target):  # noqa: PTH112 (a path of bytes that are no UTF-8 stays as it is)
            raise IsADirectoryError(0, "it is a directory")
        temporary = target + ".tmp"
        with _locked(temporary) as file:
            try:
                write(file, content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, target)  # noqa: PTH105
            except BaseException:
                os.unlink(temporary)  # noqa: PTH108
                raise
        folder = os.open(os.path.dirname(target), os.O_RDONLY | os.O_CLOEXEC)  # noqa: PTH120
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: str) -> dict[str, Any]:
    """Read a checkpoint from a file.

    Raises:
        FileError: the system refuses.
        ValueError: it is damaged, or no checkpoint.
    """
    with _file_errors(path), open(path, "rb") as file:  # noqa: PTH123
        return read(file)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[BinaryIO]:
    """Open a file for writing that no other process is writing; what one that has died left is taken over."""
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with open(descriptor, "wb") as file:  # noqa: PTH123
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(0, "another process is saving to it") from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):  # noqa: PTH116
                    os.ftruncate(descriptor, 0)
                    yield file
                    return
        # The process that had it has given it its name in between.


@contextlib.contextmanager
def _file_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileError(f"path {shown(path)}: {error.strerror or error}") from error


# ---- memory ----


class _Room(io.RawIOBase):
    """Memory of the host's that is written to; without any, a count of how much it must be."""

    def __init__(self, room: Any = None) -> None:
        self._room, self.written = room and memoryview(room).cast("B"), 0

    def write(self, data: Any) -> int:
        count = memoryview(data).nbytes
        if self._room is not None:
            self._room[self.written : self.written + count] = memoryview(data).cast("B")
        self.written += count
        return count


def save_memory(room: Any, content: dict[str, Any]) -> int:
    """Write a checkpoint to memory, and return its size; with None for the memory, only that.

    Raises:
        ValueError: the memory is too small.
    """
    count = _Room()
    write(count, content)
    if room is None:
        return count.written
    if count.written > len(room):
        raise ValueError(f"size must be {count.written} at least, got {len(room)}")
    write(_Room(room), content)
    return count.written


def load_memory(room: Any) -> dict[str, Any]:
    """Read a checkpoint from memory.

    Raises:
        ValueError: it is damaged, or no checkpoint.
    """
    return read(io.BytesIO(room))
