"""Steps that can run without Python: which they are, and as which operators of torch's.

A plan works in place on the parameters, their gradients and the optimizer's own state, so that all who look
there see what a step of the optimizer itself would have left.  It is of one moment: whoever changes
hyperparameters refreshes it, whoever changes more drops it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optplug.buffers import same_order
from optplug.lean import has_hooks, lean

Group = dict[str, Any]


# Each class's operator.
_OPERATORS = {
    lean(torch.optim.Adam): "_fused_adam_",
    lean(torch.optim.AdamW): "_fused_adam_",
    lean(torch.optim.SGD): "_fused_sgd_",
    lean(torch.optim.Adagrad): "_fused_adagrad_",
}
_DECOUPLED = {"_fused_adam_": "_fused_adamw_"}  # where weight decay is
# What the operators' lists are called in the optimizer's state.
_STATE = {
    "exp_avgs": "exp_avg",
    "exp_avg_sqs": "exp_avg_sq",
    "max_exp_avg_sqs": "max_exp_avg_sq",
    "momentum_buffer_list": "momentum_buffer",
    "state_sums": "sum",
    "state_steps": "step",
}
# The hyperparameter without which a list is empty.
_ONLY_WITH = {"max_exp_avg_sqs": "amsgrad", "momentum_buffer_list": "momentum"}
# How many values make it worth to call in other threads, which the kernels do for any number of them.
_WORTH_THREADS = 16384
# Scalars that are no hyperparameters by that name.
_SCALARS: dict[str, Callable[[Group], float]] = {
    "beta1": lambda group: group["betas"][0],
    "beta2": lambda group: group["betas"][1],
    "is_first_step": lambda _: False,
}


@dataclass(frozen=True)
class Form:
    """What an operator takes: lists of tensors, doubles, bools, by name and in this order."""

    lists: tuple[str, ...]
    doubles: tuple[str, ...]
    bools: tuple[str, ...]


@functools.cache
def _form(operator: str) -> Form:
    """Read an operator's schema; raise AttributeError or ValueError if torch has none that is known here."""
    arguments = getattr(torch.ops.aten, operator).default._schema.arguments
    names: dict[str, list[str]] = {"List[Tensor]": [], "float": [], "bool": [], "Optional[Tensor]": []}
    for argument in arguments:
        names[str(argument.type)].append(argument.name)
    lists, doubles, bools, rest = names.values()
    if lists + doubles + bools + ["grad_scale", "found_inf"] != [a.name for a in arguments] or len(rest) != 2:
        raise ValueError(f"aten::{operator} of this torch takes {arguments}")
    return Form(tuple(lists), tuple(doubles), tuple(bools))


@dataclass
class Operation:
    """One operator, for parameters of one group, one dtype, and alike in size."""

    operator: str
    form: Form
    group: Group
    lists: list[list[Tensor]]
    scalars: list[float]
    alone: bool  # too small to be worth more than one thread

    @property
    def counters(self) -> int:
        """Return which list has the step counts in it, which rise by one before; -1 if none has."""
        return self.form.lists.index("state_steps") if "state_steps" in self.form.lists else -1

    @property
    def gradients(self) -> int:
        """Return which list has the gradients in it."""
        return self.form.lists.index("grads")


class Plan:
    """A step as operations, one after the other."""

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = operations
        #: Grows whenever hyperparameters change.
        self.version = 0
        self._shape = self._current_shape()

    def refresh(self) -> bool:
        """Take over hyperparameters that have changed; False if the plan does not hold with them."""
        try:
            scalars = [_scalars(o.form, o.group) for o in self.operations]
        except TypeError:
            return False
        for operation, values in zip(self.operations, scalars, strict=True):
            operation.scalars = values
        self.version += 1
        return self._current_shape() == self._shape

    def _current_shape(self) -> list[object]:
        options = ("decoupled_weight_decay", *_ONLY_WITH.values())
        return [bool(o.group.get(name)) for o in self.operations for name in options]


def make(optimizer: torch.optim.Optimizer) -> Plan | None:
    """State the next step of an optimizer that has stepped before; None if only Python can make it."""
    if type(optimizer) not in _OPERATORS or has_hooks(optimizer):
        return None
    operations = []
    try:
        for group in optimizer.param_groups:
            if not group["fused"]:
                return None
            operator = _operator(optimizer, group)
            alike: dict[tuple[torch.dtype, bool], list[Tensor]] = {}
            for p in group["params"]:
                alike.setdefault((p.dtype, p.numel() < _WORTH_THREADS), []).append(p)
            form = _form(operator)
            for (_, small), parameters in alike.items():
                lists = [_list(name, parameters, optimizer, group) for name in form.lists]
                operations.append(Operation(operator, form, group, lists, _scalars(form, group), small))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # a state that is still to be made, or a torch that is not known here
    return Plan(sorted(operations, key=lambda operation: operation.alone))


def _operator(optimizer: torch.optim.Optimizer, group: Group) -> str:
    name = _OPERATORS[type(optimizer)]
    return _DECOUPLED[name] if group.get("decoupled_weight_decay") else name


def _scalars(form: Form, group: Group) -> list[float]:
    values = [_SCALARS.get(n, lambda g, n=n: g[n])(group) for n in form.doubles + form.bools]
    if not all(isinstance(value, bool | int | float) for value in values):
        raise TypeError
    return [float(value) for value in values]


def _list(
    name: str, parameters: list[Tensor], optimizer: torch.optim.Optimizer, group: Group
) -> list[Tensor]:
    if name == "self":
        return parameters
    if name == "grads":
        return [p.grad for p in parameters]
    if name in _ONLY_WITH and not group[_ONLY_WITH[name]]:
        return []
    tensors = [optimizer.state[p][_STATE[name]] for p in parameters]
    for p, tensor in zip(parameters, tensors, strict=True):
        _check(name, p, tensor)
    return tensors


def _check(name: str, p: Tensor, tensor: Tensor) -> None:
    """Raise ValueError where a tensor of the state is not what a flat pass over p and it takes it for."""
    if name == "state_steps":
        fits = tensor.numel() == 1 and tensor.dtype == torch.float32
    else:
        fits = (
            tensor.dtype == p.dtype
            and tensor.shape == p.shape
            and (tensor.stride() == p.stride() or same_order(p.shape, p.stride(), tensor.stride()))
        )
    if not fits:
        raise ValueError(name)
