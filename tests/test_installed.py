"""Projects of other people, in folders of their own, that find what is installed as theirs do."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

import hosts
import optplug

OUTPUT = hosts.program("text")
PACKAGE = pathlib.Path(optplug.__file__).parent
VERSION = optplug.__version__
WARNINGS = "-Wall -Wextra -Werror"
QUICKLY = [f"-D{setting}" for setting in hosts.QUICKLY]


def run(*command: str | pathlib.Path, cwd: pathlib.Path, **env: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> pathlib.Path:
    """What cmake --install makes, for an existing Python with torch, without the network."""
    place = tmp_path_factory.mktemp("prefix")
    build, folder = place / "build", place / "a prefix"
    offline = {"PIP_NO_INDEX": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    options = f"-DOPTPLUG_VENV=OFF -DPython_EXECUTABLE={sys.executable}".split() + QUICKLY
    if shutil.which("ninja"):  # which takes less time than make, CMake's own choice below
        options += ["-G", "Ninja"]
    run("cmake", "-S", hosts.PROJECT, "-B", build, *options, cwd=place, **offline)
    run("cmake", "--build", build, cwd=place, **offline)
    run("cmake", "--install", build, "--prefix", folder, cwd=place, **offline)
    nowhere = {"OPTPLUG_PYTHON": "/nowhere/python3", "PYTHONPATH": str(build / "site")}
    done = subprocess.run(
        [sys.executable, "-m", "optplug", "doctor", "--json"],
        cwd=place,
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)  # a program could start from the build folder too, if it had a Python
    assert found["host"]["library"] == str(build / "site/optplug/lib" / pathlib.Path(optplug.library()).name)
    assert all("OPTPLUG_PYTHON" in wrong["what"] for wrong in found["problems"] if wrong["level"] == "WRONG")
    shutil.rmtree(build)
    return folder


@pytest.fixture(params=["the package", "a prefix"])
def installed(request) -> pathlib.Path:
    """Two prefixes: the package that pip has installed, and what cmake --install makes."""
    return PACKAGE if request.param == "the package" else request.getfixturevalue("prefix")


@pytest.fixture
def scratch(tmp_path) -> Iterator[pathlib.Path]:
    """A project with the README's program in each language; what is built in it names no source of ours."""
    for name, language in {"main.c": "c", "main.cpp": "cpp", "main.f90": "fortran"}.items():
        (tmp_path / name).write_text(hosts.program(language))
    yield tmp_path
    names = ("bindings", "cmake", "csrc", "include", "python")
    sources = [f"{hosts.PROJECT / name}/".encode() for name in names]
    for path in tmp_path.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            assert [source for source in sources if source in content] == [], path


@hosts.needs_make
@hosts.needs_pkgconfig
def test_a_makefile_with_pkg_config(scratch, installed):
    (scratch / "Makefile").write_text(
        "CFLAGS += $(shell pkg-config --cflags optplug)\n"
        "LDLIBS += $(shell pkg-config --libs optplug)\n"
        "main: main.c\n"
    )
    search = {"PKG_CONFIG_PATH": str(installed / "lib" / "pkgconfig")}
    run("make", f"CC={hosts.CC} -std=c99 {WARNINGS}", cwd=scratch, **search)
    if installed == PACKAGE:  # as fpm's program, which prints its numbers
        assert hosts.asks_for_python(scratch / "main")
    else:
        assert run("./main", cwd=scratch) == OUTPUT
    assert run("pkg-config", "--modversion", "optplug", cwd=scratch, **search).strip() == VERSION


#: What a project in each language that is here links: its program, and the target.
LINKS = {
    "C": ("main.c", "optplug::optplug"),
    **({"CXX": ("main.cpp", "optplug::cxx")} if hosts.CXX else {}),
    **({"Fortran": ("main.f90", "optplug::fortran")} if hosts.FC else {}),
}


def cmake_project(scratch: pathlib.Path, find: str, *languages: str) -> list[pathlib.Path]:
    """Write a project with a program in each language, and return where CMake will build the programs."""
    lines = [
        "cmake_minimum_required(VERSION 3.25)",
        f"project(scratch LANGUAGES {' '.join(sorted({'C', *languages}))})",
        find,
    ]
    for language in languages:
        source, target = LINKS[language]
        lines.append(f"add_executable(in_{language} {source})")
        lines.append(f"target_link_libraries(in_{language} PRIVATE {target})")
    (scratch / "CMakeLists.txt").write_text("\n".join(lines))
    return [scratch / "build" / f"in_{language}" for language in languages]


def test_cmake_with_find_package(scratch, installed):
    find = f"find_package(optplug {VERSION} CONFIG REQUIRED)\nfind_package(optplug CONFIG REQUIRED)"
    mains = cmake_project(scratch, find, *LINKS)
    flags = [f"-DCMAKE_{language}_FLAGS={WARNINGS}" for language in LINKS]
    run("cmake", "-B", "build", f"-DCMAKE_PREFIX_PATH={installed}", *flags, cwd=scratch)
    # Each is built once: C's in the package, the others in the prefix.  What they print is seen where make
    # builds C's, FetchContent C++'s and fpm Fortran's.
    mains = mains[:1] if installed == PACKAGE else mains[1:] or mains
    run("cmake", "--build", "build", "--target", *(main.name for main in mains), cwd=scratch)
    for main in mains:
        assert hosts.asks_for_python(main)
    for name in ("cxx", "fortran"):  # the pages show the same lines
        text = (hosts.PROJECT / f"docs/first-steps/{name}.md").read_text()
        lines = "find_package(optplug CONFIG REQUIRED)\ntarget_link_libraries(main PRIVATE optplug::"
        assert f"```cmake\n{lines}{name})\n```" in text
    if "in_Fortran" in [main.name for main in mains]:
        assert list((scratch / "build").glob("optplug-fortran/*-*/optplug.mod"))


def test_cmake_finds_it_by_what_config_prints_and_refuses_another_version(scratch):
    folder = run(sys.executable, "-m", "optplug", "config", "--cmakedir", cwd=scratch).strip()
    cmake_project(scratch, "find_package(optplug CONFIG REQUIRED)", "C")
    run("cmake", "-B", "build", f"-DCMAKE_PREFIX_PATH={folder}", cwd=scratch)
    cmake_project(scratch, "find_package(optplug 99 CONFIG REQUIRED)", "C")
    command = ["cmake", "-B", "build", f"-DCMAKE_PREFIX_PATH={folder}", "--fresh"]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"version: {VERSION}" in done.stderr


@hosts.needs_cxx
def test_cmake_with_fetchcontent(scratch, sdist):
    """As the page on C++ has it; Python is named by a script that starts it, as pyenv's are."""
    shim = scratch / "shim"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    shim.chmod(0o755)
    shutil.unpack_archive(sdist, scratch / "source", filter="data")
    [source] = (scratch / "source").iterdir()
    page = (hosts.PROJECT / "docs/first-steps/cxx.md").read_text()
    find = re.search(r"^include\(FetchContent\)\n.*\n.*\)$", page, re.M)[0]
    find = find.replace("/path/to/optplug", str(source))
    [main] = cmake_project(scratch, find, "CXX")
    run("cmake", "-B", "build", f"-DPython_EXECUTABLE={shim}", *QUICKLY, cwd=scratch)
    run("cmake", "--build", "build", cwd=scratch)
    assert run(main, cwd=scratch) == OUTPUT


def test_a_python_without_cffi_is_refused_when_configuring_with_the_line_to_run(tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    command = ["cmake", "-S", hosts.PROJECT, "-B", tmp_path / "build", "-DOPTPLUG_VENV=OFF"]
    done = subprocess.run(
        [*command, f"-DPython_EXECUTABLE={python}"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert re.search(rf"{python} -m pip install\s+'cffi>=[\d.]+'", done.stderr), done.stderr


@hosts.needs_fortran
def test_fpm_takes_it_as_a_dependency(scratch):
    config = run(sys.executable, "-m", "optplug", "config", "--libs", "--fortran", cwd=scratch)
    flags, folder = config.splitlines()
    path = os.path.relpath(folder, scratch)
    (scratch / "fpm.toml").write_text(f'name = "host"\n[dependencies]\noptplug = {{ path = "{path}" }}\n')
    (scratch / "app").mkdir()
    shutil.move(scratch / "main.f90", scratch / "app")
    fpm = pathlib.Path(sys.executable).parent / "fpm"
    said = run(fpm, "run", "--compiler", hosts.FC, "--link-flag", flags, cwd=scratch)
    assert OUTPUT in said


def test_the_environment_is_chosen_at_run_time(scratch, prefix):
    """A module on a cluster: a program from one place, PyTorch from another than the recorded Python.

    That one runs the program that a Makefile makes above.
    """
    (scratch / "elsewhere").mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", "elsewhere", cwd=scratch)
    flags = [f"-I{prefix}/include", f"-L{prefix}/lib", "-loptplug", f"-Wl,-rpath,{prefix}/lib"]
    run(hosts.CC, "main.c", "-o", "main", *flags, cwd=scratch)
    bare = {"OPTPLUG_PYTHON": str(scratch / "elsewhere" / "bin" / "python3")}
    done = subprocess.run(
        ["./main"], cwd=scratch, env={**os.environ, **bare}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "No module named 'torch'" in done.stderr
    package = next(prefix.glob("lib/python*/site-packages"))
    python = run(
        sys.executable, "-c", "import optplug; print(optplug.__file__)", cwd=scratch, PYTHONPATH=str(package)
    )
    assert python.startswith(str(package))
