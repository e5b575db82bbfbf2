"""Plain PyTorch's fused Adam on a GPU.

It speaks what ``server.h`` and ``gpu.h`` say.
"""

import os
import pathlib
import sys
import time
from collections.abc import Callable

import torch

GPU = torch.device("cuda:0")
HOLD_SIZE, MOST_HOLDS = 2**28, 64


class Timer:
    """What times steps as ``gpu.h`` does."""

    def __init__(self) -> None:
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._memory = torch.empty(HOLD_SIZE, dtype=torch.uint8, device=GPU)
        self._holds = 1

    def host(self, step: Callable[[], object], steps: int) -> float:
        """Return the seconds that the call of a step takes, of so many onto an idle GPU."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        spent = time.perf_counter() - start
        torch.cuda.synchronize()
        return spent / steps

    def device(self, step: Callable[[], object], steps: int) -> float:
        """Return the seconds that the GPU takes for a step, of so many that wait in its queue."""
        while True:
            for _ in range(self._holds):
                self._memory.zero_()
            self._begin.record()
            for _ in range(steps):
                step()
            is_held = not self._begin.query()
            self._end.record()
            self._end.synchronize()
            if is_held or self._holds == MOST_HOLDS:
                return 1e-3 * self._begin.elapsed_time(self._end) / steps
            self._holds *= 2


def setup(name: str, count: int, size: int) -> torch.optim.Optimizer:
    """Return an optimizer that has made its first steps."""
    parameters = []
    for _ in range(count):
        p = torch.nn.Parameter((0.1 + 0.001 * (torch.arange(size) % 97)).to(GPU))
        p.grad = p.detach().clone()
        parameters.append(p)
    optimizer = getattr(torch.optim, name)(parameters, lr=1e-3, fused=True)
    for _ in range(3):
        optimizer.step()
    return optimizer


def write_values(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Make steps down half the square of the parameters, and write these to a file."""
    parameters = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        for p in parameters:
            p.grad.copy_(p.detach())
        optimizer.step()
    with pathlib.Path(os.environ["BENCHMARK_VALUES"]).open("wb") as file:
        for p in parameters:
            p.detach().cpu().numpy().tofile(file)


def main() -> None:
    """Answer commands."""
    timer, optimizer = Timer(), None
    for line in sys.stdin:
        answer = 0.0
        match line.rstrip("\n").split("\t"):
            case ["new", name, count, size]:
                optimizer = setup(name, int(count), int(size))
                answer = 1
            case ["host", steps]:
                answer = timer.host(optimizer.step, int(steps))
            case ["device", steps]:
                answer = timer.device(optimizer.step, int(steps))
            case ["values", steps]:
                write_values(optimizer, int(steps))
            case ["end"]:
                optimizer = None
        print(answer, flush=True)


main()
