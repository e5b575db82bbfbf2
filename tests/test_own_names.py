"""Hosts whose own functions have the names of the library's: each calls what it means."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

import hosts

NAMES = sorted(hosts.FUNCTIONS)

#: The host's own, of other types than the library's.
OWN = "#include <stdlib.h>\n" + "\n".join(
    f"double {name}(double x) {{ abort(); return x; }}" for name in NAMES
)

IN_C = """
#define OPTPLUG_NO_SHORT_NAMES
#include <optplug.h>
#include <stdio.h>

double opt_init(double x);
enum { OPT_OK = 7, OPT_EINVAL };
typedef double opt_callback;

static int closure(void *user, double *value)
{
    *value = *(double *)user;
    return OPTPLUG_OK;
}

int main(void)
{
    double w[2] = {1, 2}, dw[2] = {2, 4}, lr;
    optplug_callback function = closure;
    int opt = optplug_create("SGD(lr=0.25)");
    if (opt < 0 || optplug_bind(opt, "w", "float64", 2, w, dw) < 0 || optplug_step(opt) < 0 ||
        optplug_step_closure(opt, function, w, NULL) < 0 || optplug_get(opt, 0, "lr", &lr) < 0)
        fprintf(stderr, "%s\\n", optplug_error());
    printf("%.2f %.2f %.2f %d\\n", w[0], w[1], lr, optplug_free(opt));
    return 0;
}
"""

IN_CXX = """
#define OPTPLUG_NO_SHORT_NAMES
#include <cstdio>
#include <optplug.hpp>

extern "C" double opt_init(double x);
enum { OPT_OK = 7, OPT_EINVAL };

int main()
{
    std::vector<double> w{1, 2}, dw{2, 4};
    double lr;
    {
        optplug::init();
        optplug::Optimizer opt("SGD(lr=0.25)");
        opt.bind("w", w.data(), dw.data(), {2});
        opt.step();
        opt.step_closure([] { return 0.0; });
        lr = opt.get(0, "lr");
    }
    std::printf("%.2f %.2f %.2f %d\\n", w[0], w[1], lr, OPTPLUG_OK);
}
"""

IN_FORTRAN = """
program host
  use, intrinsic :: iso_fortran_env, only: real64
  use optplug, only: optimizer, opt_init
  implicit none
  real(real64), target :: w(2) = [1, 2], dw(2) = [2, 4]
  real(real64) :: lr
  type(optimizer) :: opt

  call opt_init("")
  call opt%create("SGD(lr=0.25)")
  call opt%bind("w", w, dw)
  call opt%step()
  call opt%step()
  call opt%get(0, "lr", lr)
  call opt%free()
  print "(3(f4.2, 1x), i0)", w, lr, 0
end program
"""


def flags() -> list[str]:
    command = [sys.executable, "-m", "optplug", "config", "--cflags", "--libs"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def build(folder, program: str, *compiler: str) -> pathlib.Path:
    """Build a host with functions of its own."""
    (folder / "own.c").write_text(OWN)
    subprocess.run([hosts.CC, "-fPIC", "-c", "own.c"], cwd=folder, check=True)
    command = [*compiler, program, "own.o", "-o", "host", *flags()]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "host"


#: What a host prints that makes two steps of 0.25.
TRAINED = "0.00 0.00 0.25 0\n"
#: Options of a host that is a library, whose own functions come before what it is linked to as well.
AS_LIBRARY = "-shared", "-fPIC"


def test_a_host_in_c_calls_by_the_longer_names(tmp_path):
    """And the library's own calls, opt_bind's of opt_bind_nd for one, stay in the library."""
    (tmp_path / "host.c").write_text(IN_C)
    host = build(tmp_path, "host.c", hosts.CC, "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
    assert hosts.run(host).stdout == TRAINED


@pytest.mark.skipif(not hosts.CXX, reason="no C++ compiler (Debian, Ubuntu: apt-get install g++)")
def test_the_cxx_header_calls_the_library(tmp_path):
    (tmp_path / "host.cpp").write_text(IN_CXX)
    options = "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", *AS_LIBRARY
    assert hosts.run_main(build(tmp_path, "host.cpp", hosts.CXX, *options)).stdout == TRAINED


@pytest.mark.skipif(not hosts.FC, reason="no Fortran compiler (Debian, Ubuntu: apt-get install gfortran)")
def test_the_fortran_module_calls_the_library(tmp_path):
    (tmp_path / "host.f90").write_text(IN_FORTRAN)
    module = hosts.PROJECT / "bindings" / "fortran" / "optplug.f90"
    assert hosts.run_main(build(tmp_path, "host.f90", hosts.FC, *AS_LIBRARY, str(module))).stdout == TRAINED
