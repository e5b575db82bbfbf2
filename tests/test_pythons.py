"""Hosts that are a Python themselves, and call the library through ctypes."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

import hosts
import optplug

# One SGD step, as the host that is told to run this; prints [status, w, message].
SCRIPT = """
import ctypes, json, sys, threading
loader, path, threads = getattr(ctypes, sys.argv[1]), sys.argv[2], int(sys.argv[3])
lib = loader(path)
lib.opt_error.restype = ctypes.c_char_p
results = []

def work():
    w, dw = (ctypes.c_double * 2)(1, 2), (ctypes.c_double * 2)(2, 4)
    opt = lib.opt_create(b"SGD(lr=0.5)")
    n = ctypes.c_int64(2)
    status = opt if opt < 0 else lib.opt_bind(opt, b"w", b"float64", n, w, dw) or lib.opt_step(opt)
    results.append([status, list(w), lib.opt_error().decode()])

workers = [threading.Thread(target=work) for _ in range(threads)]
for worker in workers: worker.start()
for worker in workers: worker.join()
json.dump(results, sys.stdout)
"""


def host(python: str | tuple[str, ...], loader: str, threads: int = 1, script: str = SCRIPT) -> list:
    command = [python] if isinstance(python, str) else python
    done = subprocess.run(
        [*command, "-c", script, loader, optplug.library(), str(threads)],
        capture_output=True,
        text=True,
        timeout=hosts.PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.parametrize("loader", ["CDLL", "PyDLL"])
def test_a_host_may_have_subinterpreters(loader):
    """From the first one on, PyGILState_Check says yes to every thread."""
    modules = "interpreters, _interpreters, _xxsubinterpreters"
    make = (
        "import importlib\n"
        f"for name in '{modules}'.split(', '):\n"
        "    try:\n"
        "        importlib.import_module(name).create(); break\n"
        "    except ImportError:\n"
        "        pass\n"
    )
    assert host(hosts.PYTHON, loader, script=make + SCRIPT) == [[0, [0.0, 0.0], ""]]


def minor(python: str) -> str:
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    return done.stdout.strip()


OURS = "{}.{}".format(*sys.version_info)


def test_the_environments_python_is_borrowed():
    """By threads that hold its lock in calls, unlike the one below."""
    assert host(sys.executable, "PyDLL", threads=8) == [[0, [0.0, 0.0], ""]] * 8


@pytest.mark.skipif(
    not pathlib.Path("/usr/bin/python3").exists(), reason="needs the system's /usr/bin/python3"
)
def test_the_systems_python_is_borrowed_or_told_apart():
    """Debian's has its libpython inside the executable, and does not see our environment by itself."""
    [[status, w, message]] = host("/usr/bin/python3", "CDLL")
    if minor("/usr/bin/python3") == OURS:
        assert (status, w, message) == (0, [0.0, 0.0], "")
    else:
        assert status == -4
        assert f"this process runs Python {minor('/usr/bin/python3')}" in message
        assert f"built for Python {OURS}" in message


def others() -> list[str]:
    pyenv = pathlib.Path.home().glob(".pyenv/versions/3.*/bin/python3")
    found = [shutil.which(f"python3.{n}") or "" for n in range(8, 16)] + [str(p) for p in pyenv]
    return [python for python in found if python and minor(python) not in ("", OURS)]


def test_a_python_of_another_version_is_refused():
    found = others()
    if not found:
        pytest.skip(
            "needs a second Python of another minor version (Debian, Ubuntu: none; pyenv install 3.12)"
        )
    for python in found:
        [[status, w, message]] = host(python, "CDLL")
        assert (status, w) == (-4, [1.0, 2.0])
        assert f"this process runs Python {minor(python)}" in message
        assert f"built for Python {OURS}" in message
        assert optplug.library() in message


def test_calls_after_the_end_of_python_are_errors():
    """The host holds the library beyond Py_Finalize: a C function that is called at exit."""
    script = (
        "import atexit, ctypes, sys\n"
        "lib = ctypes.CDLL(sys.argv[1]); end = ctypes.CDLL(sys.argv[2])\n"
        "w = (ctypes.c_double * 1)(1)\n"
        "opt = lib.opt_create(b'SGD(lr=1)')\n"
        "lib.opt_bind(opt, b'w', b'float64', ctypes.c_int64(1), w, w)\n"
        "end.step_at_exit(lib.opt_step, lib.opt_error, opt)\n"
    )
    done = subprocess.run(
        [*hosts.PYTHON, "-c", script, optplug.library(), str(hosts.PROGRAMS / "at_exit.so")],
        capture_output=True,
        text=True,
        timeout=hosts.PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "-3 Python has ended in this process, and its optimizers with it\n"
