"""An optimizer that steps by plans, and its like in plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from optplug import _bridge, ctypes_api

lib = ctypes_api.load()


@pytest.fixture
def direct_plans():
    """Let plans run as in hosts that are no Python."""
    assert lib.opt_init(b"plans='direct'") == 0
    yield
    assert lib.opt_init(b"plans=True") == 0


ROUTES = ["plans='direct'", "plans='stable'"]

OPTIMIZERS = [
    "Adam(lr=0.1)",
    "Adam(lr=0.1, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.01, amsgrad=True, maximize=True)",
    "Adam(lr=0.1, weight_decay=0.1, decoupled_weight_decay=True)",
    "AdamW(lr=0.1)",
    "AdamW(lr=1, weight_decay=0.1, amsgrad=True, maximize=True)",
    "SGD(lr=0.1)",
    "SGD(lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01)",
    "SGD(lr=0.1, momentum=0.9, nesterov=True, maximize=True)",
    "Adagrad(lr=0.1)",
    "Adagrad(lr=0.1, lr_decay=0.01, weight_decay=0.01, initial_accumulator_value=0.1, maximize=True)",
]

FUSED_DTYPES = ["float16", "bfloat16", "float32", "float64"]


def fused_sgd_steps(dtype: str) -> bool:
    """By hand: torch 2.13's fused SGD leaves 96 of these 100 as they are in half precision."""
    p = torch.nn.Parameter(torch.ones(100, dtype=getattr(torch, dtype)))
    p.grad = torch.ones_like(p)
    torch.optim.SGD([p], lr=0.5, fused=True).step()
    return bool((p == 0.5).all())


FUSED_SGD_DTYPES = [dtype for dtype in FUSED_DTYPES if fused_sgd_steps(dtype)]


class Twins:
    """One optimizer by optplug and one by torch, over parameters of these dtypes and sizes, in groups."""

    fused = True  # the reference's

    def __init__(self, text, *groups):
        self.generator = torch.Generator().manual_seed(1)
        self.opt = lib.opt_create(text.encode())
        assert self.opt > 0, lib.opt_error()
        self.ours, self.theirs = [], []
        options = []
        for i, parameters in enumerate(groups):
            if i:
                assert lib.opt_group(self.opt, b"lr=0.25") == 0
            options.append({"params": [], **({"lr": 0.25} if i else {})})
            for dtype, n in parameters:
                value = torch.randn(n, generator=self.generator).to(getattr(torch, dtype))
                self.ours.append((value, torch.zeros_like(value)))
                p = torch.nn.Parameter(value.clone())
                p.grad = torch.zeros_like(value)
                self.theirs.append(p)
                options[-1]["params"].append(p)
                assert self.bind(len(self.ours) - 1) == 0, lib.opt_error()
        name, _, arguments = text.partition("(")
        arguments = eval(f"dict({arguments}", {})  # noqa: S307 - this file's own text
        self.reference = getattr(torch.optim, name)(
            options, **arguments, **({"fused": True} if self.fused else {})
        )

    def bind(self, i) -> int:
        value, grad = self.ours[i]
        dtype = str(value.dtype).removeprefix("torch.").encode()
        name = f"p{i}".encode()
        return lib.opt_bind(self.opt, name, dtype, len(value), value.data_ptr(), grad.data_ptr())

    def draw(self):
        for (_, grad), p in zip(self.ours, self.theirs, strict=True):
            p.grad.copy_(torch.randn(len(grad), generator=self.generator))
            grad.copy_(p.grad)

    def step(self):
        self.draw()
        self.reference.step()
        assert lib.opt_step(self.opt) == 0, lib.opt_error()
        self.compare()

    def compare(self):
        for (value, _), p in zip(self.ours, self.theirs, strict=True):
            assert torch.equal(value, p), self.described()

    def described(self) -> str:
        return lib.opt_describe(self.opt).decode()

    def is_planned(self) -> bool:
        return "without Python" in self.described()

    def state(self) -> list[dict]:
        optimizer = _bridge.optimizer_of(self.opt)
        return [optimizer.run.built.state[p.tensor] for p in optimizer.parameters]

    def end(self):
        """Compare what else there is, and free."""
        for ours, p in zip(self.state(), self.theirs, strict=True):
            theirs = self.reference.state[p]
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                if key == "momentum_buffer" and p.element_size() == 2:
                    continue  # torch 2.13 leaves some of its last values to chance, and makes no use of them
                assert value is None or torch.equal(ours[key], value), key
        assert lib.opt_free(self.opt) == 0


class UnfusedTwins(Twins):
    """Twins whose steps are no operator of torch's."""

    fused = False
