"""Methods of classes outside torch that their users call, beside the same class in plain PyTorch."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import somebodys
from optplug import _bridge, ctypes_api, recipe
from optplug.ctypes_api import Optimizer
from optplug.ctypes_library import Error
from third_party_twins import Hosted, Plain, drawn, same

lib = ctypes_api.load()
STATUSES = ctypes_api.statuses()
NAMES = ["ScheduleFree", "ScheduleFreeElsewhere"]
STEPS = 6  # and a plan is there, where there is one


@pytest.fixture(autouse=True)
def _allowed():
    assert lib.opt_init(b"third_party=True") == 0
    yield
    assert lib.opt_init(b"third_party=False") == 0


def twins(name: str, *args, **arguments) -> tuple[Hosted, Plain]:
    theirs = Plain(name, *args, **arguments)
    theirs.opt.train()
    return Hosted(name, *args, **arguments), theirs


def steps(first: int, last: int, *twins) -> None:
    for i in range(first, last):
        for twin in twins:
            twin.fill(i)
            twin.opt.step()


def hosted(ours: Hosted):
    return _bridge.optimizer_of(ours.opt._handle)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("group", [None, {"lr": 0.02, "momentum": 0.8}])
@pytest.mark.parametrize("name", NAMES)
def test_weights_to_evaluate_are_the_classs_own(name, group, order):
    ours, theirs = twins(name, order, "float32", group)
    for first in (0, STEPS, 2 * STEPS):
        steps(first, first + STEPS, ours, theirs)
        assert same(ours.values, theirs.values)
        trained = [v.copy() for v in ours.values]
        for method in ("train", "eval", "eval", "train"):
            ours.opt.call(method), getattr(theirs.opt, method)()
            assert same(ours.values, theirs.values), method
            assert same(ours.values, trained) or method == "eval" or first
        ours.opt.call("eval"), theirs.opt.eval()
        assert not same(ours.values, trained)
        ours.opt.call("train"), theirs.opt.train()


def test_steps_without_python_end_with_a_call_and_begin_again():
    ours, theirs = twins("ScheduleFree")
    for first in (0, STEPS):
        steps(first, first + STEPS, ours, theirs)
        assert hosted(ours).plan is not None
        for method in ("eval", "train"):
            ours.opt.call(method), getattr(theirs.opt, method)()
            assert hosted(ours).plan is None
            assert same(ours.values, theirs.values)
        assert [g["k"] for g in hosted(ours).run.built.param_groups] == [first + STEPS]


@pytest.mark.parametrize("name", NAMES)
def test_methods_may_be_called_before_the_first_step(name):
    ours, theirs = twins(name)
    for method in ("eval", "train"):
        ours.opt.call(method), getattr(theirs.opt, method)()
        assert same(ours.values, drawn(0))
    steps(0, STEPS, ours, theirs)
    assert same(ours.values, theirs.values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stepped", [0, 1, STEPS])
def test_a_step_in_the_wrong_mode_says_what_to_call(name, stepped):
    ours, theirs = twins(name)
    steps(0, stepped, ours, theirs)
    ours.opt.call("eval"), theirs.opt.eval()
    ours.fill(0)
    for step in (ours.opt.step, lambda: ours.opt.step_closure(lambda: 0.0), lambda: ours.opt.iterate(0.0)):
        with pytest.raises(Error, match=r'train.*: call opt_call\(opt, "train"\)$') as e:
            step()
        assert e.value.status == STATUSES["OPT_ESTATE"]
        assert same(ours.values, theirs.values)
    ours.opt.call("train"), theirs.opt.train()
    steps(stepped, stepped + 2, ours, theirs)
    assert same(ours.values, theirs.values)
    assert ours.opt.get(0, "step") == stepped + 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("group", [None, {"lr": 0.02}])
def test_the_mode_is_in_checkpoints(name, mode, group):
    ours, theirs = twins(name, "F", "float32", group)
    steps(0, STEPS, ours, theirs)
    ours.opt.call(mode), getattr(theirs.opt, mode)()
    content = ours.opt.save_memory()
    for turn in ("train", "eval"):  # whatever the mode of the one that loads
        later = Hosted(name, "F", "float32", group)
        later.opt.call(turn)
        for value, known in zip(later.values, ours.values, strict=True):
            value[...] = known
        later.opt.load_memory(content)
        assert same(later.values, ours.values)
        assert later.opt.get(-1, "train_mode") == (mode == "train")
        if mode == "eval":
            later.fill(STEPS)
            with pytest.raises(Error, match=r'call opt_call\(opt, "train"\)'):
                later.opt.step()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the values are those at the save, and the call's own
            later.opt.call("train")
            steps(STEPS, 2 * STEPS, later)
    theirs.opt.train(), ours.opt.call("train")
    steps(STEPS, 2 * STEPS, ours, theirs)
    assert same(ours.values, theirs.values)
    assert same(later.values, theirs.values)


def test_a_call_compares_what_a_first_step_would_compare():
    ours = Hosted("ScheduleFree")
    steps(0, STEPS, ours)
    later = Hosted("ScheduleFree")
    later.opt.load_memory(ours.opt.save_memory())
    with pytest.warns(UserWarning, match="w0"):
        later.opt.call("eval")


@pytest.mark.parametrize("name", NAMES)
def test_options_may_be_set_in_either_mode(name):
    ours, theirs = twins(name)
    steps(0, STEPS, ours, theirs)
    ours.opt.call("eval"), theirs.opt.eval()
    ours.opt.set(-1, "lr=0.2, momentum=0.7")
    theirs.opt.param_groups[0].update(lr=0.2, momentum=0.7)
    assert ours.opt.get(0, "train_mode") == 0
    ours.opt.call("train"), theirs.opt.train()
    steps(STEPS, 2 * STEPS, ours, theirs)
    assert same(ours.values, theirs.values)


def test_arrays_in_half_precision_get_what_their_master_copies_become():
    assert lib.opt_init(b"master_weights=True") == 0
    ours, theirs = Hosted("ScheduleFree", dtype="float16"), Plain("ScheduleFree")
    assert lib.opt_init(b"master_weights=False") == 0
    for p, value in zip(theirs.tensors, drawn(0, dtype="float16"), strict=True):
        p.data = torch.from_numpy(value).float()
    theirs.opt = somebodys.ScheduleFree(theirs.tensors)
    theirs.opt.train()
    for method in ("train", "eval", "train"):
        ours.opt.call(method), getattr(theirs.opt, method)()
        assert same(ours.values, [v.astype("float16") for v in theirs.values])
        for i in range(STEPS if method == "train" else 0):
            ours.fill(i)
            for p, grad in zip(theirs.tensors, ours.grads, strict=True):
                p.grad = torch.from_numpy(grad.astype("float32"))
            ours.opt.step(), theirs.opt.step()


@pytest.mark.parametrize("stepped", [0, 1, STEPS])
def test_a_call_that_fails_changes_nothing(stepped):
    ours, theirs = twins("ScheduleFreeElsewhere")
    steps(0, stepped, ours, theirs)
    kept, ours.values[1][2] = ours.values[1][2], np.nan
    values, grads = ([a.copy() for a in arrays] for arrays in (ours.values, ours.grads))
    with pytest.raises(Error, match="a weight is none"):
        ours.opt.call("eval")
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(ours.values, values, strict=True))
    assert same(ours.grads, grads)
    assert ours.opt.get(0, "train_mode") == 1
    ours.values[1][2] = kept
    steps(stepped, 2 * STEPS, ours, theirs)
    assert same(ours.values, theirs.values)


def refused(ours: Hosted, words: str, status: str, method: str | None = "eval") -> None:
    values = [v.copy() for v in ours.values]
    given = None if method is None else method.encode()
    assert lib.opt_call(ours.opt._handle, given) == STATUSES[status]
    assert words in lib.opt_error().decode()
    assert same(ours.values, values)


def test_other_methods_are_refused():
    ours, theirs = twins("ScheduleFree")
    steps(0, STEPS, ours, theirs)
    refused(ours, "no method 'evaluate': did you mean eval? there are eval, train", "OPT_EINVAL", "evaluate")
    for method in ("step", "zero_grad", "__init__", "", "eval()", "turn"):
        refused(ours, f"no method '{method}': ", "OPT_EINVAL", method)
    refused(ours, "method must not be NULL", "OPT_EINVAL", None)
    steps(STEPS, STEPS + 1, ours, theirs)
    assert same(ours.values, theirs.values)


@pytest.mark.parametrize("name", ["Somebodys", "Training"])
def test_a_class_without_these_methods_needs_no_call(name):
    ours = Hosted(name)
    steps(0, 1, ours)
    refused(
        ours,
        f"method 'eval': {name} has no train() and eval(), and needs none: leave out opt_call",
        "OPT_EINVAL",
    )
    refused(ours, f"method 'train': {name} has no train()", "OPT_EINVAL", "train")


@pytest.mark.parametrize("name", recipe.classes())
def test_torchs_own_classes_have_none(name):
    x = np.zeros((2, 2))
    opt = Optimizer(f"{name}()")
    if name != "SparseAdam":
        opt.bind("x", x, np.ones_like(x))
    with pytest.raises(Error, match=f"method 'eval': {name} has no train") as e:
        opt.call("eval")
    assert e.value.status == STATUSES["OPT_EINVAL"]


def test_a_call_at_the_wrong_time_changes_nothing():
    opt = Optimizer("somebodys:ScheduleFree()")
    with pytest.raises(Error, match="nothing is bound: call opt_bind before opt_call") as e:
        opt.call("eval")
    assert e.value.status == STATUSES["OPT_ESTATE"]
    ours, theirs = twins("ScheduleFree")
    ours.opt.average("AveragedModel()")
    steps(0, STEPS, ours, theirs)
    ours.opt.average_swap()
    refused(ours, "opt_call while the averages are swapped in: call opt_average_swap again", "OPT_ESTATE")
    ours.opt.average_swap()
    assert ours.opt.iterate(0.0)
    refused(ours, "opt_call in the middle of a step: call opt_iterate until", "OPT_ESTATE")
    loss = ours.fill(STEPS)
    assert not ours.opt.iterate(loss)
    steps(STEPS, STEPS + 1, theirs)
    inside = []

    def evaluate() -> float:
        inside.append(lib.opt_call(ours.opt._handle, b"eval"))
        return ours.fill(7)

    ours.opt.step_closure(evaluate)
    steps(7, 8, theirs)
    assert inside == [STATUSES["OPT_ESTATE"]]
    assert same(ours.values, theirs.values)


def test_arrays_that_come_with_each_step_are_asked_for():
    opt = lib.opt_create(b"somebodys:ScheduleFree()")
    assert lib.opt_bind(opt, b"w", b"float64", 2, None, None) == 0
    assert lib.opt_call(opt, b"eval") == STATUSES["OPT_ESTATE"]
    assert b"bind it to arrays first" in lib.opt_error()
    assert lib.opt_free(opt) == 0
