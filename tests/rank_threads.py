"""Ranks that are threads of one process, each with an optimizer of its own, and real collectives."""

from __future__ import annotations

import collections
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


class Turns:
    """Who of the ranks runs: one of them, until it waits for others.

    So threads do not exchange Python's lock at each call of torch's, and ranks that would wait for ever are
    an error at once.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._turns = [threading.Lock() for _ in range(size)]
        self._ready = collections.deque(range(size))
        self._met: dict[int, tuple[np.ndarray, Callable[[list[np.ndarray]], None]]] = {}
        self._failed: dict[int, BaseException] = {}
        for turn in self._turns:
            turn.acquire()

    def begin(self, rank: int) -> None:
        """Wait for one's turn."""
        assert self._turns[rank].acquire(timeout=_PATIENCE)
        if rank in self._failed:
            raise self._failed.pop(rank)

    def end(self) -> None:
        """Let the next rank run."""
        if self._ready:
            self._turns[self._ready.popleft()].release()
        elif self._met:
            self._fail(RuntimeError(f"rank {sorted(self._met)} would wait for ever"))

    def _fail(self, error: BaseException) -> None:
        self._failed |= dict.fromkeys(self._met, error)
        self._ready.extend(self._met)
        self._met.clear()
        self.end()

    def meet(self, rank: int, send: np.ndarray, receive: Callable[[list[np.ndarray]], None]) -> None:
        """Wait until all ranks have met, each of which then receives what all have sent."""
        self._met[rank] = send, receive
        if len(self._met) < self.size:
            self.end()
            self.begin(rank)
            return
        sent = [self._met[i][0] for i in range(self.size)]
        for i, (_, receive) in self._met.items():
            try:
                receive(sent)
            except Exception as error:
                self._failed[i] = error
        self._ready.extend(i for i in self._met if i != rank)
        self._met.clear()
        if rank in self._failed:
            raise self._failed.pop(rank)


class Comm:
    """What optplug asks of a communicator of mpi4py's."""

    def __init__(self, turns: Turns, rank: int) -> None:
        self._turns, self._rank = turns, rank
        self._thread = threading.get_ident()
        #: What was called, with how many bytes of one rank's part.
        self.calls: list[tuple[str, int]] = []

    def Get_rank(self) -> int:  # noqa: N802 (mpi4py's)
        return self._rank

    def Get_size(self) -> int:  # noqa: N802 (mpi4py's)
        return self._turns.size

    def Barrier(self) -> None:  # noqa: N802 (mpi4py's)
        self._turns.meet(self._rank, np.empty(0), lambda _: None)

    def Allgather(self, send: np.ndarray, receive: np.ndarray) -> None:  # noqa: N802 (mpi4py's)
        def gather(sent: list[np.ndarray]) -> None:
            receive[:] = np.concatenate(sent)

        self.calls.append(("all_gather", send.nbytes))
        assert threading.get_ident() == self._thread, "not the thread that called optplug"
        self._turns.meet(self._rank, send, gather)

    def Reduce_scatter_block(self, send: np.ndarray, receive: np.ndarray) -> None:  # noqa: N802 (mpi4py's)
        def reduce(sent: list[np.ndarray]) -> None:
            parts = [part.reshape(len(sent), -1)[self._rank] for part in sent]
            receive[:] = sum(parts[1:], parts[0].copy())

        self.calls.append(("reduce_scatter", receive.nbytes))
        assert threading.get_ident() == self._thread, "not the thread that called optplug"
        self._turns.meet(self._rank, send, reduce)


def on_ranks(size: int, work: Callable[[Comm], Any]) -> list[Any]:
    """Do some work on each rank, and return what came of it, by rank: results, or errors of optplug's."""
    turns = Turns(size)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        turns.begin(rank)
        try:
            results[rank] = work(Comm(turns, rank))
        except BaseException as error:
            results[rank] = error
        turns.end()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for t in threads:
        t.start()
    turns.end()
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
