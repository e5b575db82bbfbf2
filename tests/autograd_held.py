"""Optimizers outside torch.optim that need autograd in their steps."""

from __future__ import annotations

import torch

from somebodys import Somebodys


class Differentiating(Somebodys):
    """Has no context around its step."""

    def step(self, closure=None):  # noqa: ARG002
        for p, group in self.all():
            again = p.grad.clone().requires_grad_()
            (again**3).sum().backward()
            with torch.no_grad():
                self.move(p, group)
                p.sub_(again.grad, alpha=0.01)


class DifferentiatingInContext(Differentiating):
    """Has one for autograd."""

    @torch.enable_grad()
    def step(self, closure=None):
        return super().step(closure)
