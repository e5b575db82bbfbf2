"""What torch asks of a CUDA that notes it, and runs of optimizers there."""

from __future__ import annotations

import ctypes
import re

import pytest
import torch

from optplug import ctypes_api, recipe

lib = ctypes_api.load()

cuda = ctypes.CDLL(None)

# LBFGS and Muon want cuBLAS, of which there is no stand-in.
SPECS = [f"{name}()" for name in recipe.classes() if name not in ("LBFGS", "Muon", "SparseAdam")]

FUSED = ["Adam()", "AdamW(amsgrad=True)", "SGD(momentum=0.9)"]

WAITING = ("Adafactor()", "ASGD()")  # as torch has them

# What adds to the step counts, in torch's steps and in plans.
COUNT, COUNT_OURS = "BinaryOpScalarFunctor", "PointwiseOpScalarListFunctor"


def notes() -> list[str]:
    """Return what CUDA was asked since the last call: "STREAM KERNEL", a copy, or what was waited for."""
    lines = cuda.standin_notes().decode().splitlines()
    launch = re.compile(r"stream (\S+): on GPU \d+ (\S+)")
    return [launch.sub(lambda m: f"{m[1]} {functor(m[2])}", line) for line in lines]


def functor(kernel: str) -> str:
    """Return the part of a kernel's mangled name that says what it does."""
    found = re.search(r"\d([A-Z][A-Za-z]+Functor)", kernel)
    return found[1] if found else kernel


def on(stream: int) -> str:
    return hex(stream) if stream else "(nil)"


@pytest.fixture(autouse=True)
def as_found():
    yield
    assert torch.cuda.current_device() == 0
    assert [torch.cuda.current_stream(i).cuda_stream for i in range(2)] == [0, 0]
    assert lib.opt_init(b"plans=True, master_weights=False, error_if_nonfinite=False") == 0


class Run:
    """An optimizer on arrays of a GPU, on a stream of the host's."""

    def __init__(self, spec, *gpus, dtype=torch.float32, n=50, stream=True):
        gpus = gpus or (0,)
        self.opt = lib.opt_create(spec.encode())
        assert self.opt > 0, lib.opt_error()
        self.arrays = [[torch.zeros(n, device=f"cuda:{gpu}", dtype=dtype) for _ in "pg"] for gpu in gpus]
        for i in range(len(gpus)):
            assert self.bind(i) == 0, lib.opt_error()
        self.streams = [torch.cuda.Stream(gpu) for gpu in sorted(set(gpus))] if stream else []
        for s in self.streams:
            self.do("opt_stream", s.cuda_stream)
        self.on = on(self.streams[0].cuda_stream if stream else 0)
        notes()

    def bind(self, i, device=None, data=None, grad=None):
        p, g = self.arrays[i]
        dtype = str(p.dtype).removeprefix("torch.").encode()
        shape = (ctypes.c_int64 * 1)(len(p))
        device = (str(p.device) if device is None else device).encode()
        data, grad = data or p.data_ptr(), grad or g.data_ptr()
        return lib.opt_bind_nd(self.opt, f"p{i}".encode(), dtype, device, 1, shape, data, None, grad, None)

    def do(self, name, *arguments):
        assert getattr(lib, name)(self.opt, *arguments) >= 0, (lib.opt_error(), lib.opt_traceback())
        return notes()

    def steps(self, count=4):
        """Return what the last of some steps asked."""
        return [self.do("opt_step") for _ in range(count)][-1]

    def describe(self):
        return lib.opt_describe(self.opt).decode()


def waits(lines):
    return [line for line in lines if line.startswith("wait")]


def saved(opt) -> bytes:
    room = ctypes.create_string_buffer(lib.opt_save_memory(opt, None, 0))
    assert lib.opt_save_memory(opt, room, len(room)) > 0, lib.opt_error()
    return room.raw
