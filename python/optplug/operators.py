"""What torch's operators take that are steps of its optimizers, by their schemas."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from optplug.torch_private import schema_arguments

#: What the operators' lists are called in the optimizer's state.
STATE = {
    "exp_avgs": "exp_avg",
    "exp_avg_sqs": "exp_avg_sq",
    "max_exp_avg_sqs": "max_exp_avg_sq",
    "momentum_buffer_list": "momentum_buffer",
    "state_sums": "sum",
    "state_steps": "step",
}
_SINGLES = ["grad_scale", "found_inf"]

# What groups have besides an operator's scalars: torch's implementations, what is looked at when the state is
# made, and what schedulers note.  With any other key a step may be another than the operator.
_BESIDES = {"params", "param_names", "betas", "fused", "foreach", "capturable", "differentiable"}
_BESIDES |= {"decoupled_weight_decay", "initial_accumulator_value", "initial_lr", "swa_lr"}
_BESIDES |= {"max_lr", "min_lr", "max_momentum", "base_momentum"}


@dataclass(frozen=True)
class Form:
    """What an operator takes: lists of tensors, doubles, bools, tensors, by name and in this order."""

    lists: tuple[str, ...]
    doubles: tuple[str, ...] = ()
    bools: tuple[str, ...] = ()
    singles: tuple[str, ...] = ()
    optional: bool = False  # whether singles may be left out
    overload: str = ""

    @functools.cached_property
    def state(self) -> set[str]:
        """What it takes of a parameter's state."""
        return {STATE[name] for name in self.lists if name in STATE}

    @functools.cached_property
    def options(self) -> set[str]:
        """What a group may have in it whose step it is."""
        return _BESIDES.union(self.doubles, self.bools)


@functools.cache
def form_of(operator: str) -> Form:
    """Read an operator's schema; raise AttributeError or ValueError if torch has none that is known here."""
    arguments = schema_arguments(operator)
    names: dict[str, list[str]] = {"List[Tensor]": [], "float": [], "bool": [], "Optional[Tensor]": []}
    for argument in arguments:
        names[str(argument.type)].append(argument.name)
    lists, doubles, bools, singles = names.values()
    if lists + doubles + bools + singles != [a.name for a in arguments] or singles != _SINGLES:
        raise ValueError(f"aten::{operator} of this torch takes {arguments}")
    return Form(tuple(lists), tuple(doubles), tuple(bools), tuple(singles), optional=True)


def check_schema(operator: str, form: Form) -> None:
    """Raise ValueError where this torch's operator takes something else."""
    types = ["List[Tensor]"] * len(form.lists) + ["bool"] * len(form.bools) + ["Tensor"] * len(form.singles)
    arguments = schema_arguments(operator, form.overload or "default")
    if [str(argument.type) for argument in arguments] != types:
        raise ValueError(f"aten::{operator} of this torch takes {arguments}")
