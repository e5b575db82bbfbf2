"""Schedule-free optimizers outside torch.optim, whose weights to be used are others than those they train."""

from __future__ import annotations

import torch
from torch import Tensor


class ScheduleFree(torch.optim.Optimizer):
    """Steps other weights than those to evaluate, as schedulefree does: train and eval move between them."""

    def all(self):
        return [(p, group) for group in self.param_groups for p in group["params"]]

    def __init__(self, params, lr=0.1, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum, "k": 0, "train_mode": False})

    def train(self):
        self.turn(True)

    def eval(self):
        self.turn(False)

    @torch.no_grad()
    def turn(self, mode: bool) -> None:
        for p, group in self.all():
            weight = 1 - group["momentum"] ** (1 if mode else -1)
            if group["train_mode"] != mode and "z" in self.state[p]:
                self.go(p, self.state[p]["z"], weight)
        for group in self.param_groups:
            group["train_mode"] = mode

    def go(self, p: Tensor, z: Tensor, weight: float) -> None:
        p.lerp_(z, weight)

    @torch.no_grad()
    def step(self, closure=None):
        if not self.param_groups[0]["train_mode"]:
            raise RuntimeError("Optimizer was not in train mode when step is called.")
        loss = None if closure is None else closure()
        for p, group in self.all():
            z = self.state[p].setdefault("z", p.clone())
            part = 1 / (group["k"] + 1)
            p.lerp_(z, part)
            p.add_(p.grad, alpha=group["lr"] * (group["momentum"] * (1 - part) - 1))
            z.sub_(p.grad, alpha=group["lr"])
        for group in self.param_groups:
            group["k"] += 1
        return loss


class ScheduleFreeElsewhere(ScheduleFree):
    """Lets a parameter be other memory there, keeps its mode beside its state, and fails at a nan."""

    def __init__(self, params, lr=0.1, momentum=0.9):
        super().__init__(params, lr, momentum)
        self.mode = "none"

    def turn(self, mode):
        self.mode = str(mode)
        super().turn(mode)
        if not mode and any(p.isnan().any() for p, _ in self.all()):
            raise ArithmeticError("a weight is none")

    def go(self, p, z, weight):
        p.data = p.data.lerp(z, weight)

    def step(self, closure=None):
        if self.mode != "True":
            raise ValueError("call .train() before .step()")
        return super().step(closure)
