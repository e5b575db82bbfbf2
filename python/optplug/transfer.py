"""A plan's way to C: what Python has stated, laid out as ``csrc/bridge.h`` has it."""

from __future__ import annotations

import os
import threading
from itertools import chain
from typing import Any

import torch

from optplug import buffers
from optplug._optplug import ffi
from optplug.devices import Streams
from optplug.plans import Operation, Plan

_here = threading.local()  # .stated: what C reads now, which stays until this thread is asked again

_doubles = ffi.typeof("double[]")
_STABLE = {"stable": 1, "direct": 0}  # as opt_init's plans= has them; else C chooses


def give(plan: Plan, out: Any, streams: Streams, way: bool | str, is_guarded: bool) -> None:
    """Fill in ``out``, an ``optplug_plan *``, with a plan.

    Args:
        streams: where work on GPUs goes.
        way: how it is to run: see ``plans`` of `options.OptimizerOptions`.
        is_guarded: whether gradients must be finite.
    """
    alive: list[Any] = []
    stated = [_operator(o, streams, is_guarded, alive) for o in plan.operations]
    operators = ffi.new("optplug_operator[]", stated)
    give_numbers(plan, out)
    _here.stated += operators, alive
    out.operators, out.stable = operators, _STABLE.get(way, -1)  # type: ignore[arg-type]


def give_numbers(plan: Plan, out: Any) -> None:
    """Fill in what has no pointers, and the numbers, which are all that C needs of a plan that it has."""
    scalars = ffi.new(_doubles, [s for operation in plan.operations for s in operation.scalars])
    out.serial, out.count, out.scalars = plan.serial, len(plan.operations), scalars
    _here.stated = [scalars]


def _operator(operation: Operation, streams: Streams, is_guarded: bool, alive: list[Any]) -> dict[str, Any]:
    """Return an operation as C takes it."""
    tensors = [*chain(*operation.lists), *operation.singles]
    names = {t.dtype: ffi.new("char[]", buffers.name_of(t.dtype).encode()) for t in tensors if t is not None}
    gpu = _gpu(operation.lists[0][0])
    stream = streams.address(gpu)
    checked = operation.lists[operation.gradients][0].dtype if operation.gradients >= 0 else None
    fields = {
        "overload": ffi.new("char[]", operation.form.overload.encode()),
        "name": ffi.new(
            "char[]",
            os.fsencode(operation.operator if operation.is_kernel else f"aten::{operation.operator}"),
        ),
        "lengths": ffi.new("int[]", [len(tensors) for tensors in operation.lists]),
        "tensors": ffi.new("optplug_tensor[]", [_tensor(t, names) for t in tensors]),
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
        "bytes": checked.itemsize if checked and is_guarded else 0,
        "infinity": buffers.infinity(checked) if checked else 0,
    }


def _tensor(t: torch.Tensor | None, names: dict[torch.dtype, Any]) -> tuple[Any, ...]:
    """Return a tensor, or none, as C takes it."""
    if t is None:
        return ffi.NULL, 0, ffi.NULL, -1
    return ffi.cast("void *", t.data_ptr()), t.numel(), names[t.dtype], _gpu(t)


def _gpu(t: torch.Tensor) -> int:
    return t.device.index if t.is_cuda else -1
