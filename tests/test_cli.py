"""python -m optplug."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

import hosts
import optplug


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optplug", *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_config_says_where_things_are():
    lines = command("config", "--includedir", "--libdir", "--library").stdout.splitlines()
    assert (pathlib.Path(lines[0]) / "optplug.h").is_file()
    assert pathlib.Path(lines[2]).is_file()
    assert pathlib.Path(lines[2]).parent == pathlib.Path(lines[1])
    assert lines[2] == optplug.library()


def test_config_says_where_matlab_and_octave_find_the_class():
    matlab, octave = command("config", "--matlab", "--octave").stdout.splitlines()
    assert matlab == octave == optplug.matlabdir()
    assert (pathlib.Path(matlab) / "+optplug" / "Optimizer.m").is_file()


def test_config_builds_a_program_that_runs(tmp_path):
    flags = command("config", "--cflags", "--libs").stdout.split()
    source = hosts.PROJECT / "tests" / "host.c"
    subprocess.run([hosts.CC, source, "-o", tmp_path / "host", *flags], check=True)
    assert hosts.run(tmp_path / "host").stdout.startswith("stepped\n")


def test_config_without_an_option_lists_them():
    done = command("config")
    assert done.returncode == 2
    assert "name what to print: --cflags, --libs" in done.stderr


def test_doctor_reports_what_a_host_gets():
    done = command("doctor")
    assert done.returncode == 0, done.stdout
    for name in ("library:", "python:", "libpython:", "torch:", "devices:", "All is well."):
        assert name in done.stdout


def test_doctor_says_what_to_do():
    done = command("doctor", OPTPLUG_PYTHON="/nowhere/python3", OPTPLUG_LIBPYTHON="/nowhere/libpython.so")
    assert done.returncode == 1
    assert "names '/nowhere/python3', which is not there\n   DO: unset OPTPLUG_PYTHON" in done.stdout
    assert "OPTPLUG_LIBPYTHON names '/nowhere/libpython.so'" in done.stdout
    assert f"library:            {optplug.library()}" in done.stdout
    assert "WRONG: a program that links optplug cannot start it" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["config"], ["doctor"], ["plot"]])
def test_every_command_has_help(arguments):
    done = command(*arguments, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m optplug")


def test_plot_draws_a_picture(tmp_path):
    table = tmp_path / "losses.csv"
    table.write_text("epoch,loss\n1,0.5\n2,0.25\n")
    done = command("plot", str(table))
    assert (done.returncode, done.stderr) == (0, "")
    picture = pathlib.Path(done.stdout.strip())
    assert picture == tmp_path / "losses.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_plot_of_no_table_is_an_error(tmp_path):
    table = tmp_path / "no.csv"
    assert "no.csv is no table of numbers" in command("plot", str(table)).stderr
    table.write_text("epoch\n1\n")
    assert "is no table of numbers" in command("plot", str(table)).stderr
    table.write_text("epoch,loss\n1,1\n")
    assert "cannot be written" in command("plot", str(table), "/nowhere/x.png").stderr
    table.write_text("epoch,loss\n1,much\n")
    done = command("plot", str(table))
    assert done.returncode == 1
    assert "could not convert string to float: 'much'" in done.stderr
