"""The Python end of the bridge: what liboptplug calls.

Importing it attaches it.  The functions are those of ``csrc/bridge.h``, a line or two each.
"""

# ruff: noqa: E402 (what is wrong with torch is to be said before anything else meets that)

from __future__ import annotations

import atexit
import os
import pathlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

from optplug import surroundings

surroundings.load_torch()

import torch

from optplug import (
    buffers,
    caught,
    checkpoint,
    description,
    devices,
    host,
    inventory,
    joint_file,
    modes,
    transfer,
)
from optplug._optplug import ffi
from optplug.calls import callback, changes_plan, on_streams, optimizers, tells
from optplug.errors import warn
from optplug.host import log
from optplug.kinds import SparseGrad
from optplug.optimizer import HostedOptimizer
from optplug.options import OptimizerOptions, read_init

_options = OptimizerOptions()  # those of optimizers that are created from now on


def optimizer_of(opt: int) -> HostedOptimizer:
    """Return the optimizer that a handle names, for whoever wants to look at its state."""
    return optimizers[opt]


def _counted(opt: int) -> HostedOptimizer:
    """Return an optimizer that knows of the steps that C has made."""
    optimizer = optimizers[opt]
    optimizer.run.steps += host.table.take_steps(opt)
    return optimizer


def _warm_up() -> None:
    """Make torch's first steps, here rather than in the host's first calls.

    They make objects of torch's that end with the process: those must be there before liboptplug's own
    end, which is to come before theirs.
    """
    HostedOptimizer("Adam()")


def _dtype(value: object) -> str:
    name = host.text("dtype", value)
    buffers.check_dtype(name)
    return name


def _int64s(values: object, count: int) -> list[int] | None:
    return None if values == ffi.NULL else ffi.unpack(values, count)


def _address(pointer: object) -> int:
    return int(ffi.cast("uintptr_t", pointer))


@callback
def py_configure(options):
    global _options
    text = host.text("options", options)
    given = read_init(text, _options)
    if given.log is not None:
        host.table.log_level(given.log)
    if text.strip(" ,"):
        log.info(f"options {text.strip(' ,')}")
    if given.num_threads is not None:
        torch.set_num_threads(given.num_threads)
        host.table.threads(given.num_threads)
    _options = given.optimizers


@callback
def py_enter_thread():
    torch.get_num_threads()  # sets this thread's OpenMP count, as torch does before its first loop


@callback
def py_create(opt, text):
    spec = host.text("spec", text)
    optimizers[opt] = HostedOptimizer(spec, **_options.arguments(_can_plan))
    log.info(f"opt={opt}: {spec}")


@callback
@changes_plan
@on_streams
def py_bind(opt, name, dtype, device, ndim, shape, data, strides, grad, grad_strides, staged):
    dtype, device = _dtype(dtype), devices.find(host.text("device", device))
    sizes = _int64s(shape, ndim) or []
    optimizers[opt].bind(
        host.text("name", name),
        buffers.wrap("data", _address(data), dtype, device, sizes, _int64s(strides, ndim), "strides"),
        buffers.wrap(
            "grad", _address(grad), dtype, device, sizes, _int64s(grad_strides, ndim), "grad_strides"
        ),
        bool(staged),
    )
    log.debug(f"opt={opt}: bound {host.text('name', name)!r}, {dtype} of shape {tuple(sizes)}")


@callback
@changes_plan
def py_bind_sparse(opt, name, dtype, rows, columns, data, capacity, count, indices, grad_rows):
    dtype = _dtype(dtype)
    grad = SparseGrad(
        buffers.wrap("count", _address(count), "int64", devices.CPU, []),
        buffers.wrap("indices", _address(indices), "int64", devices.CPU, [capacity]),
        buffers.wrap("grad_rows", _address(grad_rows), dtype, devices.CPU, [capacity, columns]),
    )
    table = buffers.wrap("data", _address(data), dtype, devices.CPU, [rows, columns])
    optimizers[opt].bind(host.text("name", name), table, grad)
    log.debug(f"opt={opt}: bound {host.text('name', name)!r}, {dtype} of shape {(rows, columns)}, by rows")


@callback
@changes_plan
def py_group(opt, options):
    optimizers[opt].group(host.text("options", options))
    log.debug(f"opt={opt}: group {host.text('options', options)}")


@callback
def py_distribute(opt, placement, collective, user, rank, size):
    run = None if collective == ffi.NULL else host.HostCollective(collective, user)
    optimizers[opt].distribute(host.text("placement", placement), run, rank, size)
    log.info(f"opt={opt}: {host.text('placement', placement)}, rank {rank} of {size}")


@callback
def py_bind_block(opt, name, ndim, global_shape, offset, shape):
    whole, start = _int64s(global_shape, ndim) or [], _int64s(offset, ndim) or []
    optimizers[opt].bind_block(host.text("name", name), whole, start, _int64s(shape, ndim))
    log.debug(f"opt={opt}: {host.text('name', name)!r} is a block at {tuple(start)} of {tuple(whole)}")


@callback
def py_step(opt):
    if not log.is_wanted() and optimizers[opt].step_steadily():
        return None
    return _step(opt)


@tells
@changes_plan
@on_streams
def _step(opt):
    optimizers[opt].step()


def _go_without_plan(*raised: object) -> int:
    """Let C do without a plan; the call that asks has succeeded, or has an error of its own."""
    if raised[0] is KeyboardInterrupt:
        host.table.interrupt()
    return 0


@ffi.def_extern(name="py_plan", error=0, onerror=_go_without_plan)
def py_plan(opt, serial, stated):
    optimizer = optimizers[opt]
    plan = optimizer.plan
    if plan is None:
        return 0
    with modes.set_aside():
        rates = optimizer.rates()
        if plan.serial == serial:
            transfer.give_numbers(plan, rates, stated)
            return 1
        transfer.give(
            plan,
            rates,
            stated,
            optimizer.streams,
            optimizer.planner.makes_plans,
            optimizer.error_if_nonfinite,
        )
    return 1


@callback
def py_plan_refused(opt, has_failed):
    planner, reason = optimizers[opt].planner, "C cannot take them"
    if has_failed and planner.plan:
        reason = f"PyTorch failed in {', '.join(planner.plan.names())}"
        warn(f"opt={opt}: steps run through Python from now on, since {reason}, which it ran before")
    planner.refuse(reason)
    if log.is_wanted():
        log.steps(opt, description.way(optimizers[opt]))


@callback
@tells
@changes_plan
@on_streams
def py_step_closure(opt, closure, user, loss):
    optimizer = optimizers[opt]
    evaluate = host.closure_of(closure, user)

    def on_its_streams() -> float:
        with optimizer.streams.set_aside():  # the host's function finds its own
            return evaluate()

    loss[0] = optimizer.step_closure(on_its_streams if optimizer.streams else evaluate)


@callback
@tells
@changes_plan
@on_streams
def py_iterate(opt, loss, wanted):
    wanted[0] = optimizers[opt].iterate(loss, _prepare(opt))


@callback
@on_streams
def py_check_gradient(opt, closure, user, error):
    error[0] = optimizers[opt].check_gradient(host.closure_of(closure, user))


@callback
@changes_plan
@on_streams
def py_check_gradient_iterate(opt, loss, wanted, error):
    found = optimizers[opt].check_gradient_iterate(loss, _prepare(opt))
    wanted[0] = found is None
    error[0] = found or 0


def _prepare(opt: int) -> Callable[[], None]:
    """Return what a thread does first that calls the host back by reverse communication."""
    count = host.table.thread_count(0)
    streams = devices.current_streams(optimizers[opt].parameters.gpus())

    def prepare() -> None:
        devices.make_current(*streams)
        # Sums over long arrays depend on the number of threads: the step's is the caller's.
        torch.get_num_threads()  # torch sets it once itself
        host.table.thread_count(count)

    return prepare


@callback
@changes_plan
def py_stream(opt, stream):
    optimizers[opt].stream(_address(stream))


@callback
@changes_plan
def py_grad_scale(opt, scale, found_inf):
    optimizers[opt].grad_scale(_number("scale", scale, opt), _number("found_inf", found_inf, opt))


def _number(name: str, pointer: object, opt: int) -> torch.Tensor | None:
    """Return one number of the host's, where the parameters are."""
    if pointer == ffi.NULL:
        return None
    return buffers.wrap(name, _address(pointer), "float32", optimizers[opt].device("opt_grad_scale"), [])


@callback
@on_streams
def py_zero_grad(opt):
    optimizers[opt].zero_grad()


@callback
@changes_plan
@on_streams
def py_clip_grad_norm(opt, max_norm, norm_type, error_if_nonfinite, total_norm):
    is_error, is_told = bool(error_if_nonfinite & 1), bool(error_if_nonfinite & 2)
    norm = optimizers[opt].clip_grad_norm(max_norm, norm_type, is_error, is_told)
    if total_norm != ffi.NULL:
        total_norm[0] = float(norm)


@callback
@changes_plan
@on_streams
def py_clip_grad_value(opt, clip_value):
    optimizers[opt].clip_grad_value(clip_value)


@callback
def py_get(opt, group, name, value):
    value[0] = _counted(opt).get(group, host.text("name", name))


@callback
@changes_plan
def py_set(opt, group, options):
    optimizers[opt].set(group, host.text("options", options))
    log.debug(f"opt={opt}: set {host.text('options', options)}")


@callback
@changes_plan
def py_set_value(opt, group, name, value):
    optimizers[opt].set_value(group, host.text("name", name), value)


@callback
def py_take_value(opt, group, name, value):
    optimizers[opt].take_value(group, host.text("name", name), value)


@callback
def py_take_numbers(opt):
    optimizers[opt].take_numbers()


@callback
@changes_plan
def py_schedule(opt, text, function, user):
    if text == ffi.NULL:
        optimizers[opt].unschedule()
        log.info(f"opt={opt}: no scheduler any more")
        return
    factor = None if function == ffi.NULL else host.factor_of(function, user)
    optimizers[opt].schedule(host.text("spec", text), factor)
    log.info(f"opt={opt}: scheduler {host.text('spec', text)}")


@callback
@changes_plan
def py_schedule_step(opt, metric):
    optimizers[opt].schedule_step(None if metric == ffi.NULL else metric[0])


@callback
@changes_plan
@on_streams
def py_average(opt, text):
    optimizers[opt].average(host.text("spec", text))
    log.info(f"opt={opt}: average {host.text('spec', text)}")


@callback
@on_streams
def py_average_get(opt, name, data):
    average = optimizers[opt].read_average(host.text("name", name))
    device = devices.place_of(_address(data), average.device)
    dtype = buffers.name_of(average.dtype)
    buffers.wrap("data", _address(data), dtype, device, average.shape).copy_(average)


@callback
@changes_plan
@on_streams
def py_average_swap(opt):
    optimizers[opt].swap_average()


@callback
@changes_plan
@on_streams
def py_call(opt, method):
    optimizers[opt].call(host.text("method", method))
    log.debug(f"opt={opt}: called {host.text('method', method)}")


@callback
def py_checkpoint(opt, options):
    chosen = optimizers[opt]
    chosen.checkpoint = chosen.checkpoint.changed(host.text("options", options))


@callback
def py_attribute(opt, name, text):
    value = None if text == ffi.NULL else host.text("text", text)
    optimizers[opt].attributes.set(host.text("name", name), value)


@callback
def py_attribute_get(opt, name):
    host.table.text(optimizers[opt].attributes.get(host.text("name", name)).encode())


@callback
@on_streams
def py_save(opt, path):
    where = os.fsdecode(ffi.string(path))
    optimizer = _counted(opt)
    progress = log.progress(f"opt={opt}: saving to {where!r}")
    if optimizer.ranks:
        joint_file.save(where, optimizer.joint_state_dict(), optimizer.ranks.world, progress)
    else:
        checkpoint.save(where, optimizer.state_dict(), progress)
    log.info(f"opt={opt}: saved to {where!r}")


@callback
@on_streams
def py_save_memory(opt, buffer, size, written):
    optimizers[opt].check_alone("opt_save_memory", "call opt_save")
    room = ffi.buffer(buffer, size) if buffer != ffi.NULL else None
    progress = log.progress(f"opt={opt}: saving to memory")
    written[0] = checkpoint.save_memory(room, _counted(opt).state_dict(), progress)
    if room is not None:
        log.info(f"opt={opt}: saved to {written[0]} bytes of memory")


@callback
@changes_plan
@on_streams
def py_load(opt, path):
    where = os.fsdecode(ffi.string(path))
    progress = log.progress(f"opt={opt}: checking {where!r}")
    _load(opt, checkpoint.load(where, progress), repr(where))


@callback
@changes_plan
@on_streams
def py_load_memory(opt, buffer, size):
    optimizers[opt].check_alone("opt_load_memory", "call opt_load")
    progress = log.progress(f"opt={opt}: checking memory")
    _load(opt, checkpoint.load_memory(ffi.buffer(buffer, size), progress), "memory")


def _load(opt: int, opened: AbstractContextManager[dict[str, object]], where: str) -> None:
    optimizer = _counted(opt)
    optimizer.load(opened)
    log.info(f"opt={opt}: loaded from {where}, step {optimizer.run.steps}")
    for kind, text in description.attached(optimizer):
        log.info(f"opt={opt}: {kind} {text}")


@callback
def py_free(opt):
    optimizers.pop(opt).close()
    log.forget(opt)
    log.debug(f"opt={opt}: ended")


@callback
def py_describe(opt, way):
    host.table.text(description.describe(_counted(opt), ffi.string(way).decode()).encode())


@callback
def py_describe_library(lines):
    told = inventory.describe(_options, _can_plan, host.table.log_level(-1))
    host.table.text(ffi.string(lines) + os.fsencode(told))


@callback
def py_list(kind):
    host.table.text(inventory.listing(host.text("kind", kind), _options.third_party).encode())


_suffix = "dylib" if sys.platform == "darwin" else "so"
_libraries = pathlib.Path(torch.__file__).parent / "lib"
_can_plan = bool(
    host.table.open_torch(
        os.fsencode(_libraries / f"libtorch_cpu.{_suffix}"), os.fsencode(_libraries / devices.LIBRARY)
    )
)
_warm_up()
log.info(f"torch {torch.__version__} with {torch.get_num_threads()} threads")
caught.install()
atexit.register(host.table.end)
