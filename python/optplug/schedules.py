"""Learning-rate schedulers: from specs, nested as torch nests them, and their steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import lr_scheduler, swa_utils
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler, ReduceLROnPlateau

from optplug import spec
from optplug.errors import HostError, StateError
from optplug.spec import Call, SpecError, shown

# A function of the host's: of the epoch (and the group), or of whatever torch's argument is of.
Function = Callable[..., float]

#: What schedulers keep in the parameter groups, beside the hyperparameters that they set.
GROUP_KEYS = ("initial_lr", "swa_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")


def classes() -> dict[str, type[LRScheduler]]:
    """Return the schedulers of torch by name."""
    found = {name: getattr(lr_scheduler, name) for name in lr_scheduler.__all__ if name != "LRScheduler"}
    return {**found, "SWALR": swa_utils.SWALR}


def attach(optimizer: torch.optim.Optimizer, text: str, function: Function | None = None) -> LRScheduler:
    """Build a scheduler, which sets the optimizer's first learning rate.

    Args:
        text: the spec, without the optimizer: ``"StepLR(step_size=30)"``.
        function: what LambdaLR and MultiplicativeLR get for ``lr_lambda``, which is then called with the
            epoch and the group, and CyclicLR for ``scale_fn``.

    Raises:
        ValueError: the spec cannot be read, names no scheduler, or PyTorch refuses an argument.
    """
    builder = _Builder(optimizer, function)
    with undone_on_error(optimizer, []):
        try:
            scheduler = builder.build(spec.parse(text))
            if function and not builder.used:
                raise SpecError("nothing in it takes a function: attach it with opt_schedule")
        except HostError:
            raise
        except Exception as error:
            raise SpecError(f"spec {shown(text)}: {error}") from error
    return scheduler


def detach(optimizer: torch.optim.Optimizer) -> None:
    """Let go of an optimizer's schedulers: hyperparameters stay, and later schedulers start from them."""
    for group in optimizer.param_groups:
        for key in GROUP_KEYS:
            group.pop(key, None)
    if hasattr(vars(optimizer).get("step"), "_wrapped_by_lr_sched"):
        del optimizer.step  # torch's wrapper around that of the class


def keep(
    optimizer: torch.optim.Optimizer, groups: Iterable[dict[str, Any]], states: Iterable[dict[str, Any]]
) -> None:
    """Give an optimizer what schedulers set, as it is in these groups.

    Args:
        optimizer: one with as many groups.
        groups: parameter groups as they were.
        states: those of all schedulers that have set something in the one or the other.
    """
    sets_momentum = any(map(_sets_momentum, states))
    for group, before in zip(optimizer.param_groups, groups, strict=True):
        for key in ("lr", *GROUP_KEYS):
            if key in before:
                group[key] = before[key]
            else:
                group.pop(key, None)
        if sets_momentum and "betas" in before:
            group["betas"] = (before["betas"][0], *group["betas"][1:])
        elif sets_momentum and "momentum" in before:
            group["momentum"] = before["momentum"]


def _sets_momentum(state: dict[str, Any]) -> bool:
    return bool(state.get("cycle_momentum")) or any(map(_sets_momentum, state.get("_schedulers", ())))


class _Builder:
    def __init__(self, optimizer: torch.optim.Optimizer, function: Function | None) -> None:
        self._optimizer, self._function = optimizer, function
        self.used = False

    def build(self, call: Call) -> LRScheduler:
        known = classes()
        spec.choose(call.name, known, "scheduler")
        spec.check_module(call, known[call.name].__module__)
        call = spec.without_supplied(known[call.name], call)
        args = tuple(self._argument(value) for value in call.args)
        kwargs = {name: self._argument(value) for name, value in call.kwargs.items()}
        if call.name in ("LambdaLR", "MultiplicativeLR") and not args and "lr_lambda" not in kwargs:
            if self._function is None:
                raise SpecError(f"{call.name} needs a function: attach it with opt_schedule_callback")
            groups = range(len(self._optimizer.param_groups))
            kwargs["lr_lambda"] = [functools.partial(self._function, group=i) for i in groups]
            self.used = True
        elif call.name == "CyclicLR" and self._function and "scale_fn" not in kwargs:
            kwargs["scale_fn"] = self._function
            self.used = True
        # ChainedScheduler has the optimizer last, and finds it in its schedulers.
        implied = 0 if call.name == "ChainedScheduler" else 1
        arguments = spec.check_arguments(known[call.name], Call(call.name, args, kwargs), implied)
        return known[call.name](*[self._optimizer] * implied, **arguments)

    def _argument(self, value: object) -> object:
        if isinstance(value, Call):
            return self.build(value)
        if isinstance(value, list | tuple):
            return type(value)(self._argument(v) for v in value)
        return value


def step(optimizer: torch.optim.Optimizer, schedulers: Iterable[LRScheduler], value: float | None) -> None:
    """Step schedulers in the order in which they were attached, all or none.

    Without a value, those that need none.  With one, ReduceLROnPlateau alone, whose metric it is; only where
    there is none may it be the epoch of CosineAnnealingWarmRestarts, which would take a loss for one.

    Raises:
        StateError: there is no such scheduler.
    """
    schedulers = list(schedulers)
    if not schedulers:
        raise StateError("there is no scheduler: call opt_schedule first")
    if value is None:
        chosen = [s for s in schedulers if not isinstance(s, ReduceLROnPlateau)]
        if not chosen:
            raise StateError("ReduceLROnPlateau needs a value: call opt_schedule_step_metric")
    else:
        takers = (ReduceLROnPlateau, CosineAnnealingWarmRestarts)
        found = ([s for s in schedulers if isinstance(s, taker)] for taker in takers)
        chosen = next(filter(None, found), [])
        if not chosen:
            raise StateError(f"no scheduler takes the value {value}: call opt_schedule_step")
    with undone_on_error(optimizer, chosen):
        for s in chosen:
            s.step(*[value] * (value is not None))


@contextmanager
def undone_on_error(optimizer: torch.optim.Optimizer, schedulers: Iterable[LRScheduler]) -> Iterator[None]:
    """Put hyperparameters and schedulers back as they were if the block fails."""
    groups = [dict(group) for group in optimizer.param_groups]
    objects = [(s, dict(vars(s))) for s in _with_nested(schedulers)]
    step_function = vars(optimizer).get("step")
    try:
        yield
    except BaseException:
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            group.clear()
            group.update(before)
        for s, before in objects:
            vars(s).clear()
            vars(s).update(before)
        if step_function is None:
            vars(optimizer).pop("step", None)
        raise


def _with_nested(schedulers: Iterable[LRScheduler]) -> Iterator[LRScheduler]:
    for s in schedulers:
        yield s
        yield from _with_nested(getattr(s, "_schedulers", ()))
