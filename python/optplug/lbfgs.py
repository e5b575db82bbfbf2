"""Torch's own step of LBFGS, run on rows and scalars that take less time: see `rows`.

Its two loops over the history, which are most of its time, are left out of it and made by C at once.  Nobody
has to know that this is what torch's step does.  An optimizer's first step is made by torch alone, and so are
the next ones until one of them has been repeated on rows, from copies, with what the host's function has
returned, and every bit of parameters and state was the same.
"""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug import elementwise, host
from optplug._optplug import ffi
from optplug.lean import bare_step, lean
from optplug.rows import History, Kind, Parts, Row
from optplug.torch_private import (
    INTERPOLATION,
    LINE_SEARCH,
    grad_mode,
    has_hooks,
)

Closure = Callable[[], float]
State = dict[str, Any]

#: How many values make torch's own threads, and arithmetic, most of the time.
_MOST_VALUES = 32768
#: How many steps are repeated, and of how many values in all.
_MOST_LOOKS, _MOST_HEARD = 4, 4_000_000
_LISTS = ("old_dirs", "old_stps", "ro")
#: What torch's step calls of its optimizer.
_METHODS = (
    *("_numel", "_gather_flat_grad", "_add_grad", "_clone_param", "_set_param"),
    "_directional_evaluate",
)
#: Where torch's step finds its line search.
_GLOBALS = bare_step(torch.optim.LBFGS).__globals__
_NUMBERS, _NO_OPTIONS = (int, float), ("params", "param_names")
#: What parameters and line searches a step has been repeated for in this process.
_proven: set[object] = set()
_MOST_PROVEN = 1000
#: Of each dtype, whether our cubic has torch's bits.
_interpolating: dict[torch.dtype, bool] = {}


class Steps:
    """The steps of one optimizer, which is LBFGS."""

    def __init__(self) -> None:
        self._steps: _Rows | None = None
        self._switches: object = None  # those of its proof
        self._looks = 0

    def are_on_rows(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether the next one is made so, which changes nothing if it fails."""
        return (
            self._steps is not None
            and self._switches == _switches(optimizer)
            and not has_hooks(optimizer)
            and _is_as_loaded(optimizer)
        )

    def forget(self) -> None:
        """Begin anew, since parameters, gradients or the state may be others."""
        self._steps, self._looks = None, 0

    def step(self, optimizer: torch.optim.Optimizer, closure: Closure) -> float:
        """Make a step, and return its first loss."""
        if self._steps and self.are_on_rows(optimizer):
            return self._steps.step(optimizer, closure)
        if not _is_as_loaded(optimizer):
            return torch.optim.LBFGS.step(optimizer, closure)  # type: ignore[arg-type]
        if self._looks == _MOST_LOOKS or not _can(optimizer):
            return optimizer.step(closure)
        if _form(optimizer) in _proven:
            self._steps, self._switches = _Rows(_parts(optimizer)[0]), _switches(optimizer)
            return self._steps.step(optimizer, closure)
        self._looks += 1
        return self._look(optimizer, closure)

    def _look(self, optimizer: torch.optim.Optimizer, closure: Closure) -> float:
        """Make a step by torch, and repeat it on rows."""
        parameters, state = _parts(optimizer)
        before: State = {k: list(value) if type(value) is list else value for k, value in state.items()}
        before["prev_flat_grad"] = before["prev_flat_grad"].clone()
        copies = _copied(parameters)
        heard: list[tuple[list[Tensor], list[Tensor], float]] = []

        def listening() -> float:
            values, loss = _values(parameters), closure()
            if len(heard) * sum(p.numel() for p in parameters) < _MOST_HEARD:
                heard.append((values, _values(map(_grad, parameters)), loss))
            return loss

        first = optimizer.step(listening)
        if state["n_iter"] > before["n_iter"] and len(state["old_dirs"]) > 1:  # what the last loops went over
            try:
                is_same = _repeat(optimizer, copies, before, heard, first)
            except (Exception, KeyboardInterrupt):  # the step is made all the same
                is_same = False
            if is_same and len(_proven) < _MOST_PROVEN:
                _proven.add(_form(optimizer))
            else:
                self._looks = _MOST_LOOKS
        return first


@functools.lru_cache(8)
def _bare(step: Any) -> Any:
    return inspect.unwrap(step)  # which torch wraps itself when an optimizer is built


def _functions() -> list[Any]:
    """Return what a step of LBFGS is made of, as it is now."""
    full, search = torch.optim.LBFGS, _GLOBALS[LINE_SEARCH]
    methods = [getattr(full, name) for name in _METHODS]
    return [*methods, search, search.__globals__[INTERPOLATION], _bare(full.step)]


_AS_LOADED = _functions()


def _is_as_loaded(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether nobody, as a Python host may, has put other functions in the place of torch's."""
    return _functions() == _AS_LOADED and vars(optimizer).keys().isdisjoint(_METHODS)


def _can(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether the next step could be made on rows."""
    if type(optimizer) is not lean(torch.optim.LBFGS) or has_hooks(optimizer):
        return False
    parameters, state = _parts(optimizer)
    if not state.get("old_dirs") or sum(p.numel() for p in parameters) >= _MOST_VALUES:
        return False
    return all(
        p.dtype == parameters[0].dtype
        and p.dtype in elementwise.DTYPES
        and p.device.type == "cpu"
        and p.is_contiguous()
        and p.grad is not None
        and p.grad.layout == torch.strided
        and p.grad.is_contiguous()
        for p in parameters
    )


def _form(optimizer: torch.optim.Optimizer) -> object:
    """Return what steps must have in common if the proof of one is to be that of the other."""
    parameters, _ = _parts(optimizer)
    return (_switches(optimizer), *((p.dtype, p.shape, p.stride()) for p in parameters))


def _switches(optimizer: torch.optim.Optimizer) -> object:
    """Return the options that are no numbers, such as line_search_fn, and the names of the others."""
    return tuple(
        [
            (k, None if type(v) in _NUMBERS else v)
            for k, v in optimizer.param_groups[0].items()
            if k not in _NO_OPTIONS
        ]
    )


def _parts(optimizer: torch.optim.Optimizer) -> tuple[list[Tensor], State]:
    """Return an optimizer's parameters, and the one state of all."""
    parameters = optimizer.param_groups[0]["params"]
    return parameters, optimizer.state[parameters[0]]


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _values(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def _copied(parameters: list[Tensor]) -> list[Tensor]:
    """Return parameters with the same values, and gradients of their own."""
    copies = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    for copy, p in zip(copies, parameters, strict=True):
        copy.grad = torch.empty_like(_grad(p))
    return copies  # type: ignore[return-value]


def _repeat(
    optimizer: torch.optim.Optimizer,
    copies: list[Tensor],
    state: State,
    heard: list[tuple[list[Tensor], list[Tensor], float]],
    first: Any,
) -> bool:
    """Repeat a step of torch's on copies, and tell whether every bit is the same."""
    other = types.SimpleNamespace(
        param_groups=[{**optimizer.param_groups[0], "params": copies}], state={copies[0]: state}
    )
    left = iter(heard)

    def closure() -> float:
        values, grads, loss = next(left)
        if not _are_same(values, copies):
            raise ValueError("another point")
        for copy, grad in zip(copies, grads, strict=True):
            _grad(copy).copy_(grad)
        return loss

    rows = _Rows(copies)
    if (
        not rows.kind.can()
        or not _interpolates(rows.kind)
        or rows.step(other, closure) is not first
        or next(left, None)
    ):
        return False
    parameters, made = _parts(optimizer)
    return _are_same(parameters, copies) and _is_same_state(made, state)


def _are_same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(elementwise.is_same(a.detach(), b.detach()) for a, b in zip(left, right, strict=True))


def _is_same_state(left: Any, right: Any) -> bool:
    """Tell whether states have the same types and bits."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_is_same_state(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_is_same_state, left, right))
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and elementwise.is_same(left, right)
    return bool(left == right or (left != left and right != right))


class _Rows:
    """What torch's step takes for its optimizer.

    Args:
        parameters: what it moves.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        self._params = parameters
        #: That of a row of all their values.
        self.kind = Kind(parameters[0].dtype, sum(p.numel() for p in parameters))
        self._values = Parts(self.kind, parameters)
        self._grads = Parts(self.kind, [_grad(p) for p in parameters])
        self._point, self._grad = self.kind.row(), self.kind.row()
        #: What the last step has left: as the state has it, and as the next one takes it.
        self._given: State = {}
        self._known: State = {}
        self._products, self._count = ffi.new("double[]", 1), 0  # of the last loops
        self._memory = ffi.buffer(self._products)
        self._row, self._views = torch.empty(0), list[Tensor]()  # those as torch's state has them
        self._inverse = ffi.new("optplug_inverse *")
        self._inverse.bytes, self._inverse.n, self._inverse.add = (
            self.kind.bytes,
            self.kind.n,
            self.kind.add or 0,
        )
        self._step = _step_with(self._multiplied)

    def step(self, optimizer: Any, closure: Closure) -> float:
        """Make a step, which changes nothing if it fails."""
        state = optimizer.state[self._params[0]]
        self.param_groups = optimizer.param_groups
        before = self._taken(state)
        self._state = {**before}
        self.state = {self._params[0]: self._state}
        self._given = {}  # a step that fails leaves what is known half changed
        outside = np.geterr()

        def called() -> float:
            with np.errstate(**outside), grad_mode(True):
                return closure()

        self._count = 0
        values = self._values.take(self.kind.row())
        try:
            with np.errstate(all="ignore"), grad_mode(False):
                first: float = self._step(self, called)
                state.update(self._made(before, state))
        except BaseException:
            self._values.put(values)
            raise
        if "al" in state:
            self._state["al"] = state["al"]
        self._given, self._known = {**state}, self._state
        return first

    # ---- the state, there and back ----

    def _taken(self, state: State) -> State:
        """Return the state on rows."""
        if state.keys() == self._given.keys() and all(
            map(operator.is_, state.values(), self._given.values())
        ):
            return self._known
        kind = self.kind
        taken = {key: kind.scalar(value) for key, value in state.items()}
        for key in _LISTS:
            taken[key] = History("double" if key == "ro" else "void *", list(state[key]))
        for key in ("d", "prev_flat_grad"):
            taken[key] = kind.row_of(state[key])
        return taken

    def _made(self, before: State, state: State) -> State:
        """Return what the step has changed of the state, as torch has it."""
        made: State = {}
        for key, value in self._state.items():
            if type(value) is History:
                if value.is_changed:
                    made[key] = value.settled(self.kind)
            elif type(value) is Row:
                if value.tensor is not state[key]:
                    made[key] = value.kept()
            elif value is not before.get(key):
                made[key] = self.kind.torchs(value)
        if self._count:
            made["al"] = self._given_products(self._state["al"])
        return made

    def _given_products(self, al: list[Any]) -> list[Any]:
        """Return torch's list of what the last loops have come by, which the next ones fill anew.

        It has views of one tensor, since a hundred copies take as long as a few evaluations.
        """
        if self._count != len(self._views) or not all(map(operator.is_, al, self._views)):
            self._row = torch.empty(self._count, dtype=self.kind.dtype)
            self._views = list(self._row.unbind())
            al = [*self._views, *al[self._count :]]
        self._row.copy_(torch.frombuffer(self._memory, dtype=torch.float64, count=self._count))
        return al

    # ---- what the step calls ----

    def _multiplied(self, q: Row, diagonal: Any) -> Row:
        """Make the two loops, between which torch multiplies by a number."""
        directions, steps, factors = (self._state[name] for name in _LISTS)
        count = len(directions)
        if count > len(self._state["al"]):
            raise IndexError("list assignment index out of range")
        if count > len(self._products):
            self._products = ffi.new("double[]", 2 * count)
            self._memory = ffi.buffer(self._products)
        by = self._inverse
        by.count, by.diagonal, by.products = count, diagonal, self._products
        by.steps, by.differences, by.factors = steps.memory, directions.memory, factors.memory
        if not host.table.multiply(by, q.address):
            raise NotImplementedError
        self._count = count
        return q

    # Torch copies the gradients to a new row each time, but looks at none after the next evaluation.

    def _gather_flat_grad(self) -> Row:
        return self._grads.take(self._grad)

    def _add_grad(self, size: Any, direction: Row) -> None:
        self._values.move(direction, size)

    def _clone_param(self) -> Row:
        return self._values.take(self._point)

    def _set_param(self, point: Row) -> None:
        self._values.put(point)

    def _directional_evaluate(self, closure: Closure, point: Row, t: Any, d: Row) -> tuple[float, Row]:
        self._values.move(d, t)
        loss = float(closure())
        grad = self._grads.take(self._grad)
        self._values.put(point)
        return loss, grad


# ---- torch's functions, with other ones for some that they call ----


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


def _step_with(multiplied: Callable[[Row, Any], Row]) -> Callable[[Any, Closure], float]:
    """Return torch's step, without its loops over the history: there is nothing in a range."""
    nothing = _Nothing()
    found = types.SimpleNamespace(
        enable_grad=lambda: nothing, mul=multiplied, contiguous_format=torch.contiguous_format
    )
    step = bare_step(torch.optim.LBFGS)
    search = _with(step.__globals__[LINE_SEARCH], **{"torch": found, INTERPOLATION: _interpolated})
    return _with(step, **{"torch": found, "range": lambda *_: (), LINE_SEARCH: search})


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


def _interpolates(kind: Kind) -> bool:
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
