"""Optimizers on a GPU, in a host and in plain PyTorch."""

from __future__ import annotations

import ctypes
import inspect
import os
import pathlib
import subprocess
import sys

import pytest
import torch

from optplug import ctypes_api

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here, or not for this torch"),
]

lib = ctypes_api.load()

HERE = pathlib.Path(__file__).parent

OPTIMIZERS = {
    "ASGD(t0=2)",
    "Adadelta()",
    "Adafactor()",
    "Adagrad()",
    "Adam(lr=0.01, amsgrad=True)",
    "Adam(fused=False)",
    "Adam(fused=False, foreach=False)",
    "AdamW(betas=(0.8, 0.9), maximize=True)",
    "Adamax()",
    "LBFGS(lr=0.1, max_iter=3)",
    "Muon()",
    "NAdam()",
    "RAdam()",
    "RMSprop(momentum=0.5, centered=True)",
    "Rprop()",
    "SGD(lr=0.1)",
    "SGD(lr=0.1, momentum=0.9, nesterov=True)",
}

FUSED = ["Adam(lr=0.01)", "AdamW(amsgrad=True)", "SGD(lr=0.1, momentum=0.9)"]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

SHAPES = [(50, 1), (300, 700)]


@pytest.fixture(autouse=True)
def as_found():
    yield
    assert torch.cuda.current_device() == 0
    assert torch.cuda.current_stream(0) == torch.cuda.default_stream(0)
    assert lib.opt_init(b"plans=True, master_weights=False, error_if_nonfinite=False") == 0


class Twins:
    """An optimizer by optplug and one by torch, on the same numbers."""

    def __init__(self, spec, dtype=torch.float32, device="cuda:0", shapes=SHAPES, masters=False):
        self.generator = torch.Generator().manual_seed(1)
        self.device, self.masters = torch.device(device), masters
        self.name, _, arguments = spec.partition("(")
        self.opt = lib.opt_create(spec.encode())
        assert self.opt > 0, lib.opt_error()
        start = [torch.randn(shape, generator=self.generator).to(dtype) for shape in shapes]
        self.ours = [(p.to(device), torch.zeros_like(p, device=device)) for p in start]
        own = torch.float32 if masters else dtype
        self.theirs = [torch.nn.Parameter(p.to(own).to(device)) for p in start]
        for i in range(len(start)):
            assert self.bind(i) == 0, lib.opt_error()
        arguments = eval(f"dict({arguments}", {})  # noqa: S307 - this file's own text
        class_ = getattr(torch.optim, self.name)
        takes = inspect.signature(class_).parameters
        if "fused" in takes and not {"fused", "foreach", "capturable"} & arguments.keys():
            fused = "fused=True" in lib.opt_describe(self.opt).decode()
            assert fused or self.name == "Adagrad"
            arguments["fused"] = fused
        self.reference = class_(self.theirs, **arguments)
        torch.cuda.synchronize()

    def bind(self, i):
        p, g = self.ours[i]
        int64s = ctypes.c_int64 * p.dim()
        dtype = str(p.dtype).removeprefix("torch.").encode()
        return lib.opt_bind_nd(
            self.opt,
            f"p{i}".encode(),
            dtype,
            str(self.device).encode(),
            p.dim(),
            int64s(*p.shape),
            p.data_ptr(),
            int64s(*p.stride()),
            g.data_ptr(),
            int64s(*g.stride()),
        )

    def draw(self):
        for (_, g), p in zip(self.ours, self.theirs, strict=True):
            drawn = torch.randn(g.shape, generator=self.generator).to(g.dtype)
            g.copy_(drawn)
            p.grad = drawn.to(p.dtype).to(p.device)
        torch.cuda.synchronize()

    def step(self, count=1):
        for _ in range(count):
            self.draw()
            if self.name == "LBFGS":
                assert lib.opt_step_closure(self.opt, one, None, None) == 0, lib.opt_error()
                self.reference.step(lambda: 1.0)
            else:
                assert lib.opt_step(self.opt) == 0, lib.opt_error()
                self.reference.step()
            self.compare()

    def compare(self):
        torch.cuda.synchronize()
        for (p, _), other in zip(self.ours, self.theirs, strict=True):
            assert torch.equal(p.cpu(), other.detach().cpu().to(p.dtype))

    def is_planned(self):
        return "without Python" in lib.opt_describe(self.opt).decode()

    def end(self):
        assert lib.opt_free(self.opt) == 0


@ctypes_api.CALLBACK
def one(_, value):
    value[0] = 1.0
    return 0


def saved(opt) -> bytes:
    room = ctypes.create_string_buffer(lib.opt_save_memory(opt, None, 0))
    assert lib.opt_save_memory(opt, room, len(room)) > 0, lib.opt_error()
    return room.raw


# ---- streams and graphs ----


def busy(stream, seconds=0.3):
    """Put work of so long onto a stream."""
    with torch.cuda.stream(stream):
        torch.cuda._sleep(int(seconds * 1e9))  # cycles, of which there are 1 to 2 in a nanosecond


# ---- memory of others ----

HOST = {**os.environ, "OPTPLUG_PYTHON": sys.executable}


def compiled(folder, source=HERE / "gpu_host.c", *arguments) -> pathlib.Path:
    flags = [
        subprocess.run(
            [sys.executable, "-m", "optplug", "config", option], capture_output=True, text=True, check=True
        ).stdout.split()
        for option in ("--cflags", "--libs")
    ]
    program = folder / "gpu_host"
    compiler = os.environ.get("OPTPLUG_TEST_CC", "cc")
    subprocess.run(
        [compiler, "-std=gnu11", *flags[0], source, "-o", program, *flags[1], "-ldl", *arguments], check=True
    )
    return program
