"""What optplug chooses itself, and what it does besides steps: PyTorch's bits and words as well."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import itertools
import re

import pytest
import torch

from pairs import (
    DENSE,
    DTYPES,
    FUSED,
    OPTIMIZERS,
    STEPS,
    Pair,
    Refused,
    both,
    classes,
    compare,
    lib,
    name_of,
    pytestmark,  # noqa: F401 (pytest finds them here)
)


@pytest.mark.parametrize(
    "text", [t for t in OPTIMIZERS if name_of(t) not in ("SparseAdam", "Muon", "LBFGS")][::2]
)
def test_foreach_is_taken_for_many_parameters_only_if_the_spec_says_so(text):
    for dtype, groups, layout in (("float32", [9], "rows"), ("float64", [4, 5], "gaps")):
        pair = Pair(text, dtype, layout, groups, "")
        pair.build()
        assert ("foreach=True" in lib.opt_describe(pair.opt).decode()) == ("foreach=True" in text)
        assert lib.opt_free(pair.opt) == 0
        assert compare(text, dtype, layout, groups, "StepLR(3)")


def test_the_comparison_sees_fused_kernels_from_others(monkeypatch):
    monkeypatch.setattr("pairs.FUSED", set())  # the reference takes the others
    with pytest.raises(AssertionError):
        compare("Adam(lr=0.1, betas=(0.8, 0.99))", "float32", "rows", [3], "")


@pytest.mark.parametrize("name", sorted(FUSED))
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2e-6), ("float64", 5e-15)])
def test_fused_kernels_differ_from_the_others_by_rounding_alone(name, dtype, bound):
    """What optplug's choice of kernel changes: a few units in the last place after 13 steps."""
    worst = 0.0
    for choice in ("fused=False", "fused=True"):
        pair = Pair(f"{name}(lr=0.01, {choice})", dtype, "rows", [3], "")
        other = Pair(f"{name}(lr=0.01)", dtype, "rows", [3], "")
        other.generator.manual_seed(1)
        pair.generator.manual_seed(1)
        for p in (pair, other):
            for a, _ in p.ours:
                a.tensor.copy_(p.random())
            assert p.build_ours() == 0
        for _ in range(STEPS):
            for p in (pair, other):
                for _, grad in p.ours:
                    grad.tensor.copy_(p.random())
                assert lib.opt_step(p.opt) == 0
        for (a, _), (b, _) in zip(pair.ours, other.ours, strict=True):
            worst = max(worst, float(((a.tensor - b.tensor).abs() / b.tensor.abs().clamp(min=0.1)).max()))
        if choice == "fused=True":
            assert all(a.bits() == b.bits() for (a, _), (b, _) in zip(pair.ours, other.ours, strict=True))
        assert lib.opt_free(pair.opt) == lib.opt_free(other.opt) == 0
    assert worst <= bound


def in_turn(choices: list) -> list[tuple]:
    """Return every dtype in every layout with two of four choices, which take turns."""
    pairs = itertools.product(enumerate(DTYPES), enumerate(DENSE))
    return [(d, name, choice) for (i, d), (j, name) in pairs for choice in choices[(i + j) % 2 :: 2]]


@pytest.mark.parametrize(("dtype", "layout", "norm_type"), in_turn([1.0, 2.0, 3.0, float("inf")]))
def test_clipping_is_bit_for_bit_torchs(dtype, layout, norm_type):
    pair = Pair("SGD()", dtype, layout, [3], "")
    pair.build_theirs()
    assert pair.build_ours() == 0
    clip = (torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad_value_)
    for max_norm, value in ((1e6, 0.9), (1.5, 0.4), (0.0, 0.0)):
        pair.draw()
        norm, norms = ctypes.c_double(), []
        with contextlib.suppress(Refused):  # an empty array has no largest value
            both(
                lambda: norms.append(float(clip[0](pair.parameters, max_norm, norm_type))),  # noqa: B023
                lambda: lib.opt_clip_grad_norm(pair.opt, max_norm, norm_type, 0, norm),  # noqa: B023
            )
            assert norm.value == norms[0]
        with contextlib.suppress(Refused):  # torch clamps no complex numbers
            both(
                lambda v=value: clip[1](pair.parameters, v),
                lambda v=value: lib.opt_clip_grad_value(pair.opt, v),
            )
        pair.compare()
    assert lib.opt_free(pair.opt) == 0


AVERAGES = [
    "",
    "avg_fn=get_ema_avg_fn(0.9)",
    "multi_avg_fn=get_ema_multi_avg_fn(0.7)",
    "multi_avg_fn=get_swa_multi_avg_fn()",
]


@pytest.mark.parametrize(("dtype", "layout", "average"), in_turn(AVERAGES))
def test_averages_are_bit_for_bit_torchs(dtype, layout, average):
    pair = Pair("SGD(lr=0.1)", dtype, layout, [3], "")
    pair.build_theirs()
    assert pair.build_ours() == 0
    module = torch.nn.ParameterList(pair.parameters)
    averaged = eval(f"AveragedModel(module, {average})", vars(torch.optim.swa_utils), {"module": module})  # noqa: S307
    assert lib.opt_average(pair.opt, f"AveragedModel({average})".encode()) == 0
    for _ in range(STEPS):
        pair.step()
        averaged.update_parameters(module)
    for i, expected in enumerate(averaged.module):
        found = torch.empty(expected.numel() + 1, dtype=expected.dtype)  # an empty one has no address
        assert lib.opt_average_get(pair.opt, f"p{i}".encode(), found.data_ptr()) == 0
        assert torch.equal(found[:-1].view(expected.shape), expected)
    pair.compare()
    assert lib.opt_average_swap(pair.opt) == 0
    for (a, _), expected in zip(pair.ours, averaged.module, strict=True):
        assert torch.equal(a.tensor, expected)
    assert lib.opt_average_swap(pair.opt) == 0
    pair.compare()
    assert lib.opt_free(pair.opt) == 0


def bad_arguments():
    """Each argument of each optimizer with values that it may not like."""
    for name in sorted(classes(torch.optim, torch.optim.Optimizer)):
        for argument in list(inspect.signature(getattr(torch.optim, name)).parameters)[1:]:
            for value in ("-1", "-1.0", "(2.0, -1.0)", "'no'", "None", "True", "[]"):
                yield name, argument, value


def build_and_step(name, arguments) -> None:
    """Find out whether torch takes these arguments: some are looked at in a step only."""
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    parameter.grad = torch.ones(2, 2)
    if name in FUSED and not {"fused", "foreach", "capturable", "differentiable"} & arguments.keys():
        arguments = {"fused": True, **arguments}
    optimizer = getattr(torch.optim, name)([parameter], **arguments)
    if name != "SparseAdam":
        optimizer.step(*[lambda: 0.0] * (name == "LBFGS"))


def test_every_error_of_an_optimizer_comes_at_its_creation_in_torchs_words():
    """Or before torch is asked, where a value is of another kind than torch's documentation has it."""
    errors = 0
    for name, argument, value in bad_arguments():
        given = {argument: eval(value)}  # noqa: S307 - this file's own text
        spec = f"{name}({argument}={value})".encode()
        opt = lib.opt_create(spec)
        if opt < 0 and re.search(rf"{argument} must be .*, got", lib.opt_error().decode()):
            errors += 1
            continue
        try:
            both(functools.partial(build_and_step, name, given), lambda opt=opt: opt)
            assert lib.opt_free(opt) == 0
        except Refused:
            errors += 1
    assert errors > 200


def test_thousands_of_parameters_are_stepped_by_one_optimizer():
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(3000, 3, generator=generator)
    theirs, grads = ours.clone(), torch.randn(3000, 3, generator=generator)
    parameters = [torch.nn.Parameter(row) for row in theirs]
    for p, grad in zip(parameters, grads, strict=True):
        p.grad = grad
    reference = torch.optim.Adam(parameters, lr=0.1, fused=True)
    opt = lib.opt_create(b"Adam(lr=0.1)")
    for i, (row, grad) in enumerate(zip(ours, grads, strict=True)):
        assert lib.opt_bind(opt, str(i).encode(), b"float32", 3, row.data_ptr(), grad.data_ptr()) == 0
    for _ in range(3):
        assert lib.opt_step(opt) == 0
        reference.step()
    assert torch.equal(ours, theirs)
    assert lib.opt_free(opt) == 0
