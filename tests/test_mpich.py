"""Ranks over another MPI than the one that CMake has found: MPICH, as Debian has it beside Open MPI."""

from __future__ import annotations

import pathlib
import shutil

import pytest

import hosts
from test_readme import build, config

TESTS = hosts.PROJECT / "tests"
pytestmark = hosts.needs("MPICH", "libmpich-dev mpich", shutil.which("mpicc.mpich"))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Let programs write their files there."""
    monkeypatch.chdir(tmp_path)


def run(program: pathlib.Path, *arguments: str) -> None:
    """Run it on two ranks: MPICH's spin while they wait, and more than cores would wait for turns."""
    hosts.run("mpiexec.mpich", "-n", "2", program, *arguments)


def test_ranks_in_c(tmp_path):
    compiler = ("mpicc.mpich", f"-I{TESTS}", "-Wno-sign-compare")
    build((TESTS / "test_mpi_ranks.c").read_text(), tmp_path, compiler=compiler)
    run(tmp_path / "main")


@pytest.mark.parametrize("when", ["first", "last"])
def test_an_mpi_that_starts_before_python_or_after_it(when, tmp_path):
    build((TESTS / "test_mpi.c").read_text(), tmp_path, compiler=("mpicc.mpich", f"-I{TESTS}"))
    run(tmp_path / "main", when)


@hosts.needs_fortran
def test_ranks_in_fortran(tmp_path):
    sources = f"{config('--fortran')[0]}/optplug.f90", f"{config('--includedir')[0]}/optplug_mpi.f90"
    compiler = ("mpifort.mpich", "-std=f2018", *sources)
    build((TESTS / "test_mpi_ranks.f90").read_text(), tmp_path, "main.f90", compiler)
    run(tmp_path / "main")
