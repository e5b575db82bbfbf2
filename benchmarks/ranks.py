"""What one optimizer over many ranks keeps and sends, by the number of ranks.

python benchmarks/ranks.py

Up to 8 ranks are processes, over gloo.  More are computed: an optimizer takes itself for one of so many, and
a collective gives it its own part for that of each other rank.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import numpy as np

from optplug import _bridge
from optplug.ctypes_api import Optimizer, load

N = 10_000_000  # float32 values, of one parameter
PROCESSES = (1, 2, 4, 8)
COMPUTED = (1, 8, 64, 1000)


class One:
    """One rank of many, as optplug asks a communicator of mpi4py's, with none of the others there."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def Get_rank(self) -> int:  # noqa: N802 (mpi4py's)
        """Return which rank this is."""
        return self._rank

    def Get_size(self) -> int:  # noqa: N802 (mpi4py's)
        """Return how many there are."""
        return self._size

    def Allgather(self, send: np.ndarray, receive: np.ndarray) -> None:  # noqa: N802 (mpi4py's)
        """Let all parts be this rank's."""
        receive.reshape(self._size, -1)[:] = send

    def Reduce_scatter_block(self, send: np.ndarray, receive: np.ndarray) -> None:  # noqa: N802 (mpi4py's)
        """Let the sums be this rank's part."""
        receive[:] = send.reshape(self._size, -1)[self._rank]


def resident() -> float:
    """Return how much memory this process has, in MB."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def step(comm: Any) -> tuple[float, float, int, float]:
    """Return the state and what it took to make it, in MB, and a step's collectives and MB sent."""
    w, dw = np.zeros(N, np.float32), np.ones(N, np.float32)
    with Optimizer("Adam(lr=0.1)") as opt:
        opt.distribute("Replicate()", comm)
        opt.bind("w", w, dw)
        before = resident()
        sent = []
        for _ in range(2):
            opt.step()
            said = re.search(r"(\d+) collectives, (\d+) bytes", opt.describe())
            sent.append((int(said[1]), int(said[2])) if said else (0, 0))
        after = resident()
        states = _bridge.optimizer_of(opt._handle).run.built.state.values()
        state = sum(t.nbytes for values in states for t in values.values()) / 1e6
    calls, sent_bytes = (b - a for a, b in zip(*sent, strict=True))
    size = comm.Get_size() if comm else int(os.environ["WORLD_SIZE"])
    return state, after - before, calls, sent_bytes * (size - 1) / 1e6


def main() -> None:
    """Print the rows of the page's tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--one", action="store_true", help="be one of torchrun's processes")
    load().optplug_init(b"num_threads=1")
    if parser.parse_args().one:
        state, grown, calls, sent = step(None)
        if int(os.environ["RANK"]) == 0:
            size = os.environ["WORLD_SIZE"]
            print(f"| {size} | {state:.1f} | {grown:.0f} | {calls} | {sent:.1f} |", flush=True)
        return
    print("| ranks | state, MB | memory grown by, MB | collectives a step | sent a step, MB |")
    print("|---|---|---|---|---|")
    torchrun = str(pathlib.Path(sys.executable).parent / "torchrun")
    for size in PROCESSES:
        command = [torchrun, "--standalone", "--nproc-per-node", str(size), __file__, "--one"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    print("computed:")
    for size in COMPUTED:
        found = [step(One(rank, size)) for rank in sorted({0, size // 2, size - 1})]
        state, _, calls, sent = (max(column) for column in zip(*found, strict=True))
        print(f"| {size} | {state:.3f} | | {calls} | {sent:.1f} |", flush=True)


if __name__ == "__main__":
    main()
