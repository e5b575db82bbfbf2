"""Optimizers outside torch.optim that do with parameters and gradients what those of packages do."""

from __future__ import annotations

import torch
from torch import Tensor


class Somebodys(torch.optim.Optimizer):
    """Gradient descent with a momentum, whose step does something more: see what follows."""

    def __init__(self, params, lr=0.1, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    def all(self):
        return [(p, group) for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for p, group in self.all():
            if p.grad is not None:
                self.move(p, group)
        return loss

    def direction(self, p: Tensor, group: dict) -> Tensor:
        state = self.state[p]
        before = state.get("before", torch.zeros_like(p))
        state["before"] = before * group["momentum"] + p.grad
        return state["before"] * group["lr"]

    def move(self, p: Tensor, group: dict) -> None:
        p.sub_(self.direction(p, group))


class Dropping(Somebodys):
    """Lets the gradient go, as heavyball does."""

    def move(self, p, group):
        super().move(p, group)
        p.grad = None


class Zeroing(Somebodys):
    """Zeroes the gradients itself."""

    def step(self, closure=None):
        loss = super().step(closure)
        self.zero_grad()
        return loss


class Contiguous(Somebodys):
    """Lets a parameter lie in C order, as bitsandbytes does."""

    def move(self, p, group):
        p.data = p.data.contiguous()
        super().move(p, group)


class Replacing(Somebodys):
    """Makes a parameter's values anew, and keeps those before, whose memory is the host's at first."""

    def move(self, p, group):
        state = self.state[p]
        last = state.get("last", p.data)
        state["last"] = p.data
        p.data = p.data + (p.data - last) * group["momentum"] - p.grad * group["lr"]


class Keeping(Somebodys):
    """Keeps a gradient for the next step, as it is."""

    def move(self, p, group):
        last = self.state[p].get("last", p.grad)
        p.sub_((p.grad * 2 - last) * group["lr"])
        self.state[p]["last"] = p.grad


class Scaling(Somebodys):
    """Changes a gradient in place."""

    def move(self, p, group):
        p.grad.mul_(0.5).add_(p, alpha=0.01)
        super().move(p, group)


class Flat(Somebodys):
    """Lays all parameters into one row when it is built, and steps that."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        everything = [p for p, _ in self.all()]
        self.row = torch.cat([p.detach().reshape(-1) for p in everything])
        start = 0
        for p in everything:
            p.data = self.row[start : start + p.numel()].view(p.shape)
            start += p.numel()

    @torch.no_grad()
    def step(self):
        grads = torch.cat([p.grad.reshape(-1) for p, _ in self.all()])
        self.row.sub_(grads, alpha=self.param_groups[0]["lr"])


class GoingBack(Somebodys):
    """Asks for the gradients elsewhere and goes back, as SAM does, by the memory that it has put aside."""

    @torch.no_grad()
    def step(self, closure):
        closure()
        first = [p.grad for p, _ in self.all()]
        last = [p.data for p, _ in self.all()]
        for p, group in self.all():
            p.data = p.data + p.grad * group["lr"]
        self.zero_grad()
        loss = closure()
        for (p, _), values, grad in zip(self.all(), last, first, strict=True):
            p.data = values
            p.grad.add_(grad)
        for p, group in self.all():
            super().move(p, group)
        return loss


class Failing(Somebodys):
    """Fails at a gradient that is none when it has changed all that it can: see `test_third_party`."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.count, self.trail = 0, []
        self.param_groups[0]["total"] = torch.zeros(())

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            closure()
        self.count += 1
        self.trail.append(self.count)
        self.state["steps"] = self.count
        self.param_groups[0]["total"] += 1
        for p, group in self.all():
            bad = not torch.isfinite(p.grad).all()
            p.grad.add_(1)
            p.data = p.data.clone()
            self.move(p, group)
            p.grad = None
            if bad:
                raise RuntimeError("a gradient is none")


class Reshaping(Somebodys):
    """Makes a parameter another one."""

    def move(self, p, group):
        super().move(p, group)
        p.grad = None
        p.data = p.data.reshape(-1)


class Drawing(Somebodys):
    """Begins with random numbers."""

    def direction(self, p, group):
        if not self.state[p]:
            self.state[p]["before"] = torch.randn_like(p)
        return super().direction(p, group)
