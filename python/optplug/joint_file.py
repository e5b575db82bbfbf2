"""One checkpoint file that all ranks write side by side: what one process would have written.

Rank 0 lets ``torch.save`` write all but the arrays, for which it leaves room; each rank then writes its
pieces of them.  Rank 0 adds the checksums, reads the file once for its seal, and puts it in its place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import torch

from optplug import archive, blocks, files
from optplug.blocks import Whole
from optplug.checkpoint import SEAL, Progress, file_errors
from optplug.stored import Stored
from optplug.world import World, is_of_all

_CHUNK = 1 << 22
_HAS_DESCRIPTOR = 8  # in an entry's flags: its checksum follows its data
_LOST = "some of what the ranks wrote is missing: do they share this file system?"


def save(path: str, content: dict[str, Any], world: World, progress: Progress) -> None:
    """Write a checkpoint whose arrays are `Whole`, so that at any moment the file is the old or the new one.

    Args:
        progress: is told how many bytes this rank has written, and checked if it is rank 0.

    Raises:
        FileError: the system refuses on some rank.
        ValueError: ranks have other paths.
    """
    world.agree({"call": "opt_save", "path": path, "parameters": {}})
    wholes = list(_wholes(content))
    own = sum(part.nbytes for whole in wholes for _, _, part in whole.pieces)
    tell = _Told(own + (0 if world.rank else sum(whole.nbytes for whole in wholes)), progress)

    def begin() -> str:
        if world.rank:
            return ""
        with file_errors(path):
            file = replacing.enter_context(files.replacing(path))
            starts = _write_frame(file, content)
            return json.dumps([file.name, starts])

    def write() -> list[int]:
        with file_errors(path), files.joining(name) as file:
            for whole, start in zip(wholes, starts, strict=True):
                for offset, run in whole.runs():
                    for begin in range(0, len(run), _CHUNK):
                        piece = run[begin : begin + _CHUNK]
                        files.write_at(file, piece, start + offset + begin)
                        tell(len(piece))
        return [blocks.checksum_part(whole) for whole in wholes]

    def end() -> None:
        if world.rank == 0:
            with file_errors(path), replacing:
                _finish(name, dict(zip(starts, zip(wholes, checksums, strict=True), strict=True)), tell)

    try:
        with contextlib.ExitStack() as replacing:
            name, starts = json.loads(world.texts(world.together(begin))[0])
            rows = world.numbers(*world.together(write))
            checksums = [
                blocks.checksum(whole.nbytes, map(int, parts))
                for whole, parts in zip(wholes, zip(*rows, strict=True), strict=True)
            ]
            world.together(end)
    except Exception as error:
        if is_of_all(error):
            world.exchange(None)  # until rank 0 has removed what it began
        raise


class _Told:
    """What is told of bytes that are done."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, count: int) -> None:
        self._done += count
        self._progress(min(self._done, self._total), self._total)


def _wholes(content: Any) -> Iterator[Whole]:
    if isinstance(content, Whole):
        yield content
    elif isinstance(content, dict | list | tuple):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _wholes(value)


def _changed(content: Any, change: Callable[[Whole], Any]) -> Any:
    if isinstance(content, Whole):
        return change(content)
    if isinstance(content, dict):
        return {key: _changed(value, change) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_changed(value, change) for value in content)
    return content


def _write_frame(file: BinaryIO, content: dict[str, Any]) -> list[int]:
    """Write all but the arrays, and return where each of them begins."""
    with torch.serialization.skip_data():
        torch.save(_changed(content, Whole.stand_in), file)
    file.flush()
    with _reading(file.name) as reading:
        return list(_starts(content, archive.read(reading, is_checked=True)))


def _starts(content: Any, written: Any) -> Iterator[int]:
    if isinstance(content, Whole):
        assert isinstance(written, Stored)
        yield written.storage.start
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _starts(value, written[key])
    elif isinstance(content, list | tuple):
        for value, there in zip(content, written, strict=True):
            yield from _starts(value, there)


def _finish(name: str, arrays: dict[int, tuple[Whole, int]], tell: _Told) -> None:
    """Add checksums and seal to a file whose arrays, with their checksums, begin there."""
    with files.joining(name) as file, _reading(name) as reading:
        for start, places in _checksum_places(reading):
            for place in places if start in arrays else ():
                file.seek(place)
                file.write(struct.pack("<I", arrays[start][1]))
        file.flush()
    with files.joining(name) as file, _reading(name) as reading:
        seal = hashlib.sha256()
        for start, (whole, checksum) in sorted(arrays.items(), key=lambda item: item[0]):
            _feed(seal, reading, start - reading.tell())
            if _feed(seal, reading, whole.nbytes, tell) != checksum:
                raise OSError(errno.EIO, _LOST)
        _feed(seal, reading)
        file.seek(0, os.SEEK_END)
        file.write(SEAL + seal.digest())


def _reading(name: str) -> BinaryIO:
    return open(name, "rb")  # noqa: PTH123 (a path of bytes that are no UTF-8 stays as it is)


def _checksum_places(file: BinaryIO) -> Iterator[tuple[int, list[int]]]:
    """Yield where the content of each entry of a zip archive begins, and where its checksums belong."""
    archived = zipfile.ZipFile(file)
    at = archived.start_dir
    for entry in archived.infolist():
        file.seek(entry.header_offset)
        start = entry.header_offset + 30 + sum(struct.unpack("<26xHH", file.read(30)))
        has_descriptor = entry.flag_bits & _HAS_DESCRIPTOR
        yield start, [at + 16, start + entry.file_size + 4 if has_descriptor else entry.header_offset + 14]
        file.seek(at)
        at += 46 + sum(struct.unpack("<28xHHH12x", file.read(46)))


def _feed(
    found: Any, file: BinaryIO, count: int | None = None, tell: Callable[[int], None] = lambda _: None
) -> int:
    """Read so many bytes of a file, or the rest, into a hash, and return their CRC-32."""
    checksum = 0
    while count is None or count:
        chunk = file.read(_CHUNK if count is None else min(count, _CHUNK))
        if not chunk:
            break
        found.update(chunk)
        checksum = zlib.crc32(chunk, checksum)
        tell(len(chunk))
        count = None if count is None else count - len(chunk)
    return checksum
