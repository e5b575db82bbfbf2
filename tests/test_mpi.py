"""Ranks over Open MPI where Python is there already, and over MPICH, as Debian has it beside Open MPI."""

from __future__ import annotations

import pathlib

import pytest

import hosts
from test_readme import build, build_library, config

TESTS = hosts.PROJECT / "tests"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Let programs write their files there."""
    monkeypatch.chdir(tmp_path)


def run_mpich(*command: str | pathlib.Path) -> None:
    """Run it on two ranks: MPICH's spin while they wait, and more than cores would wait for turns.

    By -pmi-port a rank may be a process that another one has started.
    """
    hosts.run("mpiexec.mpich", "-pmi-port", "-n", "2", *command)


@hosts.needs_mpi
@pytest.mark.parametrize("most", ["INT_MAX", "16"])
def test_messages_go_whole_and_longer_ones_than_mpi_takes_piece_by_piece(tmp_path, most):
    compiler = ("mpicc", f"-I{TESTS}", "-Wno-sign-compare", f"-DOPTPLUG_MPI_MOST={most}")
    build_library((TESTS / "test_mpi_ranks.c").read_text(), tmp_path, compiler=compiler)
    hosts.run("mpiexec", "-n", "3", *hosts.main_of(tmp_path / "main"), env=hosts.MPI_ENVIRONMENT)


@hosts.needs_mpich
def test_ranks_in_c(tmp_path):
    compiler = ("mpicc.mpich", f"-I{TESTS}", "-Wno-sign-compare")
    build((TESTS / "test_mpi_ranks.c").read_text(), tmp_path, compiler=compiler)
    run_mpich(tmp_path / "main")


@hosts.needs_mpich
def test_an_mpi_that_starts_after_python(tmp_path):
    build_library((TESTS / "test_mpi.c").read_text(), tmp_path, compiler=("mpicc.mpich", f"-I{TESTS}"))
    run_mpich(*hosts.main_of(tmp_path / "main"))


@hosts.needs_mpich
@hosts.needs_fortran
def test_ranks_in_fortran(tmp_path):
    sources = f"{config('--fortran')[0]}/optplug.f90", f"{config('--includedir')[0]}/optplug_mpi.f90"
    compiler = ("mpifort.mpich", "-std=f2018", *sources)
    build_library((TESTS / "test_mpi_ranks.f90").read_text(), tmp_path, "main.f90", compiler)
    run_mpich(*hosts.main_of(tmp_path / "main"))
