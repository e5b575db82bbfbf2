"""An optimizer by optplug and by the torch of this process, whatever that is: see `moved`."""

from __future__ import annotations

import ctypes

import torch

from optplug import ctypes_api

lib = ctypes_api.load()
STEPS = 14
#: How many values parameters have: enough of them that a foreach is worth it, and one longer than a block.
SIZES = [(n,) for n in (7, 100, 3, 64, 1, 33, 500, 12, 9)], [(20_000,)]


def compare(spec: str, options: str) -> str:
    """Step both, change options in the middle, and say how optplug's steps are made; no bit may differ."""
    ways = []
    for shapes, plans in zip(SIZES, ("direct", "stable"), strict=True):
        assert lib.opt_init(f"plans='{plans}'".encode()) == 0, lib.opt_error()
        pair = _Pair(spec, shapes)
        for i in range(STEPS):
            if i == STEPS // 2:
                pair.set(options)
            pair.step()
            pair.compare(i)
        ways.append(pair.way())
        pair.end()
    return " | ".join(ways)


class _Pair:
    def __init__(self, spec: str, shapes) -> None:
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
        name, _, arguments = spec.partition("(")
        given = eval(f"dict({arguments}", {})  # noqa: S307 - this folder's own text
        if "fused=True" in self.described():
            given["fused"] = True
        self.reference = getattr(torch.optim, name)(self.theirs, **given)
        self.has_closure = name == "LBFGS"

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
        self.reference.step()
        assert lib.opt_step(self.opt) == 0, lib.opt_error()

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

    def end(self) -> None:
        assert lib.opt_free(self.opt) == 0
