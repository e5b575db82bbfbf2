"""What the Python tests share: the programs that ctest built, and the library as ctypes has it."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

import optplug

PROJECT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = pathlib.Path(os.environ["OPTPLUG_TEST_PROGRAMS"])
CC = os.environ["OPTPLUG_TEST_CC"]
CXX = os.environ.get("OPTPLUG_TEST_CXX")
FC = os.environ.get("OPTPLUG_TEST_FC")


README = (PROJECT / "README.md").read_text()


def program(language: str) -> str:
    """Return the README's first block of code in a language; "text" is what all the programs print."""
    return re.search(rf"```{language}\n(.*?)```", README, re.S)[1]


def run(
    program: str | pathlib.Path, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program, its environment changed so, and check that it lived and kept stderr quiet."""
    done = subprocess.run(
        [program, *arguments],
        env={**os.environ, "OPTPLUG_TEST_LIBRARY": optplug.library(), **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stderr == ""
    return done
