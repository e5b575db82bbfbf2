"""A step by reverse communication: it stops where it would call the closure, and the host goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import torch


class _AbandonedError(Exception):
    """Raised inside a step that nobody will end."""


class Iteration:
    """One step, in a thread of its own that waits for the host whenever it wants a loss.

    Args:
        step: makes the step with the closure that it is given.
    """

    def __init__(self, step: Callable[[Callable[[], float]], object]) -> None:
        self._step = step
        self._to_host: SimpleQueue[bool | BaseException] = SimpleQueue()
        self._to_step: SimpleQueue[float | None] = SimpleQueue()
        # Sums over long arrays depend on the number of threads: the step's is the caller's.
        self._thread = threading.Thread(target=self._run, args=(torch.get_num_threads(),), daemon=True)
        self._started = False

    def resume(self, loss: float) -> bool:
        """Go on with the loss that was wanted; the first time none was, and it is ignored.

        Returns:
            True if a loss is wanted, False if the step is made.
        """
        if self._started:
            self._to_step.put(loss)
        else:
            self._started = True
            self._thread.start()
        message = self._to_host.get()
        if isinstance(message, BaseException):
            raise message
        return message

    def abandon(self) -> None:
        """End the step where it is."""
        self._to_step.put(None)
        self._thread.join()

    def _run(self, threads: int) -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        try:
            self._step(self._evaluate)
            self._to_host.put(False)
        except BaseException as error:
            self._to_host.put(error)

    def _evaluate(self) -> float:
        self._to_host.put(True)
        loss = self._to_step.get()
        if loss is None:
            raise _AbandonedError
        return loss
