"""Plain PyTorch, with the implementation that the command line names: default, foreach or fused.

It speaks what ``server.h`` says.
"""

import functools
import inspect
import os
import pathlib
import sys

import torch

from optplug.tools.bench import seconds_of


def setup(implementation: str, name: str, count: int, size: int):
    """Return a function that makes a step, or None if there is no such optimizer."""
    cls = getattr(torch.optim, name)
    if implementation != "default" and implementation not in inspect.signature(cls).parameters:
        return None
    options = {} if implementation == "default" else {implementation: True}
    parameters = []
    for _ in range(count):
        value = 0.1 + 0.001 * (torch.arange(size) % 97)
        p = torch.nn.Parameter(value.reshape(-1, 10) if name in ("Muon", "SparseAdam") else value)
        p.grad = p.detach().clone()
        parameters.append(p)
    row, values = torch.tensor([[0]]), [p.grad[:1] for p in parameters]
    try:
        optimizer = cls(parameters, lr=1e-3, **options)
        step = optimizer.step
        if name == "LBFGS":
            step = functools.partial(optimizer.step, lambda: 1.0)
        elif name == "SparseAdam":

            def step() -> None:
                for p, value in zip(parameters, values, strict=True):
                    p.grad = torch.sparse_coo_tensor(row, value, p.shape, check_invariants=False)
                optimizer.step()

        for _ in range(3):
            step()
    except (RuntimeError, TypeError):
        return None
    return step


def save(optimizer: torch.optim.Optimizer) -> None:
    """Write the optimizer's state to the disk."""
    with pathlib.Path("torch-benchmark.pt").open("wb") as file:
        torch.save(optimizer.state_dict(), file)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    """Answer commands."""
    step = None
    for line in sys.stdin:
        match line.rstrip("\n").split("\t"):
            case ["new", name, count, size]:
                step = setup(sys.argv[1], name, int(count), int(size))
                print(int(step is not None), flush=True)
            case ["time", seconds]:
                print(seconds_of(step, float(seconds)), flush=True)
            case ["save", size]:
                step = setup(sys.argv[1], "Adam", 1, int(size))
                print(seconds_of(functools.partial(save, step.__self__), 0.2), flush=True)
                pathlib.Path("torch-benchmark.pt").unlink()
            case ["end"]:
                step = None
                print(0, flush=True)


main()
