"""Optimizers outside torch.optim whose steps are element-wise, and some that only look so."""

from __future__ import annotations

import math
import random

import torch


class Each(torch.optim.Optimizer):
    """Steps each parameter alike: see what follows."""

    def __init__(self, params, lr=0.1, beta=0.9, **options):
        super().__init__(params, {"lr": lr, "beta": beta, **options})

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None
        for group in self.param_groups:
            self.begin(group)
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state["average"] = torch.zeros_like(p)
                    self.move(p, p.grad, state, group)

    def begin(self, group):
        pass

    def move(self, p, grad, state, group):
        raise NotImplementedError


class Lion(Each):
    """Signs of an average, through p.data, with a decay; the gradient is changed on the way."""

    def move(self, p, grad, state, group):
        p.data.mul_(1 - group["lr"] * 0.01)
        grad.add_(p, alpha=0.1)
        update = state["average"].clone().mul_(group["beta"]).add(grad, alpha=1 - group["beta"]).sgn_()
        p.add_(update, alpha=-group["lr"])
        state["average"].lerp_(grad, 0.01)


class Counting(Each):
    """Counts steps in its group, and goes by the count."""

    def begin(self, group):
        group["step"] = group.get("step", 0) + 1

    def move(self, p, grad, state, group):
        state["average"].mul_(group["beta"]).addcmul_(grad, grad, value=1 - group["beta"])
        size = group["lr"] * math.sqrt(1 - math.pow(group["beta"], group["step"]))
        if group["step"] % 5 == 4:
            size = size / 2
        p.addcdiv_(grad, state["average"].sqrt().add_(1e-8), value=-size)


class OfItsOwn(Each):
    """Counts steps for each parameter, as a number of Python's, and adds up a weight in its group."""

    def begin(self, group):
        group["weight"] = group.get("weight", 0.0) + group["lr"] ** 2
        group["largest"] = max(group["lr"], group.get("largest", -1.0))

    def move(self, p, grad, state, group):
        state["step"] = state.get("step", 0) + 1
        state["average"].lerp_(end=grad, weight=1 / (1 + state["step"]))
        p.sub_(state["average"].square().sqrt(), alpha=group["largest"] / (1 + group["weight"]))


class Listed(Each):
    """Steps a group by lists, unless it is told not to: then with other operations."""

    def __init__(self, params, lr=0.1, beta=0.9, foreach=None):
        super().__init__(params, lr, beta, foreach=foreach)

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None
        for group in self.param_groups:
            members = [p for p in group["params"] if p.grad is not None]
            for p in members:
                self.state[p].setdefault("average", torch.zeros_like(p))
            grads, averages = [p.grad for p in members], [self.state[p]["average"] for p in members]
            if group["foreach"] is False:
                for p, grad, average in zip(members, grads, averages, strict=True):
                    p.sub_(average.lerp_(grad, 0.1), alpha=group["lr"])
                continue
            changes = torch._foreach_sub(grads, averages)
            torch._foreach_add_(averages, changes, alpha=0.1)
            torch._foreach_add_(members, torch._foreach_mul(averages, group["lr"]), alpha=-1)


class OfOldCode(Each):
    """Converts what needs no conversion, and says things as torch once had them, or in words less used."""

    def move(self, p, grad, state, group):
        values, grad = p.data.to(grad.dtype).view_as(grad), grad.to(p.device)
        average = state["average"].type_as(values).reshape(values.shape)
        average.mul_(group["beta"]).add_(1 - group["beta"], grad)
        rates = torch.full_like(average, group["lr"]).div_(average.abs().clamp_min(0.1)).clip(0.01, 0.5)
        rates = torch.min(rates, torch.ones_like(rates).mul_(0.3)) * torch.full((), 0.5, dtype=rates.dtype)
        values.addcmul_(-1, torch.tensor(0.1, dtype=rates.dtype) / (1 / rates), average)
        p.data.copy_(values)
        grad.zero_()


class Decaying(Each):
    """Moves the rate itself, as pyro's ClippedAdam does."""

    def __init__(self, params, lr=0.1, beta=0.9, decay=0.99):
        super().__init__(params, lr, beta, decay=decay)

    def begin(self, group):
        group["lr"] *= group["decay"]

    def move(self, p, grad, state, group):
        state["average"].lerp_(grad, 1 - group["beta"])
        p.add_(state["average"], alpha=-group["lr"])


class ByShape(Each):
    """Does something else to matrices, now and then: what a vector shows is not all."""

    def move(self, p, grad, state, group):
        state["average"].lerp_(grad, 1 - group["beta"])
        if p.dim() > 1 and (p * grad).sum() > 3:
            p.mul_(0.5)
        p.sub_(state["average"], alpha=group["lr"])


class Hidden(Each):
    """Counts where nobody sees it, and does something else at the tenth step."""

    count = 0

    def move(self, p, grad, state, group):
        self.count += 1
        state["average"].add_(grad)
        p.sub_(state["average"], alpha=group["lr"] * (2 if self.count % 10 == 0 else 1))


class Rolling(Each):
    """Draws random numbers of Python's."""

    def move(self, p, grad, _, group):
        p.sub_(grad, alpha=group["lr"] * (2 if random.random() < 0.1 else 1))  # noqa: S311


class Remembering(Each):
    """Keeps a tensor for all parameters, by the side of their states."""

    def move(self, p, grad, _, group):
        if p.numel() == 1500:
            self.last = grad.clone() if not hasattr(self, "last") else self.last.lerp_(grad, 0.5)
            grad = self.last
        p.sub_(grad, alpha=group["lr"])


class Thresholds(Each):
    """Goes by a value."""

    def move(self, p, grad, _, group):
        p.sub_(grad, alpha=group["lr"] * (2 if grad.flatten()[0] > 1 else 1))


class Emptying(Each):
    """Fills an array that is there already."""

    def move(self, p, grad, state, group):
        p.sub_(state["average"].add_(grad), alpha=group["lr"])
        torch.zeros(p.shape, dtype=p.dtype, out=state["average"])


class Filling(Each):
    """Makes an array of one value, which lies otherwise than a parameter of four dimensions."""

    def move(self, p, grad, state, group):
        state["average"].add_(grad)
        form = torch.channels_last if p.dim() == 4 else torch.preserve_format
        least = torch.full_like(p, group["lr"], memory_format=form)
        p.sub_(torch.max(state["average"], least), alpha=0.1)


class Bounded(Each):
    """Has a bound that is a tensor: of two zeros, it is what is left of a gradient of -0."""

    def move(self, p, grad, state, group):
        state["average"].copy_(grad.clamp_min(torch.tensor(0.0, dtype=p.dtype)))
        p.add_(state["average"], alpha=-group["lr"])


class BothBetas(Each):
    """Has options that are called what torch's operators call parts of another."""

    def __init__(self, params, lr=0.1, betas=(0.9, 0.99), beta1=0.9, beta2=0.99):
        torch.optim.Optimizer.__init__(
            self, params, {"lr": lr, "betas": betas, "beta1": beta1, "beta2": beta2}
        )

    def move(self, p, grad, state, group):
        state["average"].mul_(group["beta1"]).add_(grad, alpha=1 - group["betas"][0])
        p.sub_(state["average"], alpha=group["lr"] * group["beta2"] * group["betas"][1])


class Wrapping(Each):
    """Lets another optimizer have its groups and states."""

    def __init__(self, params, lr=0.1):
        self.inner = torch.optim.Adam(params, lr=lr)
        self.defaults = self.inner.defaults

    param_groups = property(lambda self: self.inner.param_groups)
    state = property(lambda self: self.inner.state)

    def step(self, closure=None):
        return self.inner.step(closure)

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, state_dict):
        self.inner.load_state_dict(state_dict)


class Tensors(Each):
    """Keeps its rate as a tensor."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, torch.tensor(lr))
        for group in self.param_groups:
            group["lr"] = torch.as_tensor(group["lr"])

    def move(self, p, grad, _, group):
        p.sub_(grad * group["lr"])


class ByPlace(Counting):
    """Goes by a parameter's place in the group from its twentieth step on."""

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for i, p in enumerate(group["params"]):
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state["average"] = torch.zeros_like(p)
                    late = self.is_other(i, group["params"]) and group["step"] > 20
                    state["average"].mul_(group["beta"]).add_(p.grad)
                    p.sub_(state["average"], alpha=group["lr"] * (2 if late else 1))

    def is_other(self, i, _):
        return i > 0


class ByLength(ByPlace):
    """Goes by how many parameters there are."""

    def is_other(self, _, params):
        return len(params) > 1


class ByGradients(ByPlace):
    """Goes by how many have gradients."""

    def is_other(self, _, params):
        return sum(p.grad is not None for p in params) > 1


class Asking(Each):
    """Takes each parameter to have a gradient."""

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None
        for group in self.param_groups:
            grads = [p.grad * 2 for p in group["params"]]
            for p, grad in zip(group["params"], grads, strict=True):
                p.sub_(grad, alpha=group["lr"])
                self.state[p]
