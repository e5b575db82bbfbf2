"""Lines about what is done, for whoever listens: stderr by OPTPLUG_LOG, and a log of the host's."""

from __future__ import annotations

import time
from collections.abc import Callable

INFO, DEBUG = 1, 2  # as in csrc/log.h
LEVELS = {False: 0, "info": INFO, "debug": DEBUG}  # as opt_init's log= has them
_EVERY = 2  # seconds between lines about one long call


class Log:
    """What tells lines, if they are wanted.

    Args:
        wanted: returns the highest level that anybody wants.
        tell: takes a level and a line.
    """

    def __init__(self, wanted: Callable[[], int], tell: Callable[[int, str], None]) -> None:
        self._wanted, self._tell = wanted, tell
        self._steps: dict[int, str] = {}

    def is_wanted(self) -> bool:
        """Tell whether anybody listens."""
        return self._wanted() >= INFO

    def info(self, line: str) -> None:
        """Tell what a host may want to know of each run."""
        if self._wanted() >= INFO:
            self._tell(INFO, line)

    def debug(self, line: str) -> None:
        """Tell what helps to find a fault."""
        if self._wanted() >= DEBUG:
            self._tell(DEBUG, line)

    def progress(self, what: str) -> Callable[[int, int], None]:
        """Return a function that is told how many bytes of how many are done, and logs it now and then."""
        last = time.monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _EVERY:
                last = now
                self.info(f"{what}: {done / 1e9:.1f} of {total / 1e9:.1f} GB")

        return tell

    def steps(self, opt: int, way: str) -> None:
        """Tell how an optimizer's steps are made, where that is new."""
        if self._steps.get(opt) != way:
            self._steps[opt] = way
            self.info(f"opt={opt}: steps by {way}")

    def forget(self, opt: int) -> None:
        """Know nothing of an optimizer that has ended."""
        self._steps.pop(opt, None)
