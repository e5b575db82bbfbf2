"""What optplug asks of a GPU, on a machine that has none.

A CUDA that runs no kernels (`tests/standin/cuda.c`) notes what torch asks of it: the tests in
`tests/standin/` look at that.  It wants a torch that is built with CUDA:
`cmake --workflow --preset gpu` installs one, of gigabytes.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch

import optplug

HERE = pathlib.Path(__file__).parent
CC = os.environ.get("OPTPLUG_TEST_CC", "cc")


def build(source: pathlib.Path, target: pathlib.Path, *arguments: str) -> None:
    subprocess.run(
        [CC, "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", source, "-o", target, *arguments], check=True
    )


def build_host(source: pathlib.Path, target: pathlib.Path, *arguments: str) -> pathlib.Path:
    library = pathlib.Path(optplug.library())
    include = f"-I{library.parent.parent / 'include'}"
    build(source, target, include, str(library), f"-Wl,-rpath,{library.parent}", "-ldl", *arguments)
    return target


def program_of_the_page(folder: pathlib.Path) -> pathlib.Path:
    page = (HERE.parent / "docs/gpu.md").read_text()
    (folder / "page.c").write_text(re.search(r"```c\n(.*?)```", page, re.S)[1])
    return folder / "page.c"


def test_the_host_in_c_needs_no_cuda_to_be_built_and_says_so_without(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    host = build_host(HERE / "gpu_host.c", tmp_path / "gpu_host")
    done = subprocess.run([host, "Adam()", "3", "2"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (77, "there is no CUDA runtime, or no GPU\n")


def test_without_cuda_there_is_no_device():
    if torch.backends.cuda.is_built():
        pytest.skip("this torch is built with CUDA")
    from optplug import ctypes_api

    lib = ctypes_api.load()
    opt = lib.opt_create(b"Adam()")
    assert lib.opt_bind_nd(opt, b"w", b"float32", b"cuda:0", 0, None, 4096, None, 4096, None) == -1
    assert lib.opt_error().decode() == (
        f"no device 'cuda:0': torch {torch.__version__} is a CPU-only build; "
        f"https://pytorch.org/get-started/locally has builds with CUDA or ROCm"
    )
    assert lib.opt_bind_nd(opt, b"w", b"float32", b"tpu", 0, None, 4096, None, 4096, None) == -1
    assert lib.opt_error() == b"no device 'tpu': there are cpu"
    assert lib.opt_bind_nd(opt, b"w", b"float32", b"cuda:0", 0, None, None, None, None, None) == -1
    assert lib.opt_error() == b"device must be 'cpu' where data and grad are NULL, got 'cuda:0'"
    assert lib.opt_free(opt) == 0


@pytest.mark.gpu
def test_calls_on_a_stand_in(tmp_path):
    if not torch.version.cuda:
        pytest.skip("this torch is built without CUDA: cmake --workflow --preset gpu has one")
    headers = sorted(pathlib.Path(torch.__file__).parent.parent.glob("nvidia/*/include/crt/host_defines.h"))
    if not headers:
        pytest.skip(
            "no headers of CUDA: python -m pip install nvidia-cuda-crt, of the version of nvidia-cuda-runtime"
        )
    standin, include = tmp_path / "libcuda.so.1", f"-isystem{headers[0].parent.parent}"
    build(
        HERE / "standin/cuda.c",
        standin,
        "-shared",
        "-fPIC",
        "-pthread",
        include,
        "-Wl,-soname,libcuda.so.1",
    )
    environment = {
        **os.environ,
        "LD_PRELOAD": str(standin),
        "OPTPLUG_TEST_GPU_HOST": str(build_host(HERE / "gpu_host.c", tmp_path / "gpu_host")),
        "OPTPLUG_TEST_GPU_PAGE": str(
            build_host(program_of_the_page(tmp_path), tmp_path / "page", include, str(standin))
        ),
        "OPTPLUG_PYTHON": sys.executable,
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            HERE / "standin/calls.py",
            HERE / "standin/around.py",
        ],
        env=environment,
        check=False,
    )
    assert done.returncode == 0
