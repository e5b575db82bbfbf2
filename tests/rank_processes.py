"""Ranks that are processes over gloo, of which one may be killed, stopped, or out of disk.

Where ctest has a Python with torch in it already, they are forks of that: see preloaded.py.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import hosts

PRELUDE = """
import datetime, os, pathlib, resource, signal, sys, time
import numpy as np
import torch
from optplug.ctypes_api import Error, Optimizer
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
pathlib.Path(f"process{rank}").write_text(str(os.getpid()))
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=float(sys.argv[1])))
def say(*words): print(*words, flush=True)
"""


class Process:
    """A rank, and what it has said so far."""

    def __init__(
        self, program: str, rank: int, size: int, port: int, arguments: list[str], folder: pathlib.Path
    ) -> None:
        self._said, self._process = folder / f"said{rank}", folder / f"process{rank}"
        preloaded = shlex.split(os.environ.get("OPTPLUG_TEST_PRELOADED", ""))
        environment = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment |= {"OMP_NUM_THREADS": 1}
        with self._said.open("w") as output:
            self.running = subprocess.Popen(
                [*(preloaded or [sys.executable]), "-c", PRELUDE + program, *arguments],
                cwd=folder,
                env={**os.environ, **{name: str(value) for name, value in environment.items()}},
                stdout=output,
                stderr=output,
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the rank, which may be what another process has started."""
        os.kill(int(self._process.read_text()), number)

    def said(self) -> list[str]:
        """Return its lines."""
        return self._said.read_text().splitlines()


def started(
    program: str, size: int, folder: pathlib.Path, timeout: float = 1000, *arguments: str
) -> Iterator[list[Process]]:
    """Start ranks for a test, and end those that are left: for `contextlib.contextmanager`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [Process(program, rank, size, port, [str(timeout), *arguments], folder) for rank in range(size)]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.running.kill()
            rank.running.wait()


def wait_for(condition: Callable[[], bool], ranks: list[Process]) -> None:
    """Wait until something is so, and fail with what ranks have said where it takes too long."""
    end = time.monotonic() + hosts.PATIENCE
    while not condition():
        assert time.monotonic() < end, [rank.said() for rank in ranks]
        time.sleep(0.01)
