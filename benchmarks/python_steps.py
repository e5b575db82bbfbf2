"""Plain PyTorch, with the implementation that the command line names: default, foreach or fused.

It speaks what ``server.h`` and ``steps.c`` say.
"""

import functools
import inspect
import itertools
import os
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optplug.tools.bench import seconds_of

TIMED_STEPS, FIRST_ITERATIONS = 4, 4  # of LBFGS: see evaluations.h


def filled(size: int) -> torch.Tensor:
    """Return values that are small and not zero."""
    return 0.1 + 0.001 * (torch.arange(size) % 97)


class Stepper:
    """An optimizer, what steps along, and all in one step."""

    def __init__(self, implementation: str, kind: str, name: str, count: int, size: int) -> None:
        """Make an optimizer and its first three steps, or raise an error if torch has none of that kind."""
        self.parameters = []
        for _ in range(count):
            value = filled(size)
            p = torch.nn.Parameter(value.reshape(-1, 10) if name in ("Muon", "SparseAdam") else value)
            p.grad = p.detach().clone()
            self.parameters.append(p)
        options = {} if implementation == "default" else {implementation: True}
        self.optimizer = getattr(torch.optim, name)(self.parameters, lr=1e-3, **options)
        self.averages: list[torch.Tensor] = []
        self.step = self._choose(kind, name)
        for _ in range(3):
            self.step()

    def values(self, steps: int) -> None:
        """Make so many steps, and write the parameters and their averages to a file."""
        for _ in range(steps):
            self.step()
        write([*self.parameters, *self.averages])

    def save(self) -> None:
        """Write the optimizer's state to the disk."""
        with pathlib.Path("torch-benchmark.pt").open("wb") as file:
            torch.save(self.optimizer.state_dict(), file)
            file.flush()
            os.fsync(file.fileno())

    def _choose(self, kind: str, name: str) -> Callable[[], object]:
        parameters, optimizer = self.parameters, self.optimizer
        if kind == "loop":
            model = torch.nn.ParameterList(parameters)
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
            self.averages = list(average.parameters())
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1000, 0.99)

            def step() -> None:
                torch.nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()
                scheduler.step()
                average.update_parameters(model)

        elif kind == "set":
            lrs = itertools.cycle([1e-3 + 1e-6 * k for k in range(97)])

            def step() -> None:
                lr = next(lrs)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()

        elif name == "LBFGS":
            return functools.partial(optimizer.step, lambda: 1.0)
        elif name == "SparseAdam":
            row, values = torch.tensor([[0]]), [p.grad[:1] for p in parameters]

            def step() -> None:
                for p, value in zip(parameters, values, strict=True):
                    p.grad = torch.sparse_coo_tensor(row, value, p.shape, check_invariants=False)
                optimizer.step()

        else:
            return optimizer.step
        return step


def write(tensors: list[torch.Tensor]) -> None:
    """Write values to the file that BENCHMARK_VALUES names."""
    with pathlib.Path(os.environ["BENCHMARK_VALUES"]).open("wb") as file:
        for tensor in tensors:
            tensor.detach().numpy().tofile(file)


def setup(implementation: str, kind: str, name: str, count: int, size: int) -> Stepper | None:
    """Return what makes a step, or None if there is no such optimizer."""
    known = inspect.signature(getattr(torch.optim, name)).parameters
    if implementation != "default" and implementation not in known:
        return None
    try:
        return Stepper(implementation, kind, name, count, size)
    except (RuntimeError, TypeError):
        return None


# ---- what else is measured ----


def new_optimizer(values: np.ndarray, slopes: np.ndarray) -> torch.optim.Optimizer:
    """Wrap a host's arrays, as bind does, and make an optimizer of them."""
    p = torch.nn.Parameter(torch.from_numpy(values))
    p.grad = torch.from_numpy(slopes)
    return torch.optim.Adam([p], lr=1e-3)


def first_step(make: Callable[[], torch.optim.Optimizer], least: float) -> float:
    """Return the seconds of a new optimizer's first step."""
    spent, count, end = 0.0, 0, time.perf_counter() + least
    while time.perf_counter() < end:
        optimizer = make()
        start = time.perf_counter()
        optimizer.step()
        spent += time.perf_counter() - start
        count += 1
    return spent / count


def live_three_steps(make: Callable[[], torch.optim.Optimizer]) -> None:
    """Let an optimizer make its first three steps, and be gone."""
    optimizer = make()
    for _ in range(3):
        optimizer.step()


def time_evaluations(size: int, is_fresh: bool = False) -> float:
    """Return the seconds per evaluation of LBFGS beside the closure: see ``evaluations.h``."""
    p = torch.nn.Parameter(filled(size))
    p.grad = torch.zeros(size)
    point, slope, weight = p.detach().numpy(), p.grad.numpy(), 1.0 + np.arange(size, dtype=float) ** 2
    first, evaluations, inside = point.copy(), 0, 0.0

    def closure() -> float:
        nonlocal evaluations, inside
        start = time.perf_counter()
        difference = point.astype(float) - 1
        slope[:] = weight * difference
        loss = float(np.add.accumulate(0.5 * weight * difference * difference)[-1])  # one after the other
        evaluations += 1
        inside += time.perf_counter() - start
        return loss

    spent, count = 0.0, 0
    while spent < 0.1:
        point[:] = first
        iterations = FIRST_ITERATIONS if is_fresh else 20
        optimizer = torch.optim.LBFGS([p], max_iter=iterations, line_search_fn="strong_wolfe")
        if not is_fresh:
            optimizer.step(closure)
        evaluations, inside, start = 0, 0.0, time.perf_counter()
        for _ in range(1 if is_fresh else TIMED_STEPS):
            optimizer.step(closure)
        spent += time.perf_counter() - start - inside
        count += evaluations
    write([p])
    return spent / count


def main() -> None:
    """Answer commands."""
    stepper = None
    arrays = np.zeros(50, dtype=np.float32), np.zeros(50, dtype=np.float32)
    make = functools.partial(new_optimizer, *arrays)
    for line in sys.stdin:
        answer = 0.0
        match line.rstrip("\n").split("\t"):
            case [kind, name, count, size]:
                stepper = setup(sys.argv[1], kind, name, int(count), int(size))
                answer = float(stepper is not None)
            case ["time", seconds]:
                answer = seconds_of(stepper.step, float(seconds))
            case ["values", steps]:
                stepper.values(int(steps))
            case ["live", _]:
                answer = seconds_of(make, 0.2)
            case ["first", _]:
                answer = first_step(make, 0.2)
            case ["life", _]:
                answer = seconds_of(functools.partial(live_three_steps, make), 0.2)
            case ["fresh", size]:
                answer = time_evaluations(int(size), is_fresh=True)
            case ["evaluations", size]:
                answer = time_evaluations(int(size))
            case ["save", size]:
                saver = Stepper(sys.argv[1], "new", "Adam", 1, int(size))
                answer = seconds_of(saver.save, 0.2)
                pathlib.Path("torch-benchmark.pt").unlink()
            case ["end"]:
                stepper = None
        print(answer, flush=True)


main()
