"""On a GPU: the numbers are PyTorch's there, to the bit, and nothing waits that need not.

In an environment that has optplug, a torch that is built for the GPU, and pytest:

    python -m pytest tests/test_gpu.py

CMake, a GPU's toolkit and optplug's own build are not needed; a C compiler is, for the host in C.
"""

from __future__ import annotations

import ctypes
import io
import time

import pytest
import torch

from gpu_twins import DTYPES, FUSED, OPTIMIZERS, SHAPES, Twins, as_found, busy, lib, pytestmark, saved  # noqa: F401 (pytest finds them here)
from optplug import recipe

# ---- numbers ----


def test_every_optimizer_is_here():
    assert {spec.partition("(")[0] for spec in OPTIMIZERS} == recipe.classes().keys() - {"SparseAdam"}


@pytest.mark.parametrize("plans", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", sorted(OPTIMIZERS))
def test_steps_are_torchs(spec, dtype, plans):
    assert lib.opt_init(f"plans={plans}".encode()) == 0
    twins = Twins(spec, dtype)
    twins.step(10)
    assert twins.is_planned() == (
        plans and spec.partition("(")[0] in ("Adam", "AdamW", "SGD") and "fused" not in spec
    )
    twins.end()


@pytest.mark.parametrize(
    "layout", [lambda t: t.t().contiguous().t(), lambda t: t.repeat(1, 2)[:, : t.shape[1]]]
)
@pytest.mark.parametrize("spec", ["Adam()", "RMSprop()"])
def test_layouts(spec, layout):
    twins = Twins(spec)
    twins.ours = [(layout(p), layout(g)) for p, g in twins.ours]
    for i in range(len(twins.ours)):
        assert twins.bind(i) == 0, lib.opt_error()
    assert lib.opt_save_memory(twins.opt, None, 0) > 0
    for _ in range(6):
        twins.draw()
        assert lib.opt_step(twins.opt) == 0, lib.opt_error()
        twins.reference.step()
        for (p, _), other in zip(twins.ours, twins.theirs, strict=True):
            assert torch.allclose(p, other.detach(), rtol=1e-5, atol=1e-6)
    twins.end()


@pytest.mark.parametrize("plans", [True, False])
@pytest.mark.parametrize("spec", FUSED)
def test_bfloat16_with_master_copies(spec, plans):
    assert lib.opt_init(f"plans={plans}, master_weights=True".encode()) == 0
    twins = Twins(spec, torch.bfloat16, masters=True)
    twins.step(10)
    twins.end()


@pytest.mark.parametrize("overflows", [set(), {0}, {1, 4}], ids=str)
@pytest.mark.parametrize("spec", [*FUSED, "RMSprop()"])
def test_scaled_gradients(spec, overflows):
    twins = Twins(spec)
    scale, found_inf = torch.ones(1, device="cuda:0"), torch.zeros(1, device="cuda:0")
    assert lib.opt_grad_scale(twins.opt, scale.data_ptr(), found_inf.data_ptr()) == 0, lib.opt_error()
    for i in range(8):
        twins.draw()
        scale.fill_(2.0**i)
        found_inf.fill_(i in overflows)
        for _, g in twins.ours:
            g.mul_(2.0**i)
        torch.cuda.synchronize()
        assert lib.opt_step(twins.opt) == 0, lib.opt_error()
        if i not in overflows:
            twins.reference.step()
        twins.compare()
    twins.end()


def test_clipping_zeroing_and_averages():
    twins, norm = Twins("Adam(lr=0.01)"), ctypes.c_double()
    assert lib.opt_average(twins.opt, b"AveragedModel()") == 0, lib.opt_error()
    module = torch.nn.ParameterList(twins.theirs)
    averaged = torch.optim.swa_utils.AveragedModel(module)
    for i in range(6):
        twins.draw()
        where = ctypes.byref(norm) if i % 2 else None
        assert lib.opt_clip_grad_norm(twins.opt, 1.0, 2.0, 0, where) == 0
        expected = torch.nn.utils.clip_grad_norm_(twins.theirs, 1.0)
        assert not i % 2 or norm.value == expected.item()
        assert lib.opt_step(twins.opt) == 0
        twins.reference.step()
        averaged.update_parameters(module)
        twins.compare()
    expected = [p.detach() for p in averaged.parameters()]
    for device in ("cpu", "cuda:0"):
        found = torch.zeros(SHAPES[1], device=device)
        assert lib.opt_average_get(twins.opt, b"p1", found.data_ptr()) == 0, lib.opt_error()
        torch.cuda.synchronize()
        assert torch.equal(found.cpu(), expected[1].cpu())
    assert lib.opt_average_swap(twins.opt) == 0
    torch.cuda.synchronize()
    assert all(torch.equal(p, value) for (p, _), value in zip(twins.ours, expected, strict=True))
    assert lib.opt_zero_grad(twins.opt) == 0
    torch.cuda.synchronize()
    assert not any(g.any() for _, g in twins.ours)
    twins.end()


@pytest.mark.parametrize("spec", sorted(OPTIMIZERS))
def test_checkpoints_go_on_bit_for_bit(spec):
    """On the GPU exactly; and over the CPU and back nothing of the state is lost."""
    twins, other, here = Twins(spec), Twins(spec), Twins(spec, device="cpu")
    twins.step(4)
    text = saved(twins.opt)
    assert lib.opt_load_memory(here.opt, text, len(text)) == 0, lib.opt_error()
    back = saved(here.opt)
    ours, theirs = (torch.load(io.BytesIO(t), weights_only=True)["optimizer"]["state"] for t in (text, back))
    for key, state in ours.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, theirs[key][name])
    for (p, _), (q, _) in zip(twins.ours, other.ours, strict=True):
        q.copy_(p)
    torch.cuda.synchronize()
    assert lib.opt_load_memory(other.opt, back, len(back)) == 0, lib.opt_error()
    other.theirs, other.reference, other.generator = twins.theirs, twins.reference, twins.generator
    other.step(4)
    for run in (twins, other, here):
        run.end()


@pytest.mark.parametrize(
    ("spec", "options"),
    [(s, o) for s in (*FUSED, "RMSprop()", "NAdam()") for o in ("plans=True", "plans=False")]
    + [("AdamW()", "master_weights=True")],
)
def test_a_step_waits_for_nothing(spec, options):
    assert lib.opt_init(options.encode()) == 0
    masters = "master" in options
    twins, stream = (
        Twins(spec, torch.bfloat16 if masters else torch.float32, masters=masters),
        torch.cuda.Stream(0),
    )
    assert lib.opt_stream(twins.opt, stream.cuda_stream) == 0, lib.opt_error()
    twins.step(4)
    twins.draw()
    before = [p.clone() for p, _ in twins.ours]
    busy(stream)
    start = time.perf_counter()
    assert lib.opt_step(twins.opt) == 0
    took = time.perf_counter() - start
    assert not stream.query(), "the work before it is done already: it was not on that stream"
    assert took < 0.1
    assert all(torch.equal(p, value) for (p, _), value in zip(twins.ours, before, strict=True))
    twins.reference.step()
    twins.compare()
    twins.end()


def test_the_default_is_torchs_current_stream():
    twins, stream = Twins("Adam()"), torch.cuda.Stream(0)
    twins.step(4)
    twins.draw()
    with torch.cuda.stream(stream):
        busy(stream)
        assert lib.opt_step(twins.opt) == 0
        assert not stream.query()
    twins.reference.step()
    twins.compare()
    twins.end()


@pytest.mark.parametrize("spec", FUSED)
def test_a_graph_replays_steps(spec):
    twins = Twins(spec)
    stream = torch.cuda.Stream(0)
    assert lib.opt_stream(twins.opt, stream.cuda_stream) == 0
    twins.step(3)
    graph = torch.cuda.CUDAGraph()
    before = [p.clone() for p, _ in twins.ours]
    with torch.cuda.graph(graph, stream=stream):
        assert lib.opt_step(twins.opt) == 0, lib.opt_error()
    torch.cuda.synchronize()
    assert all(torch.equal(p, value) for (p, _), value in zip(twins.ours, before, strict=True))
    for _ in range(5):
        twins.draw()
        graph.replay()
        twins.reference.step()
        twins.compare()
    twins.step(3)  # and on without it
    twins.end()
