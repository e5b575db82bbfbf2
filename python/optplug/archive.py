"""Read what ``torch.save`` has written, and trust none of it.

``torch.load(weights_only=True)`` runs no code either, but it makes whatever tensor, and fills whatever
memory, a file asks for.  Here a file becomes plain values, and for each tensor a note of what it is and where
it lies: `Stored`.  So it is checked against what the optimizer can use before any of it is read.
"""

from __future__ import annotations

import io
import re
import struct
import sys
import zipfile
from typing import Any, BinaryIO

import torch

from optplug.stored import DamagedError, Storage, memory
from optplug.unpickle import Unpickler

# How far containers may be nested, and how many values may be in them, counted as often as they would print.
_DEEPEST, _MOST = 64, 1 << 24
_LEGACY = 0x1950A86A20F9469CFC6C  # the number that files begin with that torch before 1.6 wrote
_LEGACY_VERSION = 1001
# What damaged bytes come to.
_OF_DAMAGE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, NotImplementedError, RecursionError),
    *(TypeError, ValueError, struct.error, zipfile.BadZipFile),
)


def read(file: BinaryIO, is_checked: bool) -> Any:
    """Return what is in a file, which must stay open as long as tensors are to be read.

    Args:
        is_checked: whether somebody knows already that no byte has changed.

    Raises:
        DamagedError: it is nothing of ``torch.save``'s.
    """
    try:
        file.seek(0)
        content = _read_zip(file, is_checked) if file.read(2) == b"PK" else _read_legacy(file)
        _measure(content, {}, 0)
        return content
    except DamagedError:
        raise
    except _OF_DAMAGE as error:
        raise DamagedError("not a checkpoint, or damaged: PyTorch cannot read it") from error


def _read_zip(file: BinaryIO, is_checked: bool) -> Any:
    entries, end = zipfile.ZipFile(file).infolist(), file.seek(0, io.SEEK_END)
    records = {entry.filename: entry for entry in entries}
    if len(records) != len(entries):
        raise DamagedError("not a checkpoint: a name occurs twice in its archive")
    roots = [name.removesuffix("data.pkl") for name in records if re.fullmatch("[^/]+/data.pkl", name)]
    if len(roots) != 1:
        raise DamagedError("not a checkpoint: it is an archive of something else")

    def find(name: str) -> Storage:
        entry = records[roots[0] + name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise DamagedError("not a checkpoint: its archive is compressed")
        # The name and what follows it may be longer there than in the directory.
        file.seek(entry.header_offset)
        start = entry.header_offset + 30 + sum(struct.unpack("<26xHH", file.read(30)))
        if start + entry.file_size > end:
            raise DamagedError("damaged: too short")
        return Storage(file, start, entry.file_size, entry.CRC, is_checked)

    def text(name: str) -> bytes:
        record = find(name)
        content = memory(record.size)
        record.read(0, content)
        return content.numpy().tobytes()

    if roots[0] + "byteorder" in records and text("byteorder") != sys.byteorder.encode():
        raise DamagedError("it was saved on a machine with a different byte order")
    known: dict[str, Storage] = {}

    def storage(identity: tuple[Any, ...]) -> Storage:
        _, dtype, key, _, count = identity
        if key not in known:
            known[key] = find(f"data/{key}")
        if known[key].size != count * dtype.itemsize:
            raise DamagedError("damaged: an array does not have the length that it declares")
        return known[key]

    return Unpickler(io.BytesIO(text("data.pkl")), storage).load()


def _read_legacy(file: BinaryIO) -> Any:
    """Read what torch before 1.6 wrote: pickles one after the other, and then the arrays."""
    file.seek(0)
    known: dict[str, tuple[Storage, torch.dtype]] = {}

    def none(_: object) -> Storage:
        raise DamagedError("not a checkpoint: PyTorch cannot read it")

    def storage(identity: tuple[Any, ...]) -> Storage:
        _, dtype, key, _, count, view = identity
        if view is not None or type(count) is not int or count < 0:
            raise DamagedError("not a checkpoint: it is too old")
        if key not in known:
            known[key] = Storage(file, 0, count * dtype.itemsize), dtype
        if known[key][0].size != count * dtype.itemsize:
            raise DamagedError("damaged: an array does not have the length that it declares")
        return known[key][0]

    first = [Unpickler(file, none).load() for _ in range(3)]
    if first[:2] != [_LEGACY, _LEGACY_VERSION] or first[2].get("little_endian") is not True:
        raise DamagedError("not a checkpoint: PyTorch cannot read it")
    content, keys = Unpickler(file, storage).load(), Unpickler(file, none).load()
    place, end = file.tell(), file.seek(0, io.SEEK_END)
    for key in keys:
        array, dtype = known.pop(key)
        file.seek(place)
        (count,) = struct.unpack("<q", file.read(8))
        array.start = place + 8
        place = array.start + array.size
        if count * dtype.itemsize != array.size or place > end:
            raise DamagedError("damaged: an array does not have the length that it declares")
    if known:
        raise DamagedError("damaged: arrays are missing")
    return content


def _measure(value: Any, known: dict[int, tuple[int, int] | None], depth: int) -> tuple[int, int]:
    """Return how many values are in a value and how deep, and refuse what nobody could print."""
    if not isinstance(value, dict | list | tuple) or not value:
        return 1, 0
    if depth > _DEEPEST:
        raise DamagedError("not a checkpoint: it is too deeply nested")
    if id(value) not in known:
        known[id(value)] = None
        inner = value.values() if isinstance(value, dict) else value
        measures = [_measure(v, known, depth + 1) for v in inner]
        count = 1 + sum(n for n, _ in measures)
        known[id(value)] = count, 1 + max((height for _, height in measures), default=0)
    measure = known[id(value)]
    if measure is None or measure[0] > _MOST or measure[1] > _DEEPEST:
        raise DamagedError("not a checkpoint: it is too deeply nested")
    return measure
