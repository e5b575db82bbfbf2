"""Ranks that are threads of one process, each with an optimizer of its own, and real collectives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from optplug.ctypes_api import Error, Optimizer

_PATIENCE = 300
#: Classes whose steps need nothing of other ranks.
ELEMENTWISE = [
    "Adadelta()",
    "Adagrad(lr=0.1)",
    "Adam(lr=0.01, amsgrad=True)",
    "AdamW(lr=0.01)",
    "Adamax(lr=0.01)",
    "ASGD(lr=0.01)",
    "NAdam(lr=0.01)",
    "RAdam(lr=0.01)",
    "RMSprop(lr=0.01, centered=True)",
    "Rprop(lr=0.01)",
    "SGD(lr=0.1, momentum=0.9)",
]


class Comm:
    """What optplug asks of a communicator of mpi4py's."""

    def __init__(self, shared: dict[str, Any], rank: int, size: int) -> None:
        self._shared, self._rank, self._size = shared, rank, size
        self._thread = threading.get_ident()
        #: What was called, with how many bytes of one rank's part.
        self.calls: list[tuple[str, int]] = []

    def Get_rank(self) -> int:  # noqa: N802 (mpi4py's)
        return self._rank

    def Get_size(self) -> int:  # noqa: N802 (mpi4py's)
        return self._size

    def _all(self, send: np.ndarray) -> list[np.ndarray]:
        assert threading.get_ident() == self._thread, "not the thread that called optplug"
        self._shared["wait"]()
        self._shared[self._rank] = send
        self._shared["wait"]()
        return [self._shared[i] for i in range(self._size)]

    def Allgather(self, send: np.ndarray, receive: np.ndarray) -> None:  # noqa: N802 (mpi4py's)
        self.calls.append(("all_gather", send.nbytes))
        receive[:] = np.concatenate(self._all(send))
        self._shared["wait"]()

    def Reduce_scatter_block(self, send: np.ndarray, receive: np.ndarray) -> None:  # noqa: N802 (mpi4py's)
        self.calls.append(("reduce_scatter", receive.nbytes))
        parts = [part.reshape(self._size, -1)[self._rank] for part in self._all(send)]
        receive[:] = sum(parts[1:], parts[0].copy())
        self._shared["wait"]()


def on_ranks(size: int, work: Callable[[Comm], Any]) -> list[Any]:
    """Do some work on each rank, and return what came of it, by rank: results, or errors of optplug's."""
    barrier = threading.Barrier(size)
    shared: dict[str, Any] = {"wait": lambda: barrier.wait(_PATIENCE)}
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(Comm(shared, rank, size))
        except Error as error:
            results[rank] = error
        except BaseException as error:
            results[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, Error):
            raise result
    return results


def bounds(n: int, rank: int, size: int, how: str) -> slice:
    """Return a rank's part of n: "even" as they can be, "lopsided", or all at the "last" rank."""
    if how == "even":
        return slice(n * rank // size, n * (rank + 1) // size)
    if how == "lopsided":
        start = sum(n >> (i + 1) for i in range(rank))
        return slice(start, n if rank == size - 1 else start + (n >> (rank + 1)))
    return slice(0, n if rank == size - 1 else 0)


def made(spec: str, placement: str, comm: Comm | None) -> Optimizer:
    """Return an optimizer over ranks, or of one process."""
    opt = Optimizer(spec)
    if comm is not None:
        opt.distribute(placement, comm)
    return opt


def drawn(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(shape)
    return (values + 1j * generator.standard_normal(shape) if "complex" in dtype else values).astype(dtype)


def rosenbrock(w, dw):
    a, b = w[0::2], w[1::2]
    dw[0::2] = -2 * (1 - a) - 400 * a * (b - a * a)
    dw[1::2] = 200 * (b - a * a)
    return float(((1 - a) ** 2 + 100 * (b - a * a) ** 2).sum())
