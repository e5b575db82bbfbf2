"""A GPU's memory that others have made, other GPUs, and forked processes."""

from __future__ import annotations

import ctypes
import os
import pathlib
import re
import subprocess

import pytest
import torch

from gpu_twins import HERE, HOST, Twins, as_found, compiled, lib, pytestmark  # noqa: F401 (pytest finds them here)


@pytest.mark.parametrize("graph", [[], ["graph"]])
@pytest.mark.parametrize("spec", ["Adam(lr=0.1)", "SGD(lr=0.1, momentum=0.9)"])
def test_a_host_in_c_with_memory_and_a_stream_of_its_own(spec, graph, tmp_path):
    runtimes = sorted(pathlib.Path(torch.__file__).parent.parent.glob("nvidia/**/libcudart.so.*"))
    steps, n = 10, 1000
    done = subprocess.run(
        [compiled(tmp_path), spec, str(n), str(steps), *graph],
        env=HOST | ({"OPTPLUG_TEST_CUDART": str(runtimes[0])} if runtimes else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    parameter = torch.nn.Parameter(torch.zeros(n, device="cuda:0"))
    name, _, arguments = spec.partition("(")
    arguments = eval(f"dict({arguments}", {})  # noqa: S307 - this file's own text
    reference = getattr(torch.optim, name)([parameter], fused=True, **arguments)
    index = torch.arange(n, device="cuda:0")
    for step in range(steps):
        parameter.grad = ((index * 7 + step * 5) % 11 - 5).to(torch.float32) / 4
        reference.step()
    assert [float.fromhex(line) for line in done.stdout.split()] == parameter.tolist()


def test_the_program_in_docs(tmp_path):
    runtimes = sorted(pathlib.Path(torch.__file__).parent.parent.glob("nvidia/**/libcudart.so.*"))
    headers = [
        path
        for folder in (os.environ.get("CUDA_HOME", "/usr/local/cuda"), *(r.parent.parent for r in runtimes))
        for path in pathlib.Path(folder).glob("include")
        if (path / "crt/host_defines.h").exists()
    ]
    if not runtimes or not headers:
        pytest.skip("no headers of CUDA, or no runtime")
    page = (HERE.parent / "docs/gpu.md").read_text()
    (tmp_path / "page.c").write_text(re.search(r"```c\n(.*?)```", page, re.S)[1])
    linked = f"-isystem{headers[0]}", str(runtimes[0]), f"-Wl,-rpath,{runtimes[0].parent}"
    program = compiled(tmp_path, tmp_path / "page.c", *linked)
    done = subprocess.run(program, env=HOST, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "-2 -4 -6\n", "")


@pytest.mark.parametrize("managed", [False, True])
def test_memory_of_cupys(managed):
    cupy = pytest.importorskip("cupy")
    allocator = cupy.cuda.malloc_managed if managed else cupy.get_default_memory_pool().malloc
    with cupy.cuda.using_allocator(allocator):
        p, g = cupy.zeros(100, dtype=cupy.float32), cupy.ones(100, dtype=cupy.float32)
    opt, shape = lib.opt_create(b"SGD(lr=0.5)"), (ctypes.c_int64 * 1)(100)
    bound = lib.opt_bind_nd(opt, b"w", b"float32", b"cuda:0", 1, shape, p.data.ptr, None, g.data.ptr, None)
    assert bound == 0, lib.opt_error()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device(0).synchronize()
    assert lib.opt_stream(opt, stream.ptr) == 0, lib.opt_error()
    for _ in range(4):
        assert lib.opt_step(opt) == 0
    stream.synchronize()
    assert (p.get() == -2).all()
    assert lib.opt_free(opt) == 0


def test_memory_that_is_elsewhere_is_refused():
    twins, here = Twins("Adam()"), torch.zeros(50, 1)
    pinned = torch.zeros(50, 1).pin_memory()
    device = twins.ours[0][0]
    for other, words in ((here, "memory of the CPU"), (pinned, "pinned memory of the CPU")):
        twins.ours[0] = other, other
        assert twins.bind(0) < 0
        assert f"data is at address {other.data_ptr():#x}, which is {words}, not of cuda:0" in str(
            lib.opt_error()
        )
    assert lib.opt_bind(twins.opt, b"p0", b"float32", 50, device.data_ptr(), device.data_ptr()) < 0
    assert "memory of cuda:0, not of the CPU" in str(lib.opt_error())
    twins.end()


# ---- several GPUs, and processes ----


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_a_second_gpu():
    twins, stream = Twins("Adam()", device="cuda:1"), torch.cuda.Stream(1)
    assert lib.opt_stream(twins.opt, torch.cuda.Stream(0).cuda_stream) < 0
    assert "is of cuda:0, and the parameters are on cuda:1" in str(lib.opt_error())
    assert lib.opt_stream(twins.opt, stream.cuda_stream) == 0, lib.opt_error()
    twins.step(5)
    twins.end()


def test_a_forked_process_is_told():
    twins = Twins("Adam()")
    twins.step(3)
    child = os.fork()
    if child == 0:
        refused = lib.opt_step(twins.opt) < 0 and b"which a forked process cannot use" in lib.opt_error()
        os._exit(0 if refused else 1)
    assert os.waitpid(child, 0)[1] == 0
    twins.step(3)
    twins.end()
