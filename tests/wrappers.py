"""Optimizers outside torch.optim that are made of others, of models, of dtypes, as those of packages are."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from somebodys import Somebodys


class Slow(torch.optim.Optimizer):
    """Wraps an optimizer whose groups are its own, as Lookahead does, and is no more than its methods."""

    def __init__(self, optimizer: torch.optim.Optimizer, k=2, **kwargs):
        if isinstance(optimizer, type):
            optimizer = optimizer(kwargs.pop("params"), **kwargs)
        self.optimizer, self.k, self.count = optimizer, k, 0
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}
        self.defaults = {"slow_k": k, **optimizer.defaults}
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        self._patch_step_function()

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def state(self):
        return self.optimizer.state

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        self.count += 1
        if self.count % self.k == 0:
            every = [p for group in self.param_groups for p in group["params"]]
            for p, slow in zip(every, self.slow, strict=True):
                slow.lerp_(p, 0.5)
                p.copy_(slow)
        if any(p.isnan().any() for group in self.param_groups for p in group["params"]):
            raise AssertionError
        return loss

    def state_dict(self):
        return {"inner": self.optimizer.state_dict(), "slow": list(self.slow), "count": self.count}

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state["inner"])
        self.slow, self.count = [t.clone() for t in state["slow"]], state["count"]


class Either(Slow):
    """Takes parameters as well, as Magma does."""

    def __init__(self, optimizer: torch.optim.Optimizer | Iterable[torch.Tensor], k=2, lr=0.1):
        if not isinstance(optimizer, torch.optim.Optimizer):
            optimizer = torch.optim.SGD(optimizer, lr=lr)
        super().__init__(optimizer, k)


class Sharp(Somebodys):
    """Makes an optimizer of a class, with what is left over for it, and asks for gradients elsewhere."""

    def __init__(self, params, base_optimizer, rho=0.05, **kwargs):
        torch.optim.Optimizer.__init__(self, params, {"rho": rho, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups, self.state = self.base_optimizer.param_groups, self.base_optimizer.state

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.base_optimizer.param_groups, self.base_optimizer.state = self.param_groups, self.state

    @torch.no_grad()
    def step(self, closure=None):
        if closure is None:
            raise ValueError("Sharp requires closure")
        first = [p.clone() for p, _ in self.all()]
        for p, group in self.all():
            p.add_(p.grad, alpha=group["rho"])
        loss = closure()
        for (p, _), value in zip(self.all(), first, strict=True):
            p.copy_(value)
        self.base_optimizer.step()
        return loss


class Beside:
    """Wraps an optimizer and is none of torch's, as schedulefree's wrapper."""

    def __init__(self, base: torch.optim.Optimizer, weight=0.5):
        self.base, self.weight = base, weight

    @property
    def param_groups(self):
        return self.base.param_groups

    @property
    def state(self):
        return self.base.state

    def zero_grad(self, set_to_none=True):
        self.base.zero_grad(set_to_none)

    def state_dict(self):
        return self.base.state_dict()

    def load_state_dict(self, state):
        self.base.load_state_dict(state)

    @torch.no_grad()
    def step(self, closure=None):
        before = [p.clone() for group in self.param_groups for p in group["params"]]
        loss = self.base.step(closure)
        every = [p for group in self.param_groups for p in group["params"]]
        for p, value in zip(every, before, strict=True):
            p.lerp_(value, self.weight)
        return loss


class Modelled(Somebodys):
    """Takes a model, and has a group for each parameter, by its name, as AdamMini does."""

    def __init__(self, model, lr=0.1, momentum=0.9):
        groups = [
            {"params": [p], "decay": 0.0 if name.endswith("1") else 0.25}
            for name, p in model.named_parameters()
        ]
        super().__init__(groups, lr, momentum)
        self.model = model

    def move(self, p, group):
        p.mul_(1 - group["lr"] * group["decay"])
        super().move(p, group)


class Named(Somebodys):
    """Takes parameters with their names."""

    def __init__(self, named_parameters, lr=0.1, momentum=0.9):
        pairs = list(named_parameters)
        super().__init__([p for _, p in pairs], lr, momentum)
        self.names = [name for name, _ in pairs]

    def direction(self, p, group):
        every = [q for q, _ in self.all()]
        index = next(i for i, q in enumerate(every) if q is p)
        return super().direction(p, group) * (3 if self.names[index] == "w1" else 1)


class Both(Somebodys):
    """Takes a model besides its parameters, and an optimizer on the same."""

    def __init__(self, params, optimizer, model, lr=0.1):
        super().__init__(params, lr)
        self.optimizer = optimizer
        self.count = len(list(model.named_parameters()))
        self.state, self.param_groups = optimizer.state, optimizer.param_groups

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)
        self.state, self.param_groups = self.optimizer.state, self.optimizer.param_groups

    def step(self):
        self.optimizer.step()
        with torch.no_grad():
            for p, _ in self.all():
                p.mul_(1 - 0.01 * self.count)


class Typed(Somebodys):
    """Keeps its state in a dtype of the user's."""

    def __init__(self, params, lr=0.1, momentum=0.9, kind=torch.float32, **kwargs):
        super().__init__(params, lr, momentum)
        self.kind = kwargs.pop("other_kind", kind)

    def direction(self, p, group):
        state = self.state[p]
        before = state.get("before", torch.zeros_like(p, dtype=self.kind))
        state["before"] = (before * group["momentum"]).to(self.kind) + p.grad.to(self.kind)
        return state["before"].to(p.dtype) * group["lr"]


class Late(Somebodys):
    """Has no rate before its first step."""

    def __init__(self, params, lr=None, momentum=0.9):
        super().__init__(params, lr, momentum)

    def move(self, p, group):
        if group["lr"] is None:
            group["lr"] = 0.1
        super().move(p, group)


class LateTensor(Late):
    """The same with a tensor, as Adafactor of timm."""

    def move(self, p, group):
        if group["lr"] is None:
            group["lr"] = torch.tensor(0.1)
        super().move(p, group)


class Seldom(Somebodys):
    """Draws random numbers in some steps, and none in the first two."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.count = 0

    def step(self, closure=None):
        self.count += 1
        return super().step(closure)

    def direction(self, p, group):
        return super().direction(p, group) * (torch.rand_like(p) if self.count % 3 == 0 else 1)


class Unlike(Somebodys):
    """Takes all options of its groups for arguments, and goes back from the loss, as torchmin does."""

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
            loss.backward()
        for group in self.param_groups:
            self.descend(**{k: v for k, v in group.items() if k != "params"})
        return loss

    def descend(self, lr, momentum):
        for p, _ in self.all():
            p.sub_(p.grad, alpha=lr * momentum)
