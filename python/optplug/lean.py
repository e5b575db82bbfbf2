"""torch's optimizers without what they do, at birth and around each step, for torch.compile and profilers.

In torch 2.13 that is an import of torch._dynamo, which takes longer than torch's own and puts a variable
into the environment, and 15 to 30 microseconds a step.  What computes is torch's, as it is.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from torch.optim import optimizer


@functools.cache
def lean(full: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return a class of torch's with the same name, arguments, state and numbers, and less around it."""
    bare = inspect.unwrap(full.step)

    @functools.wraps(bare)
    def step(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> float | None:
        if has_hooks(self):
            return full.step(self, closure)
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            return bare(self, closure)

    step.hooked = True  # or the constructor wraps it
    members = {"step": step, "__module__": full.__module__, "__doc__": full.__doc__}
    members["add_param_group"] = inspect.unwrap(full.add_param_group)
    return type(full.__name__, (full,), members)


def has_hooks(instance: torch.optim.Optimizer) -> bool:
    """Tell whether somebody, as a Python host may, wants to be called at the optimizer's steps."""
    return bool(
        optimizer._global_optimizer_pre_hooks
        or optimizer._global_optimizer_post_hooks
        or instance._optimizer_step_pre_hooks
        or instance._optimizer_step_post_hooks
    )
