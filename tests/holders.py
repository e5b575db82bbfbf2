"""Optimizers outside torch.optim that draw random numbers, and that keep what is no tensor in a dict."""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from functools import partial

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
    """Draws from Python's generator, and from torch's by a name that its code does not have."""

    def direction(self, p, group):
        draw = getattr(torch, "_".join(("ran", "like")).replace("_", "dn_"))
        return super().direction(p, group) + draw(p) * 0.01 * random.random()  # noqa: S311


class Tossing(Somebodys):
    """Draws on either side of its closure."""

    @torch.no_grad()
    def step(self, closure):
        first = torch.rand(())
        loss = closure()
        for p, group in self.all():
            p.sub_(self.direction(p, group) * (first + torch.rand(())))
        return loss


class Slotted:
    """Counts in slots, of which one is empty at first."""

    __slots__ = ("count", "last")

    def __init__(self):
        self.count = 0

    def next(self) -> float:
        self.count += 1
        self.last = self.count if self.count < 3 else getattr(self, "last", 0) * 2
        return float(self.count + self.last)


def counter():
    """Return a function that counts its calls in a variable of its own."""
    count = 0

    def call() -> float:
        nonlocal count
        count += 1
        return float(count)

    return call


class Holding(Somebodys):
    """Changes one thing at each step, and goes by it; fails at a gradient that is none after that."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.thing = self.made()

    def made(self):
        return None

    def changed(self, p) -> float:
        raise NotImplementedError

    def direction(self, p, group):
        factor = self.changed(p)
        if p.grad.isnan().any():
            raise RuntimeError("a gradient is none")
        return super().direction(p, group) * (1 + factor % 7)


class HoldsArray(Holding):
    def made(self):
        return np.zeros(3)

    def changed(self, _):
        self.thing += [1, 2, 3]
        return float(self.thing.sum())


class HoldsGenerator(Holding):
    def made(self):
        return {"dice": [torch.Generator().manual_seed(3)]}

    def changed(self, _):
        return float(torch.rand((), generator=self.thing["dice"][0]))


class HoldsNumpysGenerator(Holding):
    def made(self):
        return np.random.default_rng(3), np.random.RandomState(3), random.Random(3)  # noqa: S311

    def changed(self, _):
        return sum(float(dice.random()) for dice in self.thing)


class HoldsSlots(Holding):
    def made(self):
        return Slotted()

    def changed(self, _):
        return self.thing.next()


class HoldsCell(Holding):
    def made(self):
        return counter()

    def changed(self, _):
        return self.thing()


class HoldsPartial(Holding):
    def made(self):
        return partial(self.count, by=[1.0])

    def count(self, by):
        by.append(by[-1] + 1)
        return by[-1]

    def changed(self, _):
        return self.thing()


class HoldsAttribute(Holding):
    """Sets an attribute on each parameter, and one on its state."""

    def changed(self, p):
        p.count = getattr(p, "count", 0) + 1
        before = self.state[p].setdefault("sum", torch.zeros(()))
        before.seen = [*getattr(before, "seen", []), p.count]
        return float(p.count + len(before.seen))


class HoldsGrad(Holding):
    """Has gradients in tensors of its own."""

    def made(self):
        return torch.nn.Parameter(torch.zeros(2))

    def changed(self, _):
        if self.thing.grad is None:
            self.thing.grad = torch.ones(2)
        elif float(self.thing.grad[0]) > 3:
            self.thing.grad = self.thing.grad * 0.5
        self.thing.grad.add_(1)
        return float(self.thing.grad.sum())


class HoldsOrder(Holding):
    def made(self):
        return OrderedDict(a=1.0, b=2.0, c=3.0)

    def changed(self, _):
        key = next(iter(self.thing))
        self.thing.move_to_end(key)
        return self.thing[key]


class HoldsModule(Holding):
    def made(self):
        return torch.nn.BatchNorm1d(1)

    def changed(self, _):
        self.thing.num_batches_tracked += 1
        return float(self.thing.num_batches_tracked)


class HoldsForm(Holding):
    """Lets a tensor be another view of its memory."""

    def made(self):
        return torch.arange(4.0).reshape(2, 2)

    def changed(self, _):
        self.thing.data = self.thing.data.t()
        return float(self.thing.reshape(-1)[1])


class HoldsRepeated(Holding):
    """Has a tensor whose values are one."""

    def made(self):
        return torch.zeros(1).expand(3)

    def changed(self, _):
        self.thing[:1].add_(1)
        return float(self.thing.sum())


class HoldsAnew(Holding):
    """Changes a tensor, and puts a new one in its place."""

    def made(self):
        return {"now": torch.ones(3)}

    def changed(self, _):
        self.thing["now"].add_(1)
        self.thing["now"] = self.thing["now"] * 1.25 % 5
        return float(self.thing["now"].sum())


class HoldsMoved(Holding):
    """Lets a tensor have other memory, as processes that share it do."""

    def made(self):
        return torch.zeros(100)

    def changed(self, _):
        self.thing.add_(1)
        self.thing.untyped_storage().resize_(100_000)
        self.thing.untyped_storage().resize_(400)
        return float(self.thing.sum())


class HoldsBoth(Holding):
    """Puts another tensor in a tensor's place, and has that still, in a tuple."""

    def made(self):
        first = torch.ones(3)
        return {"now": first, "first": (first,), "counts": [0]}

    def changed(self, _):
        (first,) = self.thing["first"]
        first.add_(1)
        counts = self.thing["counts"]
        counts[-1] += 1
        self.thing["now"] = first if counts[-1] % 3 == 0 else first.clone()
        if counts[-1] % 3 == 0:
            counts.append(counts[-1])  # so that all is looked at anew
        return float(first.sum())


class Other(Slotted):
    """Counts in a dict, and is another one from time to time."""

    def __init__(self):
        self.count = 0


class HoldsDict(Holding):
    """Gives an object another dict."""

    def made(self):
        return Other()

    def changed(self, _):
        self.thing.__dict__ = {**vars(self.thing), "sum": vars(self.thing).get("sum", 0) + 1}
        return self.thing.sum


class HoldsClass(HoldsDict):
    """Gives an object another class."""

    def changed(self, _):
        before = type(self.thing)
        self.thing.__class__ = type("Another", (Other,), {"number": getattr(before, "number", 0) + 1})
        return self.thing.number


class HoldsFlag(Holding):
    """Counts by which tensors require gradients."""

    def made(self):
        return [torch.zeros(2) for _ in range(3)]

    def changed(self, p):
        bits = [p, *self.thing]
        count = 1 + sum(t.requires_grad << i for i, t in enumerate(bits))
        for i, t in enumerate(bits):
            t.requires_grad_(bool(count >> i & 1))
        return float(count)


class HoldsBits(Holding):
    """Takes a tensor's bits for another number."""

    def made(self):
        return torch.ones(2)

    def changed(self, _):
        kinds = torch.float32, torch.int32, torch.uint32
        place = kinds.index(self.thing.dtype)
        self.thing.data = self.thing.data.view(kinds[(place + 1) % 3])
        return float(place)


class HoldsIterator(Holding):
    """Has what nobody can put back."""

    def made(self):
        return itertools.count()

    def changed(self, _):
        return float(next(self.thing))


class Starting(Somebodys):
    """Writes the parameters when it is built, and sets an attribute on each."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        with torch.no_grad():
            for p, _ in self.all():
                assert not hasattr(p, "begun")
                p.begun = True
                p.mul_(0.5)


class Rowed(Somebodys):
    """Lays its momenta into one row, which it steps as a whole."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.row = torch.zeros(sum(p.numel() for p, _ in self.all()))

    def step(self, closure=None):
        start = 0
        for p, _ in self.all():
            if "before" not in self.state[p]:
                self.state[p]["before"] = self.row[start : start + p.numel()].view(p.shape)
            start += p.numel()
        self.row.mul_(0.5)
        return super().step(closure)

    def direction(self, p, group):
        return self.state[p]["before"].add_(p.grad) * group["lr"]


class RowedInside(Rowed):
    """The same, with the row in its state, too."""

    def step(self, closure=None):
        self.state[self.all()[0][0]]["row"] = self.row
        super().step(closure)


class Losing(RowedInside):
    """Loads its state into new memory."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        for those in self.state.values():
            those["before"] = those["before"].clone()


class Tying(Somebodys):
    """Has its group's count in each state, too, and loads it into new memory; each step ties them again."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", torch.zeros(())).add_(1)
            for p in group["params"]:
                self.state[p]["count"] = group["count"]
        return super().step(closure)

    def direction(self, p, group):
        return super().direction(p, group) / self.state[p]["count"]

    def load_state_dict(self, state):
        super().load_state_dict(state)
        for those in self.state.values():
            those["count"] = those["count"].clone()


class Buffering(Somebodys):
    """Keeps a rate in a list that all groups have, as RAdam of torch_optimizer does."""

    def __init__(self, params, lr=0.1, momentum=0.9):
        super().__init__(params, lr, momentum)
        buffer = [0, 0.0]
        for group in self.param_groups:
            group["buffer"] = buffer

    def direction(self, p, group):
        buffer = group["buffer"]
        if buffer[0] % 5 == 0:
            buffer[1] = group["lr"]
        buffer[0] += 1
        return super().direction(p, group) * buffer[1]


class Learned(Somebodys):
    """Has parameters of its own in its state, and goes by their gradients."""

    def direction(self, p, group):
        state = self.state[p]
        if not state:
            state["scale"] = torch.nn.Parameter(torch.ones(2))
            state["plain"] = torch.ones((), requires_grad=True)
        with torch.enable_grad():
            loss = (state["scale"] * state["plain"]).square().sum()
            first, second = torch.autograd.grad(loss, [state["scale"], state["plain"]])
        assert type(state["scale"]) is torch.nn.Parameter
        state["scale"].sub_(first * 0.1), state["plain"].sub_(second * 0.01)
        return p.grad * group["lr"] * state["scale"].sum() * state["plain"]


class Graphing(Somebodys):
    """Keeps a tensor with what it was computed from."""

    def direction(self, p, group):
        with torch.enable_grad():
            self.state[p]["last"] = torch.ones((), requires_grad=True) * 2
        return super().direction(p, group)


class Ordering(Somebodys):
    """Goes round in a dict whose order it changes."""

    def direction(self, p, group):
        state = self.state[p]
        if not state:
            state["order"] = OrderedDict(a=1.0, b=2.0, c=3.0)
        state["order"].move_to_end(next(iter(state["order"])))
        return p.grad * group["lr"] * next(iter(state["order"].values()))


class Dundering(Somebodys):
    """Has an attribute with a name like Python's own."""

    def direction(self, p, group):
        self.__count__ = getattr(self, "__count__", 0) + 1
        return super().direction(p, group) / self.__count__


class Marking(Somebodys):
    """Keeps its momenta on the parameters, and one more thing."""

    mark = 0.0

    def direction(self, p, group):
        p.momentum = getattr(p, "momentum", 0) * group["momentum"] + p.grad
        p.seen = [*getattr(p, "seen", []), 1.0]
        return p.momentum * group["lr"] / len(p.seen)


class MarkingObjects(Marking):
    """Keeps an object there."""

    def direction(self, p, group):
        p.thing = Slotted()
        return super().direction(p, group)


class MarkingState(Somebodys):
    """Sets an attribute on a tensor of its state."""

    def direction(self, p, group):
        direction = super().direction(p, group)
        self.state[p]["before"].mark = 7
        return direction
