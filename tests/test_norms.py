"""Clipping long gradients: right, where PyTorch's own norm is off; and PyTorch's bits for all others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optplug.ctypes_api import Optimizer


def clipped(grads, max_norm, norm_type=2.0):
    opt = Optimizer("SGD(lr=0.5)")
    for i, grad in enumerate(grads):
        opt.bind(f"{i}", np.zeros_like(grad), grad)
    return opt.clip_grad_norm(max_norm, norm_type)


def long(shape):
    return np.random.default_rng(0).random(shape, np.float32)


@pytest.mark.parametrize(
    ("norm_type", "grad"),
    [
        (1.0, lambda: long(11_000_000)),
        (2.0, lambda: long(11_000_000)),
        (3.0, lambda: long((1100, 10_000))),
        (2.0, lambda: long((10_000, 1100)).T),
        (2.0, lambda: long((1100, 10_001))[:, 1:]),
        (1.0, lambda: long((11_000_000, 2))[:, 0]),
    ],
    ids=["one row", "one row, squares", "row-major", "column-major", "rows with gaps", "gaps everywhere"],
)
def test_the_norm_of_a_long_gradient_is_right(norm_type, grad):
    grad = grad()
    before = grad.astype(np.float64)
    right = (before.ravel() ** norm_type).sum() ** (1 / norm_type)
    assert clipped([grad], right / 4, norm_type) == pytest.approx(right, rel=5e-5)
    assert np.allclose(grad, before / 4, rtol=5e-5)


def test_a_norm_of_many_equal_values_is_right_to_the_last_bit():
    assert clipped([np.ones(1 << 26, np.float16)], 1e9) == 1 << 13  # 5792 by torch 2.13


def test_a_norm_that_is_no_number_is_told_and_changes_nothing():
    grad = np.ones(10_000_001, np.float32)
    grad[-1] = np.inf
    opt = Optimizer("SGD(lr=0.5)")
    opt.bind("w", np.zeros_like(grad), grad)
    with pytest.raises(RuntimeError, match="non-finite"):
        opt.clip_grad_norm(1.0, 2.0, error_if_nonfinite=True)
    assert (grad[:-1] == 1).all()


@pytest.mark.parametrize("n", [3, 100_000, 10_000_000])
@pytest.mark.parametrize("norm_type", [0.0, 1.0, 2.0, float("inf")])
def test_other_gradients_have_torchs_bits(n, norm_type):
    grads = [long(size) - np.float32(0.5) for size in (n, n // 2 + 1)]
    theirs = [torch.nn.Parameter(torch.zeros(len(grad))) for grad in grads]
    for p, grad in zip(theirs, grads, strict=True):
        p.grad = torch.from_numpy(grad.copy())
    assert clipped(grads, 0.5, norm_type) == torch.nn.utils.clip_grad_norm_(theirs, 0.5, norm_type).item()
    for p, grad in zip(theirs, grads, strict=True):
        assert p.grad.numpy().tobytes() == grad.tobytes()
