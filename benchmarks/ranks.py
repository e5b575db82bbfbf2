"""What one optimizer over many ranks keeps and sends, by the number of ranks.

python benchmarks/ranks.py [--values 10000000] [--processes 1 2 4 8]

Up to 8 ranks are processes, over gloo.  More are computed with torch's fake backend: an optimizer takes
itself for one of so many, of which the others have what it has.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import torch
from torch.testing._internal.distributed import fake_pg

from optplug import _bridge
from optplug.ctypes_api import Optimizer, load

COMPUTED = (8, 64, 1000)


def start_alone(rank: int, size: int) -> None:
    """Let this process be one rank of many by torch's fake backend, which takes all for what this one is."""
    store = fake_pg.FakeStore()
    torch.distributed.init_process_group("fake", store=store, rank=rank, world_size=size)

    def add_up(receive: torch.Tensor, send: torch.Tensor, **_: bool) -> torch.futures.Future:
        receive.copy_(send.view(size, -1)[rank] * size)  # where torch's takes this rank's for the sum
        done = torch.futures.Future()
        done.set_result(None)
        return done

    for name in ("reduce_scatter_single", "reduce_scatter_tensor"):
        setattr(torch.distributed, name, add_up)


def resident() -> float:
    """Return how much memory this process has, in MB."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def step(n: int) -> tuple[float, float, int, float]:
    """Return the state and what it took to make it, in MB, and a step's collectives and MB sent."""
    w, dw = np.ones(n, np.float32), np.ones(n, np.float32)  # memory that is there before
    with Optimizer("Adam(lr=0.1)") as opt:
        opt.distribute("Replicate()")
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
    size = torch.distributed.get_world_size()
    return state, after - before, calls, sent_bytes * (size - 1) / 1e6


def main() -> None:
    """Print the rows of the page's tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--one", action="store_true", help="be one of torchrun's processes")
    parser.add_argument("--values", type=int, default=10_000_000, help="float32, of the one parameter")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4, 8], help="ranks to measure")
    given = parser.parse_args()
    load().optplug_init(b"num_threads=1")
    if given.one:
        state, grown, calls, sent = step(given.values)
        if int(os.environ["RANK"]) == 0:
            size = os.environ["WORLD_SIZE"]
            print(f"| {size} | {state:.1f} | {grown:.0f} | {calls} | {sent:.1f} |", flush=True)
        return
    print("| ranks | state, MB | memory grown by, MB | collectives a step | sent a step, MB |")
    print("|---|---|---|---|---|")
    torchrun = str(pathlib.Path(sys.executable).parent / "torchrun")
    for size in given.processes:
        command = [torchrun, "--standalone", "--nproc-per-node", str(size), __file__, "--one"]
        command += ["--values", str(given.values)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    print("computed:")
    for size in COMPUTED:
        found = []
        for rank in sorted({0, size // 2, size - 1}):
            start_alone(rank, size)
            found.append(step(given.values))
            torch.distributed.destroy_process_group()
        state, _, calls, sent = (max(column) for column in zip(*found, strict=True))
        print(f"| {size} | {state:.3f} | | {calls} | {sent:.1f} |", flush=True)


if __name__ == "__main__":
    main()
