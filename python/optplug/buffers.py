"""Wrap raw memory as tensors, without copying.

DLPack is the door that torch opens for memory of any device: a capsule around a ``DLManagedTensor``
(https://dmlc.github.io/dlpack/latest/c_api.html).
"""

from __future__ import annotations

import ctypes
import functools
import math
import struct
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from optplug import devices
from optplug.spec import check_name, shown

# DLDataTypeCode, bits
DTYPES = {
    "float16": (2, 16),
    "float32": (2, 32),
    "float64": (2, 64),
    "bfloat16": (4, 16),
    "complex64": (5, 64),
    "complex128": (5, 128),
}
_INDICES = {"int64": (0, 64)}
# What other languages, and torch in short, call them; "float" is 32 bits in C and 64 in numpy.
_ALSO = {
    "half": "'float16'",
    "single": "'float32'",
    "double": "'float64'",
    "float": "'float32' or 'float64'",
    "real32": "'float32'",
    "real64": "'float64'",
    "complex": "'complex64' or 'complex128'",
    "cfloat": "'complex64'",
    "cdouble": "'complex128'",
}
_CPU, _CUDA, _ROCM = 1, 2, 10  # DLDeviceType


# A DLManagedTensor: the address, the device's type and number, how many dimensions, the dtype's code, bits
# and lanes, where shape and strides are, the offset; whose it is, and what frees it.
_MANAGED = "@PiiiBBHPPQPP"
_MANAGED_SIZE = struct.calcsize(_MANAGED)
_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]
_FREE = ctypes.cast(_libc.free, ctypes.c_void_p).value
# A prototype of our own: the attributes of ctypes.pythonapi's functions are everybody's.
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


def wrap(
    name: str,
    address: int,
    dtype: str,
    device: torch.device,
    shape: Sequence[int],
    strides: Sequence[int] | None = None,
    strides_name: str = "strides",
) -> torch.Tensor:
    """Return a tensor over the memory at ``address``, which stays its owner's.

    Args:
        name: what the memory is called in errors, "data" or "grad"; ``strides_name`` likewise.
        strides: in elements; row-major if None.

    Raises:
        ValueError: no such memory can be: negative sizes or strides, elements that share
            memory, more bytes than an address space has, an address not aligned for the dtype, another
            device's memory.
    """
    for i, n in enumerate(shape):
        if n < 0:
            raise ValueError(f"shape[{i}] must not be negative, got {n}")
    code, bits = DTYPES.get(dtype) or _INDICES[dtype]
    # Empty arrays too: torch works out strides as if a 0 were a 1.
    extent = math.prod([n or 1 for n in shape])
    if strides is None:
        strides = _row_major(shape)
    else:
        strides = list(strides)
        _check_strides(strides_name, shape, strides)
        extent = max(1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)), extent)
    if extent * bits // 8 > sys.maxsize - address:
        raise ValueError(
            f"{name}: {' x '.join(map(str, shape))} values of {dtype} reach beyond the end of memory"
        )
    alignment = bits // 8  # of complex128, too: torch's kernels load it as 16 bytes
    if address % alignment:
        raise ValueError(
            f"{name} is at address {address:#x}, which is not aligned to {alignment} bytes for {dtype}"
        )
    devices.check_place(name, address, 0 if 0 in shape else extent * bits // 8, device)
    return torch.from_dlpack(_capsule(address, device, code, bits, shape, strides))  # type: ignore[attr-defined]


def check_dtype(dtype: str) -> None:
    """Check that parameters may be of a dtype.

    Raises:
        ValueError: they may not; with what to write for it, or with those that there are.
    """
    if dtype in DTYPES:
        return
    short = dtype.strip().lower().removeprefix("torch.").removeprefix("np.").removeprefix("numpy.")
    if short in DTYPES or short in _ALSO:
        raise ValueError(f"no dtype {shown(dtype)}: write {_ALSO.get(short, repr(short))}")
    if short.startswith(("int", "uint", "bool")):
        raise ValueError(f"no dtype {shown(dtype)}: PyTorch does not step integers, only {', '.join(DTYPES)}")
    check_name(dtype, DTYPES, "dtype")


def name_of(dtype: torch.dtype) -> str:
    """Return what torch calls a dtype: "float32"."""
    return str(dtype).removeprefix("torch.")


@functools.cache
def infinity(dtype: torch.dtype) -> int:
    """Return the bits of a real dtype's infinity."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return torch.tensor(math.inf, dtype=dtype).view(integers[dtype.itemsize]).item()  # type: ignore[return-value]


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Tell whether elements, if there are any, lie without gaps, in whatever order of dimensions."""
    if 0 in shape:
        return True
    expected = 1
    for s, n in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n != 1):
        if s != expected:
            return False
        expected *= n
    return True


def same_order(shape: Sequence[int], strides: Sequence[int], others: Sequence[int]) -> bool:
    """Tell whether two arrays of one shape have their elements in the same order and places."""
    return 0 in shape or all(n <= 1 or a == b for n, a, b in zip(shape, strides, others, strict=True))


def real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as one of real numbers, twice as many; a real one as it is."""
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor


def flat(tensor: Tensor, first: Tensor) -> Tensor:
    """Return a tensor's values in the order in which another's lie: where it can be, a view."""
    tensor = tensor.detach()
    if tensor.is_contiguous() and first.is_contiguous():
        return tensor.view(-1)
    return _in_order(tensor, first).flatten()


def _in_order(tensor: Tensor, first: Tensor) -> Tensor:
    """Return a tensor with its dimensions permuted so that another's are in row-major order."""
    return tensor.permute(sorted(range(first.dim()), key=first.stride, reverse=True))


def gaps(tensor: Tensor, first: Tensor) -> list[tuple[int, int]]:
    """Return how values lie that do not lie one after the other, in the order of another array's.

    Returns:
        Sizes and strides, the innermost first; nothing where there are no gaps.
    """
    if 0 in first.shape or (tensor.is_contiguous() and first.is_contiguous()):
        return []
    found: list[tuple[int, int]] = []
    ordered = _in_order(tensor, first)
    for n, stride in zip(ordered.shape[::-1], ordered.stride()[::-1], strict=True):
        if n == 1:
            continue
        if found and stride == found[-1][0] * found[-1][1]:  # as if it were one dimension
            inner, smallest = found.pop()
            found.append((inner * n, smallest))
        else:
            found.append((n, stride))
    return [] if found in ([], [(tensor.numel(), 1)]) else found


def _row_major(shape: Sequence[int]) -> list[int]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return strides[::-1]


def _check_strides(name: str, shape: Sequence[int], strides: Sequence[int]) -> None:
    for i, s in enumerate(strides):
        if s < 0:
            raise ValueError(f"{name}[{i}] must not be negative, got {s}")
    # From the innermost dimension out, each step must clear all that lies inside of it.
    inside = 0
    for s, n, i in sorted((s, n, i) for i, (n, s) in enumerate(zip(shape, strides, strict=True)) if n > 1):
        if s <= inside and 0 not in shape:
            raise ValueError(
                f"{name}[{i}] is {s}, so elements share memory or rows interleave: it must exceed {inside}"
            )
        inside += s * (n - 1)


def _capsule(
    address: int, device: torch.device, code: int, bits: int, shape: Sequence[int], strides: Sequence[int]
) -> object:
    """Make a DLPack capsule in one block of C memory, which torch frees with C's own free().

    So nothing of Python is called when torch lets go of it, at whatever time and on whatever thread.
    """
    n = len(shape)
    managed = _managed(n)
    block = _libc.malloc(managed.size)
    if not block:
        raise MemoryError
    kind = _CPU if device.type == "cpu" else _ROCM if torch.version.hip else _CUDA
    at = block + _MANAGED_SIZE
    place = address, kind, device.index or 0, n
    content = managed.pack(*place, code, bits, 1, at, at + 8 * n, 0, 0, _FREE, *shape, *strides)
    ctypes.memmove(block, content, managed.size)
    return _new_capsule(block, b"dltensor", None)


@functools.cache
def _managed(n: int) -> struct.Struct:
    """Return the layout of a DLManagedTensor of n dimensions, with its shape and strides behind it."""
    return struct.Struct(f"{_MANAGED}{2 * n}q")


def layout_of(tensor: Tensor) -> str:
    """Say what a tensor is, for people."""
    return f"{name_of(tensor.dtype)} of shape {tuple(tensor.shape)} with strides {tensor.stride()}"
