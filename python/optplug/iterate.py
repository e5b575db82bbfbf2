"""A step or a check by reverse communication: it stops where it would call the closure."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

from optplug import caught
from optplug.errors import StateError


class _AbandonedError(Exception):
    """Raised inside a step that nobody will end."""


class Iteration:
    """One step, in a thread of its own that waits for the host whenever it wants a loss.

    Args:
        called: what the host calls for it, and what it could call instead with a function.
        step: makes the step with the closure that it is given.
        prepare: is called in the thread before.
    """

    def __init__(
        self,
        called: tuple[str, str],
        step: Callable[[Callable[[], float]], float],
        prepare: Callable[[], None],
    ) -> None:
        self.called, self._instead = called
        #: What the step has returned.
        self.result = math.nan
        self._step, self._prepare = step, prepare
        self._to_host: SimpleQueue[bool | BaseException | Callable[[], None]] = SimpleQueue()
        self._to_step: SimpleQueue[float | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()  # work that the host's thread has done
        self._thread = threading.Thread(target=self._run, name="optplug.iterate", daemon=True)
        self._warnings: SimpleQueue[str] = SimpleQueue()  # made in the thread, for the host's to read
        self._process = os.getpid()
        self._started = self._is_abandoned = False

    def resume(self, loss: float) -> bool:
        """Go on with the loss that was wanted; the first time none was, and it is ignored.

        Returns:
            True if a loss is wanted, False if the step is made.

        Raises:
            StateError: the thread has stayed behind in the process that has forked this one.
        """
        if os.getpid() != self._process:
            raise StateError(f"{self.called} was begun in the parent process: finish it there")
        if self._started:
            self._to_step.put(loss)
        else:
            self._started = True
            try:
                self._thread.start()
            except RuntimeError as error:
                raise RuntimeError(
                    f"{self.called} needs a thread, and this process can create no more: raise the limit "
                    f"(ulimit -u, ulimit -v), or call {self._instead}"
                ) from error
        while callable(message := self._to_host.get()):
            self._done.put(_error_of(message))
        while not self._warnings.empty():
            caught.pass_on(self._warnings.get())
        if isinstance(message, BaseException):
            raise message
        return message

    def abandon(self) -> None:
        """End the step where it is."""
        if os.getpid() == self._process:
            self._is_abandoned = True
            self._to_step.put(None)
            self._thread.join()

    def in_host(self, work: Callable[[], None]) -> None:
        """Do some work in the host's thread, which alone may communicate, if this is the step's."""
        if threading.current_thread() is not self._thread:
            work()
            return
        if self._is_abandoned:
            raise _AbandonedError
        self._to_host.put(work)
        error = self._done.get()
        if error is not None:
            raise error

    def _run(self) -> None:
        try:
            with caught.to(self._warnings.put):
                self._prepare()
                self.result = self._step(self._evaluate)
            self._to_host.put(False)
        except BaseException as error:
            self._to_host.put(error)

    def _evaluate(self) -> float:
        self._to_host.put(True)
        loss = self._to_step.get()
        if loss is None:
            raise _AbandonedError
        return loss


def _error_of(work: Callable[[], None]) -> BaseException | None:
    try:
        work()
    except BaseException as error:
        return error
    return None
