"""What the Fortran compiler refuses, what ends a program, and that the module has what the header has."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

import hosts

pytestmark = hosts.needs_fortran
MODULE = hosts.PROJECT / "bindings" / "fortran" / "optplug.f90"

PROGRAM = """
program host
  use optplug, only: optimizer, opt_eio
  use, intrinsic :: iso_fortran_env, only: int32, real64
  implicit none
  type :: particle
    real(real64) :: x = 0, dx = 0
  end type
  real(real64), target :: w(4) = 0, dw(4) = 1
  real(real64) :: not_target(4) = 0
  real(real64), pointer :: p(:)
  integer(int32), target :: counts(4) = 0
  type(particle), target :: particles(4)
  type(optimizer) :: opt

  p => w
  call opt%create("SGD(lr=1)")
  call opt%bind({})
  call opt%step()
  print "(4f5.1)", w
end program
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compile the module once; return what compiles a program of one bind, given its arguments."""
    place = tmp_path_factory.mktemp("fortran")
    strict = ["-std=f2018", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    subprocess.run([hosts.FC, *strict, "-fPIC", "-c", MODULE], cwd=place, check=True)
    flags = subprocess.run(
        [sys.executable, "-m", "optplug", "config", "--libs"], capture_output=True, text=True, check=True
    ).stdout.split()

    def compile_(arguments: str) -> subprocess.CompletedProcess[str]:
        (place / "host.f90").write_text(PROGRAM.format(arguments))
        command = [hosts.FC, "-shared", "-fPIC", "host.f90", "optplug.o", "-o", "host", *flags]
        return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)

    compile_.place = place
    return compile_


def test_a_program_of_one_bind_runs(build):
    done = build('"w", w, dw')
    assert done.returncode == 0, done.stderr
    assert hosts.run_main(build.place / "host").stdout == " -1.0 -1.0 -1.0 -1.0\n"


@pytest.mark.parametrize(
    "arguments",
    [
        '"w", not_target, dw',
        '"w", w + 1, dw',
        '"w", w([4, 2, 1, 3]), dw',
        '"w", w(::2), dw(::2)',
        '"w", particles%x, particles%dx',
        '"w", p, dw',
        '"w", counts, counts',
        '"w", w, real(dw, 4)',
    ],
)
def test_the_compiler_refuses_what_it_would_copy_or_is_of_another_kind(build, arguments):
    done = build(arguments)
    assert done.returncode != 0
    assert re.search("no (matching )?specific (binding|subroutine)", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("copy", r"optimizer \(\d+\) cannot be copied to \(0\): it owns"),
        ("fail", "optplug: spec 'Adm.*did you"),
    ],
)
def test_without_stat_an_error_stops_the_program(mistake, words):
    command = [*hosts.main_of(hosts.PROGRAMS / "test_fortran.so"), mistake]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(f"ERROR STOP.*{words}", done.stderr)


def test_the_module_has_every_function_and_every_status():
    source = MODULE.read_text()
    called = set(re.findall(r'bind\(c, name="optplug_(?!fortran_)(\w+)"\)', source))
    assert {f"opt_{name}" for name in called} == hosts.FUNCTIONS - {"opt_bind"}  # see opt_bind_nd
    statuses = {(name.lower(), value) for name, value in hosts.STATUSES.items()} - {("opt_done", 0)}
    constants = re.findall(r"integer(?:\(c_int\))?, parameter(?:, public)? :: (\w+) = (-?\d+)", source)
    assert {(name, int(value)) for name, value in constants} == statuses


def test_the_module_is_the_one_that_its_template_makes(tmp_path):
    fypp = pathlib.Path(sys.executable).parent / "fypp"
    made = tmp_path / "optplug.f90"
    subprocess.run([fypp, "--no-folding", MODULE.with_suffix(".fypp"), made], check=True)
    assert made.read_text() == MODULE.read_text(), f"run {fypp} as {MODULE.with_suffix('.fypp')} says"
