"""torch's optimizers without the per-construction and per-step hooks for torch.compile and profilers.

In torch 2.13 that is an import of torch._dynamo, which takes longer than torch's own and puts a variable
into the environment, and 15 to 30 microseconds a step.  What computes is torch's, as it is.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from optplug.known import is_known
from optplug.torch_private import (
    disable_dynamo,
    flatten_dense_tensors,
    foreach_add_,
    grad_mode,
    has_hooks,
    is_wrapped_by_scheduler,
    note_step,
    profile_hook_step,
    unflatten_dense_tensors,
    use_grad_for_differentiable,
)

#: What a step comes down to: calls of torch's function for it ("adam"), one for each group.
Calls = list[tuple[Callable[..., None], tuple[Any, ...], dict[str, Any]]]

_ALIGNMENT = 64  # bytes, of torch's memory
_here = threading.local()  # .noted: what this thread's step has called so far


class _EnableGrad(grad_mode):
    """``torch.enable_grad``: a context, or around a function, at a fifth of the time."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(True)

    def __call__(self, function: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            with grad_mode(True):
                return function()

        return call


class _Torch:
    """What steps find by the name of torch."""

    enable_grad = _EnableGrad

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


_torch = _Torch()


def _nothing() -> None:
    """Stand for a function that torch puts something around."""


# The code of what torch puts around functions, which is the same around all.
_AROUND_STEPS = {
    around(_nothing).__code__
    for around in (profile_hook_step, use_grad_for_differentiable)
    if is_known(around)
}
_HOOKED = {profile_hook_step(_nothing).__code__} & _AROUND_STEPS
_AROUND_METHODS = {disable_dynamo(_nothing).__code__} if is_known(disable_dynamo) else set()
_IN_CONTEXT = torch.no_grad()(_nothing).__code__


def _is_around(step: Any) -> bool:
    """Tell whether a function puts around a step what `lean` leaves out: hooks, or a mode of autograd's."""
    code = getattr(step, "__code__", None)
    if code != _IN_CONTEXT:  # torch 2.15 makes a new one each time
        return code in _AROUND_STEPS
    cells = dict(zip(code.co_freevars, step.__closure__, strict=True))
    context = (
        getattr(cells["ctx_factory"].cell_contents, "__self__", None) if "ctx_factory" in cells else None
    )
    return type(context) is torch.no_grad


def bare_step(full: type[torch.optim.Optimizer]) -> Any:
    """Return a class's step without what is known to be around it."""
    step: Any = full.step
    while _is_around(step) or _is_lean(step):
        step = step.__wrapped__
    return step


@functools.cache
def _without_no_grad(step: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return what a function runs in ``torch.no_grad()``; None if that is not what it does."""
    is_no_grad = getattr(step, "__code__", None) == _IN_CONTEXT and _is_around(step)
    return step.__wrapped__ if is_no_grad else None  # type: ignore[attr-defined]


def step_unhooked(instance: torch.optim.Optimizer) -> None:
    """Let an optimizer step as its class does, without what torch puts around that for hooks.

    That is a record for profilers, which takes longer than some steps, as does torch's own way of calling a
    function in ``torch.no_grad()``; hooks that are there are called.
    """
    around, step = vars(instance).get("step"), type(instance).step
    is_plain = getattr(step, "__code__", None) in _HOOKED and not has_hooks(instance)
    if not is_plain or not (around is None or is_wrapped_by_scheduler(around)):
        instance.step()
        return
    if around is not None:
        note_step(instance)
    step = step.__wrapped__  # type: ignore[attr-defined]
    bare = _without_no_grad(step)
    if bare is None:
        step(instance)
        return
    with grad_mode(False):
        bare(instance)


def _is_lean(step: Any) -> bool:
    """Tell whether a function is one of `lean`; those around it have its attributes too."""
    return getattr(step, "lean", None) is step


def _bare_method(method: Any) -> Any:
    return method.__wrapped__ if getattr(method, "__code__", None) in _AROUND_METHODS else method


@functools.cache
def lean(full: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return a class of torch's with the same name, arguments, state and numbers, and less around it.

    Torch's own functions are left out or replaced only where they are known: see `known`.
    """
    bare = _recording(bare_step(full), {base.__name__.lower() for base in full.__mro__})

    @functools.wraps(bare)
    def step(self: torch.optim.Optimizer, closure: Any = None) -> float | None:
        if has_hooks(self):
            hooked = full.step if hasattr(full.step, "hooked") else self.profile_hook_step(full.step)
            return hooked(self, closure)
        with grad_mode(self.defaults.get("differentiable", False)):
            return bare(self, closure)

    vars(step)["lean"] = step
    vars(step)["hooked"] = True  # or the constructor wraps it
    members = {"step": step, "__module__": full.__module__, "__doc__": full.__doc__}
    for name in ("add_param_group", "state_dict"):  # torch._dynamo again
        members[name] = _bare_method(getattr(full, name))
    if full is torch.optim.LBFGS:
        members |= _LBFGS
    return type(full.__name__, (full,), members)


#: Those that the two functions below stand for; a Python host may have put others there.
_GATHER, _ADD = (getattr(torch.optim.LBFGS, name, None) for name in ("_gather_flat_grad", "_add_grad"))


def _gather_flat_grad(self: Any) -> Tensor:
    """Return all gradients in one row: those of one parameter as they lie, since LBFGS only reads them.

    They must lie as a row of torch's own would: Intel's scalar product depends on the addresses.
    """
    grads = [p.grad for p in self._params]
    is_ours = torch.optim.LBFGS._gather_flat_grad is _GATHER
    if not is_ours or any(g is None or g.is_sparse or g.is_complex() or not g.is_contiguous() for g in grads):
        return torch.optim.LBFGS._gather_flat_grad(self)
    if len(grads) > 1:
        return flatten_dense_tensors(grads)
    return grads[0].view(-1) if grads[0].data_ptr() % _ALIGNMENT == 0 else grads[0].flatten().clone()


def _add_grad(self: Any, step_size: float | Tensor, update: Tensor) -> None:
    """Move all parameters along a direction."""
    if torch.optim.LBFGS._add_grad is not _ADD or any(p.is_complex() for p in self._params):
        torch.optim.LBFGS._add_grad(self, step_size, update)
    elif len(self._params) == 1:
        self._params[0].add_(update.view_as(self._params[0]), alpha=step_size)
    else:
        parts = unflatten_dense_tensors(update, self._params)
        foreach_add_(self._params, parts, alpha=float(step_size))


_LBFGS = {
    f.__name__: f
    for f in (_gather_flat_grad, _add_grad)
    if is_known(getattr(torch.optim.LBFGS, f.__name__, None))
}


def _recording(step: Callable[..., Any], names: set[str]) -> Callable[..., Any]:
    """Return a step that notes what it calls of the functions that have these names in its module."""

    def noting(function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            noted = vars(_here).get("noted")
            if noted is None:
                function(*args, **kwargs)
                return
            with noted.inside():
                function(*args, **kwargs)
            noted.calls.append((function, args, kwargs))

        return call

    if hasattr(step, "__wrapped__"):  # by something that is not known
        return step
    found: dict[str, Any] = {name: noting(step.__globals__[name]) for name in names & step.__globals__.keys()}
    if step.__globals__.get("torch") is torch:
        found["torch"] = _torch
    copy = types.FunctionType(
        step.__code__, {**step.__globals__, **found}, step.__name__, step.__defaults__, step.__closure__
    )
    copy.__kwdefaults__ = step.__kwdefaults__
    return functools.update_wrapper(copy, step)


class Noted:
    """What a step calls of torch's functions for it."""

    def __init__(self) -> None:
        self.calls: Calls = []
        #: Whether it is in one of them now.
        self.is_inside = False

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Let what is computed be part of a call."""
        self.is_inside = True
        try:
            yield
        finally:
            self.is_inside = False

    def step(self, instance: torch.optim.Optimizer) -> None:
        """Make a step, and note what it comes down to, as far as that is known."""
        _here.noted = self
        try:
            instance.step()
        finally:
            del _here.noted


def step_again(calls: Calls) -> None:
    """Make the step that has been noted."""
    with grad_mode(False):
        for function, args, kwargs in calls:
            function(*args, **kwargs)
