"""Which steps can run without Python, and as which torch operators.

A plan works in place on the parameters, their gradients and the optimizer's own state, so that all who look
there see what a step of the optimizer itself would have left.  It is of one moment: whoever changes
hyperparameters refreshes it, whoever changes more drops it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug import kinds
from optplug.buffers import is_dense, same_order
from optplug.checks import kind_of
from optplug.digest import Groups, Stated
from optplug.errors import StateError
from optplug.kinds import Mastered
from optplug.lean import lean
from optplug.number import is_double
from optplug.operators import STATE, Form, check_schema, form_of
from optplug.recorder import Record
from optplug.spec import shown
from optplug.torch_private import has_hooks

Group = dict[str, Any]
Array = np.ndarray[Any, Any]


_serials = itertools.count(1)

# Each class's operator.
_OPERATORS = {
    lean(torch.optim.Adam): "_fused_adam_",
    lean(torch.optim.AdamW): "_fused_adam_",
    lean(torch.optim.SGD): "_fused_sgd_",
    lean(torch.optim.Adagrad): "_fused_adagrad_",
}
_DECOUPLED = {"_fused_adam_": "_fused_adamw_"}  # where weight decay is
# The hyperparameter without which a list is empty.
_ONLY_WITH = {"max_exp_avg_sqs": "amsgrad", "momentum_buffer_list": "momentum"}
#: Hyperparameters with which a plan is another where they are 0.
SWITCHES = frozenset(_ONLY_WITH.values())
_NUMBERS = frozenset({int, float})
_PLAIN = frozenset({bool, str, type(None)})
_MEMBERS = ("params", "param_names")
#: How many values make it worth to call in other threads, which the kernels do for any number of them.
WORTH_THREADS = 16384
# Scalars that are no hyperparameters by that name.
SCALARS: dict[str, Callable[[Group], float]] = {
    "beta1": lambda group: group["betas"][0],
    "beta2": lambda group: group["betas"][1],
    "is_first_step": lambda _: False,
    "non_blocking": lambda _: False,
}

_IN_TUPLES = {"beta1": "betas[0]", "beta2": "betas[1]"}
# Float32 copies and back: see `masters`.
_COPY = "_foreach_copy_"
_TAKE_FORM = Form(("self", "grads"), bools=("non_blocking",))
_GIVE_FORM = Form(("self", "src"), bools=("non_blocking",))
# On a GPU the step counts are there, and this adds to them: the other operators that add take a Scalar, which
# torch's stable ABI does not.
_ADD = "_foreach_addcmul_"
_ADD_FORM = Form(("self", "tensor1", "tensor2"), singles=("scalars",), overload="Tensor")


@dataclass
class Operation:
    """One operator, for parameters of one group, one dtype, and alike in size."""

    operator: str
    form: Form
    group: Group  # whose hyperparameters are the scalars
    lists: list[list[Tensor]]
    scalars: list[float]
    alone: bool  # too small to be worth more than one thread
    singles: Sequence[Tensor | None] = ()
    #: Instead of an operator, what a step of this class comes down to: the first of them that holds.
    records: Sequence[Record] = ()
    #: Whether it moves numbers that Python keeps.
    moves: bool = False

    @property
    def counters(self) -> int:
        """Return which list has the step counts in it, which rise by one before; -1 if none has.

        On a GPU there are operations for that.
        """
        has_any = "state_steps" in self.form.lists and not self.lists[0][0].is_cuda
        return self.form.lists.index("state_steps") if has_any else -1

    @property
    def gradients(self) -> int:
        """Return which list has the host's gradients in it; -1 if none has."""
        return self.form.lists.index("grads") if "grads" in self.form.lists else -1


@dataclass(frozen=True)
class Gradients:
    """The host's gradients, and by which of C's operations they are clipped: -1 where by none."""

    tensors: list[Tensor]
    lanes: int = 0  # see `optplug_gradients`
    fused: int = 0
    chunk: int = 0
    add_scalar: int = -1
    mul_scalar: int = -1
    reciprocal: int = -1
    clamp_max: int = -1
    clamp: int = -1


@dataclass(frozen=True)
class Slice:
    """A parameter that all ranks have whole, and each steps a slice of: see `optplug_slice`."""

    length: int
    data: Tensor
    grad: Tensor
    reduction: int
    reduced: Tensor


@dataclass(frozen=True)
class Together:
    """Ranks that step together, and what they send: see `optplug_ranks`."""

    rank: int
    size: int
    function: Any
    user: Any
    state: Array
    seen: Array
    sent: Array
    table: Array
    rest: Array
    #: Whose hyperparameters must be alike on all.
    groups: Groups
    #: Slices of one dtype, room for what is sent and received, and the operation that divides as torch does.
    exchanges: Sequence[tuple[Sequence[Slice], Sequence[Tensor], int]]


@dataclass(frozen=True)
class Rate:
    """A hyperparameter that may be set in the plan alone, to any finite value from low to high."""

    group: int  # -1 for all
    name: str  # as `opt_get` takes it
    low: float
    high: float
    places: list[int]  # among all scalars


@dataclass(frozen=True)
class Schedulers:
    """Steps of the schedulers, which move numbers, some of them scalars of a plan."""

    operation: Operation
    places: list[tuple[int, int]]  # which of its lists is which of the plan's scalars
    refresh: Callable[[], None]  # gives C the numbers as they are


class Plan:
    """A step as operations, one after the other."""

    def __init__(self, operations: list[Operation], gradients: Gradients | None = None) -> None:
        self.operations, self.gradients = operations, gradients
        self.schedulers: Schedulers | None = None
        self.together: Together | None = None
        #: The digest of what must be alike on all ranks.
        self.digest: Stated | None = None
        #: By which C knows whether the plan that it has is this one.
        self.serial = next(_serials)
        self._shape = self._current_shape()

    def memory(self) -> list[Tensor]:
        """Return all tensors that are stepped."""
        return [t for operation in self.operations for tensors in operation.lists for t in tensors]

    def names(self) -> list[str]:
        """Return what is called, for people."""
        names = [f"recorded {o.operator}" if o.records else f"aten::{o.operator}" for o in self.operations]
        return list(dict.fromkeys(names))

    def refresh(self) -> bool:
        """Take over hyperparameters that have changed; False if the plan does not hold with them."""
        try:
            all_scalars = [scalars(o.form, o.group) for o in self.operations]
        except (OverflowError, TypeError):
            return False
        for operation, values in zip(self.operations, all_scalars, strict=True):
            operation.scalars = values
        if self.digest:
            self.digest.refresh()
        return self._current_shape() == self._shape

    def is_scalar(self, group: Group, name: str, value: Any) -> bool:
        """Tell whether the operators take a hyperparameter of a group as doubles, now and with this value."""
        if name in SWITCHES and not (group[name] and value):
            return False
        values = {f"{name}[{i}]": v for i, v in enumerate(value)} if type(value) is tuple else {name: value}
        return all(type(v) is float and self.places(group, n) for n, v in values.items())

    def lowest(self, name: str) -> float:
        """Return how low a hyperparameter may be before a plan has more of it than scalars."""
        return math.nextafter(0, 1) if name in SWITCHES else -math.inf

    def places(self, group: Group, name: str) -> list[int]:
        """Return which of all scalars are a hyperparameter, as `opt_get` names it; none if it is more."""
        found, start = [], 0
        for o in self.operations:
            if o.group is group:
                names = [n if n in group else _IN_TUPLES.get(n, n) for n in o.form.doubles]
                if name not in names:
                    return []
                found.append(start + names.index(name))
            start += len(o.scalars)
        return found

    def _current_shape(self) -> list[object]:
        """Return what a plan has fixed."""
        return [fixed(o.group) if o.records else switches(o.group) for o in self.operations]


def switches(group: Group) -> list[tuple[str, object]]:
    """Return what an operator has fixed: hyperparameters that are no numbers, and whether some are 0."""
    found = list[tuple[str, object]]()
    for key, value in group.items():
        kind = type(value)
        if kind in _NUMBERS or (kind is tuple and _NUMBERS.issuperset(map(type, value))):
            found.append((key, key in SWITCHES and bool(value)))
        elif key not in _MEMBERS:
            found.append((key, value))
    return found


def as_key(found: list[tuple[str, object]]) -> object:
    """Return what `switches` returns as a set takes it: as text where values that differ may be equal."""
    return tuple(found) if _PLAIN.issuperset([type(value) for _, value in found]) else repr(found)


def fixed(group: Group) -> list[tuple[str, object]]:
    """Return what a record has fixed: of a hyperparameter that is a double only that it is one.

    PyTorch's default dtype is that of tensors made of numbers in a step.
    """
    options = [(key, _kind(value)) for key, value in group.items() if key not in _MEMBERS]
    return [("default dtype", torch.get_default_dtype()), *options]


def _kind(value: object) -> object:
    if type(value) is tuple:
        return tuple(map(_kind, value))
    return type(value) if is_double(value) else value


def stated(
    operations: list[Operation],
    masters: Sequence[Mastered],
    averaging: list[Operation],
    gradients: Gradients | None,
) -> Plan | None:
    """Return a plan of a step's operations, with what copies and averages have to do around it."""
    try:
        return Plan([*_with_copies(operations, masters), *averaging], gradients)
    except (AttributeError, ValueError):
        return None


def may_make(class_: type[torch.optim.Optimizer]) -> bool:
    """Tell whether torch has an operator for a class's steps."""
    return class_ in _OPERATORS


def make(
    optimizer: torch.optim.Optimizer,
    scale: tuple[Tensor | None, Tensor | None] = (None, None),
    error_if_nonfinite: bool = False,
) -> list[Operation] | None:
    """State the next step of an optimizer that has stepped before; None if no operator of torch's makes it.

    Args:
        scale: what gradients are divided by, and what leaves a step out: one number each.
        error_if_nonfinite: whether gradients are looked at before, which C can do in the CPU's memory alone.
    """
    if type(optimizer) not in _OPERATORS or has_hooks(optimizer):
        return None
    on_gpu = any(p.is_cuda for group in optimizer.param_groups for p in group["params"])
    # In a capture what is made here would be the graph's, and be filled by its replays.
    if on_gpu and (error_if_nonfinite or torch.cuda.is_current_stream_capturing()):
        return None
    operations = []
    try:
        for group in optimizer.param_groups:
            if not group["fused"]:
                return None
            operator = _operator(optimizer, group)
            form = form_of(operator)
            if not _is_understood(optimizer, group, form):
                return None
            alike: dict[tuple[torch.device, torch.dtype, bool], list[Tensor]] = {}
            for p in group["params"]:
                small = not p.is_cuda and p.numel() < WORTH_THREADS
                alike.setdefault((p.device, p.dtype, small), []).append(p)
            for (device, _, small), parameters in alike.items():
                counts = None
                if device.type == "cuda" and "state_steps" in form.lists:
                    counts = _gather_counts(parameters, optimizer)
                states = [optimizer.state.get(p, {}) for p in parameters]
                lists = [_list(name, parameters, states, group) for name in form.lists]
                if any(number is not None and number.device != device for number in scale):
                    return None
                step = Operation(operator, form, group, lists, scalars(form, group), small, scale)
                operations += [step] if counts is None else _counted(step, counts)
        return operations
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None  # a state that is still to be made, or a torch that is not known here


def _is_understood(optimizer: torch.optim.Optimizer, group: Group, form: Form) -> bool:
    """Tell whether a group and its state have nothing that the operator does not take."""
    if not group.keys() <= form.options:
        return False
    states = [optimizer.state.get(p, {}) for p in group["params"]]
    return form.state.issuperset([k for state in states for k, v in state.items() if v is not None])


def _gather_counts(parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> Tensor:
    """Put the step counts of parameters on a GPU side by side, so that one launch raises them all."""
    counts = torch.stack([optimizer.state[p]["step"] for p in parameters])
    for p, count in zip(parameters, counts.unbind(), strict=True):
        optimizer.state[p]["step"] = count
    return counts


def _counted(step: Operation, counts: Tensor) -> list[Operation]:
    """Return an operation on a GPU, with those that count its steps.

    There is one more before, as with torch, and one less after if found_inf has left it out.
    """
    check_schema(_ADD, _ADD_FORM)
    found_inf, ones = step.singles[1], torch.ones_like(counts)

    def add(value: Tensor, sign: float) -> Operation:
        return Operation(_ADD, _ADD_FORM, {}, [[counts], [value], [ones]], [], False, (torch.tensor([sign]),))

    return [add(ones, 1.0), step] + ([] if found_inf is None else [add(found_inf, -1.0)])


def _with_copies(operations: list[Operation], masters: Sequence[Mastered]) -> list[Operation]:
    """Return operations between those that copy the host's gradients, and the parameters to the host."""
    if not masters:
        return operations
    before, after = kinds.gradients(masters), kinds.values(masters)
    return [*_copies(_TAKE_FORM, *before), *operations, *_copies(_GIVE_FORM, *after)]


def _copies(form: Form, targets: list[Tensor], sources: list[Tensor]) -> Iterator[Operation]:
    check_schema(_COPY, form)
    alike: dict[tuple[torch.device, torch.dtype, torch.dtype, bool], list[tuple[Tensor, Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        shape = target.shape
        if not (is_dense(shape, target.stride()) and same_order(shape, target.stride(), source.stride())):
            raise ValueError("an array of the host's has gaps")
        small = not target.is_cuda and target.numel() < WORTH_THREADS
        alike.setdefault((target.device, target.dtype, source.dtype, small), []).append((target, source))
    for (*_, small), pairs in alike.items():
        yield Operation(_COPY, form, {}, [list(t) for t in zip(*pairs, strict=True)], [0.0], small)


def _operator(optimizer: torch.optim.Optimizer, group: Group) -> str:
    name = _OPERATORS[type(optimizer)]
    return _DECOUPLED[name] if group.get("decoupled_weight_decay") else name


def scalars(form: Form, group: Group) -> list[float]:
    """Return what an operator takes of a group's hyperparameters; raise TypeError if one is no number."""
    values = [group[n] if n in group else _scalar(group, n) for n in form.doubles + form.bools]
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    if len(numbers) != len(values):
        raise TypeError
    return numbers


def _scalar(group: Group, name: str) -> Any:
    if name in SCALARS:
        return SCALARS[name](group)
    key, _, index = name.partition("[")
    return group[key][int(index[:-1])]


def _grad(p: Tensor) -> Tensor:
    if p.grad is None:
        raise TypeError
    return p.grad


def _list(name: str, parameters: list[Tensor], states: list[Group], group: Group) -> list[Tensor]:
    if name == "self":
        return parameters
    if name == "grads":
        return [_grad(p) for p in parameters]
    if name in _ONLY_WITH and not group[_ONLY_WITH[name]]:
        return []
    tensors: list[Tensor] = [state[STATE[name]] for state in states]
    for p, tensor in zip(parameters, tensors, strict=True):
        _check(name, p, tensor)
    return tensors


def check_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise StateError where torch's fused kernels would go wrong: they look at nothing themselves."""
    for group in optimizer.param_groups:
        names = group["param_names"] if group.get("fused") else ()
        for parameter, p in zip(names, group["params"], strict=False):
            for name, value in optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    try:
                        _check("state_steps" if name == "step" else name, p, value)
                    except ValueError:
                        found = f"{kind_of(value)} of shape {tuple(value.shape)}"
                        raise StateError(
                            f"parameter {shown(parameter)}: its state {name} does not fit, {found}: "
                            "load a checkpoint, or create the optimizer again"
                        ) from None


def _check(name: str, p: Tensor, tensor: Tensor) -> None:
    """Raise ValueError where a tensor of the state is not what a flat pass over p and it takes it for."""
    fits = type(tensor) is Tensor and tensor.layout == torch.strided and tensor.device == p.device
    if name == "state_steps":
        fits = fits and tensor.numel() == 1 and tensor.dtype == torch.float32
    else:
        fits = (
            fits
            and tensor.dtype == p.dtype
            and tensor.shape == p.shape
            and (tensor.stride() == p.stride() or same_order(p.shape, p.stride(), tensor.stride()))
        )
    if not fits:
        raise ValueError(name)
