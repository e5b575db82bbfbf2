"""Optimizers outside torch.optim that keep objects of their own package, in their state and as attributes."""

from __future__ import annotations

from holders import Holding
from somebodys import Somebodys


class Tool:
    """Turns gradients, by what it has kept of them."""

    def __init__(self, inner=None):
        self.seen, self.last, self.inner = [], None, inner

    def turn(self, grad):
        self.last = grad.clone() if self.last is None else self.last * 0.5 + grad
        self.seen.append(float(grad.sum()))
        if self.inner is not None:
            return self.inner.turn(self.last) * len(self.seen)
        return self.last / (1 + abs(sum(self.seen)))


class Tooling(Somebodys):
    """Keeps objects of its own in its state, as GaLore does, and one that all of them have."""

    def __init__(self, params, lr=0.1, momentum=0.9):
        super().__init__(params, lr, momentum)
        self.tool = Tool()

    def direction(self, p, group):
        state = self.state[p]
        if not state:
            state["tool"], state["shared"] = Tool(Tool()), self.tool
        self.tool.seen.append(1.0)
        return group["lr"] * state["tool"].turn(p.grad) / len(state["shared"].seen)


class Forgetful(Tool):
    """Leaves out of copies what it goes by."""

    def __reduce__(self):
        return Forgetful, ()


class Sight(Tool):
    """Goes by a parameter's values, which it sees by itself."""

    def __init__(self, p):
        super().__init__()
        self.values = p.detach().view(-1)

    def turn(self, grad):
        return super().turn(grad) + self.values.view(grad.shape)


class ToolingSeeing(Somebodys):
    def direction(self, p, group):
        state = self.state[p]
        if not state:
            state["tool"] = Sight(p)
        return group["lr"] * state["tool"].turn(p.grad)


class Turning(Tool):
    def turn(self, grad):
        return -super().turn(grad)


class ToolingChosen(Somebodys):
    """Has an object of one class or another, by an option."""

    def __init__(self, params, lr=0.1, momentum=0.9, turns=False):
        super().__init__(params, lr, momentum)
        self.tool = (Turning if turns else Tool)()

    def direction(self, p, group):
        return group["lr"] * self.tool.turn(p.grad.sum()) + p * 0


class ToolingForgetful(ToolingChosen):
    def __init__(self, params, lr=0.1, momentum=0.9):
        super().__init__(params, lr, momentum)
        self.tool = Forgetful()


class ToolingCyclic(ToolingChosen):
    """Has an object that leads back to itself."""

    def __init__(self, params, lr=0.1, momentum=0.9):
        super().__init__(params, lr, momentum)
        self.tool.owner = [self.tool]


class LateTooling(Tooling):
    """Has another object from its second step on."""

    def direction(self, p, group):
        if self.state[p]:
            self.state[p]["late"] = Tool()
        return super().direction(p, group)


class KeyedByParameter(Holding):
    """Keeps a number for each parameter in a dict of its own."""

    def made(self):
        return {self.param_groups[0]["params"][0]: 0}

    def changed(self, _):
        [key] = self.thing
        self.thing[key] += 1
        return self.thing[key]
