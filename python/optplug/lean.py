"""torch's optimizers without the per-construction and per-step hooks for torch.compile and profilers.

In torch 2.13 that is an import of torch._dynamo, which takes longer than torch's own and puts a variable
into the environment, and 15 to 30 microseconds a step.  What computes is torch's, as it is.
"""

from __future__ import annotations

import functools
import inspect
import threading
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optplug.torch_private import (
    flatten_dense_tensors,
    foreach_add_,
    grad_mode,
    has_hooks,
    unflatten_dense_tensors,
)

#: What a step comes down to: calls of torch's function for it ("adam"), one for each group.
Calls = list[tuple[Callable[..., None], tuple[Any, ...], dict[str, Any]]]

_ALIGNMENT = 64  # bytes, of torch's memory
_here = threading.local()  # .calls: those of this thread's step, so far


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


#: What steps find by the name of torch.
_torch = types.SimpleNamespace(**{**vars(torch), "enable_grad": _EnableGrad})


def bare_step(full: type[torch.optim.Optimizer]) -> Any:
    """Return a class's step without whatever is around it."""
    return inspect.unwrap(full.step)


@functools.cache
def lean(full: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return a class of torch's with the same name, arguments, state and numbers, and less around it."""
    bare = _recording(bare_step(full), {base.__name__.lower() for base in full.__mro__})

    @functools.wraps(bare)
    def step(self: torch.optim.Optimizer, closure: Any = None) -> float | None:
        if has_hooks(self):
            hooked = full.step if hasattr(full.step, "hooked") else self.profile_hook_step(full.step)
            return hooked(self, closure)
        with grad_mode(self.defaults.get("differentiable", False)):
            return bare(self, closure)

    vars(step)["hooked"] = True  # or the constructor wraps it
    members = {"step": step, "__module__": full.__module__, "__doc__": full.__doc__}
    for name in ("add_param_group", "state_dict"):  # torch._dynamo again
        members[name] = inspect.unwrap(getattr(full, name))
    if full is torch.optim.LBFGS:
        members |= {"_gather_flat_grad": _gather_flat_grad, "_add_grad": _add_grad}
    return type(full.__name__, (full,), members)


#: Those that the two functions below stand for; a Python host may have put others there.
_GATHER, _ADD = torch.optim.LBFGS._gather_flat_grad, torch.optim.LBFGS._add_grad


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


def _recording(step: Callable[..., Any], names: set[str]) -> Callable[..., Any]:
    """Return a step that notes what it calls of the functions that have these names in its module."""

    def noting(function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            function(*args, **kwargs)
            if hasattr(_here, "calls"):
                _here.calls.append((function, args, kwargs))

        return call

    found: dict[str, Any] = {name: noting(step.__globals__[name]) for name in names & step.__globals__.keys()}
    if step.__globals__.get("torch") is torch:
        found["torch"] = _torch
    copy = types.FunctionType(
        step.__code__, {**step.__globals__, **found}, step.__name__, step.__defaults__, step.__closure__
    )
    return functools.update_wrapper(copy, step)


def step_and_record(instance: torch.optim.Optimizer) -> Calls:
    """Make a step, and return what it came down to, as far as that is known; else nothing.

    To `step_again` with that looks nothing up a second time: neither parameters nor gradients, state or
    hyperparameters, only the values of tensors.
    """
    _here.calls = []
    try:
        instance.step()
        return _here.calls if not instance.defaults.get("differentiable") else []
    finally:
        del _here.calls


def step_again(calls: Calls) -> None:
    """Make the step that has been recorded."""
    with grad_mode(False):
        for function, args, kwargs in calls:
            function(*args, **kwargs)
