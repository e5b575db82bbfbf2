"""OPTPLUG_LOG alone lets the library write to stderr what it does; and opt_describe(0) has every option."""

from __future__ import annotations

import logging
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import hosts
from optplug import ctypes_api
from test_readme import build_library


def told(*command: str | pathlib.Path, **variables: str) -> list[str]:
    """Return the lines that a host has on stderr."""
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_the_variable_lets_it_tell():
    host = hosts.PROGRAMS / "host"
    lines = told(host, OPTPLUG_LOG="info")
    assert all(re.match(r"optplug\[\d+\] \d+\.\d{3}: \S", line) for line in lines)
    assert [line for line in lines if "(the environment of liboptplug)" in line]
    assert [line for line in lines if ": steps by " in line]
    assert not [line for line in lines if ": bound " in line]
    code = "import numpy as np; from optplug.ctypes_api import Optimizer; "
    code += "Optimizer('SGD()').bind('w', np.ones(1), np.ones(1))"
    assert [line for line in told(*hosts.PYTHON, "-c", code, OPTPLUG_LOG="debug") if ": bound " in line]
    more = told(host, OPTPLUG_LOG="debug", OPTPLUG_PYTHON=sys.executable, OPTPLUG_LIBPYTHON="/nowhere")
    assert [line for line in more if f": Python: '{sys.executable}' (OPTPLUG_PYTHON)" in line]


def test_the_program_of_the_page_on_it_runs(tmp_path):
    page = (hosts.PROJECT / "docs" / "seeing.md").read_text()
    build_library(re.search(r"```c\n(.*?)```", page, re.S)[1], tmp_path)
    lines = hosts.run_main(tmp_path / "main").stdout.splitlines()
    assert all(line.startswith("INFO optplug: ") for line in lines)
    assert [line for line in lines if line.endswith(": SGD(lr=0.5)")]


@pytest.mark.parametrize(("value", "tells"), [("info", True), ("", False), ("0", False), ("no", False)])
def test_other_values_let_it_be_silent(value, tells):
    code = "from optplug import ctypes_api; ctypes_api.init()"
    done = subprocess.run(
        [*hosts.PYTHON, "-c", code], env={**os.environ, "OPTPLUG_LOG": value}, capture_output=True, check=True
    )
    assert bool(done.stderr) == tells


def test_every_option_in_force_is_described():
    header = (hosts.PROJECT / "include" / "optplug.h").read_text()
    manual = header.partition("\nint opt_init(")[0].rpartition("\n/* ")[2]
    names = set(re.findall(r"^ \*   (\w+)=", manual, re.M)) - {"num_threads"} | {"threads"}
    assert len(names) > 6
    code = """
        from optplug import ctypes_api
        ctypes_api.log(lambda level, line: None)
        ctypes_api.init("num_threads=1, error_if_nonfinite=True, plans='stable', log='debug'")
        print(ctypes_api.describe())
    """
    text = hosts.run(*hosts.PYTHON, "-c", textwrap.dedent(code)).stdout
    assert names <= set(re.findall(r"^(\w+): ", text, re.M))
    for line in ("threads: 1", "error_if_nonfinite: True", "plans: stable", "log: debug", "sqrt: torch"):
        assert f"\n{line}\n" in text


def test_pythons_logging_takes_the_lines(caplog):
    logger = logging.getLogger("host")
    caplog.set_level(logging.INFO, "host")
    ctypes_api.log(lambda level, line: logger.log(logging.INFO if level == 1 else logging.DEBUG, line))
    with ctypes_api.Optimizer("SGD(lr=0.125)"):
        pass
    ctypes_api.log(None)
    with ctypes_api.Optimizer("SGD(lr=0.5)"):
        pass
    assert [line.partition(": ")[2] for line in caplog.messages if "SGD" in line] == ["SGD(lr=0.125)"]


@pytest.mark.parametrize("where", [r"'.*run\.pt'", "memory"])
def test_a_long_save_and_load_say_how_far_they_are(where, tmp_path, monkeypatch):
    monkeypatch.setattr("optplug.log._EVERY", 0)
    lines = []
    ctypes_api.log(lambda _, line: lines.append(line))
    w, dw = np.ones(3 << 20), np.ones(3 << 20)
    with ctypes_api.Optimizer("Adam()") as opt:
        opt.bind("w", w, dw)
        opt.step()
        if where == "memory":
            opt.load_memory(opt.save_memory())
        else:
            opt.save(tmp_path / "run.pt")
            opt.load(tmp_path / "run.pt")
    ctypes_api.log(None)
    for doing, done in (("saving to", "saved to"), ("checking", "loaded from")):
        told = [re.search(rf": {doing} {where}: ([\d.]+) of ([\d.]+) GB$", line) for line in lines]
        told = [(float(part), float(whole)) for part, whole in (m.groups() for m in told if m)]
        parts, wholes = zip(*told, strict=True)
        assert sorted(parts) == list(parts)
        assert parts[-1] == wholes[0] == 0.1  # two arrays of 25 MB
        assert len(set(wholes)) == 1
        last = max(i for i, line in enumerate(lines) if f": {doing} " in line)
        assert f": {done} " in lines[last + 1]


def test_a_short_save_says_only_that_it_is_done(tmp_path):
    lines = []
    ctypes_api.log(lambda _, line: lines.append(line))
    w, dw = np.ones(3), np.ones(3)
    with ctypes_api.Optimizer("Adam()") as opt:
        opt.bind("w", w, dw)
        opt.save(tmp_path / "run.pt")
    ctypes_api.log(None)
    assert [line.partition(": ")[2] for line in lines if "run.pt" in line] == [
        f"saved to '{tmp_path}/run.pt'"
    ]
