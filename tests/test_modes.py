"""A Python host's modes of PyTorch's around calls: the same numbers, and the host keeps its modes."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from optplug.ctypes_api import Optimizer


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "a default device": lambda: default_device("meta"),
    "a device for a block": lambda: torch.device("meta"),
    "FakeTensorMode": FakeTensorMode,
    "two at once": lambda: contextlib.ExitStack(),
}
SPECS = [
    "Adam(lr=0.1)",
    "SGD(lr=0.1, momentum=0.9)",
    "RMSprop()",
    "Adafactor()",
    "NAdam()",
    "ASGD()",
    "Muon()",
]


def enter(name):
    mode = MODES[name]()
    if name == "two at once":
        mode.enter_context(torch.inference_mode())
        mode.enter_context(torch.device("meta"))
    return mode


def run(spec, mode, when):
    """Return what steps leave, before and after a load, with the mode on in some of the calls."""
    around = {
        "bind": contextlib.nullcontext,
        "first": contextlib.nullcontext,
        "later": contextlib.nullcontext,
    }
    for which in around if when == "all" else [when]:
        around[which] = mode
    w, dw = np.array([[1.0, -2.0], [3.0, 4.0]]), np.array([[0.5, 0.25], [-1.0, 2.0]])
    with around["bind"]():
        opt = Optimizer(spec)
        opt.bind("w", w, dw)
    with around["first"]():
        for _ in range(4):
            opt.step()
    with around["later"]():
        for _ in range(4):
            opt.step()
        opt.clip_grad_norm(1.0)
        saved = opt.save_memory()
        opt.load_memory(saved)
        opt.step()
    return w.tobytes()


@pytest.mark.parametrize("when", ["all", "bind", "first", "later"])
@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("spec", SPECS)
def test_a_mode_around_calls_changes_no_bit(spec, name, when):
    assert run(spec, lambda: enter(name), when) == run(spec, contextlib.nullcontext, "all")


def seen():
    return torch.is_inference_mode_enabled(), torch.empty(0).device.type


@pytest.mark.parametrize(
    "name", ["inference_mode", "a default device", "a device for a block", "two at once"]
)
def test_a_closure_and_the_host_after_it_have_the_hosts_modes(name):
    w, dw = np.ones(2), np.ones(2)
    opt = Optimizer("SGD(lr=0.5)")
    opt.bind("w", w, dw)
    found = []

    def closure():
        found.append(seen())
        return 1.0

    with enter(name):
        expected = seen()
        opt.step_closure(closure)
        assert seen() == expected
    assert found == [expected]
    assert expected != seen() == (False, "cpu")
    assert (w == 0.5).all()


def test_what_a_closure_chooses_stays_chosen():
    w, dw = np.ones(2), np.ones(2)
    opt = Optimizer("SGD(lr=0.5)")
    opt.bind("w", w, dw)

    def closure():
        torch.set_default_device("cpu")
        return 1.0

    with default_device("meta"):
        opt.step_closure(closure)
        assert seen() == (False, "cpu")
