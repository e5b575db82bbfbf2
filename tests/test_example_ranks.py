"""The examples over ranks, digits_ranks.c and heat_inverse_ranks.f90, drawn as for their pages.

Their ranks wait for each other by spinning, so ctest runs nothing beside them; only those of the plate's
picture start as a user's do.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

import hosts
from test_digits import DATA, DIGITS

sys.path.append(str(hosts.PROJECT / "examples"))
import pictures

DIGITS_RANKS = os.environ.get("OPTPLUG_TEST_DIGITS_RANKS", "")
HEAT_RANKS = os.environ.get("OPTPLUG_TEST_HEAT_RANKS", "")
pytestmark = hosts.needs("MPI", "libopenmpi-dev openmpi-bin", DIGITS_RANKS)
needs_heat = hosts.needs("MPI for Fortran", "gfortran libopenmpi-dev", HEAT_RANKS)


def on_ranks(ranks: int, library: str, *arguments: str) -> list[str]:
    """Return what so many ranks of a program print."""
    command = "mpiexec", "-n", str(ranks), *hosts.main_of(library)
    return hosts.run(*command, *arguments, env=hosts.MPI_ENVIRONMENT).stdout.splitlines()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in {**hosts.MPI_ENVIRONMENT, "CC": hosts.CC, "FC": hosts.FC or ""}.items():
        monkeypatch.setenv(name, value)


# ---- digits ----


def read_right(line: str) -> float:
    """Return how many digits in a hundred the last weights have read right."""
    return float(re.search(r": ([\d.]+) % of 359", line)[1])


def test_any_number_of_ranks_learns_what_one_process_does(tmp_path, capfd, monkeypatch):
    """Their sums are in other orders, and rounding errors grow from step to step."""
    spec = "AdamW(lr=2e-3)"
    start = pictures.run
    monkeypatch.setattr(pictures, "LIBS", [*pictures.LIBS, "-shared", "-fPIC"])
    monkeypatch.setattr(
        pictures, "run", lambda command, *given: start([*command[:-1], *hosts.main_of(command[-1])], *given)
    )
    pictures.digits_ranks(most=2).savefig(tmp_path / "picture.png")
    drawn = capfd.readouterr().out.splitlines()
    runs = {ranks: drawn[32 * ranks - 32 : 32 * ranks] for ranks in (1, 2)}
    runs[3] = on_ranks(3, DIGITS_RANKS, spec, DATA, "losses3.csv")
    one = hosts.run(DIGITS, spec, DATA, "losses.csv").stdout.splitlines()
    expected = pictures.read(tmp_path / "losses.csv")["training loss"]
    losses = pictures.read(tmp_path / "losses3.csv")["training loss"]
    assert losses[:3] == pytest.approx(expected[:3], rel=1e-4)
    for ranks, lines in runs.items():
        assert len(lines) == 32
        assert [line[:28] for line in lines[:3]] == [line[:28] for line in one[:3]]
        assert lines[30].startswith(f"{spec} on {ranks} ranks: ")
        assert min(read_right(lines[30]), read_right(one[30])) > 95
    assert losses[-1] < losses[0] / 10


def test_a_mistake_ends_all_ranks():
    command = ["mpiexec", "-n", "2", *hosts.main_of(DIGITS_RANKS), "Adm()", DATA]
    done = subprocess.run(command, capture_output=True, text=True, timeout=hosts.PATIENCE, check=False)
    assert done.returncode == 1
    assert "digits_ranks: spec 'Adm()': no optimizer 'Adm'" in done.stderr


# ---- the conductivity of a plate ----


def losses_in(path: str) -> list[float]:
    """Return the losses that a run has written, Adam's and then LBFGS's."""
    table = pictures.read(pathlib.Path(path))
    return [a if a == a else b for a, b in zip(table["Adam"], table["LBFGS"], strict=True)]


@needs_heat
def test_strips_have_the_misfit_and_the_gradient_of_the_plate():
    said = on_ranks(2, os.environ["OPTPLUG_TEST_HEAT_GRADIENT"])
    assert re.fullmatch(r"ok: the gradient is right to +[\d.]+E-\d+", said[0])


@needs_heat
def test_any_number_of_ranks_finds_the_field_and_a_killed_inversion_goes_on_on_another(tmp_path, capfd):
    pictures.heat_inverse_ranks(ranks=2, steps=("4", "2")).savefig(tmp_path / "picture.png")
    (adam, _, last), expected = capfd.readouterr().out.splitlines(), losses_in("losses.csv")
    assert adam.startswith("Adam(lr=0.1): after 4 evaluations the misfit is ")
    assert last.startswith("on 2 ranks: misfit ")

    files = "killed.csv", "losses3.csv", "restart.pt"
    command = ["mpiexec", "-n", "3", *hosts.main_of(HEAT_RANKS), *files, "4"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + hosts.PATIENCE
        while not (tmp_path / "restart.pt").exists():
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.terminate()
    assert not (tmp_path / "killed.csv").exists()
    assert losses_in("losses3.csv")[:14] == pytest.approx(expected[:14], rel=1e-9)

    said, _, last = on_ranks(1, HEAT_RANKS, "field.csv", "losses1.csv", "restart.pt")
    steps = re.fullmatch(r"went on from restart\.pt, after (.+) steps", said)[1]
    assert 1 <= int(steps) < 8
    misfit, error = re.fullmatch(r"on 1 ranks: misfit +(.+), relative error +(.+)", last).groups()
    assert float(misfit) < 1.1
    assert float(error) < 0.3
