"""Steps without Python: that they are made, by each way that there is, and leave what PyTorch's leave."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
import torch

import hosts
from optplug import ctypes_api, operators, plans
from optplug.lean import lean
from planned_twins import FUSED_DTYPES, FUSED_SGD_DTYPES, OPTIMIZERS, ROUTES, Twins, UnfusedTwins, lib


@pytest.fixture(params=ROUTES)
def route(request):
    assert lib.opt_init(request.param.encode()) == 0
    yield request.param
    assert lib.opt_init(b"plans=True") == 0


SIZES = [1, 7, 100, 20_000]  # the last is worth several threads


def dtypes_of(text):
    """Return the dtypes that the fused kernels of this torch step rightly."""
    return FUSED_SGD_DTYPES if text.startswith("SGD") else FUSED_DTYPES


@pytest.mark.parametrize(
    ("text", "dtype"), [(text, dtype) for text in OPTIMIZERS for dtype in dtypes_of(text)]
)
@pytest.mark.usefixtures("route")
def test_a_plan_makes_torchs_steps_and_torchs_state(text, dtype):
    twins = Twins(text, [(dtype, n) for n in SIZES])
    twins.step()
    for _ in range(10):
        assert twins.is_planned()
        twins.step()
    assert twins.is_planned()
    twins.end()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_fused_kernels_that_step_a_dtype_wrongly_are_not_taken(dtype):
    """By hand."""
    w, dw = torch.ones(100, dtype=getattr(torch, dtype)), torch.ones(100, dtype=getattr(torch, dtype))
    opt = lib.opt_create(b"SGD(lr=0.5)")
    assert lib.opt_bind(opt, b"w", dtype.encode(), 100, w.data_ptr(), dw.data_ptr()) == 0
    assert lib.opt_step(opt) == 0
    assert lib.opt_step(opt) == 0
    assert w.tolist() == [0] * 100
    assert lib.opt_free(opt) == 0
    opt = lib.opt_create(b"SGD(lr=0.5, fused=True)")
    if dtype in FUSED_SGD_DTYPES:
        assert lib.opt_bind(opt, b"w", dtype.encode(), 100, w.data_ptr(), dw.data_ptr()) == 0
    else:
        assert lib.opt_bind(opt, b"w", dtype.encode(), 100, w.data_ptr(), dw.data_ptr()) == -1
        assert b"of a dtype that PyTorch's fused SGD steps correctly" in lib.opt_error()
    assert lib.opt_free(opt) == 0


@pytest.mark.parametrize("text", OPTIMIZERS)
@pytest.mark.usefixtures("route")
def test_a_plan_takes_several_groups_and_dtypes(text):
    mixed = list(zip(dtypes_of(text), SIZES, strict=False))
    twins = Twins(text, mixed, mixed[::-1], mixed[:1])
    for i in range(10):
        assert twins.is_planned() == (i > 0)
        twins.step()
    twins.end()


@pytest.mark.parametrize("text", OPTIMIZERS)
@pytest.mark.usefixtures("route")
def test_a_plan_gives_the_same_on_any_number_of_threads(text):
    values = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        twins = Twins(text, [("float32", 100_003)])
        for _ in range(5):
            twins.step()
        values.append(twins.ours[0][0])
        twins.end()
        torch.set_num_threads(before)
    assert torch.equal(*values)


@pytest.mark.usefixtures("route")
def test_all_that_changes_an_optimizer_is_true_with_plans():
    twins = Twins("Adam(lr=0.1)", [("float32", 50), ("float64", 30)], [("float32", 20)])
    for _ in range(3):
        twins.step()
    assert twins.is_planned()

    assert lib.opt_set(twins.opt, 0, b"lr=0.05, weight_decay=0.1") == 0
    twins.reference.param_groups[0].update(lr=0.05, weight_decay=0.1)
    twins.step()
    twins.step()
    assert twins.is_planned()

    value, grad = twins.ours[0]
    twins.ours[0] = value.clone(), grad.clone()  # other memory
    assert twins.bind(0) == 0
    before = value.clone()
    twins.step()
    twins.step()
    assert torch.equal(value, before)
    assert twins.is_planned()

    twins.draw()
    norm = ctypes.c_double()
    assert lib.opt_clip_grad_norm(twins.opt, 0.5, 2.0, 0, norm) == 0
    assert norm.value == float(torch.nn.utils.clip_grad_norm_(twins.theirs, 0.5))
    twins.reference.step()
    assert lib.opt_step(twins.opt) == 0
    twins.compare()

    assert lib.opt_schedule(twins.opt, b"ExponentialLR(0.9)") == 0
    scheduler = torch.optim.lr_scheduler.ExponentialLR(twins.reference, 0.9)
    for _ in range(4):
        twins.step()
        assert lib.opt_schedule_step(twins.opt) == 0
        scheduler.step()
    assert twins.is_planned()

    @ctypes_api.CALLBACK
    def closure(_, loss):
        loss[0] = 1.0
        return 0

    twins.draw()
    assert lib.opt_step_closure(twins.opt, closure, None, None) == 0
    twins.reference.step()
    twins.compare()
    twins.step()

    twins.draw()
    assert lib.opt_iterate(twins.opt, 0.0) == 1
    assert lib.opt_step(twins.opt) < 0  # in the middle of a step
    assert lib.opt_iterate(twins.opt, 1.0) == 0
    twins.reference.step()
    twins.compare()
    twins.step()
    twins.step()
    assert twins.is_planned()

    assert lib.opt_average(twins.opt, b"AveragedModel()") == 0
    module = torch.nn.ParameterList(twins.theirs)
    averaged = torch.optim.swa_utils.AveragedModel(module)
    for _ in range(3):
        twins.step()
        averaged.update_parameters(module)
    found = torch.empty(30, dtype=torch.float64)
    assert lib.opt_average_get(twins.opt, b"p1", found.data_ptr()) == 0
    assert torch.equal(found, list(averaged.parameters())[1])
    twins.end()


@pytest.mark.usefixtures("route")
def test_momentum_that_a_schedule_or_the_host_changes_reaches_the_plan():
    twins = Twins("SGD(lr=0.1, momentum=0.9)", [("float32", 50)])
    scheduler = torch.optim.lr_scheduler.CyclicLR(twins.reference, 0.01, 0.1, step_size_up=3)
    assert lib.opt_schedule(twins.opt, b"CyclicLR(0.01, 0.1, step_size_up=3)") == 0
    for _ in range(10):
        twins.step()
        assert lib.opt_schedule_step(twins.opt) == 0
        scheduler.step()
    assert twins.is_planned()
    for momentum in (0.0, 0.5):
        assert lib.opt_set(twins.opt, -1, f"momentum={momentum}".encode()) == 0
        twins.reference.param_groups[0]["momentum"] = momentum
        for _ in range(3):
            twins.step()
        assert twins.is_planned()
    twins.end()


@pytest.mark.usefixtures("route")
def test_a_buffer_that_is_still_to_be_made_is_left_to_python():
    twins = Twins("SGD(lr=0.1)", [("float32", 50)])
    twins.step()
    assert lib.opt_set(twins.opt, -1, b"momentum=0.9") == 0
    twins.reference.param_groups[0]["momentum"] = 0.9
    for _ in range(3):
        twins.step()
    assert twins.is_planned()
    twins.end()


@pytest.mark.parametrize("dtype", FUSED_DTYPES)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.usefixtures("route")
def test_a_gradient_that_is_not_finite_is_refused_by_the_plan_and_named_by_python(dtype, bad):
    assert lib.opt_init(b"error_if_nonfinite=True") == 0
    try:
        twins = Twins("Adam(lr=0.1)", [(dtype, n) for n in SIZES])
        for _ in range(3):
            twins.step()
        assert twins.is_planned()
        twins.draw()
        twins.ours[2][1][-1] = bad
        assert lib.opt_step(twins.opt) == -7
        assert b"'p2' contains inf or nan" in lib.opt_error()
        twins.compare()
        twins.ours[2][1].fill_(torch.finfo(getattr(torch, dtype)).max)  # finite, though their sum is not
        twins.theirs[2].grad.copy_(twins.ours[2][1])
        twins.reference.step()
        assert lib.opt_step(twins.opt) == 0
        twins.compare()
        twins.end()
    finally:
        assert lib.opt_init(b"error_if_nonfinite=False") == 0


@pytest.mark.usefixtures("route")
def test_a_plan_counts_as_far_as_torch_does():
    """Step counts are float32, and stay at 2**24."""
    twins = Twins("Adam(lr=0.1)", [("float32", 5)])
    twins.step()
    for state in (twins.state()[0], twins.reference.state[twins.theirs[0]]):
        state["step"].fill_(2**24 - 2)
    for _ in range(5):
        twins.step()
    assert twins.state()[0]["step"] == 2**24
    twins.end()


MODES = """
import ctypes, optplug, torch
from torch.utils._python_dispatch import TorchDispatchMode
lib = ctypes.CDLL(optplug.library())
lib.opt_bind.argtypes = [ctypes.c_int, *[ctypes.c_char_p] * 2, ctypes.c_int64, *[ctypes.c_void_p] * 2]
lib.opt_error.restype = ctypes.c_char_p
w, g = (ctypes.c_double * 3)(), (ctypes.c_double * 3)(1, 2, 4)

class Broken(TorchDispatchMode):
    def __torch_dispatch__(self, *_):
        raise ValueError("by the mode")

opt = lib.opt_create(b"Adam(lr=0.5)")
lib.opt_bind(opt, b"w", b"float64", 3, w, g)
for _ in range(3):
    assert lib.opt_step(opt) == 0
with Broken():  # it is for the host's own operators
    assert lib.opt_step(opt) == 0
for _ in range(3):
    assert lib.opt_step(opt) == 0
assert abs(w[0] + 7 * 0.5) < 1e-6
"""

HOOKS = """
import ctypes, optplug, torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
lib = ctypes.CDLL(optplug.library())
lib.opt_bind.argtypes = [ctypes.c_int, *[ctypes.c_char_p] * 2, ctypes.c_int64, *[ctypes.c_void_p] * 2]
w, g = (ctypes.c_double * 3)(), (ctypes.c_double * 3)(1, 2, 4)
opt = lib.opt_create(b"SGD(lr=0.5)")
assert lib.opt_bind(opt, b"w", b"float64", 3, w, g) == 0
calls = []
register_optimizer_step_pre_hook(lambda *_: calls.append("pre"))
for _ in range(3):
    assert lib.opt_step(opt) == 0
assert calls == ["pre"] * 3, calls
assert list(w) == [-1.5, -3, -6]
"""

FAILING = """
import torch, traceback
from optplug import ctypes_api
lib = ctypes_api.load()
assert lib.opt_init(b"plans='stable'") == 0
w, g = torch.zeros(5), torch.ones(5)
opt = lib.opt_create(b"Adam(lr=0.5)")
assert lib.opt_bind(opt, b"w", b"float32", 5, w.data_ptr(), g.data_ptr()) == 0
for _ in range(3):
    assert lib.opt_step(opt) == 0
assert b"\\nway: stable\\n" in lib.opt_describe(opt)

def fails_outside_of_torchs_step(params, *_, **__):
    if not any(frame.name == "_fused_adam" for frame in traceback.extract_stack()):
        raise ValueError
    params[0].fill_(7)

library = torch.library.Library("aten", "IMPL")
library.impl("_fused_adam_", fails_outside_of_torchs_step, "CPU")
for warning in (b"PyTorch failed in aten::_fused_adam_, which it ran before", b""):
    w.zero_()
    assert lib.opt_step(opt) == 0, lib.opt_error()
    assert w.tolist() == [7] * 5
    said = lib.opt_warning()
    assert (warning in said) if warning else (said == b""), said
assert b"since PyTorch failed in aten::_fused_adam_\\nway: Python\\n" in lib.opt_describe(opt)
"""

AT_EXIT = """
import ctypes, optplug, threading, time, torch
lib = ctypes.CDLL(optplug.library())
lib.opt_bind.argtypes = [ctypes.c_int, *[ctypes.c_char_p] * 2, ctypes.c_int64, *[ctypes.c_void_p] * 2]
n = 1_000_000
w, g = (ctypes.c_float * n)(), (ctypes.c_float * n)()
opt = lib.opt_create(b"Adam()")
assert lib.opt_bind(opt, b"w", b"float32", n, w, g) == 0

def go():
    while lib.opt_step(opt) == 0:
        pass

threading.Thread(target=go, daemon=True).start()
time.sleep(0.3)
"""


@pytest.mark.parametrize("program", [MODES, AT_EXIT, HOOKS])
def test_a_python_host_may_have_modes_hooks_and_an_end_of_its_own(program):
    done = hosts.python("-c", program)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_plan_that_torch_fails_in_is_left_for_good_and_says_so_once():
    done = hosts.python("-c", FAILING)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "options", "way"),
    [
        ("Adam(lr=0.1)", "plans='direct'", "direct"),
        ("Adam(lr=0.1)", "plans='stable'", "stable"),
        ("Adam(lr=0.1)", "plans=False", "Python"),
        ("RMSprop(lr=0.1)", "plans=True", "recorded"),
        ("Adafactor(lr=0.1)", "plans=True", "Python"),
    ],
)
def test_describe_says_which_way_steps_go(text, options, way):
    assert lib.opt_init(options.encode()) == 0
    try:
        twins = UnfusedTwins(text, [("float32", 5)])
        for _ in range(6):
            twins.draw()
            assert lib.opt_step(twins.opt) == 0
        assert f"\nway: {way}\n" in twins.described()
        assert lib.opt_free(twins.opt) == 0
    finally:
        assert lib.opt_init(b"plans=True") == 0


def test_a_number_too_large_for_a_double_is_refused_and_changes_nothing():
    twins = Twins("Adam(lr=0.1)", [("float32", 5)])
    for _ in range(3):
        twins.step()
    assert lib.opt_set(twins.opt, -1, b"lr=1" + b"0" * 400) == -1
    value = ctypes.c_double()
    assert lib.opt_get(twins.opt, 0, b"lr", value) == 0
    assert value.value == 0.1
    for _ in range(3):
        twins.step()
    assert twins.is_planned()
    twins.end()


def test_a_rebind_that_fails_leaves_the_plan_as_it_was():
    twins = Twins("Adam(lr=0.1)", [("float32", 5), ("float32", 6)])
    for _ in range(3):
        twins.step()
    value, grad = twins.ours[0]
    assert lib.opt_bind(twins.opt, b"p0", b"float32", 4, value.data_ptr(), grad.data_ptr()) == -1
    assert twins.is_planned()
    for _ in range(3):
        twins.step()
    twins.end()


def test_plans_can_be_turned_off():
    assert lib.opt_init(b"plans=False") == 0
    twins = Twins("Adam(lr=0.1)", [("float32", 5)])
    for _ in range(3):
        twins.step()
    assert not twins.is_planned()
    twins.end()
    assert lib.opt_init(b"plans='always'") < 0
    assert lib.opt_error() == b"plans must be True or False or 'stable' or 'direct', got 'always'"
    assert lib.opt_init(b"plans=True") == 0


@pytest.mark.parametrize("text", ["Adam(fused=False)", "Adam(foreach=True)", "RMSprop()", "LBFGS()"])
def test_what_is_not_fused_has_no_plan(text):
    optimizer = lean(getattr(torch.optim, text.partition("(")[0]))
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    instance = optimizer([parameter], **eval(f"dict({text.partition('(')[2]}"))  # noqa: S307
    instance.step(*[lambda: 0.0] * text.startswith("LBFGS"))
    assert plans.make(instance) is None


@pytest.mark.parametrize("operator", ["_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_"])
def test_every_operator_has_the_arguments_that_plans_know(operator):
    form = operators.form_of(operator)
    assert form.lists[:2] == ("self", "grads")
    known = {*operators.STATE, "self", "grads"}
    assert set(form.lists) <= known
    hyperparameters = set(itertools.chain(form.doubles, form.bools)) - plans.SCALARS.keys()
    assert hyperparameters <= {
        "lr", "eps", "weight_decay", "momentum", "dampening", "nesterov", "maximize", "amsgrad", "lr_decay"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "strides"),
    [([0], None), ([0, 3], None), ([3, 0], [1, 1]), ([0, 3], [3, 2]), ([2, 0, 2], [0, 0, 0])],
)
@pytest.mark.usefixtures("route")
def test_an_empty_parameter_costs_the_others_nothing(shape, strides):
    twins = Twins("Adam(lr=0.1)", [("float32", 7)])
    empty = np.empty(1)
    nothing = [b"float64", b"cpu", len(shape), shape, empty, strides, empty, None]
    assert lib.opt_bind_nd(twins.opt, b"empty", *nothing) == 0, lib.opt_error()
    for _ in range(4):
        twins.step()
    assert twins.is_planned(), twins.described()
    assert lib.opt_free(twins.opt) == 0
