"""Whether a host's gradients are the derivatives of its losses, seen by differences of these.

Central differences at two distances, h and h / 2, whose combination (4 d(h/2) - d(h)) / 3 is of fourth order
(Richardson's extrapolation: Press et al., Numerical Recipes, 5.7), and whose disagreement tells how far the
differences themselves can be trusted.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug.kinds import Parameter, SparseGrad
from optplug.parameters import Parameters
from optplug.spec import shown
from optplug.torch_private import grad_mode

Array = np.ndarray[Any, Any]

#: How many values of all parameters are checked one by one, and of each parameter at least and at the most.
_VALUES, _LEAST, _MOST = 50, 2, 20
#: Makes a parameter's gradient the one of the whole loss, of which a rank may have a part.
Whole = Callable[[Parameter, Array], Array]
#: What is meant by the usual ratios of a gradient to the derivative.
_RATIOS = {
    -1.0: "has the opposite sign of the derivative of the loss",
    0.5: "is half the derivative of the loss",
    2.0: "is twice the derivative of the loss",
    -0.5: "is half the derivative of the loss, and has the opposite sign",
    -2.0: "is twice the derivative of the loss, and has the opposite sign",
}


@dataclass
class _Found:
    """One comparison: where, the host's derivative, that by differences, and how far off those may be."""

    where: str
    index: int  # -1 where it is a direction rather than one value
    given: float
    difference: float
    doubt: float

    def is_wrong(self, tolerance: float) -> bool:
        allowed = 10 * self.doubt + tolerance * max(abs(self.given), abs(self.difference))
        return not abs(self.given - self.difference) <= allowed

    def is_sharp(self) -> bool:
        return abs(self.difference) > 20 * self.doubt


class _Values:
    """One parameter's values as real numbers, in C order, whatever its layout."""

    def __init__(self, parameter: Parameter) -> None:
        self.parameter, data = parameter, parameter.data.detach()
        self.view = torch.view_as_real(data) if data.is_complex() else data
        self.before = self.view.clone()
        grad = parameter.grad
        self._memory = [grad.count, grad.indices, grad.values] if isinstance(grad, SparseGrad) else [grad]
        self._grads_before = [t.clone() for t in self._memory]
        self.epsilon = torch.finfo(data.dtype).eps
        #: The distance of a difference relative to a value: best where its error and the losses' are alike.
        self.relative = self.epsilon ** (1 / 3)
        #: How large the values are.
        self.scale = (float(self.before.abs().double().mean()) if self.before.numel() else 0.0) or 1.0

    def gradient(self) -> Array:
        """Return the gradient that the host has given, as real numbers in C order."""
        grad = self.parameter.grad
        if isinstance(grad, SparseGrad):
            grad = grad.tensor(self.parameter.name, self.parameter.data.shape).to_dense()
        grad = torch.view_as_real(grad) if grad.is_complex() else grad
        return grad.detach().double().cpu().numpy().reshape(-1).copy()

    def move_one(self, place: tuple[int, ...], h: float) -> Array:
        """Move one value away from where it was, and return where it is now."""
        self.view[place] = self.before[place] + h
        return np.array([float(self.view[place])])

    def move_all(self, direction: Tensor, h: float) -> Array:
        """Move all values away from where they were, and return where they are now."""
        self.view.copy_(self.before + h * direction)
        return self.view.double().cpu().numpy().reshape(-1).copy()

    def restore(self) -> None:
        """Let values and gradients be as they were."""
        self.view.copy_(self.before)
        for memory, before in zip(self._memory, self._grads_before, strict=True):
            memory.copy_(before)

    def place(self, index: int) -> str:
        """Name a value as the host may have it: by one index where it has one dimension."""
        indices = list(map(int, np.unravel_index(index, self.view.shape))) if self.view.dim() else []
        part = ""
        if self.parameter.data.is_complex():
            part = (" (real part)", " (imaginary part)")[indices.pop()]
        return f"at [{', '.join(map(str, indices))}]{part}" if indices else f"at its value{part}"


def _as_it_is(_: Parameter, gradient: Array) -> Array:
    return gradient


def _always(_: Parameter) -> bool:
    return True


class Check:
    """One check of some parameters' gradients, which leaves their arrays as they were."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self._values = [_Values(p) for p in parameters]
        self._gradients: list[Array] = []
        self._found: list[list[_Found]] = [[] for _ in self._values]

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Let a block move values."""
        with grad_mode(False):
            try:
                yield
            finally:
                for v in self._values:
                    v.restore()

    def evaluate(self, closure: Callable[[], float], whole: Whole = _as_it_is) -> None:
        """Have the gradients, once it is known that there is something to compare."""
        self._gradients = _evaluate_twice(self._values, closure, whole)

    def compare(self, closure: Callable[[], float], which: Callable[[Parameter], bool] = _always) -> None:
        """Compare values one by one, and, where these are not all, along a direction."""
        for v, gradient, found in self._chosen(which):
            _compare_some(v, gradient, closure, self._share(), found)
            if len(found) < gradient.size:
                found.append(_along(v, gradient, closure, gradient.size, float))

    def compare_some(
        self, closure: Callable[[], float], which: Callable[[Parameter], bool], part: slice
    ) -> None:
        """Compare a part's share of the values that are compared one by one."""
        count = len(range(self._share())[part])
        for v, gradient, found in self._chosen(which):
            _compare_some(v, gradient, closure, count, found)

    def compare_along(
        self, closure: Callable[[], float], which: Callable[[Parameter], bool], add: Callable[[float], float]
    ) -> None:
        """Compare along a direction in which all parts move; ``add`` adds up a number of each."""
        for v, gradient, found in self._chosen(which):
            found.append(_along(v, gradient, closure, add(gradient.size), add))

    def judge(self) -> float:
        """Return the largest relative error of what was compared.

        Raises:
            ValueError: a gradient is not the derivative of the loss; what it seems to be instead, where that
                is known.
        """
        for v, gradient, found in self._chosen(_always):
            _judge(v, gradient, found)
        return max(map(_error, self._found), default=0.0)

    def _chosen(self, which: Callable[[Parameter], bool]) -> list[tuple[_Values, Array, list[_Found]]]:
        everything = zip(self._values, self._gradients, self._found, strict=True)
        return [one for one in everything if which(one[0].parameter)]

    def _share(self) -> int:
        """Return how many values of each parameter are compared one by one."""
        return min(max(_VALUES // max(len(self._values), 1), _LEAST), _MOST)


def check(parameters: Parameters, closure: Callable[[], float]) -> float:
    """Compare the gradients that a closure makes with differences of its losses, at the values as they are.

    The arrays are left as they were.

    Returns:
        The largest relative error of what was compared.

    Raises:
        ValueError: a gradient is not the derivative of the loss, or the loss cannot be differenced; what it
            seems to be instead, where that is known.
    """
    this = Check(parameters)
    with this.moving():
        this.evaluate(closure)
        this.compare(closure)
    return this.judge()


def _error(found: Sequence[_Found]) -> float:
    """Return how far a parameter's gradient is from the differences, as a part of these."""
    given, differences = np.array([(f.given, f.difference) for f in found]).reshape(-1, 2).T
    length = float(max(np.linalg.norm(given), np.linalg.norm(differences)))
    return float(np.linalg.norm(given - differences)) / length if length else 0.0


def _evaluate_twice(values: Sequence[_Values], closure: Callable[[], float], whole: Whole) -> list[Array]:
    """Return the gradients of all parameters, once it is known that there is something to compare."""
    loss = _loss(closure)
    gradients = [whole(v.parameter, v.gradient()) for v in values]
    again = _loss(closure)
    seconds = [whole(v.parameter, v.gradient()) for v in values]
    epsilon = max((v.epsilon for v in values), default=0.0)
    if abs(loss - again) > 100 * epsilon * max(abs(loss), abs(again)):
        raise ValueError(
            f"the closure's loss is {loss!r} and then {again!r} at the same parameters: let it use the same "
            "random numbers and data each time"
        )
    for v, gradient, second in zip(values, gradients, seconds, strict=True):
        name = shown(v.parameter.name)
        if not np.isfinite(gradient).all():
            raise ValueError(f"the gradient of parameter {name} contains inf or nan")
        if gradient.any() and np.allclose(second, 2 * gradient, rtol=100 * v.epsilon, atol=0):
            raise ValueError(
                f"the gradient of parameter {name} is added to the one that was there before: set it to zero "
                "first in the closure, as opt_zero_grad does"
            )
    return gradients


def _loss(closure: Callable[[], float]) -> float:
    loss = closure()
    if not math.isfinite(loss):
        raise ValueError(f"the closure's loss is {loss!r}: check the gradient where it is finite")
    return loss


def _compare_some(
    v: _Values, gradient: Array, closure: Callable[[], float], most: int, found: list[_Found]
) -> None:
    """Compare values of a parameter one by one."""
    for index in _indices(gradient, most):
        place = tuple(map(int, np.unravel_index(index, v.view.shape)))
        # A value that is large beside the others has a distance of its own.
        distance = v.relative * max(abs(float(v.before[place])), v.scale)
        move = functools.partial(v.move_one, place)
        slope = gradient[index : index + 1]
        found.append(_difference(v, slope, move, distance, closure, v.place(index), index, float))
        v.view[place] = v.before[place]


def _along(
    v: _Values, gradient: Array, closure: Callable[[], float], size: float, add: Callable[[float], float]
) -> _Found:
    """Compare along a direction, of as many values as are in all parts of the parameter."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=gradient.size).reshape(tuple(v.view.shape))
    move = functools.partial(v.move_all, torch.as_tensor(signs).to(v.view))
    distance = v.relative * v.scale / math.sqrt(max(size, 1))
    found = _difference(v, gradient, move, distance, closure, "along a random direction", -1, add)
    v.view.copy_(v.before)
    return found


def _indices(gradient: Array, most: int) -> Iterator[int]:
    """Choose values: all, or those with the largest gradients and as many at random."""
    if gradient.size <= most:
        yield from range(gradient.size)
        return
    largest = np.argsort(-np.abs(gradient), kind="stable")[: (most + 1) // 2]
    others = np.random.default_rng(0).choice(gradient.size, most, replace=False)
    others = others[~np.isin(others, largest)][: most - len(largest)]
    yield from map(int, np.sort(np.concatenate([largest, others])))


def _difference(
    v: _Values,
    slope: Array,
    move: Callable[[float], Array],
    distance: float,
    closure: Callable[[], float],
    where: str,
    index: int,
    add: Callable[[float], float],
) -> _Found:
    """Compare the derivative in a direction with differences of the loss.

    Args:
        slope: the gradient of what is moved.
        move: moves values that far, and returns where they are then.
        add: adds up a number of each part that is moved.
    """
    given, differences, noise = 0.0, [], 0.0
    for h in (distance, distance / 2):
        at_above, above = move(h), _loss(closure)
        at_below, below = move(-h), _loss(closure)
        way = at_above - at_below  # as it is after rounding
        length = math.sqrt(add(float(np.linalg.norm(way)) ** 2))
        if not length:
            raise ValueError(
                f"parameter {shown(v.parameter.name)}: {where} the value is too large for differences"
            )
        differences.append((above - below) / length)
        given = add(float(slope @ way)) / length
        noise = v.epsilon * (abs(above) + abs(below)) / length
    coarse, fine = differences
    return _Found(where, index, given, (4 * fine - coarse) / 3, abs(fine - coarse) + noise)


def _judge(v: _Values, gradient: Array, found: Sequence[_Found]) -> None:
    """Raise ValueError if a parameter's gradient is wrong, with the reason if that can be seen."""
    tolerance = 10 * v.epsilon ** (1 / 2)
    wrong = [f for f in found if f.is_wrong(tolerance)]
    if not wrong:
        return
    worst = max(wrong, key=lambda f: abs(f.given - f.difference))
    name = shown(v.parameter.name)
    what = _reason(v, gradient, found) or "is not the derivative of the loss"
    number = "the one compared" if len(found) == 1 else f"{len(wrong)} of the {len(found)} compared"
    raise ValueError(
        f"the gradient of parameter {name} {what}: {worst.where} the closure gives {worst.given:.6g}, and "
        f"differences of its losses {worst.difference:.6g} +- {worst.doubt:.1g} ({number} differ)"
    )


def _reason(v: _Values, gradient: Array, found: Sequence[_Found]) -> str:
    """Say what a wrong gradient is instead: what everybody gets wrong once."""
    sharp = [f for f in found if f.is_sharp()]
    if not sharp:
        return ""
    if not gradient.any():
        return "is zero everywhere, which the loss's derivative is not; does the closure write to this array?"
    ratios = np.array([f.given / f.difference for f in sharp])
    ratio = float(np.median(ratios))
    if abs(ratio - 1) > 0.01 and np.allclose(ratios, ratio, rtol=0.01, atol=1e-3):
        for usual, words in _RATIOS.items():
            if abs(ratio / usual - 1) < 0.01:
                return words
        return f"is {ratio:.4g} times the derivative of the loss"
    shape = tuple(v.parameter.data.shape)
    singles = [f for f in sharp if f.index >= 0]
    if len(shape) == 2 and gradient.size == math.prod(shape) and singles:
        differences = [f.difference for f in singles]
        for order in (shape, shape[::-1]):
            other = gradient.reshape(order).T.reshape(-1)[[f.index for f in singles]]
            if np.allclose(other, differences, rtol=0.01, atol=1e-12):
                return (
                    "is right except for the order of its values: "
                    "column-major instead of row-major, or the reverse"
                )
    return ""
