"""The Python end of the bridge: what liboptplug calls.  The only file that touches cffi's ffi.

Importing it attaches it.  The functions are those of ``csrc/bridge.h``, a line or two each.
"""

# ruff: noqa: E402 (what is wrong with torch is to be said before anything else meets that)

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pathlib
import struct
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import chain

from optplug import surroundings

surroundings.load_torch()

import torch

from optplug import buffers, checkpoint, devices, modes, optimizer, schedules, spec
from optplug._optplug import ffi, lib
from optplug.errors import FileError, HostError, NonFiniteError, StateError, warn
from optplug.iterate import Iteration
from optplug.log import LEVELS, Log
from optplug.optimizer import Optimizer, SparseGrad
from optplug.plans import Operation, Plan

_optimizers: dict[int, Optimizer] = {}
_settings = {
    "third_party": False,
    "error_if_nonfinite": False,
    "plans": True,
    "compile": False,
    "master_weights": False,
}
_planned: dict[int, tuple[Plan, int]] = {}  # the plans that C has, and which version of each
_in_call = threading.local()
_warnings_of_iterations: list[bytes] = []  # made in their threads, for the host's to read
_doubles = ffi.typeof("double[]")


_NO_MEMORY = ("can't allocate memory", "not enough memory")  # how torch says it, in a RuntimeError


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "an error that cannot say what it is"


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


def _record(kind: type[BaseException], error: BaseException, trace: object) -> int:
    """Hand an exception to this thread's opt_error() and its like, and return its status."""
    if isinstance(error, KeyboardInterrupt):
        _host.interrupt()  # the host gets it after the call
    ours = isinstance(error, ValueError | StateError | NonFiniteError | FileError | HostError)
    message = _message(error)
    if not ours or not message.strip():
        message = f"{kind.__name__}: {message}" if message.strip() else f"PyTorch raised {kind.__name__}"
    lines = "".join(traceback.format_exception(kind, error, trace))
    status = _status(error)
    _host.record(status, message.encode(errors="replace"), lines.encode(errors="replace"))
    _log.debug(f"status {status}: {message}")
    return status


def _callback(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function callable from C: the whole error policy of the bridge.

    The C side gets 1 for success, and for an exception, whichever it is, its status.
    """

    @ffi.def_extern(name=function.__name__, error=lib.OPT_ERUNTIME, onerror=_record)
    @functools.wraps(function)
    def call(*args: object) -> int:
        _in_call.depth = getattr(_in_call, "depth", 0) + 1
        try:
            if modes.are_off():
                function(*args)
            else:
                with modes.set_aside():
                    function(*args)
        finally:
            _in_call.depth -= 1
        return 1

    return call


def _plans(function: Callable[..., None]) -> Callable[..., None]:
    """Let C have the optimizer's plan as it is after a function, which came without one."""

    @functools.wraps(function)
    def call(opt: int, *args: object) -> None:
        _planned.pop(opt, None)
        try:
            function(opt, *args)
        finally:
            _hand_over(opt)

    return call


def _tells(function: Callable[..., None]) -> Callable[..., None]:
    """Tell how a step was made that a function has made, where that is new."""

    @functools.wraps(function)
    def call(opt: int, *args: object) -> None:
        function(opt, *args)
        _log.steps(opt, _optimizers[opt].way)

    return call


def _on_streams(function: Callable[..., None]) -> Callable[..., None]:
    """Let a function's work on GPUs go onto the host's streams."""

    @functools.wraps(function)
    def call(opt: int, *args: object) -> None:
        streams = _optimizers[opt].streams
        streams.check_process()
        with streams.current() if streams else contextlib.nullcontext():
            function(opt, *args)

    return call


def _counted(opt: int) -> Optimizer:
    """Return an optimizer that knows of the steps that C has made."""
    optimizer = _optimizers[opt]
    optimizer.steps += _host.take_steps(opt)
    return optimizer


def _hand_over(opt: int) -> None:
    optimizer = _optimizers[opt]
    plan = optimizer.plan
    if plan is None:
        return
    alive: list[object] = []  # what the operators point to
    operators = [_operator(o, optimizer, alive) for o in plan.operations]
    stable = {"stable": 1, "direct": 0}.get(optimizer.plans, -1)
    if _host.plan(opt, ffi.new("optplug_operator[]", operators), len(operators), stable):
        _planned[opt] = plan, plan.version
    else:
        optimizer.refuse_plan()


def _refresh(opt: int) -> None:
    """Let C have the numbers of the plan that it has, as they are now."""
    plan = _optimizers[opt].plan
    theirs, version = _planned.get(opt, (None, 0))
    if plan is not theirs:
        _host.plan(opt, ffi.NULL, 0, 0)
    elif plan and plan.version != version:
        for i, operation in enumerate(plan.operations):
            _host.plan_scalars(opt, i, operation.scalars)
        _planned[opt] = plan, plan.version


def _operator(operation: Operation, optimizer: Optimizer, alive: list[object]) -> dict[str, object]:
    """Return an operation as C takes it."""
    tensors = [*chain(*operation.lists), *operation.singles]
    names = {t.dtype: ffi.new("char[]", buffers.name_of(t.dtype).encode()) for t in tensors if t is not None}
    gpu = _gpu(operation.lists[0][0])
    stream = optimizer.streams.address(gpu)
    checked = operation.lists[operation.gradients][0].dtype if operation.gradients >= 0 else None
    fields = {
        "overload": ffi.new("char[]", operation.form.overload.encode()),
        "name": ffi.new(
            "char[]",
            os.fsencode(operation.operator if operation.is_kernel else f"aten::{operation.operator}"),
        ),
        "lengths": ffi.new("int[]", [len(tensors) for tensors in operation.lists]),
        "tensors": ffi.new("optplug_tensor[]", [_tensor(t, names) for t in tensors]),
        "scalars": ffi.new("double[]", operation.scalars),
    }
    alive += [names, fields]
    return fields | {
        "lists": len(operation.form.lists),
        "doubles": len(operation.form.doubles),
        "bools": len(operation.form.bools),
        "singles": len(operation.singles),
        "optional": operation.form.optional,
        "is_kernel": operation.is_kernel,
        "gpu": gpu,
        "has_stream": stream is not None,
        "stream": ffi.cast("void *", stream or 0),
        "counters": operation.counters,
        "gradients": operation.gradients,
        "alone": operation.alone,
        "bytes": checked.itemsize if checked and optimizer.error_if_nonfinite else 0,
        "infinity": buffers.infinity(checked) if checked else 0,
    }


def _tensor(t: torch.Tensor | None, names: dict[torch.dtype, object]) -> tuple[object, ...]:
    """Return a tensor, or none, as C takes it."""
    if t is None:
        return ffi.NULL, 0, ffi.NULL, -1
    return ffi.cast("void *", t.data_ptr()), t.numel(), names[t.dtype], _gpu(t)


def _gpu(t: torch.Tensor) -> int:
    return t.device.index if t.is_cuda else -1


def _pass_on(warning: bytes) -> None:
    _host.warn(warning)
    _log.info(warning.decode())


def _catch_warnings() -> None:
    """Send what is warned of during our calls to opt_warning(), and all else where it went before."""
    others = warnings.showwarning

    @functools.wraps(others)
    def show(message, category, *where, **more):
        line = f"{category.__name__}: {' '.join(str(message).split())}".encode(errors="replace")
        if getattr(_in_call, "depth", 0):
            _pass_on(line)
        elif threading.current_thread().name == Iteration.THREAD:
            _warnings_of_iterations.append(line)
        else:
            others(message, category, *where, **more)

    warnings.showwarning = show


def _warm_up() -> None:
    """Make torch's first steps, here rather than in the host's first calls.

    They make objects of torch's that end with the process: those must be there before liboptplug's own
    end, which is to come before theirs.
    """
    Optimizer("Adam()")


def _text(name: str, value: object) -> str:
    try:
        return ffi.string(value).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: {spec.shown(ffi.string(value))}") from error


def _dtype(value: object) -> str:
    name = _text("dtype", value)
    buffers.check_dtype(name)
    return name


def _int64s(values: object, count: int) -> list[int] | None:
    return None if values == ffi.NULL else ffi.unpack(values, count)


# What no function computes: a nan with bits of our own.
_UNSET = struct.unpack("=Q", b"unset\0\xf8\x7f" if sys.byteorder == "little" else b"\x7f\xf8\0unset")[0]


def _call(what: str, function: object, user: object, values: object) -> None:
    """Call a function of the host's on ``values``, which it changes."""
    with modes.given_back():
        status = _host.call(function, user, values)
    if status < 0:
        raise HostError(f"the host's {what} failed with status {status}", status)
    if status > 0:
        raise HostError(
            f"the host's {what} returned {status}, which is neither 0 nor negative", lib.OPT_EINVAL
        )


def _evaluate(closure: object, user: object) -> float:
    """Return the loss that a closure of the host's computes."""
    place = ffi.new(_doubles, 1)
    bits = ffi.cast("uint64_t *", place)
    bits[0] = _UNSET
    _call("closure", closure, user, place)
    if bits[0] == _UNSET:
        raise HostError("the host's closure returned 0 and did not set the loss, *value", lib.OPT_EINVAL)
    return place[0]


def _factor_of(function: object, user: object) -> schedules.Function:
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
                f"the host's function returned 0 and left value[0] alone: the factor is the epoch, {value:g}"
            )
        return place[0]

    return factor


def _address(pointer: object) -> int:
    return int(ffi.cast("uintptr_t", pointer))


@_callback
def py_configure(options):
    text = _text("options", options)
    try:
        given = spec.arguments(text)
        if "save_parameters" in given:
            raise spec.SpecError(
                "save_parameters is said to each optimizer: write "
                f'opt_checkpoint(opt, "parameters={given["save_parameters"]}")'
            )
        for name in given:
            spec.choose(name, ("python", "num_threads", "log", *_settings), "option")
    except spec.SpecError as error:
        raise ValueError(f"options {spec.shown(text.strip(' ,'))}: {error}") from error
    threads, most = given.get("num_threads", 1), os.cpu_count() or 1
    if type(threads) is not int or not 1 <= threads <= most:
        raise ValueError(f"num_threads must be a whole number from 1 to {most}, got {spec.shown(threads)}")
    settings = {name: given.get(name, value) for name, value in _settings.items()}
    for name, value in settings.items():
        ways = ("stable", "direct") if name == "plans" else ()
        if type(value) is not bool and value not in ways:
            more = "".join(f" or {way!r}" for way in ways)
            raise ValueError(f"{name} must be True or False{more}, got {spec.shown(value)}")
    level = given.get("log", False)
    if level is True or not isinstance(level, bool | str) or level not in LEVELS:
        raise ValueError(f"log must be 'info', 'debug' or False, got {spec.shown(level)}")
    if "log" in given:
        _host.log_level(LEVELS[level])
    if given:
        _log.info(f"options {text.strip(' ,')}")
    if "num_threads" in given:
        torch.set_num_threads(threads)
        _host.threads(threads)
    _settings.update(settings)


@_callback
def py_enter_thread():
    torch.get_num_threads()  # sets this thread's OpenMP count, as torch does before its first loop


@_callback
def py_create(opt, text):
    _optimizers[opt] = Optimizer(
        _text("spec", text),
        third_party=_settings["third_party"],
        error_if_nonfinite=_settings["error_if_nonfinite"],
        plans=_can_plan and _settings["plans"],
        may_compile=_settings["compile"],
        master_weights=_settings["master_weights"],
    )
    _log.info(f"opt={opt}: {_text('spec', text)}")


@_callback
@_plans
@_on_streams
def py_bind(opt, name, dtype, device, ndim, shape, data, strides, grad, grad_strides, lent):
    dtype, device = _dtype(dtype), devices.find(_text("device", device))
    sizes = _int64s(shape, ndim) or []
    _optimizers[opt].bind(
        _text("name", name),
        buffers.wrap("data", _address(data), dtype, device, sizes, _int64s(strides, ndim), "strides"),
        buffers.wrap(
            "grad", _address(grad), dtype, device, sizes, _int64s(grad_strides, ndim), "grad_strides"
        ),
        bool(lent),
    )
    _log.debug(f"opt={opt}: bound {_text('name', name)!r}, {dtype} of shape {tuple(sizes)}")


@_callback
@_plans
def py_bind_sparse(opt, name, dtype, rows, columns, data, capacity, count, indices, grad_rows):
    dtype = _dtype(dtype)
    grad = SparseGrad(
        buffers.wrap("count", _address(count), "int64", devices.CPU, []),
        buffers.wrap("indices", _address(indices), "int64", devices.CPU, [capacity]),
        buffers.wrap("grad_rows", _address(grad_rows), dtype, devices.CPU, [capacity, columns]),
    )
    table = buffers.wrap("data", _address(data), dtype, devices.CPU, [rows, columns])
    _optimizers[opt].bind(_text("name", name), table, grad)
    _log.debug(f"opt={opt}: bound {_text('name', name)!r}, {dtype} of shape {(rows, columns)}, by rows")


@_callback
@_plans
def py_group(opt, options):
    _optimizers[opt].group(_text("options", options))
    _log.debug(f"opt={opt}: group {_text('options', options)}")


@_callback
@_tells
@_plans
@_on_streams
def py_step(opt):
    _optimizers[opt].step()


@_callback
@_tells
@_plans
@_on_streams
def py_step_closure(opt, closure, user, loss):
    optimizer = _optimizers[opt]

    def evaluate() -> float:
        with optimizer.streams.set_aside():  # the host's function finds its own
            return _evaluate(closure, user)

    loss[0] = optimizer.step_closure(evaluate)


@_callback
@_tells
@_plans
@_on_streams
def py_iterate(opt, loss, wanted):
    count = _host.thread_count(0)
    streams = devices.current_streams(_optimizers[opt].gpus())

    def prepare() -> None:
        devices.make_current(*streams)
        # Sums over long arrays depend on the number of threads: the step's is the caller's.
        torch.get_num_threads()  # torch sets it once itself
        _host.thread_count(count)

    wanted[0] = _optimizers[opt].iterate(loss, prepare)
    while _warnings_of_iterations:
        _pass_on(_warnings_of_iterations.pop(0))


@_callback
@_plans
def py_stream(opt, stream):
    _optimizers[opt].stream(_address(stream))


@_callback
@_plans
def py_grad_scale(opt, scale, found_inf):
    _optimizers[opt].grad_scale(_number("scale", scale, opt), _number("found_inf", found_inf, opt))


def _number(name: str, pointer: object, opt: int) -> torch.Tensor | None:
    """Return one number of the host's, where the parameters are."""
    if pointer == ffi.NULL:
        return None
    return buffers.wrap(name, _address(pointer), "float32", _optimizers[opt].device("opt_grad_scale"), [])


@_callback
@_on_streams
def py_zero_grad(opt):
    _optimizers[opt].zero_grad()


@_callback
@_on_streams
def py_clip_grad_norm(opt, max_norm, norm_type, error_if_nonfinite, total_norm):
    norm = _optimizers[opt].clip_grad_norm(max_norm, norm_type, bool(error_if_nonfinite))
    if total_norm != ffi.NULL:
        total_norm[0] = float(norm)


@_callback
@_on_streams
def py_clip_grad_value(opt, clip_value):
    _optimizers[opt].clip_grad_value(clip_value)


@_callback
def py_get(opt, group, name, value):
    value[0] = _counted(opt).get(group, _text("name", name))


@_callback
@_plans
def py_set(opt, group, options):
    _optimizers[opt].set(group, _text("options", options))
    _log.debug(f"opt={opt}: set {_text('options', options)}")


@_callback
@_plans
def py_schedule(opt, text, function, user):
    if text == ffi.NULL:
        _optimizers[opt].unschedule()
        _log.info(f"opt={opt}: no scheduler any more")
        return
    factor = None if function == ffi.NULL else _factor_of(function, user)
    _optimizers[opt].schedule(_text("spec", text), factor)
    _log.info(f"opt={opt}: scheduler {_text('spec', text)}")


@_callback
def py_schedule_step(opt, metric):
    _optimizers[opt].schedule_step(None if metric == ffi.NULL else metric[0])
    _refresh(opt)


@_callback
@_plans
@_on_streams
def py_average(opt, text):
    _optimizers[opt].average(_text("spec", text))
    _log.info(f"opt={opt}: average {_text('spec', text)}")


@_callback
@_on_streams
def py_average_get(opt, name, data):
    average = _optimizers[opt].read_average(_text("name", name))
    device = devices.place_of(_address(data), average.device)
    dtype = buffers.name_of(average.dtype)
    buffers.wrap("data", _address(data), dtype, device, average.shape).copy_(average)


@_callback
@_plans
@_on_streams
def py_average_swap(opt):
    _optimizers[opt].swap_average()


@_callback
def py_checkpoint(opt, options):
    chosen = _optimizers[opt]
    chosen.checkpoint = chosen.checkpoint.changed(_text("options", options))


@_callback
def py_attribute(opt, name, text):
    value = None if text == ffi.NULL else _text("text", text)
    _optimizers[opt].attributes.set(_text("name", name), value)


@_callback
def py_attribute_get(opt, name):
    _host.text(_optimizers[opt].attributes.get(_text("name", name)).encode())


@_callback
@_on_streams
def py_save(opt, path):
    where = os.fsdecode(ffi.string(path))
    checkpoint.save(where, _counted(opt).state_dict())
    _log.info(f"opt={opt}: saved to {where!r}")


@_callback
@_on_streams
def py_save_memory(opt, buffer, size, written):
    room = ffi.buffer(buffer, size) if buffer != ffi.NULL else None
    written[0] = checkpoint.save_memory(room, _counted(opt).state_dict())
    if room is not None:
        _log.info(f"opt={opt}: saved to {written[0]} bytes of memory")


@_callback
@_plans
@_on_streams
def py_load(opt, path):
    _load(opt, checkpoint.load, os.fsdecode(ffi.string(path)), "path")


@_callback
@_plans
@_on_streams
def py_load_memory(opt, buffer, size):
    _load(opt, checkpoint.load_memory, ffi.buffer(buffer, size), "buffer")


def _load(
    opt: int, read: Callable[..., AbstractContextManager[dict[str, object]]], where: object, name: str
) -> None:
    optimizer = _counted(opt)
    try:
        with read(where) as content:
            optimizer.load_state_dict(content)
    except ValueError as error:
        shown = f" {spec.shown(where)}" if isinstance(where, str) else ""
        raise ValueError(f"{name}{shown}: {error}") from error
    told = repr(where) if isinstance(where, str) else "memory"
    _log.info(f"opt={opt}: loaded from {told}, step {optimizer.steps}")
    for kind, text in optimizer.attached():
        _log.info(f"opt={opt}: {kind} {text}")


@_callback
def py_free(opt):
    _planned.pop(opt, None)  # C ends it with the handle
    _optimizers.pop(opt).close()
    _log.forget(opt)
    _log.debug(f"opt={opt}: ended")


@_callback
def py_describe(opt):
    _host.text(_counted(opt).describe().encode())


@_callback
def py_describe_library(lines):
    text = os.fsdecode(ffi.string(lines)) + (
        f"python: {sys.version.split()[0]} ({sys.executable})\n"
        f"torch: {torch.__version__} ({pathlib.Path(torch.__file__).parent})\n"
        f"devices: {', '.join(devices.names())}\n"
        f"threads: {torch.get_num_threads()}\n"
        f"plans: {_settings['plans'] if _can_plan else 'none: this torch lacks the C functions for them'}\n"
        + "".join(f"{name}: {value}\n" for name, value in _settings.items() if name != "plans")
        + f"log: {_told(_host.log_level(-1))}\n"
    )
    _host.text(os.fsencode(text))


def _told(level: int) -> str:
    """Return a level as log= has it."""
    return str(next(name for name, number in LEVELS.items() if number == level))


@_callback
def py_list(kind):
    name = _text("kind", kind)
    classes = {**optimizer.classes(), **schedules.classes()}
    lists = {
        "optimizers": optimizer.classes(),
        "schedulers": schedules.classes(),
        "dtypes": buffers.DTYPES,
        "devices": devices.names(),
    }
    spec.choose(name, [*lists, *classes], "list")
    lines = lists[name] if name in lists else spec.arguments_of(classes[name])
    _host.text("".join(f"{line}\n" for line in lines).encode())


_host = lib.attach()
if _host == ffi.NULL:
    raise ImportError(
        "the liboptplug of this process is of another version than the package optplug in "
        f"{pathlib.Path(__file__).parent}: link to the one that `python -m optplug config --library` names"
    )
_log = Log(_host.log_wanted, lambda level, line: _host.log(level, line.encode(errors="replace")))
_suffix = "dylib" if sys.platform == "darwin" else "so"
_libraries = pathlib.Path(torch.__file__).parent / "lib"
_can_plan = bool(
    _host.open_torch(
        os.fsencode(_libraries / f"libtorch_cpu.{_suffix}"), os.fsencode(_libraries / devices.LIBRARY)
    )
)
_warm_up()
_log.info(f"torch {torch.__version__} with {torch.get_num_threads()} threads")
_catch_warnings()
atexit.register(_host.end)
