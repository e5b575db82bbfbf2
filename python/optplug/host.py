"""The host as Python sees it: what liboptplug does for us there, and its own functions.

Importing this attaches the bridge.
"""

from __future__ import annotations

import pathlib
import struct
import sys
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from optplug import modes, schedules
from optplug._optplug import ffi, lib
from optplug.buffers import name_of
from optplug.errors import FileError, HostError, NonFiniteError, RankError, StateError, warn
from optplug.log import Log
from optplug.spec import shown

if lib.attach() == ffi.NULL:
    raise ImportError(
        "the liboptplug of this process has a different version from the package optplug in "
        f"{pathlib.Path(__file__).parent}: link to the one that `python -m optplug config --library` names"
    )
#: liboptplug's functions, ``optplug_host`` in ``csrc/bridge.h``.
table = SimpleNamespace(
    **{name.removeprefix("host_"): getattr(lib, name) for name in dir(lib) if name.startswith("host_")}
)
#: Lines for whoever listens.
log = Log(table.log_wanted, lambda level, line: table.log(level, line.encode(errors="replace")))

# ---- its text ----


def text(name: str, value: Any) -> str:
    """Return an argument of the host's, which ``name`` is in errors."""
    try:
        return ffi.string(value).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: {shown(ffi.string(value))}") from error


def warned(line: str) -> None:
    """Hand a warning to opt_warning()."""
    table.warn(line.encode(errors="replace"))
    log.info(line)


# ---- errors ----

_NO_MEMORY = ("can't allocate memory", "not enough memory")  # how torch says it, in a RuntimeError


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "an error without a message"


def _status(error: BaseException) -> int:
    """Return the status that stands for an exception."""
    match error:
        case HostError():
            return error.status
        case StateError():
            return lib.OPT_ESTATE
        case FileError():
            return lib.OPT_EIO
        case NonFiniteError():
            return lib.OPT_ENONFINITE
        case Exception() if any(words in _message(error) for words in _NO_MEMORY):
            return lib.OPT_ENOMEM
        case ValueError() | TypeError() | KeyError():
            return lib.OPT_EINVAL
        case MemoryError():
            return lib.OPT_ENOMEM
    return lib.OPT_ERUNTIME


def record(kind: type[BaseException], error: BaseException, trace: Any) -> int:
    """Hand an exception to this thread's opt_error() and its like, and return its status."""
    if isinstance(error, KeyboardInterrupt):
        table.interrupt()  # the host gets it after the call
    ours = isinstance(error, ValueError | StateError | NonFiniteError | FileError | HostError | RankError)
    message = _message(error)
    if not ours or not message.strip():
        message = f"{kind.__name__}: {message}" if message.strip() else f"PyTorch raised {kind.__name__}"
    lines = "".join(traceback.format_exception(kind, error, trace))
    status = _status(error)
    table.record(status, message.encode(errors="replace"), lines.encode(errors="replace"))
    log.debug(f"status {status}: {message}")
    return status


# ---- its functions ----

_doubles = ffi.typeof("double[]")

# What no function computes: a nan with bits of our own.
_UNSET = struct.unpack("=Q", b"unset\0\xf8\x7f" if sys.byteorder == "little" else b"\x7f\xf8\0unset")[0]


_call_function, _call_collective = table.call, table.collective


def _call(what: str, function: Any, user: Any, values: Any) -> None:
    """Call a function of the host's on ``values``, which it changes."""
    if modes.are_set_aside():
        with modes.given_back():
            status = _call_function(function, user, values)
    else:
        status = _call_function(function, user, values)
    if status < 0:
        raise HostError(f"the host's {what} failed with status {status}", status)
    if status > 0:
        raise HostError(
            f"the host's {what} returned {status}, which is neither 0 nor negative", lib.OPT_EINVAL
        )


def closure_of(function: Any, user: Any) -> Callable[[], float]:
    """Return a closure of the host's as a step calls it: for the loss that it computes."""
    place = ffi.new(_doubles, 1)
    bits = ffi.cast("uint64_t *", place)

    def evaluate() -> float:
        bits[0] = _UNSET
        _call("closure", function, user, place)
        if bits[0] == _UNSET:
            raise HostError("the host's closure returned 0 and did not set the loss, *value", lib.OPT_EINVAL)
        return place[0]

    return evaluate


class HostCollective:
    """A collective of the host's as Python calls it, of one contiguous tensor into another.

    Args:
        function, user: by which C calls it without Python.
    """

    def __init__(self, function: Any, user: Any) -> None:
        self.function, self.user = function, user

    def __call__(self, what: str, send: Tensor, receive: Tensor) -> None:
        """Make it."""
        addresses = [ffi.cast("void *", t.data_ptr()) for t in (send, receive)]
        count, dtype = min(send.numel(), receive.numel()), name_of(send.dtype)
        status = _call_collective(self.function, self.user, what.encode(), dtype.encode(), *addresses, count)
        if status != 0:
            raise HostError(
                f"the host's collective {what!r} failed with status {status}",
                status if status < 0 else lib.OPT_EINVAL,
            )


def factor_of(function: Any, user: Any) -> schedules.Function:
    """Return a schedule's function of the host's as Python calls it.

    A factor may be the epoch and be meant so: that the function has not set it is a warning, the first time.
    Of epoch 1 nothing is said: until they fall, most factors are 1.
    """
    is_told = False

    def factor(value: float, group: int = 0) -> float:
        nonlocal is_told
        place = ffi.new(_doubles, (value, group))
        _call("function", function, user, place)
        if place[0] == value != 1 and not is_told:
            is_told = True
            warn(
                f"the host's function returned 0 and left value[0] unchanged: the factor is the epoch, "
                f"{value:g}"
            )
        return place[0]

    return factor
