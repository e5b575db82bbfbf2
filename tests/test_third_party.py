"""Optimizers that are not PyTorch's, by their module."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from hosts import STATUSES
from optplug import _bridge, ctypes_api

lib = ctypes_api.load()
OPT_EINVAL = STATUSES["OPT_EINVAL"]

MODULE = """
import torch

class Sign(torch.optim.Optimizer):
    def __init__(self, params, lr=0.5):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign() * group["lr"])
        if closure is not None:
            return closure()

class RMSprop(Sign):
    pass

no_optimizer = dict

class Wide(Sign):
    def __init__(self, params, lr=0.5, **kwargs):
        torch.optim.Optimizer.__init__(self, params, {"lr": lr, "scale": kwargs.get("scale", 1.0)})
"""


@pytest.fixture
def allowed(tmp_path, monkeypatch):
    """A module of that name, and leave to import it."""
    (tmp_path / "somebodys_optimizers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    assert lib.opt_init(b"third_party=True") == 0
    yield
    assert lib.opt_init(b"third_party=False") == 0


def bound(values: torch.Tensor, grads: torch.Tensor) -> int:
    opt = lib.opt_create(b"somebodys_optimizers:Sign(lr=0.25)")
    assert opt > 0, lib.opt_error()
    assert lib.opt_bind(opt, b"w", b"float32", len(values), values.data_ptr(), grads.data_ptr()) == 0
    return opt


@pytest.mark.usefixtures("allowed")
def test_a_name_like_one_of_torchs_makes_no_class_torchs():
    values, grads = torch.zeros(12, 3), torch.ones(12, 3)
    opt = lib.opt_create(b"somebodys_optimizers:RMSprop()")
    for i, (value, grad) in enumerate(zip(values, grads, strict=True)):
        assert lib.opt_bind(opt, str(i).encode(), b"float32", 3, value.data_ptr(), grad.data_ptr()) == 0
    assert lib.opt_step(opt) == 0, lib.opt_error()
    assert values.unique().tolist() == [-0.5]
    assert lib.opt_free(opt) == 0


@pytest.mark.usefixtures("allowed")
def test_it_steps_and_takes_schedules_as_torchs_own_do():
    values, grads = torch.zeros(3), torch.tensor([3.0, -0.1, 0.0])
    opt = bound(values, grads)
    assert lib.opt_schedule(opt, b"StepLR(1, gamma=0.5)") == 0
    assert lib.opt_step(opt) == 0
    assert lib.opt_schedule_step(opt) == 0
    assert lib.opt_step(opt) == 0
    assert values.tolist() == [-0.375, 0.375, 0.0]
    assert lib.opt_free(opt) == 0


@pytest.mark.usefixtures("allowed")
def test_a_closure_that_fails_after_it_has_moved_is_undone():
    values, grads = torch.zeros(1), torch.ones(1)
    opt = bound(values, grads)
    fail = ctypes_api.CALLBACK(lambda _, __: -9)
    assert lib.opt_step_closure(opt, fail, None, None) == -9
    assert values.tolist() == [0.0]
    assert lib.opt_free(opt) == 0


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (b"somebodys_optimizers:Sing()", b"somebodys_optimizers:Sing cannot be imported"),
        (b"nobodys_optimizers:Sign()", b"No module named 'nobodys_optimizers'"),
        (b"somebodys_optimizers:no_optimizer()", b"is not a torch.optim.Optimizer"),
        (b"somebodys_optimizers:Sign(rate=1)", b"no argument of Sign 'rate': there are lr"),
    ],
)
def test_what_cannot_be_had_is_an_error(spec, words):
    assert lib.opt_create(spec) == -1
    assert words in lib.opt_error()


def test_without_leave_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert lib.opt_create(b"trap:Sign()") == -1
    assert b'allow it with opt_init("third_party=True")' in lib.opt_error()


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Two modules, and leave to import one of them."""
    for name in ("somebodys_optimizers", "somebodys_other"):
        (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    assert lib.opt_init(b"third_party=['somebodys_optimizers']") == 0, lib.opt_error()
    yield
    assert lib.opt_init(b"third_party=False") == 0


@pytest.mark.usefixtures("named")
def test_only_packages_that_are_named_are_imported():
    sys.modules.pop("somebodys_other", None)
    for module in (b"somebodys_other", b"somebodys_optimizers_too", b"os"):
        assert lib.opt_create(module + b":Sign()") == OPT_EINVAL
        expected = b"opt_init(\"third_party=['somebodys_optimizers', '%b']\")" % module
        assert expected in lib.opt_error()
    assert "somebodys_other" not in sys.modules
    opt = lib.opt_create(b"somebodys_optimizers:Sign()")
    assert opt > 0, lib.opt_error()
    assert lib.opt_free(opt) == 0
    assert b"\nthird_party: ['somebodys_optimizers']\n" in lib.opt_describe(0)


@pytest.mark.parametrize("value", ["[]", "['']", "[1]", "'lion'", "['a-b']", "None", "{}", "['a', print()]"])
def test_packages_are_a_list_of_names(value):
    assert lib.opt_init(f"third_party={value}".encode()) == OPT_EINVAL
    assert b"third_party must be True, False or a list of packages" in lib.opt_error()


@pytest.mark.usefixtures("allowed")
def test_further_arguments_reach_a_class_by_their_names():
    opt = lib.opt_create(b"somebodys_optimizers:Wide(scale=2.0)")
    assert opt > 0, lib.opt_error()
    assert lib.opt_warning() == b""
    assert _bridge.optimizer_of(opt).recipe.arguments == {"scale": 2.0}
    assert lib.opt_free(opt) == 0
    with pytest.warns(UserWarning, match="option 'scael': nothing in somebodys_optimizers mentions it"):
        opt = lib.opt_create(b"somebodys_optimizers:Wide(scael=2.0)")
    assert opt > 0, lib.opt_error()
    assert lib.opt_free(opt) == 0


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("value", ["print()", "[print()]", "(1, SGD())", "{'a': print()}"])
def test_a_call_is_no_value(value):
    assert lib.opt_create(f"somebodys_optimizers:Wide(scale={value})".encode()) == OPT_EINVAL
    assert b"scale must be a literal" in lib.opt_error()


@pytest.mark.usefixtures("allowed")
def test_numbers_that_are_none_have_their_names():
    opt = lib.opt_create(b"somebodys_optimizers:Wide(scale=-inf, lr=nan)")
    assert opt == OPT_EINVAL
    assert b"lr must be finite, got nan" in lib.opt_error()
    opt = lib.opt_create(b"somebodys_optimizers:Wide(scale=(-inf, Inf))")
    assert opt > 0, lib.opt_error()
    assert _bridge.optimizer_of(opt).recipe.arguments == {"scale": (-math.inf, math.inf)}
    assert lib.opt_free(opt) == 0
