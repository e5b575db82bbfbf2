"""Torch's step of LBFGS and its line search, with other functions in the place of some that they call."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug.known import is_known
from optplug.lean import bare_step
from optplug.rows import Kind, Row
from optplug.torch_private import INTERPOLATION, LINE_SEARCH

Closure = Callable[[], float]

#: What torch's step calls of its optimizer.
_METHODS = (
    *("_numel", "_gather_flat_grad", "_add_grad", "_clone_param", "_set_param"),
    "_directional_evaluate",
)
#: Where torch's step finds its line search.
_GLOBALS = bare_step(torch.optim.LBFGS).__globals__
#: Of each dtype, whether our cubic has torch's bits.
_interpolating: dict[torch.dtype, bool] = {}


@functools.lru_cache(8)
def _bare(step: Any) -> Any:
    return inspect.unwrap(step)  # which torch wraps itself when an optimizer is built


def _functions() -> list[Any]:
    """Return what a step of LBFGS is made of, as it is now."""
    full, search = torch.optim.LBFGS, _GLOBALS.get(LINE_SEARCH)
    cubic = getattr(search, "__globals__", {}).get(INTERPOLATION)
    methods = [getattr(full, name, None) for name in _METHODS]
    return [*methods, search, cubic, _bare(full.step)]


_AS_LOADED = _functions()
#: Whether torch's step is one whose loops are known, which are left out of it.
IS_KNOWN = is_known(bare_step(torch.optim.LBFGS))


def is_as_loaded(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether nobody, as a Python host may, has put other functions in the place of torch's."""
    return _functions() == _AS_LOADED and vars(optimizer).keys().isdisjoint(_METHODS)


class _Nothing:
    """Stands for ``torch.enable_grad()``, as a context and around a function."""

    def __call__(self, function: Closure) -> Closure:
        return function

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def _with(function: Any, **others: Any) -> Any:
    """Return a function of torch's that finds other things by these names."""
    made = types.FunctionType(
        function.__code__,
        {**function.__globals__, **others},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def step_with(multiplied: Callable[[Row, Any], Row], has_loops: bool) -> Callable[[Any, Closure], float]:
    """Return torch's step with another product between its loops over the history.

    Args:
        multiplied: the product of a row and a number.
        has_loops: whether it has those loops, too, or there is nothing in a range.
    """
    nothing = _Nothing()
    found = types.SimpleNamespace(
        enable_grad=lambda: nothing, mul=multiplied, contiguous_format=torch.contiguous_format
    )
    step = bare_step(torch.optim.LBFGS)
    search = _with(step.__globals__[LINE_SEARCH], **{"torch": found, INTERPOLATION: _interpolated})
    ranges = {} if has_loops else {"range": lambda *_: ()}
    return _with(step, **{"torch": found, LINE_SEARCH: search, **ranges})


def _interpolated(x1: Any, f1: Any, g1: Any, x2: Any, f2: Any, g2: Any, bounds: Any = None) -> Any:
    """Return the minimum of a cubic through two points: torch's own function, on scalars."""
    low, high = bounds or ((x1, x2) if x1 <= x2 else (x2, x1))
    rise, run = 3 * (f1 - f2), x1 - x2
    # A number through a tensor is the number times the tensor's reciprocal.
    slope = rise / run if isinstance(run, float | int) and not isinstance(run, np.generic) else 1 / run * rise
    d1 = g1 + g2 - slope
    square = d1 * d1 - g1 * g2
    if not square >= 0:
        return (low + high) / 2.0
    d2 = type(square)(torch.tensor(square).sqrt().item())
    if x1 <= x2:
        place = x2 - (x2 - x1) * ((g2 + d2 - d1) / (g2 - g1 + 2 * d2))
    else:
        place = x1 - (x1 - x2) * ((g1 + d2 - d1) / (g1 - g2 + 2 * d2))
    return min(max(place, low), high)


def interpolates(kind: Kind) -> bool:
    """Tell whether that has torch's bits, which a step that is repeated may not show: few interpolate."""
    if kind.dtype not in _interpolating:
        torchs = _GLOBALS[LINE_SEARCH].__globals__[INTERPOLATION]
        generator = torch.Generator().manual_seed(0)
        _interpolating[kind.dtype] = all(
            _interpolates_one(kind, torchs, torch.randn(6, generator=generator).tolist(), case)
            for _ in range(25)
            for case in range(8)
        )
    return _interpolating[kind.dtype]


def _interpolates_one(kind: Kind, torchs: Callable[..., Any], drawn: list[float], case: int) -> bool:
    """Compare both for numbers or scalars as places, between bounds or not, the first place 0 or not."""
    are_scalars, has_bounds, is_first = case & 1, case & 2, case & 4

    def tensor(value: float) -> Tensor:
        return torch.tensor(value, dtype=kind.dtype)

    x1, f1, g1, x2, f2, g2 = drawn
    places = [tensor(x) if are_scalars else x for x in (x1, x2)]
    if is_first:
        places[0] = 0
    bounds = {"bounds": tuple(sorted(places))} if has_bounds else {}
    theirs = torchs(places[0], f1, tensor(g1), places[1], f2, tensor(g2), **bounds)
    x1, x2 = map(kind.scalar, places)
    bounds = {name: tuple(map(kind.scalar, pair)) for name, pair in bounds.items()}
    ours = _interpolated(x1, f1, kind.scalar(tensor(g1)), x2, f2, kind.scalar(tensor(g2)), **bounds)
    is_alike = type(kind.scalar(theirs)) is type(ours)
    return is_alike and (float(theirs) == ours or (theirs != theirs and ours != ours))
