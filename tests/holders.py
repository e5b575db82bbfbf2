"""Optimizers outside torch.optim that draw random numbers, and that keep what is no tensor in a dict."""

from __future__ import annotations

import random

import numpy as np
import torch

from somebodys import Somebodys


class Noisy(Somebodys):
    """Adds noise of torch's at each step, begins with some, and fails at a gradient that is none."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.first = torch.rand(1)

    def direction(self, p, group):
        noise = torch.randn_like(p)
        if p.grad.isnan().any():
            raise RuntimeError("a gradient is none")
        return super().direction(p, group) + noise * self.first * 0.01


class Rolling(Somebodys):
    """Draws from Python's generator, and from numpy's, through a function of its module."""

    def direction(self, p, group):
        return super().direction(p, group) * rolled()


def rolled() -> float:
    return random.random() + float(np.random.normal()) + random.gauss(0, 1)  # noqa: S311


class Unsaid(Somebodys):
    """Draws by a name that its code does not have."""

    def direction(self, p, group):
        draw = getattr(torch, "_".join(("ran", "like")).replace("_", "dn_"))
        return super().direction(p, group) + draw(p) * 0.01


class Tossing(Somebodys):
    """Draws on either side of its closure."""

    @torch.no_grad()
    def step(self, closure):
        first = torch.rand(())
        loss = closure()
        for p, group in self.all():
            p.sub_(self.direction(p, group) * (first + torch.rand(())))
        return loss
