"""What the bridge's functions share: the optimizers by handle, errors, streams, and the plan after them."""

from __future__ import annotations

import functools
from collections.abc import Callable

from optplug import caught, description, host, modes
from optplug._optplug import ffi, lib
from optplug.host import log
from optplug.optimizer import HostedOptimizer

#: All optimizers, by their handles.
optimizers: dict[int, HostedOptimizer] = {}


def callback(function: Callable[..., int | None]) -> Callable[..., int]:
    """Make a function callable from C: the whole error policy of the bridge.

    The C side gets what it returns, or 1 for success, and for an exception, whichever it is, its status.
    """

    @ffi.def_extern(name=function.__name__, error=lib.OPT_ERUNTIME, onerror=host.record)
    @functools.wraps(function)
    def call(*args: object) -> int:
        here = caught.here
        before, here.sink = here.sink, host.warned  # `caught.to`, which takes longer
        try:
            if modes.are_off():  # without a context, which takes as long as all of this
                return function(*args) or 1
            with modes.set_aside():
                return function(*args) or 1
        finally:
            here.sink = before

    return call


def changes_plan(function: Callable[..., None]) -> Callable[..., int | None]:
    """Let C know whether there is a plan after a function, for which it then asks."""

    @functools.wraps(function)
    def call(opt: int, *args: object) -> int | None:
        function(opt, *args)
        return None if optimizers[opt].plan is None else 2

    return call


def tells(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """Tell how a step was made that a function has made, where that is new."""

    @functools.wraps(function)
    def call(opt: int, *args: object) -> int | None:
        result = function(opt, *args)
        if log.is_wanted():
            log.steps(opt, description.way(optimizers[opt]))
        return result

    return call


def on_streams(function: Callable[..., None]) -> Callable[..., None]:
    """Let a function's work on GPUs go onto the host's streams."""

    @functools.wraps(function)
    def call(opt: int, *args: object) -> None:
        streams = optimizers[opt].streams
        streams.check_process()
        if not streams:
            function(opt, *args)
            return
        with streams.current():
            function(opt, *args)

    return call
