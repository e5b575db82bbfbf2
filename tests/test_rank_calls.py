"""What else can be called of an optimizer over ranks: reverse communication, checks of gradients, scales."""

from __future__ import annotations

import math

import numpy as np
import pytest

import hosts
from optplug.ctypes_api import Error, load
from rank_threads import bounds, drawn, made, on_ranks

N = 130
SPECS = ["LBFGS(line_search_fn='strong_wolfe', max_iter=10)", "LBFGS(lr=0.1, max_iter=5)", "Adam(lr=0.1)"]


def part_of(comm, placement, how="even"):
    return bounds(N, comm.Get_rank(), comm.Get_size(), how) if placement == "Shard(0)" else slice(0, N)


class Problem:
    """A quartic in all values and two constants; each rank has its part of the values or of the loss."""

    def __init__(self, comm, placement, how="even"):
        self.part = part_of(comm, placement, how)
        self.share = 1 if placement == "Shard(0)" else comm.Get_rank() + 1
        self.w = drawn(0, (N,), "float64")[self.part].copy()
        self.dw = np.full_like(self.w, 7.0)
        self.wrong = 1.0

    def loss(self):
        scale = np.linspace(1, 5, N)[self.part] * self.share
        self.dw[:] = self.wrong * (scale * self.w + 0.1 * self.w**3)
        return float((0.5 * scale * self.w**2 + 0.025 * self.w**4).sum())


PLACEMENTS = ["Shard(0)", "Replicate()", "Replicate(), Partial('sum')"]


# ---- reverse communication ----


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("spec", SPECS)
def test_iterate_is_step_closure_and_communicates_on_the_hosts_thread(spec, placement):
    def work(comm, iterates):
        problem = Problem(comm, placement)
        with made(spec, placement, comm) as opt:
            opt.bind("w", problem.w, problem.dw)
            for _ in range(3):
                loss = 0.0
                while iterates and opt.iterate(loss):
                    loss = problem.loss()
                if not iterates:
                    opt.step_closure(problem.loss)
        return problem.w

    for one, other in zip(
        on_ranks(3, lambda comm: work(comm, True)), on_ranks(3, lambda comm: work(comm, False)), strict=True
    ):
        assert np.array_equal(one, other)


def test_a_step_that_is_left_in_the_middle_by_all_ranks_ends():
    def work(comm):
        problem = Problem(comm, "Shard(0)")
        before = problem.w.copy()
        with made(SPECS[0], "Shard(0)", comm) as opt:
            opt.bind("w", problem.w, problem.dw)
            assert opt.iterate(0.0)
        return np.array_equal(problem.w, before)

    assert all(on_ranks(2, work))


# ---- whether gradients are right ----


@pytest.mark.parametrize("how", ["even", "lopsided", "last"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_right_gradients_pass_and_arrays_are_left_as_they_were(placement, how):
    def work(comm):
        problem = Problem(comm, placement, how)
        before = problem.w.copy(), problem.dw.copy()
        with made("SGD(lr=0.1)", placement, comm) as opt:
            opt.bind("w", problem.w, problem.dw)
            error = opt.check_gradient(problem.loss)
        return error, np.array_equal(problem.w, before[0]) and np.array_equal(problem.dw, before[1])

    found = on_ranks(3, work)
    assert len({error for error, _ in found}) == 1
    assert 0 < found[0][0] < 1e-8
    assert all(is_kept for _, is_kept in found)


@pytest.mark.parametrize("where", [0, 2])
def test_a_wrong_gradient_of_one_rank_is_an_error_of_all(where):
    def work(comm):
        problem = Problem(comm, "Shard(0)")
        problem.wrong = -1.0 if comm.Get_rank() == where else 1.0
        with made("SGD(lr=0.1)", "Shard(0)", comm) as opt:
            opt.bind("w", problem.w, problem.dw)
            opt.check_gradient(problem.loss)

    found = {str(error) for error in on_ranks(3, work)}
    assert len(found) == 1
    assert (
        f"rank {where}: the gradient of parameter 'w' has the opposite sign of the derivative" in found.pop()
    )


def test_a_mean_that_is_taken_twice_is_found():
    def work(comm):
        problem = Problem(comm, "Replicate()")
        problem.wrong = 1 / comm.Get_size()
        with made("SGD(lr=0.1)", "Replicate()", comm) as opt:
            opt.bind("w", problem.w, problem.dw)
            opt.check_gradient(problem.loss)

    for error in on_ranks(2, work):
        assert "the gradient of parameter 'w' is half the derivative of the loss" in str(error)


def test_a_closure_that_fails_during_a_check_fails_on_all():
    def work(comm):
        problem, calls = Problem(comm, "Shard(0)"), 0
        before = problem.w.copy()

        def closure():
            nonlocal calls
            calls += 1
            return math.nan if comm.Get_rank() == 1 and calls == 9 else problem.loss()

        with made("SGD(lr=0.1)", "Shard(0)", comm) as opt:
            opt.bind("w", problem.w, problem.dw)
            with pytest.raises(Error) as error:
                opt.check_gradient(closure)
            kept = np.array_equal(problem.w, before)
            opt.check_gradient(problem.loss)
        return str(error.value), kept

    found = on_ranks(3, work)
    assert {message.partition(": ")[2] for message, _ in found} == {
        "the closure's loss is nan: check the gradient where it is finite"
    }
    assert all(kept for _, kept in found)


# ---- scaled losses ----


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("spec", ["Adam(lr=0.1)", "RMSprop(lr=0.1)", "SGD(lr=0.1, momentum=0.9)"])
def test_a_scale_is_taken_out_and_one_ranks_inf_leaves_out_a_step_of_all(spec, placement):
    def work(comm, scaled):
        problem = Problem(comm, placement)
        w, dw = problem.w.astype("float32"), problem.dw.astype("float32")
        scale, found_inf = np.ones(1, "float32"), np.zeros(1, "float32")
        with made(spec, placement, comm) as opt:
            opt.bind("w", w, dw)
            if scaled:
                opt.grad_scale(scale, found_inf)
            for step in range(6):
                scale[0] = 2.0**step
                dw[:] = (w + 1) * (scale[0] if scaled else 1)
                found_inf[0] = step in (0, 3) and comm.Get_rank() == 1
                if scaled or step not in (0, 3):
                    opt.step()
        return w

    for one, other in zip(
        on_ranks(2, lambda comm: work(comm, True)), on_ranks(2, lambda comm: work(comm, False)), strict=True
    ):
        assert np.array_equal(one, other)


def test_scales_that_differ_are_an_error_of_all_and_change_nothing():
    def work(comm):
        w, dw = np.ones(3), np.ones(3)
        scale = np.ones(1, "float32")
        with made("SGD(lr=0.1)", "Shard(0)", comm) as opt:
            opt.bind("w", w, dw)
            opt.grad_scale(scale)
            opt.step()
            scale[0] += comm.Get_rank()
            with pytest.raises(Error) as error:
                opt.step()
        return str(error.value), w[0]

    assert set(on_ranks(2, work)) == {("ranks differ: scale is 2 on rank 1, 1 on rank 0", 0.9)}


# ---- what is sent ----


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_steps_collectives_are_those_of_the_page(placement):
    size, n = 2, 1000

    def work(comm, scales):
        w, dw, scale = np.ones(n), np.ones(n), np.ones(1, "float32")
        with made("Adam()", placement, comm) as opt:
            opt.bind("w", w, dw)
            if scales:
                opt.grad_scale(scale)
            opt.step()
            before = len(comm.calls)
            opt.step()
        return comm.calls[before:]

    slice_ = -(-n // (64 * size)) * 64 * 8
    exchange = [("reduce_scatter", slice_ + 33 * 8), ("all_gather", slice_)]
    expected = [] if placement == "Shard(0)" else exchange
    assert on_ranks(size, lambda comm: work(comm, False)) == [expected] * size
    with_scale = [*expected[:1], ("all_gather", 16), *expected[1:]]
    assert on_ranks(size, lambda comm: work(comm, True)) == [with_scale] * size
    page = (hosts.PROJECT / "docs/clusters.md").read_text()
    assert "| `opt_grad_scale` | 16 bytes a step | 16 bytes a step |" in page
    assert "a reduce_scatter and an all_gather of a slice each" in page


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gradients_that_must_be_finite_cost_eight_bytes_a_step(placement):
    def work(comm):
        w, dw = np.ones(1000), np.ones(1000)
        with made("Adam()", placement, comm) as opt:
            opt.bind("w", w, dw)
            opt.step()
            before = len(comm.calls)
            opt.step()
        return [call for call in comm.calls[before:] if call[1] <= 8]

    load().optplug_init(b"error_if_nonfinite=True")
    try:
        assert on_ranks(2, work) == [[("all_gather", 8)]] * 2
    finally:
        load().optplug_init(b"error_if_nonfinite=False")
    assert (
        "| `error_if_nonfinite` | 8 bytes a step | 8 bytes a step |"
        in (hosts.PROJECT / "docs/clusters.md").read_text()
    )
