"""The random numbers of classes outside torch: a stream of each optimizer's own, beside plain PyTorch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import forgery
import holders
from optplug import ctypes_api, generators, randomness
from optplug.ctypes_api import Error
from third_party_twins import Hosted, Plain, same

lib = ctypes_api.load()
SAVED, LAST = 3, 6
NAMES = ["Noisy", "Rolling", "Unsaid", "Drawing"]


@pytest.fixture(autouse=True)
def _allowed():
    assert lib.opt_init(b"third_party=True, seed=0") == 0
    yield
    assert lib.opt_init(b"third_party=False, seed=0") == 0


@pytest.fixture(params=["in place", "by states"])
def _by(request, monkeypatch):
    assert generators._has_place()
    assert generators._memory_tells()
    assert generators._has_memory()
    if request.param != "in place":
        monkeypatch.setattr(generators, "_memory_tells", lambda: False)
    if request.param == "by states":
        monkeypatch.setattr(generators, "_has_place", lambda: False)
        monkeypatch.setattr(generators, "_has_memory", lambda: False)


def states() -> tuple[object, ...]:
    """Return the states of all generators that a host may draw from."""
    kind, numbers, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), kind, numbers.tolist(), rest


def seed(number: int) -> None:
    torch.manual_seed(number), random.seed(number), np.random.seed(number)


def draw() -> tuple[float, ...]:
    return float(torch.rand(())), random.gauss(0, 1), float(np.random.random())


def plain_values(name: str, number: int, last: int = LAST) -> list[list[np.ndarray]]:
    """Return the values after each step of the class in PyTorch alone, in a process with this seed."""
    seed(number)
    theirs, values = Plain(name), []
    for i in range(last):
        theirs.fill(i)
        theirs.opt.step()
        values.append([v.copy() for v in theirs.values])
    seed(99)
    return values


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [0, 2**32 - 1])
def test_an_optimizer_draws_from_its_own_stream_whatever_the_host_draws(name, number):
    expected = plain_values(name, number)
    assert lib.opt_init(b"seed=%d" % number) == 0
    ours = Hosted(name)
    before = states()
    ours.opt.get(0, "lr"), ours.opt.describe()
    ours.opt.set(-1, "lr=0.1")
    for i, values in enumerate(expected):
        ours.fill(i)
        ours.opt.step()
        assert states() == before
        assert same(ours.values, values), i
        draw()
        before = states()


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize("name", NAMES)
def test_two_optimizers_at_once_draw_as_if_alone(name):
    expected = plain_values(name, 0)
    both = Hosted(name), Hosted(name)
    for i, values in enumerate(expected):
        for ours in both:
            ours.fill(i)
            ours.opt.step()
            assert same(ours.values, values), i


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_resumed_draws_on(name):
    expected = plain_values(name, 5)
    assert lib.opt_init(b"seed=5") == 0
    ours = Hosted(name)
    for i in range(SAVED):
        ours.fill(i)
        ours.opt.step()
    before = states()
    content = ours.opt.save_memory()
    assert states() == before
    assert lib.opt_init(b"seed=7") == 0  # the file's counts
    later = Hosted(name)
    for value, known in zip(later.values, ours.values, strict=True):
        value[...] = known
    later.opt.load_memory(content)
    assert states() == before
    for host in (ours, later):
        for i in range(SAVED, LAST):
            host.fill(i)
            host.opt.step()
            assert same(host.values, expected[i]), i


@pytest.mark.parametrize("_by", ["in place", "by marks that are states", "by states"], indirect=True)
@pytest.mark.usefixtures("_by")
def test_a_step_that_fails_has_drawn_nothing():
    expected = plain_values("Noisy", 0)
    ours = Hosted("Noisy")
    for i, values in enumerate(expected):
        for _ in range(2):
            ours.fill(i)
            ours.grads[1][:] = np.nan
            before = states()
            with pytest.raises(Error, match="a gradient is none"):
                ours.opt.step()
            assert states() == before
        ours.fill(i)
        ours.opt.step()
        assert same(ours.values, values), i


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize("by", ["closure", "iterate"])
def test_a_closure_draws_the_hosts_numbers(by):
    seed(0)
    theirs = Plain("Tossing")
    expected = []
    for i in range(LAST):
        theirs.opt.step(lambda: theirs.fill(i))  # noqa: B023 (called at once)
        expected.append([v.copy() for v in theirs.values])
    seed(8)
    numbers = [draw() for _ in range(LAST)]
    seed(8)
    ours, heard = Hosted("Tossing"), []

    def closure():
        heard.append(draw())
        return ours.fill(i)

    for i in range(LAST):
        if by == "closure":
            ours.opt.step_closure(closure)
        else:
            loss = 0.0
            while ours.opt.iterate(loss):
                loss = closure()
        assert same(ours.values, expected[i]), i
    assert heard == numbers


@pytest.mark.usefixtures("_by")
def test_a_closure_may_step_another_optimizer_that_draws():
    expected = plain_values("Noisy", 0)
    outer, inner = Hosted("Tossing"), Hosted("Noisy")
    for i, values in enumerate(expected):

        def closure():
            inner.fill(i)  # noqa: B023 (called at once)
            inner.opt.step()
            return outer.fill(i)  # noqa: B023

        outer.opt.step_closure(closure)
        assert same(inner.values, values), i


@pytest.mark.usefixtures("_by")
def test_a_load_that_fails_leaves_the_stream_where_it_is():
    expected = plain_values("Noisy", 0)
    ours = Hosted("Noisy")
    for i in range(SAVED):
        ours.fill(i)
        ours.opt.step()
    other = Hosted("Noisy", group={"lr": 0.2})
    content = other.opt.save_memory()
    with pytest.raises(Error):
        ours.opt.load_memory(content)
    for i in range(SAVED, LAST):
        ours.fill(i)
        ours.opt.step()
        assert same(ours.values, expected[i]), i


@pytest.mark.parametrize("value", ["-1", "2**32", "4294967296", "1.0", "'0'", "True", "None"])
def test_a_seed_is_a_whole_number(value):
    assert lib.opt_init(f"seed={value}".encode()) == ctypes_api.statuses()["OPT_EINVAL"]
    assert b"seed" in lib.opt_error()


def test_what_draws_is_said():
    assert lib.opt_init(b"seed=12") == 0
    assert b"\nseed: 12\n" in lib.opt_describe(0)
    assert "random numbers: of torch, seed 12" in Hosted("Noisy").opt.describe()
    assert "random numbers: of torch, python, numpy, seed 12" in Hosted("Rolling").opt.describe()
    assert "random numbers" not in Hosted("Keeping").opt.describe()


def test_a_forged_stream_is_refused():
    ours = Hosted("Rolling")
    ours.fill(0)
    ours.opt.step()
    content = forgery.read(ours.opt.save_memory())
    numbers = content["random"]
    for change, words in (
        ({"numpy": [numbers["numpy"][0], 625, 0, 0.0]}, "place 625"),
        ({"numpy": [numbers["numpy"][0][:3], 3, 0, 0.0]}, "random numbers of numpy"),
        ({"python": [3, numbers["python"][1], "x"]}, "gauss is 'x'"),
        ({"python": 7}, "random numbers of python"),
        ({"torch": torch.zeros(5056, dtype=torch.uint8)}, "random numbers of torch"),
        ({"dice": 7}, "random numbers of 'dice'"),
        ({"seed": -1}, "seed of its random numbers"),
    ):
        values = [v.copy() for v in ours.values]
        with pytest.raises(Error, match=words):
            ours.opt.load_memory(forgery.forge({**content, "random": {**numbers, **change}}))
        assert same(ours.values, values)


def test_what_a_class_draws_by_a_name_that_it_does_not_say_is_seen_in_its_first_step():
    ours = Hosted("Unsaid")
    ours.fill(0)
    assert randomness._said_by(holders.Unsaid) == {"python"}
    ours.opt.step()
    assert "random numbers: of torch, python" in ours.opt.describe()
