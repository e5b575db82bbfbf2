"""Learning-rate schedulers: from specs, nested as torch nests them, and their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.optim import lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from optplug import spec
from optplug.errors import StateError
from optplug.spec import Call, SpecError, shown


def classes() -> dict[str, type[LRScheduler]]:
    """Return the schedulers of torch by name."""
    found = {name: getattr(lr_scheduler, name) for name in lr_scheduler.__all__ if name != "LRScheduler"}
    return {**found, "SWALR": swa_utils.SWALR}


def attach(
    optimizer: torch.optim.Optimizer, text: str, function: Callable[[int], float] | None = None
) -> LRScheduler:
    """Build a scheduler, which sets the optimizer's first learning rate.

    Args:
        text: the spec, without the optimizer: ``"StepLR(step_size=30)"``.
        function: what a scheduler that takes a ``lr_lambda`` gets where the spec has none.

    Raises:
        ValueError: the spec cannot be read, names no scheduler, or PyTorch refuses an argument.
    """
    with undone_on_error(optimizer, []):
        try:
            return _build(optimizer, spec.parse(text), function)
        except Exception as error:
            raise SpecError(f"spec {shown(text)}: {error}") from error


def _build(
    optimizer: torch.optim.Optimizer, call: Call, function: Callable[[int], float] | None
) -> LRScheduler:
    known = classes()
    spec.choose(call.name, known, "scheduler")
    built = Call(
        call.name,
        tuple(_argument(optimizer, value, function) for value in call.args),
        {name: _argument(optimizer, value, function) for name, value in call.kwargs.items()},
    )
    if call.name in ("LambdaLR", "MultiplicativeLR") and not built.args and "lr_lambda" not in built.kwargs:
        if function is None:
            raise SpecError(f"{call.name} needs a function: attach it with opt_schedule_callback")
        built.kwargs["lr_lambda"] = function
    # ChainedScheduler has the optimizer last, and finds it in its schedulers.
    implied = 0 if call.name == "ChainedScheduler" else 1
    arguments = spec.check_arguments(known[call.name], built, implied)
    return known[call.name](*[optimizer] * implied, **arguments)


def _argument(
    optimizer: torch.optim.Optimizer, value: object, function: Callable[[int], float] | None
) -> object:
    if isinstance(value, Call):
        return _build(optimizer, value, function)
    if isinstance(value, list | tuple):
        return type(value)(_argument(optimizer, v, function) for v in value)
    return value


def step(optimizer: torch.optim.Optimizer, schedulers: Iterable[LRScheduler], metric: float | None) -> None:
    """Step all schedulers in the order in which they were attached; all or none.

    Raises:
        StateError: there are none, or one wants a metric and there is none, or the other way round.
    """
    schedulers = list(schedulers)
    if not schedulers:
        raise StateError("there is no scheduler: call opt_schedule first")
    want = [s for s in schedulers if isinstance(s, ReduceLROnPlateau)]
    if want and metric is None:
        raise StateError("ReduceLROnPlateau needs a metric: call opt_schedule_step_metric")
    if not want and metric is not None:
        raise StateError(f"no scheduler takes the metric {metric}: call opt_schedule_step")
    with undone_on_error(optimizer, schedulers):
        for s in schedulers:
            s.step(*[metric] * (s in want))


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
