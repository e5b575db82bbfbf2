"""What a host does around each step, for C to do: averages after it, clipping and zeroing before it.

Each is proven against torch's own before it is used, on numbers of our own.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from optplug import elementwise, host, plans, transfer
from optplug._optplug import ffi
from optplug.averages import IS_KNOWN, Average
from optplug.buffers import gaps, is_dense
from optplug.operators import Form
from optplug.parameters import Parameters
from optplug.plans import Gradients, Operation, Plan
from optplug.recorder import Record, Recording
from optplug.torch_private import grad_mode

_FORM = Form(("current", "averaged", "count"))
_LENGTHS = (1, 7, 37, 1003)
# In how many lanes torch's compiler may have added up squares, and how many of the rest at a time.
_LANES = {torch.float32: (8, 16, 4), torch.float64: (4, 8, 2)}
_CHUNKS = (4, 0, 1, 2, 8)

# ---- averages ----


def average(of: Average, parameters: Sequence[Tensor]) -> list[Operation] | None:
    """State the update of an average, after the first one; None if only Python can make it."""
    if not IS_KNOWN:
        return None
    alike: dict[tuple[torch.dtype, bool], list[tuple[Tensor, Tensor]]] = {}
    for p, averaged in zip(parameters, of.memory(), strict=True):
        if p.device.type != "cpu" or not p.dim():
            return None
        has_gaps = bool(gaps(p, p) or gaps(averaged, p))
        alike.setdefault((p.dtype, has_gaps), []).append((p, averaged))
    operations = []
    for (dtype, has_gaps), pairs in alike.items():
        kind = dtype, has_gaps, torch.get_default_dtype()  # that of what is made of the count
        if kind not in of.records:
            of.records[kind] = _record(of, dtype, has_gaps) if dtype in elementwise.DTYPES else None
        record = of.records[kind]
        if record is None:
            return None
        current, averages = (list(tensors) for tensors in zip(*pairs, strict=True))
        alone = max(t.numel() for t in current) < plans.WORTH_THREADS
        lists = [current, averages, [of.count()] * len(pairs)]
        operations.append(Operation("AveragedModel", _FORM, {}, lists, [], alone, records=[record]))
    return operations


def _record(of: Average, dtype: torch.dtype, has_gaps: bool) -> Record | None:
    """Record an update, and prove it."""
    lay = elementwise.scattered if has_gaps else torch.clone
    current, averaged, count = lay(_drawn(37, dtype)), _drawn(37, dtype), torch.tensor(3)
    recording = Recording([current, averaged, count])
    with grad_mode(False), recording:
        of.update_one(averaged, current, count)
    recording.count(2)
    record = recording.record()
    return record if record and all(_gives_the_bits(of, record, lay, dtype, n) for n in _LENGTHS) else None


def _gives_the_bits(
    of: Average, record: Record, lay: Callable[[Tensor], Tensor], dtype: torch.dtype, n: int
) -> bool:
    average = of.like(_drawn(n, dtype))
    current = nn.ParameterList([lay(_drawn(n + 1, dtype)[:n])])
    copies = [[lay(t)] for t in (current[0].detach(), average.read(0))] + [[average.count().clone()]]
    plan = Plan([Operation("AveragedModel", _FORM, {}, copies, [], True, records=[record])])
    for _ in range(5):
        average.update(current)
        if not transfer.run(plan):
            return False
        if (
            not elementwise.is_same(copies[1][0].contiguous(), average.read(0))
            or copies[2][0] != average.count()
        ):
            return False
    return True


def _drawn(n: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, generator=generator, dtype=torch.float64).to(dtype)


# ---- gradients ----


def gradients(parameters: Parameters, clips: bool) -> Gradients | None:
    """State how gradients are zeroed, and clipped if wanted; None if only Python can do it."""
    if parameters.has_sparse():
        return None
    tensors = [p.clipped_memory() for p in parameters]
    dtype = tensors[0].dtype
    if dtype not in elementwise.DTYPES:
        return None
    for t in tensors:
        if t.dtype != dtype or t.device.type != "cpu":
            return None
        if not (t.is_contiguous() or is_dense(t.shape, t.stride())):
            return None
    return replace(_clipping(dtype), tensors=tensors) if clips else Gradients(tensors)


@functools.cache
def _clipping(dtype: torch.dtype) -> Gradients:
    """Find in how many lanes C gets the very norms of torch, and by which operations it clips."""
    of_norms = {name: elementwise.at_end(name, dtype) for name in ("add scalar", "reciprocal", "clamp max")}
    of_arrays = {name: elementwise.throughout(name, dtype) for name in ("mul scalar", "clamp")}
    chosen = {name.replace(" ", "_"): number for name, number in {**of_norms, **of_arrays}.items()}
    known = Gradients([], **{name: -1 if number is None else number for name, number in chosen.items()})
    for fused, lanes, chunk in itertools.product((0, 1), _LANES[dtype], _CHUNKS):
        found = replace(known, lanes=lanes, fused=fused, chunk=chunk)
        if all(_clips_as_torch(found, dtype, *case) for case in _CASES):
            return found
    return known


#: Lengths of gradients, their size, and to which norms they are clipped.
_CASES = [
    *(([n], 1.0, 1e-3) for n in (*range(1, 18), 33, 50, 1003, 70001)),
    *((lengths, size, 1.0) for lengths in ([1], [50], [1] * 9) for size in (1e-20, 1e-42, 1e-160, 1e15)),
    ([50], 1.0, math.inf),
    ([3, 50, 17], 1.0, 1.0),
    ([100] * 33, 1.0, 1.0),
]
#: How often torch's norm of gradients is compared for each of their lengths: roundings differ rarely.
_DRAWS = 8


def _clips_as_torch(
    how: Gradients, dtype: torch.dtype, lengths: list[int], size: float, max_norm: float
) -> bool:
    draws = 1 if max(lengths) > 10000 else _DRAWS
    drawn = zip(*(_drawn(draws * n, dtype).split(n) for n in lengths), strict=True)
    return all(
        _clips_one_as_torch(how, [t * size * (1 + i) for i, t in enumerate(d)], max_norm) for d in drawn
    )


def _clips_one_as_torch(how: Gradients, grads: list[Tensor], max_norm: float) -> bool:
    copies = [g.clone() for g in grads]
    stated, total = ffi.new("optplug_gradients *"), ffi.new("double *")
    alive = transfer.give_gradients(replace(how, tensors=copies), stated)
    if not host.table.clip_grad_norm(stated, max_norm, total):
        return False
    del alive
    parameters = [nn.Parameter(torch.empty_like(g)) for g in grads]
    for p, g in zip(parameters, grads, strict=True):
        p.grad = g
    expected = nn.utils.clip_grad_norm_(parameters, max_norm)
    return total[0] == float(expected) and all(map(elementwise.is_same, copies, grads))
