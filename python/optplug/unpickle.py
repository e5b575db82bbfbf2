"""Python's pickle as ``torch.save`` writes it, of which nothing but plain values are made."""

from __future__ import annotations

import pickle
import struct
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from optplug.stored import DamagedError, Foreign, Storage, Stored

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
#: The dtypes of tensors that are read.
STORAGES = frozenset(_STORAGES.values())
_MOST = 1 << 24  # what a key of a dict may count to
_MOST_DIMENSIONS = 64  # torch's own limit
_MOST_PARTS = 16  # in the key of a dict


class Unpickler:
    """Python's pickle of protocol 2, of which it makes nothing but plain values, `Stored` and `Foreign`."""

    def __init__(self, file: BinaryIO, storage: Callable[[tuple[Any, ...]], Storage]) -> None:
        self._file, self._storage = file, storage
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # stacks below marks
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def load(self) -> Any:
        """Read one pickle, and return what it is of."""
        read = self._file.read
        while True:
            code = read(1)
            if code == pickle.STOP:
                (result,) = self._stack
                return result
            if code not in _OPERATIONS:
                raise DamagedError(
                    "not a checkpoint: PyTorch cannot read it" if code else "damaged: too short"
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
            raise DamagedError("not a checkpoint: its pickle protocol is not 2")

    def _long(self) -> None:
        self._push(pickle.decode_long(self._file.read(self._unpack("B"))))

    def _string(self) -> None:
        size = self._unpack("<I")
        text = self._file.read(size)
        if len(text) != size:
            raise DamagedError("damaged: too short")
        self._push(text.decode("utf-8", "surrogatepass"))

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise DamagedError("damaged")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(values)
        elif not isinstance(target, Foreign):
            raise DamagedError("damaged")

    def _set(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Foreign):
            return
        if not isinstance(target, dict) or len(pairs) % 2:
            raise DamagedError("damaged")
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
            raise DamagedError("damaged")
        known = dtype and self._storage((identity[0], dtype, *identity[2:]))
        self._push((dtype, known) if known else identity[1])

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Foreign) or type(arguments) is not tuple:
            raise DamagedError("damaged")
        make = _FUNCTIONS.get(function.name)
        if make:
            self._check_copies(arguments)
        self._push(make(*arguments) if make else function)

    def _check_copies(self, arguments: tuple[Any, ...]) -> None:
        """Refuse a call after which more has been copied than read: torch writes arguments for one call."""
        self._copied += sum(len(a) for a in arguments if isinstance(a, dict | list | str | tuple))
        if self._copied > self._file.tell():
            raise DamagedError("not a checkpoint: it repeats a list or text too often")

    def _new(self) -> None:
        self._stack.pop()
        if not isinstance(self._stack[-1], Foreign):
            raise DamagedError("damaged")

    def _build(self) -> None:
        state = self._stack.pop()  # attributes, of which plain values have none
        if isinstance(self._stack[-1], _NumpyType):
            self._stack[-1] = _NumpyType(self._stack[-1].code, state[1])


def _key(key: object) -> object:
    """Check the key of a dict: the hash of others may take for ever, or need more stack than there is.

    Integers have no secret in their hash: of large ones a forger knows as many as wanted with the same.
    """
    if not is_key(key):
        raise DamagedError("not a checkpoint: it has a dict whose keys are not text or numbers")
    return key


def is_key(key: object) -> bool:
    """Tell whether a dict in a file may have this key."""
    parts = key if type(key) is tuple else (key,)
    return len(parts) <= _MOST_PARTS and all(map(_is_simple, parts))


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
        raise DamagedError("damaged: a tensor has an impossible shape")
    extent = 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if (offset + extent) * dtype.itemsize > memory.size:
        raise DamagedError("damaged: a tensor is larger than its memory")
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
_Operation = Callable[[Unpickler], None]
_OPERATIONS: dict[bytes, _Operation] = {
    pickle.APPEND: lambda u: u._append([u._stack.pop()]),
    pickle.APPENDS: lambda u: u._append(u._marked()),
    pickle.BINFLOAT: lambda u: u._push(u._unpack(">d")),
    pickle.BINGET: lambda u: u._get("B"),
    pickle.BININT: lambda u: u._push(u._unpack("<i")),
    pickle.BININT1: lambda u: u._push(u._unpack("B")),
    pickle.BININT2: lambda u: u._push(u._unpack("<H")),
    pickle.BINPERSID: Unpickler._persistent,
    pickle.BINPUT: lambda u: u._put("B"),
    pickle.BINUNICODE: Unpickler._string,
    pickle.BUILD: Unpickler._build,
    pickle.EMPTY_DICT: lambda u: u._push({}),
    pickle.EMPTY_LIST: lambda u: u._push([]),
    pickle.EMPTY_SET: lambda u: u._push(Foreign("set")),
    pickle.EMPTY_TUPLE: lambda u: u._push(()),
    pickle.GLOBAL: Unpickler._global,
    pickle.LONG1: Unpickler._long,
    pickle.LONG_BINGET: lambda u: u._get("<I"),
    pickle.LONG_BINPUT: lambda u: u._put("<I"),
    pickle.MARK: Unpickler._mark,
    pickle.NEWFALSE: lambda u: u._push(False),
    pickle.NEWOBJ: Unpickler._new,
    pickle.NEWTRUE: lambda u: u._push(True),
    pickle.NONE: lambda u: u._push(None),
    pickle.PROTO: Unpickler._protocol,
    pickle.REDUCE: Unpickler._reduce,
    pickle.SETITEM: lambda u: u._set([u._stack.pop(-2), u._stack.pop()]),
    pickle.SETITEMS: lambda u: u._set(u._marked()),
    pickle.SHORT_BINSTRING: lambda u: u._push(u._file.read(u._unpack("B"))),
    pickle.TUPLE: lambda u: u._push(tuple(u._marked())),
    pickle.TUPLE1: lambda u: u._tuple(1),
    pickle.TUPLE2: lambda u: u._tuple(2),
    pickle.TUPLE3: lambda u: u._tuple(3),
}
