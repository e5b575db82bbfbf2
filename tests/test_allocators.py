"""Hosts with an allocator of their own, with and without a BLAS of their own.

The allocator's memory cannot be freed by the C library, which ends the process: so torch, whose libraries
call the host's allocator, must not find the C library's free before the host's.
"""

from __future__ import annotations

import re

import pytest

import hosts

pytestmark = pytest.mark.skipif(not (hosts.PROGRAMS / "allocator.so").exists(), reason="glibc alone")


def preloaded(*names: str, program: str = "host", **env: str) -> str:
    libraries = " ".join(str(hosts.PROGRAMS / f"{name}.so") for name in names)
    return hosts.run(hosts.PROGRAMS / program, env={"LD_PRELOAD": libraries, **env}).stdout


def test_an_allocator_of_the_hosts_does_no_harm():
    said = preloaded("allocator", program="host_dlopened")
    assert said.startswith("stepped\n")
    assert re.search(r"^allocator: malloc in .*/allocator\.so$", said, re.M)


def test_a_blas_of_the_hosts_is_kept_apart():
    said = preloaded("blas32")
    assert said.startswith("stepped\n")
    assert re.search(r"^blas: PyTorch's own, kept apart from .*/blas32\.so$", said, re.M)
    assert "allocator:" not in said


def test_with_an_allocator_of_its_own_a_host_shares_its_blas():
    said = preloaded("allocator", "blas32")
    assert said.startswith("stepped\n")
    assert re.search(r"^allocator: malloc in .*/allocator\.so$", said, re.M)
    assert re.search(r"^blas: the host's, .*/blas32\.so$", said, re.M)


def test_what_can_be_neither_kept_apart_nor_shared_is_an_error():
    said = preloaded("allocator", "blas64")
    assert said.startswith("-4 the host's BLAS in '")
    assert "uses 64-bit integers" in said
    assert "OPTPLUG_DEEPBIND=1" in said


def test_the_host_can_say_which_it_is():
    assert preloaded("counter", "blas64").startswith("-4 the host's BLAS in '")
    said = preloaded("counter", "blas64", OPTPLUG_DEEPBIND="1")
    assert said.startswith("stepped\n")
    assert re.search(r"^blas: PyTorch's own, kept apart from .*/blas64\.so$", said, re.M)
    assert "blas: the host's" in preloaded("blas32", OPTPLUG_DEEPBIND="0")


def test_operators_of_the_hosts_do_no_harm():
    if not (hosts.PROGRAMS / "own_new").exists():
        pytest.skip("no C++ compiler: apt-get install g++")
    said = preloaded("blas32", program="own_new")
    assert said.startswith("-2 -4\n")
    assert re.search(r"^allocator: operator new in .*own_new$", said, re.M)
