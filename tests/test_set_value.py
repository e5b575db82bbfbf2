"""Hyperparameters that a host sets as numbers, at each step: torch's numbers, and torch's judgement."""

from __future__ import annotations

import ctypes
import math

import pytest

from planned_twins import OPTIMIZERS, ROUTES, Twins, lib


@pytest.fixture(params=[*ROUTES, "plans=False"])
def route(request):
    assert lib.opt_init(request.param.encode()) == 0
    yield request.param
    assert lib.opt_init(b"plans=True") == 0


class Loops(Twins):
    fused = False


def get(opt, name, group=0):
    found = ctypes.c_double()
    assert lib.opt_get(opt, group, name.encode(), found) == 0, lib.opt_error()
    return found.value


def set_both(twins, name, value, group=-1):
    """Set a hyperparameter here and in the reference."""
    assert lib.opt_set_value(twins.opt, group, name.encode(), value) == 0, lib.opt_error()
    key, _, index = name.rstrip("]").partition("[")
    groups = twins.reference.param_groups
    for options in groups if group == -1 else [groups[group]]:
        new = value
        if index:
            new = tuple(value if i == int(index) else old for i, old in enumerate(options[key]))
        options[key] = new


@pytest.mark.parametrize("text", OPTIMIZERS)
@pytest.mark.usefixtures("route")
def test_rates_that_are_set_at_each_step_give_torchs_bits(text):
    twins = Twins(text, [("float32", 50), ("float64", 20_000)], [("float32", 7)])
    for i in range(20):
        set_both(twins, "lr", 0.1 * math.cos(i / 20), 0)
        set_both(twins, "lr", 0.2 / (1 + i), 1)
        set_both(twins, "weight_decay", i / 100)
        if i % 5 == 4:
            set_both(twins, "lr", 0.05)
            set_both(twins, "lr", 0.03, 1)
        if i % 7 == 6:
            assert get(twins.opt, "lr", 1) == twins.reference.param_groups[1]["lr"]
        twins.step()
    for group, options in enumerate(twins.reference.param_groups):
        for name in ("lr", "weight_decay"):
            assert get(twins.opt, name, group) == options[name]
    twins.end()


@pytest.mark.parametrize("name", ["betas[0]", "betas[1]", "eps"])
@pytest.mark.usefixtures("route")
def test_every_number_of_adam_can_be_set_at_each_step(name):
    twins = Twins("Adam(lr=0.1)", [("float32", 50)])
    for i in range(20):
        set_both(twins, name, 1 / (i + 3))
        twins.step()
    twins.end()


@pytest.mark.usefixtures("route")
def test_a_momentum_that_starts_and_ends_gives_torchs_bits():
    twins = Twins("SGD(lr=0.1)", [("float32", 50)])
    for momentum in [0, 0, 0, 0.5, 0.6, 0.7, 0.8, 0, 0, 0.5, 0.6, 0.7]:
        set_both(twins, "momentum", float(momentum))
        twins.step()
    twins.end()


@pytest.mark.parametrize(
    ("name", "value", "group", "words"),
    [
        ("lr", -1, 0, "lr=-1.0: Invalid learning rate: -1.0"),
        ("lr", math.nan, 0, "lr must be finite, got nan"),
        ("lr", math.inf, -1, "lr must be finite, got inf"),
        ("weight_decay", math.nan, 0, "weight_decay=nan: Invalid weight_decay value: nan"),
        ("betas[1]", 1, 0, "betas=(0.9, 1.0): Invalid beta parameter at index 1: 1.0"),
        ("betas[2]", 0.5, 0, "name 'betas[2]' must be 'betas[0]' to 'betas[1]'"),
        ("betas", 0.5, 0, "name 'betas' must be 'betas[0]' to 'betas[1]'"),
        ("lr[0]", 0.5, 0, "name 'lr[0]' is not a tuple: write 'lr'"),
        ("amsgrad", 1, 0, "name 'amsgrad' is True or False, not a number: call opt_set"),
        ("lrr", 1, 0, "no option 'lrr': did you mean lr?"),
        ("step", 1, 0, "no option 'step'"),
        ("fused", 1, 0, "no option 'fused'"),
        ("params", 1, 0, "no option 'params'"),
        ("lr", 0.5, 1, "group must be 0 to 0, or -1 for all, got 1"),
        ("lr", 0.5, -2, "group must be 0 to 0, or -1 for all, got -2"),
    ],
)
@pytest.mark.parametrize("is_set_before", [False, True])
@pytest.mark.usefixtures("route")
def test_what_cannot_be_set_changes_nothing(name, value, group, words, is_set_before):
    twins = Twins("Adam(lr=0.1)", [("float32", 50)])
    for i in range(6):
        if is_set_before:
            set_both(twins, "lr", 0.1 / (1 + i))
        assert lib.opt_set_value(twins.opt, group, name.encode(), value) == -1
        assert words in lib.opt_error().decode()
        assert get(twins.opt, "lr") == twins.reference.param_groups[0]["lr"]
        twins.step()
    assert lib.opt_set_value(twins.opt, 0, None, 1) == -1
    assert lib.opt_error() == b"name must not be NULL"
    twins.end()


def test_one_group_that_refuses_a_value_keeps_it_from_all():
    twins = Loops("RMSprop(lr=0.1)", [("float32", 5)], [("float32", 5)])
    twins.step()
    assert lib.opt_set_value(twins.opt, -1, b"momentum", 0.5) == -1  # its state has no buffer for that
    assert b"momentum=0.5: PyTorch has no 'momentum_buffer' for it" in lib.opt_error()
    assert get(twins.opt, "momentum", -1) == 0
    twins.step()
    assert lib.opt_free(twins.opt) == 0


def test_whole_numbers_stay_whole_and_others_are_refused():
    twins = Loops("LBFGS(lr=0.5, max_iter=7)", [("float32", 5)])
    assert lib.opt_set_value(twins.opt, 0, b"max_iter", 3) == 0, lib.opt_error()
    assert "max_iter=3," in lib.opt_describe(twins.opt).decode()
    assert lib.opt_set_value(twins.opt, 0, b"max_iter", 2.5) == -1
    assert lib.opt_error() == b"max_iter must be a whole number from 0, got 2.5"
    assert lib.opt_set_value(twins.opt, 0, b"line_search_fn", 1) == -1
    assert lib.opt_error() == b"line_search_fn must be a string or None, got 1.0"
    assert get(twins.opt, "max_iter") == 3
    assert lib.opt_free(twins.opt) == 0


def test_a_rate_is_set_before_anything_is_bound():
    values, grads = (ctypes.c_float * 5)(), (ctypes.c_float * 5)()
    opt = lib.opt_create(b"Adam(lr=0.1)")
    assert lib.opt_set_value(opt, 0, b"lr", 0.25) == 0
    assert lib.opt_set_value(opt, 0, b"betas[0]", 0.5) == 0
    assert lib.opt_bind(opt, b"w", b"float32", 5, values, grads) == 0
    assert (get(opt, "lr"), get(opt, "betas[0]"), get(opt, "betas[1]")) == (0.25, 0.5, 0.999)
    assert lib.opt_free(opt) == 0
