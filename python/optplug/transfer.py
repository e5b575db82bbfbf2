"""A plan's way to C: what Python has stated, laid out as ``csrc/bridge.h`` has it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch

from optplug import buffers, host
from optplug._optplug import ffi
from optplug.devices import Streams
from optplug.digest import Stated
from optplug.plans import Gradients, Operation, Plan, Rate, Together
from optplug.recorder import Record

_here = threading.local()  # .stated: what C reads now, which stays until this thread is asked again

#: Records as C takes them, and how many of them are kept.
_stated: dict[int, tuple[Record, dict[str, Any], object]] = {}
_MOST_STATED = 256
_NO_GAPS = 0, ffi.NULL, ffi.NULL
_doubles = ffi.typeof("double[]")
_STABLE = {"stable": 1, "direct": 0}  # as opt_init's plans= has them; else C chooses


def give(
    plan: Plan, rates: list[Rate], out: Any, streams: Streams, way: bool | str, is_guarded: bool
) -> None:
    """Fill in ``out``, an ``optplug_plan *``, with a plan.

    Args:
        rates: what may change in it.
        streams: where work on GPUs goes.
        way: how it is to run: see ``plans`` of `options.OptimizerOptions`.
        is_guarded: whether gradients must be finite.
    """
    alive: list[Any] = []
    stated = [_operator(o, streams, is_guarded, alive) for o in plan.operations]
    operators = ffi.new("optplug_operator[]", stated)
    give_numbers(plan, rates, out)
    if plan.gradients:
        alive.append(give_gradients(plan.gradients, ffi.addressof(out, "gradients")))
    if plan.together and plan.digest:
        alive.append(_give_together(plan.together, plan.digest, ffi.addressof(out, "ranks")))
    if plan.schedulers:
        places = plan.schedulers.places
        steps = ffi.new(
            "optplug_operator *", _operator(plan.schedulers.operation, streams, is_guarded, alive)
        )
        pairs = [ffi.new("int[]", [pair[i] for pair in places]) for i in (0, 1)]
        out.schedulers = (steps, len(places), *pairs)
        alive += [steps, pairs]
    _here.stated += operators, alive
    out.moves = any(operation.moves for operation in plan.operations)
    out.operators, out.stable = operators, _STABLE.get(way, -1)  # type: ignore[arg-type]


def run(plan: Plan) -> bool:
    """Let C make a plan's step once; False if it cannot, and has changed nothing."""
    stated = ffi.new("optplug_plan *")
    give(plan, [], stated, Streams(), "stable", False)
    return bool(host.table.run_plan(stated))


_OF_NORMS = "lanes", "fused", "chunk", "add_scalar", "mul_scalar", "reciprocal", "clamp_max", "clamp"


def give_gradients(gradients: Gradients, out: Any) -> object:
    """Fill in ``out``, an ``optplug_gradients *``, and return what it points to."""
    stated = ffi.new("optplug_tensor[]", [_tensor(t) for t in gradients.tensors])
    out[0] = {
        **{name: getattr(gradients, name) for name in _OF_NORMS},
        "count": len(gradients.tensors),
        "tensors": stated,
    }
    return stated


def _give_together(together: Together, digest: Stated, out: Any) -> object:
    """Fill in ``out``, an ``optplug_ranks *``, and return what it points to."""
    stated, alive = [], []
    for slices, room, div_scalar in together.exchanges:
        fields = [
            (s.data.numel(), s.length, _address(s.data), _address(s.grad), s.reduction, _address(s.reduced))
            for s in slices
        ]
        alive.append(ffi.new("optplug_slice[]", fields))
        itemsize = slices[0].data.itemsize
        stated.append((itemsize, len(slices), alive[-1], *map(_address, room), div_scalar))
    exchanges = ffi.new("optplug_exchange[]", stated)
    out.rank, out.size, out.collective, out.user = (
        together.rank,
        together.size,
        together.function,
        together.user,
    )
    out.state, out.seen, out.sent, out.table, out.rest = (
        ffi.cast(f"{kind} *", array.ctypes.data)
        for kind, array in (
            ("int32_t", together.state),
            ("uint64_t", together.seen),
            ("int64_t", together.sent),
            ("double", together.table),
            ("uint64_t", together.rest),
        )
    )
    moving = ffi.new("uint64_t[]", digest.seeds), ffi.new("int[]", digest.places)
    out.moving, (out.seeds, out.places) = len(digest.seeds), moving
    out.count, out.exchanges = len(stated), exchanges
    return exchanges, moving, alive


def _address(t: torch.Tensor) -> Any:
    return ffi.cast("void *", t.data_ptr())


def give_numbers(plan: Plan, rates: list[Rate], out: Any) -> None:
    """Fill in what has no pointers, and the numbers, which are all that C needs of a plan that it has."""
    if plan.schedulers:
        plan.schedulers.refresh()
    scalars = ffi.new(_doubles, [s for operation in plan.operations for s in operation.scalars])
    out.serial, out.count, out.scalars = plan.serial, len(plan.operations), scalars
    alive = [(ffi.new("char[]", r.name.encode()), ffi.new("int[]", r.places)) for r in rates]
    stated = ffi.new(
        "optplug_rate[]",
        [
            (r.group, name, r.low, r.high, len(r.places), places)
            for r, (name, places) in zip(rates, alive, strict=True)
        ],
    )
    out.rate_count, out.rates = len(rates), stated
    _here.stated = [scalars, alive, stated]


def _operator(operation: Operation, streams: Streams, is_guarded: bool, alive: list[Any]) -> dict[str, Any]:
    """Return an operation as C takes it."""
    tensors = [_tensor(t) for t in chain(*operation.lists, operation.singles)]
    if operation.records:
        tensors = [(*t, *how) for t, how in zip(tensors, _layouts(operation, alive), strict=True)]
    gpu = _gpu(operation.lists[0][0])
    stream = streams.address(gpu)
    gradients = operation.gradients
    checked = operation.lists[gradients][0].dtype if gradients >= 0 else None
    stated = [_record(record) for record in operation.records]
    fields = {
        "overload": _text(operation.form.overload),
        "name": _text(f"aten::{operation.operator}"),
        "lengths": ffi.new("int[]", list(map(len, operation.lists))),
        "tensors": ffi.new("optplug_tensor[]", tensors),
        "records": ffi.new("optplug_record[]", [record for _, record, _ in stated]) if stated else ffi.NULL,
        "record_count": len(stated),
        "lists": len(operation.form.lists),
        "doubles": len(operation.form.doubles),
        "bools": len(operation.form.bools),
        "singles": len(operation.singles),
        "optional": operation.form.optional,
        "gpu": gpu,
        "has_stream": stream is not None,
        "stream": ffi.cast("void *", stream or 0),
        "counters": operation.counters,
        "gradients": gradients,
        "alone": operation.alone,
        "bytes": checked.itemsize if checked and is_guarded else 0,
        "infinity": buffers.infinity(checked) if checked else 0,
    }
    alive += [stated, fields]
    return fields


def _layouts(operation: Operation, alive: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Return how the values of a record's tensors lie, list after list, as C takes it."""
    for tensors in operation.lists:
        for t, first in zip(tensors, operation.lists[0], strict=True):
            if t.dim() and (found := buffers.gaps(t, first)):
                sizes, strides = (ffi.new("int64_t[]", list(numbers)) for numbers in zip(*found, strict=True))
                alive.append((sizes, strides))
                yield len(found), sizes, strides
            else:
                yield _NO_GAPS


def _record(record: Record) -> tuple[Record, dict[str, Any], object]:
    """Return a record, as C takes it, and what that points to."""
    known = _stated.get(id(record))  # by what it is, since records with 0 and -0 are equal
    if known is None:
        if len(_stated) >= _MOST_STATED:
            _stated.clear()
        known = _stated[id(record)] = record, *_as_c_takes(record)
    return known


def _as_c_takes(record: Record) -> tuple[dict[str, Any], object]:
    fields = {
        "scalars": ffi.new(
            "optplug_scalar[]",
            [(s.kind, s.a, s.b, s.elementwise, s.operands, s.constant) for s in record.scalars],
        ),
        "guards": ffi.new("int[]", [int(n) for guard in record.guards for n in guard]),
        "stores": ffi.new("int[]", [n for store in record.stores for n in store]),
        "instructions": ffi.new(
            "optplug_instruction[]",
            [(i.elementwise, i.end, i.to, i.a, i.b, i.c, i.v, i.u) for i in record.instructions],
        ),
    }
    counts = {
        "scalar_count": len(record.scalars),
        "guard_count": len(record.guards),
        "store_count": len(record.stores),
        "instruction_count": len(record.instructions),
        "temporary_count": record.temporaries,
        "lanes": record.lanes,
    }
    return fields | counts, fields


def _tensor(t: torch.Tensor | None) -> tuple[Any, ...]:
    """Return a tensor, or none, as C takes it."""
    if t is None:
        return ffi.NULL, 0, ffi.NULL, -1
    return ffi.cast("void *", t.data_ptr()), t.numel(), _name(t.dtype), _gpu(t)


@functools.cache
def _text(text: str) -> Any:
    """Return a text that stays: there are few."""
    return ffi.new("char[]", text.encode())


@functools.cache
def _name(dtype: torch.dtype) -> Any:
    return _text(buffers.name_of(dtype))


def _gpu(t: torch.Tensor) -> int:
    return t.device.index if t.is_cuda else -1
