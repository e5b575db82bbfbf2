"""Read what ``torch.save`` has written, and trust none of it.

``torch.load(weights_only=True)`` runs no code either, but it makes whatever tensor, and fills whatever
memory, a file asks for.  Here a file becomes plain values, and for each tensor a note of what it is and where
it lies: `Stored`.  So it is checked against what the optimizer can use before any of it is read.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from optplug.buffers import is_dense
from optplug.spec import shown

_STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "BFloat16": torch.bfloat16,
        "Bool": torch.bool,
        "Byte": torch.uint8,
        "Char": torch.int8,
        "ComplexDouble": torch.complex128,
        "ComplexFloat": torch.complex64,
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "Int": torch.int32,
        "Long": torch.int64,
        "Short": torch.int16,
    }.items()
}
# How far containers may be nested, and how many values may be in them, counted as often as they would print.
_DEEPEST, _MOST = 64, 1 << 24
_MOST_DIMENSIONS = 64  # torch's own limit
_MOST_PARTS = 16  # in the key of a dict
_LEGACY = 0x1950A86A20F9469CFC6C  # the number that files begin with that torch before 1.6 wrote
_LEGACY_VERSION = 1001
_CHUNK = 1 << 24
# What damaged bytes come to.
_OF_DAMAGE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, NotImplementedError, RecursionError),
    *(TypeError, ValueError, struct.error, zipfile.BadZipFile),
)


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
    storage: _Storage

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
        content = _memory(extent * size)
        self.storage.read(self.offset * size, content)
        result = content.view(self.dtype).as_strided(self.shape, self.strides)
        return result if is_dense(self.shape, self.strides) else result.contiguous()


def _memory(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cpu")


class _Storage:
    """A part of a file, with the memory of one tensor or more."""

    def __init__(self, file: BinaryIO, start: int, size: int, checksum: int | None = None) -> None:
        self._file, self._start, self.size, self._checksum = file, start, size, checksum

    def read(self, offset: int, memory: Tensor) -> None:
        if self._checksum is not None:
            self._check()
        self._file.seek(self._start + offset)
        if self._file.readinto(memory.numpy()) != memory.numel():
            raise DamagedError("it is damaged: it has become shorter")

    def _check(self) -> None:
        self._file.seek(self._start)
        found, rest = 0, self.size
        while rest:
            chunk = self._file.read(min(rest, _CHUNK))
            if not chunk:
                raise DamagedError("it is damaged: it has become shorter")
            found, rest = zlib.crc32(chunk, found), rest - len(chunk)
        if found != self._checksum:
            raise DamagedError("it is damaged: its checksum is another")
        self._checksum = None


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
        raise DamagedError("it is no checkpoint, or damaged: PyTorch cannot read it") from error


def _read_zip(file: BinaryIO, is_checked: bool) -> Any:
    entries, end = zipfile.ZipFile(file).infolist(), file.seek(0, io.SEEK_END)
    records = {entry.filename: entry for entry in entries}
    if len(records) != len(entries):
        raise DamagedError("it is no checkpoint: a name is twice in its archive")
    roots = [name.removesuffix("data.pkl") for name in records if re.fullmatch("[^/]+/data.pkl", name)]
    if len(roots) != 1:
        raise DamagedError("it is no checkpoint: it is an archive of something else")

    def find(name: str) -> _Storage:
        entry = records[roots[0] + name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise DamagedError("it is no checkpoint: its archive is compressed")
        # The name and what follows it may be longer there than in the directory.
        file.seek(entry.header_offset)
        start = entry.header_offset + 30 + sum(struct.unpack("<26xHH", file.read(30)))
        if start + entry.file_size > end:
            raise DamagedError("it is damaged: it is too short")
        return _Storage(file, start, entry.file_size, None if is_checked else entry.CRC)

    def text(name: str) -> bytes:
        record = find(name)
        content = _memory(record.size)
        record.read(0, content)
        return content.numpy().tobytes()

    if roots[0] + "byteorder" in records and text("byteorder") != sys.byteorder.encode():
        raise DamagedError("it was saved on a machine with another byte order")
    known: dict[str, _Storage] = {}

    def storage(identity: tuple[Any, ...]) -> _Storage:
        _, dtype, key, _, count = identity
        if key not in known:
            known[key] = find(f"data/{key}")
        if known[key].size != count * dtype.itemsize:
            raise DamagedError("it is damaged: an array is longer or shorter than it says")
        return known[key]

    return _Unpickler(io.BytesIO(text("data.pkl")), storage).load()


def _read_legacy(file: BinaryIO) -> Any:
    """Read what torch before 1.6 wrote: pickles one after the other, and then the arrays."""
    file.seek(0)
    known: dict[str, tuple[_Storage, torch.dtype]] = {}

    def none(_: object) -> _Storage:
        raise DamagedError("it is no checkpoint: PyTorch cannot read it")

    def storage(identity: tuple[Any, ...]) -> _Storage:
        _, dtype, key, _, count, view = identity
        if view is not None or type(count) is not int or count < 0:
            raise DamagedError("it is no checkpoint: it is too old")
        if key not in known:
            known[key] = _Storage(file, 0, count * dtype.itemsize), dtype
        if known[key][0].size != count * dtype.itemsize:
            raise DamagedError("it is damaged: an array is longer or shorter than it says")
        return known[key][0]

    first = [_Unpickler(file, none).load() for _ in range(3)]
    if first[:2] != [_LEGACY, _LEGACY_VERSION] or first[2].get("little_endian") is not True:
        raise DamagedError("it is no checkpoint: PyTorch cannot read it")
    content, keys = _Unpickler(file, storage).load(), _Unpickler(file, none).load()
    place, end = file.tell(), file.seek(0, io.SEEK_END)
    for key in keys:
        array, dtype = known.pop(key)
        file.seek(place)
        (count,) = struct.unpack("<q", file.read(8))
        array._start = place + 8
        place = array._start + array.size
        if count * dtype.itemsize != array.size or place > end:
            raise DamagedError("it is damaged: an array is longer or shorter than it says")
    if known:
        raise DamagedError("it is damaged: arrays are missing")
    return content


def _measure(value: Any, known: dict[int, tuple[int, int] | None], depth: int) -> tuple[int, int]:
    """Return how many values are in a value and how deep, and refuse what nobody could print."""
    if not isinstance(value, dict | list | tuple) or not value:
        return 1, 0
    if depth > _DEEPEST:
        raise DamagedError("it is no checkpoint: it is too deeply nested")
    if id(value) not in known:
        known[id(value)] = None
        inner = value.values() if isinstance(value, dict) else value
        measures = [_measure(v, known, depth + 1) for v in inner]
        count = 1 + sum(n for n, _ in measures)
        known[id(value)] = count, 1 + max((height for _, height in measures), default=0)
    measure = known[id(value)]
    if measure is None or measure[0] > _MOST or measure[1] > _DEEPEST:
        raise DamagedError("it is no checkpoint: it is too deeply nested")
    return measure


# ---- the pickle ----


class _Unpickler:
    """Python's pickle of protocol 2, of which it makes nothing but plain values, `Stored` and `Foreign`."""

    def __init__(self, file: BinaryIO, storage: Callable[[tuple[Any, ...]], _Storage]) -> None:
        self._file, self._storage = file, storage
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # stacks below marks
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def load(self) -> Any:
        read = self._file.read
        while True:
            code = read(1)
            if code == pickle.STOP:
                (result,) = self._stack
                return result
            if code not in _OPERATIONS:
                raise DamagedError(
                    "it is no checkpoint: PyTorch cannot read it"
                    if code
                    else "it is damaged: it is too short"
                )
            _OPERATIONS[code](self)

    def _unpack(self, form: str) -> Any:
        return struct.unpack(form, self._file.read(struct.calcsize(form)))[0]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _marked(self) -> list[Any]:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _protocol(self) -> None:
        if self._unpack("B") != 2:
            raise DamagedError("it is no checkpoint: it has another pickle_protocol than 2")

    def _long(self) -> None:
        self._push(pickle.decode_long(self._file.read(self._unpack("B"))))

    def _string(self) -> None:
        size = self._unpack("<I")
        text = self._file.read(size)
        if len(text) != size:
            raise DamagedError("it is damaged: it is too short")
        self._push(text.decode("utf-8", "surrogatepass"))

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise DamagedError("it is damaged")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(values)
        elif not isinstance(target, Foreign):
            raise DamagedError("it is damaged")

    def _set(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Foreign):
            return
        if not isinstance(target, dict) or len(pairs) % 2:
            raise DamagedError("it is damaged")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[_key(key)] = value

    def _get(self, form: str) -> None:
        self._push(self._memo[self._unpack(form)])

    def _put(self, form: str) -> None:
        self._memo[self._unpack(form)] = self._stack[-1]

    def _global(self) -> None:
        names = [self._file.readline(1000)[:-1].decode() for _ in range(2)]
        self._push(Foreign(".".join(names)))

    def _persistent(self) -> None:
        identity = self._stack.pop()
        dtype = _STORAGES.get(identity[1].name)
        if identity[0] != "storage" or type(identity[2]) is not str:
            raise DamagedError("it is damaged")
        known = dtype and self._storage((identity[0], dtype, *identity[2:]))
        self._push((dtype, known) if known else identity[1])

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Foreign) or type(arguments) is not tuple:
            raise DamagedError("it is damaged")
        make = _FUNCTIONS.get(function.name)
        if make:
            self._check_copies(arguments)
        self._push(make(*arguments) if make else function)

    def _check_copies(self, arguments: tuple[Any, ...]) -> None:
        """Refuse a call after which more has been copied than read: torch writes arguments for one call."""
        self._copied += sum(len(a) for a in arguments if isinstance(a, dict | list | str | tuple))
        if self._copied > self._file.tell():
            raise DamagedError("it is no checkpoint: it has one list or text in it many times")

    def _new(self) -> None:
        self._stack.pop()
        if not isinstance(self._stack[-1], Foreign):
            raise DamagedError("it is damaged")

    def _build(self) -> None:
        state = self._stack.pop()  # attributes, of which plain values have none
        if isinstance(self._stack[-1], _NumpyType):
            self._stack[-1] = _NumpyType(self._stack[-1].code, state[1])


def _key(key: object) -> object:
    """Check the key of a dict: the hash of others may take for ever, or need more stack than there is.

    Integers have no secret in their hash: of large ones a forger knows as many as wanted with the same.
    """
    parts = key if type(key) is tuple else (key,)
    if len(parts) > _MOST_PARTS or not all(map(_is_simple, parts)):
        raise DamagedError("it is no checkpoint: it has a dict with other keys than text and numbers")
    return key


def _is_simple(part: object) -> bool:
    if isinstance(part, int):
        return abs(part) < _MOST
    return isinstance(part, str | float | bytes | Foreign | None)


def _counter(pairs: dict[Any, Any] | None = None) -> Any:
    return Counter(_ordered(pairs.items() if isinstance(pairs, dict) else pairs or ()))


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in pairs}


def _rebuild(
    storage: Any,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    _requires_grad: bool,
    _hooks: object,
    metadata: dict[str, bool] | None = None,
) -> Stored | Foreign:
    if isinstance(storage, Foreign) or metadata:
        return Foreign(
            storage.name if isinstance(storage, Foreign) else "tensor with a negative or conjugate bit"
        )
    dtype, memory = storage
    sizes = (offset, *shape, *strides)
    are_sizes = all(type(n) is int and 0 <= n <= sys.maxsize for n in sizes)
    if not are_sizes or len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS:
        raise DamagedError("it is damaged: a tensor has no such shape")
    extent = 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if (offset + extent) * dtype.itemsize > memory.size:
        raise DamagedError("it is damaged: a tensor is larger than its memory")
    return Stored(dtype, tuple(shape), tuple(strides), offset, memory)


@dataclass(frozen=True)
class _NumpyType:
    code: str
    order: str = "="


def _numpy_type(code: str, *_: object) -> _NumpyType:
    return _NumpyType(code)


def _numpy_number(kind: Any, content: Any) -> Any:
    forms = {"f4": "f", "f8": "d", "i4": "i", "i8": "q"}
    if not isinstance(kind, _NumpyType) or kind.code not in forms or type(content) is not bytes:
        return Foreign("numpy.scalar")
    return struct.unpack({"<": "<", ">": ">"}.get(kind.order, "=") + forms[kind.code], content)[0]


def _bytes(text: Any, encoding: object = "latin1") -> Any:
    return text.encode("latin1") if type(text) is str and encoding == "latin1" else Foreign("_codecs.encode")


# What a file may call.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": lambda sizes: tuple(sizes),
    "_codecs.encode": _bytes,
    "numpy.dtype": _numpy_type,
    "numpy.core.multiarray.scalar": _numpy_number,
    "numpy._core.multiarray.scalar": _numpy_number,
}
_Operation = Callable[[_Unpickler], None]
_OPERATIONS: dict[bytes, _Operation] = {
    pickle.APPEND: lambda u: u._append([u._stack.pop()]),
    pickle.APPENDS: lambda u: u._append(u._marked()),
    pickle.BINFLOAT: lambda u: u._push(u._unpack(">d")),
    pickle.BINGET: lambda u: u._get("B"),
    pickle.BININT: lambda u: u._push(u._unpack("<i")),
    pickle.BININT1: lambda u: u._push(u._unpack("B")),
    pickle.BININT2: lambda u: u._push(u._unpack("<H")),
    pickle.BINPERSID: _Unpickler._persistent,
    pickle.BINPUT: lambda u: u._put("B"),
    pickle.BINUNICODE: _Unpickler._string,
    pickle.BUILD: _Unpickler._build,
    pickle.EMPTY_DICT: lambda u: u._push({}),
    pickle.EMPTY_LIST: lambda u: u._push([]),
    pickle.EMPTY_SET: lambda u: u._push(Foreign("set")),
    pickle.EMPTY_TUPLE: lambda u: u._push(()),
    pickle.GLOBAL: _Unpickler._global,
    pickle.LONG1: _Unpickler._long,
    pickle.LONG_BINGET: lambda u: u._get("<I"),
    pickle.LONG_BINPUT: lambda u: u._put("<I"),
    pickle.MARK: _Unpickler._mark,
    pickle.NEWFALSE: lambda u: u._push(False),
    pickle.NEWOBJ: _Unpickler._new,
    pickle.NEWTRUE: lambda u: u._push(True),
    pickle.NONE: lambda u: u._push(None),
    pickle.PROTO: _Unpickler._protocol,
    pickle.REDUCE: _Unpickler._reduce,
    pickle.SETITEM: lambda u: u._set([u._stack.pop(-2), u._stack.pop()]),
    pickle.SETITEMS: lambda u: u._set(u._marked()),
    pickle.SHORT_BINSTRING: lambda u: u._push(u._file.read(u._unpack("B"))),
    pickle.TUPLE: lambda u: u._push(tuple(u._marked())),
    pickle.TUPLE1: lambda u: u._tuple(1),
    pickle.TUPLE2: lambda u: u._tuple(2),
    pickle.TUPLE3: lambda u: u._tuple(3),
}
