"""The shared library as a linker sees it."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys

import pytest

import hosts
import optplug
from optplug import ctypes_api


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


HEADER = (hosts.PROJECT / "include" / "optplug.h").read_text()


def test_it_exports_what_the_header_declares_and_the_bridges_door():
    declared = hosts.FUNCTIONS
    assert len(declared) > 8
    listed = tool("nm", "-gU" if sys.platform == "darwin" else "-D", optplug.library())
    exported = set(re.findall(r" T _?(\w+)$", listed, re.M))
    longer = {name.replace("opt_", "optplug_") for name in declared}
    assert exported == declared | longer | {"optplug_attach"}


def test_each_function_and_status_has_its_longer_name():
    def longer(text: object) -> str:
        return str(text).replace("opt_", "optplug_").replace("OPT_", "OPTPLUG_")

    header = hosts.HEADER
    for declared in (header.functions, header.callbacks, header.statuses):
        short = {name: what for name, what in declared.items() if name.startswith(("opt_", "OPT_"))}
        rest = {name: str(what) for name, what in declared.items() if name not in short}
        assert {longer(name): longer(what) for name, what in short.items()} == rest
    assert len(header.functions) + len(header.callbacks) + len(header.statuses) > 2 * 45
    library = ctypes_api.load()
    for name in hosts.FUNCTIONS:
        addresses = {
            ctypes.cast(getattr(library, each), ctypes.c_void_p).value
            for each in (name, name.replace("opt_", "optplug_"))
        }
        assert len(addresses) == 1, name


@pytest.mark.skipif(sys.platform == "darwin", reason="reads ELF")
def test_it_needs_nothing_but_libc():
    listed = tool("readelf", "-d", optplug.library())
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", listed))
    assert {re.sub(r"\.so.*", "", name) for name in needed} <= {
        "libc",
        "libm",
        "libdl",
        "libpthread",
        "ld-linux-x86-64",
        "ld-linux-aarch64",
    }


def test_the_version_is_the_headers_everywhere():
    version = re.search(r'define OPTPLUG_VERSION "(.*)"', HEADER)[1]
    assert ctypes_api.load().opt_version().decode() == version == optplug.__version__


def test_every_function_is_called_from_c():
    """No function of the header goes without a C test."""
    tests = "".join(path.read_text() for path in (hosts.PROJECT / "tests").glob("test_*.c"))
    assert [name for name in hosts.FUNCTIONS if f"{name}(" not in tests] == []
