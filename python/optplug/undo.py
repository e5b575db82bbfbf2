"""What a step that fails puts back: parameters, their state, and the host's arrays."""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from optplug import methods
from optplug.kinds import values
from optplug.lean import step_unhooked
from optplug.parameters import Parameters
from optplug.randomness import Stream
from optplug.recipe import Recipe
from optplug.restoring import Snapshot
from optplug.spec import signature_of
from optplug.torch_private import foreach_copy_, grad_mode

State = dict[Tensor, dict[str, Any]]

#: Whose state has numbers by which a step may fail, or may lack what an option wants.
_BY_STATE = {"ASGD", "NAdam", "RMSprop"}
_MOST = 0.9999  # with hyperparameters from 0 to this, all that torch computes of them fits into float16


def _is_safe(value: Any, default: Any) -> bool:
    """Tell whether a hyperparameter is the default, or has no number beyond those."""
    kind = type(value)
    if kind is float or kind is int:
        return 0 <= value <= _MOST or value == default
    if kind is tuple:
        return all(type(v) is float and 0 <= v <= _MOST for v in value) or value == default
    return value is None or kind is bool or kind is str


@functools.cache
def _defaults_of(class_: type[torch.optim.Optimizer]) -> dict[str, Any]:
    """Return the defaults of one of torch's own classes."""
    parameters = signature_of(class_).parameters  # type: ignore[arg-type]
    return {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}


class Undo:
    """The memory of one optimizer for what its steps may have to put back.

    Args:
        recipe: the optimizer's.
        parameters: those that it steps.
        stream: its random numbers.
        is_kept: whether steps of a class outside torch are undone.
    """

    def __init__(self, recipe: Recipe, parameters: Parameters, stream: Stream, is_kept: bool) -> None:
        self._is_kept = is_kept
        self._recipe, self._parameters, self._stream = recipe, parameters, stream
        self._copied: list[Tensor] = []  # what a step may change half way, and
        self._copies: list[Tensor] = []  # what it is put back from
        self._snapshot = Snapshot()
        self._loans = parameters.loans
        self._defaults = _defaults_of(recipe.class_) if recipe.is_torchs else {}  # type: ignore[arg-type]

    def is_needless(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether a step of torch's own classes fails, if at all, before it changes anything.

        It may fail in the middle by a hyperparameter: Adam divides by 1 - betas[0] ** step, a rate may be
        beyond the dtype, and schedules set both where no constructor judges them.  The class's defaults do
        not do that, nor numbers from 0 to 0.9999.  ASGD's rate and NAdam's product of momenta are in their
        state, and RMSprop keeps a momentum only where it had one.  Nor has torch a sum of sparse gradients
        in float16, which SGD comes to when a schedule gives it a momentum, or of sparse and dense ones.
        """
        parameters, groups = self._parameters, optimizer.param_groups
        if self._recipe.name in _BY_STATE:
            return False
        if parameters.has_sparse():
            dtypes, decays = [p.data.dtype for p in parameters], [g.get("weight_decay") for g in groups]
            if torch.float16 in dtypes or any(decays):
                return False
        for group in groups:
            for name, default in self._defaults.items():
                value = group.get(name)
                if value is not default and not _is_safe(value, default):
                    return False
        return True

    @contextlib.contextmanager
    def of_others(
        self, optimizer: torch.optim.Optimizer, has_closure: bool = False, is_first: bool = False
    ) -> Iterator[None]:
        """Lend the parameters to a class outside torch for a step; put all back as it was if that fails.

        Of such a class nobody knows what it has changed when it fails.  For torch's own, do nothing.
        """
        if self._loans is None:
            yield
            return
        self._begin(optimizer, has_closure)
        try:
            with self._stream.current(sees_all=is_first):
                yield
            self._loans.finish()
        except BaseException as error:
            self._fail(optimizer, error)
            raise

    def step(self, optimizer: torch.optim.Optimizer, step: Callable[[torch.optim.Optimizer], None]) -> None:
        """Make a step of a class outside torch that is not its first: `of_others`, in less time."""
        assert self._loans
        self._begin(optimizer, False)
        try:
            if self._stream.is_drawn_from:
                with self._stream.current():
                    step(optimizer)
            else:
                step(optimizer)
            self._loans.finish()
        except BaseException as error:
            self._fail(optimizer, error)
            raise

    def step_lent(self, optimizer: torch.optim.Optimizer) -> None:
        """Let a class outside torch step what is lent to it, and nothing besides."""
        assert self._loans
        self._loans.lend()
        step_unhooked(optimizer)

    def _begin(self, optimizer: torch.optim.Optimizer, has_closure: bool) -> None:
        assert self._loans
        if self._is_kept:
            self._snapshot.take(optimizer, self._parameters.all_tensors())
        self._loans.begin(optimizer, has_closure)

    def _fail(self, optimizer: torch.optim.Optimizer, error: BaseException) -> None:
        assert self._loans
        self._loans.give_up()
        if self._is_kept:
            self._snapshot.restore()
        methods.explain(optimizer, error)

    def first_step(
        self, optimizer: torch.optim.Optimizer, build: Callable[[], torch.optim.Optimizer]
    ) -> None:
        """Make the first step of a class of torch's: `on_error`, in less time where it copies nothing."""
        if len(self._parameters.groups) > 1 or self._recipe.is_lbfgs or not self.is_needless(optimizer):
            with self.on_error(optimizer, True, False, False, build):
                optimizer.step()
            return
        try:
            optimizer.step()
        except BaseException:
            optimizer.state.clear()
            optimizer.state.update(build().state)
            raise

    def call(self, optimizer: torch.optim.Optimizer, method: str) -> None:
        """Call a method of a class outside torch, which may change parameters as its steps may."""
        assert self._loans
        with self.of_others(optimizer, is_first=True):
            self._loans.lend()
            getattr(optimizer, method)()
        self._parameters.publish()

    def of_closures(
        self,
        optimizer: torch.optim.Optimizer,
        is_first: bool,
        undoes_itself: bool,
        build: Callable[[], torch.optim.Optimizer],
        all_of: Sequence[Tensor] | None = None,
    ) -> contextlib.AbstractContextManager[None]:
        """Do what `of_others` or `on_error` does for a step with a closure."""
        if self._recipe.is_torchs:
            return self.on_error(optimizer, is_first, True, undoes_itself, build, all_of)
        return self.of_others(optimizer, True, is_first)

    @contextlib.contextmanager
    def on_error(
        self,
        optimizer: torch.optim.Optimizer,
        is_first: bool,
        has_closure: bool,
        undoes_itself: bool,
        build: Callable[[], torch.optim.Optimizer],
        all_of: Sequence[Tensor] | None = None,
    ) -> Iterator[None]:
        """Put parameters and state back as they were if a step of torch's own classes fails.

        A closure may fail after LBFGS has changed something.  A first step may run out of memory in the
        making of its state, when groups before are stepped already.  Any step may fail by a hyperparameter:
        see `is_needless`.  What no copy is made of, torch checks before it changes anything.

        Args:
            optimizer: what makes the step.
            is_first: whether none was made before.
            has_closure: whether it calls the host.
            undoes_itself: whether it puts back what it has changed.
            build: returns another optimizer on the same parameters, without a state.
            all_of: what else to put back, with all that is stepped, since a step that succeeds here may fail
                with that of another rank.
        """
        if not self._recipe.is_torchs:  # see of_others
            yield
            return
        if self._recipe.is_lbfgs:
            may_have_moved = has_closure and not undoes_itself
        else:
            may_have_moved = not self.is_needless(optimizer)
        may_have_moved |= all_of is not None or (is_first and len(self._parameters.groups) > 1)
        before, state = self._copy(optimizer, all_of or ()) if may_have_moved else ([], {})
        if not may_have_moved and self._copied:  # later steps may never need their memory again
            self._copies, self._copied = [], []
        hosts = values(self._parameters.mastered())[0] if has_closure else []  # a closure finds them stepped
        hosts_before = [data.clone() for data in hosts]
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for p, value in before:
                    p.copy_(value)
                for data, value in zip(hosts, hosts_before, strict=True):
                    data.copy_(value)
            if may_have_moved or is_first:
                optimizer.state.clear()
                optimizer.state.update(build().state if is_first else state)
                self._copied = []  # the copies are the optimizer's now
            raise

    def _copy(
        self, optimizer: torch.optim.Optimizer, others: Sequence[Tensor]
    ) -> tuple[list[tuple[Tensor, Tensor]], State]:
        """Return what a step may change in place, each with a copy, and with that the state."""
        state = {
            p: {key: value[:] if type(value) is list else value for key, value in s.items()}
            for p, s in optimizer.state.items()
        }
        kept: list[Tensor] = [*(p.tensor for p in self._parameters), *others]
        if self._recipe.is_lbfgs:  # it makes its other tensors anew, and this one is taken from the copies
            changing = [(s, "prev_flat_grad") for s in state.values() if "prev_flat_grad" in s]
        else:
            changing = []
            kept += [v for s in state.values() for v in s.values() if isinstance(v, Tensor)]
        tensors: list[Tensor] = [*kept, *(s[key] for s, key in changing)]  # type: ignore[list-item]
        with grad_mode(False):
            # Into the memory of the copies before: to have it from the system anew takes longer than to copy.
            if len(tensors) == len(self._copied) and all(map(operator.is_, tensors, self._copied)):
                foreach_copy_(self._copies, tensors)
            else:
                self._copies, self._copied = [t.clone() for t in tensors], tensors
        for (s, key), copy_ in zip(changing, self._copies[len(kept) :], strict=True):
            s[key] = copy_
        return list(zip(kept, self._copies, strict=False)), state
