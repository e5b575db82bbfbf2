"""Steps that PyTorch's own arithmetic ends in the middle: an error, and nothing has changed.

A class divides by one minus a power of a hyperparameter, or hands a rate to a kernel that cannot hold it,
after it has changed a parameter or its state.  Schedules set such values where no constructor judges them.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from optplug.ctypes_api import Error, Optimizer, init

SHAPES = (5, 3), (4, 2)
MOMENTUM_OF_ONE = "AdamW(foreach=True)", "Adamax()", "Adam(fused=False)", "Adam(foreach=True, amsgrad=True)"
RATE_BEYOND_FLOAT32 = (
    "Adagrad(fused=False)",
    "Adamax()",
    "Muon()",
    "NAdam()",
    "RMSprop(momentum=0.5)",
    "SGD(foreach=True, momentum=0.5)",
)


@pytest.fixture(params=["plans=True", "plans=False"], autouse=True)
def _route(request):
    init(request.param)
    yield
    init("plans=True")


class Bound:
    """An optimizer over two arrays, with a schedule that goes by a factor set here."""

    def __init__(self, spec: str, schedule: str | None = "LambdaLR()", factor: float = 1.0) -> None:
        draw = np.random.default_rng(0).standard_normal
        self.values = [np.asarray(draw(shape), dtype="float32") for shape in SHAPES]
        self.grads = [np.zeros_like(value) for value in self.values]
        self.factor, self.opt = factor, Optimizer(spec)
        for i, (value, grad) in enumerate(zip(self.values, self.grads, strict=True)):
            self.opt.bind(f"w{i}", value, grad)
        if schedule:
            self.opt.schedule(schedule, lambda *_: self.factor)

    def fill(self, i: int) -> float:
        draw = np.random.default_rng(10 + i).standard_normal
        for value, grad in zip(self.values, self.grads, strict=True):
            grad[...] = draw(value.shape) + value
        return 1.0

    def step(self, i: int, closure: bool = False) -> None:
        if closure:
            self.opt.step_closure(functools.partial(self.fill, i))
        else:
            self.fill(i)
            self.opt.step()

    def schedule(self, factor: float) -> None:
        self.factor = factor
        self.opt.schedule_step()

    def bits(self) -> bytes:
        return b"".join(value.tobytes() for value in self.values) + self.opt.save_memory()


def must_fail(bound: Bound, i: int, words: str, closure: bool = False) -> None:
    before = bound.bits()
    with pytest.raises(Error, match=words):
        bound.step(i, closure)
    assert bound.bits() == before


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("spec", MOMENTUM_OF_ONE)
def test_a_momentum_of_one_from_a_schedule_fails_before_anything_has_changed(spec, closure):
    schedule = "CyclicLR(base_lr=0.01, max_lr=0.1, step_size_up=4)"
    bound, other = Bound(spec, schedule), Bound(spec, schedule)
    for i in range(7):
        for one in (bound, other):
            one.step(i)
            one.schedule(-4 if i == 6 else 0.5)
    assert bound.opt.get(-1, "betas[0]") == 1
    must_fail(bound, 7, "ZeroDivisionError", closure)
    for one in (bound, other):  # which is possible, though no step can be made with what is in force
        one.opt.set(-1, "betas=(0.9, 0.99)")
        one.step(8)
        one.step(9)
    assert bound.bits() == other.bits()


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("spec", RATE_BEYOND_FLOAT32)
def test_a_rate_beyond_float32_fails_before_anything_has_changed(spec, steps):
    factor = 1.0 if steps else 1e45
    bound, other = Bound(spec, factor=factor), Bound(spec, factor=factor)
    for one in (bound, other):
        for i in range(steps):
            one.step(i)
        if steps:
            one.schedule(1e45)
    must_fail(bound, steps, "value cannot be converted to type float without overflow")
    for one in (bound, other):
        one.opt.set(-1, "lr=0.01")
        one.step(8)
        one.step(9)
    assert bound.bits() == other.bits()


def test_a_rate_that_falls_by_a_power_of_a_negative_number_fails_before_anything_has_changed():
    bound = Bound("ASGD(lr=0.1, lambd=-2.0)", None)
    for i in range(4):
        bound.step(i)
    must_fail(bound, 4, "ZeroDivisionError")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_sparse_gradients_to_which_a_schedule_adds_momentum(dtype):
    opt, values = Optimizer("SGD(lr=2.0)"), [np.ones((6, 2), dtype), np.ones(3, dtype)]
    grads = [np.full((2, 2), 0.5, dtype), np.full(3, 0.5, dtype)]
    count, rows = np.array([2]), np.array([1, 3])
    opt.bind("dense", values[1], grads[1])
    opt.bind_sparse("sparse", values[0], count, rows, grads[0])
    opt.schedule("OneCycleLR(max_lr=2.0, total_steps=30)")
    tensors = [torch.nn.Parameter(torch.ones(value.shape, dtype=getattr(torch, dtype))) for value in values]
    plain = torch.optim.SGD(tensors, lr=2.0, foreach=False, fused=False)
    schedule = torch.optim.lr_scheduler.OneCycleLR(plain, max_lr=2.0, total_steps=30)
    tensors[0].grad = torch.sparse_coo_tensor(rows[None], grads[0], values[0].shape, check_invariants=True)
    tensors[1].grad = torch.tensor(grads[1])
    for step in range(4):
        before = [value.tobytes() for value in values], opt.save_memory()
        try:
            plain.step()
        except NotImplementedError:
            assert (dtype, step) == ("float16", 1)
            with pytest.raises(Error, match="not implemented for 'Half'"):
                opt.step()
            assert ([value.tobytes() for value in values], opt.save_memory()) == before
            break
        opt.step()
        schedule.step()
        opt.schedule_step()
        for value, tensor in zip(values, tensors, strict=True):
            assert value.tobytes() == tensor.detach().numpy().tobytes()
    else:
        assert dtype == "float32"
