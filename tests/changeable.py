"""Optimizers outside torch.optim that step in another way once in a while, by what they keep for that."""

from __future__ import annotations

import random

import numpy as np
import torch

from recordable import Each


class Every(Each):
    """Counts steps for each parameter, and changes every tenth time."""

    def move(self, p, grad, state, group):
        state["step"] = state.get("step", 0) + 1
        if state["step"] % 10 == 0:
            self.change(p, state, group)
        p.sub_(grad, alpha=group["lr"] * self.factor(p, state, group))

    def change(self, p, state, group):
        pass

    def factor(self, *_):
        return 1


class ByAttribute(Every):
    """Goes by an attribute."""

    times = 1

    def step(self, closure=None):
        loss = closure() if closure else None
        super().step()
        return loss

    def change(self, *_):
        self.times += 1

    def factor(self, *_):
        return self.times


class ByState(Every):
    """Goes by what it has put into the state."""

    def change(self, _, state, __):
        state["late"] = True

    def factor(self, _, state, __):
        return 2 if "late" in state else 1


class ByTensor(Every):
    """Makes a tensor in the state, and goes by that."""

    def change(self, p, state, _):
        state["late"] = torch.ones_like(p)

    def move(self, p, grad, state, group):
        super().move(p, grad, state, group)
        if "late" in state:
            p.sub_(state["late"], alpha=group["lr"])


class ByOption(Every):
    """Goes by an option that it changes."""

    def __init__(self, params):
        super().__init__(params, scale=1.0)

    def change(self, _, __, group):
        group["scale"] *= 0.5

    def factor(self, _, __, group):
        return group["scale"]


class Losing(Each):
    """Counts in the group, and begins anew by taking the count away."""

    def begin(self, group):
        group["count"] = group.get("count", 0) + 1
        if group["count"] == 10:
            del group["count"]

    def move(self, p, grad, _, group):
        p.sub_(grad, alpha=group["lr"])


class ByKind(Every):
    """Lets its count be another kind of number."""

    def change(self, _, state, __):
        state["step"] = 1.25

    def factor(self, _, state, __):
        return 1 / state["step"]


class Large(Every):
    """Makes integers that no double has of a count."""

    def factor(self, _, state, __):
        return 1 + state["step"] ** 13 % 7


class Growing(Every):
    """Has an integer in the state that grows beyond all bounds."""

    def factor(self, _, state, __):
        state["size"] = 3 * state.get("size", 1)
        return state["size"] % 7


class ByText(Every):
    """Goes by how a number is written."""

    def factor(self, _, state, __):
        return 2 if str(state["step"]).endswith("8") else 1


class ByAttributeOfParameter(Every):
    """Counts in an attribute of the parameter."""

    def factor(self, p, *_):
        p.count = getattr(p, "count", 0) + 1
        return 2 if p.count > 12 else 1


class Slots:
    """Has no dictionary of attributes."""

    __slots__ = ("count",)

    def __init__(self):
        self.count = 0


class BySlots(Every):
    """Counts in an object that has no dictionary."""

    def __init__(self, params):
        super().__init__(params)
        self.slots = Slots()

    def factor(self, *_):
        self.slots.count += 1
        return 2 if self.slots.count > 40 else 1


class ByArray(Every):
    """Counts in an array of numpy's."""

    def __init__(self, params):
        super().__init__(params)
        self.counts = np.zeros(1)

    def factor(self, *_):
        self.counts += 1
        return 2 if self.counts[0] > 40 else 1


class OwnDice(Every):
    """Draws random numbers of its own."""

    def __init__(self, params):
        super().__init__(params)
        self.dice = random.Random(0)  # noqa: S311

    def factor(self, *_):
        return 2 if self.dice.random() < 0.03 else 1


def counter():
    """Return a function that returns how often it was called."""
    count = 0

    def called():
        nonlocal count
        count += 1
        return count

    return called


class ByCell(Every):
    """Counts in a variable of a function."""

    def __init__(self, params):
        super().__init__(params)
        self.count = counter()

    def factor(self, *_):
        return 2 if self.count() > 40 else 1


class ByClosures(Every):
    """Goes by how often it has had a closure."""

    closures = 0

    def step(self, closure=None):
        loss = closure() if closure else None
        self.closures += closure is not None
        super().step()
        return loss

    def factor(self, *_):
        return 1 + self.closures
