"""Finding and starting Python from hosts that are none, in good surroundings and bad."""

from __future__ import annotations

import pathlib
import shutil
import sys

import pytest

import hosts
import optplug

STEPPED = "stepped\n"
VERSION = "{}.{}".format(*sys.version_info)


@pytest.fixture(params=["host", "host_dlopened"])
def host(request) -> pathlib.Path:
    return hosts.PROGRAMS / request.param


def say(program: pathlib.Path, *arguments: str, **env: str) -> str:
    return hosts.run(program, *arguments, env=env).stdout


def test_a_host_gets_the_environment_that_the_library_lies_in(host, tmp_path):
    said = say(host, PATH=str(tmp_path))
    assert said.startswith(STEPPED)
    assert f"({sys.prefix}/bin/python" in said
    assert f"library: {optplug.library()}\n" in said


def test_a_wrong_pythonhome_and_pythonpath_do_not_matter(host, tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit('a foreign numpy')")
    (tmp_path / "optplug.py").write_text("raise SystemExit('a foreign optplug')")
    said = say(
        host,
        PYTHONHOME="/nowhere",
        PYTHONPATH=str(tmp_path),
        PYTHONSTARTUP="/nowhere",
        VIRTUAL_ENV="/nowhere",
    )
    assert said.startswith(STEPPED)


def test_options_reach_torch(host):
    assert "threads: 1\n" in say(host, "num_threads=1")
    assert "threads: 1\n" in say(host, f"num_threads=1, python='{sys.executable}'")


def test_python_can_be_named_by_option_and_by_variable(host):
    assert f"({sys.executable})" in say(host, f'python="{sys.executable}"')
    assert f"({sys.executable})" in say(host, OPTPLUG_PYTHON=sys.executable)


def test_a_python_that_is_none_is_refused(host, tmp_path):
    assert say(host, OPTPLUG_PYTHON="/nowhere/python3").startswith(
        "-4 OPTPLUG_PYTHON: '/nowhere/python3' is no program"
    )
    assert say(host, "python='/nowhere/python3'").startswith("-4 python: '/nowhere/python3' is no program")
    if pathlib.Path("/usr/bin/env").exists():
        assert "'/usr/bin/env' is no Python" in say(host, OPTPLUG_PYTHON="/usr/bin/env")
    shim = tmp_path / "bin" / "python3"
    shim.parent.mkdir()
    shim.write_text('#!/bin/sh\nexec python3 "$@"\n')
    shim.chmod(0o755)
    assert say(host, OPTPLUG_PYTHON=str(shim)).startswith(
        f"-4 OPTPLUG_PYTHON: '{shim}' is no Python {VERSION}, for which this liboptplug was built"
    )
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.4.1\n")
    assert say(host, OPTPLUG_PYTHON=str(shim)).startswith(
        f"-4 OPTPLUG_PYTHON: '{shim}' is Python 3.4.1, and this liboptplug was built for Python {VERSION}"
    )


@pytest.mark.skipif(sys.platform == "darwin", reason="LD_PRELOAD")
def test_a_missing_libpython_is_an_error_that_says_what_to_install(host):
    said = say(host, LD_PRELOAD=str(hosts.PROGRAMS / "no_libpython.so"))
    assert said.startswith(f"-4 no libpython{VERSION}")
    assert f"apt-get install libpython{VERSION}" in said


def test_a_named_libpython_that_is_missing_is_an_error(host):
    said = say(host, OPTPLUG_LIBPYTHON="/nowhere/libpython.so")
    assert said.startswith("-4 OPTPLUG_LIBPYTHON: ")
    assert "/nowhere/libpython.so" in said


def test_a_copy_of_the_library_outside_of_any_environment_asks_for_one(tmp_path):
    copy = shutil.copy(optplug.library(), tmp_path)
    host = hosts.PROGRAMS / "host_dlopened"
    assert say(host, OPTPLUG_TEST_LIBRARY=str(copy)).startswith(f"-4 '{copy}' lies in no environment")
    assert say(host, OPTPLUG_TEST_LIBRARY=str(copy), OPTPLUG_PYTHON=sys.executable).startswith(STEPPED)


def test_a_missing_torch_is_an_error_that_says_what_to_install(bare):
    library = bare / "optplug/lib" / pathlib.Path(optplug.library()).name
    said = say(hosts.PROGRAMS / "host_dlopened", OPTPLUG_TEST_LIBRARY=str(library))
    assert said.startswith("-4 Python '")
    assert "No module named 'torch'" in said
    assert "-m pip install 'torch>=2.11'" in said


def test_a_torch_that_is_too_old_is_refused(bare):
    (bare / "torch.py").write_text("__version__ = '2.10.1+cpu'")
    library = bare / "optplug/lib" / pathlib.Path(optplug.library()).name
    said = say(hosts.PROGRAMS / "host_dlopened", OPTPLUG_TEST_LIBRARY=str(library))
    assert "torch 2.10.1+cpu is too old, optplug needs 2.11" in said


def test_a_bridge_of_another_version_is_refused(bare):
    library = bare / "optplug/lib" / pathlib.Path(optplug.library()).name
    version = optplug.__version__.encode()
    library.write_bytes(library.read_bytes().replace(version + b"\0", b"9" * len(version) + b"\0"))
    (bare / "torch.py").write_text("__version__ = '2.11.0'\nclass Tensor: pass")
    said = say(
        hosts.PROGRAMS / "host_dlopened", OPTPLUG_TEST_LIBRARY=str(library), OPTPLUG_PYTHON=sys.executable
    )
    assert "is of another version than the package optplug" in said
