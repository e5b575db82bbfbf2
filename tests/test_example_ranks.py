"""The examples over ranks: digits_ranks.c, heat_inverse_ranks.f90 (test_heat_ranks.f90 checks its gradient).

Their ranks wait for each other by spinning, so ctest runs nothing beside them.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import time

import pytest

import hosts
from test_digits import DATA, DIGITS
from test_examples import draw, numbers

DIGITS_RANKS = os.environ.get("OPTPLUG_TEST_DIGITS_RANKS", "")
HEAT_RANKS = os.environ.get("OPTPLUG_TEST_HEAT_RANKS", "")
pytestmark = hosts.needs("MPI", "libopenmpi-dev openmpi-bin", DIGITS_RANKS)
needs_heat = hosts.needs("MPI for Fortran", "gfortran libopenmpi-dev", HEAT_RANKS)


def test_any_number_of_ranks_learns_what_one_process_does(tmp_path):
    """Their sums are in other orders, and rounding errors grow from step to step."""
    spec = "SGD(lr=0.1, momentum=0.9)"
    hosts.run(DIGITS, spec, DATA, str(tmp_path / "0.csv"))
    for ranks in (1, 3):
        where = str(tmp_path / f"{ranks}.csv")
        mpiexec = ("mpiexec", "-n", str(ranks), DIGITS_RANKS)
        lines = hosts.run(*mpiexec, spec, DATA, where, env=hosts.MPI_ENVIRONMENT).stdout.splitlines()
        assert len(lines) == 32
        assert float(re.search(rf"on {ranks} ranks: ([\d.]+) % of 359", lines[30])[1]) > 95
    first, *others = [
        [
            float(row["training loss"])
            for row in csv.DictReader((tmp_path / f"{k}.csv").read_text().splitlines())
        ]
        for k in (0, 1, 3)
    ]
    for losses in others:
        assert losses[:3] == pytest.approx(first[:3], rel=1e-4)
        assert losses[-1] < first[0] / 10


def test_a_mistake_ends_all_ranks():
    command = ["mpiexec", "-n", "2", DIGITS_RANKS, "Adm()", DATA]
    done = subprocess.run(
        command,
        env=os.environ | hosts.MPI_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=hosts.PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "digits_ranks: spec 'Adm()': no optimizer 'Adm'" in done.stderr


def test_digits_are_read_by_many_ranks(tmp_path):
    read = re.findall(r"on (\d) ranks: ([\d.]+) % of", draw(tmp_path, "digits_ranks")["digits_ranks"])
    assert [ranks for ranks, _ in read] == ["1", "2", "3", "4"]
    assert all(float(percent) > 95 for _, percent in read)


@needs_heat
def test_any_number_of_ranks_finds_the_same_field(tmp_path):
    lines, losses = [], []
    for ranks in (1, 2):
        program = HEAT_RANKS
        files = [str(tmp_path / f"{name}{ranks}.csv") for name in ("field", "losses")]
        done = hosts.run("mpiexec", "-n", str(ranks), program, *files, env=hosts.MPI_ENVIRONMENT)
        lines.append(done.stdout.splitlines())
        _, *rows = (tmp_path / f"losses{ranks}.csv").read_text().splitlines()
        losses.append([float("".join(row.split(",")[1:])) for row in rows])
    one, two = lines
    assert one[0] == two[0]
    assert losses[1][:50] == pytest.approx(losses[0][:50], rel=1e-9)
    for ranks, line in ((1, one[-1]), (2, two[-1])):
        misfit, error = re.fullmatch(rf"on {ranks} ranks: misfit +(.+), relative error +(.+)", line).groups()
        assert float(misfit) < 1.1
        assert float(error) < 0.3


@needs_heat
def test_a_killed_inversion_goes_on_on_another_number_of_ranks(tmp_path):
    restart = tmp_path / "restart.pt"
    files = [str(tmp_path / "field.csv"), str(tmp_path / "losses.csv"), str(restart)]
    command = ["mpiexec", "-n", "2", HEAT_RANKS, *files]
    with subprocess.Popen(
        command, env=os.environ | hosts.MPI_ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        deadline = time.monotonic() + hosts.PATIENCE
        while not restart.exists():
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.terminate()
    assert not (tmp_path / "field.csv").exists()
    command[2] = "1"
    said, _, last = hosts.run(*command, env=hosts.MPI_ENVIRONMENT).stdout.splitlines()
    steps = re.fullmatch(f"went on from {restart}, after (.+) steps", said)[1]
    assert 1 <= int(steps) < 8
    misfit, error = re.fullmatch(r"on 1 ranks: misfit +(.+), relative error +(.+)", last).groups()
    assert float(misfit) < 1.1
    assert float(error) < 0.3


@needs_heat
def test_the_conductivity_is_found_by_many_ranks(tmp_path):
    printed = draw(tmp_path, "heat_inverse_ranks")["heat_inverse_ranks"]
    misfit, error = numbers(r"on 4 ranks: misfit +([\d.]+), relative error +([\d.]+)", printed)
    assert misfit < 1.1
    assert error < 0.3
