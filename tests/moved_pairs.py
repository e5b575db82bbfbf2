"""An optimizer by optplug and by the torch of this process, whatever that is: see `moved`."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook

from optplug import ctypes_api

if TYPE_CHECKING:
    from moved import Change

lib = ctypes_api.load()
STEPS = 14
#: How many values parameters have: several short ones, and one longer than a block.
SIZES = [(n,) for n in (7, 100, 3, 64, 1, 33, 500, 12, 9)], [(20_000,)]


def compare(spec: str, change: Change) -> str:
    """Step both, change options in the middle, and say how optplug's steps are made; no bit may differ."""
    ways = []
    handle = register_optimizer_step_post_hook(_halve) if change.is_hooked else None
    for shapes, plans in zip(SIZES, ("direct", "stable"), strict=True):
        assert lib.opt_init(f"plans='{plans}'".encode()) == 0, lib.opt_error()
        pair = _Pair(spec, shapes, change)
        for i in range(STEPS):
            if i % (STEPS // 2) == 0:
                pair.schedule()
            if i == STEPS // 2:
                pair.set(change.options)
            pair.step()
            pair.compare(i)
        ways.append(pair.way())
        pair.end()
    if handle:
        handle.remove()
    return " | ".join(ways)


def _halve(optimizer: torch.optim.Optimizer, *_: object) -> None:
    with torch.no_grad():
        torch._foreach_mul_(optimizer.param_groups[0]["params"], 0.5)


def _arguments(text: str) -> tuple[str, dict[str, Any], tuple[Any, ...]]:
    """Read this folder's own text."""
    name, _, arguments = text.partition("(")
    functions = {"get_ema_multi_avg_fn": swa_utils.get_ema_multi_avg_fn}
    positional, named = eval(f"(lambda *a, **k: (a, k))({arguments}", functions)  # noqa: S307
    return name, named, positional


class _Pair:
    def __init__(self, spec: str, shapes, change: Change) -> None:
        self.change = change
        self.generator = torch.Generator().manual_seed(1)
        self.opt = lib.opt_create(spec.encode())
        assert self.opt > 0, lib.opt_error()
        self.ours, self.theirs = [], []
        for i, shape in enumerate(shapes):
            value = torch.randn(shape, generator=self.generator)
            self.ours.append((value, torch.zeros(shape)))
            p = torch.nn.Parameter(value.clone())
            p.grad = torch.zeros(shape)
            self.theirs.append(p)
            where = (self.opt, f"p{i}".encode(), b"float32", value.numel())
            assert lib.opt_bind(*where, value.data_ptr(), self.ours[-1][1].data_ptr()) == 0, lib.opt_error()
        name, given, _ = _arguments(spec)
        if "fused=True" in self.described():
            given["fused"] = True
        self.reference = getattr(torch.optim, name)(self.theirs, **given)
        self.has_closure = name == "LBFGS"
        self.scheduler = self.average = None
        if change.average:
            _, options, _ = _arguments(change.average)
            self.average = swa_utils.AveragedModel(torch.nn.ParameterList(self.theirs), **options)
            assert lib.opt_average(self.opt, change.average.encode()) == 0, lib.opt_error()
        self.scale = torch.tensor(4.0) if change.is_scaled else None
        if self.scale is not None:
            assert lib.opt_grad_scale(self.opt, self.scale.data_ptr(), None) == 0, lib.opt_error()
            if given.get("fused"):
                self.reference.grad_scale = self.reference.loss_scale = self.scale

    def schedule(self) -> None:
        """Attach a scheduler in the place of the one that is there."""
        text = self.change.schedule
        if not text:
            return
        if self.scheduler:
            self.reference = self.rebuilt()
            assert lib.opt_schedule(self.opt, None) == 0, lib.opt_error()
        if lib.opt_schedule(self.opt, text.encode()) == 0:
            name, options, positional = _arguments(text)
            self.scheduler = getattr(lr_scheduler, name)(self.reference, *positional, **options)
        else:
            assert b"which optplug does not know" in lib.opt_error(), lib.opt_error()

    def rebuilt(self) -> torch.optim.Optimizer:
        """Return the reference as it is, without what a scheduler has left there."""
        (group,) = self.reference.param_groups
        kept = {key: group[key] for key in self.reference.defaults}
        other = type(self.reference)(self.theirs, **{"lr": kept["lr"]})
        other.param_groups[0].update(kept)
        other.state = self.reference.state
        return other

    def described(self) -> str:
        return lib.opt_describe(self.opt).decode()

    def way(self) -> str:
        return next(line for line in self.described().splitlines() if line.startswith("step:"))

    def set(self, text: str) -> None:
        if lib.opt_set(self.opt, -1, text.encode()) == 0:
            self.reference.param_groups[0].update(eval(f"dict({text})", {}))  # noqa: S307
        else:
            assert b"no option" in lib.opt_error(), lib.opt_error()

    def step(self) -> None:
        if self.has_closure:
            self.step_closure()
            return
        for (_, grad), p in zip(self.ours, self.theirs, strict=True):
            grad.copy_(torch.randn(grad.shape, generator=self.generator))
            p.grad.copy_(grad)
            if self.scale is not None and not self.reference.param_groups[0].get("fused"):
                p.grad.div_(self.scale)
        self.reference.step()
        assert lib.opt_step(self.opt) == 0, lib.opt_error()
        if self.average:
            self.average.update_parameters(torch.nn.ParameterList(self.theirs))
        if self.scheduler:
            self.scheduler.step()
            assert lib.opt_schedule_step(self.opt) == 0, lib.opt_error()

    def step_closure(self) -> None:
        def loss(values, grads) -> float:
            with torch.no_grad():
                total = 0.0
                for value, grad in zip(values, grads, strict=True):
                    grad.copy_(value * 2 + value.sin())
                    total += float((value.square() - value.cos()).sum())
            return total

        @ctypes_api.CALLBACK
        def closure(_, result):
            result[0] = loss(*zip(*self.ours, strict=True))
            return 0

        first = ctypes.c_double()
        expected = self.reference.step(lambda: loss(self.theirs, [p.grad for p in self.theirs]))
        assert lib.opt_step_closure(self.opt, closure, None, first) == 0, lib.opt_error()
        assert first.value == float(expected)

    def compare(self, i: int) -> None:
        for (value, _), p in zip(self.ours, self.theirs, strict=True):
            assert torch.equal(value, p.detach()), f"step {i} is wrong: {self.described()}"
        for k, average in enumerate(self.average.parameters() if self.average else ()):
            found = torch.empty_like(average)
            assert lib.opt_average_get(self.opt, f"p{k}".encode(), found.data_ptr()) == 0, lib.opt_error()
            assert torch.equal(found, average.detach()), f"the average of step {i} is wrong"

    def end(self) -> None:
        assert lib.opt_free(self.opt) == 0
