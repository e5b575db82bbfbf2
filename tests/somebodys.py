"""Optimizers outside torch.optim that do with parameters and gradients what those of packages do."""

from __future__ import annotations

import pickle
from collections import deque

import torch
from torch import Tensor

from schedule_free import ScheduleFree, ScheduleFreeElsewhere  # noqa: F401 (specs find them here)


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
        loss = closure()
        first = [p.grad for p, _ in self.all()]
        last = [p.data for p, _ in self.all()]
        for p, group in self.all():
            p.data = p.data + p.grad * group["lr"]
        self.zero_grad()
        closure()
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


class Counting(Somebodys):
    """Counts steps in tensors of its group, as optimi and Prodigy do, and goes by them."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        for group in self.param_groups:
            group["count"] = torch.tensor(0)
            group["d"] = torch.tensor(0.5, dtype=torch.float64)

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            group["count"] += 1
            group["d"] = group["d"] * 1.25
        return loss

    def direction(self, p, group):
        return super().direction(p, group) * (group["d"] / (1 + group["count"])).to(p.dtype)


class Telling(Counting):
    """Has keys of its own in its state_dict, as Ranger21 does, and state that is no parameter's."""

    scale = 1.0

    def step(self, closure=None):
        self.scale *= 1.5
        total = self.state.setdefault("total", {"steps": 0})
        total["steps"] += 1
        return super().step(closure)

    def direction(self, p, group):
        return super().direction(p, group) * self.scale / self.state["total"]["steps"]

    def state_dict(self):
        return {**super().state_dict(), "scale": self.scale}

    def load_state_dict(self, state):
        self.scale = state["scale"]
        super().load_state_dict({k: v for k, v in state.items() if k != "scale"})


class Forgetting(Somebodys):
    """Has attributes that it saves nowhere, and one that leads to parameters alone."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.count, self.trail, self.views = 0, [1.0], {}

    def step(self, closure=None):
        self.count += 1
        self.trail.append(self.trail[-1] * 0.75)
        self.views = {p: [p.data] for p, _ in self.all()}
        return super().step(closure)

    def direction(self, p, group):
        return super().direction(p, group) * self.trail[-1] / self.count


class Collecting(Somebodys):
    """Has more than tensors and numbers in its state, in dtypes that are not the parameter's."""

    def direction(self, p, group):
        state = self.state[p]
        if not state:
            state |= {
                "queue": deque(maxlen=2),
                "seen": set(),
                "sum": torch.zeros_like(p, dtype=torch.float64),
            }
            state |= {"signs": torch.zeros_like(p, dtype=torch.int8), 7: {"nested": [torch.zeros(())]}}
            group["kind"] = torch.float64
        state["seen"].add(len(state["seen"]))
        state["queue"].append(p.grad.clone())
        state["sum"] += p.grad.to(group["kind"]) / 3
        state["signs"] += p.grad.sign().to(torch.int8)
        state[7]["nested"][0] += 1
        mean = sum(state["queue"]) / len(state["queue"]) / len(state["seen"]) / state[7]["nested"][0]
        return (mean + state["sum"].to(p.dtype) / 10 + state["signs"] / 100) * group["lr"]


class Owning(Somebodys):
    """Keeps an object."""

    def direction(self, p, group):
        self.state[p].setdefault("object", Thing())
        return p.grad * group["lr"]


class Thing:
    """Whatever it is."""


class Unpickling(Somebodys):
    """Takes bytes to be a pickle, as heavyball does."""

    def state_dict(self):
        return {**super().state_dict(), "schedule": pickle.dumps("constant")}

    def load_state_dict(self, state):
        pickle.loads(state["schedule"])  # noqa: S301 (as it is there)
        super().load_state_dict({k: v for k, v in state.items() if k != "schedule"})


class Polyak(Somebodys):
    """Needs a closure and does not say so, as AliG does; takes the loss for a tensor, and returns none."""

    @torch.no_grad()
    def step(self, closure=None):
        if closure is None:
            raise ValueError("Polyak requires closure")
        loss = closure()
        assert loss.dtype in (torch.float32, torch.float64)
        square = sum((p.grad.abs() ** 2).sum() for p, _ in self.all())
        for p, group in self.all():
            p.sub_(p.grad * min(group["lr"], loss.item()) * (loss / square))


class Fused(Somebodys):
    """Has an argument of that name, and a use of its own for it; keeps state under names."""

    def __init__(self, params, lr=0.1, fused=False):
        super().__init__(params, lr)
        for group in self.param_groups:
            group["fused"] = fused

    def direction(self, p, group):
        self.state["steps"] = self.state.get("steps", torch.zeros(())) + 1
        return super().direction(p, group) * (3 if group["fused"] else 1) / self.state["steps"]


class Ignoring(Somebodys):
    """Calls no closure."""

    def step(self, closure=None):
        del closure
        super().step()


class Tensors(Somebodys):
    """Keeps its rate as a tensor, as torchao does, and takes no other."""

    def __init__(self, params, lr=0.1, momentum=0.9):
        super().__init__(params, lr, momentum)
        for group in self.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]))

    def direction(self, p, group):
        if not isinstance(group["lr"], torch.Tensor):
            raise RuntimeError("lr was changed to a non-Tensor object")
        return super().direction(p, group)


class Training(Somebodys):
    """Has methods of these names that are for something else."""

    def train(self, data):
        raise NotImplementedError

    def eval(self, data):
        raise NotImplementedError


class Choosing(Somebodys):
    """Has options in its groups that it has no arguments for: one that it needs, and one that it does not."""

    def __init__(self, params, lr=0.1, momentum=0.9):
        for group in params:
            if "use_sign" not in group:
                raise ValueError("`use_sign` must be set")
        if lr < 0:
            raise ValueError(f"invalid lr {lr}")
        super().__init__(params, lr, momentum)

    def direction(self, p, group):
        if group.get("rank", 1) < 1:
            raise ValueError("rank must be positive")
        direction = super().direction(p, group) / group.get("rank", 1)
        return direction.sign() * group["lr"] if group["use_sign"] else direction


class Wrapping(Somebodys):
    """Lets one of torch's own step for it."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.inner = torch.optim.Adam(self.param_groups)

    def step(self, closure=None):
        self.inner.step()
        return super().step(closure)

    def state_dict(self):
        return {**super().state_dict(), "inner": self.inner.state_dict()}

    def load_state_dict(self, state):
        self.inner.load_state_dict(state["inner"])
        super().load_state_dict({k: v for k, v in state.items() if k != "inner"})


class Storing(Somebodys):
    """Saves the parameters with its state, and puts them back."""

    def state_dict(self):
        return {**super().state_dict(), "values": [p.detach().clone() for p, _ in self.all()]}

    @torch.no_grad()
    def load_state_dict(self, state):
        for (p, _), value in zip(self.all(), state["values"], strict=True):
            p.copy_(value)
        super().load_state_dict({k: v for k, v in state.items() if k != "values"})


class Growing(Somebodys):
    """Has an attribute of the class that steps replace in the object."""

    scale = 1.0

    def direction(self, p, group):
        self.scale *= 1.25
        return super().direction(p, group) * self.scale


class Queueing(Somebodys):
    """Has a queue in a tuple, whose length torch's load_state_dict forgets."""

    def direction(self, p, group):
        (queue,) = self.state[p].setdefault("queues", (deque(maxlen=2),))
        queue.append(p.grad.clone())
        return sum(queue) * group["lr"]


class Inside(Tensor):
    """A tensor that is nothing but another one in it."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, *_):
        raise NotImplementedError


class Packing(Somebodys):
    """Keeps a tensor in another one, changes it in place, and replaces it now and then."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.packed, self.count = Inside(torch.ones(1)), 0

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        if self.count % 3 == 0:
            self.packed.inner = self.packed.inner.clone()
        self.packed.inner.mul_(1.5)
        super().step(closure)
        if any(p.grad.isnan().any() for p, _ in self.all()):
            raise RuntimeError("a gradient is none")

    def direction(self, p, group):
        return super().direction(p, group) * self.packed.inner


class Naming(Somebodys):
    """Has one tensor in two places of its state, and in an attribute."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.sums = []

    def direction(self, p, group):
        state = self.state[p]
        if not state:
            state["sum"] = state["all"] = torch.zeros_like(p)
            self.sums.append(state["sum"])
        state["sum"].add_(p.grad)
        self.sums[0].add_(0.5)
        return (state["all"] + state["sum"] / 3) * group["lr"]


class Learning(Somebodys):
    """Keeps a module, in which it counts."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.module = torch.nn.BatchNorm1d(1)

    def direction(self, p, group):
        self.module.num_batches_tracked += 1
        return super().direction(p, group) * self.module.num_batches_tracked


class Freeing(Somebodys):
    """Frees a gradient's memory as soon as it has used it."""

    def direction(self, p, group):
        direction = super().direction(p, group).clone()
        p.grad.untyped_storage().resize_(0)
        return direction
