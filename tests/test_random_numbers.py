"""A host in Python draws the same random numbers with our calls as without."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import hosts
from optplug import recipe
from optplug.ctypes_api import Optimizer


def states() -> tuple[object, ...]:
    """Return the states of all generators that a host may draw from."""
    kind, numbers, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), kind, numbers.tolist(), rest


@pytest.fixture
def unchanged():
    before = states()

    def check(what: str) -> None:
        assert states() == before, what

    return check


def bound(name: str) -> Optimizer:
    opt = Optimizer(f"{name}(lr=0.1)")
    if name == "SparseAdam":
        opt.bind_sparse("w", np.ones((4, 4)), np.ones(1, np.int64), np.zeros(4, np.int64), np.ones((4, 4)))
    else:
        opt.bind("w", np.ones((4, 4)), np.ones((4, 4)))
    return opt


@pytest.mark.parametrize("name", recipe.classes())
def test_no_call_draws(name, unchanged, tmp_path):
    opt = bound(name)
    unchanged("bind")
    opt.set(-1, "lr=0.2")
    unchanged("set")
    opt.schedule("SequentialLR([LinearLR(), CosineAnnealingLR(9)], milestones=[1])")
    unchanged("schedule")
    opt.average("AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.9))")
    unchanged("average")
    for _ in range(2):
        opt.step_closure(lambda: 1.0)
        unchanged("step_closure")
    for _ in range(3 if name != "LBFGS" else 0):
        opt.step()
        unchanged("step")
    opt.schedule_step()
    while opt.iterate(1.0):
        pass
    unchanged("iterate")
    opt.clip_grad_norm(1.0)
    opt.clip_grad_value(1.0)
    opt.zero_grad()
    unchanged("clip and zero")
    opt.save(tmp_path / "run.pt")
    unchanged("save")
    other = bound(name)
    other.load(tmp_path / "run.pt")
    other.load_memory(opt.save_memory())
    unchanged("load")
    opt.average_swap()
    opt.describe()
    opt.free()
    unchanged("the rest")


def test_the_first_call_does_not_draw():
    code = """
import random
import torch
torch.manual_seed(3)
random.seed(3)
before = torch.get_rng_state().tolist(), random.getstate()
from optplug.ctypes_api import Optimizer
Optimizer("Adam()")
assert (torch.get_rng_state().tolist(), random.getstate()) == before
"""
    hosts.run(*hosts.PYTHON, "-c", code)
