"""python -m optplug doctor: what a host would get, what is wrong, and what to do."""

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
import optplug
from command_line import SITE, command
from optplug import surroundings
from optplug.tools import doctor


def test_doctor_reports_what_a_host_gets():
    done = command("doctor")
    assert done.returncode == 0, done.stdout
    assert re.search(r"steps are made: +(direct|stable|recorded|Python)\n", done.stdout)
    for name in ("library:", "python:", "libpython:", "torch:", "devices:", "All is well."):
        assert name in done.stdout


def test_doctor_says_what_to_do():
    done = command("doctor", OPTPLUG_PYTHON="/nowhere/python3", OPTPLUG_LIBPYTHON="/nowhere/libpython.so")
    assert done.returncode == 1
    assert "names '/nowhere/python3', which does not exist\n   DO: unset OPTPLUG_PYTHON" in done.stdout
    assert "OPTPLUG_LIBPYTHON names '/nowhere/libpython.so'" in done.stdout
    assert f"library:            {optplug.library()}" in done.stdout
    assert (
        "WRONG: a program that links optplug cannot start it: OPTPLUG_PYTHON: '/nowhere/python3'"
        in done.stdout
    )
    assert f"\n   DO: export OPTPLUG_PYTHON={sys.executable}\n" in done.stdout


def test_doctor_notes_what_may_become_wrong(tmp_path, bare):
    """All that may, in one start."""
    (tmp_path / "libiomp5.so").touch()
    allocator = hosts.PROGRAMS / "allocator.so"
    preload = {"LD_PRELOAD": str(allocator)} if allocator.exists() else {}  # with glibc alone
    (bare / "more.pth").write_text(f"{SITE}\n")
    another = bare.parents[2] / "bin/python"
    limit = max(2_000_000, int(1.1 * surroundings.memory(os.cpu_count() or 1)[0]) >> 10)
    limits = "" if sys.platform == "darwin" else f"ulimit -s 128; ulimit -v {limit}; "
    limited = tmp_path / "limited"
    limited.write_text(f'#!/bin/sh\n{limits}exec {sys.executable} "$@"\n')
    limited.chmod(0o755)
    done = command(
        "doctor",
        "--json",
        python=limited,
        OPTPLUG_PYTHON=str(another),
        PYTHONPATH="/nowhere",
        LD_LIBRARY_PATH=str(tmp_path),
        SLURM_NTASKS="4",
        OMP_NUM_THREADS="x",
        **preload,
    )
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["host"]["optplug"]) == (0, True, optplug.__version__)
    assert {problem["level"] for problem in found["problems"]} == {"NOTE"}
    notes = {problem["what"]: problem["do"] for problem in found["problems"]}
    expected = {
        "PYTHONPATH is set, which programs other than Python ignore": "unset PYTHONPATH",
        "OMP_NUM_THREADS": "OMP_ variables",
        f"LD_LIBRARY_PATH puts {tmp_path}/libiomp5.so ahead of": "without LD_LIBRARY_PATH",
    }
    expected[f"OPTPLUG_PYTHON makes programs use {another}, but this is {sys.executable}"] = "unset OPTPLUG_"
    if limits:
        expected["the stack is limited to 128 KB, and torch may need 256 KB"] = "ulimit -s 256"
        expected[f"memory is limited to {limit} KB"] = "ulimit -v"
    if preload:
        expected[f"malloc comes from {allocator}, so a program with its own BLAS"] = "without it if LBFGS"
    if int(found["host"]["threads"]) > 1:
        expected["one of 4 processes (SLURM_NTASKS)"] = 'opt_init("num_threads=1")'
    for what, do in expected.items():
        assert any(what in said and do in remedy for said, remedy in notes.items()), (what, notes)
    assert len(notes) == len(expected)


@pytest.mark.skipif(sys.platform == "darwin", reason="limits of Linux")
def test_doctor_says_what_memory_torch_needs_where_its_import_would_end_the_process():
    limit = (surroundings.memory(0)[0] >> 10) - 100_000
    script = f"ulimit -v {limit}; OMP_NUM_THREADS=1 exec {sys.executable} -m optplug doctor"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 1
    said = r"WRONG: .*: PyTorch needs \d+ MiB of memory to start.*\n   DO: raise the limit \(ulimit -v"
    assert re.search(said, done.stdout), done.stdout


def test_doctor_sees_a_library_that_comes_before(tmp_path):
    copy = shutil.copy(optplug.library(), tmp_path)
    name = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"
    done = command("doctor", **{name: str(tmp_path)})
    assert done.returncode == 1
    assert (
        f"WRONG: a program that links {optplug.library()} gets {copy}\n   DO: remove its folder"
        in done.stdout
    )
    assert f"'{copy}' is not in an environment of Python" in done.stdout


def test_doctor_names_what_is_not_installed_too_old_or_missing(bare):
    python = bare.parents[2] / "bin/python"
    (bare / "numpy-1.2.dist-info").mkdir()
    (bare / "numpy-1.2.dist-info/METADATA").write_text("Name: numpy\nVersion: 1.2.1rc3\n")
    (bare / "optplug/include/optplug.h").unlink()
    done = command("doctor", python=python)
    assert done.returncode == 1
    wrong = dict(part.split("\n   DO: ") for part in done.stdout.split("\n\n")[1:-1])
    assert f"{python} -m pip install 'torch>=" in wrong[f"WRONG: torch is not installed in {bare.parents[2]}"]
    assert "--upgrade 'numpy>=" in next(
        do for what, do in wrong.items() if "numpy 1.2.1rc3 is too old" in what
    )
    assert "--force-reinstall" in wrong[f"WRONG: {bare}/optplug/include/optplug.h is missing"]
    [cannot_start] = [what for what in wrong if "cannot start it: " in what]
    assert "No module named 'torch'" in cannot_start
    assert re.fullmatch(r"/\S+ -m pip install 'torch>=[\d.]+'", wrong[cannot_start])
    assert done.stdout.endswith("\n4 problem(s).\n")


def test_doctors_commands_work_where_a_path_has_blanks(bare):
    folder = bare.parents[2].rename(bare.parents[3] / "two words")
    done = command("doctor", python=folder / "bin/python")
    assert len(re.findall(rf"DO: '{folder}/bin/python[\d.]*' -m pip install 'torch>=", done.stdout)) == 2
    done = command("doctor", python=folder / "bin/python", OPTPLUG_PYTHON="/nowhere/python3")
    assert f"DO: export OPTPLUG_PYTHON='{folder}/bin/python'\n" in done.stdout


def test_doctor_survives_a_torch_that_ends_the_process(bare):
    (bare / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)")
    done = command("doctor", python=bare.parents[2] / "bin/python")
    assert done.returncode == 1
    assert "WRONG: a program that links optplug is ended by SIGILL when it starts optplug" in done.stdout
    assert "optplug-probe; torch alone fails too" in done.stdout


def test_doctor_waits_for_so_long_and_no_longer(bare, monkeypatch, capsys):
    (bare / "torch.py").write_text("import time\ntime.sleep(60)")
    monkeypatch.setattr(doctor, "_PROBE", bare / "optplug/bin/optplug-probe")
    monkeypatch.setattr(doctor, "_PATIENCE", 1)
    assert doctor.main(as_json=False) == 1
    assert "WRONG: a program that links optplug had not started it after 1 s" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "darwin", reason="LD_PRELOAD")
def test_doctor_says_which_package_has_the_libpython_that_is_missing():
    done = command("doctor", LD_PRELOAD=str(hosts.PROGRAMS / "no_libpython.so"))
    assert done.returncode == 1
    assert "cannot start it: no libpython3" in done.stdout
    assert re.search(r"DO: apt-get install libpython3\.\d+ ", done.stdout)


def test_doctor_sees_a_library_of_another_version(bare):
    library = bare / "optplug/lib" / pathlib.Path(optplug.library()).name
    version = optplug.__version__.encode()
    library.write_bytes(library.read_bytes().replace(version + b"\0", b"9" * len(version) + b"\0"))
    done = command("doctor", python=bare.parents[2] / "bin/python", OPTPLUG_PYTHON=sys.executable)
    assert done.returncode == 1
    assert "has a different version from the package optplug" in done.stdout


def test_doctor_sees_what_prints_and_another_optplug(bare):
    (bare / "more.pth").write_text(f"{SITE}\nimport sys; print('hello: I am here'); sys.stdout.flush()\n")
    done = command("doctor", python=bare.parents[2] / "bin/python")
    assert "into the host's output: 'hello: I am here" in done.stdout
    assert f"NOTE: there is another optplug in {SITE}, and this one is in {bare}\n" in done.stdout


def test_doctor_knows_a_package_that_was_copied_out_of_its_environment(tmp_path):
    for name in ("optplug", *(path.name for path in SITE.glob("optplug-*.dist-info"))):
        shutil.copytree(SITE / name, tmp_path / name)
    done = command("doctor", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    library = tmp_path / "optplug/lib" / pathlib.Path(optplug.library()).name
    assert f"'{library}' is not in an environment of Python" in done.stdout
    assert f"there is another optplug in {SITE}, and this one is in {tmp_path}" in done.stdout
    assert "PYTHONPATH" not in done.stdout  # a module file has to set it to the package's own folder


def test_doctor_says_that_the_library_is_lost(bare):
    (bare / "optplug/lib" / pathlib.Path(optplug.library()).name).unlink()
    done = command("doctor", python=bare.parents[2] / "bin/python")
    assert done.returncode == 1
    assert re.search(r"WRONG: \S+/liboptplug\.\w+ is missing\n   DO: install optplug again: ", done.stdout)
