"""Hosts that are linked to LibTorch, whose libraries are then torch's as well."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest
import torch

import hosts
from optplug import surroundings
from test_readme import config

FOLDER = pathlib.Path(torch.__file__).parent
#: An executable without -fPIE's indirection has the one copy of the tensor that is none.
PROGRAM = """
#include <ATen/core/TensorBase.h>
#include <cstdio>
#include <optplug.hpp>

int main()
{
    at::TensorBase none;
    double w[] = {1, 2}, dw[] = {1, 1};
    optplug::Optimizer opt("SGD(lr=0.125)");
    opt.bind("w", w, dw);
    for (int i = 0; i < 8; i++)
        opt.step();
    std::printf("%g %g %d\\n%s", w[0], w[1], none.defined(), optplug::describe().c_str());
}
"""
FAKE = "int aoti_torch_device_type_cpu(void) { return 0; }\n"


@hosts.needs_cxx
@pytest.mark.skipif(not (FOLDER / "include/ATen/core/TensorBase.h").exists(), reason="torch has no headers")
def test_a_host_that_is_linked_to_libtorch_shares_it(tmp_path):
    (tmp_path / "main.cpp").write_text(PROGRAM)
    library = [f"-L{FOLDER}/lib", f"-Wl,-rpath,{FOLDER}/lib", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
    flags = [*config("--cflags", "--libs"), "-isystem", f"{FOLDER}/include", *library]
    subprocess.run([hosts.CXX, "-std=c++20", "main.cpp", *flags, "-o", "main"], check=True, cwd=tmp_path)
    said = hosts.run(tmp_path / "main").stdout
    assert said.startswith("0 1 0\n")
    assert re.search(rf"^libtorch: the host's, {re.escape(str(FOLDER))}/lib/libtorch_cpu\.so$", said, re.M)
    assert "\nblas:" not in said


def test_a_host_that_is_linked_to_another_libtorch_is_an_error_that_says_so(tmp_path):
    (tmp_path / "fake.c").write_text(FAKE)
    name = "libtorch_cpu.so"
    command = [hosts.CC, "-shared", "-fPIC", f"-Wl,-soname,{name}", "fake.c", "-o", name]
    subprocess.run(command, check=True, cwd=tmp_path)
    said = hosts.run(hosts.PROGRAMS / "host", env={"LD_PRELOAD": str(tmp_path / name)}).stdout
    assert said.startswith("-4 ")
    assert f"the program is linked to another PyTorch, {tmp_path / name}: link it to the one of " in said


def test_a_missing_pytorch_is_no_other_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="PyTorch is missing or broken in that environment"):
        surroundings.load_torch(libtorch="libtorch_cpu.so")


@pytest.mark.skipif(not (hosts.PROGRAMS / "blas64.so").exists(), reason="glibc alone")
def test_a_blas_with_64_bit_integers_before_libtorch_is_an_error():
    libraries = f"{hosts.PROGRAMS}/blas64.so {FOLDER}/lib/libtorch_cpu.so"
    said = hosts.run(hosts.PROGRAMS / "host", env={"LD_PRELOAD": libraries}).stdout
    assert said.startswith(f"-4 the host's BLAS in '{hosts.PROGRAMS}/blas64.so' uses 64-bit integers")
    assert f"the program is linked to LibTorch in '{FOLDER}/lib/libtorch_cpu.so'" in said
