"""Python with torch in it already: a server imports it once, and each process of the tests is a fork of that.

    preloaded.py serve FOLDER             starts the server, which ends with the process that asked for it
    preloaded.py run FOLDER -m pytest …   runs what python -m pytest … would: likewise -c CODE, or a file

torch, and torch._dynamo, which every plain optimizer imports, take 2.5 s of processor time: without this,
half of what the suite takes.  FOLDER holds the server's socket, named after the process that asked: ctest.
What runs so starts others by the command in OPTPLUG_TEST_PRELOADED.  The processor time of each, with that
of the programs that it has started and waited for, is appended to the file that OPTPLUG_TEST_TIMES names
by its whole path.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pathlib
import random
import runpy
import select
import shlex
import signal
import socket
import sys

PRELOADED = "torch", "torch._dynamo", "pytest"
#: Seconds between two looks at whether a process is still there.
PAUSE = 0.05


def _serve(name: str) -> dict | None:
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
    gc.collect()
    gc.freeze()
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


def _is_alive(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


def _mind(connection: socket.socket) -> dict:
    """Return in a fork what it is to run; tell the client its status, and end it where the client goes."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.setblocking(True)
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    task = json.loads(connection.makefile().readline())
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
    if times := task["environment"].get("OPTPLUG_TEST_TIMES"):
        spent = ended[2].ru_utime + ended[2].ru_stime
        with pathlib.Path(times).open("a") as file:
            file.write(f"{spent:.2f} {shlex.join(task['arguments'])[:100]!r}\n")
    with contextlib.suppress(BrokenPipeError):
        connection.send(bytes([os.waitstatus_to_exitcode(ended[1]) & 0xFF]))
    os._exit(0)


def _become(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Run this as a new Python would, which leaves as that does."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    if "triton" in sys.modules:  # which tells, at the end, of what is frozen as if it were lost
        atexit.register(gc.unfreeze)
    first, *rest = arguments
    sys.argv = arguments
    sys.path[0] = folder
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})  # noqa: S102 (a test's own)
    else:
        sys.path[0] = str(pathlib.Path(first).parent)
        runpy.run_path(first, run_name="__main__")


def _run(name: str, folder: str, arguments: list[str]) -> int:
    environment = {"OPTPLUG_TEST_PRELOADED": shlex.join([sys.executable, *sys.argv[:3], name]), **os.environ}
    client = socket.socket(socket.AF_UNIX)
    client.connect(name)
    socket.send_fds(client, [b"\0"], range(3))
    task = {"arguments": arguments, "folder": folder, "environment": environment}
    client.sendall(json.dumps(task).encode() + b"\n")
    said = client.recv(1)
    return said[0] if said else 1


if __name__ == "__main__":
    here = str(pathlib.Path.cwd())
    command, place, *rest = sys.argv[1:]
    os.chdir(place)  # the name of a socket must be short
    name = f"preloaded-{os.getppid()}"
    if command == "run":
        if rest[0].startswith("preloaded-"):
            name, *rest = rest
        sys.exit(_run(name, here, rest))
    if task := _serve(name):
        _become(**task)
