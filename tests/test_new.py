"""optplug new: a project that builds and runs as it says, and nothing where something is already."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import hosts

OCTAVE = os.environ.get("OPTPLUG_TEST_OCTAVE")


def new(language: str, folder: str, where: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [pathlib.Path(sys.executable).parent / "optplug", "new", language, folder]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("language", "folder", "spec"),
    [
        ("c", "some folder/my-fit", "'RMSprop(lr=0.01)'"),
        pytest.param("cpp", "fit", "", marks=hosts.needs_cxx),
        pytest.param("fortran", "fit", "", marks=hosts.needs_fortran),
        pytest.param(
            "octave", "fit", "'RAdam(lr=0.05)'", marks=hosts.needs("Octave", "octave octave-dev", OCTAVE)
        ),
    ],
)
def test_what_it_says_builds_and_runs_the_program(tmp_path, language, folder, spec):
    made = new(language, folder, tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    script = " && ".join(line.strip() for line in made.stdout.splitlines() if line.startswith("    "))
    script = script.replace("octave ", f"{OCTAVE} --no-history --norc --no-gui ")
    quickly = {} if language == "c" else {"CMAKE_BUILD_TYPE": "Debug"}  # C's is built as who follows it does
    done = subprocess.run(
        ["/bin/sh", "-c", f"{script} {spec}"],
        cwd=tmp_path,
        env={**os.environ, **quickly},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines()[-1].startswith("1000  loss")
    assert done.stdout.split()[-2:] == ["2.000000", "0.500000"]


@pytest.mark.parametrize(
    ("folder", "said"),
    [("full", "something is there already"), ("file", "something is there already"), ("1st", "use letters")],
)
def test_it_leaves_what_is_there_as_it_is(tmp_path, folder, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "main.c").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    done = new("c", folder, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"DIR '{folder}': " in done.stderr
    assert said in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "full" / "main.c").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root writes everywhere")
def test_where_it_cannot_write_it_says_so(tmp_path):
    tmp_path.chmod(0o555)
    command = [pathlib.Path(sys.executable).parent / "optplug", "new", "c", "fit"]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Permission denied: 'fit'" in done.stderr
