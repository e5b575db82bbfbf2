"""How far a step of LBFGS came, and which of its limits ended it: torch's step says neither."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

#: What torch's LBFGS counts in its state.
_COUNTS = ("n_iter", "func_evals")


@dataclass(frozen=True)
class Stop:
    """What the last step with a closure came to."""

    iterations: int
    evaluations: int
    loss: float
    #: The gradient that it ended with, where another step has begun, which changes the state's.
    gradient: Tensor | None = None

    def kept(self, optimizer: torch.optim.Optimizer) -> Stop:
        """Return the same, to be described in the middle of the next step as well."""
        gradient = _state(optimizer).get("prev_flat_grad")
        if gradient is None or self.gradient is not None:
            return self
        return replace(self, gradient=gradient.clone())

    def describe(self, optimizer: torch.optim.Optimizer) -> str:
        """Say so in words, by the state that the step has left."""
        return (
            f"{self.iterations} iterations, {self.evaluations} evaluations, stopped by "
            f"{self._limit(optimizer.param_groups[0], _state(optimizer))}, last loss {self.loss:.6g}"
        )

    def _limit(self, group: dict[str, Any], state: dict[str, Any]) -> str:
        if self.iterations == 0:
            return "tolerance_grad, which the gradient was within"
        if self.iterations >= group["max_iter"]:
            return f"max_iter={group['max_iter']}"
        if self.evaluations >= group["max_eval"]:
            return f"max_eval={group['max_eval']}"
        d, tolerance = state["d"], group["tolerance_change"]
        gradient = state["prev_flat_grad"] if self.gradient is None else self.gradient
        slope = float(gradient.dot(d))
        if slope > -tolerance or float(d.mul(state["t"]).abs().max()) <= tolerance:
            return f"tolerance_change={tolerance:g}"
        return f"tolerance_grad={group['tolerance_grad']:g} or tolerance_change={tolerance:g}"


def _state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the one state of LBFGS, which is empty before its first step."""
    return next(iter(optimizer.state.values()), {})


def counts(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Return how many iterations and evaluations LBFGS has made in all its steps; nothing of others."""
    if not isinstance(optimizer, torch.optim.LBFGS):
        return {}
    return {name: int(_state(optimizer).get(name, 0)) for name in _COUNTS}


def since(before: dict[str, int], optimizer: torch.optim.Optimizer, losses: list[float]) -> Stop | None:
    """Return what a step of LBFGS came to, before which its counts were these."""
    now = counts(optimizer)
    return Stop(now["n_iter"] - before["n_iter"], len(losses), losses[-1]) if now else None
