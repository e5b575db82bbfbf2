"""What a machine lacks is skipped, with what to install, and is found as soon as it is installed."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import hosts

# CMake, a C compiler, and what these call; Python is named below.
LEAST = "cmake ctest cc gcc as ld ar nm ranlib readelf objcopy objdump strip make ninja git sh env uname"
# What the tests can use besides: the programs, their Debian packages, and what is there with them.
MORE = {
    "Fortran": ("gfortran", "gfortran", {"test_fortran", "test_heat"}),
    "C++": ("c++ g++", "g++", {"test_cxx"}),
    "MPI": ("mpicc mpiexec", "libopenmpi-dev openmpi-bin", {"test_mpi"}),
    "Octave": ("octave-cli mkoctfile", "octave octave-dev", set()),
    "LLVM's OpenMP": ("clang", "clang libomp-dev", {"test_guest_libomp"}),
    "valgrind": ("valgrind", "valgrind", set()),
}


class Machine:
    """The project configured where PATH has no more than was installed."""

    def __init__(self, place: pathlib.Path):
        self.bin, self.build = place / "bin", place / "build"
        self.bin.mkdir()
        (self.build / "venv").mkdir(parents=True)
        for name in ("bin", "include", "lib", "pyvenv.cfg"):  # this environment, as if nothing were in it
            (self.build / "venv" / name).symlink_to(pathlib.Path(sys.prefix) / name)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPTPLUG_")}
        self.env = {**inherited, "PATH": str(self.bin)}
        self.install(LEAST)

    def install(self, programs: str) -> None:
        for program in programs.split():
            if not (self.bin / program).exists() and (found := shutil.which(program)):
                (self.bin / program).symlink_to(found)

    def run(self, *command: str | pathlib.Path, **env: str) -> str:
        done = subprocess.run(
            command,
            cwd=hosts.PROJECT,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def configure(self) -> str:
        """Return what CMake says, which is to look nowhere but on PATH."""
        python = f"-DPython_EXECUTABLE={pathlib.Path(sys._base_executable).resolve()}"
        only = "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF"
        return self.run("cmake", "-S", hosts.PROJECT, "-B", self.build, python, only)

    def tests(self) -> dict[str, dict[str, str]]:
        """Return ctest's tests, and the environment of each."""
        told = json.loads(self.run("ctest", "--test-dir", self.build, "--show-only=json-v1"))
        found = {}
        for test in told["tests"]:
            values = {p["name"]: p["value"] for p in test["properties"]}
            found[test["name"]] = dict(line.split("=", 1) for line in values.get("ENVIRONMENT", []))
        return found

    def targets(self) -> str:
        return self.run("cmake", "--build", self.build, "--target", "help")


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


def test_what_is_missing_is_skipped_with_what_to_install_and_found_once_it_is(bare):
    said = bare.configure()
    tests = bare.tests()
    for what, (_, packages, names) in MORE.items():
        assert re.search(rf"Skipping .*apt-get install {re.escape(packages)}\)", said), (what, said)
        assert not names & tests.keys()
    assert "Skipping the host with a BLAS of 64-bit integers" in said
    assert "NOTFOUND" not in "".join(value for env in tests.values() for value in env.values())
    assert "heat_inverse_demo" not in bare.targets()

    skips = bare.run(
        *(*hosts.PYTHON, "-m", "pytest", "-p", "no:cacheprovider"),
        *(f"tests/test_{name}.py" for name in ("docs", "fortran", "heat_inverse", "octave", "readme")),
        *("-k", "(fortran or cxx or octave or mpi or heat) and not reference"),  # which builds the site
        **tests["docs.py"],
    )
    for package in ("gfortran", "g++", "octave octave-dev", "libopenmpi-dev openmpi-bin"):
        assert re.search(rf"SKIPPED .*apt-get install {re.escape(package)}\)?$", skips, re.M), skips

    bare.install("mpicc octave-cli")  # a part of each, and what is no compiler
    (bare.bin / "gfortran").write_text("#!/bin/sh\nexit 1\n")
    (bare.bin / "gfortran").chmod(0o755)
    assert set(re.findall("Skipping.*", bare.configure())) == set(re.findall("Skipping.*", said))

    (bare.bin / "gfortran").unlink()
    for programs, _, _ in MORE.values():
        bare.install(programs)
    said = bare.configure()
    tests = bare.tests()
    for what, (programs, packages, names) in MORE.items():
        is_here = all(shutil.which(program) for program in programs.split())
        is_skipped = re.search(rf"Skipping .*apt-get install {re.escape(packages)}\)", said)
        assert not (is_here and is_skipped and what != "LLVM's OpenMP"), (what, said)
        assert not names or (names <= tests.keys()) == (not is_skipped), what
    assert ("heat_inverse_demo" in bare.targets()) == bool(shutil.which("gfortran"))
    if shutil.which("gfortran"):
        assert tests["fortran.py"]["OPTPLUG_TEST_FC"] == str(bare.bin / "gfortran")


def test_the_demo_installs_what_it_needs_and_the_tests_the_rest(bare):
    if not (bare.build / "Makefile").exists():  # when this test runs alone
        bare.configure()
    pinned = set(re.findall(r"^([\w-]+)==", (hosts.PROJECT / "constraints.txt").read_text(), re.M))
    build = ["cmake", "--build", bare.build]
    [names] = re.findall(
        "pip.* install -c [^ ]*venv.txt (.*)", bare.run(*build, "--target", "demo", "--", "-n")
    )
    assert {"torch", "matplotlib"} < set(names.split()) < pinned
    assert not set(names.split()) & {"pytest", "ruff", "pre-commit", "mkdocs", "cibuildwheel"}
    (bare.build / "venv" / "pinned.stamp").touch()  # that is done
    assert re.findall("pip.* install -r [^ ]*venv.txt", bare.run(*build, "--target", "tools", "--", "-n"))
