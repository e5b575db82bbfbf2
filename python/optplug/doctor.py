"""Find out what a host program would get from optplug here, and what to do where it gets nothing."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys

import optplug

_PROBE = pathlib.Path(optplug.__file__).with_name("bin") / "optplug-probe"
_REINSTALL = f"{sys.executable} -m pip install --force-reinstall --no-deps PATH_OF_OPTPLUGS_SOURCE"


def _problems() -> list[tuple[str, str]]:
    """Return what can be seen to be wrong from here, each with its remedy."""
    found = [
        (f"{path} is missing", f"install optplug again: {_REINSTALL}")
        for path in (pathlib.Path(optplug.library()), _PROBE)
        if not path.exists()
    ]
    found += [
        (f"{name} is not installed in {sys.prefix}", f"{sys.executable} -m pip install {name}")
        for name in ("torch", "numpy", "cffi")
        if importlib.util.find_spec(name) is None
    ]
    for name in ("OPTPLUG_PYTHON", "OPTPLUG_LIBPYTHON"):
        value = os.environ.get(name)
        if value and not os.access(value, os.R_OK):
            found.append(
                (f"the environment variable {name} names {value!r}, which is not there", f"unset {name}")
            )
    return found


def main() -> int:
    """Print the report and return the exit status: 0 if all is well."""
    problems = _problems()
    if _PROBE.exists():
        # A host program in C, which starts Python by the library's own rules.
        probe = subprocess.run([_PROBE], capture_output=True, text=True, errors="replace", check=False)
        report = [line.split(": ", 1) for line in probe.stdout.splitlines()]
        print("A program that links optplug gets")
        for name, value in report:
            if name != "error":
                print(f"  {name + ':':19} {value}")
        if probe.returncode != 0:
            said = next((value for name, value in report if name == "error"), probe.stderr.strip())
            problems.append(
                ("a program that links optplug cannot start it", said or f"exit {probe.returncode}")
            )
    for problem, remedy in problems:
        print(f"\nWRONG: {problem}\n   DO: {remedy}")
    print("\n" + (f"{len(problems)} problem(s)." if problems else "All is well."))
    return 1 if problems else 0
