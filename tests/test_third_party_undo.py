"""What a failed step of a class outside torch leaves behind: nothing, beside the class in plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import holders
import lying_held
import third_party_twins
from optplug import ctypes_api
from optplug.ctypes_api import Error
from optplug.restoring import Snapshot
from third_party_twins import Hosted, Plain, same

lib = ctypes_api.load()
LAST = 7
HELD = {**vars(holders), **vars(lying_held)}
HOLDERS = [n for n in HELD if n.startswith("Holds") and n != "HoldsIterator"]


@pytest.fixture(autouse=True)
def _allowed():
    assert lib.opt_init(b"third_party=True") == 0
    yield
    assert lib.opt_init(b"third_party=False, undo=True") == 0


def fail(ours: Hosted, by: str) -> None:
    ours.grads[-1][:] = np.nan  # those before it are stepped by then
    with pytest.raises(Error, match="a gradient is none"):
        ours.opt.step() if by == "step" else ours.opt.step_closure(lambda: 0.0)


@pytest.mark.parametrize("by", ["step", "closure"])
@pytest.mark.parametrize("first", [0, 1, 4])
@pytest.mark.parametrize("name", HOLDERS)
def test_all_that_it_holds_is_put_back(name, first, by):
    ours, theirs = Hosted(name), Plain(name)
    for i in range(LAST):
        if i >= first:
            for _ in range(2):
                ours.fill(i)
                before = [v.copy() for v in ours.values]
                fail(ours, by)
                assert same(ours.values, before)
        ours.fill(i), theirs.fill(i)
        ours.opt.step(), theirs.opt.step()
        assert same(ours.values, theirs.values), i


@pytest.mark.parametrize("name", HOLDERS)
def test_all_of_it_is_put_back_where_torch_cannot_tell_c(name, monkeypatch):
    monkeypatch.setattr("optplug.holdings.exchange", None)
    test_all_that_it_holds_is_put_back(name, 1, "step")


@pytest.mark.parametrize("name", ["HoldsAnew", "HoldsGrowing", "HoldsArray"])
def test_twenty_parameters_are_put_back(name, monkeypatch):
    monkeypatch.setattr(third_party_twins, "SHAPES", [(5, 1 + i % 3) for i in range(20)])
    ours, theirs = Hosted(name), Plain(name)
    for i in range(LAST):
        ours.fill(i), theirs.fill(i)
        if i > 1:
            before = [v.copy() for v in ours.values]
            fail(ours, "step")
            assert same(ours.values, before)
            ours.fill(i)
        ours.opt.step(), theirs.opt.step()
        assert same(ours.values, theirs.values), i


@pytest.mark.parametrize("dtype", ["float32", "complex64", "bool", "bfloat16"])
def test_what_lies_in_the_gaps_of_a_tensor_is_not_put_back(dtype):
    whole = torch.arange(24).view(4, 6).to(getattr(torch, dtype))
    gappy, repeated = whole[::2, 1:5:2], whole[3:, :1].expand(3, 2)
    optimizer, snapshot, before = torch.optim.SGD([torch.ones(1)]), Snapshot(), whole.clone()
    snapshot.take(optimizer, [gappy, repeated, whole.mH, whole.mH[::2, ::2]])
    whole.zero_()
    snapshot.restore()
    assert whole.equal(before)
    snapshot.take(optimizer, [gappy, repeated])
    whole.zero_()
    snapshot.restore()
    assert gappy.equal(before[::2, 1:5:2])
    assert repeated.equal(before[3:, :1].expand(3, 2))
    gappy.zero_(), repeated[:1, :1].zero_()
    assert not whole.any()


@pytest.mark.parametrize("name", HOLDERS)
def test_each_of_these_changes_what_it_goes_by(name):
    """Or the test above would say nothing."""
    once, twice = Plain(name), Plain(name)
    for twin in (once, twice):
        twin.fill(0)
        twin.opt.step()
    for p, group in twice.opt.all()[:1]:
        twice.opt.direction(p, group)
        twice.opt.state[p]["before"] = once.opt.state[once.opt.all()[0][0]]["before"].clone()
    for twin in (once, twice):
        for i in range(1, 4):
            twin.fill(i)
            twin.opt.step()
    assert not same(once.values, twice.values)


def test_what_does_not_say_what_it_has_is_an_error_until_it_is_gone():
    ours, theirs = Hosted("Registered"), Plain("Registered")
    for i in range(LAST):
        ours.fill(i), theirs.fill(i)
        if i == LAST // 2:
            before = [v.copy() for v in ours.values]
            for optimizer in lying_held.Registered.every:
                optimizer.thing.insert(0, lying_held.Silent())
            for _ in range(2):
                with pytest.raises(Error, match="it does not say"):
                    ours.opt.step()
                assert same(ours.values, before)
            for optimizer in lying_held.Registered.every:
                del optimizer.thing[0]
        ours.opt.step(), theirs.opt.step()
        assert same(ours.values, theirs.values), i


def test_what_cannot_be_put_back_is_said():
    ours = Hosted("HoldsIterator")
    for i in range(3):
        ours.fill(i)
        ours.opt.step()
    lib.opt_warning()
    with pytest.warns(UserWarning, match="HoldsIterator holds objects that cannot be restored .*: count"):
        fail(ours, "step")


def test_a_host_may_do_without():
    assert lib.opt_init(b"undo=False") == 0
    assert b"\nundo: False\n" in lib.opt_describe(0)
    ours, theirs = Hosted("HoldsArray"), Plain("HoldsArray")
    for i in range(LAST):
        ours.fill(i), theirs.fill(i)
        if i == 3:
            for twin in (ours, theirs):
                bad = twin.grads[1] if twin is ours else twin.tensors[1].grad
                bad[:] = float("nan")
                with pytest.raises(RuntimeError, match="a gradient is none"):
                    twin.opt.step()
        else:
            ours.opt.step(), theirs.opt.step()
        assert same(ours.values, theirs.values), i
    assert ours.grads[0] is not None


@pytest.mark.parametrize("name", ["Keeping", "Scaling", "Replacing", "Dropping", "Flat", "Zeroing"])
def test_a_host_that_does_without_gets_the_same_numbers(name):
    assert lib.opt_init(b"undo=False") == 0
    ours, theirs = Hosted(name), Plain(name)
    for i in range(LAST):
        ours.fill(i), theirs.fill(i)
        grads = [g.copy() for g in ours.grads]
        ours.opt.step(), theirs.opt.step()
        assert same(ours.values, theirs.values), i
        assert same(ours.grads, grads)
