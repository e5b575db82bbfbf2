"""What PyTorch warns of in our calls goes to opt_warning(), and all else where it went before."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable

#: Takes a warning, one line.
Sink = Callable[[str], None]


class _Here(threading.local):
    sink: Sink | None = None


#: Where this thread's warnings go, while it is in a call of ours.
here = _Here()


class to:  # noqa: N801 (a context, as contextlib's are)
    """Send what this thread warns of in a block to a sink."""

    __slots__ = ("_before", "_sink")

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def __enter__(self) -> None:
        self._before = here.sink
        here.sink = self._sink

    def __exit__(self, *error: object) -> None:
        here.sink = self._before


def pass_on(line: str) -> None:
    """Hand a warning that another thread has made for this one to where this one's go."""
    sink = here.sink
    if sink:
        sink(line)


def install() -> None:
    """Begin to catch warnings."""
    others = warnings.showwarning

    @functools.wraps(others)
    def show(message, category, *where, **more):  # type: ignore[no-untyped-def]
        sink = here.sink
        if sink:
            sink(f"{category.__name__}: {' '.join(str(message).split())}")
        else:
            others(message, category, *where, **more)

    warnings.showwarning = show
