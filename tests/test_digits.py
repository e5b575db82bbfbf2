"""The demo, examples/digits.c."""

from __future__ import annotations

import csv
import os
import pty
import re
import subprocess

import hosts

DIGITS = os.environ["OPTPLUG_TEST_DIGITS"]
#: The same as a library, for a Python that has torch already.
LIBRARY = os.environ["OPTPLUG_TEST_DIGITS_LIBRARY"]
DATA = str(hosts.PROJECT / "examples/data/digits.csv")


def read(lines: list[str], spec: str) -> None:
    """Check what it prints at last; test_examples.py reads that of the README's spec."""
    assert lines[0].startswith(f"{spec}: ")
    assert float(re.search(r"([\d.]+) % of 359 test images", lines[0])[1]) > 95
    assert re.match(r"a step took [\d.]+ us, [\d.]+ us of it in opt_step \(1320 steps\)", lines[1])
    assert len(lines) == 2


def test_it_reads_over_95_percent_of_the_images_right(tmp_path):
    spec = "RMSprop(lr=1e-3)"
    lines = hosts.run_main(LIBRARY, spec, DATA, str(tmp_path / "losses.csv")).stdout.splitlines()
    assert lines[29].startswith("epoch 30 of 30   loss 0.0")
    read(lines[30:], spec)
    with (tmp_path / "losses.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 31
    assert float(rows[30][1]) < float(rows[1][1]) / 10


def test_on_a_terminal_the_progress_line_stays_in_place():
    spec = "SGD(lr=0.1, momentum=0.9)"
    terminal, inside = pty.openpty()
    done = subprocess.Popen([DIGITS, spec, DATA], stdout=inside)
    os.close(inside)
    said = b""
    try:
        while part := os.read(terminal, 4096):
            said += part
    except OSError:  # how Linux says that the other end is closed
        pass
    assert done.wait() == 0
    _, *lines = said.decode().splitlines()
    assert said.split(b"\n")[0].count(b"\repoch") == 30
    read(lines[-2:], spec)


def test_errors_are_optplugs():
    digits = hosts.main_of(LIBRARY)
    done = subprocess.run([*digits, "Adm()", DATA], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("digits: spec 'Adm()': no optimizer 'Adm': did you mean Adam")
    done = subprocess.run([*digits, "Adam()", "/nowhere"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "digits: '/nowhere' is not examples/data/digits.csv\n")
