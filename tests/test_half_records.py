"""Records in half precision, whose last bits go by a value's place in its array and by the threads."""

from __future__ import annotations

import math

import pytest
import torch
from optplug._optplug import lib as numbers

from optplug import elementwise, rehearsal
from planned_twins import FUSED_SGD_DTYPES, direct_plans, lib  # noqa: F401 (pytest finds the fixture here)
from test_records import RECORDED, Twins

pytestmark = pytest.mark.usefixtures("direct_plans")

HALVES = ["float16", "bfloat16"]
# Whole vectors, one more, one less; a share for each of two threads, and three.
SIZES = [1, 50, 63, 64, 65, 4097, 40_000, 100_003]


def is_same(twins: Twins) -> bool:
    """Compare bits, but for those of what is no number: float16 soon has infinities."""
    return all(
        elementwise.is_same(value, p.detach()) for (value, _), p in zip(twins.ours, twins.theirs, strict=True)
    )


def step(twins: Twins) -> None:
    twins.draw()
    twins.reference.step()
    assert lib.opt_step(twins.opt) == 0, lib.opt_error()
    assert is_same(twins), twins.described()


def end(twins: Twins) -> None:
    for ours, p in zip(twins.state(), twins.theirs, strict=True):
        for key, value in twins.reference.state[p].items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                assert elementwise.is_same(ours[key], value), key
    assert lib.opt_free(twins.opt) == 0


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("text", [text for text in RECORDED if "foreach" not in text])
def test_a_record_has_torchs_bits(text, dtype):
    twins = Twins(text, [(dtype, n) for n in SIZES])
    for _ in range(6):
        step(twins)
    assert twins.is_recorded(), twins.planner().records.reason
    for _ in range(9):
        step(twins)
    assert twins.is_recorded(), twins.planner().records.reason
    end(twins)


@pytest.mark.parametrize("dtype", [dtype for dtype in HALVES if dtype not in FUSED_SGD_DTYPES])
@pytest.mark.parametrize("text", ["SGD(lr=0.1)", "SGD(lr=0.1, momentum=0.9)"])
def test_the_default_sgd_is_recorded(text, dtype):
    """Up to 2.13 torch's fused SGD leaves values in half precision as they were, so it is not used."""
    twins = Twins(text, [(dtype, 50)], [(dtype, 100_003)])
    for _ in range(5):
        step(twins)
    assert twins.is_recorded(), twins.planner().records.reason
    end(twins)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("text", ["RAdam(weight_decay=0.1, foreach=True)", "AdamW(lr=0.1, foreach=True)"])
def test_kernels_for_lists_that_round_otherwise_are_left_to_python(text, dtype):
    """What RAdam changes at lr=0.001 is so little that bfloat16 seldom shows how it was rounded."""
    twins = Twins(text, [(dtype, n) for n in (2, 5, 4000)])
    for _ in range(30):
        step(twins)
    assert not twins.is_recorded()
    assert "foreach=True in half precision" in twins.described()
    end(twins)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", HALVES)
def test_values_are_shared_among_threads_as_torch_does(dtype, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        sizes = [32_767, 32_768, 32_769, 65_537, 98_305, 123_457]
        twins = Twins("SGD(lr=0.3, momentum=0.9, fused=False)", [(dtype, n) for n in sizes])
        for _ in range(6):
            step(twins)
        assert twins.is_recorded(), twins.planner().records.reason
        end(twins)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", HALVES)
def test_other_threads_than_those_of_the_proof(dtype):
    before = torch.get_num_threads()
    twins = Twins("SGD(lr=0.3, momentum=0.9, fused=False)", [(dtype, 123_457)])
    try:
        for threads in (2, 2, 2, 1, 1, 3, 3, 2):
            torch.set_num_threads(threads)
            step(twins)
        assert twins.is_recorded()
    finally:
        torch.set_num_threads(before)
    end(twins)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("text", ["SGD(lr=0.3, fused=False)", "RMSprop(lr=0.1)", "Adamax()", "Rprop(lr=0.1)"])
def test_gradients_of_all_kinds(text, dtype):
    twins = Twins(text, [(dtype, 100)])
    for value in (1.0, 0.0, -0.0, 1e-7, -6e4, float("inf"), 1.0, float("nan"), 1.0):
        twins.ours[0][1].fill_(1)[::3] = value
        twins.theirs[0].grad.copy_(twins.ours[0][1])
        twins.reference.step()
        assert lib.opt_step(twins.opt) == 0, lib.opt_error()
        assert is_same(twins)
    end(twins)


@pytest.mark.parametrize(
    ("dtype", "name", "wrong"),
    [
        ("float16", "add", "ADD_BFLOAT16"),
        ("bfloat16", "add", "ADD_FLOAT16"),
        ("bfloat16", "add", "ADD_FMA"),
        ("float16", "add", "ADD_FMA"),
    ],
)
def test_another_rounding_at_the_end_of_an_array_is_noticed(monkeypatch, dtype, name, wrong):
    real = elementwise.at_end
    number = getattr(numbers, f"ELEMENTWISE_{wrong}")
    monkeypatch.setattr(
        elementwise, "at_end", lambda kind, *how: number if kind == name else real(kind, *how)
    )
    rehearsal._known.clear()
    twins = Twins("SGD(lr=0.1, fused=False)", [(dtype, 50)])
    for _ in range(4):
        step(twins)
    assert not twins.is_recorded()
    assert twins.planner().records.reason == "its record gave other bits than the step"
    end(twins)
    rehearsal._known.clear()


@pytest.mark.parametrize("dtype", HALVES)
def test_vectors_of_another_length_are_noticed(monkeypatch, dtype):
    real = elementwise.lanes
    for factor in (0.5, 2):
        monkeypatch.setattr(elementwise, "lanes", lambda *of, by=factor: int(real(*of) * by))
        rehearsal._known.clear()
        twins = Twins("SGD(lr=0.1, fused=False)", [(dtype, 61)])
        for _ in range(4):
            step(twins)
        assert not twins.is_recorded()
        end(twins)
    rehearsal._known.clear()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_c_rounds_as_torch(dtype):
    """All values that there are, and halfway between them, and beside that."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    result = torch.empty_like(values)
    assert elementwise.run(numbers.ELEMENTWISE_COPY, result, values, values, values, 0.0, 0.0)
    assert elementwise.is_same(values, result)
    steps = torch.arange(-(2**31), 2**31, 4093, dtype=torch.int64).to(torch.int32).view(torch.float32)
    ties = values.float().view(torch.int32) + (1 << (12 if dtype == torch.float16 else 15))
    beside = torch.cat([(ties + by).view(torch.float32) for by in (-1, 0, 1)])
    for value in (steps, beside):
        expected, found = value.to(dtype), value.clone()
        name = str(dtype).removeprefix("torch.").upper()
        assert elementwise.run(
            getattr(numbers, f"ELEMENTWISE_ROUND_{name}"), found, value, value, value, 0.0, 0.0
        )
        assert elementwise.is_same(expected.float(), found)


@pytest.mark.parametrize("dtype", elementwise.DTYPES)
@pytest.mark.parametrize("bounds", [(0.0, 2.0), (-0.0, 2.0), (-2.0, 0.0), (-2.0, -0.0), (0.5, 0.25)])
def test_a_clamp_that_orders_zeros(bounds, dtype):
    """That of PyTorch for ARM, which other processors do not show."""

    def ordered(value):
        return value, math.copysign(1.0, value)

    values = [-3.0, -0.0, 0.0, 0.3, 1.0, 3.0, math.inf, -math.inf]
    clamped = {
        "CLAMP_ZEROS": lambda x: min(max(x, bounds[0], key=ordered), bounds[1], key=ordered),
        "CLAMP_MIN_ZEROS": lambda x: max(x, bounds[0], key=ordered),
        "CLAMP_MAX_ZEROS": lambda x: min(x, bounds[0], key=ordered),
    }
    given = torch.tensor([*values, math.nan], dtype=dtype)
    for name, clamp in clamped.items():
        found = torch.empty_like(given)
        number = getattr(numbers, f"ELEMENTWISE_{name}")
        assert elementwise.run(number, found, given, given, given, *bounds)
        assert elementwise.is_same(torch.tensor([*map(clamp, values), math.nan], dtype=dtype), found)


def test_a_rate_beyond_float16_is_torchs_error():
    twins = Twins("SGD(lr=1.0, fused=False)", [("float16", 5)])
    for _ in range(4):
        step(twins)
    assert twins.is_recorded()
    before = twins.ours[0][0].clone()
    assert lib.opt_set_value(twins.opt, -1, b"lr", 65505.0) == 0, lib.opt_error()
    assert lib.opt_step(twins.opt) < 0
    assert b"overflow" in lib.opt_error()
    assert torch.equal(twins.ours[0][0], before)
    assert lib.opt_free(twins.opt) == 0
