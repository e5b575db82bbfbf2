"""Every number is PyTorch's: each case runs beside torch.optim, live, and is compared bit for bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import hosts

lib = hosts.load()

STEPS = 20
SPECS = [
    "Adadelta()",
    "Adadelta(lr=0.5, rho=0.8, weight_decay=0.01, maximize=True)",
    "Adafactor()",
    "Adafactor(lr=0.05, beta2_decay=-0.5, weight_decay=0.1, maximize=True)",
    "Adagrad()",
    "Adagrad(lr=0.1, lr_decay=0.01, weight_decay=0.01, initial_accumulator_value=0.1, maximize=True)",
    "Adam()",
    "Adam(lr=0.1, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.01, amsgrad=True, maximize=True)",
    "Adam(lr=0.1, foreach=True)",
    "Adam(lr=0.1, fused=False)",
    "Adamax()",
    "Adamax(lr=0.1, weight_decay=0.01, maximize=True)",
    "AdamW()",
    "AdamW(lr=0.1, weight_decay=0.1, amsgrad=True)",
    "ASGD()",
    "ASGD(lr=0.1, t0=5, weight_decay=0.01, maximize=True)",
    "Muon()",
    "Muon(lr=0.1, momentum=0.9, nesterov=False, ns_steps=3, adjust_lr_fn='match_rms_adamw')",
    "NAdam()",
    "NAdam(lr=0.1, weight_decay=0.01, decoupled_weight_decay=True)",
    "RAdam()",
    "RAdam(lr=0.1, weight_decay=0.01, decoupled_weight_decay=True)",
    "RMSprop()",
    "RMSprop(lr=0.1, momentum=0.9, centered=True, weight_decay=0.01)",
    "Rprop()",
    "Rprop(lr=0.1, etas=(0.4, 1.3), step_sizes=(1e-5, 10), maximize=True)",
    "SGD()",
    "SGD(lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01)",
    "SGD(lr=0.1, momentum=0.9, nesterov=True, maximize=True)",
]
FUSED = {"Adam", "AdamW", "SGD", "Adagrad"}

# name: (shape, strides of the data, strides of the gradient)
LAYOUTS = {
    "rows": ((7, 5), (5, 1), (5, 1)),
    "columns": ((7, 5), (1, 7), (1, 7)),
    "rows and columns": ((7, 5), (5, 1), (1, 7)),
    "gaps": ((7, 5), (20, 2), (20, 2)),
    "gaps in the gradient": ((7, 5), (5, 1), (10, 2)),
}
SAFE_FOR_FUSED = {"rows", "columns"}


def test_every_optimizer_that_needs_no_closure_is_here():
    classes = {
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    compared = {spec.partition("(")[0] for spec in SPECS}
    # LBFGS needs a closure, SparseAdam sparse gradients.
    assert classes - compared == {"Optimizer", "LBFGS", "SparseAdam"}


class Array:
    """An array in memory of its own, with a tensor that looks at it and canaries in its gaps."""

    def __init__(self, dtype, shape, strides):
        self.memory = np.full(1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)), 9, dtype)
        self.tensor = torch.as_strided(torch.from_numpy(self.memory), shape, strides)
        self.shape = (hosts.ctypes.c_int64 * len(shape))(*shape)
        self.strides = (hosts.ctypes.c_int64 * len(strides))(*strides)


def compare(spec, dtype, layout, count):
    """Run both for STEPS steps and compare the whole memory, gaps included, after each."""
    shape, strides, grad_strides = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(len(spec) * 31 + count)
    ours, theirs = (
        [(Array(dtype, shape, strides), Array(dtype, shape, grad_strides)) for _ in range(count)]
        for _ in "ab"
    )
    for (a, _), (b, _) in zip(ours, theirs, strict=True):
        a.tensor.copy_(torch.randn(shape, generator=generator))
        b.tensor.copy_(a.tensor)

    name, _, rest = spec.partition("(")
    arguments = eval(f"dict({rest}", {})  # noqa: S307 - the spec is this file's own
    chosen = {"fused", "foreach", "capturable", "differentiable"} & arguments.keys()
    if name in FUSED and layout in SAFE_FOR_FUSED and not chosen:
        arguments["fused"] = True
    parameters = [torch.nn.Parameter(b.tensor) for b, _ in theirs]
    for p, (_, grad) in zip(parameters, theirs, strict=True):
        p.grad = grad.tensor
    reference = getattr(torch.optim, name)(parameters, **arguments)

    opt = lib.opt_create(spec.encode())
    assert opt > 0, lib.opt_error()
    for i, (data, grad) in enumerate(ours):
        assert (
            lib.opt_bind_nd(
                opt,
                f"p{i}".encode(),
                str(np.dtype(dtype)).encode(),
                b"cpu",
                len(shape),
                data.shape,
                data.memory.ctypes.data,
                data.strides,
                grad.memory.ctypes.data,
                grad.strides,
            )
            == 0
        ), lib.opt_error()
    for _ in range(STEPS):
        for (_, a), (_, b) in zip(ours, theirs, strict=True):
            a.tensor.copy_(torch.randn(shape, generator=generator))
            b.tensor.copy_(a.tensor)
        assert lib.opt_step(opt) == 0, lib.opt_error()
        reference.step()
        for (a, da), (b, db) in zip(ours, theirs, strict=True):
            assert a.memory.tobytes() == b.memory.tobytes()
            assert da.memory.tobytes() == db.memory.tobytes()
    assert lib.opt_free(opt) == 0


@pytest.mark.parametrize("spec", SPECS)
def test_twenty_steps_are_bit_for_bit_those_of_torch(spec):
    for dtype, layout, count in itertools.product(("float32", "float64"), LAYOUTS, (1, 3)):
        compare(spec, dtype, layout, count)


def test_the_comparison_sees_a_single_wrong_bit(monkeypatch):
    # A layout whose name the reference does not know as safe is stepped unfused there, and fused here.
    monkeypatch.setitem(LAYOUTS, "wrong", LAYOUTS["rows"])
    with pytest.raises(AssertionError):
        compare("Adam(lr=0.1, betas=(0.8, 0.99))", "float32", "wrong", 3)


def test_sparse_adam_says_what_it_misses():
    w, dw = np.zeros(3), np.zeros(3)
    opt = lib.opt_create(b"SparseAdam()")
    assert lib.opt_bind(opt, b"w", b"float64", 3, w.ctypes.data, dw.ctypes.data) == 0
    assert lib.opt_step(opt) == -5
    assert b"SparseAdam does not support dense gradients" in lib.opt_error()
    assert lib.opt_free(opt) == 0
