"""Python with torch in it already: a server imports it once, and each process of the tests is a fork of that.

    preloaded.py FOLDER

starts the server, which ends with the process that asked for it: ctest.  FOLDER holds its socket, named
after that process; forked.py asks it for forks.  torch, and torch._dynamo, which every plain optimizer
imports, take 2.5 s of processor time: without this, half of what the suite takes.  What runs so starts others
by the command in OPTPLUG_TEST_PRELOADED.  The processor time of each, with that of the programs that it has
started and waited for, is appended to the file that OPTPLUG_TEST_TIMES names by its whole path.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import marshal
import os
import pathlib
import random
import runpy
import select
import shlex
import signal
import socket
import sys
import threading

#: What most tests import; of optplug, what does not start it.
PRELOADED = (
    "torch",
    "torch._dynamo",
    "numpy",
    "pytest",
    "optplug.ctypes_api",
    "optplug.optimizer",
)
#: Seconds between two looks at whether a process is still there.
PAUSE = 0.05


def _serve(name: str) -> tuple | None:
    """Return None when the server, a fork, listens; and in forks of that what each is to run."""
    asked = os.getppid()
    pathlib.Path(name).unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(name)
    server.listen()  # who comes now waits until the imports are done
    if os.fork():
        return None
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    for module in PRELOADED:
        importlib.import_module(module)
    for plugin in sys.modules["_pytest.config"].default_plugins:
        importlib.import_module(f"_pytest.{plugin}")
    gc.collect()
    gc.freeze()
    _skip_the_end_of_torch()
    ctypes.CDLL(None).feclearexcept(-1)  # Fortran tells of these where it stops
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who mind a process
    server.settimeout(1)
    while _is_alive(asked):
        with contextlib.suppress(TimeoutError):
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                return _mind(connection)
            connection.close()
    pathlib.Path(name).unlink(missing_ok=True)
    os._exit(0)


def _skip_the_end_of_torch() -> None:
    """End a fork where only what this process has loaded is left to end, which takes torch 0.3 s.

    exit() calls the latest first: what a fork's program has registered, the flush, and the real end.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc's
        libc.on_exit(libc._exit, None)
        getattr(libc, "__cxa_atexit")(libc.fflush, None, None)


def _is_alive(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


def _mind(connection: socket.socket) -> tuple:
    """Return in a fork what it is to run; tell the client its status, and end it where the client goes."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.setblocking(True)
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    task = _, arguments, _, environment = marshal.load(connection.makefile("rb"))  # noqa: S302
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return task
    while (ended := os.wait4(child, os.WNOHANG))[0] == 0:
        if select.select([connection], [], [], PAUSE)[0]:  # it has nothing more to say: it has gone
            os.killpg(child, signal.SIGKILL)
    if times := environment.get("OPTPLUG_TEST_TIMES"):
        spent = ended[2].ru_utime + ended[2].ru_stime
        with pathlib.Path(times).open("a") as file:
            file.write(f"{spent:.2f} {shlex.join(arguments)[:100]!r}\n")
    with contextlib.suppress(BrokenPipeError):
        connection.send(bytes([os.waitstatus_to_exitcode(ended[1]) & 0xFF]))
    os._exit(0)


def _become(command: list[str], arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Run this as a new Python would, which ends as that does where it is code: a host's."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update({"OPTPLUG_TEST_PRELOADED": shlex.join(command), **environment})
    random.seed()
    if "triton" in sys.modules:  # which tells, at the end, of what is frozen as if it were lost
        atexit.register(gc.unfreeze)
    first, *rest = sys.argv = arguments
    sys.path[0] = folder
    # A host in Python, and what changes torch, import optplug themselves.
    if rest[:1] != ["pytest"] and not first.endswith("call_main.py"):
        for name in [name for name in sys.modules if name.partition(".")[0] == "optplug"]:
            del sys.modules[name]
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})  # noqa: S102 (a test's own)
        return
    status = 0
    try:
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(pathlib.Path(first).parent)
            runpy.run_path(first, run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            raise
        status = ended.code or 0
    # What a C program ends with: all that Python has imported would take 0.2 s more to go.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).exit(status)


if __name__ == "__main__":
    os.chdir(sys.argv[1])  # the name of a socket must be short
    if task := _serve(f"preloaded-{os.getppid()}"):
        _become(*task)
