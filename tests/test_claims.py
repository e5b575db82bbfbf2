"""Slips in binding: one name for two arrays, one array for two names, data as its own gradient."""

from __future__ import annotations

import numpy as np
import pytest

from optplug import claims, ctypes_api
from optplug.ctypes_api import Error, Optimizer

EINVAL = ctypes_api.statuses()["OPT_EINVAL"]


def sgd():
    return Optimizer("SGD(lr=0.5)")


def refused(message, call, *arguments):
    with pytest.raises(Error, match=message) as error:
        call(*arguments)
    assert error.value.status == EINVAL
    assert "\n" not in str(error.value)


def test_a_second_array_for_a_name_is_refused_before_the_first_step_and_taken_after_it():
    opt, (a, b, da, db) = sgd(), np.ones((4, 3))
    opt.bind("w", a, da)
    refused("name 'w' is already bound", opt.bind, "w", b, db)
    opt.bind("w", a, db)  # another gradient is no slip
    opt.step()
    assert (a == 0.5).all()
    assert (b == 1).all()
    opt.bind("w", b, db)
    opt.step()
    assert (a == 0.5).all()
    assert (b == 0.5).all()


def test_a_second_array_that_comes_with_each_step_is_refused_too():
    library = ctypes_api.load()
    opt = library.opt_create(b"SGD(lr=0.5)")
    assert library.opt_bind(opt, b"w", b"float64", 3, None, None) == 0
    assert library.opt_bind(opt, b"w", b"float64", 3, None, None) == EINVAL
    assert b"name 'w' is already bound" in library.opt_error()
    w = np.ones(3)
    assert library.opt_step_f64(opt, w, np.ones(3)) == 0
    assert (w == 0.5).all()
    assert library.opt_free(opt) == 0


@pytest.mark.parametrize("part", [slice(None), slice(2, 5), slice(0, 1)])
def test_an_array_that_is_another_parameters_is_refused(part):
    opt, (w, dw, other) = sgd(), np.ones((3, 6))
    opt.bind("a", w, dw)
    refused(
        "data of parameter 'b' shares memory with the data of parameter 'a'",
        opt.bind,
        "b",
        w[part],
        other[part],
    )
    refused(
        "grad of parameter 'b' shares memory with the data of parameter 'a'",
        opt.bind,
        "b",
        other[part],
        w[part],
    )
    refused(
        "data of parameter 'b' shares memory with the grad of parameter 'a'",
        opt.bind,
        "b",
        dw[part],
        other[part],
    )
    opt.step()
    assert (w == 0.5).all()
    assert (dw == 1).all()
    assert (other == 1).all()


def test_data_given_as_its_own_gradient_is_refused():
    w = np.ones(4)
    opt = sgd()
    refused("parameter 'w': grad shares memory with data", opt.bind, "w", w, w)
    refused("parameter 'w': grad shares memory with data", opt.bind, "w", w[:3], w[1:])
    opt.bind("w", w[:2], w[2:])
    opt.step()
    assert w.tolist() == [0.5, 0.5, 1, 1]


def test_columns_and_parts_of_one_array_are_parameters_of_their_own():
    opt, (w, dw) = sgd(), np.ones((2, 6, 4))
    for i in range(4):  # their extents overlap, their elements do not
        opt.bind(f"column {i}", w[:3, i], dw[:3, i])
    opt.bind("below", w[3:], dw[3:])
    refused("data of parameter 'cross' shares memory", opt.bind, "cross", w[1, 1:3], np.ones(2))
    opt.step()
    assert (w == 0.5).all()


def test_a_shared_gradient_is_warned_of():
    opt, (a, b, grad) = sgd(), np.ones((3, 2))
    opt.bind("a", a, grad)
    with pytest.warns(
        UserWarning, match="grad of parameter 'b' shares memory with the grad of parameter 'a'"
    ):
        opt.bind("b", b, grad)
    opt.step()
    assert (a == 0.5).all()
    assert (b == 0.5).all()


def test_parameters_that_change_places_are_checked_when_all_have_moved():
    opt, (a, b, da, db) = sgd(), np.ones((4, 2))
    opt.bind("a", a, da)
    opt.bind("b", b, db)
    opt.step()
    opt.bind("a", b, db)
    opt.bind("b", a, da)
    opt.step()
    assert (a == 0).all()
    assert (b == 0).all()
    opt.bind("a", a, db)
    before = a.copy()
    for _ in range(2):  # not the first time alone
        refused("shares memory with the data of parameter", opt.step)
    assert (a == before).all()
    opt.bind("a", b, db)
    opt.step()
    assert (a == -0.5).all()
    assert (b == -0.5).all()


def test_empty_arrays_share_nothing():
    opt, empty = sgd(), np.ones(0)
    opt.bind("a", empty, empty)
    opt.bind("b", empty, empty)
    opt.step()


def test_each_of_many_arrays_meets_few_others(monkeypatch):
    """Also beside one that is as long as all others, and where they change places."""
    met, shares, count = [0], claims._Claim.shares, 1000

    def counted(claim, other):
        met[0] += 1
        return shares(claim, other)

    monkeypatch.setattr(claims._Claim, "shares", counted)
    memory, gradients = np.ones((2, 2 * count, 8))
    opt = sgd()
    opt.bind("long", memory[:count], gradients[:count])
    w, dw = memory[count:], gradients[count:]
    for i in range(count):
        opt.bind(str(i), w[i], dw[i])
    opt.step()
    for i in range(count):
        opt.bind(str(i), w[-1 - i], dw[-1 - i])
    opt.step()
    assert met[0] < 20 * count
    assert (memory == np.repeat([[0.0]], 2 * count, 0)).all()
    opt.bind("0", w[1], dw[0])
    refused("shares memory with the data of parameter", opt.step)


def test_columns_of_a_matrix_are_told_apart_without_a_search(monkeypatch):
    monkeypatch.setattr(claims.np, "shares_memory", lambda *_, **__: pytest.fail("it was searched"))
    opt, (w, dw) = sgd(), np.ones((2, 3, 50))
    for i in range(50):
        opt.bind(str(i), w[:, i], dw[:, i])
    opt.step()
    assert (w == 0.5).all()
