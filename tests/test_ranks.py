"""Optimizers over ranks: the numbers of one process, agreement, and what is sent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from optplug import _bridge
from rank_threads import ELEMENTWISE, bounds, drawn, made, on_ranks

SHAPES = {"b": (5,), "w": (37, 29), "c": (64,)}
STEPS = 6


def starts(dtype: str) -> dict[str, np.ndarray]:
    return {name: drawn(i, shape, dtype) for i, (name, shape) in enumerate(SHAPES.items())}


def gradient(name: str, step: int, rank: int, dtype: str) -> np.ndarray:
    return drawn(1000 * step + 10 * rank + len(name) + ord(name[0]), SHAPES[name], dtype)


def replicated(comm, spec, placement, dtype, of_rank, clip=None):
    """Step arrays that all ranks have whole; of_rank(r) is the gradient's rank, or how many are averaged."""
    w = starts(dtype)
    dw = {name: np.empty_like(a) for name, a in w.items()}
    with made(spec, placement, comm) as opt:
        names = list(w) if comm is None or comm.Get_rank() % 2 else list(w)[::-1]
        for name in names:
            opt.bind(name, w[name], dw[name])
        norms = []
        for step in range(STEPS):
            for name in w:
                dw[name][...] = of_rank(name, step)
            if clip:
                norms.append(opt.clip_grad_norm(clip))
            opt.step()
        return w, norms, comm and list(comm.calls)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("dtype", "sizes"), [("float32", (2, 8)), ("float64", (1, 3)), ("complex64", (3,))])
@pytest.mark.parametrize("spec", ELEMENTWISE)
def test_slices_of_equal_gradients_have_the_bits_of_one_process(spec, dtype, sizes):
    def whole(name, step):
        return gradient(name, step, 0, dtype)

    one, _, _ = replicated(None, spec, "", dtype, whole)
    for size in sizes:
        placement = "Replicate(), Replicate()" if size in (3, 8) else "Replicate()"  # sums of more round
        found = on_ranks(size, lambda comm, p=placement: replicated(comm, spec, p, dtype, whole))
        assert all(same(w, one) for w, _, _ in found)


@pytest.mark.parametrize(("placement", "divisor"), [("Replicate()", 3), ("Replicate(), Partial('sum')", 1)])
def test_gradients_are_averaged_or_added_up(placement, divisor):
    def combined(name, step):
        parts = [gradient(name, step, rank, "float64") for rank in range(3)]
        return (parts[0] + parts[1] + parts[2]) / divisor

    one, _, _ = replicated(None, "Adam(lr=0.01)", "", "float64", combined)

    def work(comm):
        rank = comm.Get_rank()
        return replicated(
            comm, "Adam(lr=0.01)", placement, "float64", lambda n, s: gradient(n, s, rank, "float64")
        )

    assert all(same(w, one) for w, _, _ in on_ranks(3, work))


def test_a_step_is_two_collectives_of_a_slice_each_and_a_clip_one_more_of_six_numbers():
    def work(comm):
        return replicated(
            comm, "Adam()", "Replicate()", "float64", lambda n, s: gradient(n, s, 0, "float64"), clip=1.0
        )

    size = 2
    slice_ = sum(-(-math.prod(shape) // (64 * size)) * 64 for shape in SHAPES.values()) * 8
    for _, _, calls in on_ranks(size, work):
        assert calls[0] == ("all_gather", 32)  # the digests
        one = [("reduce_scatter", slice_ + 33 * 8), ("all_gather", 48), ("all_gather", slice_ + 8)]
        assert calls[1:] == one * STEPS


@pytest.mark.parametrize(("placement", "divisor"), [("Replicate()", 3), ("Replicate(), Partial('sum')", 1)])
def test_complex_gradients_are_averaged_or_added_up_and_averages_are_whole(placement, divisor):
    n = 150
    x, gs = drawn(0, (n,), "complex128"), [drawn(r, (n,), "complex128") for r in range(3)]

    def work(comm):
        w, dw = x.copy(), np.empty_like(x)
        with made("SGD(lr=0.5)", placement, comm) as opt:
            opt.bind("w", w, dw)
            opt.average("AveragedModel()")
            dw[:] = gs[comm.Get_rank()]
            norm = opt.clip_grad_norm(1e6)
            opt.step()
            return w, norm, opt.average_get("w")

    total = (gs[0] + gs[1] + gs[2]) / divisor
    for w, norm, average in on_ranks(3, work):
        assert w == pytest.approx(x - 0.5 * total, rel=1e-14)
        assert norm == pytest.approx(np.linalg.norm(total), rel=1e-14)
        assert np.array_equal(average, w)


def test_the_state_is_the_ranks_slice():
    def work(comm):
        w, dw = np.ones(1003), np.ones(1003)
        with made("Adam()", "Replicate()", comm) as opt:
            opt.bind("w", w, dw)
            opt.step()
            (state,) = _bridge.optimizer_of(opt._handle).run.built.state.values()
            return state["exp_avg"].numel()

    lengths = on_ranks(4, work)
    assert sum(lengths) == 1003
    assert max(lengths) <= 1003 / 4 + 64


@pytest.mark.parametrize("spec", ELEMENTWISE)
def test_parts_step_as_the_whole_does_and_send_nothing(spec):
    n, dtype = 640, "float64"
    x, gs = drawn(0, (n,), dtype), [drawn(i, (n,), dtype) for i in range(STEPS)]

    def work(comm):
        mine = slice(None) if comm is None else bounds(n // 64, comm.Get_rank(), comm.Get_size(), "even")
        mine = mine if comm is None else slice(64 * mine.start, 64 * mine.stop)
        w, dw = x[mine].copy(), np.empty_like(x[mine])
        with made(spec, "Shard(0)", comm) as opt:
            opt.bind("w", w, dw)
            for g in gs:
                dw[:] = g[mine]
                opt.step()
            return w, comm and comm.calls

    one, _ = work(None)
    found = on_ranks(3, work)
    assert np.array_equal(np.concatenate([w for w, _ in found]), one)
    assert all(calls == [("all_gather", 32)] for _, calls in found)


@pytest.mark.parametrize("how", ["even", "lopsided", "last"])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf, 3.0])
def test_clipping_is_by_the_norm_of_the_whole(how, norm_type):
    n = 1001
    g = drawn(3, (n,), "float64")
    p = torch.nn.Parameter(torch.zeros(n, dtype=torch.float64))
    p.grad = torch.from_numpy(g.copy())
    expected = float(torch.nn.utils.clip_grad_norm_([p], 0.5, norm_type))

    def work(comm):
        mine = bounds(n, comm.Get_rank(), comm.Get_size(), how)
        w, dw = np.zeros_like(g[mine]), g[mine].copy()
        with made("SGD()", "Shard(0)", comm) as opt:
            opt.bind("w", w, dw)
            return opt.clip_grad_norm(0.5, norm_type), dw

    found = on_ranks(3, work)
    assert len({norm for norm, _ in found}) == 1
    assert found[0][0] == pytest.approx(expected, rel=1e-14)
    assert np.concatenate([dw for _, dw in found]) == pytest.approx(p.grad.numpy(), rel=1e-14)


def quartic(w, dw, scale):
    dw[:] = scale * w + 0.1 * w**3
    return float((0.5 * scale * w**2 + 0.025 * w**4).sum())


LBFGS = ["LBFGS(lr=0.1, max_iter=5)", "LBFGS(line_search_fn='strong_wolfe', max_iter=10, history_size=7)"]


@pytest.mark.parametrize(("how", "size"), [("even", 2), ("lopsided", 4), ("last", 3)])
@pytest.mark.parametrize("spec", LBFGS)
def test_lbfgs_on_any_cut_is_that_of_one_process(spec, how, size):
    n = 201
    x, scale = drawn(0, (n,), "float64"), np.linspace(1, 50, n)

    def work(comm):
        part = slice(0, n) if comm is None else bounds(n, comm.Get_rank(), comm.Get_size(), how)
        w = x[part].copy()
        dw, count = np.empty_like(w), 0

        def closure():
            nonlocal count
            count += 1
            return quartic(w, dw, scale[part])

        with made(spec, "Shard(0)", comm) as opt:
            opt.bind("w", w, dw)
            losses = [opt.step_closure(closure) for _ in range(6)]
        return w, losses, count

    one, its_losses, evaluations = work(None)
    found = on_ranks(size, work)
    got = np.concatenate([w for w, _, _ in found])
    assert np.abs(got - one).max() <= 1e-10 * np.abs(one).max()
    assert all(losses == found[0][1] for _, losses, _ in found)
    assert found[0][1] == pytest.approx(its_losses, rel=1e-10)
    assert {count for _, _, count in found} == {evaluations}


@pytest.mark.parametrize("spec", LBFGS)
def test_lbfgs_on_slices_is_that_of_one_process(spec):
    n = 201
    x, scale = drawn(0, (n,), "float64"), np.linspace(1, 50, n)

    def work(comm):
        w, dw = x.copy(), np.empty(n)
        with made(spec, "Replicate()", comm) as opt:
            opt.bind("w", w, dw)
            losses = [opt.step_closure(lambda: quartic(w, dw, scale)) for _ in range(4)]
        return w, losses

    one, its_losses = work(None)
    for size in (2, 3):
        found = on_ranks(size, work)
        assert all(np.array_equal(w, found[0][0]) and losses == found[0][1] for w, losses in found)
        assert np.abs(found[0][0] - one).max() <= 1e-10 * np.abs(one).max()
        assert found[0][1] == pytest.approx(its_losses, rel=1e-10)


def test_lbfgs_communicates_2m_plus_5_times_an_iteration():
    history, iterations = 4, 8

    def work(comm):
        w = np.linspace(1, 2, 20)
        dw, scale = np.empty_like(w), np.linspace(1, 50, 20)

        def closure():
            dw[:] = scale * w
            return float(0.5 * (dw * w).sum())

        spec = (
            f"LBFGS(lr=0.1, max_iter={iterations}, history_size={history}, "
            "tolerance_grad=0, tolerance_change=0)"
        )
        with made(spec, "Shard(0)", comm) as opt:
            opt.bind("w", w, dw)
            opt.step_closure(closure)
            opt.step_closure(closure)
            before = len(comm.calls)
            opt.step_closure(closure)
            return len(comm.calls) - before

    for count in on_ranks(2, work):
        assert count <= iterations * (2 * history + 5) + 2


def test_a_field_and_constants_are_stepped_together():
    n = 130
    x = drawn(1, (n,), "float64")

    def loss(w, dw, c, dc):
        r = w - c[0] - 0.1 * np.arange(len(w)) * c[1]
        dw[:] = 2 * r + 0.2 * w
        dc[:] = -2 * r.sum(), -0.2 * (np.arange(len(w)) * r).sum()
        return float((r * r).sum() + 0.1 * (w * w).sum())

    def work(comm):
        rank, size = (0, 1) if comm is None else (comm.Get_rank(), comm.Get_size())
        mine = bounds(n, rank, size, "even")
        w = x[mine].copy()
        dw, c, dc = np.empty_like(w), np.array([0.3, 0.2]), np.empty(2)

        def closure():
            r = w - c[0] - 0.1 * np.arange(n)[mine] * c[1]
            dw[:] = 2 * r + 0.2 * w
            dc[:] = -2 * r.sum(), -0.2 * (np.arange(n)[mine] * r).sum()
            return float((r * r).sum() + 0.1 * (w * w).sum())

        with made("LBFGS(line_search_fn='strong_wolfe')", "Shard(0)", comm) as opt:
            opt.bind("w", w, dw)
            if comm is not None:
                opt.distribute("Replicate(), Partial('sum')", comm)
            opt.bind("c", c, dc)
            for _ in range(2):
                opt.step_closure(closure)
        return w, c

    one = work(None)
    found = on_ranks(3, work)
    assert np.concatenate([w for w, _ in found]) == pytest.approx(one[0], rel=1e-9)
    assert all(np.array_equal(c, found[0][1]) for _, c in found)
    assert found[0][1] == pytest.approx(one[1], rel=1e-9)


def test_parameters_of_a_dtype_may_all_be_empty():
    def work(comm):
        w, nothing = np.ones(3), np.ones((0, 2), np.float32)
        with made("Adam(lr=0.1)", "Replicate()", comm) as opt:
            opt.bind("w", w, np.ones(3))
            opt.bind("nothing", nothing, nothing.copy())
            for _ in range(4):
                opt.step()
            return w[0]

    assert on_ranks(2, work) == [pytest.approx(0.6)] * 2
