"""Hyperparameters that a host sets as numbers, at each step: torch's numbers, and torch's judgement."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch

from optplug import _bridge
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
    assert b"momentum=0.5: PyTorch finds no 'momentum_buffer'" in lib.opt_error()
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


# ---- in the plan alone ----


def known_to_python(twins, group=0):
    return _bridge.optimizer_of(twins.opt).run.built.param_groups[group]["lr"]


@pytest.fixture
def ahead():
    """Return an optimizer whose plan has other rates than Python knows of, 0.5 and 0.75."""
    twins = Twins("Adam(lr=0.1)", [("float32", 50)], [("float32", 7)])
    for _ in range(3):
        twins.step()
    for rates in ((0.125, 0.25, 0.375), (0.625, 0.5, 0.75)):  # the second time without Python
        for group, rate in zip((-1, 0, 1), rates, strict=True):
            set_both(twins, "lr", rate, group)
    assert [known_to_python(twins, i) for i in (0, 1)] == [0.25, 0.375]
    return twins


CALLS = {
    "get": lambda t: get(t.opt, "eps"),
    "get_wrong": lambda t: lib.opt_get(t.opt, 0, b"lrr", ctypes.c_double()),
    "describe": lambda t: lib.opt_describe(t.opt),
    "set": lambda t: lib.opt_set(t.opt, 0, b"eps=1e-8"),
    "set_wrong": lambda t: lib.opt_set(t.opt, 0, b"eps=-1"),
    "set_value": lambda t: lib.opt_set_value(t.opt, 0, b"eps", 1e-8),
    "set_value_wrong": lambda t: lib.opt_set_value(t.opt, 0, b"lr", -1),
    "set_value_nan": lambda t: lib.opt_set_value(t.opt, 0, b"lr", math.nan),
    "zero_grad": lambda t: lib.opt_zero_grad(t.opt),
    "clip": lambda t: lib.opt_clip_grad_norm(t.opt, 1e9, 2, 0, None),
    "save": lambda t: lib.opt_save_memory(t.opt, None, 0),
    "load_wrong": lambda t: lib.opt_load_memory(t.opt, b"nothing", 7),
    "checkpoint": lambda t: lib.opt_checkpoint(t.opt, b"parameters=True"),
    "bind": lambda t: t.bind(0),
    "bind_wrong": lambda t: lib.opt_bind(t.opt, b"p0", b"float32", 3, None, None),
    "grad_scale": lambda t: lib.opt_grad_scale(t.opt, None, None),
    "schedule_wrong": lambda t: lib.opt_schedule(t.opt, b"StepLR()"),
    "unschedule": lambda t: lib.opt_schedule(t.opt, None),
    "average": lambda t: lib.opt_average(t.opt, b"AveragedModel()"),
    "step_wrong": lambda t: lib.opt_step_f64(t.opt, ctypes.c_double(), ctypes.c_double()),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_call_finds_the_rates_that_were_set(ahead, call):
    call(ahead)
    ahead.step()
    ahead.step()
    assert [get(ahead.opt, "lr", i) for i in (0, 1)] == [0.5, 0.75]
    assert [known_to_python(ahead, i) for i in (0, 1)] == [0.5, 0.75]
    ahead.step()
    ahead.end()


def test_python_is_not_asked_for_what_the_plan_can_do(ahead):
    for i in range(20):
        set_both(ahead, "lr", 1 / (i + 7), 0)
        ahead.step()
        set_both(ahead, "lr", 1 / (i + 5), 1)
    assert known_to_python(ahead) != ahead.reference.param_groups[0]["lr"]
    assert get(ahead.opt, "lr") == ahead.reference.param_groups[0]["lr"]
    assert get(ahead.opt, "lr", 1) == ahead.reference.param_groups[1]["lr"]
    ahead.end()


def test_a_schedule_starts_from_rates_that_were_set_and_leaves_them_to_be_set(ahead):
    assert lib.opt_schedule(ahead.opt, b"StepLR(2, gamma=0.5)") == 0
    scheduler = torch.optim.lr_scheduler.StepLR(ahead.reference, 2, gamma=0.5)
    for i in range(12):
        ahead.step()
        scheduler.step()
        assert lib.opt_schedule_step(ahead.opt) == 0
        if i % 3 == 0:
            set_both(ahead, "lr", 0.3 + i / 10, i % 2)
        for group, options in enumerate(ahead.reference.param_groups):
            assert get(ahead.opt, "lr", group) == options["lr"]
    ahead.end()


def test_a_checkpoint_has_the_rates_that_were_set(ahead):
    size = lib.opt_save_memory(ahead.opt, None, 0)
    set_both(ahead, "lr", 0.625, 0)
    set_both(ahead, "lr", 0.375, 0)
    buffer = (ctypes.c_char * size)()
    assert lib.opt_save_memory(ahead.opt, buffer, size) == size
    set_both(ahead, "lr", 0.0, 0)
    assert lib.opt_load_memory(ahead.opt, buffer, size) == 0, lib.opt_error()
    assert [get(ahead.opt, "lr", i) for i in (0, 1)] == [0.375, 0.75]
    ahead.reference.param_groups[0]["lr"] = 0.375
    for _ in range(3):
        ahead.step()
    ahead.end()


def test_a_step_that_is_refused_keeps_the_rates():
    assert lib.opt_init(b"error_if_nonfinite=True") == 0
    try:
        twins = Twins("Adam(lr=0.1)", [("float32", 50)])
        for i in range(8):
            set_both(twins, "lr", 1 / (3 + i))
            twins.draw()
            twins.ours[0][1][3] = math.nan
            assert lib.opt_step(twins.opt) == -7
            twins.compare()
            set_both(twins, "lr", 1 / (2 + i))
            twins.step()
            assert get(twins.opt, "lr") == 1 / (2 + i)
        twins.end()
    finally:
        assert lib.opt_init(b"error_if_nonfinite=False") == 0


@pytest.mark.parametrize("options", ["master_weights=True", "plans='stable'", "plans='direct'"])
def test_numbers_are_what_the_same_numbers_as_text_are(options):
    assert lib.opt_init(options.encode()) == 0
    try:
        results = []
        for by_number in (True, False):
            values = torch.linspace(-1, 1, 40, dtype=torch.bfloat16)
            grads = torch.linspace(-2, 3, 40, dtype=torch.bfloat16)
            opt = lib.opt_create(b"AdamW(lr=0.1)")
            bound = lib.opt_bind(opt, b"w", b"bfloat16", 40, values.data_ptr(), grads.data_ptr())
            assert bound == 0, lib.opt_error()
            for i in range(20):
                for name, value in (("lr", 0.1 / (1 + i)), ("weight_decay", 0.01 * i)):
                    if by_number:
                        assert lib.opt_set_value(opt, 0, name.encode(), value) == 0, lib.opt_error()
                    else:
                        assert lib.opt_set(opt, 0, f"{name}={value!r}".encode()) == 0, lib.opt_error()
                assert lib.opt_step(opt) == 0, lib.opt_error()
            results.append(values)
            assert b"without Python" in lib.opt_describe(opt)
            assert lib.opt_free(opt) == 0
        assert torch.equal(*results)
    finally:
        assert lib.opt_init(b"master_weights=False, plans=True") == 0


def test_a_plan_of_memory_that_is_lent_for_a_step_keeps_the_rates():
    """By hand: SGD's steps are the sum of all rates."""
    opt = lib.opt_create(b"SGD(lr=1)")
    assert lib.opt_bind(opt, b"w", b"float64", 1, None, None) == 0
    w, dw = ctypes.c_double(0), ctypes.c_double(1)
    for i in range(1, 21):
        assert lib.opt_set_value(opt, -1, b"lr", i) == 0
        assert lib.opt_step_f32(opt, ctypes.c_float(), ctypes.c_float()) == -1  # another dtype
        assert lib.opt_step(opt) == -3  # no arrays
        assert lib.opt_step_f64(opt, w, dw) == 0, lib.opt_error()
        assert w.value == -i * (i + 1) / 2
    assert lib.opt_free(opt) == 0
