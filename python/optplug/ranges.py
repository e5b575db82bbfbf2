"""Where hyperparameters may move without PyTorch's constructor judging them again.

The constructors of torch.optim compare a hyperparameter with constants and keep it.  One that is watched
notes those comparisons: all numbers for which they come out the same are accepted on the same way.  One
of which torch makes something else, such as Adagrad's initial_accumulator_value, has no room.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch.overrides import TorchFunctionMode

_MOST_KEPT = 8


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, both among them."""

    low: float
    high: float

    def __str__(self) -> str:
        ends = []
        for end, inward, at, strict in (
            (self.low, math.inf, "at least", "above"),
            (self.high, -math.inf, "at most", "below"),
        ):
            limit = math.nextafter(end, -inward)  # of a comparison without equality
            if math.isfinite(end):
                ends.append(f"{strict} {limit:g}" if limit == round(limit, 6) else f"{at} {end:g}")
        return " and ".join(ends)


class Ranges:
    """What is known of the hyperparameters of one class of torch.optim.

    Args:
        construct: builds an optimizer from hyperparameters, or raises an error.
    """

    def __init__(self, construct: Callable[[dict[str, Any]], object]) -> None:
        self._construct = construct
        self._known: list[_Known] = []  # the latest first: groups may differ in what is no number

    def watch(self, options: dict[str, Any]) -> None:
        """Learn from hyperparameters that have been accepted.

        All are watched together, so that each keeps its range while others move in theirs: one that is
        compared with another has none.
        """
        watched = _watched(self._construct, options)
        if watched is None:
            return  # by the rate of a schedule, it may be, which no constructor has judged
        flat = _flat(options)
        ranges = {
            name: Range(flat[name], flat[name]) if w.is_opaque else Range(w.low, w.high)
            for name, w in watched.items()
        }
        constants = {name: value for name, value in flat.items() if name not in ranges}
        self._known = [_Known(constants, ranges), *self._known[: _MOST_KEPT - 1]]

    def cover(self, options: dict[str, Any]) -> bool:
        """Tell whether the constructor is known to accept hyperparameters."""
        return self._find(options) is not None

    def find(self, options: dict[str, Any], name: str) -> Range | None:
        """Return the range of one of hyperparameters that are covered, by the name that `opt_get` takes."""
        known = self._find(options)
        return known.ranges.get(name) if known else None

    def _find(self, options: dict[str, Any]) -> _Known | None:
        flat = _flat(options)
        return next((known for known in self._known if known.covers(flat)), None)


def broken(
    construct: Callable[[dict[str, Any]], object], options: dict[str, Any], defaults: dict[str, Any]
) -> list[str]:
    """Say of each number among hyperparameters that PyTorch rejects what it must be.

    Args:
        construct: as `Ranges` has it.
        defaults: the class's own, beside which the ranges are looked for.
    """
    accepted = {name: float(v) if type(v) is int else v for name, v in defaults.items()}
    watched = _watched(construct, accepted) or {}
    found = []
    for name, value in _flat(options).items():
        if name not in watched or not isinstance(value, int | float):
            continue
        allowed = Range(watched[name].low, watched[name].high)
        if str(allowed) and not allowed.low <= value <= allowed.high:
            found.append(f"{name} must be {allowed}")
    return found


def _watched(
    construct: Callable[[dict[str, Any]], object], options: dict[str, Any]
) -> dict[str, _Watched] | None:
    """Return hyperparameters' numbers after they were watched in the constructor; None if it rejects them."""
    watched: dict[str, _Watched] = {}

    def watch(name: str, value: Any) -> Any:
        if type(value) is float and not math.isnan(value):
            watched[name] = value = _Watched(value)
        return value

    given = {
        key: type(value)(watch(f"{key}[{i}]", v) for i, v in enumerate(value))
        if type(value) in (list, tuple)
        else watch(key, value)
        for key, value in options.items()
    }
    try:
        with _Noticing():
            construct(given)
    except Exception:
        return None
    return watched


class _Known(NamedTuple):
    """Hyperparameters that have been accepted, by the names that `opt_get` takes."""

    constants: dict[str, Any]
    ranges: dict[str, Range]

    def covers(self, flat: dict[str, Any]) -> bool:
        if len(flat) != len(self.constants) + len(self.ranges):
            return False
        for name, (low, high) in self.ranges.items():
            value = flat.get(name)
            if type(value) is not float or not low <= value <= high:
                return False
        return all(
            type(flat.get(name)) is type(value) and flat[name] == value
            for name, value in self.constants.items()
        )


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """Return hyperparameters by the names that `opt_get` takes, with what tuples there are."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        if type(value) in (list, tuple):
            flat[key] = (type(value), len(value))
            flat |= {f"{key}[{i}]": v for i, v in enumerate(value)}
        else:
            flat[key] = value
    return flat


class _Watched(float):
    """A number that notes what it is compared with; opaque if anything else becomes of it."""

    def __init__(self, _: float) -> None:
        self.low, self.high, self.is_opaque = -math.inf, math.inf, False

    def _compare(self, other: Any, result: Any, is_below: bool, is_strict: bool) -> Any:
        """Note that the comparison has this result: as below or above another number, or at it as well."""
        if isinstance(other, _Watched):
            self.is_opaque = other.is_opaque = True
        elif type(other) not in (int, float) or not abs(other) < 2**53:
            self.is_opaque = True
        elif result:
            self._bound(float(other), is_below, is_strict)
        else:
            self._bound(float(other), not is_below, not is_strict)
        return result

    def _bound(self, other: float, is_below: bool, is_strict: bool) -> None:
        end = math.nextafter(other, -math.inf if is_below else math.inf) if is_strict else other
        if is_below:
            self.high = min(self.high, end)
        else:
            self.low = max(self.low, end)

    def __lt__(self, other: Any) -> Any:
        return self._compare(other, float.__lt__(self, other), True, True)

    def __le__(self, other: Any) -> Any:
        return self._compare(other, float.__le__(self, other), True, False)

    def __gt__(self, other: Any) -> Any:
        return self._compare(other, float.__gt__(self, other), False, True)

    def __ge__(self, other: Any) -> Any:
        return self._compare(other, float.__ge__(self, other), False, False)


class _Noticing(TorchFunctionMode):
    """Notes which watched numbers go into tensors, where no method of theirs is called."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            for v in value if isinstance(value, list | tuple) else [value]:
                if isinstance(v, _Watched):
                    v.is_opaque = True
        return function(*args, **(kwargs or {}))


def _becoming_opaque(name: str) -> Callable[..., Any]:
    def call(self: _Watched, *args: Any) -> Any:
        self.is_opaque = True
        return getattr(float, name)(self, *args)

    return call


for _name in set(vars(float)) - set(vars(_Watched)) - {"__new__", "__getattribute__", "__doc__"}:
    if callable(getattr(float, _name)):
        setattr(_Watched, _name, _becoming_opaque(_name))
    else:
        setattr(_Watched, _name, property(_becoming_opaque("__float__")))
