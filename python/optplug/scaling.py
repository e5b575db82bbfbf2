"""A host's factor of its loss, which steps take out of the gradients, as torch.amp.GradScaler does."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from optplug.lean import bare_step
from optplug.parameters import Parameters
from optplug.torch_private import grad_mode


@dataclass(frozen=True)
class Scale:
    """Two numbers of the host's, read when a step runs."""

    #: What gradients are divided by.
    factor: Tensor | None = None
    #: Leaves a step out where it is 1.
    found_inf: Tensor | None = None

    def __bool__(self) -> bool:
        return self.factor is not None or self.found_inf is not None

    def numbers(self) -> tuple[Tensor | None, Tensor | None]:
        """Return both, in the order in which torch's fused kernels take them."""
        return self.factor, self.found_inf

    def divided(self, optimizer: torch.optim.Optimizer, parameters: Parameters) -> list[Tensor] | None:
        """Return the gradients that `apply` divides; None where kernels do that, or nobody."""
        if self.factor is None or _is_fused(optimizer, parameters):
            return None
        return [p.stepped_memory() for p in parameters]

    def apply(self, optimizer: torch.optim.Optimizer, parameters: Parameters, has_stepped: bool) -> bool:
        """Take account of the numbers before a step; False if the step is to be left out.

        torch's fused kernels do both by themselves, without a look at the numbers here; but SGD's would go on
        from a momentum buffer that the step which makes it has left out, so that such a step is not made.

        Args:
            optimizer: what makes the step.
            parameters: whose gradients are divided, where the kernels do not.
            has_stepped: whether the kernels have made a step, and with it their state.
        """
        if not self:
            return True
        is_fused = _is_fused(optimizer, parameters)
        if self.found_inf is not None and not (is_fused and has_stepped) and self.found_inf.item():
            return False
        _give(optimizer, self if is_fused else Scale())
        if self.factor is not None:
            with grad_mode(False):
                for grad in self.divided(optimizer, parameters) or ():
                    grad.div_(self.factor.to(grad.device))
        return True


def take_away(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer know of no numbers."""
    _give(optimizer, Scale())


def _is_fused(optimizer: torch.optim.Optimizer, parameters: Parameters) -> bool:
    """Tell whether steps are torch's fused kernels, which take both numbers."""
    is_fused = parameters.loans is None and all(group.get("fused") for group in optimizer.param_groups)
    return is_fused and _takes_both(type(optimizer))  # type: ignore[arg-type]


@functools.cache
def _takes_both(full: type[torch.optim.Optimizer]) -> bool:
    """Tell whether a class's step looks for the two attributes by these names."""
    code = getattr(bare_step(full), "__code__", None)
    return code is not None and {"grad_scale", "found_inf"} <= {*code.co_consts, *code.co_names}


def _give(optimizer: torch.optim.Optimizer, scale: Scale) -> None:
    # Attributes that torch's fused steps look for, and GradScaler sets.
    optimizer.grad_scale, optimizer.found_inf = scale.numbers()  # type: ignore[attr-defined]
