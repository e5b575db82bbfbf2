"""The Fortran example over ranks, heat_inverse_ranks.f90; test_heat_ranks.f90 checks its gradient."""

from __future__ import annotations

import os
import re
import subprocess
import time

import pytest

import hosts

pytestmark = hosts.needs(
    "Fortran compiler, or no MPI for it", "gfortran libopenmpi-dev", os.environ.get("OPTPLUG_TEST_HEAT_RANKS")
)


@hosts.needs_mpi
def test_any_number_of_ranks_finds_the_same_field(tmp_path):
    lines, losses = [], []
    for ranks in (1, 3):
        program = os.environ["OPTPLUG_TEST_HEAT_RANKS"]
        files = [str(tmp_path / f"{name}{ranks}.csv") for name in ("field", "losses")]
        done = hosts.run("mpiexec", "-n", str(ranks), program, *files, env=hosts.MPI_ENVIRONMENT)
        lines.append(done.stdout.splitlines())
        _, *rows = (tmp_path / f"losses{ranks}.csv").read_text().splitlines()
        losses.append([float("".join(row.split(",")[1:])) for row in rows])
    one, three = lines
    assert one[0] == three[0]
    assert losses[1][:50] == pytest.approx(losses[0][:50], rel=1e-9)
    for ranks, line in ((1, one[-1]), (3, three[-1])):
        misfit, error = re.fullmatch(rf"on {ranks} ranks: misfit +(.+), relative error +(.+)", line).groups()
        assert float(misfit) < 1.1
        assert float(error) < 0.3


@hosts.needs_mpi
def test_a_killed_run_goes_on_on_another_number_of_ranks(tmp_path):
    restart = tmp_path / "restart.pt"
    files = [str(tmp_path / "field.csv"), str(tmp_path / "losses.csv"), str(restart)]
    command = ["mpiexec", "-n", "3", os.environ["OPTPLUG_TEST_HEAT_RANKS"], *files]
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
    command[2] = "2"
    said, _, last = hosts.run(*command, env=hosts.MPI_ENVIRONMENT).stdout.splitlines()
    steps = re.fullmatch(f"went on from {restart}, after (.+) steps", said)[1]
    assert 1 <= int(steps) < 8
    misfit, error = re.fullmatch(r"on 2 ranks: misfit +(.+), relative error +(.+)", last).groups()
    assert float(misfit) < 1.1
    assert float(error) < 0.3
