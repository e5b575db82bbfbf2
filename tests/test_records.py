"""Steps that run in C as records of what torch did: that they are torch's, and what becomes of them."""

from __future__ import annotations

import subprocess

import pytest
import torch
from optplug._optplug import lib as numbers
from torch import nn

import hosts
from optplug import _bridge, ctypes_api, elementwise, recorder, rehearsal
from optplug.number import is_number
from planned_twins import UnfusedTwins, direct_plans, lib  # noqa: F401 (pytest finds the fixture here)

RECORDED = [
    "Adadelta(lr=0.5)",
    "Adadelta(lr=0.5, rho=0.8, eps=1e-5, weight_decay=0.1, maximize=True)",
    "Adagrad(lr=0.1, lr_decay=0.01, weight_decay=0.1, fused=False)",
    "Adam(lr=0.1, fused=False)",
    "Adam(lr=0.1, amsgrad=True, weight_decay=0.1, maximize=True, fused=False)",
    "AdamW(lr=0.1, fused=False)",
    "AdamW(lr=0.1, foreach=True)",
    "Adamax(lr=0.1)",
    "Adamax(lr=0.1, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1, maximize=True)",
    "ASGD(lr=0.1, t0=3)",
    "ASGD(lr=0.1, lambd=1e-3, alpha=0.5, weight_decay=0.1, maximize=True)",
    "NAdam(lr=0.1)",
    "NAdam(lr=0.1, momentum_decay=1e-2, weight_decay=0.1, decoupled_weight_decay=True, maximize=True)",
    "RAdam(lr=0.1)",
    "RAdam(lr=0.1, weight_decay=0.1, decoupled_weight_decay=True, maximize=True)",
    "RMSprop(lr=0.1)",
    "RMSprop(lr=0.1, alpha=0.9, momentum=0.9, centered=True, weight_decay=0.1, maximize=True)",
    "Rprop(lr=0.1)",
    "Rprop(lr=0.1, etas=(0.4, 1.3), step_sizes=(1e-4, 10), maximize=True)",
    "SGD(lr=0.1, fused=False)",
    "SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, maximize=True, fused=False)",
    "SGD(lr=0.1, momentum=0.9, dampening=0.5, fused=False)",
]
# The last one is worth several threads.
SIZES = [1, 7, 100, 40_000]


pytestmark = pytest.mark.usefixtures("direct_plans")


class Twins(UnfusedTwins):
    def is_recorded(self) -> bool:
        return "recorded" in self.described().split("\n")[1] and self.is_planned()

    def planner(self):
        return _bridge.optimizer_of(self.opt).planner


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("text", RECORDED)
def test_a_record_makes_torchs_steps_and_torchs_state(text, dtype):
    twins = Twins(text, [(dtype, n) for n in SIZES])
    for _ in range(4):
        twins.step()
    assert twins.is_recorded(), twins.planner().records.reason
    for _ in range(12):  # in which RAdam takes its other branch, and comes to a record of that
        twins.step()
    assert twins.is_recorded()
    twins.end()


@pytest.mark.parametrize("text", RECORDED)
def test_groups_and_dtypes_have_records_of_their_own(text):
    twins = Twins(text, [("float32", 5), ("float64", 9)], [("float64", 40_000)])
    for _ in range(10):
        twins.step()
    assert twins.is_recorded(), twins.planner().records.reason
    twins.end()


@pytest.mark.parametrize("text", RECORDED)
def test_records_take_gradients_of_all_kinds(text):
    twins = Twins(text, [("float32", 20)])
    for value in (1.0, 0.0, -0.0, 1e-42, -1e38, float("inf"), 1.0, float("nan"), 1.0):
        twins.ours[0][1].fill_(1)[::3] = value
        twins.theirs[0].grad.copy_(twins.ours[0][1])
        twins.reference.step()
        assert lib.opt_step(twins.opt) == 0, lib.opt_error()
        assert elementwise.is_same(twins.ours[0][0], twins.theirs[0].detach())
    assert lib.opt_free(twins.opt) == 0


def test_a_record_gives_the_same_on_any_number_of_threads():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            twins = Twins("RMSprop(lr=0.1)", [("float32", n) for n in (32_767, 32_768, 100_003)])
            for _ in range(4):
                twins.step()
            assert twins.is_recorded(), twins.planner().records.reason
            twins.end()
    finally:
        torch.set_num_threads(before)


def test_another_branch_costs_one_step_and_then_has_its_record():
    twins = Twins("RAdam()", [("float32", 3)])
    planned = []
    for _ in range(9):
        twins.step()
        planned.append(twins.is_recorded())
    # Records come in the fourth step; the sixth is the first whose variance counts.
    assert planned[:5] == [False] * 3 + [True] * 2
    assert planned[-1]
    (kind,) = twins.planner().records._kinds.values()
    assert len(kind.records) == 2
    twins.end()


@pytest.mark.parametrize(
    "options", ["lr=0.5", "maximize=True", "weight_decay=0.1", "momentum=0.5", "centered=True", "alpha=0.5"]
)
def test_hyperparameters_change_under_a_record(options):
    twins = Twins("RMSprop(lr=0.1, momentum=0.1)", [("float32", 50)])
    for _ in range(4):
        twins.step()
    assert twins.is_recorded()
    if options == "centered=True":  # needs a state that is not there, in torch as well
        assert lib.opt_set(twins.opt, -1, options.encode()) < 0
    else:
        assert lib.opt_set(twins.opt, -1, options.encode()) == 0, lib.opt_error()
        key, _, value = options.partition("=")
        twins.reference.param_groups[0][key] = {"True": True}.get(value) or float(value)
    for _ in range(6):
        twins.step()
    assert twins.is_recorded()
    twins.end()


def test_a_weight_decay_that_was_zero_is_another_branch():
    twins = Twins("Adamax(lr=0.1)", [("float32", 50)])
    for value in (0, 0, 0.1, 0.1, 0, 0.2, 0):
        assert lib.opt_set(twins.opt, -1, b"weight_decay=%r" % value) == 0
        twins.reference.param_groups[0]["weight_decay"] = value
        twins.step()
        twins.step()
    assert twins.is_recorded()
    twins.end()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SGD(lr=0.1, momentum=0.9, fused=False)", "momentum"),
        ("ASGD(lr=0.1)", "weight_decay"),
    ],
)
def test_a_state_that_comes_and_goes_with_a_hyperparameter(text, name):
    twins = Twins(text, [("float32", 50), ("float32", 40_000)])
    for value in (0.9, 0.0, 0.9, 0.0, 0.5, 0.9):
        assert lib.opt_set(twins.opt, -1, f"{name}={value}".encode()) == 0, lib.opt_error()
        twins.reference.param_groups[0][name] = value
        for _ in range(4):
            twins.step()
    twins.end()


@pytest.mark.parametrize("lr", [2**60 + 2**36 + 1, 2**53, 10**20])
@pytest.mark.parametrize("text", ["SGD(lr=1, fused=False)", "RMSprop(lr=1)"])
def test_integers_that_are_no_doubles(text, lr):
    twins = Twins(text, [("float32", 50)])
    for _ in range(4):
        twins.step()
    assert lib.opt_set(twins.opt, -1, f"lr={lr}".encode()) == 0, lib.opt_error()
    twins.reference.param_groups[0]["lr"] = lr
    twins.draw()
    try:
        twins.reference.step()
    except Exception:  # torch's, of an integer that is too large
        assert lib.opt_step(twins.opt) < 0
    else:
        assert lib.opt_step(twins.opt) == 0
        twins.compare()
    assert lib.opt_free(twins.opt) == 0


def test_arrays_move_and_shrink_to_others():
    twins = Twins("Adadelta()", [("float32", 50), ("float32", 60)])
    for i in range(30):
        twins.step()
        if i % 3 == 2:
            value, grad = twins.ours[0]
            twins.ours[0] = (value.clone(), grad.clone())
            assert twins.bind(0) == 0
    for _ in range(70):  # as many as it may leave alone a host that moves all the time
        twins.step()
    assert twins.is_recorded()
    twins.end()


def test_an_operation_that_is_not_torchs_is_noticed(monkeypatch):
    """Each operation that RMSprop comes down to, replaced by another one of C's."""
    chosen = {
        name: elementwise.choose(name, torch.float32)
        for name in elementwise.OPERATIONS
        if elementwise.choose(name, torch.float32) is not None
    }
    used = set[str]()
    real = elementwise.choose  # of which none has another at an array's end
    for wrong in (None, *chosen):

        def choose(name, *how, wrong=wrong):
            used.add(name)
            return real("negate" if name != "negate" else "abs", *how) if name == wrong else real(name, *how)

        monkeypatch.setattr(elementwise, "choose", choose)
        monkeypatch.setattr(elementwise, "at_end", choose)
        rehearsal._known.clear()
        twins = Twins("RMSprop(lr=0.1, momentum=0.9, centered=True)", [("float32", 50)])
        for _ in range(4):
            twins.step()
        assert twins.is_recorded() == (wrong not in used), wrong
        if wrong in used:
            assert twins.planner().records.reason == "its record gave other bits than the step"
        twins.end()
    rehearsal._known.clear()
    assert {"mul scalar", "addcmul", "addcdiv", "sqrt", "lerp"} <= used


@pytest.mark.parametrize(
    ("spec", "kind", "second", "both", "first"),
    [
        ("RMSprop(lr=0.1)", "addcmul", "ADDCMUL_FMA", "MUL_ADDCMUL_FMA", "MUL_SCALAR"),
        ("RMSprop(lr=0.1)", "addcdiv", "ADDCDIV", "ADDCDIV_ADDED", "ADD_SCALAR"),
        ("ASGD(lr=0.1)", "add", "ADD_FMA", "MUL_ADD_FMA", "MUL_SCALAR"),
    ],
)
def test_two_operations_in_turn_are_one(spec, kind, second, both, first):
    """Where torch rounds both as C has them in one, as on processors that fuse them."""
    made = operations_of(spec)
    is_fused = elementwise.choose(kind, torch.float32) == getattr(numbers, f"ELEMENTWISE_{second}")
    assert (both in made) == is_fused
    assert (first in made) != is_fused


def test_two_operations_stay_two_where_a_third_reads_what_the_first_makes():
    made = operations_of("NAdam(lr=0.1)")
    assert "ADD_SCALAR" in made
    assert "ADDCDIV_ADDED" not in made


def operations_of(spec):
    """Return what a step of two parameters, in single and double precision, is made of."""
    twins = Twins(spec, [("float32", 50), ("float64", 50)])
    for _ in range(5):
        twins.step()
    assert twins.is_recorded()
    names = {getattr(numbers, n): n.removeprefix("ELEMENTWISE_") for n in dir(numbers) if "ELEMENTWISE_" in n}
    kinds = twins.planner().records._kinds.values()
    made = {
        names[one.elementwise] for kind in kinds for record in kind.records for one in record.instructions
    }
    twins.end()
    return made


@pytest.mark.parametrize(
    ("kind", "others"),
    [
        ("sqrt", ["SQRT"]),
        ("add", ["ADD"]),
        ("addcmul", ["ADDCMUL", "ADDCMUL_RIGHT", "ADDCMUL_RIGHT_FMA"]),
        ("lerp", ["LERP"]),
    ],
)
def test_another_rounding_is_told_from_torchs(kind, others):
    operation = elementwise.OPERATIONS[kind]
    chosen = elementwise.choose(kind, torch.float32)
    assert chosen is not None
    for name in others:
        number = getattr(numbers, f"ELEMENTWISE_{name}")
        if number != chosen:
            assert not elementwise._is_torchs(operation, number, torch.float32), name


@pytest.mark.parametrize("dtype", elementwise.DTYPES)
def test_every_operation_has_torchs_bits_here(dtype):
    for name in elementwise.OPERATIONS:
        assert elementwise.choose(name, dtype) is not None, name


def test_a_number_remembers_how_it_came_about():
    recording = recorder.Recording([torch.zeros(3)])
    lr = recording.option(0, 0.5)
    assert isinstance(lr, float)
    assert is_number(1 - lr**2 / 3)
    assert (lr < 1, lr > 1, lr == 0.5, bool(lr), lr != 0) == (True, False, True, True, True)
    assert sorted(recording.guards.values()) == [False, False, True, True]
    assert recording.reason == ""
    assert float(lr) == 0.5
    assert recording.reason == "a function outside torch takes a number"


class MathExp(torch.optim.SGD):
    """One that computes a scalar where nobody can look."""

    def step(self, closure=None):  # noqa: ARG002
        import math

        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad, alpha=-math.exp(group["lr"]))


def test_what_is_not_understood_has_no_record():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    recording = recorder.run(MathExp([p], lr=0.25), [p, p.grad], ["lr"])
    assert recording.record() is None
    assert recording.reason == "a function outside torch takes a number"
    recording = recorder.Recording([p])
    with recording:
        p.norm()
    assert recording.record() is None
    assert "norm" in recording.reason


@pytest.mark.parametrize("text", ["Adam(lr=0.1, betas=(0.0, 0.9), fused=False)", "NAdam(betas=(0.0, 0.9))"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_beta_of_zero_gives_zeros_the_signs_that_torch_gives_them(text, dtype):
    """By their place: torch's loop takes whole vectors, and then what is left of each thread's share."""
    twins = Twins(text, [(dtype, n) for n in (1, 50, 100, 40_000)])
    for _ in range(4):
        twins.step()
    for value in (0.0, -0.0, 1.0, -0.0, 0.0):
        for (_, grad), p in zip(twins.ours, twins.theirs, strict=True):
            p.grad.fill_(value)[::2] = -0.0
            grad.copy_(p.grad)
        twins.reference.step()
        assert lib.opt_step(twins.opt) == 0
        for ours, p in zip(twins.state(), twins.theirs, strict=True):
            assert elementwise.is_same(ours["exp_avg"], twins.reference.state[p]["exp_avg"])
    assert twins.is_recorded()
    twins.end()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("text", ["NAdam(lr=0.1, foreach=True)", "RAdam(weight_decay=0.1, foreach=True)"])
def test_another_implementation_with_other_roundings_is_recorded_as_it_is(text, dtype):
    twins = Twins(text, [(dtype, n) for n in (2, 5, 40_000)])
    for _ in range(30):
        twins.step()
    assert twins.is_recorded(), twins.planner().records.reason
    twins.end()


@pytest.mark.parametrize("text", ["SGD(lr=0, fused=False)", "RMSprop(lr=0)", "Adadelta(lr=0)", "NAdam(lr=0)"])
def test_integers_have_one_zero(text):
    twins = Twins(text, [("float32", 20)])
    for i in range(8):
        if i >= 4:  # no sooner: the proof would see it
            twins.ours[0][0].fill_(-0.0)
            with torch.no_grad():
                twins.theirs[0].fill_(-0.0)
        twins.draw()
        twins.reference.step()
        assert lib.opt_step(twins.opt) == 0
        assert elementwise.is_same(twins.ours[0][0], twins.theirs[0].detach())
    assert twins.is_recorded()
    assert lib.opt_free(twins.opt) == 0


@pytest.mark.parametrize("text", ["RMSprop()", "Adamax()", "SGD(fused=False)"])
def test_a_rate_beyond_the_dtype_is_torchs_error(text):
    """It comes from a function of the host's: opt_set would refuse it, if torch does."""
    twins = Twins(text, [("float32", 5)])
    for _ in range(4):
        twins.step()
    assert twins.is_recorded()

    @ctypes_api.CALLBACK
    def rate(_, value):
        value[0] = 1e39 / 1e-3 if value[0] else 1
        return 0

    assert lib.opt_schedule_callback(twins.opt, b"LambdaLR()", rate, None) == 0, lib.opt_error()
    for _ in range(3):
        assert lib.opt_step(twins.opt) == 0
    assert lib.opt_schedule_step(twins.opt) == 0
    before = twins.ours[0][0].clone()
    assert lib.opt_step(twins.opt) < 0
    assert b"overflow" in lib.opt_error()
    assert torch.equal(twins.ours[0][0], before)
    assert lib.opt_free(twins.opt) == 0


@pytest.mark.parametrize("text", ["RMSprop(lr=0.1, momentum=0.9)", "SGD(lr=0.1, momentum=0.9, fused=False)"])
def test_a_schedule_that_takes_momentum_to_zero(text):
    twins = Twins(text, [("float32", 50)])
    spec = "CyclicLR(base_lr=0.01, max_lr=0.1, step_size_up=4, base_momentum=0.0, max_momentum=0.9)"
    assert lib.opt_schedule(twins.opt, spec.encode()) == 0, lib.opt_error()
    arguments = eval(f"dict({spec[9:]}")  # noqa: S307 - this file's own text
    scheduler = torch.optim.lr_scheduler.CyclicLR(twins.reference, **arguments)
    for _ in range(40):
        twins.step()
        scheduler.step()
        assert lib.opt_schedule_step(twins.opt) == 0
    twins.end()


@pytest.mark.parametrize("text", ["RMSprop(lr=0.1)", "Adadelta()", "Adamax()", "Rprop()"])
def test_the_processors_square_root_differs_in_last_bits(text):
    assert lib.opt_init(b"sqrt='processor'") == 0
    twins = Twins(text, [("float32", 40_000)])
    assert lib.opt_init(b"sqrt='torch'") == 0
    for _ in range(12):
        twins.draw()
        twins.reference.step()
        assert lib.opt_step(twins.opt) == 0
    assert twins.is_recorded()
    ours, theirs = twins.ours[0][0], twins.theirs[0].detach()
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    has_mkl = elementwise.choose("sqrt", torch.float32) == numbers.ELEMENTWISE_SQRT_MKL
    assert torch.equal(ours, theirs) == (not has_mkl or text in ("Adamax()", "Rprop()"))
    assert lib.opt_free(twins.opt) == 0


@pytest.mark.parametrize("dtype", elementwise.DTYPES)
def test_square_roots_differ_by_one_in_the_last_bit(dtype):
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(1_000_000, generator=generator, dtype=torch.float64).mul(1e3).to(dtype)
    rounded = torch.empty_like(values)
    assert elementwise.run(numbers.ELEMENTWISE_SQRT, rounded, values, values, values, 0.0, 0.0)
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    difference = (values.sqrt().view(bits) - rounded.view(bits)).abs()
    assert difference.max() <= 1
    assert (difference != 0).float().mean() < 0.25


@pytest.mark.parametrize("text", ["ASGD(lr=0.1)", "RMSprop(lr=0.1)"])
def test_another_default_dtype_is_minded(text):
    """ASGD makes a tensor of its next rate, which has the default dtype."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        twins = Twins(text, [("float64", 50)])
        for dtype in (torch.float64, torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            for _ in range(6):
                twins.step()
    finally:
        torch.set_default_dtype(before)
    twins.end()


@pytest.mark.parametrize("plans", ["True", "False"])
def test_a_forked_child_steps_long_arrays(plans):
    """Neither OpenMP's workers came along, nor MKL's, for which its square root would wait."""
    done = subprocess.run(
        [*hosts.PYTHON, "-c", CHILD, plans], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "0 0 0\n" * 3, done.stdout + done.stderr


CHILD = """
import os, signal, sys
import numpy as np
from optplug import ctypes_api
lib = ctypes_api.load()
assert lib.opt_init(f"plans={sys.argv[1]}, num_threads={min(2, os.cpu_count())}".encode()) == 0
def begun(spec):
    opt = lib.opt_create(spec)
    w, dw = np.ones(300_000, np.float32), np.ones(300_000, np.float32)
    assert lib.opt_bind(opt, b"w", b"float32", len(w), w.ctypes.data, dw.ctypes.data) == 0
    for _ in range(4):
        assert lib.opt_step(opt) == 0
    return opt, w, dw
stepped = [begun(spec) for spec in (b"RMSprop(lr=0.1)", b"RMSprop(lr=0.1, foreach=True)", b"Adam(lr=0.1)")]
for opt, *_ in stepped:
    if os.fork() == 0:
        signal.alarm(60)
        print(*(lib.opt_step(opt) for _ in range(3)), flush=True)
        os._exit(0)
    os.wait()
"""
