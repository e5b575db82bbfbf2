"""The Python end of the bridge: what liboptplug calls.  The only file that touches cffi's ffi.

Importing it attaches it.  The functions are those of ``csrc/bridge.h``, a line or two each.
"""

from __future__ import annotations

import functools
import pathlib
import sys
import traceback
from collections.abc import Callable

try:
    import torch
except ImportError as error:
    raise ImportError(
        f"{error}: PyTorch is missing or broken in that environment; run "
        f"{sys.executable or 'python3'} -m pip install 'torch>=2.11'"
    ) from error

if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 11):
    raise ImportError(
        f"torch {torch.__version__} is too old, optplug needs 2.11: "
        f"run {sys.executable} -m pip install --upgrade torch"
    )

from optplug import buffers, spec
from optplug._optplug import ffi, lib
from optplug.optimizer import Optimizer, StateError

_optimizers: dict[int, Optimizer] = {}
_settings = {"third_party": False}


def _status(error: BaseException) -> int:
    """Return the status that stands for an exception."""
    match error:
        case StateError():
            return lib.OPT_ESTATE
        case ValueError() | TypeError() | KeyError():
            return lib.OPT_EINVAL
        case MemoryError():
            return lib.OPT_ENOMEM
    return lib.OPT_ERUNTIME


def _record(kind: type[BaseException], error: BaseException, trace: object) -> int:
    """Hand an exception to this thread's opt_error() and opt_traceback(), and return its status."""
    message = str(error) if isinstance(error, ValueError | StateError) else f"{kind.__name__}: {error}"
    lines = "".join(traceback.format_exception(kind, error, trace))
    _host.record(message.encode(errors="replace"), lines.encode(errors="replace"))
    return _status(error)


def _callback(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function callable from C: the whole error policy of the bridge.

    The C side gets 1 for success, and for an exception, whichever it is, its status.
    """

    @ffi.def_extern(name=function.__name__, error=lib.OPT_ERUNTIME, onerror=_record)
    @functools.wraps(function)
    def call(*args: object) -> int:
        function(*args)
        return 1

    return call


def _text(name: str, value: object) -> str:
    try:
        return ffi.string(value).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: {spec.shown(ffi.string(value))}") from error


def _int64s(values: object, count: int) -> list[int] | None:
    return None if values == ffi.NULL else ffi.unpack(values, count)


def _address(pointer: object) -> int:
    return int(ffi.cast("uintptr_t", pointer))


@_callback
def py_configure(options):
    text = _text("options", options)
    try:
        given = spec.arguments(text)
        for name in given:
            spec.choose(name, ("python", "num_threads", "third_party"), "option")
    except spec.SpecError as error:
        raise ValueError(f"options {spec.shown(text.strip(' ,'))}: {error}") from error
    threads = given.get("num_threads", 1)
    if type(threads) is not int or threads < 1:
        raise ValueError(f"num_threads must be a positive whole number, got {spec.shown(threads)}")
    third_party = given.get("third_party", _settings["third_party"])
    if type(third_party) is not bool:
        raise ValueError(f"third_party must be True or False, got {spec.shown(third_party)}")
    if "num_threads" in given:
        torch.set_num_threads(threads)
        _host.threads(threads)
    _settings["third_party"] = third_party


@_callback
def py_enter_thread():
    torch.get_num_threads()  # sets this thread's OpenMP count, as torch does before its first loop


@_callback
def py_create(opt, text):
    _optimizers[opt] = Optimizer(_text("spec", text), _settings["third_party"])


@_callback
def py_bind(opt, name, dtype, device, ndim, shape, data, strides, grad, grad_strides):
    dtype, device = _text("dtype", dtype), _text("device", device)
    sizes = _int64s(shape, ndim) or []
    _optimizers[opt].bind(
        _text("name", name),
        buffers.wrap("data", _address(data), dtype, device, sizes, _int64s(strides, ndim), "strides"),
        buffers.wrap(
            "grad", _address(grad), dtype, device, sizes, _int64s(grad_strides, ndim), "grad_strides"
        ),
    )


@_callback
def py_step(opt):
    _optimizers[opt].step()


@_callback
def py_free(opt):
    del _optimizers[opt]


@_callback
def py_describe(opt):
    _host.text(_optimizers[opt].describe().encode())


@_callback
def py_describe_library(lines):
    devices = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    text = _text("lines", lines) + (
        f"python: {sys.version.split()[0]} ({sys.executable})\n"
        f"torch: {torch.__version__} ({pathlib.Path(torch.__file__).parent})\n"
        f"devices: {', '.join(devices)}\n"
        f"threads: {torch.get_num_threads()}\n"
    )
    _host.text(text.encode(errors="replace"))


_host = lib.attach()
if _host == ffi.NULL:
    raise ImportError(
        "the liboptplug of this process is of another version than the package optplug in "
        f"{pathlib.Path(__file__).parent}: link to the one that `python -m optplug config --library` names"
    )
