"""Optimizers that are not PyTorch's, by their module."""

from __future__ import annotations

import pytest
import torch

from optplug import ctypes_api

lib = ctypes_api.load()

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
    assert b'allow that with opt_init("third_party=True")' in lib.opt_error()
