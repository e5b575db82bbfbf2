"""Find out what a host program would get from optplug here, and what to do where it gets nothing.

Knows no torch, which may be what is broken: a C host starts all that, in a process of its own.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain

import optplug
from optplug import surroundings
from optplug.tools.report import progress

_PROBE = pathlib.Path(optplug.__file__).with_name("bin") / "optplug-probe"
_PATIENCE = 300  # seconds, for a network's file system
_LEAST_STACK, _LEAST_SPACE = 256 << 10, 2 << 30
_PYTHON = shlex.quote(sys.executable)
_PIP = f"{_PYTHON} -m pip install"
# How the launchers of MPI tell a program of how many it is one.
_RANKS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_NTASKS")
# What a program is told that cannot start optplug, and the step to take.
_STEPS = (
    (r".*\brun ((?:'[^']+'|\S+) -m pip install .*)", r"\1"),
    (
        r".*apt-get install (libpython[\d.]*\d).*",
        r"apt-get install \1 (Debian, Ubuntu), build Python with --enable-shared (pyenv), "
        r"or export OPTPLUG_LIBPYTHON=ITS_PATH",
    ),
    (r".*: (raise the limit .*|change to another one|mount /proc)", r"\1"),
    (r"OPTPLUG_LIBPYTHON: .*", "unset OPTPLUG_LIBPYTHON"),
    (r"OPTPLUG_PYTHON: .*|.* is not in an environment .*", f"export OPTPLUG_PYTHON={_PYTHON}"),
    (r".* has a different version .*", f"link to what {_PYTHON} -m optplug config --library prints"),
)
# What torch's wheels bring or need in versions of their own.
_SHADOWS = re.compile(r"lib(?:python3\.\d+|stdc\+\+|gomp|iomp5|omp)\.(?:so|dylib)")


@dataclass
class Problem:
    """Something that is WRONG, so that a host gets nothing or not what is meant; or a NOTE, that it may."""

    level: str
    what: str
    do: str


@dataclass
class _Host:
    """What the C host got: its report by name, and what else it or Python in it printed."""

    report: dict[str, str] = field(default_factory=dict)
    printed: str = ""
    failure: str = ""
    remedy: str = ""


def main(as_json: bool) -> int:
    """Print the report and return the exit status: 0 if nothing is wrong."""
    with progress("starting a C host"):
        host = _start()
        problems = [*_wrong(host), *_notes(host)]
    count = sum(problem.level == "WRONG" for problem in problems)
    if as_json:
        found = {"ok": not count, "host": host.report, "problems": [asdict(p) for p in problems]}
        print(json.dumps(found, indent=2))
        return int(count > 0)
    print("A program that links optplug gets")
    for name, value in host.report.items():
        print(f"  {name + ':':19} {value}")
    for problem in problems:
        print(f"\n{problem.level}: {problem.what}\n   DO: {problem.do}")
    print("\n" + (f"{count} problem(s)." if count else "All is well."))
    return int(count > 0)


def _start() -> _Host:
    """Start optplug in a C program, which finds Python by the library's own rules."""
    host, begin = _Host(), time.monotonic()
    try:
        done = subprocess.run(
            [_PROBE], capture_output=True, text=True, errors="replace", check=False, timeout=_PATIENCE
        )
    except OSError as error:
        host.failure, host.remedy = f"{_PROBE} cannot be run: {error.strerror}", _reinstall()
        return host
    except subprocess.TimeoutExpired:
        host.failure = f"a program that links optplug had not started it after {_PATIENCE} s"
        host.remedy = f"see where it waits: gdb -ex run {_PROBE}"
        return host
    found = re.search(r"^(?:error|optplug): ", done.stdout, re.M)
    start = found.start() if found else len(done.stdout)
    lines = [line.partition(": ") for line in done.stdout[start:].splitlines()]
    host.report = {name: value for name, separator, value in lines if separator}
    rest = (name for name, separator, _ in lines if not separator)
    host.printed = "\n".join([done.stdout[:start], *rest, done.stderr]).strip()
    said = host.report.pop("error", "")
    host.report["started in"] = f"{time.monotonic() - begin:.1f} s"
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        last = done.stderr.strip().rpartition("\n")[2]
        host.failure = (
            f"a program that links optplug is ended by {name} when it starts optplug{last and ': ' + last}"
        )
        host.remedy = f"see where: gdb -ex run {_PROBE}; {_torch_alone()}"
    elif done.returncode > 0:
        said = said or done.stderr.strip() or f"exit status {done.returncode}"
        host.failure = f"a program that links optplug cannot start it: {said}"
        steps = (found.expand(step) for what, step in _STEPS if (found := re.fullmatch(what, said, re.S)))
        host.remedy = next(steps, _reinstall())
    return host


# ---- what is wrong ----


def _wrong(host: _Host) -> Iterator[Problem]:
    for what, do in (*_files(), *_requirements(), *_variables(), *_library(host)):
        yield Problem("WRONG", what, do)
    if host.failure:
        yield Problem("WRONG", host.failure, host.remedy)


def _reinstall() -> str:
    return f"install optplug again: {_PIP} --force-reinstall --no-deps PATH_OF_OPTPLUGS_SOURCE"


def _package() -> importlib.metadata.Distribution | None:
    """Return what pip has noted of optplug; None where it was not pip that installed it."""
    try:
        return importlib.metadata.distribution("optplug")
    except importlib.metadata.PackageNotFoundError:
        return None


def _files() -> Iterator[tuple[str, str]]:
    package = _package()
    if package:
        record = package.read_text("RECORD") or ""  # its `files` hides what is missing, from Python 3.12 on
        for name, *_ in csv.reader(record.splitlines()):
            path = pathlib.Path(str(package.locate_file(name)))
            if not path.exists() and path.suffix != ".pyc":
                yield f"{path} is missing", _reinstall()
    if _PROBE.exists() and not os.access(_PROBE, os.X_OK):
        yield f"{_PROBE} is not executable", f"chmod +x {shlex.quote(str(_PROBE))}"


def _requirements() -> Iterator[tuple[str, str]]:
    package = _package()
    for line in (package.requires if package else None) or []:
        found = re.fullmatch(r"([\w.-]+)>=([\d.]+)", line)  # those of extras have more behind
        if not found:
            continue
        name, least = found.groups()
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if importlib.util.find_spec(name) is None:
                yield f"{name} is not installed in {sys.prefix}", f"{_PIP} '{line}'"
            continue
        if _numbers(version) < _numbers(least):
            yield f"{name} {version} is too old, optplug needs {least}", f"{_PIP} --upgrade '{line}'"


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]


def _variables() -> Iterator[tuple[str, str]]:
    for name in ("OPTPLUG_PYTHON", "OPTPLUG_LIBPYTHON"):
        value = os.environ.get(name)
        if value and not os.access(value, os.R_OK):
            yield f"the environment variable {name} names {value!r}, which does not exist", f"unset {name}"


def _library(host: _Host) -> Iterator[tuple[str, str]]:
    theirs = host.report.get("library")
    if theirs and pathlib.Path(theirs) != pathlib.Path(optplug.library()).resolve():
        yield (
            f"a program that links {optplug.library()} gets {theirs}",
            "remove its folder from LD_LIBRARY_PATH, or the library from LD_PRELOAD",
        )


def _torch_alone() -> str:
    """Say whether torch can be imported where there is no optplug."""
    done = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, check=False)
    if done.returncode == 0:
        return "torch alone can be imported"
    return f"torch alone fails too: see the notes, if any, or run {_PIP} --force-reinstall torch"


# ---- what may become wrong ----


def _notes(host: _Host) -> Iterator[Problem]:
    of_host = (_prints, _another_python, _allocator, _ranks)
    of_surroundings = (_others, _ignored, _shadows, _limits)
    found = chain.from_iterable(
        [*(check(host) for check in of_host), *(check() for check in of_surroundings)]
    )
    for what, do in found:
        yield Problem("NOTE", what, do)


def _prints(host: _Host) -> Iterator[tuple[str, str]]:
    if host.printed and not host.failure:
        yield (
            f"something prints as Python starts, into the host's output: {host.printed[:200]!r}",
            "look for it in a .pth file or sitecustomize.py in that environment, and in OMP_ variables",
        )


def _another_python(host: _Host) -> Iterator[tuple[str, str]]:
    name = os.environ.get("OPTPLUG_PYTHON")
    used = re.search(r"\((.*)\)$", host.report.get("python", ""))
    if name and used and not pathlib.Path(used[1]).is_relative_to(sys.prefix):
        yield (
            f"OPTPLUG_PYTHON makes programs use {used[1]}, but this is {sys.executable}",
            f"unset OPTPLUG_PYTHON, or ask that one: {shlex.quote(used[1])} -m optplug doctor",
        )


def _allocator(host: _Host) -> Iterator[tuple[str, str]]:
    function, _, library = host.report.get("allocator", "").partition(" in ")
    if library:
        yield (
            f"{function} comes from {library}, so a program with its own BLAS shares it with PyTorch",
            "start the program without it if LBFGS and Muon must match PyTorch to the last bit",
        )


def _others() -> Iterator[tuple[str, str]]:
    here = pathlib.Path(optplug.__file__).resolve().parent
    for folder in dict.fromkeys(sys.path):
        path = pathlib.Path(folder or ".").resolve() / "optplug"
        if path != here and ((path / "__init__.py").exists() or path.with_suffix(".py").exists()):
            yield (
                f"there is another optplug in {path.parent}, and this one is in {here.parent}",
                "remove one of them, or link and run with the same one: "
                f"{_PYTHON} -m optplug config --library",
            )


def _ignored() -> Iterator[tuple[str, str]]:
    ours = pathlib.Path(optplug.__file__).resolve().parent.parent  # which a module file adds
    for name in ("PYTHONHOME", "PYTHONPATH"):
        places = [place for place in os.environ.get(name, "").split(os.pathsep) if place]
        if any(pathlib.Path(place).resolve() != ours for place in places):
            yield (
                f"{name} is set, which programs other than Python ignore",
                f"unset {name}, or install what is found only there into this environment",
            )


def _shadows() -> Iterator[tuple[str, str]]:
    for name in ("LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES"):
        places = [pathlib.Path(place) for place in re.split(r"[:\s]+", os.environ.get(name, "")) if place]
        files = [f for place in places for f in (sorted(place.iterdir()) if place.is_dir() else [place])]
        found = [str(file) for file in files if _SHADOWS.match(file.name)]
        if found:
            yield (
                f"{name} puts {', '.join(found[:5])} ahead of the libraries that come with torch and Python",
                f"start the program without {name}, if torch fails or numbers differ",
            )


def _ranks(host: _Host) -> Iterator[tuple[str, str]]:
    name = next((n for n in _RANKS if os.environ.get(n, "1") not in ("", "1")), None)
    threads = int(host.report.get("threads", 1))
    if name and threads > 1:
        yield (
            f"this is one of {os.environ[name]} processes ({name}), and each steps on {threads} threads",
            'call opt_init("num_threads=1"), or set OMP_NUM_THREADS=1',
        )


def _limits() -> Iterator[tuple[str, str]]:
    for what, limit, least, option in (
        ("the stack", resource.RLIMIT_STACK, _LEAST_STACK, "-s"),
        (
            "memory",
            resource.RLIMIT_AS,
            max(_LEAST_SPACE, surroundings.memory(os.cpu_count() or 1)[0] * 5 // 4),
            "-v",
        ),
    ):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY and soft < least:
            yield (
                f"{what} is limited to {soft >> 10} KB, and torch may need {least >> 10} KB",
                f"ulimit {option} {least >> 10}, or more",
            )
