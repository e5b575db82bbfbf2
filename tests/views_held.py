"""Optimizers outside torch.optim in which several things are one: views of parameters above all."""

from __future__ import annotations

import torch

from somebodys import Somebodys


class Seeing(Somebodys):
    """Goes by a parameter's values, which its state has a view of."""

    def seen(self, p):
        return p.data.view(-1)

    def direction(self, p, group):
        state = self.state[p]
        if "values" not in state:
            state["values"] = self.seen(p)
        decay = state["values"].view(p.shape) * 0.1
        return (p.grad + decay) * group["lr"]


class SeeingOwn(Seeing):
    """Lets the parameter be that view, of memory of its own."""

    def seen(self, p):
        values = p.data.clone()
        p.data = values
        return values.view(-1)


class SeeingAnew(Seeing):
    """Makes the view anew in each step."""

    def direction(self, p, group):
        self.state[p].pop("values", None)
        return super().direction(p, group)


class SeeingLate(Somebodys):
    """Has views as an attribute, from its first step on."""

    values = None

    def seen(self, p):
        return p.data.view(-1)

    def step(self, closure=None):
        if self.values is None:
            self.values = [self.seen(p) for p, _ in self.all()]
        return super().step(closure)

    def direction(self, p, group):
        decay = self.values[[q is p for q, _ in self.all()].index(True)] * 0.1
        return (p.grad + torch.as_tensor(decay).view(p.shape)) * group["lr"]


class SeeingArray(SeeingLate):
    """The same by arrays of numpy's."""

    def seen(self, p):
        return p.data.view(-1).numpy()


class SeeingParameter(SeeingLate):
    """The same by the parameters themselves, which a step finds where there are none yet."""

    def seen(self, p):
        return p


class Listing(Somebodys):
    """Has a list of its class that steps replace in the object."""

    trail = (1.0,)

    def direction(self, p, group):
        self.trail = [*self.trail, self.trail[-1] * 0.75]
        return p.grad * group["lr"] * self.trail[-1]


class Dicing(Somebodys):
    """Has one generator in the states of all parameters."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.dice = torch.Generator().manual_seed(3)

    def direction(self, p, group):
        dice = self.state[p].setdefault("dice", self.dice)
        return p.grad * group["lr"] * torch.rand((), generator=dice)


class Defaulting(Somebodys):
    """Counts in its defaults."""

    def direction(self, p, group):
        self.defaults["count"] = self.defaults.get("count", 0) + 1
        return p.grad * group["lr"] / self.defaults["count"]
