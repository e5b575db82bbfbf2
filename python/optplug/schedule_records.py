"""The schedulers' steps as records: what ``step()`` makes of numbers, seen by running it once on a copy.

A scheduler computes rates from counts and rates, in Python.  A copy of it, and of the parameter groups, has
numbers in place of all its own that remember how they were computed (`number`); what a step then leaves
there is a record.  As with optimizers, it is used only after C has come to the same numbers as a step by
Python, and branches that come out otherwise are Python's, and add a record.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from optplug import plans, transfer
from optplug._optplug import lib
from optplug.holdings import ENDS
from optplug.number import Computation, Number, Scalar, is_double, plain, understood
from optplug.operators import Form
from optplug.plans import Group, Operation, Plan, Schedulers
from optplug.recorder import Record
from optplug.run import Run
from optplug.schedules import GROUP_KEYS
from optplug.watch import is_constant

#: How many records there may be, how often a step is looked at in all, and how many numbers are copied.
_MOST_RECORDS, _MOST_LOOKS, _MOST_NUMBERS = 6, 12, 512

#: The way to a value, from schedulers and groups: keys of dicts, attributes, indices of lists and tuples.
_Path = tuple[Any, ...]


class Schedule:
    """The steps of an optimizer's schedulers, made by C: numbers in memory of its own, which it moves."""

    def __init__(self, run: Run) -> None:
        assert run.built
        self._roots = [*run.schedulers, *run.built.param_groups]
        self._paths = [path for path, value in _walk(self._roots) if type(value) in (int, float)]
        if len(self._paths) > _MOST_NUMBERS:
            raise ValueError("they hold too many numbers")
        if any(isinstance(value, torch.Tensor) for _, value in _walk(self._roots)):
            raise ValueError("a rate is a tensor")
        for _, value in _walk(self._roots):
            if not _is_fixed(value):  # a step of a copy would change that of the scheduler
                raise ValueError(f"a scheduler has a {type(value).__name__}, which may change unseen")
        self._memory = torch.zeros(len(self._paths), dtype=torch.float64)
        self.records: list[Record] = []
        self.refresh()

    def refresh(self) -> None:
        """Give C the numbers as they are."""
        values = self.values()
        if not all(map(is_double, values)):
            raise ValueError("an integer is too large for a double")
        self._memory.copy_(torch.tensor([float(v) for v in values], dtype=torch.float64))

    def values(self) -> list[float]:
        """Return the numbers, as schedulers and groups have them."""
        return [_get(self._roots, path) for path in self._paths]

    def take(self) -> None:
        """Give schedulers and groups the numbers as C has them."""
        for i in self._moved():
            path = self._paths[i]
            _set(self._roots, path, type(_get(self._roots, path))(self._memory[i].item()))

    def _moved(self) -> list[int]:
        """Return which of the numbers steps move."""
        return sorted({i for record in self.records for i, _ in record.stores})

    def operation(self, memory: torch.Tensor, records: list[Record]) -> Operation:
        """State a step in memory like that of C."""
        lists = [[number] for number in memory.unbind()]
        form = Form(tuple(map(str, range(len(lists)))))
        return Operation("schedulers", form, {}, lists, [], True, records=records)

    def memory(self) -> torch.Tensor:
        """Return a copy of the numbers that C has."""
        return self._memory.clone()

    def stated(self, plan: Plan) -> Schedulers | None:
        """State how C makes a step beside a plan; None where a number that moves is more than its scalars."""
        if not self.records:
            return None
        found = []
        for i in self._moved():
            group, name = self._option(i)
            if name is None:
                continue
            places = plan.places(group, name)
            key = name.partition("[")[0]
            if not places or not plan.is_scalar(group, key, group[key]):
                return None
            found += [(i, place) for place in places]
        return Schedulers(self.operation(self._memory, list(self.records)), found, self.refresh)

    def _option(self, i: int) -> tuple[Group, str | None]:
        """Return which hyperparameter of which group a number is, if it is one."""
        root, *rest = self._paths[i]
        group = self._roots[root]
        if not isinstance(group, dict) or rest[0] in GROUP_KEYS:
            return {}, None
        return group, str(rest[0]) + "".join(f"[{index}]" for index in rest[1:])

    def rehearse(self) -> Record:
        """Step a copy, and return what that came down to.

        Raises:
            ValueError: it is not understood.
        """
        noted = Computation()
        numbers = {}
        for i, (path, value) in enumerate(zip(self._paths, self.values(), strict=True)):
            numbers[path] = first = Number(noted, value, noted.add(Scalar(lib.SCALAR_ITEM, i)))
            if self._option(i)[1] in plans.SWITCHES:  # at 0 a plan is another
                noted.compared(lib.SCALAR_EQUAL, first, 0)
        copies = _copy(self._roots, numbers)
        others = {path: value for path, value in _walk(copies) if path not in numbers}
        with understood():
            for scheduler in copies:
                if isinstance(scheduler, LRScheduler):
                    scheduler.step()
        after = dict(_walk(copies))
        if noted.reason:
            raise ValueError(noted.reason)
        if after.keys() != numbers.keys() | others.keys():
            raise ValueError("a step replaces parts of the schedulers")
        if any(
            type(plain(after[path])) is not type(v)
            for path, v in zip(self._paths, self.values(), strict=True)
        ):
            raise ValueError("a step turns an integer into a float")
        if any(after[path] is not value and after[path] != value for path, value in others.items()):
            raise ValueError("a step changes something that is not a number")
        stores = [(i, noted.index(after[path])) for i, path in enumerate(self._paths)]
        stores = [(i, index) for i, index in stores if index != numbers[self._paths[i]].index]
        return Record(tuple(noted.scalars), tuple(noted.guards.items()), tuple(stores), (), 0)


class ScheduleRecords:
    """What is known of the steps of one optimizer's schedulers, and why there is no record."""

    def __init__(self) -> None:
        #: Why there is no record; "" if there is one, or none was tried.
        self.reason = ""
        self.schedule: Schedule | None = None
        self._new: Record | None = None
        self._before: torch.Tensor | None = None
        self._looks = 0

    def forget(self) -> None:
        """Begin anew, since the schedulers or the groups may be others."""
        self.reason, self.schedule, self._new, self._looks = "", None, None, 0

    def begin(self, run: Run) -> None:
        """Look at the step that the schedulers are about to make by Python."""
        self._new = None
        if self._looks == _MOST_LOOKS:
            return
        self._looks += 1
        try:
            if any(function for _, function in run.schedules):
                raise ValueError("a function of yours computes rates")
            if any(isinstance(s, ReduceLROnPlateau) for s in run.schedulers):
                raise ValueError("a metric decides on rates")
            schedule = self.schedule or Schedule(run)
            schedule.refresh()
            if len(schedule.records) < _MOST_RECORDS:
                self._new = schedule.rehearse()
                self._before = schedule.memory()
                self.schedule = schedule
        except Exception as error:
            self._give_up(str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")

    def finish(self) -> bool:
        """Compare the step that was made with C's; True if there is a new record by that."""
        new, self._new = self._new, None
        schedule = self.schedule
        if new is None or schedule is None or self._before is None or new in schedule.records:
            return False
        try:
            operation = schedule.operation(self._before, [*schedule.records, new])
            if transfer.run(Plan([operation])) and _are_same(self._before, schedule.values()):
                schedule.records.append(new)
                return True
            self._give_up("its record gave other numbers than the step")
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {error}")
        return False

    def _give_up(self, reason: str) -> None:
        """Keep to the records that are proven."""
        self.reason, self._looks = reason, _MOST_LOOKS


def _are_same(memory: torch.Tensor, values: list[float]) -> bool:
    """Tell whether numbers in memory are these, as far as that is to be seen: an int has no sign of 0."""
    pairs = zip(memory.tolist(), values, strict=True)
    return all(a == b and (type(b) is int or math.copysign(1, a) == math.copysign(1, b)) for a, b in pairs)


# ---- schedulers and groups as trees ----


def _parts(value: Any) -> dict[Any, Any] | None:
    """Return what a value is made of; None if it has no parts."""
    if isinstance(value, LRScheduler):
        value = vars(value)
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if k not in ("params", "param_names", "optimizer")}
    return dict(enumerate(value)) if type(value) in (list, tuple) else None


def _walk(value: Any, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Yield all that has no parts, with the way to it."""
    parts = _parts(value)
    if parts is None:
        yield path, value
        return
    for key, part in parts.items():
        yield from _walk(part, (*path, key))


def _is_fixed(value: Any) -> bool:
    """Tell whether a value never changes."""
    if type(value) is functools.partial:
        return all(map(_is_fixed, (value.func, *value.args, *value.keywords.values())))
    return type(value) in ENDS or (isinstance(value, FunctionType) and is_constant(value))


def _get(value: Any, path: _Path) -> Any:
    for key in path:
        value = (vars(value) if isinstance(value, LRScheduler) else value)[key]
    return value


def _set(roots: Sequence[Any], path: _Path, value: Any) -> None:
    """Replace a value; a list or tuple that it is in by another, since schedulers share lists."""
    *above, key = path
    parent = _get(roots, tuple(above))
    if isinstance(parent, LRScheduler):
        vars(parent)[key] = value
    elif isinstance(parent, dict):
        parent[key] = value
    else:
        _set(roots, tuple(above), type(parent)(value if i == key else v for i, v in enumerate(parent)))


def _copy(roots: list[Any], numbers: dict[_Path, Number]) -> list[Any]:
    """Copy schedulers and groups, with other numbers in them, and an optimizer that has those groups."""
    optimizers = [s.optimizer for s in roots if isinstance(s, LRScheduler)]
    optimizer = object.__new__(torch.optim.Optimizer)  # of no class: see `schedules`
    vars(optimizer).update(vars(optimizers[0]), defaults=optimizers[0].defaults)

    def copy(value: Any, path: _Path) -> Any:
        if path in numbers:
            return numbers[path]
        parts = _parts(value)
        if parts is None:
            return value
        copied = {key: copy(part, (*path, key)) for key, part in parts.items()}
        if isinstance(value, LRScheduler):
            other: Any = object.__new__(type(value))
            vars(other).update(copied, **({"optimizer": optimizer} if "optimizer" in vars(value) else {}))
            return other
        if isinstance(value, dict):
            return copied if type(value) is dict else _Keys(copied)
        return type(value)(copied.values())

    copies = [copy(root, (i,)) for i, root in enumerate(roots)]
    optimizer.param_groups = [group for group in copies if type(group) is dict]
    return copies


class _Keys(dict):  # type: ignore[type-arg]
    """A dict, such as MultiStepLR's Counter of milestones, that compares each key with a number asked for."""

    def _find(self, number: Any) -> Any:
        return next((key for key in self if number == key), None)

    def __contains__(self, number: object) -> bool:
        return self._find(number) is not None

    def __getitem__(self, number: Any) -> Any:
        return super().__getitem__(self._find(number))
