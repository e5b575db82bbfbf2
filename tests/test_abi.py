"""What programs rely on that are built already: docs/abi.md says what may change in it."""

from __future__ import annotations

import re
import sys

import pytest

import hosts
import optplug
from optplug import header
from test_library import tool

HEADER = (hosts.PROJECT / "include" / "optplug.h").read_text()
LISTED = (hosts.PROJECT / "csrc" / "abi.txt").read_text()
NUMBER = int(re.search(r"^number (\d+)$", LISTED, re.M)[1])


def lines(text: str) -> list[str]:
    """Return a line for each function, type and status of a header; names of parameters may change."""
    declared = header.parse(text)

    def line(f: header.Function, name: str) -> str:
        types = ", ".join(p.type for p in f.parameters) or "void"
        return f"{f.result} {name}({types})".replace("* opt", "*opt")

    functions = [line(f, f.name) for f in declared.functions.values()]
    types = [f"typedef {line(f, f'(*{f.name})')}" for f in declared.callbacks.values()]
    return functions + types + [f"{name} = {value}" for name, value in declared.statuses.items()]


def complaints(text: str, listed: str) -> list[str]:
    """Say what a header has changed, and what is to be done about it."""
    old = [line for line in listed.splitlines() if not line.startswith(("#", "number "))]
    new = lines(text)
    gone = (
        "is gone or changed, which breaks programs that are built: keep it and give what is new a name of "
        "its own, or raise the number in csrc/abi.txt as docs/abi.md says"
    )
    return [f"{line!r} {gone}" for line in old if line not in new] + [
        f"{line!r} is new: add the line to csrc/abi.txt" for line in new if line not in old
    ]


def test_the_abi_is_the_one_that_is_listed():
    assert "\n".join(complaints(HEADER, LISTED)) == ""


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("int opt_free(int opt);", "", "'int opt_free(int)' is gone or changed"),
        ("int opt_step(int opt);", "int opt_step(int64_t opt);", "'int opt_step(int)' is gone or changed"),
        ("OPT_EIO = -8", "OPT_EIO = -9", "'OPT_EIO = -8' is gone or changed"),
        (
            "(*opt_callback)(void *user, double *value)",
            "(*opt_callback)(double *value)",
            "(void *, double *)' is",
        ),
        (
            "int opt_step(int opt);",
            "int opt_step(int opt);\nint opt_new(int opt);",
            "'int opt_new(int)' is new",
        ),
    ],
)
def test_a_change_is_noticed(before, after, words):
    assert before in HEADER
    assert any(words in complaint for complaint in complaints(HEADER.replace(before, after, 1), LISTED))


def test_another_name_of_a_parameter_is_no_change():
    assert complaints(HEADER.replace("int opt_step(int opt);", "int opt_step(int handle);"), LISTED) == []


def test_the_number_of_the_version_is_its_text():
    version = re.search(r'#define OPTPLUG_VERSION "(\d+)\.(\d+)\.(\d+)"', HEADER).groups()
    major, minor, patch = map(int, version)
    assert f"#define OPTPLUG_VERSION_NUMBER {10000 * major + 100 * minor + patch} " in HEADER


# ---- the name with the ABI's number ----

needs_elf = pytest.mark.skipif(sys.platform == "darwin", reason="macOS keeps such numbers elsewhere")


@needs_elf
def test_a_program_asks_for_the_number_when_it_runs():
    listed = tool("readelf", "-d", hosts.PROGRAMS / "host")
    assert re.findall(r"NEEDED.*\[(liboptplug.*)\]", listed) == [f"liboptplug.so.{NUMBER}"]
    assert "stepped" in hosts.run(hosts.PROGRAMS / "host").stdout


@needs_elf
@pytest.mark.parametrize("first", ["plain", "numbered"])
def test_both_names_are_of_one_library(first):
    """Two of them in one process would be two sets of handles."""
    names = [optplug.library(), f"{optplug.library()}.{NUMBER}"]
    code = (
        "import ctypes, sys\n"
        "found = [ctypes.CDLL(name).opt_create for name in sys.argv[1:]]\n"
        "print(len({ctypes.cast(f, ctypes.c_void_p).value for f in found}))\n"
    )
    done = hosts.run(sys.executable, "-c", code, *(names if first == "plain" else names[::-1]))
    assert done.stdout == "1\n"
