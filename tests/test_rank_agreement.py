"""Ranks agree: on what they are, on errors, on metrics; and what is not built is refused."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch

from optplug.ctypes_api import Error, Optimizer, load
from optplug.ctypes_library import NO_COLLECTIVE
from rank_threads import drawn, made, on_ranks, rosenbrock

LBFGS = ["LBFGS(lr=0.001, max_iter=5)", "LBFGS(line_search_fn='strong_wolfe', max_iter=10, history_size=7)"]

# ---- agreement ----


def bound(comm, spec="Adam(lr=0.1)", name="w", shape=(4,), dtype="float64", schedule=None, more=False):
    opt = made(spec, "Replicate()", comm)
    opt.bind(name, np.ones(shape, dtype), np.ones(shape, dtype))
    if more:
        opt.bind("b", np.ones(2), np.ones(2))
    if schedule:
        opt.schedule(schedule)
    opt.step()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"spec": "Adam(lr=0.2)"},
            "ranks differ: spec is 'Adam(lr=0.2)' on rank 2, 'Adam(lr=0.1)' on rank 0",
        ),
        ({"spec": "SGD(lr=0.1)"}, "ranks differ: spec is 'SGD(lr=0.1)' on rank 2, 'Adam(lr=0.1)' on rank 0"),
        ({"name": "v"}, "ranks differ: parameter 'v' is bound on rank 2, and not on rank 0"),
        ({"more": True}, "ranks differ: parameter 'b' is bound on rank 2, and not on rank 0"),
        (
            {"dtype": "float32"},
            "ranks differ: parameter 'w' is float32 [4] in group 0, Replicate() on rank 2, ",
        ),
        (
            {"shape": (2, 2)},
            "ranks differ: parameter 'w' is float64 [2, 2], strides (2, 1) in group 0, Replicate() ",
        ),
        ({"schedule": "StepLR(3)"}, "ranks differ: schedules is ['StepLR(3)'] on rank 2, [] on rank 0"),
    ],
)
def test_ranks_that_differ_get_one_line_on_every_rank(change, line):
    found = on_ranks(3, lambda comm: bound(comm, **(change if comm.Get_rank() == 2 else {})))
    assert all(isinstance(error, Error) and error.status == -1 for error in found)
    assert {str(error).startswith(line) for error in found} == {True}
    assert len({str(error) for error in found}) == 1


def test_another_torch_is_told_on_every_rank(monkeypatch):
    here = threading.local()

    class Version(type(torch.__version__)):
        def __str__(self) -> str:
            return here.says

    def work(comm):
        here.says = f"2.{comm.Get_rank()}"
        bound(comm)

    monkeypatch.setattr(torch, "__version__", Version(torch.__version__))
    found = on_ranks(2, work)
    assert [str(error) for error in found] == ["ranks differ: torch is '2.1' on rank 1, '2.0' on rank 0"] * 2


def test_a_rank_with_nothing_bound_is_an_error_of_all():
    def work(comm):
        with made("Adam()", "Replicate()", comm) as opt:
            if comm.Get_rank() != 1:
                opt.bind("w", np.ones(3), np.ones(3))
            opt.step()

    found = on_ranks(2, work)
    assert {str(error) for error in found} == {"rank 1: nothing is bound: call opt_bind before opt_step"}
    assert {error.status for error in found} == {-3}


def test_calls_that_differ_are_an_error():
    def work(comm):
        with made("Adam()", "Shard(0)", comm) as opt:
            opt.bind("w", np.ones(3), np.ones(3))
            if comm.Get_rank():
                opt.step()
            else:
                opt.clip_grad_norm(1.0)

    for error in on_ranks(2, work):
        assert str(error) == "ranks differ: call is 'opt_step' on rank 1, 'opt_clip_grad_norm' on rank 0"


@pytest.mark.parametrize("placement", ["Replicate()", "Shard(0)", "Replicate(), Replicate()"])
def test_a_nan_of_one_rank_is_an_error_of_all_and_changes_nothing(placement):
    load().optplug_init(b"error_if_nonfinite=True")

    def work(comm):
        w, dw = np.ones(100), np.ones(100)
        with made("Adam(lr=0.1)", placement, comm) as opt:
            opt.bind("w", w, dw)
            opt.step()
            before = w.copy()
            dw[7] = math.nan if comm.Get_rank() == 1 else 1
            with pytest.raises(Error) as error:
                opt.step()
            unchanged = np.array_equal(w, before)
            dw[7] = 1
            opt.step()
            return str(error.value), error.value.status, unchanged, w

    try:
        found = on_ranks(3, work)
    finally:
        load().optplug_init(b"error_if_nonfinite=False")
    for message, status, unchanged, w in found:
        assert message == "rank 1: the gradient of parameter 'w' contains inf or nan"
        assert status == -7
        assert unchanged
        assert np.array_equal(w, np.full(100, w[0]))


@pytest.mark.parametrize("placement", ["Replicate()", "Shard(0)"])
@pytest.mark.parametrize("spec", [*LBFGS, "Adam(lr=0.1)"])
def test_a_closure_that_fails_on_one_rank_fails_on_all_and_changes_nothing(spec, placement):
    def work(comm):
        w = drawn(comm.Get_rank() if placement == "Shard(0)" else 0, (130,), "float64")
        dw, before, calls = np.empty_like(w), w.copy(), 0
        fails_at = 3 if "LBFGS" in spec else 1

        def closure():
            nonlocal calls
            calls += 1
            if comm.Get_rank() == 1 and calls == fails_at:
                raise ZeroDivisionError("on purpose")
            return rosenbrock(w, dw)

        with made(spec, placement, comm) as opt:
            opt.bind("w", w, dw)
            try:
                opt.step_closure(closure)
            except Error as error:
                message = str(error)
            except ZeroDivisionError as error:
                message = str(error)
            unchanged = np.array_equal(w, before)
            opt.step_closure(closure)
            return message, unchanged

    found = on_ranks(3, work)
    lines = {message for message, _ in found}
    assert lines == {"on purpose", "rank 1: the host's closure failed with status -1"}
    assert all(unchanged for _, unchanged in found)


def test_metrics_are_the_ranks():
    def work(comm):
        values = [1.0, 1.0, 1.0] if comm is None else [[0.5, 0.2, 0.9], [0.5, 0.8, 0.1]][comm.Get_rank()]
        with made("SGD(lr=1.0)", "Shard(0)", comm) as opt:
            opt.bind("w", np.ones(2), np.ones(2))
            opt.schedule("ReduceLROnPlateau(patience=0)")
            for value in values:
                opt.step()
                opt.schedule_step(value)
            return opt.get(0, "lr")

    assert on_ranks(2, work) == [work(None)] * 2 != [1.0, 1.0]


def test_averages_are_of_the_whole():
    def work(comm):
        w, dw = np.linspace(0, 1, 200), np.empty(200)
        with made("SGD(lr=0.1)", "Replicate()", comm) as opt:
            opt.bind("w", w, dw)
            opt.average("AveragedModel()")
            for i in range(4):
                dw[:] = i + w
                opt.step()
            average = opt.average_get("w")
            before = w.copy()
            opt.average_swap()
            swapped = w.copy()
            opt.average_swap()
            return average, swapped, np.array_equal(before, w)

    one = work(None)
    for average, swapped, is_back in on_ranks(2, work):
        assert np.array_equal(average, one[0])
        assert np.array_equal(swapped, one[0])
        assert is_back


# ---- hyperparameters that differ ----


def stepped(comm, call, change, placement, is_checked, spec="SGD(lr=0.1)"):
    """Make some calls, once with something else on rank 1; return the line, and whether nothing changed."""
    load().optplug_init(f"check_ranks={is_checked}".encode())
    w, dw = np.ones(100), np.ones(100)
    with made(spec, placement, comm) as opt:
        opt.bind("w", w, dw)
        for _ in range(4):  # by Python, and then without it
            opt.step()
        change(opt, 0.2 if comm.Get_rank() == 1 else 0.1)
        before = w.copy(), dw.copy()
        with pytest.raises(Error) as error:
            CALLS[call](opt, w, dw)
        kept = np.array_equal(w, before[0]) and (call == "closure" or np.array_equal(dw, before[1]))
        change(opt, 0.1)
        CALLS[call](opt, w, dw)
        return str(error.value), kept, w.tolist()


def loss(w, dw):
    dw[:] = w
    return float(w @ w) / 2


CALLS = {
    "step": lambda opt, *_: opt.step(),
    "clip": lambda opt, *_: opt.clip_grad_norm(1.0),
    "closure": lambda opt, w, dw: opt.step_closure(lambda: loss(w, dw)),
}


@pytest.mark.parametrize("is_checked", [False, True])
@pytest.mark.parametrize(
    "change", [lambda opt, lr: opt.set(0, f"lr={lr}"), lambda opt, lr: opt.set_value(0, "lr", lr)]
)
@pytest.mark.parametrize(
    ("call", "placement"),
    [
        ("step", "Replicate()"),
        ("clip", "Replicate(), Partial('sum')"),
        ("clip", "Shard(0)"),
        ("closure", "Replicate()"),
        ("closure", "Shard(0)"),
    ],
)
def test_a_rate_that_differs_is_found_before_anything_changes(call, placement, change, is_checked):
    try:
        found = on_ranks(3, lambda comm: stepped(comm, call, change, placement, is_checked))
    finally:
        load().optplug_init(b"check_ranks=False")
    for line, kept, w in found:
        assert line == "ranks differ: lr of group 0 is 0.2 on rank 1, 0.1 on rank 0"
        assert kept
        assert w == found[0][2]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("betas=(0.9, 0.99)", "betas[1] of group 0 is 0.99 on rank 1, 0.999 on rank 0"),
        ("amsgrad=False, maximize=True", "maximize of group 0 is 'True' on rank 1, 'False' on rank 0"),
        ("weight_decay=1e-3", "weight_decay of group 0 is 0.001 on rank 1, 0.0 on rank 0"),
    ],
)
def test_any_hyperparameter_that_differs_is_found(options, line):
    def work(comm):
        with made("Adam(lr=0.1)", "Replicate()", comm) as opt:
            opt.bind("w", np.ones(100), np.ones(100))
            for _ in range(4):
                opt.step()
            if comm.Get_rank() == 1:
                opt.set(0, options)
            opt.step()

    assert {str(error) for error in on_ranks(2, work)} == {f"ranks differ: {line}"}


def test_a_schedule_that_one_rank_does_not_step_is_found():
    def work(comm):
        with made("Adam(lr=0.1)", "Replicate()", comm) as opt:
            opt.bind("w", np.ones(100), np.ones(100))
            opt.schedule("StepLR(1, gamma=0.5)")
            for _ in range(8):  # until C steps the schedule, too
                opt.step()
                opt.schedule_step()
            opt.step()
            if comm.Get_rank() == 1:
                opt.schedule_step()
            opt.step()

    line = f"ranks differ: lr of group 0 is {0.1 / 512} on rank 1, {0.1 / 256} on rank 0"
    assert {str(error) for error in on_ranks(2, work)} == {line}


def test_values_to_clip_by_that_differ_are_an_error_of_all():
    def work(comm):
        w, dw = np.ones(100), np.ones(100)
        with made("SGD(lr=0.1)", "Replicate()", comm) as opt:
            opt.bind("w", w, dw)
            for _ in range(4):
                opt.clip_grad_value(0.5)
                opt.step()
            before = w.copy()
            with pytest.raises(Error) as error:
                opt.clip_grad_value(0.5 + comm.Get_rank())
            opt.clip_grad_value(0.25)
            opt.step()
            return str(error.value), float(before[0] - w[0])

    line = "ranks differ: clip_value is 1.5 on rank 1, 0.5 on rank 0"
    assert on_ranks(2, work) == [(line, pytest.approx(0.025))] * 2


# ---- what is refused ----


def test_a_world_of_one_is_as_if_it_were_none():
    def work(comm):
        with made("Adam()", "Replicate()", comm) as opt:
            opt.bind("w", np.ones(3), np.ones(3))
            for _ in range(3):
                opt.step()
            return opt.describe(), comm.calls

    ((described, calls),) = on_ranks(1, work)
    assert "without Python" in described
    assert calls == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda o, c: o.distribute("Shard(1)", c), "placement must be one of Replicate(); "),
        (lambda o, c: o.distribute("", c), "placement must be one of "),
        (lambda o, c: o.distribute("Shard(", c), "placement must be one of "),
        (
            lambda _, c: Optimizer("Muon()").distribute("Shard(0)", c),
            'placement "Shard(0)" with Muon, whose steps take whole parameters: ',
        ),
        (lambda _, c: Optimizer("Adafactor()").distribute("Shard(0)", c), '"Shard(0)" with Adafactor'),
        (lambda _, c: Optimizer("SparseAdam()").distribute("Shard(0)", c), "opt_distribute with SparseAdam"),
        (
            lambda o, c: (o.bind("a", np.ones(2), np.ones(2)), o.distribute("Shard(0)", c)),
            "call opt_distribute before",
        ),
        (
            lambda o, c: (
                o.distribute("Shard(0)", c),
                o.bind("a", np.ones(2), np.ones(2)),
                o.distribute("Replicate()", c),
            ),
            "averaged and added up",
        ),
        (lambda o, c: (o.distribute("Shard(0)", c), o.bind("a", np.ones(()), np.ones(()))), "got a scalar"),
        (
            lambda o, c: (
                o.distribute("Replicate()", c),
                o.bind("a", np.ones((4, 4))[:, ::2], np.ones((4, 2))),
            ),
            "bind it contiguous",
        ),
        (
            lambda o, c: (
                o.distribute("Shard(0)", c),
                o.bind_sparse(
                    "a", np.ones((2, 2)), np.ones(1, "int64"), np.ones(1, "int64"), np.ones((1, 2))
                ),
            ),
            "ranks cannot have sparse rows",
        ),
    ],
)
def test_what_is_not_built_says_what_to_do(call, words):
    def work(comm):
        if comm.Get_rank() == 0:
            call(Optimizer("SGD()"), comm)

    error, _ = on_ranks(2, work)
    assert words in str(error)


@pytest.mark.parametrize(
    ("rank", "size", "words"),
    [(2, 2, "rank must be 0 to 1"), (-1, 2, "rank must be"), (0, -1, "size must be")],
)
def test_ranks_and_sizes_are_checked(rank, size, words):
    with Optimizer("SGD()") as opt, pytest.raises(Error, match=words):
        opt._call("optplug_distribute", b"Shard(0)", NO_COLLECTIVE, None, rank, size)


SECOND_OF_SLURMS = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "no launcher says which rank this is"),
        ({"RANK": "", "WORLD_SIZE": ""}, "no launcher says which rank this is"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE='two': it must be a whole number from 1;"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE='0': it must be a whole number from 1;"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK='2': it must be a whole number from 0 to 1;"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999"},
            "MASTER_PORT='99999': it must be a whole number from 0 to 65535;",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "1", **SECOND_OF_SLURMS},
            "RANK=0 and WORLD_SIZE=1, but SLURM_PROCID=1 and SLURM_STEP_NUM_TASKS=2: unset the first two",
        ),
        ({"RANK": "1", "WORLD_SIZE": "4", **SECOND_OF_SLURMS}, "RANK=1 and WORLD_SIZE=4, but SLURM_PROCID=1"),
        # These are believed, and only lack an address: torchrun's in a step of its own; a step's, by hand.
        (
            {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none", **SECOND_OF_SLURMS},
            "MASTER_ADDR is",
        ),
        ({"RANK": "3", "WORLD_SIZE": "4", **SECOND_OF_SLURMS}, "MASTER_ADDR is not set"),
    ],
)
def test_an_environment_that_names_no_rank_is_an_error(monkeypatch, variables, words):
    others = "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", "TORCHELASTIC_RUN_ID"
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *others):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with Optimizer("SGD()") as opt, pytest.raises(Error, match=words):
        opt.distribute("Shard(0)")
