"""Hyperparameters of parameter groups as numbers: what they are, and changes that PyTorch has judged."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from optplug import spec
from optplug.arguments import is_count
from optplug.parameters import Group, Parameters
from optplug.planning import Planner
from optplug.plans import Plan, Rate
from optplug.run import Run
from optplug.spec import SpecError, shown
from optplug.trials import Trials, put

Options = dict[str, Any]


def select(groups: list[Any], group: int) -> list[Any]:
    """Return one of all groups, or all of them (-1)."""
    if group == -1:
        return groups
    if not 0 <= group < len(groups):
        raise ValueError(f"group must be 0 to {len(groups) - 1}, or -1 for all, got {group}")
    return [groups[group]]


def get(groups: list[Options], name: str) -> float:
    """Return a hyperparameter on which groups agree: "lr", or "betas[0]" for one of a tuple; True is 1."""
    key, _, _ = name.partition("[")
    spec.check_name(key, groups[0].keys() - {"params", "param_names"} | {"step"}, "hyperparameter")
    value = groups[0][key]
    if any(g[key] != value for g in groups[1:]):
        raise ValueError(f"group -1: {key!r} differs between the {len(groups)} groups: ask for one group")
    position = _position(name, value)
    if position is not None:
        value = value[position]
    if not isinstance(value, bool | int | float | Tensor):
        raise ValueError(f"name {shown(name)} is {value!r}, which is not a number")
    return float(value)


class Changes:
    """Changes of one optimizer's hyperparameters."""

    def __init__(self, trials: Trials, parameters: Parameters, planner: Planner) -> None:
        self._trials, self._parameters, self._planner = trials, parameters, planner
        self._by_number: dict[tuple[int, str], None] = {}  # those that have been set so, in this order

    def set(self, run: Run, group: int, text: str) -> None:
        """Change those of one group, or of all groups (-1): ``"lr=1e-4, betas=(0.9, 0.99)"``."""

        def judged(options: Options, members: Group) -> Options:
            return self._trials.options(text, options, *self._judging(options, members))

        self._change(run, group, judged)

    def set_value(self, run: Run, group: int, name: str, value: float) -> None:
        """Change one, by the name that `get` takes."""
        key, _, _ = name.partition("[")
        spec.check_name(key, self._trials.accepted | self._trials.extras, "option")

        def judged(options: Options, members: Group) -> Options:
            change = {
                key: self._replaced(
                    name, options[key] if key in options else self._trials.defaults[key], value
                )
            }
            self._trials.judge(change, options, *self._judging(options, members))
            return change

        self._change(run, group, judged)
        self._by_number[group, re.sub(r"\[0+(?=\d)", "[", name)] = None

    def take(self, run: Run, group: int, name: str, value: float) -> None:
        """Take a change that needs no judgement: one that `rates` allows."""
        key, _, _ = name.partition("[")
        self._change(run, group, lambda options, _: {key: self._replaced(name, options[key], value)})

    def rates(self, run: Run) -> list[Rate]:
        """Return those of the numbers set before that may change in the plan alone, and how far."""
        plan = self._planner.plan
        if plan is None or run.built is None or run.schedulers:
            return []
        found = [self._rate(plan, run.built.param_groups, *which) for which in self._by_number]
        return [rate for rate in found if rate is not None]

    def _rate(self, plan: Plan, groups: list[Options], group: int, name: str) -> Rate | None:
        places: list[int] = []
        low, high = plan.lowest(name), math.inf
        for options in select(groups, group):
            key, _, _ = name.partition("[")
            known = self._trials.find_range(options, name)
            among = plan.places(options, name)
            if known is None or not among or not plan.is_scalar(options, key, options[key]):
                return None
            low, high, places = max(low, known.low), min(high, known.high), places + among
        return Rate(group, name, low, high, places)

    def _judging(self, options: Options, members: Group) -> tuple[Any, ...]:
        """Return what `Trials` wants to know of a group."""
        return (
            functools.partial(self._parameters.kinds_of, members.names),
            functools.partial(self._planner.is_scalar, options),
        )

    def _change(self, run: Run, group: int, judged: Callable[[Options, Group], Options]) -> None:
        groups = self._parameters.groups
        in_force = run.built.param_groups if run.built else [g.options for g in groups]
        if len(in_force) != len(groups):  # a class outside torch has its own
            groups = [Group(options, self._parameters.names_of(options)) for options in in_force]
        chosen = select(list(zip(in_force, groups, strict=True)), group)
        changes = [(options, judged(options, members)) for options, members in chosen]
        for options, change in changes:
            put(options, change)
        self._planner.refresh()

    def _replaced(self, name: str, now: Any, value: float) -> Any:
        """Return what a hyperparameter becomes where a number takes the place of it, or of one in it."""
        if isinstance(now, bool):
            raise SpecError(f"name {shown(name)} is True or False, not a number: call opt_set")
        position = _position(name, now)
        if position is not None:
            return (*now[:position], value, *now[position + 1 :])
        counts = value.is_integer() and is_count(self._trials.class_, name)
        return int(value) if counts else value


def _position(name: str, value: Any) -> int | None:
    """Return which one of a tuple a name means; None where a value is no tuple."""
    key, bracket, index = name.partition("[")
    if isinstance(value, tuple | list):
        position = re.fullmatch(r"(\d+)\]", index)
        if not position or int(position[1]) >= len(value):
            raise ValueError(f"name {shown(name)} must be '{key}[0]' to '{key}[{len(value) - 1}]'")
        return int(position[1])
    if bracket:
        raise ValueError(f"name {shown(name)} is not a tuple: write {key!r}")
    return None
