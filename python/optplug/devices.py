"""Where arrays lie, and on which streams work on them goes: PyTorch's CUDA, or ROCm by the same names."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from optplug.errors import StateError
from optplug.spec import shown

CPU = torch.device("cpu")
#: torch's library for GPUs.
LIBRARY = "libtorch_hip.so" if torch.version.hip else "libtorch_cuda.so"
# cudaMemoryType, and hipMemoryType.
_MEMORY = ("memory of the CPU", "pinned memory of the CPU", "memory of cuda:{}", "managed memory")
_ON_GPU, _MANAGED = 2, 3
# CUpointer_attribute, and CUmemorytype.
_MEMORY_TYPE, _IS_MANAGED, _DEVICE_ORDINAL, _DEVICE_MEMORY = 2, 8, 9, 2
# No pointers, but names: of each GPU's legacy default stream, and of its per-thread default stream.
_LEGACY_STREAM, _PER_THREAD_STREAM = 1, 2


class _Attributes(ctypes.Structure):
    """cudaPointerAttributes, whose first two fields are all that is read; its size grows with versions."""

    _fields_ = (("type", ctypes.c_int), ("device", ctypes.c_int), ("rest", ctypes.c_byte * 248))


def names() -> list[str]:
    """Return the devices that arrays can be on."""
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


def find(text: str) -> torch.device:
    """Return the device that a host names; without a number the GPU that is its thread's current one.

    Raises:
        ValueError: there is none.
    """
    if text == "cpu":
        return CPU
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type != "cuda":
        raise ValueError(f"no device {shown(text)}: there are {', '.join(names())}")
    if not torch.backends.cuda.is_built():
        raise ValueError(
            f"no device {shown(text)}: torch {torch.__version__} is a CPU-only build; "
            "https://pytorch.org/get-started/locally has builds with CUDA or ROCm"
        )
    count = torch.cuda.device_count()
    if not count:
        raise ValueError(
            f"no device {shown(text)}: torch {torch.__version__} finds no GPU; "
            "check that nvidia-smi or rocm-smi does, and that CUDA_VISIBLE_DEVICES does not hide it"
        )
    if device.index is not None and device.index >= count:
        raise ValueError(f"no device {shown(text)}: there are {', '.join(names())}")
    torch.cuda.init()
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


# ---- where memory is ----


def check_place(name: str, address: int, size: int, device: torch.device) -> None:
    """Check that memory of so many bytes is on a device, as far as its driver can tell.

    Raises:
        ValueError: it is elsewhere.
    """
    if not address or not size:
        return
    if device.type == "cpu":
        owner = _gpu_of(address)
        if owner is not None:
            raise ValueError(
                f"{name} is at address {address:#x}, which is memory of cuda:{owner}, not of the CPU: "
                f"bind it with opt_bind_nd and the device 'cuda:{owner}'"
            )
        return
    for place, where in ((address, "is at"), (address + size - 1, "reaches to")):
        kind, owner = _place(place)
        if kind != _MANAGED and (kind, owner) != (_ON_GPU, device.index):
            raise ValueError(
                f"{name} {where} address {place:#x}, which is {_MEMORY[kind].format(owner)}, not of {device}"
            )


def place_of(address: int, otherwise: torch.device) -> torch.device:
    """Return the GPU whose memory is at an address, the CPU, or for managed memory another device."""
    if otherwise.type == "cpu":
        return CPU
    kind, owner = _place(address)
    return otherwise if kind == _MANAGED else torch.device("cuda", owner) if kind == _ON_GPU else CPU


# How ctypes says that a library or a function is not there; in the last way where dlerror() says it in the
# host's language and an encoding that is not UTF-8.
_NOT_THERE = (OSError, AttributeError, UnicodeDecodeError)


@functools.cache
def _function(name: str) -> Any:
    """Return a function of the CUDA runtime, the host's own or else torch's; None where it has none."""
    name = name.replace("cuda", "hip", 1) if torch.version.hip else name
    for library in (None, pathlib.Path(torch.__file__).parent / "lib" / LIBRARY):
        with contextlib.suppress(*_NOT_THERE):
            return getattr(ctypes.CDLL(str(library) if library else None), name)
    return None


def _place(address: int) -> tuple[int, int]:
    """Return the kind of memory at an address, an index of _MEMORY, and its GPU."""
    attributes = _Attributes()
    ask = _function("cudaPointerGetAttributes")
    if ask is None:
        return _MANAGED, -1  # nobody can tell
    if ask(ctypes.byref(attributes), ctypes.c_void_p(address)) != 0:
        _function("cudaGetLastError")()  # AMD's have no other answer for the CPU's
        return 0, -1
    return attributes.type, attributes.device


def _gpu_of(address: int) -> int | None:
    """Return the GPU whose memory is at an address; None if it is none's, or the process uses none."""
    driver = _driver()
    if driver is None:
        return None
    values = {}
    for attribute in (_MEMORY_TYPE, _IS_MANAGED, _DEVICE_ORDINAL):
        value = ctypes.c_uint64()  # room for any of them
        if driver.cuPointerGetAttribute(ctypes.byref(value), attribute, ctypes.c_uint64(address)) != 0:
            return None
        values[attribute] = value.value & 0xFFFFFFFF
    on_gpu = values[_MEMORY_TYPE] == _DEVICE_MEMORY and not values[_IS_MANAGED] & 0xFF
    return values[_DEVICE_ORDINAL] if on_gpu else None


def _driver() -> ctypes.CDLL | None:
    """Return CUDA's driver, if the process has it; whoever has not has no memory of a GPU."""
    global _without
    if _iterate is None:
        return None
    count = _libraries_so_far()
    if count == _without:
        return None
    try:
        return ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except _NOT_THERE:
        _without = count
        return None


_without = -1  # how many libraries had been loaded when the driver was none of them: to look takes long


class _Library(ctypes.Structure):
    """dl_phdr_info, of glibc and musl."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("headers", ctypes.c_void_p),
        ("header_count", ctypes.c_uint16),
        ("loaded", ctypes.c_ulonglong),
    )


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Library), ctypes.c_size_t, ctypes.POINTER(ctypes.c_ulonglong))  # type: ignore[untyped-decorator]
def _count(library: Any, _: int, count: Any) -> int:
    count[0] = library[0].loaded
    return 1  # that is enough


_iterate = getattr(ctypes.CDLL(None), "dl_iterate_phdr", None)  # not on macOS, which has no CUDA either


def _libraries_so_far() -> int:
    """Return how many libraries the process has ever loaded."""
    count = ctypes.c_ulonglong()
    if _iterate:
        _iterate(_count, ctypes.byref(count))
    return count.value


# ---- streams ----


class Streams:
    """The streams of a host's on which the work of one optimizer goes, one for each GPU at the most."""

    def __init__(self) -> None:
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._outside: list[tuple[list[torch.cuda.Stream], int]] = []
        self._process: int | None = None

    def use_gpu(self) -> None:
        """Note that there is work on a GPU, and so for this process alone."""
        self._process = os.getpid()

    def check_process(self) -> None:
        """Raise StateError if there is work on a GPU that a process before a fork has begun."""
        if self._process is not None and self._process != os.getpid():
            raise StateError(
                "its parameters are on a GPU, which a forked process cannot use: create the optimizer there"
            )

    def take(self, address: int, gpus: set[int], tensors: Iterable[Tensor]) -> None:
        """Let work on the GPU of a stream go onto that; 0: onto torch's current ones, on all GPUs.

        It begins there after what has been put onto the stream before.

        Args:
            gpus: those on which parameters are.
            tensors: what the work is on; torch's memory must not be given to others before it is done.

        Raises:
            ValueError: it is of another one.
        """
        if not address:
            for gpu, stream in self._streams.items():
                torch.cuda.current_stream(gpu).wait_stream(stream)
            self._streams = {}
            return
        gpu = _gpu_of_stream(address, gpus)
        if gpu not in gpus:
            there = ", ".join(f"cuda:{i}" for i in sorted(gpus))
            raise ValueError(
                f"stream {address:#x} is of cuda:{gpu}, and the parameters are on {there}: "
                "bind them first, or pass a stream of that GPU"
            )
        if address == _LEGACY_STREAM:
            stream = torch.cuda.default_stream(gpu)
        else:
            stream = torch.cuda.ExternalStream(address, device=gpu)
        stream.wait_stream(self._streams.get(gpu) or torch.cuda.current_stream(gpu))
        for tensor in tensors:
            if tensor.is_cuda and tensor.device.index == gpu:
                tensor.record_stream(stream)
        self._streams = {**self._streams, gpu: stream}

    def address(self, gpu: int) -> int | None:
        """Return the stream for a GPU; None where it is torch's current one."""
        stream = self._streams.get(gpu)
        return int(stream.cuda_stream) if stream else None

    def describe(self) -> list[str]:
        """Return a line for each."""
        return [f"stream: {s.cuda_stream:#x} on cuda:{i}" for i, s in sorted(self._streams.items())]

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make them torch's current ones in this thread, and put that back."""
        before = current_streams(set(self._streams))
        self._outside.append(before)
        try:
            make_current(self._streams.values(), before[1])
            yield
        finally:
            make_current(*self._outside.pop())

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Put back what was current outside of `current`, for a while."""
        if not self._outside:
            yield
            return
        before = self._outside[-1]
        make_current(*before)
        try:
            yield
        finally:
            make_current(self._streams.values(), before[1])

    def __bool__(self) -> bool:
        return bool(self._streams)


def current_streams(gpus: set[int]) -> tuple[list[torch.cuda.Stream], int]:
    """Return this thread's current streams on some GPUs, and its current GPU."""
    if not gpus:
        return [], -1
    return [torch.cuda.current_stream(gpu) for gpu in gpus], torch.cuda.current_device()


def make_current(streams: Iterable[torch.cuda.Stream], gpu: int) -> None:
    """Make streams this thread's current ones on their GPUs, and a GPU its current one."""
    for stream in streams:
        torch.cuda.set_stream(stream)  # which makes its GPU the current one as well
    if gpu >= 0:
        torch.cuda.set_device(gpu)


def _gpu_of_stream(address: int, gpus: set[int]) -> int:
    ask = _function("cudaStreamGetDevice")
    if address <= _PER_THREAD_STREAM or ask is None:  # before CUDA 12.8
        if len(gpus) > 1:
            raise ValueError(
                f"stream {address:#x} may be of any of {len(gpus)} GPUs: this CUDA cannot tell, "
                "so keep the parameters of one optimizer on one of them"
            )
        return next(iter(gpus))
    gpu = ctypes.c_int(-1)
    status = ask(ctypes.c_void_p(address), ctypes.byref(gpu))
    if status != 0:
        _function("cudaGetLastError")()
        raise ValueError(f"stream {address:#x} is not a stream: CUDA error {status}")
    return gpu.value


# ---- copies ----


def to_cpu(value: Any) -> Any:
    """Return containers with all tensors in them on the CPU."""
    match value:
        case Tensor():
            return value.cpu()
        case dict():
            return {key: to_cpu(v) for key, v in value.items()}
        case list() | tuple():
            return type(value)(to_cpu(v) for v in value)
    return value
