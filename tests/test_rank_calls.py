"""What else can be called of an optimizer over ranks: reverse communication, checks of gradients, scales."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

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


@pytest.mark.parametrize("call", ["step", "clip_grad_norm"])
def test_a_scale_of_one_rank_alone_is_an_error_of_all(call):
    def work(comm):
        w, scale = np.ones(100), np.ones(1, "float32")
        with made("SGD(lr=0.1)", "Replicate()" if call == "step" else "Shard(0)", comm) as opt:
            opt.bind("w", w, np.ones(100))
            for _ in range(3):
                opt.step()
            opt.grad_scale(scale if comm.Get_rank() == 1 else None)
            with pytest.raises(Error) as error:
                getattr(opt, call)(*[1.0] * (call != "step"))
            opt.grad_scale(None)
            opt.step()
        return str(error.value), w[0]

    line = "ranks differ: opt_grad_scale is 'set' on rank 1, 'NULL' on rank 0"
    assert on_ranks(2, work) == [(line, pytest.approx(0.6))] * 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_master_copies_are_clipped_by_a_value_in_the_hosts_dtype(dtype):
    def work(comm):
        w = torch.linspace(-1, 1, 200).to(getattr(torch, dtype))
        dw = torch.linspace(-3, 3, 200).to(w.dtype)
        with made("SGD(lr=1.0)", "Replicate()", comm) as opt:
            opt.bind_device("w", dtype, "cpu", w.shape, w.data_ptr(), dw.data_ptr())
            for _ in range(3):
                opt.clip_grad_value(0.1)  # which neither dtype has
                opt.step()
        return w.tolist()

    load().optplug_init(b"master_weights=True")
    try:
        assert on_ranks(2, work) == on_ranks(1, work) * 2
    finally:
        load().optplug_init(b"master_weights=False")


# ---- errors of one rank, wherever they come ----


def said(error) -> str:
    """Return an error's line, which begins with MemoryError."""
    return str(error.value).removeprefix("MemoryError: ")


@pytest.fixture
def fails():
    """Let torch's steps on this thread fail at their end, by a hook as a host that is a Python may have."""
    here = threading.local()

    def hook(*_) -> None:
        if getattr(here, "fails", False):
            raise MemoryError("no memory left")

    handle = register_optimizer_step_post_hook(hook)
    yield here
    handle.remove()


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(
    ("averages", "placement"), [(True, PLACEMENTS[1]), (False, "Replicate(), Replicate()")]
)
@pytest.mark.parametrize("spec", ["RMSprop(lr=0.1, momentum=0.9)", "Adam(lr=0.1)", "Adafactor(lr=0.1)"])
def test_a_step_that_fails_on_one_rank_fails_on_all_and_is_undone(spec, placement, averages, steps, fails):
    def work(comm, breaks):
        w = {"a": drawn(0, (20, 10), "float32"), "b": drawn(1, (9, 9), "float64")}
        dw = {name: np.empty_like(a) for name, a in w.items()}
        line = ""
        with made(spec, placement, comm) as opt:
            for name in w:
                opt.bind(name, w[name], dw[name])
            if averages:
                opt.average("AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.9))")
            for step in range(6):
                for i, name in enumerate(w):
                    dw[name][:] = drawn(10 * step + i, w[name].shape, "float64")
                before = [a.copy() for a in w.values()]
                fails.fails = breaks and step == steps and comm.Get_rank() == 1
                if breaks and step == steps:
                    with pytest.raises(Error) as error:
                        opt.step()
                    line, fails.fails = said(error), False
                    assert error.value.status == -6
                    assert all(map(np.array_equal, w.values(), before)) or "load a checkpoint" in line
                    if "load a checkpoint" in line:
                        return line, []
                opt.step()
            averaged = [opt.average_get(name) for name in w] if averages else []
        return line, [a.tolist() for a in [*w.values(), *averaged]]

    found, expected = (on_ranks(2, lambda comm, b=breaks: work(comm, b)) for breaks in (True, False))
    if spec.startswith("Adam(") and steps and not averages:  # whose steps want no memory, and keep no copies
        told = "rank 1: no memory left (rank 0 had already made this step: load a checkpoint on all ranks)"
        assert found == [(told, [])] * 2
    else:
        assert found == [("rank 1: no memory left", arrays) for _, arrays in expected]


@pytest.mark.parametrize("placement", PLACEMENTS[:2])
@pytest.mark.parametrize("spec", [SPECS[1], "RMSprop(lr=0.1)"])
def test_a_step_with_a_closure_that_fails_at_its_end_fails_on_all_and_is_undone(spec, placement, fails):
    def work(comm, breaks):
        problem, line = Problem(comm, placement), ""
        with made(spec, placement, comm) as opt:
            opt.bind("w", problem.w, problem.dw)
            for step in range(3):
                before = problem.w.copy()
                fails.fails = breaks and not step and comm.Get_rank() == 1
                if breaks and not step:
                    with pytest.raises(Error) as error:
                        opt.step_closure(problem.loss)
                    line, fails.fails = said(error), False
                    assert np.array_equal(problem.w, before)
                opt.step_closure(problem.loss)
        return line, problem.w.tolist()

    found, expected = (on_ranks(3, lambda comm, b=breaks: work(comm, b)) for breaks in (True, False))
    assert found == [("rank 1: no memory left", w) for _, w in expected]


@pytest.mark.parametrize(("calls", "placement"), [(1, PLACEMENTS[1]), (2, PLACEMENTS[0]), (9, PLACEMENTS[1])])
def test_lbfgs_that_fails_between_its_sums_fails_on_all_and_is_undone(calls, placement, monkeypatch):
    here, add_ = threading.local(), torch.Tensor.add_

    def failing(*arguments, **named):
        here.left = getattr(here, "left", -1) - 1
        if here.left == 0:
            raise MemoryError("no memory left")
        return add_(*arguments, **named)

    monkeypatch.setattr(torch.Tensor, "add_", failing)

    def work(comm):
        problem = Problem(comm, placement)
        with made(SPECS[0], placement, comm) as opt:
            opt.bind("w", problem.w, problem.dw)
            opt.step_closure(problem.loss)
            before = problem.w.copy()
            here.left = calls if comm.Get_rank() == 1 else -1
            with pytest.raises(Error) as error:
                opt.step_closure(problem.loss)
            kept = np.array_equal(problem.w, before)
            opt.step_closure(problem.loss)
        return said(error), kept

    assert on_ranks(3, work) == [("rank 1: no memory left", True)] * 3


@pytest.mark.parametrize(
    ("call", "placement"),
    [("clip_grad_norm", "Shard(0)")]  # clip_grad_value sends nothing there
    + [
        (f"clip_grad_{of}", placement)
        for of in ("norm", "value")
        for placement in PLACEMENTS
        if placement != "Shard(0)"
    ],
)
def test_a_closure_that_fails_where_others_clip_in_theirs_fails_on_all(call, placement):
    def work(comm):
        problem, lines = Problem(comm, placement), []

        def closure():
            loss = problem.loss()
            if is_failing:
                raise ZeroDivisionError("on purpose")
            try:
                getattr(opt, call)(10.0)
            except Error as error:  # and goes on as if there had been none
                lines.append(str(error))
            return loss

        with made("Adam(lr=0.1)", placement, comm) as opt:
            opt.bind("w", problem.w, problem.dw)
            for _ in range(4):
                opt.step()
            is_failing = comm.Get_rank() == 1
            with pytest.raises((Error, ZeroDivisionError)) as error:
                opt.step_closure(closure)
            is_failing = False
            opt.step_closure(closure)
        return comm.Get_rank() == 1 or [str(error.value)] == lines != []

    assert on_ranks(3, work) == [True] * 3


@pytest.mark.parametrize("call", ["average_get", "average_swap"])
def test_an_average_that_one_rank_lacks_is_an_error_of_all(call):
    def work(comm):
        w = np.ones(100)
        with made("SGD(lr=0.1)", "Replicate()", comm) as opt:
            opt.bind("w", w, np.ones(100))
            opt.step()
            if comm.Get_rank() == 0:
                opt.average("AveragedModel()")
            opt.step()
            with pytest.raises(Error) as error:
                getattr(opt, call)(*["w"] * (call == "average_get"))
            opt.step()
        return str(error.value), w[0]

    found = on_ranks(2, work)
    assert found[0] == found[1] == (found[0][0], pytest.approx(0.7))
    assert found[0][0].startswith("rank 1: ")


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
    exchange = [("reduce_scatter", slice_ + 33 * 8), ("all_gather", slice_ + 8)]
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
