"""Which steps of classes outside torch run as records, and that they stay those of the class."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

import recordable
from optplug import _bridge, ctypes_api
from optplug.ctypes_api import Optimizer
from planned_twins import direct_plans  # noqa: F401 (pytest finds the fixture here)

lib = ctypes_api.load()
#: The last is so small that many throw-away parameters prove its steps.
SHAPES = (1500,), (37, 41), (3,)
RECORDED = ["Lion", "Counting", "Listed", "OfOldCode", "OfItsOwn", "Asking"]
NOT_RECORDED = {
    "ByShape": "torch.sum is not understood",
    "Hidden": "a step changes what the optimizer holds",
    "Rolling": "",
    "Remembering": "",
    "Thresholds": "torch.__getitem__ is not understood",
    "Emptying": "torch.zeros is not understood (into an array that was there before)",
    "Bounded": "torch.clamp_min is not understood (a bound is a tensor)",
    "ByPlace": "its steps go by a parameter's place in its group",
    "ByLength": "its steps go by a parameter's place in its group",
    "ByGradients": "its steps go by a parameter's place in its group",
}

pytestmark = pytest.mark.usefixtures("direct_plans")


@pytest.fixture(autouse=True)
def _allowed():
    assert lib.opt_init(b"third_party=True") == 0
    yield
    assert lib.opt_init(b"third_party=False") == 0


class Twins:
    """A class by its name over the host's arrays, in two groups, and in plain PyTorch."""

    module = recordable

    def __init__(self, name: str, order: str = "C", dtype: str = "float32"):
        self.generator = np.random.default_rng(1)
        self.values = [np.asarray(self.drawn(s), dtype=dtype, order=order) for s in SHAPES]
        self.grads = [np.zeros_like(v) for v in self.values]
        self.theirs = [torch.nn.Parameter(torch.from_numpy(v.copy(order="K"))) for v in self.values]
        groups = [{"params": self.theirs[:2]}, {"params": self.theirs[2:], "lr": 0.02}]
        self.plain = getattr(self.module, name)(groups)
        self.dice = random.Random(0).getstate()  # noqa: S311 (what a class draws from)
        self.name = name
        self.opt = self.bound()

    def bound(self) -> Optimizer:
        opt = Optimizer(f"{self.module.__name__}:{self.name}()")
        for i, (value, grad) in enumerate(zip(self.values, self.grads, strict=True)):
            if i == 2:
                opt.group("lr=0.02")
            opt.bind(f"p{i}", value, grad)
        return opt

    def drawn(self, shape) -> np.ndarray:
        return self.generator.standard_normal(shape)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            for grad, p in zip(self.grads, self.theirs, strict=True):
                grad[...] = self.drawn(grad.shape)
                p.grad = torch.from_numpy(grad.copy(order="K"))
            before = [g.copy() for g in self.grads]
            hosts = random.getstate()
            random.setstate(self.dice)
            self.plain.step()
            self.dice = random.getstate()
            random.setstate(hosts)
            self.opt.step()
            assert random.getstate() == hosts
            self.compare()
            assert all(np.array_equal(a, b) for a, b in zip(before, self.grads, strict=True))

    def compare(self) -> None:
        for value, p in zip(self.values, self.theirs, strict=True):
            assert value.tobytes("A") == p.detach().numpy().tobytes("A")

    def described(self) -> str:
        return self.opt.describe().split("\n")[1]

    def is_recorded(self) -> bool:
        return f"recorded {self.name} without Python" in self.described()

    def numbers(self) -> list[dict]:
        return numbers_of(_bridge.optimizer_of(self.opt._handle).run.built)


def numbers_of(optimizer: torch.optim.Optimizer) -> list[dict]:
    """Return the numbers that an optimizer keeps in Python."""
    dictionaries = [*optimizer.param_groups, *optimizer.state.values()]
    return [{k: v for k, v in d.items() if type(v) in (int, float)} for d in dictionaries]


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("name", RECORDED)
def test_element_wise_steps_have_records(name, order):
    """In both dtypes, which take turns."""
    dtype = ("float32", "float64")[(RECORDED.index(name) + (order == "F")) % 2]
    twins = Twins(name, order, dtype)
    twins.step(12)
    assert twins.is_recorded(), twins.described()
    twins.step(30)
    assert twins.is_recorded(), twins.described()


@pytest.mark.parametrize("name", NOT_RECORDED)
def test_what_only_looks_element_wise_steps_by_the_class(name):
    twins = Twins(name)
    twins.step(40)
    assert twins.described().startswith(
        f"step: recordable.{name}, by Python, since they cannot be recorded: "
    )
    assert NOT_RECORDED[name] in twins.described()


@pytest.mark.parametrize("name", RECORDED)
def test_python_sees_the_numbers_that_records_have_moved(name):
    twins = Twins(name)
    twins.step(17)
    assert twins.is_recorded()
    value = twins.opt.get(0, "lr")  # any call that goes to Python
    assert value == 0.1
    assert twins.numbers() == numbers_of(twins.plain)
    twins.opt.set(0, "lr=0.05, beta=0.8")
    twins.plain.param_groups[0].update(lr=0.05, beta=0.8)
    twins.step(17)
    assert twins.is_recorded()
    twins.opt.schedule("ExponentialLR(0.9)")
    scheduler = torch.optim.lr_scheduler.ExponentialLR(twins.plain, 0.9)
    for _ in range(9):
        twins.step()
        scheduler.step()
        twins.opt.schedule_step()
    assert twins.opt.get(0, "lr") == twins.plain.param_groups[0]["lr"]
    assert twins.numbers() == numbers_of(twins.plain)


@pytest.mark.parametrize("name", RECORDED)
def test_arrays_that_move_take_their_records_along(name):
    twins = Twins(name)
    twins.step(9)
    twins.values[0] = twins.values[0].copy()
    twins.opt.bind("p0", twins.values[0], twins.grads[0])
    twins.step(30)
    assert twins.is_recorded()
    twins.values[1] = np.asfortranarray(twins.values[1])
    twins.theirs[1].data = torch.from_numpy(twins.values[1].copy(order="K"))
    twins.opt.bind("p1", twins.values[1], twins.grads[1])
    twins.step(30)


@pytest.mark.parametrize("name", ["Wrapping", "Tensors", "Decaying", *RECORDED])
def test_a_schedule_is_saved_and_goes_on(name):
    twins = Twins(name)
    twins.opt.schedule("ExponentialLR(0.9)")
    scheduler = torch.optim.lr_scheduler.ExponentialLR(twins.plain, 0.9)
    for i in range(24):
        twins.step()
        scheduler.step()
        twins.opt.schedule_step()
        assert twins.opt.get(0, "lr") == float(twins.plain.param_groups[0]["lr"])
        if i == 11:
            content = twins.opt.save_memory()
            twins.opt.free()
            twins.opt = twins.bound()
            twins.opt.schedule("ExponentialLR(0.9)")
            twins.opt.load_memory(content)
    assert twins.is_recorded() == (name in ["Decaying", *RECORDED]), twins.described()


def test_options_are_told_from_those_with_names_like_theirs():
    twins = Twins("BothBetas")
    twins.step(9)
    assert twins.is_recorded(), twins.described()
    for name, value in [
        ("beta1", 0.5),
        ("betas[0]", 0.25),
        ("beta2", 0.75),
        ("betas[1]", 0.5),
        ("beta1", 0.1),
    ]:
        for group in twins.plain.param_groups:
            if name.endswith("]"):
                betas = list(group["betas"])
                betas[int(name[-2])] = value
                group["betas"] = tuple(betas)
            else:
                group[name] = value
        twins.opt.set_value(-1, name, value)
        assert twins.opt.get(0, name) == value
        twins.step(3)
        assert twins.is_recorded()


def test_functions_of_math_that_a_host_has_put_there_stay(monkeypatch):
    def halved(x):
        return x / 2

    monkeypatch.setattr(math, "sqrt", halved)
    twins = Twins("Counting")
    twins.step(12)
    assert math.sqrt is halved
    monkeypatch.undo()
    assert math.sqrt(16) == 4


def said_of_steps(spec: str, closure: bool = False, sparse: bool = False, scale: float = 0) -> str:
    """Step twice, and return what opt_describe says of the steps."""
    value, rows = np.ones((10, 5), dtype="float32"), np.ones((1, 5), dtype="float32")
    opt = Optimizer(spec)
    if sparse:
        opt.bind_sparse("w", value, np.array([1]), np.array([3]), rows)
    else:
        opt.bind("w", value, np.ones_like(value))
    if scale:
        opt.grad_scale(np.array([scale], dtype="float32"))
    for _ in range(2):
        if closure:
            opt.step_closure(lambda: 1.0)
        else:
            opt.step()
    [said] = [line for line in opt.describe().splitlines() if line.startswith("step:")]
    opt.free()
    return said


def test_steps_of_which_there_are_no_records_say_why():
    assert said_of_steps("RMSprop()", scale=2).endswith("by Python, since gradients are scaled")
    assert said_of_steps("SGD(momentum=0.9)", sparse=True).endswith("by Python, since a gradient is sparse")
    own = "by Python, since the class steps arrays of its own instead of yours"
    assert said_of_steps("somebodys:Replacing()").endswith(own)
    closure = "by Python, since each calls your function"
    assert said_of_steps("wrappers:Sharp(base_optimizer=SGD, lr=0.1)", closure=True).endswith(closure)


@pytest.mark.parametrize("shape", [(7, 9), (2, 3, 4, 5)])
def test_a_filled_array_that_lies_otherwise_than_its_parameter_is_not_recorded(shape):
    value = np.ones(shape, dtype="float32")
    opt = Optimizer("recordable:Filling()")
    opt.bind("w", value, np.ones_like(value))
    for _ in range(8):
        opt.step()
    said = "recorded Filling without Python" if len(shape) == 2 else "(arrays are laid out differently)"
    assert said in opt.describe()
    opt.free()
