"""What the README and headers show is what happens; test_installed.py runs what the README compiles."""

from __future__ import annotations

import functools
import pathlib
import re
import subprocess
import sys
import textwrap

import hosts
from hosts import program
from optplug import ctypes_api

OUTPUT = program("text")


@functools.cache
def config(*options: str) -> list[str]:
    command = [sys.executable, "-m", "optplug", "config", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


C99 = hosts.CC, "-std=c99"


def build_library(
    source: str, folder: pathlib.Path, name: str = "main.c", compiler: tuple[str, ...] = C99
) -> None:
    """Compile a program as `build` does, but as a library, for `hosts.run_main`."""
    build(source, folder, name, (*compiler, "-shared", "-fPIC"))


def build(source: str, folder: pathlib.Path, name: str = "main.c", compiler: tuple[str, ...] = C99) -> None:
    """Compile a program as the README says, but with all warnings."""
    (folder / name).write_text(source)
    command = [*compiler, "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    flags = config("--cflags", "--libs")
    subprocess.run([*command, folder / name, "-o", folder / "main", *flags, "-lm"], check=True, cwd=folder)


def test_the_readmes_program_in_python_prints_what_the_readme_says():
    assert hosts.run(*hosts.PYTHON, "-c", program("python")).stdout == OUTPUT


def test_the_headers_program_runs(tmp_path):
    header = (hosts.PROJECT / "include" / "optplug.h").read_text()
    lines = re.search(r"^ \*     double w(?:.*\n \*     )+.*opt_free.*$", header, re.M)[0]
    body = lines.replace(" *     ", "    ")
    program = (
        "#include <stdio.h>\n#include <optplug.h>\n"
        "static void gradient(const double *w, double *dw)\n"
        "{\n    for (int i = 0; i < 3; i++)\n        dw[i] = 2 * (w[i] - i);\n}\n"
        f"int main(void)\n{{\n{body}\n"
        '    printf("%.1f %.1f %.1f\\n", w[0], w[1], w[2]);\n    return 0;\n}\n'
    )
    build_library(program, tmp_path)
    assert hosts.run_main(tmp_path / "main").stdout == "0.0 1.0 2.0\n"


def example(path: str, margin: str) -> str:
    """Return the first indented block of a file's first comment."""
    text = (hosts.PROJECT / path).read_text()
    block = re.search(rf"(?:^{re.escape(margin)}    .*\n|^{re.escape(margin.rstrip())}\n)+", text, re.M)[0]
    return "\n".join(line[len(margin) :] for line in block.splitlines())


@hosts.needs_cxx
def test_the_cxx_headers_program_runs(tmp_path):
    source = (
        "#include <cstdio>\n#include <optplug.hpp>\n"
        "static void gradient(const std::vector<double> &w, std::vector<double> &dw)\n"
        "{\n    for (int i = 0; i < 3; i++)\n        dw[i] = 2 * (w[i] - i);\n}\n"
        f"int main()\n{{\n{example('include/optplug.hpp', ' * ')}\n"
        '    std::printf("%.1f %.1f %.1f\\n", w[0], w[1], w[2]);\n}\n'
    )
    build_library(source, tmp_path, "main.cpp", (hosts.CXX, "-std=c++17"))
    assert hosts.run_main(tmp_path / "main").stdout == "0.0 1.0 2.0\n"


@hosts.needs_fortran
def test_the_fortran_modules_program_runs(tmp_path):
    lines = example("bindings/fortran/optplug.f90", "!> ").replace("\n\n", "\n    integer :: i\n\n", 1)
    source = (
        f"program main\n  use, intrinsic :: iso_fortran_env, only: real64\n{lines}\n"
        '  print "(3f4.1)", w\ncontains\n  subroutine gradient(w, dw)\n'
        "    real(real64), intent(in) :: w(3)\n    real(real64), intent(out) :: dw(3)\n"
        "    dw = 2 * (w - [0, 1, 2])\n  end subroutine\nend program\n"
    )
    module = f"{config('--fortran')[0]}/optplug.f90"
    build_library(source, tmp_path, "main.f90", (hosts.FC, module))
    assert hosts.run_main(tmp_path / "main").stdout == " 0.0 1.0 2.0\n"


def test_the_program_of_ctypes_api_runs():
    lines = re.search(r"::\n\n((?:    .*\n|\n)+)", ctypes_api.__doc__)[1]
    start = "import numpy as np\nfrom optplug.ctypes_api import Optimizer\n"
    gradient = "def gradient(w):\n    return 2 * (w - np.arange(3))\n"
    source = f"{start}{gradient}{textwrap.dedent(lines)}print(w.round(1))\n"
    assert hosts.run(*hosts.PYTHON, "-c", source).stdout == "[0. 1. 2.]\n"


def test_the_programs_of_the_page_on_checkpoints_go_on_alike(tmp_path, monkeypatch):
    page = (hosts.PROJECT / "docs" / "checkpoints.md").read_text()
    build_library(re.search(r"```c\n(.*?)```", page, re.S)[1], tmp_path)
    monkeypatch.chdir(tmp_path)
    begun = hosts.run_main("./main").stdout
    python = hosts.run(*hosts.PYTHON, "-c", re.search(r"```python\n(.*?)```", page, re.S)[1]).stdout
    restarted = hosts.run_main("./main", "restart").stdout
    assert python == restarted != begun


def test_the_program_of_the_page_on_checkpoints_finds_its_own_words(tmp_path, monkeypatch):
    page = (hosts.PROJECT / "docs" / "checkpoints.md").read_text()
    build_library(re.findall(r"```c\n(.*?)```", page, re.S)[1], tmp_path)
    monkeypatch.chdir(tmp_path)
    output = hosts.run_main("./main").stdout + hosts.run_main("./main", "words.pt").stdout
    assert output == re.search(r"```text\n(.*?)```", page, re.S)[1]


def test_commands_in_the_readme_are_presets():
    presets = (hosts.PROJECT / "CMakePresets.json").read_text()
    for name in re.findall(r"cmake --workflow --preset (\w+)", hosts.README):
        assert f'"name": "{name}"' in presets
