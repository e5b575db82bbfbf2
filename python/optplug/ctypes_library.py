"""liboptplug through ctypes: its functions with the types of their arguments and results."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import optplug
from optplug import header

#: A function of the host's: ``int (void *user, double *value)``.
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_double))

#: A collective of the host's: ``int (void *user, const char *what, const char *dtype, ..., int64_t count)``.
COLLECTIVE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int64,
)

#: A function that receives the log: ``void (*)(void *user, int level, const char *line)``.
LOG_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)


@dataclass
class Memory:
    """An array's address, type and layout."""

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # in bytes; None in C order
    is_writable: bool
    is_on_gpu: bool


def memory_of(array: Any) -> Memory | None:
    """Return the memory of a numpy or GPU array; None if it is neither."""
    if isinstance(array, np.ndarray):
        address, writable = array.ctypes.data, array.flags.writeable
        return Memory(address, array.dtype, array.shape, array.strides, writable, False)
    # https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        return None
    address, is_read_only = interface["data"]
    dtype, strides = np.dtype(interface["typestr"]), interface.get("strides")
    return Memory(address, dtype, tuple(interface["shape"]), strides, not is_read_only, True)


class _Array:
    """``void *`` as the type of an argument: an array, or anything that ctypes takes."""

    @staticmethod
    def from_param(value: Any) -> Any:
        memory = memory_of(value)
        return ctypes.c_void_p.from_param(memory.address if memory else value)


class _Text:
    """``const char *`` as the type of an argument: text, or a path of any kind."""

    @staticmethod
    def from_param(value: Any) -> Any:
        if isinstance(value, str | os.PathLike):
            value = os.fsencode(value)
        if isinstance(value, bytes) and b"\0" in value:
            raise ValueError(f"{value!r} contains a zero byte, which ends a string in C")
        return ctypes.c_char_p.from_param(value)


def encoded(argument: str, text: str) -> bytes:
    """Return a text as optplug.h takes it, in UTF-8."""
    if not isinstance(text, str):
        raise TypeError(f"{argument} must be text, got {text!r}")
    return text.encode()


class _Values:
    """A pointer to values of a type: a list or tuple, a numpy array, or anything that ctypes takes."""

    def __init__(self, type_: Any) -> None:
        self._type, self._pointer = type_, ctypes.POINTER(type_)

    def from_param(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype == self._type and value.flags.c_contiguous:
            value = value.ctypes.data_as(self._pointer)
        elif isinstance(value, list | tuple):
            value = (self._type * len(value))(*value)
        return self._pointer.from_param(value)


_TYPES = {
    "int": ctypes.c_int,
    "int64_t": ctypes.c_int64,
    "double": ctypes.c_double,
    "const char *": _Text,
    "void *": _Array,
    "const void *": _Array,
    "double *": _Values(ctypes.c_double),
    "const double *": _Values(ctypes.c_double),
    "float *": _Values(ctypes.c_float),
    "const float *": _Values(ctypes.c_float),
    "const int64_t *": _Values(ctypes.c_int64),
    "opt_callback": CALLBACK,
    "opt_log_function": LOG_FUNCTION,
    "optplug_log_function": LOG_FUNCTION,
    "optplug_callback": CALLBACK,
    "opt_collective": COLLECTIVE,
    "optplug_collective": COLLECTIVE,
}
_RESULTS = {"int": ctypes.c_int, "int64_t": ctypes.c_int64, "const char *": ctypes.c_char_p}


@functools.cache
def _header() -> header.Header:
    return header.read(pathlib.Path(optplug.includedir()) / "optplug.h")


def load(path: str | None = None, loader: type[ctypes.CDLL] = ctypes.CDLL) -> ctypes.CDLL:
    """Return the library with the types of all its functions declared.

    Args:
        path: liboptplug's path; None means this package's own.
        loader: ``ctypes.PyDLL`` keeps the GIL during calls.
    """
    library = loader(path or optplug.library())
    for name, declared in _header().functions.items():
        function = getattr(library, name)
        function.restype = _RESULTS[declared.result]
        function.argtypes = [_TYPES[parameter.type] for parameter in declared.parameters]
    return library


def statuses() -> dict[str, int]:
    """Return the header's statuses: ``{"OPT_OK": 0, ...}``."""
    return {name: value for name, value in _header().statuses.items() if name.startswith("OPT_")}


class Error(RuntimeError):
    """A failed call: its message, ``status``, and the embedded Python's ``traceback``, if there is one."""

    def __init__(self, status: int, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.traceback = traceback


#: No collective: the ranks are torch.distributed's.
NO_COLLECTIVE = COLLECTIVE()


def collective_over(comm: Any, failed: Callable[[BaseException], None]) -> Any:
    """Return a collective over a communicator of mpi4py; keep a reference while the optimizer uses it.

    Exceptions go to ``failed``, since none may pass through C.
    """

    def run(_: Any, what: bytes, dtype: bytes, send: int, receive: int, count: int) -> int:
        is_gather, size = what == b"all_gather", comm.Get_size()
        lengths = (count, count * size) if is_gather else (count * size, count)
        type_ = np.dtype(dtype.decode())
        arrays = [
            np.frombuffer((ctypes.c_char * (n * type_.itemsize)).from_address(address or 0), type_)
            for n, address in zip(lengths, (send, receive), strict=True)
        ]
        try:
            (comm.Allgather if is_gather else comm.Reduce_scatter_block)(*arrays)
        except BaseException as error:
            failed(error)
            return -1
        return 0

    return COLLECTIVE(run)
