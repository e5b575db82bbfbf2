"""What the Python tests share: the programs that ctest built, and the library as ctypes has it."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import optplug
from optplug import header

PROJECT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = pathlib.Path(os.environ["OPTPLUG_TEST_PROGRAMS"])
CC = os.environ["OPTPLUG_TEST_CC"]
CXX = os.environ.get("OPTPLUG_TEST_CXX")
FC = os.environ.get("OPTPLUG_TEST_FC")
#: Seconds after which a program hangs: ten times what one takes where the machine is busy.
PATIENCE = 1800


def needs(what: str, packages: str, is_here: object) -> pytest.MarkDecorator:
    """Skip a test where something is not installed, and say what to install."""
    return pytest.mark.skipif(not is_here, reason=f"no {what} (Debian, Ubuntu: apt-get install {packages})")


needs_cxx = needs("C++ compiler", "g++", CXX)
needs_fortran = needs("Fortran compiler", "gfortran", FC)
needs_make = needs("make", "make", shutil.which("make"))
needs_mpi = needs("MPI", "libopenmpi-dev openmpi-bin", shutil.which("mpicc") and shutil.which("mpiexec"))
needs_mpich = needs("MPICH", "libmpich-dev mpich", shutil.which("mpicc.mpich"))
needs_pkgconfig = needs("pkg-config", "pkg-config", shutil.which("pkg-config"))

#: What the header declares; the functions and statuses by their short names.
HEADER = header.read(PROJECT / "include" / "optplug.h")
FUNCTIONS = {name for name in HEADER.functions if name.startswith("opt_")}
STATUSES = {name: value for name, value in HEADER.statuses.items() if name.startswith("OPT_")}
README = (PROJECT / "README.md").read_text()


#: A Python with torch in it already, where ctest has such a one: see preloaded.py.
PYTHON = tuple(shlex.split(os.environ.get("OPTPLUG_TEST_PRELOADED", ""))) or (sys.executable,)

#: What CMake defines where a build has only to succeed, without what takes the compiler long.
QUICKLY = "CMAKE_BUILD_TYPE=Debug", "CMAKE_C_FLAGS_DEBUG=-DNDEBUG"

#: Ranks on a machine with fewer cores; and the only user of a container is root.
MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def program(language: str) -> str:
    """Return the README's first block of code in a language; "text" is what all the programs print."""
    return re.search(rf"```{language}\n(.*?)```", README, re.S)[1]


def run(
    program: str | pathlib.Path, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program, its environment changed so, and check that it lived and kept stderr quiet."""
    done = subprocess.run(
        [program, *arguments],
        env={**os.environ, "OPTPLUG_TEST_LIBRARY": optplug.library(), **(env or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stderr == ""
    return done


def asks_for_python(program: str | pathlib.Path) -> bool:
    """Say whether a program finds the library and that begins its start, most of which is torch's import."""
    python = "/nowhere/bin/python3"
    env = {**os.environ, "OPTPLUG_PYTHON": python}
    done = subprocess.run([program], env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return f"OPTPLUG_PYTHON: '{python}' is neither" in done.stdout + done.stderr


def main_of(library: str | pathlib.Path) -> tuple[str, ...]:
    """Return the command that runs a program, linked as a library, where Python is there already."""
    return *PYTHON, str(PROJECT / "tests" / "call_main.py"), str(library)


def run_main(library: str | pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run such a program, as `run` does."""
    return run(*main_of(library), *arguments)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python, which may fail."""
    return subprocess.run(
        [*PYTHON, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
