"""What classes outside torch do with parameters in a step, beside the same class in plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import somebodys
from optplug import _bridge, ctypes_api
from third_party_twins import Hosted, Plain, drawn, same

lib = ctypes_api.load()
LAST = 6  # steps
CALL_CLOSURES = ["Dropping", "Zeroing", "Contiguous", "Replacing", "Keeping", "Scaling"]
TAKE_ARRAYS = [*CALL_CLOSURES, "Flat"]


@pytest.fixture(autouse=True)
def _allowed():
    assert lib.opt_init(b"third_party=True") == 0
    yield
    assert lib.opt_init(b"third_party=False") == 0


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("group", [None, {"lr": 0.02}])
@pytest.mark.parametrize("name", [*TAKE_ARRAYS, "Differentiating", "DifferentiatingInContext"])
def test_every_step_is_the_classs_own(name, group, order):
    ours, theirs = (kind(name, order, "float32", group) for kind in (Hosted, Plain))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(theirs.opt, gamma=0.9)
    ours.opt.schedule("ExponentialLR(gamma=0.9)")
    for i in range(LAST):
        ours.fill(i), theirs.fill(i)
        norm = ours.opt.clip_grad_norm(2.0)
        assert norm == float(torch.nn.utils.clip_grad_norm_(theirs.tensors, 2.0))
        ours.opt.step(), theirs.opt.step()
        ours.opt.schedule_step(), scheduler.step()
        assert same(ours.values, theirs.values), i
    assert not same(ours.values, drawn(0))


def test_steps_come_down_to_the_classs_own_until_something_changes():
    ours, theirs = Hosted("Dropping"), Plain("Dropping")
    planner = _bridge.optimizer_of(ours.opt._handle).planner
    schedulers = []

    def go(i: int) -> None:
        ours.fill(i), theirs.fill(i)
        ours.opt.step(), theirs.opt.step()
        for each in schedulers:
            ours.opt.schedule_step(), each.step()
        assert same(ours.values, theirs.values), i

    def move() -> None:
        for kept in (ours.values, ours.grads):
            kept[0] = kept[0].copy()
        ours.opt.bind("w0", ours.values[0], ours.grads[0])

    def schedule() -> None:
        ours.opt.schedule("ExponentialLR(gamma=0.9)")
        schedulers.append(torch.optim.lr_scheduler.ExponentialLR(theirs.opt, gamma=0.9))

    changes = [move, schedule, lambda: ours.opt.average("AveragedModel()")]
    for i, change in enumerate(changes):
        for j in range(LAST):
            go(10 * i + j)
        assert planner.steady is not None, i
        change()
        assert planner.steady is None, i
    averaged = []
    for j in range(8 * LAST):  # records wait longer after each change
        go(30 + j)
        averaged.append(ours.values[0].copy())
        assert planner.steady is None, j  # a step updates the average as well
    ours.opt.average_swap()
    assert np.allclose(ours.values[0], np.mean(averaged, 0))


@pytest.mark.parametrize("has_closure", [False, True])
def test_a_class_may_free_its_gradients(has_closure):
    ours, theirs = Hosted("Freeing"), Plain("Somebodys")
    ours.opt.set(-1, "momentum=0.9")  # which is tried first, in two steps
    for i in range(LAST):
        ours.fill(i), theirs.fill(i)
        grads = [grad.copy() for grad in ours.grads]
        ours.opt.step_closure(lambda: 0.0) if has_closure else ours.opt.step()
        theirs.opt.step()
        assert same(ours.values, theirs.values), i
        assert same(ours.grads, grads), i
    assert not same(ours.values, drawn(0))


@pytest.mark.parametrize("name", [*CALL_CLOSURES, "GoingBack"])
def test_a_host_finds_its_arrays_in_closures(name):
    ours, theirs = Hosted(name), Plain(name)
    clipped: list[float] = []

    def close(twin, clip):
        def closure():
            loss = twin.fill(i)
            clipped.append(float(clip()))
            return loss

        return closure

    for i in range(LAST):
        clipped.clear()
        loss = ours.opt.step_closure(close(ours, lambda: ours.opt.clip_grad_norm(3.0)))
        calls, clipped[:] = clipped[:], []
        clip = close(theirs, lambda: torch.nn.utils.clip_grad_norm_(theirs.tensors, 3.0))
        assert loss == float(theirs.opt.step(clip))
        assert calls == clipped
        assert same(ours.values, theirs.values), i


@pytest.mark.parametrize("name", TAKE_ARRAYS)
def test_arrays_are_the_hosts_between_steps(name):
    """What a host writes, binds elsewhere, zeroes, averages and swaps is what steps and reads go by."""
    ours, theirs = Hosted(name), Plain(name)
    average = torch.optim.swa_utils.AveragedModel(torch.nn.ParameterList(theirs.tensors))
    ours.opt.average("AveragedModel()")
    for i in range(LAST):
        ours.fill(i), theirs.fill(i)
        ours.opt.step(), theirs.opt.step()
        average.update_parameters(torch.nn.ParameterList(theirs.tensors))
        if i == 2:
            ours.values[0][0] = 7
            theirs.tensors[0].data[0] = 7
        if i == 3:
            ours.values = [v.copy() for v in ours.values]
            ours.grads = [np.ones_like(g) for g in ours.grads]
            for j, pair in enumerate(zip(ours.values, ours.grads, strict=True)):
                ours.opt.bind(f"w{j}", *pair)
    assert same(ours.values, theirs.values)
    ours.opt.zero_grad()
    assert not any(g.any() for g in ours.grads)
    averaged = [p.detach().numpy() for p in average.module]
    assert same([ours.opt.average_get(f"w{j}") for j in range(2)], averaged)
    ours.opt.average_swap()
    assert same(ours.values, averaged)


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_other_dtypes_too(dtype):
    for name in TAKE_ARRAYS:
        ours, theirs = Hosted(name, "F", dtype), Plain(name, "F", dtype)
        for i in range(LAST):
            ours.fill(i), theirs.fill(i)
            ours.opt.step(), theirs.opt.step()
        assert same(ours.values, theirs.values), name


@pytest.mark.parametrize("name", TAKE_ARRAYS)
def test_master_copies_are_stepped_as_parameters_in_float32(name):
    assert lib.opt_init(b"master_weights=True") == 0
    ours, theirs = Hosted(name, dtype="float16"), Plain(name)
    assert lib.opt_init(b"master_weights=False") == 0
    for p, value in zip(theirs.tensors, drawn(0, dtype="float16"), strict=True):
        p.data = torch.from_numpy(value).float()
    theirs.opt = getattr(somebodys, name)(theirs.tensors)
    for i in range(LAST):
        ours.fill(i)
        for p, grad in zip(theirs.tensors, ours.grads, strict=True):
            p.grad = torch.from_numpy(grad.astype("float32"))
        ours.opt.step(), theirs.opt.step()
        assert same(ours.values, [v.astype("float16") for v in theirs.values]), i


@pytest.mark.parametrize("first", [0, 2])
def test_a_step_that_fails_changes_nothing(first):
    """The values, the gradients, the groups, the state, the class's own attributes: the run goes on."""
    ours, theirs = Hosted("Failing", group={"lr": 0.02}), Plain("Failing", group={"lr": 0.02})
    for i in range(LAST):
        ours.fill(i)
        if i == first:
            before = [v.copy() for v in ours.values]
            ours.grads[1][2] = np.nan
            grads = [g.copy() for g in ours.grads]
            with pytest.raises(RuntimeError, match="a gradient is none"):
                ours.opt.step()
            with pytest.raises(RuntimeError, match="a gradient is none"):
                ours.opt.step_closure(lambda: 0.0)
            assert same(ours.values, before)
            assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(ours.grads, grads, strict=True))
            ours.fill(i)
        theirs.fill(i)
        ours.opt.step(), theirs.opt.step()
        assert same(ours.values, theirs.values), i
    built = _bridge.optimizer_of(ours.opt._handle).run.built
    assert (built.count, built.trail) == (theirs.opt.count, theirs.opt.trail) == (LAST, [1, 2, 3, 4, 5, 6])
    assert built.state["steps"] == LAST
    assert built.param_groups[0]["total"] == LAST


@pytest.mark.parametrize("between", ["a first step that fails", "a load"])
def test_a_step_that_fails_is_undone_where_another_optimizer_makes_it_than_the_step_before(between, tmp_path):
    ours, theirs = Hosted("Failing"), Plain("Failing")

    def fail():
        ours.grads[1][2] = np.nan
        with pytest.raises(RuntimeError, match="a gradient is none"):
            ours.opt.step()

    fail()
    for i in range(LAST):
        ours.fill(i), theirs.fill(i)
        ours.opt.step(), theirs.opt.step()
        if between == "a load":
            ours.opt.save(tmp_path / "run.pt")
            ours.opt.load(tmp_path / "run.pt")
        fail()
        assert same(ours.values, theirs.values), i
        assert _bridge.optimizer_of(ours.opt._handle).run.built.count == i + 1


def test_a_tensor_in_another_is_put_back_where_it_was_replaced():
    ours, theirs = Hosted("Packing"), Plain("Packing")
    for i in range(LAST):
        ours.fill(i), theirs.fill(i)
        ours.opt.step(), theirs.opt.step()
        assert same(ours.values, theirs.values), i
        ours.grads[0][0] = np.nan
        with pytest.raises(RuntimeError, match="a gradient is none"):
            ours.opt.step()


def test_a_parameter_that_becomes_another_is_an_error():
    ours = Hosted("Reshaping")
    ours.fill(0)
    with pytest.raises(RuntimeError, match=r"'w0': the step changed it to .*15.* is bound as .*5"):
        ours.opt.step()
    assert same(ours.values, drawn(0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_class_that_needs_a_closure_is_found_out(dtype):
    """It says so when it is stepped without; it gets a tensor for the loss, and may return nothing."""
    for _ in range(2):  # what was tried once is not tried again
        ours, theirs = (kind("Polyak", dtype=dtype) for kind in (Hosted, Plain))
        with pytest.raises(RuntimeError, match=r"Polyak evaluates the loss .* call opt_step_closure"):
            ours.opt.step()
        for i in range(LAST):
            losses = []
            loss = ours.opt.step_closure(lambda: ours.fill(i))  # noqa: B023 (called at once)
            theirs.opt.step(lambda: losses.append(theirs.fill(i)) or losses[0])  # noqa: B023
            assert loss == float(losses[0])
            assert same(ours.values, theirs.values), i


def test_a_class_that_calls_no_closure_is_an_error():
    ours = Hosted("Ignoring")
    ours.fill(0)
    with pytest.raises(RuntimeError, match="Ignoring has not called the closure: call opt_step"):
        ours.opt.step_closure(lambda: 0.0)
    assert same(ours.values, drawn(0))


@pytest.mark.parametrize("arguments", [{}, {"fused": True}, {"fused": False}])
def test_an_argument_named_fused_is_the_classs_own(arguments):
    ours, theirs = Hosted("Fused", "F", **arguments), Plain("Fused", "F", **arguments)
    scale = np.full(1, 4, "float32")
    ours.opt.grad_scale(scale)
    for i in range(LAST):
        ours.fill(i), theirs.fill(i)
        for grad in ours.grads:
            grad *= 4
        ours.opt.step(), theirs.opt.step()
        assert same(ours.values, theirs.values), i
    assert ours.opt.get(0, "step") == LAST


def test_a_rate_that_is_a_tensor_stays_one():
    ours, theirs = (kind("Tensors", group={"lr": 0.02}) for kind in (Hosted, Plain))
    scheduler = None
    for i in range(LAST):
        if i == 1:
            ours.opt.set(1, "lr=0.3")
            theirs.opt.param_groups[1]["lr"].fill_(0.3)
        if i == 2:
            ours.opt.set(-1, "momentum=0.5, lr=0.25")
            for group in theirs.opt.param_groups:
                group["lr"].fill_(0.25), group.update(momentum=0.5)
        if i == 3:
            ours.opt.set_value(0, "lr", 0.125)
            theirs.opt.param_groups[0]["lr"].fill_(0.125)
        if i == 4:
            ours.opt.schedule("ExponentialLR(0.5)")
            scheduler = torch.optim.lr_scheduler.ExponentialLR(theirs.opt, 0.5)
        ours.fill(i), theirs.fill(i)
        ours.opt.step(), theirs.opt.step()
        if scheduler:
            ours.opt.schedule_step(), scheduler.step()
        assert ours.opt.get(0, "lr") == float(theirs.opt.param_groups[0]["lr"])
        assert same(ours.values, theirs.values), i


def test_a_group_may_have_options_that_the_class_has_no_argument_for():
    groups = [{"use_sign": True, "lr": 0.02}, {"use_sign": False, "rank": 3}]
    ours, theirs = Hosted("Choosing", groups=groups), Plain("Choosing", groups=groups)
    for i in range(LAST):
        if i == 2:
            ours.opt.set(1, "rank=2, lr=0.3")
            theirs.opt.param_groups[1].update(rank=2, lr=0.3)
        if i == 3:
            ours.opt.set_value(1, "rank", 1.5)
            theirs.opt.param_groups[1]["rank"] = 1.5
        ours.fill(i), theirs.fill(i)
        ours.opt.step(), theirs.opt.step()
        assert same(ours.values, theirs.values), i
    with pytest.raises(RuntimeError, match="no option 'depth': there are lr, momentum, rank, use_sign"):
        ours.opt.set(1, "depth=2")
    with pytest.raises(RuntimeError, match="rank=0: rank must be positive"):
        ours.opt.set(1, "rank=0")


def test_options_are_judged_when_parameters_are_bound():
    with pytest.raises(RuntimeError, match=r"parameter 'w0': `use_sign` must be set"):
        Hosted("Choosing")
    with pytest.raises(RuntimeError, match="parameter 'w1': rank must be positive"):
        Hosted("Choosing", groups=[{"use_sign": True}, {"use_sign": True, "rank": 0}])
    with pytest.raises(RuntimeError, match="invalid lr -1"):
        Hosted("Choosing", groups=[{"use_sign": True, "lr": -1}])
    with pytest.raises(RuntimeError, match=r"spec .*Counting.*: lr='high'"):
        Hosted("Counting", lr="high")


def test_an_option_that_nothing_mentions_is_warned_of():
    Hosted("Choosing", groups=[{"use_sign": True}, {"use_sign": False, "rank": 2}])
    with pytest.warns(UserWarning, match="option 'rnak': nothing in somebodys mentions it"):
        Hosted("Choosing", groups=[{"use_sign": True}, {"use_sign": False, "rnak": 2}])


def test_views_that_a_class_keeps_are_of_the_array_that_is_bound_again():
    ours, theirs = Hosted("Viewing"), Plain("Viewing")
    for i in range(LAST):
        ours.fill(i), theirs.fill(i)
        if i == LAST // 2:
            [matrix] = [k for k, value in enumerate(ours.values) if value.ndim > 1]
            other = np.asfortranarray(ours.values[matrix])
            with pytest.raises(ctypes_api.Error, match="Viewing keeps views of the array that was bound"):
                ours.opt.bind(f"w{matrix}", other, ours.grads[matrix])
            for k, value in enumerate(ours.values):
                ours.values[k] = value.copy()
                value.fill(np.nan)  # as memory that is free may become
                ours.opt.bind(f"w{k}", ours.values[k], ours.grads[k])
        ours.opt.step(), theirs.opt.step()
        assert same(ours.values, theirs.values), i
