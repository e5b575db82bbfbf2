"""Ranks that make different calls get a line each, where opt_init says check_ranks=True."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from optplug.ctypes_api import Error, Optimizer, load
from rank_threads import made, on_ranks

CALLS = {
    "opt_step": Optimizer.step,
    "opt_step_closure": lambda opt: opt.step_closure(lambda: 1.0),
    "opt_clip_grad_norm": lambda opt: opt.clip_grad_norm(1.0),
    "opt_clip_grad_value": lambda opt: opt.clip_grad_value(1.0),
    "opt_average_get": lambda opt: opt.average_get("w"),
    "opt_average_swap": Optimizer.average_swap,
    "opt_schedule_step_metric": lambda opt: opt.schedule_step(1.0),
    "opt_save": lambda opt: opt.save("/nowhere/file"),
    "opt_load": lambda opt: opt.load("/nowhere/file"),
}


@pytest.fixture(autouse=True)
def checked() -> Iterator[None]:
    load().optplug_init(b"check_ranks=True")
    yield
    load().optplug_init(b"check_ranks=False")


def ready(comm, placement: str) -> Optimizer:
    opt = made("SGD(lr=0.1)", placement, comm)
    opt.bind("w", np.ones(10), np.ones(10))
    opt.schedule("ReduceLROnPlateau()")
    opt.average("AveragedModel()")
    return opt


@pytest.mark.parametrize("placement", ["Shard(0)", "Replicate()"])
@pytest.mark.parametrize(("first", "second"), [*itertools.combinations(CALLS, 2)])
def test_different_calls_are_an_error_on_all_ranks(first, second, placement):
    def work(comm):
        with ready(comm, placement) as opt:
            opt.step()
            with pytest.raises(Error) as error:
                CALLS[second if comm.Get_rank() == 1 else first](opt)
            opt.step()
            return str(error.value), error.value.status

    named = {"opt_average_get": "opt_average_get of w"}
    there, here = (named.get(call, call) for call in (second, first))
    line = f"ranks differ: call is '{there}' on rank 1, '{here}' on rank 0"
    assert on_ranks(3, work) == [(line, -1)] * 3


def test_a_call_in_a_closure_that_others_do_not_make_is_an_error_on_all_ranks():
    def work(comm):
        def closure() -> float:
            if comm.Get_rank() == 1:
                opt.clip_grad_norm(1.0)
            return 1.0

        with ready(comm, "Replicate()") as opt:
            opt.step()
            with pytest.raises(Error) as error:
                opt.step_closure(closure)
            opt.step()
            return str(error.value)

    lines = on_ranks(2, work)
    assert all(
        "ranks differ: call is 'opt_clip_grad_norm' on rank 1, 'opt_step_closure, in " in s for s in lines
    )


def test_the_first_calls_are_compared_too():
    def work(comm):
        with ready(comm, "Shard(0)") as opt:
            opt.clip_grad_value(1.0) if comm.Get_rank() else opt.step()

    messages = [str(error) for error in on_ranks(2, work)]
    assert messages == ["ranks differ: call is 'opt_clip_grad_value' on rank 1, 'opt_step' on rank 0"] * 2


@pytest.mark.parametrize("end", ["a", "b" * 200])
def test_averages_of_different_parameters_are_different_calls(end):
    names = "w" * 100 + "v", "w" * 100 + end

    def work(comm):
        with made("SGD(lr=0.1)", "Replicate()", comm) as opt:
            for name in names:
                opt.bind(name, np.ones(10), np.ones(10))
            opt.average("AveragedModel()")
            opt.step()
            with pytest.raises(Error, match="ranks differ: call is 'opt_average_get of www"):
                opt.average_get(names[comm.Get_rank()])
            return opt.average_get(names[0]).tolist()

    first, second = on_ranks(2, work)
    assert first == second


@pytest.mark.parametrize("where", [0, 1])
def test_one_rank_that_is_to_check_is_an_error_on_all(where):
    def work(comm):
        for rank in range(2):
            if comm.Get_rank() == rank:
                load().optplug_init(b"check_ranks=True" if rank == where else b"check_ranks=False")
                opt = ready(comm, "Replicate()")
            comm.Barrier()
        with opt, pytest.raises(Error) as error:
            opt.step()
        return str(error.value)

    line = f"ranks differ: check_ranks is {where == 1} on rank 1, {where == 0} on rank 0"
    assert on_ranks(2, work) == [line] * 2


def test_calls_that_are_alike_have_the_same_bits_and_send_96_bytes_more_and_32_a_call():
    def work(comm):
        w = np.ones(64)
        with made("Adam(lr=0.1)", "Replicate()", comm) as opt:
            opt.bind("w", w, np.linspace(1, 2, 64))
            for _ in range(5):
                opt.clip_grad_norm(1.0)
                opt.step()
            assert ("check_ranks compares every call" in opt.describe()) == is_checked
            added = [("all_gather", 96), ("all_gather", 32)]  # who is in which call, and digests
            return w, [n for call, n in comm.calls if (call, n) not in added]

    is_checked = True
    checked = on_ranks(2, work)
    is_checked = False
    load().optplug_init(b"check_ranks=False")
    for (w, calls), (v, others) in zip(checked, on_ranks(2, work), strict=True):
        assert np.array_equal(w, v)
        assert calls == others
