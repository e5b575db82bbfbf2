"""Torch's own step of LBFGS, run on rows and scalars that take less time: see `rows`.

Its two loops over the history, which are most of its time, are left out of it and made by C at once, where
a step begins with one.  Nobody has to know that this is what torch's step does.  A step is made by torch
until one like it has been repeated on rows, from copies, with what the host's function has returned, and
every bit of parameters and state was the same; of a step with many values only the first points that the
host's function was called at.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug import elementwise, host
from optplug._optplug import ffi
from optplug.lbfgs_step import IS_KNOWN, Closure, interpolates, is_as_loaded, step_with
from optplug.lean import lean
from optplug.rows import History, Kind, Parts, Row
from optplug.torch_private import grad_mode, has_hooks

State = dict[str, Any]

#: How many values torch's scalar product takes at once.
_MOST_VALUES = 2**31 - 1
#: How many steps are repeated, of how many values in all, but of some evaluations in any case.
_MOST_LOOKS, _MOST_HEARD, _FEW = 4, 4_000_000, 4
_LISTS = ("old_dirs", "old_stps", "ro")
_NUMBERS, _NO_OPTIONS = (int, float), ("params", "param_names")
#: What parameters and line searches a step has been repeated for in this process.
_proven: set[object] = set()
_MOST_PROVEN = 1000


class Steps:
    """The steps of one optimizer, which is LBFGS."""

    def __init__(self) -> None:
        self._rows: _Rows | None = None
        self._form: object = None  # of its parameters
        self._looks = 0

    def are_on_rows(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether the next one is made so, which changes nothing if it fails."""
        if has_hooks(optimizer) or not is_as_loaded(optimizer):
            return False
        if self._form is None and _can(optimizer):
            self._form = _form(optimizer)
        return self._form is not None and self._kind(optimizer) in _proven

    def _kind(self, optimizer: torch.optim.Optimizer) -> object:
        """Return what steps must have in common if the proof of one is to be that of the other."""
        return self._form, _switches(optimizer), _has_history(_parts(optimizer)[1])

    def forget(self) -> None:
        """Begin anew, since parameters, gradients or the state may be others."""
        self._rows, self._form, self._looks = None, None, 0

    def step(self, optimizer: torch.optim.Optimizer, closure: Closure, on_rows: bool) -> float:
        """Make a step, on rows if it can be made so, and return its first loss."""
        if on_rows:
            self._rows = self._rows or _Rows(_parts(optimizer)[0])
            return self._rows.step(optimizer, closure)
        if not is_as_loaded(optimizer):
            return torch.optim.LBFGS.step(optimizer, closure)  # type: ignore[arg-type]
        if self._form is None or has_hooks(optimizer) or self._looks == _MOST_LOOKS:
            return optimizer.step(closure)
        self._looks += 1
        return self._look(optimizer, closure)

    def _look(self, optimizer: torch.optim.Optimizer, closure: Closure) -> float:
        """Make a step by torch, and repeat it on rows."""
        kind = self._kind(optimizer)
        parameters, state = _parts(optimizer)
        before: State = {k: list(value) if type(value) is list else value for k, value in state.items()}
        if "prev_flat_grad" in before:
            before["prev_flat_grad"] = before["prev_flat_grad"].clone()
        had_history = _has_history(before)
        most = _MOST_HEARD // sum(p.numel() for p in parameters)
        copies = _copied(parameters)
        heard: list[tuple[list[Tensor], list[Tensor], float]] = []
        is_cut = False

        def listening() -> float:
            nonlocal is_cut
            is_cut = len(heard) >= max(most, _FEW)
            if is_cut:
                return closure()
            values, loss = _values(parameters), closure()
            heard.append((values, _values(map(_grad, parameters)), loss))
            return loss

        first = optimizer.step(listening)
        parameters, state = _parts(optimizer)
        looped_over = before if is_cut else state  # what the loops of some direction went over
        if state["n_iter"] > before.get("n_iter", 0) and (
            not had_history or len(looped_over["old_dirs"]) > 1
        ):
            try:
                is_same = _repeat(optimizer, copies, before, heard, None if is_cut else first)
            except (Exception, KeyboardInterrupt):  # the step is made all the same
                is_same = False
            if is_same and len(_proven) < _MOST_PROVEN:
                _proven.add(kind)
            else:
                self._looks = _MOST_LOOKS
        return first


def _has_history(state: State) -> bool:
    """Tell whether a step begins with pairs to loop over, by which it is made in another way.

    Torch drops them where no iteration is counted, as in a file in which somebody has begun anew.
    """
    return bool(state.get("old_dirs") and state["n_iter"])


def _can(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether the next step could be made on rows."""
    if type(optimizer) is not lean(torch.optim.LBFGS) or has_hooks(optimizer) or not IS_KNOWN:
        return False
    parameters, _ = _parts(optimizer)
    return 0 < sum(p.numel() for p in parameters) <= _MOST_VALUES and all(
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
    """Return how parameters lie."""
    return tuple((p.dtype, p.shape, p.stride()) for p in _parts(optimizer)[0])


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
    return parameters, optimizer.state.get(parameters[0], {})


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
    """Repeat a step of torch's on copies, and tell whether every bit is the same.

    Args:
        optimizer: what has made it.
        copies: the parameters' values before it.
        state: the state before it.
        heard: the points at which it has called the closure, and what it got.
        first: what it has returned; None if those points are not all.
    """
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
    if not rows.kind.can() or not interpolates(rows.kind):
        return False
    try:
        found = rows.step(other, closure)
    except StopIteration:  # it has come to the end of those points
        return first is None
    if found is not first or next(left, None):
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


@functools.cache
def _step_without() -> Any:
    """Return torch's step without a history before it, which is that of all optimizers."""
    return step_with(Row.mul, has_loops=True)


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
        self._step: Any = None  # after a history

    def step(self, optimizer: Any, closure: Closure) -> float:
        """Make a step, which changes nothing if it fails."""
        state = optimizer.state[self._params[0]]
        self.param_groups = optimizer.param_groups
        before = self._taken(state)
        self._state = {**before}
        self.state = {self._params[0]: self._state}
        self._given = {}  # a step that fails leaves what is known half changed
        had_history = _has_history(state)
        if had_history and not self._step:
            self._step = step_with(self._multiplied, has_loops=False)
        made = self._step if had_history else _step_without()
        outside = np.geterr()

        def called() -> float:
            with np.errstate(**outside), grad_mode(True):
                return closure()

        self._count = 0
        values = self._values.take(self.kind.row())
        try:
            with np.errstate(all="ignore"), grad_mode(False):
                first: float = made(self, called)
                state.update(self._made(before, state))
        except BaseException:
            self._values.put(values)
            raise
        if had_history:
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
        taken = {key: kind.scalar(v) if type(v) is not list else [*v] for key, v in state.items()}
        for key in _LISTS if _has_history(state) else ():
            taken[key] = History("double" if key == "ro" else "void *", list(state[key]))
        for key in {"d", "prev_flat_grad"} & state.keys():
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
                if value.tensor is not state.get(key):
                    made[key] = value.kept()
            elif type(value) is list:
                if not self._count:
                    made[key] = [v if v is None else self.kind.torchs(v) for v in value]
            elif value is not before.get(key):
                made[key] = self.kind.torchs(value)
        if self._count:
            made["al"] = self._given_products(self._state["al"])
        return made

    def _given_products(self, al: list[Any]) -> list[Any]:
        """Return torch's list of what the last loops have come by, which the next ones fill anew.

        It has views of one tensor, since a hundred copies take as long as a few evaluations.
        """
        count = self._count
        if count > len(self._row) or not all(map(operator.is_, al, self._views)):
            self._row, self._views = torch.empty(len(al), dtype=self.kind.dtype), []
        if count > len(self._views):
            self._views += self._row[len(self._views) : count].unbind()
            al = [*self._views, *al[count:]]
        self._row[:count].copy_(torch.frombuffer(self._memory, dtype=torch.float64, count=count))
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
