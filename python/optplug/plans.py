"""Steps that can run without Python: which they are, and as which operators of torch's.

A plan works in place on the parameters, their gradients and the optimizer's own state, so that all who look
there see what a step of the optimizer itself would have left.  It is of one moment: whoever changes
hyperparameters refreshes it, whoever changes more drops it.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optplug import compiled
from optplug.buffers import is_dense, same_order
from optplug.lean import Calls, has_hooks, lean

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
    """One operator, for parameters of one group, one dtype, and alike in size.

    Or a kernel (see `compiled`), whose file stands for the operator.
    """

    operator: str
    form: Form
    group: Group
    lists: list[list[Tensor]]
    scalars: list[float]
    alone: bool  # too small to be worth more than one thread

    @property
    def is_kernel(self) -> bool:
        """Tell whether it is no operator of torch's."""
        return self.operator.endswith(".so")

    @property
    def counters(self) -> int:
        """Return which list has the step counts in it, which rise by one before; -1 if none has."""
        has_any = "state_steps" in self.form.lists and not self.is_kernel
        return self.form.lists.index("state_steps") if has_any else -1

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

    def names(self) -> list[str]:
        """Return what is called, for people."""
        names = [
            pathlib.Path(o.operator).name if o.is_kernel else f"aten::{o.operator}" for o in self.operations
        ]
        return list(dict.fromkeys(names))

    def refresh(self) -> bool:
        """Take over hyperparameters that have changed; False if the plan does not hold with them."""
        try:
            scalars = [_scalars(o.form, o.group) for o in self.operations]
        except (OverflowError, TypeError):
            return False
        for operation, values in zip(self.operations, scalars, strict=True):
            operation.scalars = values
        self.version += 1
        return self._current_shape() == self._shape

    def _current_shape(self) -> list[object]:
        """Return what a plan has fixed: all hyperparameters of a kernel but lr, of an operator only some."""
        fixed = ("decoupled_weight_decay", *_ONLY_WITH.values())
        return [
            {k: v for k, v in o.group.items() if k not in ("params", "lr")}
            if o.is_kernel
            else [bool(o.group.get(name)) for name in fixed]
            for o in self.operations
        ]


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
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None  # a state that is still to be made, or a torch that is not known here
    return Plan(operations)


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


def make_compiled(optimizer: torch.optim.Optimizer, calls: Calls, may_compile: bool) -> Plan | None:
    """State the next step of an optimizer with kernels; None if it has none, or is not laid out for them.

    Args:
        calls: its last step, as `lean.step_and_record` returns it.
        may_compile: whether kernels that are not there yet are to be made, which takes half a minute each.

    Raises:
        CompileError: a kernel cannot be made.
    """
    name = type(optimizer).__name__
    if name not in compiled.OPTIMIZERS or type(optimizer) is not lean(getattr(torch.optim, name)):
        return None
    if has_hooks(optimizer) or len(calls) != len(optimizer.param_groups):
        return None
    if not all(type(group["lr"]) in (int, float) for group in optimizer.param_groups):
        return None
    operations = []
    for i, group in enumerate(optimizer.param_groups):
        alike: dict[tuple[torch.dtype, bool], list[list[Tensor]]] = {}
        for j, p in enumerate(group["params"]):
            tensors = compiled.inputs(calls, i, j)
            if not _fit(p, tensors) or group["foreach"] or group["differentiable"] or group["capturable"]:
                return None
            alike.setdefault((p.dtype, p.numel() < _WORTH_THREADS), []).append(tensors)
        for (dtype, small), rows in alike.items():
            file = compiled.kernel(name, group, dtype, may_compile)
            if file is None:
                return None
            lists = [list(tensors) for tensors in zip(*rows, strict=True)]
            form = Form(("self", "grads", *map(str, range(2, len(lists)))), ("lr",), ())
            operations.append(Operation(str(file), form, group, lists, _scalars(form, group), small))
    return Plan(operations)


def _fit(p: Tensor, tensors: list[Tensor]) -> bool:
    """Tell whether a flat pass over these is one over a parameter, its gradient and its state."""
    return (
        p.dtype in compiled.TOLERANCE
        and p.numel() > 0
        and is_dense(p.shape, p.stride())
        and all(
            (t.numel() == 1 and t.dim() == 0 and t.dtype == torch.float32)
            or (t.dtype == p.dtype and t.shape == p.shape and same_order(p.shape, p.stride(), t.stride()))
            for t in tensors
        )
    )
