"""That operators of torch's are the step of a class: proven on copies of an optimizer's own numbers."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from optplug import plans, transfer
from optplug.buffers import flat
from optplug.elementwise import is_same
from optplug.holdings import ENDS
from optplug.plans import Operation, Plan
from optplug.readings import HARMLESS
from optplug.recorder import plain_step
from optplug.scaling import Scale
from optplug.torch_private import grad_mode
from optplug.watch import Watch

#: What is compared of an array: all of it, or so many values at both ends and in the middle.
BLOCK = 4096


#: What has been proven in this process: of a class, the kinds of operators that are its steps.
_proven: set[object] = set()
_MOST_PROVEN = 1000


class Proofs:
    """Whether operators may stand for the steps of one optimizer."""

    def __init__(self) -> None:
        #: Why its operators are not used; "" if nothing is against them.
        self.reason = ""

    def hold(self, optimizer: torch.optim.Optimizer, operations: list[Operation], scale: Scale) -> bool:
        """Tell whether the next step is these operators: the first of a kind is made by both on copies."""
        if self.reason:
            return False
        kind = (type(optimizer), *[_kind(operation) for operation in operations])
        if kind not in _proven:
            try:
                self.reason = _difference(optimizer, scale)
            except Exception as error:
                self.reason = f"{type(error).__name__}: {error}"
            if self.reason:
                return False
            if len(_proven) < _MOST_PROVEN:
                _proven.add(kind)
        return True


def _kind(operation: Operation) -> object:
    """Return what operations must have in common if the proof of one is to be that of the other."""
    first = operation.lists[0][0]
    lengths = tuple([bool(tensors) for tensors in operation.lists])
    singles = tuple([single is not None for single in operation.singles])
    switches = plans.as_key(plans.switches(operation.group))
    return operation.operator, lengths, singles, switches, first.dtype, first.device


def _difference(optimizer: torch.optim.Optimizer, scale: Scale) -> str:
    """Say how a step of torch's on copies is another than the operators; "" if it is the same."""
    ours, theirs = _copy(optimizer, scale), _copy(optimizer, scale)
    operations = plans.make(ours, _scale_of(ours).numbers())
    if operations is None:
        return "copies have no operator"
    watch, reading = Watch(theirs, _tensors(theirs), may_draw=True), _Reading()  # drawing gives other bits
    with grad_mode(False), reading:
        plain_step(theirs)
    if (reason := watch.found(theirs) or reading.found) or not transfer.run(Plan(operations)):
        return reason or "torch does not run their operator"
    if not all(map(is_same, _values(ours), _values(theirs))):
        return "their operator gives other bits than the step"
    return ""


class _Reading(TorchFunctionMode):
    """Sees whether a step looks at a value, by which a later one may go another way."""

    def __init__(self) -> None:
        super().__init__()
        self.found = ""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = function(*args, **(kwargs or {})), getattr(function, "__name__", "")
        made = result if isinstance(result, list | tuple) else [result]
        if name not in HARMLESS and not all(isinstance(one, Tensor | None) for one in made):
            self.found = f"a step looks at values, by {name}"
        return result


def _tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return all that a step may change."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = [t for p in parameters for t in optimizer.state[p].values() if isinstance(t, Tensor)]
    scales = [number for number in _scale_of(optimizer).numbers() if number is not None]
    return [*parameters, *(p.grad for p in parameters), *states, *scales]


def _scale_of(optimizer: torch.optim.Optimizer) -> Scale:
    return Scale(optimizer.grad_scale, optimizer.found_inf)  # type: ignore[attr-defined]


def _values(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [t.detach() for t in _tensors(optimizer)]


def _copy(optimizer: torch.optim.Optimizer, scale: Scale) -> torch.optim.Optimizer:
    """Return another one like it, of parameters of its own: each block of an array is one."""
    other = object.__new__(type(optimizer))
    left_out = ("param_groups", "state", "step")
    vars(other).update({k: _copied(v) for k, v in vars(optimizer).items() if k not in left_out})
    # A step that found_inf leaves out would show nothing.
    found_inf = None if scale.found_inf is None else torch.zeros_like(scale.found_inf)
    factor = None if scale.factor is None else scale.factor.clone()
    other.grad_scale, other.found_inf = factor, found_inf  # type: ignore[attr-defined]
    other.state, other.param_groups = defaultdict(dict), []
    for group in optimizer.param_groups:
        parameters = [(p, block) for p in group["params"] for block in _blocks(p.numel())]
        copies = [nn.Parameter(_part(p, p, block)) for p, block in parameters]
        other.param_groups.append({**group, "params": copies})
        for (p, block), made in zip(parameters, copies, strict=True):
            made.grad = _part(p.grad, p, block)
            other.state[made] = {name: _part(v, p, block) for name, v in optimizer.state[p].items()}
    return other


def _copied(value: Any) -> Any:
    """Return a copy of an attribute; of plain values in a dict, as most are, in less time."""
    if type(value) in ENDS:
        return value
    if type(value) in (dict, OrderedDict) and ENDS.issuperset(map(type, value.values())):
        return type(value)(value)
    return copy.deepcopy(value)


def _blocks(n: int) -> list[slice]:
    if n <= 3 * BLOCK:
        return [slice(0, n)]
    return [slice(start, start + BLOCK) for start in (0, n // 2, n - BLOCK)]


def _part(value: Any, p: Tensor, block: slice) -> Any:
    """Return a copy of a part of an array that lies as a parameter does; of anything else a copy."""
    if isinstance(value, Tensor):
        return (flat(value, p)[block] if p.dim() and value.shape == p.shape else value.detach()).clone()
    return copy.deepcopy(value)
