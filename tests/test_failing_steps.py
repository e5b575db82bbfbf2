"""Steps that PyTorch's own arithmetic ends in the middle: an error, and nothing has changed.

A class divides by one minus a power of a hyperparameter, or hands a rate to a kernel that cannot hold it,
after it has changed a parameter or its state.  Schedules set such values where no constructor judges them.
"""

from __future__ import annotations

import functools
import io

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
    try:
        torch.optim.ASGD([torch.ones(1)], lambd=-2.0)
    except ValueError:
        pytest.skip("PyTorch refuses such a number, since 2.15")
    bound = Bound("ASGD(lr=0.1, lambd=-2.0)", None)
    for i in range(4):
        bound.step(i)
    must_fail(bound, 4, "ZeroDivisionError")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_sparse_gradients_to_which_a_schedule_adds_momentum(dtype):
    grads = [np.full((2, 2), 0.5, dtype), np.full(3, 0.5, dtype)]
    count, rows = np.array([2]), np.array([1, 3])

    def make() -> tuple[Optimizer, list[np.ndarray]]:
        opt, values = Optimizer("SGD(lr=2.0)"), [np.ones((6, 2), dtype), np.ones(3, dtype)]
        opt.bind("dense", values[1], grads[1])
        opt.bind_sparse("sparse", values[0], count, rows, grads[0])
        opt.schedule("OneCycleLR(max_lr=2.0, total_steps=30)")
        return opt, values

    opt, values = make()
    tensors = [torch.nn.Parameter(torch.ones(value.shape, dtype=getattr(torch, dtype))) for value in values]
    plain = torch.optim.SGD(tensors, lr=2.0, foreach=False, fused=False)
    schedule = torch.optim.lr_scheduler.OneCycleLR(plain, max_lr=2.0, total_steps=30)
    tensors[0].grad = torch.sparse_coo_tensor(rows[None], grads[0], values[0].shape, check_invariants=True)
    tensors[1].grad = torch.tensor(grads[1])
    for step in range(4):
        before = [value.tobytes() for value in values]
        try:
            plain.step()
        except NotImplementedError:
            assert (dtype, step) == ("float16", 1)
            with pytest.raises(Error, match="not implemented for 'Half'"):
                opt.step()
            assert [value.tobytes() for value in values] == before
            other, others = make()  # which does not try that step: no file can have the state
            for _ in range(step):
                other.step()
                other.schedule_step()
            for one in (opt, other):
                one.set(-1, "momentum=0")
                one.step()
            assert [value.tobytes() for value in values] == [value.tobytes() for value in others]
            break
        opt.step()
        schedule.step()
        opt.schedule_step()
        for value, tensor in zip(values, tensors, strict=True):
            assert value.tobytes() == tensor.detach().numpy().tobytes()
    else:
        assert dtype == "float32"


@pytest.mark.parametrize("by_schedule", [True, False])
def test_a_rate_in_the_state_that_half_precision_cannot_hold(by_schedule):
    factor, opt = [1.0], Optimizer("ASGD(lr=0.5)")
    values, grads = [np.ones(3, "float16") for _ in "ab"], [np.ones(3, "float16") for _ in "ab"]
    for name, value, grad in zip("ab", values, grads, strict=True):
        opt.bind(name, value, grad)
    if by_schedule:
        opt.schedule("LambdaLR()", lambda *_: factor[0])

    def set_rate(rate: float) -> None:
        if by_schedule:
            factor[0] = rate / 0.5
            opt.schedule_step()
        else:
            opt.set_value(-1, "lr", rate)

    opt.step()
    set_rate(1e9)
    opt.step()  # which computes the next step's rate
    set_rate(0.5)
    before = [value.tobytes() for value in values], opt.save_memory()
    with pytest.raises(Error, match="cannot be converted to type c10::Half without overflow"):
        opt.step()
    assert ([value.tobytes() for value in values], opt.save_memory()) == before


@pytest.mark.parametrize("steps", [1, 5])
def test_a_schedule_that_gives_a_momentum_to_a_group_without_its_memory(steps):
    bound = Bound("RMSprop(lr=0.5, momentum=0.5)", None)
    opt, values = Optimizer("RMSprop(lr=0.5, momentum=0.5)"), bound.values
    opt.bind("w0", values[0], bound.grads[0])
    opt.group("momentum=0.0")
    opt.bind("w1", values[1], bound.grads[1])
    bound.opt = opt
    for i in range(steps):
        bound.step(i)
    opt.schedule("CyclicLR(base_lr=0.1, max_lr=0.5, step_size_up=4)")
    must_fail(bound, steps, "momentum_buffer")
    opt.set(1, "momentum=0")
    bound.step(steps + 1)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_loaded_decay_of_weights_that_sparse_gradients_do_not_bear(steps):
    opt, values = Optimizer("SGD(lr=0.5)"), [np.ones(3, "float32"), np.ones((6, 2), "float32")]
    opt.bind("dense", values[0], np.ones(3, "float32"))
    opt.bind_sparse("sparse", values[1], np.array([2]), np.array([1, 3]), np.ones((2, 2), "float32"))
    for _ in range(steps):
        opt.step()
    content, file = torch.load(io.BytesIO(opt.save_memory()), weights_only=True)["optimizer"], io.BytesIO()
    content["param_groups"][0]["weight_decay"] = 0.1
    torch.save(content, file)
    opt.load_memory(file.getvalue())
    before = [value.tobytes() for value in values], opt.save_memory()
    with pytest.raises(Error, match="sparse"):
        opt.step()
    assert ([value.tobytes() for value in values], opt.save_memory()) == before


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("spec", ["Adamax()", "Adam(fused=False)", "SGD(foreach=True)"])
def test_a_scale_is_not_taken_out_of_the_gradients_of_a_step_that_fails(spec, steps):
    factor = 1.0 if steps else 1e45
    bound, other, scale = Bound(spec, factor=factor), Bound(spec, factor=factor), np.array([4.0], "float32")
    for one in (bound, other):
        one.opt.grad_scale(scale)
        for i in range(steps):
            one.step(i)
        if steps:
            one.schedule(1e45)
    must_fail(bound, steps, "value cannot be converted to type float without overflow")
    grads = [grad.copy() for grad in bound.grads]
    other.fill(steps)
    for mine, its in zip(grads, other.grads, strict=True):
        assert mine.tobytes() == its.tobytes()
    for one in (bound, other):
        one.opt.set(-1, "lr=0.01")
        one.opt.step()  # with the same gradients
    for mine, its in zip(bound.values, other.values, strict=True):
        assert mine.tobytes() == its.tobytes()
