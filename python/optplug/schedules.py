"""Learning-rate schedulers: from specs, nested as torch nests them, and their steps."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import lr_scheduler, swa_utils
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler, ReduceLROnPlateau

from optplug import spec
from optplug.arguments import blame, check_kinds, said
from optplug.checks import check_count, check_like, is_number
from optplug.errors import HostError, StateError
from optplug.spec import Call, SpecError, shown
from optplug.stored import Stored
from optplug.torch_private import NESTED, is_wrapped_by_scheduler, note_step

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
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise SpecError(
            f"spec {shown(text)}: schedulers take a torch.optim.Optimizer, which {type(optimizer).__name__} "
            "is not: set lr with opt_set_value"
        )
    builder = _Builder(optimizer, function)
    with undone_on_error(optimizer, []):
        try:
            keys = {key for group in optimizer.param_groups for key in group}.union(GROUP_KEYS)
            scheduler = builder.build(spec.parse(text))
            if unknown := {key for group in optimizer.param_groups for key in group} - keys:
                raise SpecError(
                    f"in torch {torch.__version__} it keeps {', '.join(map(shown, sorted(unknown)))} in "
                    "parameter groups, which optplug does not know: set rates with opt_set_value"
                )
            if function and not builder.used:
                raise SpecError("nothing in it takes a function: attach it with opt_schedule")
        except HostError:
            raise
        except Exception as error:
            raise SpecError(f"spec {shown(text)}: {said(error)}") from error
    return scheduler


def detach(optimizer: torch.optim.Optimizer) -> None:
    """Let go of an optimizer's schedulers: hyperparameters stay, and later schedulers start from them."""
    for group in optimizer.param_groups:
        for key in GROUP_KEYS:
            group.pop(key, None)
    if is_wrapped_by_scheduler(vars(optimizer).get("step")):
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
    return bool(state.get("cycle_momentum")) or any(map(_sets_momentum, state.get(NESTED, ())))


class _Builder:
    def __init__(self, optimizer: torch.optim.Optimizer, function: Function | None) -> None:
        self._optimizer, self._function = optimizer, function
        self.used = False

    def build(self, call: Call) -> LRScheduler:
        known = classes()
        if call.name not in known:
            spec.check_is_torchs(
                call, "schedulers", "set a rate of your own with opt_set_value before each step"
            )
        spec.check_name(call.name, known, "scheduler")
        class_ = known[call.name]
        spec.check_module(call, class_.__module__)
        call = spec.without_supplied(class_, call)
        functions: dict[str, Any] = {}
        if call.name in ("LambdaLR", "MultiplicativeLR") and not call.args and "lr_lambda" not in call.kwargs:
            if self._function is None:
                raise SpecError(f"{call.name} needs a function: attach it with opt_schedule_callback")
            groups = range(len(self._optimizer.param_groups))
            functions: dict[str, Any] = {  # type: ignore[no-redef]
                "lr_lambda": [functools.partial(self._function, group=i) for i in groups]
            }
        elif call.name == "CyclicLR" and self._function and "scale_fn" not in call.kwargs:
            functions = {"scale_fn": self._function}
        self.used |= bool(functions)
        # ChainedScheduler has the optimizer last, and finds it in its schedulers.
        implied = 0 if call.name == "ChainedScheduler" else 1
        call = replace(call, kwargs={**call.kwargs, **functions})
        given = spec.check_arguments(class_, call, ["optimizer"] * implied)
        given = {name: value for name, value in given.items() if name not in functions}
        for name in ("lr_lambda", "scale_fn"):
            if given.get(name) is not None:
                raise SpecError(
                    f"{name}={shown(given[name])} is not a function: attach one with opt_schedule_callback, "
                    f"and leave {name} out here"
                )
        check_kinds(class_, given)
        made = {name: self._nested(value) for name, value in given.items()}
        has_nested = any(made[name] is not given[name] for name in given)

        def make(arguments: dict[str, Any]) -> LRScheduler:
            values = {name: made[name] for name in arguments}
            make_one: Any = class_
            return make_one(*[self._optimizer] * implied, **values, **functions)

        attempt = make if has_nested else functools.partial(self._try, class_, implied, functions)
        try:
            if not has_nested:
                attempt(given)
            return make(given)
        except HostError:
            raise
        except Exception as error:
            raise SpecError(blame(error, class_, given, attempt)) from error

    def _try(
        self,
        class_: Any,
        implied: int,
        functions: dict[str, Any],
        arguments: dict[str, Any],
    ) -> None:
        """Make a scheduler of an optimizer of no importance, and step it, to hear what PyTorch says."""
        optimizer = _stand_in(self._optimizer)
        constant = {name: _constant(function) for name, function in functions.items()}
        has_rates = all(isinstance(g.get("lr"), int | float | Tensor) for g in optimizer.param_groups)
        scheduler = class_(*[optimizer] * implied, **arguments, **constant)
        if not has_rates:  # until a step of a class outside torch, as Adafactor of timm
            return
        scheduler.step(*[0.0] * isinstance(scheduler, ReduceLROnPlateau))
        for group in optimizer.param_groups:
            if not 0 <= group["lr"] < math.inf:
                raise SpecError(f"lr becomes {group['lr']}")

    def _nested(self, value: object) -> object:
        """Return a value with schedulers for the calls in it, or the value itself where there are none."""
        if isinstance(value, Call):
            try:
                return self.build(value)
            except SpecError as error:
                raise SpecError(f"{value.name}: {str(error).removeprefix(f'{value.name}: ')}") from error
        if isinstance(value, list | tuple):
            made = [self._nested(v) for v in value]
            return type(value)(made) if any(map(operator.is_not, made, value)) else value
        return value


def _stand_in(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return an optimizer with the same hyperparameters, on which a scheduler can be tried.

    It is of no class: one outside torch may ask another optimizer for its groups.
    """
    other = object.__new__(torch.optim.Optimizer)
    groups = [
        {key: value.clone() if isinstance(value, Tensor) else value for key, value in group.items()}
        for group in optimizer.param_groups
    ]
    vars(other).update(vars(optimizer), param_groups=groups, defaults=optimizer.defaults)
    note_step(other)
    vars(other).pop("step", None)  # another scheduler's, which calls the optimizer itself
    return other


def _constant(function: Any) -> Any:
    """Return what stands for a function of the host's, or a list of them, which a trial does not call."""
    return [_constant(f) for f in function] if isinstance(function, list) else lambda *_: 1.0


def step(optimizer: torch.optim.Optimizer, schedulers: Iterable[LRScheduler], value: float | None) -> None:
    """Step schedulers in the order in which they were attached, all or none.

    Without a value, those that need none.  With one, ReduceLROnPlateau alone, whose metric it is; only where
    there is none may it be the epoch of CosineAnnealingWarmRestarts, which would take a loss for one.

    Raises:
        StateError: there is no such scheduler.
    """
    schedulers, chosen = list(schedulers), list[Any]()
    if not schedulers:
        raise StateError("there is no scheduler: call opt_schedule first")
    if value is None:
        chosen = [s for s in schedulers if not isinstance(s, ReduceLROnPlateau)]
        if not chosen:
            raise StateError("ReduceLROnPlateau needs a value: call opt_schedule_step_metric")
    else:
        takers = (ReduceLROnPlateau, CosineAnnealingWarmRestarts)
        found = ([s for s in schedulers if isinstance(s, taker)] for taker in takers)
        chosen = next((some for some in found if some), [])
        if not chosen:
            raise StateError(f"no scheduler takes the value {value}: call opt_schedule_step")
    with undone_on_error(optimizer, chosen):
        for s in chosen:
            try:
                s.step(*[value] * (value is not None))
            except (ArithmeticError, TypeError, ValueError) as error:
                what = type(s).__name__ if value is None else f"value {value}"
                raise ValueError(f"{what}: {said(error)}") from error


def takes_metric(schedulers: Iterable[LRScheduler]) -> bool:
    """Tell whether the value of `step` is a metric rather than an epoch."""
    return any(isinstance(s, ReduceLROnPlateau) for s in schedulers)


def restore(scheduler: LRScheduler, what: str, state: Any) -> None:
    """Put a saved state into a scheduler, which ``what`` names for errors.

    Raises:
        ValueError: it is none of such a scheduler.
    """
    like = scheduler.state_dict()
    if not isinstance(state, dict) or state.keys() != like.keys():
        raise ValueError(f"{what} does not fit")
    checked = check_like(what, state, _with_rates_of(state, like))
    for name in ("last_epoch", "_step_count"):
        check_count(f"{what}[{name!r}]", checked.get(name, 0))
    scheduler.load_state_dict(checked)


def _with_rates_of(state: Any, like: Any) -> Any:
    """Return what a saved state must be like, with rates as they are in it.

    A class outside torch may have none yet, or make a tensor of one in its first step.
    """
    if isinstance(state, list) and isinstance(like, list) and len(state) == len(like):
        return [_with_rates_of(*pair) for pair in zip(state, like, strict=True)]
    if not (isinstance(state, dict) and isinstance(like, dict)):
        return like
    likes = {key: _with_rates_of(state.get(key), e) for key, e in like.items()}
    saved, rates = state.get("_last_lr"), like.get("_last_lr")
    if isinstance(saved, list) and isinstance(rates, list) and len(saved) == len(rates):
        likes["_last_lr"] = [_rate_like(*pair) for pair in zip(saved, rates, strict=True)]
    return likes


def _rate_like(saved: Any, rate: Any) -> Any:
    if isinstance(saved, Stored) and saved.dtype.is_floating_point and not saved.shape:
        return torch.empty((), dtype=saved.dtype)
    return 0.0 if rate is None and is_number(saved) else rate


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
        yield from _with_nested(getattr(s, NESTED, ()))
