"""What C does around steps: averages, clipping and zeroing, with the bits of torch's own functions."""

from __future__ import annotations

import ctypes
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from optplug import _bridge, elementwise, followers
from planned_twins import Twins, UnfusedTwins, direct_plans, lib  # noqa: F401 (pytest finds the fixture here)

AVERAGES = {
    "AveragedModel()": {},
    "AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.99))": {
        "multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.99)
    },
    "AveragedModel(multi_avg_fn=get_swa_multi_avg_fn())": {"multi_avg_fn": swa_utils.get_swa_multi_avg_fn()},
    "AveragedModel(avg_fn=get_ema_avg_fn(0.9))": {"avg_fn": swa_utils.get_ema_avg_fn(0.9)},
}


pytestmark = pytest.mark.usefixtures("direct_plans")


def average_of(twins, i, dtype):
    value = torch.empty(len(twins.ours[i][0]), dtype=dtype)
    assert lib.opt_average_get(twins.opt, b"p%d" % i, value.data_ptr()) == 0, lib.opt_error()
    return value


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float64", "float32")])
@pytest.mark.parametrize("text", ["AdamW(lr=0.1)", "RMSprop(lr=0.1)"])
@pytest.mark.parametrize("average", AVERAGES)
def test_averages_follow_a_plan(text, average, dtypes):
    twins = (Twins if text.startswith("AdamW") else UnfusedTwins)(
        text, list(zip(dtypes, (7, 40_000), strict=True))
    )
    assert lib.opt_average(twins.opt, average.encode()) == 0, lib.opt_error()
    reference = swa_utils.AveragedModel(nn.ParameterList(twins.theirs), **AVERAGES[average])
    for _ in range(8):
        twins.step()
        reference.update_parameters(nn.ParameterList(twins.theirs))
        for i, p in enumerate(reference.module):
            assert torch.equal(average_of(twins, i, p.dtype), p)
    assert twins.is_planned()
    assert "AveragedModel" in twins.described().split("\n")[1]
    assert _bridge.optimizer_of(twins.opt).run.average.count() == reference.n_averaged == 8
    # A step is refused while the averages are swapped in, and goes on without Python after that.
    assert lib.opt_average_swap(twins.opt) == 0
    assert lib.opt_step(twins.opt) < 0
    assert lib.opt_average_swap(twins.opt) == 0
    for _ in range(3):
        twins.step()
        reference.update_parameters(nn.ParameterList(twins.theirs))
    assert twins.is_planned()
    assert torch.equal(average_of(twins, 0, reference.module[0].dtype), reference.module[0])
    assert lib.opt_free(twins.opt) == 0


def test_an_average_that_c_cannot_take_steps_by_python():
    twins = Twins("AdamW(lr=0.1)", [("bfloat16", 7)])
    assert lib.opt_average(twins.opt, b"AveragedModel()") == 0
    for _ in range(4):
        twins.step()
    assert not twins.is_planned()
    assert lib.opt_free(twins.opt) == 0


class Clipped:
    """Gradients of an optimizer with a plan, and the same for torch."""

    def __init__(self, dtype, lengths):
        self.twins = Twins("SGD(lr=0.0)", [(dtype, n) for n in lengths])
        for _ in range(2):
            self.twins.step()
        self.norm = ctypes.c_double()

    def clip(self, max_norm=1.0, norm_type=2.0, is_error=False, size=1.0):
        """Clip by norm, in both; return what optplug returns."""
        self.twins.draw()
        for (_, grad), p in zip(self.twins.ours, self.twins.theirs, strict=True):
            p.grad.mul_(size)
            grad.copy_(p.grad)
        status = lib.opt_clip_grad_norm(self.twins.opt, max_norm, norm_type, is_error, self.norm)
        expected = nn.utils.clip_grad_norm_(self.twins.theirs, max_norm, norm_type)
        assert self.norm.value == float(expected) or (math.isnan(self.norm.value) and expected.isnan())
        self.compare()
        return status

    def compare(self):
        for (_, grad), p in zip(self.twins.ours, self.twins.theirs, strict=True):
            assert elementwise.is_same(grad, p.grad)

    def is_in_c(self):
        plan = _bridge.optimizer_of(self.twins.opt).plan
        return bool(plan and plan.gradients and plan.gradients.lanes)

    def end(self):
        assert lib.opt_free(self.twins.opt) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lengths", [*([n] for n in range(1, 34)), [1003], [100_003], [3, 50, 17], [11] * 20])
def test_gradients_are_clipped_to_torchs_bits(dtype, lengths):
    gradients = Clipped(dtype, lengths)
    for max_norm in (1.0, 1e-3, 0.0, 1e9, math.inf, 0.3, 0.7):
        assert gradients.clip(max_norm) == 0
        assert gradients.is_in_c()
    gradients.end()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lengths", [[1], [2], [1] * 9, [1, 50]])
def test_gradients_that_are_tiny_or_huge_are_clipped_as_torch_does(dtype, lengths):
    gradients = Clipped(dtype, lengths)
    for size in (1e-20, 1e-42, 1e-160, 1e-310, 1e15, 1e25, 1e200):
        assert gradients.clip(0.5, size=size) == 0
    gradients.end()


def test_norms_of_other_kinds_are_pythons():
    gradients = Clipped("float32", [5, 70])
    for norm_type in (1.0, 3.0, math.inf, 0.0, 2.0):
        assert gradients.clip(0.5, norm_type) == 0
    gradients.end()


def test_gradients_that_are_not_finite_are_clipped_as_torch_does():
    gradients = Clipped("float32", [5, 70])
    assert gradients.clip() == 0
    (_, grad), p = gradients.twins.ours[0], gradients.twins.theirs[0]
    for value in (math.inf, -math.inf, math.nan):
        for is_error in (False, True):
            gradients.twins.draw()
            grad[2] = p.grad[2] = value
            before = grad.clone()
            status = lib.opt_clip_grad_norm(gradients.twins.opt, 1.0, 2.0, is_error, gradients.norm)
            if is_error:
                assert status < 0
                assert b"non-finite" in lib.opt_error()
                assert np.array_equal(grad, before, equal_nan=True)
                continue
            nn.utils.clip_grad_norm_(gradients.twins.theirs, 1.0)
            assert status == 0
            assert np.array_equal(grad, p.grad, equal_nan=True)
    gradients.end()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_are_clamped_and_zeroed_without_python(dtype):
    gradients = Clipped(dtype, [1, 50, 40_000])
    for clip_value in (0.5, 0.5, 0.0, 1e-3, math.inf):
        gradients.twins.draw()
        gradients.twins.ours[0][1][0] = gradients.twins.theirs[0].grad[0] = math.inf
        assert lib.opt_clip_grad_value(gradients.twins.opt, clip_value) == 0
        nn.utils.clip_grad_value_(gradients.twins.theirs, clip_value)
        gradients.compare()
    for clip_value in (-1.0, math.nan):
        assert lib.opt_clip_grad_value(gradients.twins.opt, clip_value) < 0
        assert lib.opt_clip_grad_norm(gradients.twins.opt, clip_value, 2.0, 0, None) < 0
        assert b"must be a number from 0" in lib.opt_error()
        gradients.compare()
    assert lib.opt_zero_grad(gradients.twins.opt) == 0
    for _, grad in gradients.twins.ours:
        assert not grad.any()
    gradients.end()


def test_a_value_beyond_the_dtype_is_torchs_error():
    gradients = Clipped("float32", [5])
    assert lib.opt_clip_grad_value(gradients.twins.opt, 1.0) == 0
    with pytest.raises(RuntimeError, match="overflow"):
        nn.utils.clip_grad_value_(gradients.twins.theirs, 1e39)
    assert lib.opt_clip_grad_value(gradients.twins.opt, 1e39) < 0
    assert b"overflow" in lib.opt_error()
    assert gradients.clip(1e39) == 0
    gradients.end()


def test_lanes_that_are_not_torchs_are_noticed():
    known = followers._clipping(torch.float32)
    assert known.lanes
    found = known.lanes, known.fused, known.chunk % known.lanes
    for lanes, fused, chunk in itertools.product((4, 8, 16), (0, 1), (0, 1, 2, 4, 8)):
        if (lanes, fused, chunk % lanes) == found:  # the rest, less than the lanes, has no such chunk
            continue
        how = followers.replace(known, lanes=lanes, fused=fused, chunk=chunk)
        assert not all(followers._clips_as_torch(how, torch.float32, *case) for case in followers._CASES)
