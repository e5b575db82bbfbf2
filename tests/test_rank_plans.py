"""Steps and clipping over ranks without Python: the bits and the collectives of those by Python."""

from __future__ import annotations

import math
import os
import signal
import threading

import numpy as np
import pytest

import hosts
from optplug import _bridge
from optplug.ctypes_api import Error, load
from rank_threads import bounds, drawn, made, on_ranks

STEPS = 8
_creating = threading.Lock()


def planned(spec, placement, comm, plans):
    """Return an optimizer over ranks that steps without Python, or never does."""
    with _creating:
        load().optplug_init(f"plans={plans}".encode())
        opt = made(spec, placement, comm)
        load().optplug_init(b"plans=True")
    return opt


def way(opt) -> str:
    return next(line for line in opt.describe().splitlines() if line.startswith("way: "))


def stepped(comm, spec, placement, plans, dtype="float64", clips=False):
    """Step two arrays whose gradients depend on the rank; return them, and what was sent."""
    shapes = {"w": (37, 29), "b": (70,)}
    if placement == "Shard(0)":
        mine = {
            name: bounds(shape[0], comm.Get_rank(), comm.Get_size(), "last") for name, shape in shapes.items()
        }
    else:
        mine = {name: slice(None) for name in shapes}
    w = {name: drawn(0, shape, dtype)[mine[name]].copy() for name, shape in shapes.items()}
    dw = {name: np.empty_like(a) for name, a in w.items()}
    norms = []
    with planned(spec, placement, comm, plans) as opt:
        for name in w:
            opt.bind(name, w[name], dw[name])
        for step in range(STEPS):
            for name in w:
                dw[name][...] = drawn(10 * step + comm.Get_rank(), shapes[name], dtype)[mine[name]]
            if clips:
                norms.append(opt.clip_grad_norm(0.5))
            opt.step()
        said = opt.describe()
        return w, norms, way(opt), comm.calls, said[said.index("rank: ") :].partition("\n")[0]


PLACEMENTS = ["Replicate()", "Replicate(), Partial('sum')", "Replicate(), Replicate()", "Shard(0)"]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("spec", ["Adam(lr=0.01)", "SGD(lr=0.1, momentum=0.9)", "RMSprop(lr=0.01)"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_plans_have_the_bits_and_collectives_of_python_and_go_with_it(spec, placement, dtype):
    python = on_ranks(3, lambda comm: stepped(comm, spec, placement, False, dtype))
    plans = on_ranks(3, lambda comm: stepped(comm, spec, placement, True, dtype))
    mixed = on_ranks(3, lambda comm: stepped(comm, spec, placement, comm.Get_rank() != 1, dtype))
    assert all(found[2] == "way: Python" for found in python)
    assert all(found[2] != "way: Python" for found in plans)
    for one, other, third in zip(python, plans, mixed, strict=True):
        assert all(np.array_equal(one[0][name], other[0][name]) for name in one[0])
        assert all(np.array_equal(one[0][name], third[0][name]) for name in one[0])
        assert one[3] == other[3] == third[3]
        assert one[4] == other[4]


@pytest.mark.parametrize("placement", ["Shard(0)", "Replicate()"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clipping_by_plans_has_the_bits_of_python_and_goes_with_it(placement, dtype):
    python = on_ranks(3, lambda comm: stepped(comm, "SGD(lr=0.1)", placement, False, dtype, clips=True))
    mixed = on_ranks(
        3, lambda comm: stepped(comm, "SGD(lr=0.1)", placement, comm.Get_rank() != 1, dtype, clips=True)
    )
    for one, other in zip(python, mixed, strict=True):
        assert all(np.array_equal(one[0][name], other[0][name]) for name in one[0])
        assert one[1] == other[1] == python[0][1]
        assert one[3] == other[3]


def clipped(comm, plans, wrong):
    """Clip, with something wrong on rank 1, and once more; return the line, and whether nothing changed."""
    w, dw = np.ones(50), np.ones(50)
    with planned("SGD(lr=0.1)", "Shard(0)", comm, plans) as opt:
        opt.bind("w", w, dw)
        for _ in range(4):
            opt.clip_grad_norm(100)
            opt.step()
        is_wrong, line = comm.Get_rank() == 1, ""
        if is_wrong and wrong == "nan":
            dw[3] = math.nan
        before = dw.copy()
        try:
            opt.clip_grad_norm(
                2 if is_wrong and wrong == "max_norm" else 1,
                error_if_nonfinite=wrong in ("nan", "is_error") and (is_wrong or wrong == "nan"),
            )
        except Error as error:
            line = str(error)
        kept = np.array_equal(dw, before, equal_nan=True)
        dw[:] = 1
        return line, kept, opt.clip_grad_norm(1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            "nan",
            "the gradients' total norm of order 2 over all ranks is non-finite, so none was changed: set "
            "error_if_nonfinite to 0 to clip them all the same, or opt_init's error_if_nonfinite=True, "
            "with which opt_step names the parameter",
        ),
        ("max_norm", "ranks differ: max_norm is 2 on rank 1, 1 on rank 0"),
        ("is_error", "ranks differ: error_if_nonfinite is 1 on rank 1, 0 on rank 0"),
    ],
)
@pytest.mark.parametrize("python", [set(), {0}, {1}, {0, 1, 2}], ids=str)
def test_what_is_wrong_with_a_clip_is_told_on_all_and_changes_nothing(python, wrong, words):
    found = on_ranks(3, lambda comm: clipped(comm, comm.Get_rank() not in python, wrong))
    assert found == [(words, True, math.sqrt(150))] * 3


@pytest.mark.parametrize("failing", [0, 2])
def test_a_rank_that_fails_in_python_fails_those_in_plans(failing):
    def work(comm):
        w, dw, v = np.ones(100), np.ones(100), np.ones(100)
        with made("Adam(lr=0.1)", "Replicate()", comm) as opt:
            opt.bind("w", w, dw)
            opt.bind("v", v, np.ones(100))
            for _ in range(4):
                opt.step()
            before, lines = w.copy(), []
            if comm.Get_rank() == failing:
                opt.bind("v", w, np.ones(100))
            try:
                opt.step()
            except Error as error:
                lines.append(str(error))
            kept = np.array_equal(w, before)
            if comm.Get_rank() == failing:
                opt.bind("v", v, np.ones(100))
            opt.step()
            return lines, kept, w

    found = on_ranks(3, work)
    for lines, kept, w in found:
        assert len(lines) == 1
        assert lines[0].startswith(f"rank {failing}: ")
        assert kept
        assert np.array_equal(w, found[0][2])


def test_a_collective_that_fails_is_told_and_changes_nothing():
    def work(comm):
        w, dw = np.ones(100), np.ones(100)
        with made("Adam(lr=0.1)", "Replicate()", comm) as opt:
            opt.bind("w", w, dw)
            for _ in range(4):
                opt.step()
            before, whole = w.copy(), comm.Reduce_scatter_block
            comm.Reduce_scatter_block = lambda *_: 1 / 0
            with pytest.raises((Error, ZeroDivisionError)):
                opt.step()
            kept = np.array_equal(w, before)
            comm.Reduce_scatter_block = whole
            opt.step()
            return kept, w

    found = on_ranks(2, work)
    assert all(kept and np.array_equal(w, found[0][1]) for kept, w in found)


def test_gradients_that_were_clipped_are_not_reduced_again():
    def work(comm):
        w, dw = np.ones(100), np.ones(100)
        with made("SGD(lr=0.1)", "Replicate(), Partial('sum')", comm) as opt:
            opt.bind("w", w, dw)
            for _ in range(4):
                dw[:] = 1
                opt.step()
            before = w[0]
            dw[:] = 1
            opt.clip_grad_value(0.5)
            opt.step()
            moved = before - w[0]
            dw[:] = 1
            opt.step()
            return moved, way(opt)

    for moved, how in on_ranks(2, work):
        assert moved == pytest.approx(0.1 * 0.5)
        assert how != "way: Python"


def no_python(*_):
    raise AssertionError("this came to Python")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gradients_are_zeroed_and_clipped_without_python(placement):
    def work(comm):
        w, dw = np.ones(200), np.ones(200)
        with made("Adam(lr=0.1)", placement, comm) as opt:
            opt.bind("w", w, dw)
            for step in range(8):
                opt.zero_grad()
                zeroed = not dw.any()
                dw[:] = 2 if placement == "Replicate(), Replicate()" else 1 + comm.Get_rank()
                norm = opt.clip_grad_norm(1)
                opt.step()
                if step == 3:
                    hosted = _bridge.optimizer_of(opt._handle)
                    hosted.zero_grad = hosted.clip_grad_norm = hosted.step = no_python
            return norm, zeroed

    of_each_value = dict(zip(PLACEMENTS, (1.5, 3, 2, math.sqrt(1 + 2**2)), strict=True))[placement]
    assert on_ranks(2, work) == [(pytest.approx(math.sqrt(200) * of_each_value, rel=1e-14), True)] * 2


@pytest.mark.parametrize(
    ("placement", "is_clipped"),
    [("Replicate()", False), ("Replicate()", True), ("Replicate(), Replicate()", True), ("Shard(0)", False)],
)
def test_a_child_of_fork_is_no_rank(placement, is_clipped):
    def work(comm):
        w, dw = np.ones(100), np.ones(100)
        with made("SGD(lr=0.1)", placement, comm) as opt:
            opt.bind("w", w, dw)
            for _ in range(4):
                opt.clip_grad_norm(100)
                opt.step()
            if is_clipped:  # so that the next step does not reduce
                opt.clip_grad_norm(100)
            if comm.Get_rank() or os.fork():
                opt.clip_grad_norm(100)
                opt.step()
                return w[0]
            signal.alarm(hosts.PATIENCE)
            before = w.copy()
            try:
                opt.step() if is_clipped else opt.clip_grad_norm(100)
            except Error as error:
                is_right = "the ranks are those of the parent process" in str(error)
                os._exit(3 if is_right and np.array_equal(w, before) else 4)
            os._exit(5)

    found = on_ranks(2, work)
    _, status = os.wait()
    assert os.waitstatus_to_exitcode(status) == 3
    assert found[0] == found[1] == pytest.approx(0.5)


FAILING = """
import threading, traceback
import torch
from optplug.ctypes_api import Error, load
from rank_threads import made, on_ranks
import numpy as np

load().optplug_init(b"plans='stable'")
here = threading.local()
library = torch.library.Library("aten", "IMPL")

def fails_without_python(params, grads, *_, **__):
    is_python = any(frame.name == "_fused_adam" for frame in traceback.extract_stack())
    if here.fails == params[0].dtype and not is_python:
        raise ValueError
    for p, g in zip(params, grads):
        p.add_(g)

def work(comm):
    here.fails = None
    w, dw = np.zeros(100), np.full(100, 1.0 + comm.Get_rank())
    with made("Adam()", "Replicate(), Partial('sum')", comm) as opt:
        opt.bind("w", w, dw)
        for _ in range(3):
            opt.step()
        assert "way: stable" in opt.describe()
        w[:], before = 0, len(comm.calls)
        here.fails = torch.float64 if comm.Get_rank() == 1 else None
        comm.Barrier()  # until all have stated their plans
        if comm.Get_rank() == 0:
            library.impl("_fused_adam_", fails_without_python, "CPU")
        comm.Barrier()
        opt.step()
        opt.step()
        way = opt.describe().partition("way: ")[2].partition(chr(10))[0]
        return w.tolist(), way, [call for call, _ in comm.calls[before:]]

def halved(comm):
    here.fails, line = None, ""
    with made("Adam()", "Replicate(), Partial('sum')", comm) as opt:
        for name, dtype in (("v", "float32"), ("w", "float64")):
            opt.bind(name, np.zeros(100, dtype), np.ones(100, dtype))
        for _ in range(3):
            opt.step()
        assert "way: stable" in opt.describe()
        here.fails = torch.float64 if comm.Get_rank() == 1 else None
        try:
            opt.step()
        except Error as error:
            line = str(error)
        return line

exchange = ["reduce_scatter", "all_gather"]
for rank, found in enumerate(on_ranks(2, work)):
    assert found == ([6.0] * 100, ["stable", "Python"][rank], exchange * 2), found
told = "RuntimeError: rank 1: PyTorch has failed in the middle of a step: load a checkpoint on all ranks"
for line in on_ranks(2, halved):
    assert line == told, line
"""


def test_where_torch_fails_in_a_plan_gradients_are_not_reduced_again_and_a_half_made_step_is_told():
    done = hosts.python("-c", f"import sys; sys.path.insert(0, {str(hosts.PROJECT / 'tests')!r})\n" + FAILING)
    assert done.returncode == 0, done.stderr


# ---- gradients that a call has reduced which fails, and others after it ----


def moved_after(comm, plans, break_, spec="SGD(lr=1.0)", then=2):
    """Step, let a call fail, and step with other gradients: return its line, and what that moves w by."""
    w, dw = np.ones((2, 50)), np.ones((2, 50))
    with planned(spec, "Replicate()", comm, plans) as opt:
        opt.bind("w", w, dw)
        for _ in range(4):
            opt.clip_grad_norm(100)
            opt.step()
        dw[:], line = 3, ""
        try:
            break_(opt, comm.Get_rank(), dw)
        except Error as error:
            line = str(error)
        dw[:] = then
        before = w.copy()
        opt.step()
        return line, *np.unique(before - w)


def clip_by_other_norms(opt, rank, _):
    opt.clip_grad_norm(1 + rank)


def clip_by_other_values(opt, rank, _):
    opt.clip_grad_value(1 + rank)


def clip_a_nan(opt, rank, dw):
    dw[0, 3 * rank] = math.nan
    opt.clip_grad_norm(1, error_if_nonfinite=True)


def step_by_other_scales(opt, rank, _):
    opt.grad_scale(np.array(2.0 + rank, np.float32))
    try:
        opt.step()
    finally:
        opt.grad_scale(None)


@pytest.mark.parametrize(
    "break_", [clip_by_other_norms, clip_by_other_values, clip_a_nan, step_by_other_scales]
)
@pytest.mark.parametrize("python", [set(), {0}, {0, 1}], ids=str)
def test_a_call_that_fails_leaves_no_gradients_for_the_next_step(python, break_):
    found = on_ranks(2, lambda comm: moved_after(comm, comm.Get_rank() not in python, break_))
    assert all(line and moved == [2] for line, *moved in found), found


@pytest.mark.parametrize("python", [set(), {0}, {0, 1}], ids=str)
def test_a_clip_that_fails_leaves_the_clip_before_it(python):
    def break_(opt, rank, _):
        opt.clip_grad_norm(1)
        opt.clip_grad_norm(1 + rank)

    found = on_ranks(2, lambda comm: moved_after(comm, comm.Get_rank() not in python, break_, then=3))
    assert all(line and moved == pytest.approx(0.1, rel=1e-5) for line, moved in found), found


@pytest.mark.parametrize("call", ["step", "clip_grad_norm", "clip_grad_value"])
@pytest.mark.parametrize("python", [set(), {0}, {0, 1}], ids=str)
def test_other_gradients_after_a_clip_without_a_step_are_an_error_of_all(python, call):
    def work(comm):
        w, dw, v, dv = np.ones(300), np.ones(300), np.ones(70, "float32"), np.ones(70, "float32")
        lines = []
        with planned("SGD(lr=1.0)", "Replicate()", comm, comm.Get_rank() not in python) as opt:
            opt.bind("w", w, dw)
            opt.bind("v", v, dv)
            for _ in range(4):
                opt.clip_grad_norm(100)
                opt.step()
            opt.clip_grad_norm(100)  # and no step, after which a rank has others in one of its arrays
            (dv if comm.Get_rank() else dw)[:] = 2
            before = w.copy(), v.copy()
            try:
                getattr(opt, call)(*[100] * (call != "step"))
            except Error as error:
                lines.append(str(error).partition("clip_grad_value reduced")[0])
            kept = np.array_equal(w, before[0]) and np.array_equal(v, before[1])
            opt.zero_grad()
            dw[:], dv[:] = 3, 3
            opt.step()
            return lines, kept, (before[0] - w)[0], (before[1] - v)[0]

    line = "rank 0: the gradients have changed since opt_clip_grad_norm or opt_"
    assert on_ranks(2, work) == [([line], True, 3, 3)] * 2


@pytest.mark.filterwarnings("ignore:overflow")  # of numpy's, which adds up here for MPI
@pytest.mark.parametrize("spec", ["SGD(lr=1.0)", "Muon(lr=1.0)", "Adafactor(lr=1.0)"])
def test_a_reduced_gradient_with_an_inf_is_not_stepped_with_later(spec):
    def break_(opt, _, dw):
        dw[:] = 1.5e308  # of which two are inf
        opt.step()

    load().optplug_init(b"error_if_nonfinite=True")
    try:
        found = on_ranks(2, lambda comm: moved_after(comm, True, break_, spec))
    finally:
        load().optplug_init(b"error_if_nonfinite=False")
    for line, *moved in found:
        assert "the reduced gradient of parameter 'w' contains inf or nan" in line
        assert np.isfinite(moved).all()


def test_clipped_gradients_are_stepped_with_after_other_arrays_were_bound():
    def work(comm):
        w, dw = np.ones(100), np.ones(100)
        with made("SGD(lr=1.0)", "Replicate()", comm) as opt:
            opt.bind("w", w, dw)
            opt.step()
            opt.clip_grad_norm(1)
            w, dw = w.copy(), dw.copy()
            opt.bind("w", w, dw)
            before = w.copy()
            opt.step()
            return (before - w)[0]

    assert on_ranks(2, work) == [pytest.approx(0.1, rel=1e-5)] * 2


def test_a_load_leaves_no_gradients_for_the_next_step(tmp_path):
    def break_(opt, *_):
        opt.save(tmp_path / "file")
        opt.clip_grad_norm(1)
        opt.load(tmp_path / "file")

    for plans in (True, False):
        found = on_ranks(2, lambda comm, plans=plans: moved_after(comm, plans, break_))
        assert found == [("", 2)] * 2
