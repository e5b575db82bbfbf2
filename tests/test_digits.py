"""The demo, examples/digits.c, and the same network on many ranks, examples/digits_ranks.c."""

from __future__ import annotations

import csv
import os
import pty
import re
import subprocess

import pytest

import hosts

DIGITS = os.environ["OPTPLUG_TEST_DIGITS"]
DIGITS_RANKS = os.environ.get("OPTPLUG_TEST_DIGITS_RANKS")
DATA = str(hosts.PROJECT / "examples/data/digits.csv")


@pytest.mark.parametrize("spec", ["AdamW(lr=2e-3)", "SGD(lr=0.1, momentum=0.9)", "RMSprop(lr=1e-3)"])
def test_it_reads_over_95_percent_of_the_images_right(spec, tmp_path):
    lines = hosts.run(DIGITS, spec, DATA, str(tmp_path / "losses.csv")).stdout.splitlines()
    assert len(lines) == 32
    assert lines[29].startswith("epoch 30 of 30   loss 0.0")
    assert lines[30].startswith(f"{spec}: ")
    assert float(re.search(r"([\d.]+) % of 359 test images", lines[30])[1]) > 95
    assert re.match(r"a step took [\d.]+ us, [\d.]+ us of it in opt_step \(1320 steps\)", lines[31])
    with (tmp_path / "losses.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 31
    assert float(rows[30][1]) < float(rows[1][1]) / 10


@hosts.needs_mpi
@pytest.mark.parametrize("spec", ["SGD(lr=0.1, momentum=0.9)", "AdamW(lr=2e-3)"])
def test_any_number_of_ranks_learns_what_one_process_does(spec, tmp_path):
    """Their sums are in other orders, and rounding errors grow from step to step."""
    hosts.run(DIGITS, spec, DATA, str(tmp_path / "0.csv"))
    for ranks in (1, 2, 3):
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
        for k in range(4)
    ]
    for losses in others:
        assert losses[:3] == pytest.approx(first[:3], rel=1e-4)
        assert losses[-1] < first[0] / 10


@hosts.needs_mpi
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


def test_on_a_terminal_the_progress_line_stays_in_place():
    terminal, inside = pty.openpty()
    done = subprocess.Popen([DIGITS, "Adam()", DATA], stdout=inside)
    os.close(inside)
    said = b""
    try:
        while part := os.read(terminal, 4096):
            said += part
    except OSError:  # how Linux says that the other end is closed
        pass
    assert done.wait() == 0
    first_line = said.split(b"\n")[0]
    assert first_line.count(b"\repoch") == 30


def test_errors_are_optplugs():
    done = subprocess.run([DIGITS, "Adm()", DATA], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("digits: spec 'Adm()': no optimizer 'Adm': did you mean Adam")
    done = subprocess.run([DIGITS, "Adam()", "/nowhere"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "digits: '/nowhere' is not examples/data/digits.csv\n")
