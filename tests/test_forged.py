"""Checkpoints that are whole and yet wrong, by accident or on purpose: refused, and nothing has changed."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
from collections import OrderedDict

import pytest
import torch

from forgery import Calls, Victim, forge, group_of, is_plain, lib, option, read, state_of
from optplug.errors import StateError
from optplug.optimizer import HostedOptimizer
from runs import AVERAGES, SPECS, in_memory

# ---- tensors ----

SHAPES = {
    "first row": lambda t: t[:1].clone(),
    "first column": lambda t: t[..., :1].clone(),
    "ones": lambda t: t.flatten()[:1].reshape([1] * t.dim()).clone(),
    "empty": lambda t: t[:0].clone(),
    "flat": lambda t: t.flatten(),
    "a number": lambda _: torch.zeros(()),
    "a row more": lambda t: torch.cat([t, t[:1]]),
    "transposed": lambda t: t.mT.clone() if t.dim() > 1 else torch.cat([t, t]),
    "a dimension more": lambda t: t.unsqueeze(0),
}

KINDS = {
    "complex": lambda t: t.to(torch.complex64),
    "double": lambda t: t.double(),
    "half": lambda t: t.half(),
    "integer": lambda t: t.int(),
    "bool": lambda t: t.bool(),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "negative": lambda t: torch.complex(t, t).conj().imag,
    "conjugate": lambda t: torch.complex(t, t).conj(),
    "nested": lambda _: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)]),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "text": lambda _: "x",
    "a number of Python's": lambda _: 0.5,
    "none": lambda _: None,
    "a list": lambda t: [t],
    "a dict": lambda t: {"x": t},
    "a class": lambda _: OrderedDict,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("spec", SPECS)
def test_a_state_that_the_class_does_not_make_for_this_parameter_is_refused(spec):
    victim = Victim(spec)
    content = read(victim.saved)
    tensors = [
        (key, name)
        for key, state in state_of(content).items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.dim()
    ]
    changes = [*SHAPES.values(), *KINDS.values()] if tensors else []
    for (i, (key, name)), (j, change) in itertools.product(enumerate(tensors[:4]), enumerate(changes)):
        if (i + j + SPECS.index(spec)) % len(tensors[:4]):  # each change, in turn of each parameter and name
            continue
        old = state_of(content)[key][name]
        try:
            new = change(old)
        except NotImplementedError:
            continue
        if is_plain(new) and (new.shape, new.dtype) == (old.shape, old.dtype):
            continue
        state_of(content)[key][name] = new
        victim.refuses(forge(content), "parameter")
        state_of(content)[key][name] = old
    for state in state_of(content).values():
        for name in list(state):
            value = state.pop(name)
            if name not in ("al", "momentum_buffer"):  # which a step makes where it is missing
                victim.refuses(forge(content), "has ")
            state[name] = value
        state["other"] = torch.zeros(2)
        victim.refuses(forge(content), "has the state")
        del state["other"]
    victim.goes_on()


def test_a_list_of_lbfgs_that_is_another_is_refused():
    victim = Victim("LBFGS(lr=0.1, max_iter=3, history_size=4)")
    for key in ("old_dirs", "old_stps", "ro"):
        for change in (*KINDS.values(), lambda t: t.expand(7) if t.dim() else t.expand(2), lambda t: t[:0]):
            content = read(victim.saved)
            values = state_of(content)[0][key]
            try:
                values[0] = change(values[0])
            except (IndexError, NotImplementedError, RuntimeError):
                continue
            if key != "ro" or not isinstance(values[0], float):
                victim.refuses(forge(content), key)
        victim.refuses_change(lambda c, key=key: state_of(c)[0][key].pop(), "different lengths")
    for key in ("n_iter", "func_evals"):
        for value in (-1, 0.5, "x", 1 << 60, None):
            victim.refuses_change(lambda c, key=key, value=value: state_of(c)[0].update({key: value}), key)
    victim.refuses_change(lambda c: state_of(c)[0].update(al=[]), "al must have")
    victim.refuses_change(lambda c: state_of(c).update({1: state_of(c)[0]}), "but the first parameter holds")
    victim.goes_on()


def bind_nd(shape: tuple[int, ...]) -> tuple[int, torch.Tensor]:
    opt = lib.opt_create(b"Adam(lr=0.1)")
    data, grad = torch.zeros(shape), torch.ones(shape)
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    pointers = data.data_ptr(), None, grad.data_ptr(), None
    assert lib.opt_bind_nd(opt, b"w", b"float32", b"cpu", len(shape), sizes, *pointers) == 0, lib.opt_error()
    data.grad = grad  # keeps it
    return opt, data


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ((6, 5, 1, 1), (6, 5, 3, 3)),
        ((4, 4, 1), (4, 4, 500)),
        ((2, 3, 4, 1, 6), (2, 3, 4, 5, 6)),
        ((1,) * 14, (1,) * 13 + (300,)),
        ((1,) * 14, (1,) * 12 + (3, 1)),
    ],
)
def test_an_honest_file_of_a_parameter_of_other_sizes_is_refused(there, here, tmp_path):
    p = torch.nn.Parameter(torch.zeros(there))
    p.grad = torch.ones_like(p)
    other = torch.optim.Adam([p])
    other.step()
    torch.save(other.state_dict(), tmp_path / "c.pt")
    opt, data = bind_nd(here)
    assert lib.opt_load(opt, str(tmp_path / "c.pt").encode()) == -1
    assert f"has shape {there}, and must have {here}".encode() in lib.opt_error()
    for _ in range(3):
        assert lib.opt_step(opt) == 0
    assert torch.allclose(data.detach(), torch.full(here, -0.3))
    assert lib.opt_free(opt) == 0


def test_a_state_of_many_dimensions_goes_on(tmp_path):
    shape = (1, 2) * 8
    opt, data = bind_nd(shape)
    twin, expected = bind_nd(shape)
    for _ in range(2):
        assert lib.opt_step(opt) == lib.opt_step(twin) == 0
    path = str(tmp_path / "c.pt").encode()
    assert lib.opt_save(opt, path) == 0
    assert lib.opt_load(opt, path) == 0, lib.opt_error()
    assert lib.opt_step(opt) == lib.opt_step(twin) == 0
    assert torch.equal(data.detach(), expected.detach())
    assert lib.opt_free(opt) == lib.opt_free(twin) == 0


@pytest.mark.parametrize("spec", ["Adam()", "SGD(momentum=0.9)", "Adagrad()", "AdamW(amsgrad=True)"])
def test_no_fused_step_runs_on_a_state_that_does_not_fit(spec):
    optimizer = HostedOptimizer(spec)
    data, grad = torch.zeros(4, 3), torch.ones(4, 3)
    optimizer.bind("w", data, grad)
    for _ in range(3):
        optimizer.step()
    (state,) = optimizer.run.built.state.values()
    for key, old in list(state.items()):
        for new in (torch.zeros(4, 1), torch.zeros(12), old.double(), torch.zeros(3, 4).mT, old.to("meta")):
            before = data.clone()
            state[key] = new
            optimizer.planner.forget()  # as a load does
            with pytest.raises(StateError, match=f"parameter 'w': its state {key} does not fit"):
                optimizer.step()
            with pytest.raises(StateError, match="does not fit"):
                optimizer.step_closure(lambda: 0.0)
            assert torch.equal(data, before)
        state[key] = old
    optimizer.step()


# ---- numbers ----

OPTIONS = {
    "lr": ["0.1", None, math.nan, math.inf, -1.0, 10**400, 1j, [0.1], True, torch.zeros(5), {}],
    "betas": [
        "ab",
        (0.9,),
        (0.9, 0.99, 0.9),
        (5.0, -3.0),
        (True, 0.9),
        torch.zeros(2),
        None,
        0.9,
        ("x", 0.9),
    ],
    "eps": ["x", None, -1.0, math.nan, torch.zeros(()), 10**400],
    "weight_decay": [math.nan, -1.0, (0.1,), "0.1"],
    "amsgrad": ["yes", 1, None],
    "maximize": ["no", 0, torch.ones(())],
    "foreach": ["x", 1],
    "fused": [[True], 0.0],
    "initial_lr": ["x", None, -1.0],
    "decoupled_weight_decay": ["x"],
    "params": ["ab", [0, 0], [[0]], None, 3],
    "param_names": [["w", "w"], {"w": 1}, [1], "w", [["w"]]],
    "other": [OrderedDict, Calls(os.system, "touch bomb")],
}


@pytest.mark.parametrize("steps", [0, 3])
def test_groups_are_checked_with_state_and_without(steps):
    victim = Victim("Adam()", steps=steps)
    for key, values in OPTIONS.items():
        for value in values:
            victim.refuses_change(lambda c, key=key, value=value: group_of(c).update({key: value}), "group 0")
    victim.goes_on()


def test_what_else_is_in_a_group_is_left_out():
    victim = Victim("Adam()")
    content = read(victim.saved)
    group_of(content).update(other={"a": [1, 2, {"b": "\x1b[31m%n"}]}, more=3)
    content = forge(content)
    assert lib.opt_load_memory(victim.run.opt, content, len(content)) == 0, lib.opt_error()
    assert str(read(in_memory(victim.run))) == str(read(victim.saved))
    victim.goes_on()


COUNTS = [-5, -1.0, math.nan, math.inf, 1e38, 0.5, 1 << 60, "3", {}, [torch.zeros(())], None, True]

TENSORS = [torch.tensor(v) for v in (-5.0, math.nan, math.inf, 1e38, 0.5, 1 << 60, True, 1j)]


@pytest.mark.parametrize("spec", ["Adam()", "RMSprop()", "SparseAdam()"])
def test_a_count_that_is_none_is_refused(spec):
    victim = Victim(spec, "StepLR", AVERAGES[1])
    for value in (*COUNTS, *TENSORS, torch.zeros(3), torch.zeros(1), torch.zeros((), device="meta")):
        victim.refuses_change(lambda c, value=value: state_of(c)[0].update(step=value), "step")
    for value in COUNTS:
        victim.refuses_change(lambda c, value=value: c["average"].update(n_averaged=value), "number of steps")
        victim.refuses_change(
            lambda c, value=value: c["schedulers"][0]["state"].update(last_epoch=value), "last_epoch"
        )
    for value in ("x", None, [], [None, None], ["x", "y"], [1.0, 1.0, 1.0], torch.ones(2)):
        victim.refuses_change(
            lambda c, value=value: c["schedulers"][0]["state"].update(base_lrs=value), "base_lrs"
        )
    victim.goes_on()


def test_a_word_for_or_against_steps_is_checked():
    victim = Victim("Adam()")
    victim.refuses_change(lambda c: c["optplug"].update(stepped="no"), "stepped is 'no'")
    victim.refuses_change(lambda c: c["optplug"].update(stepped=torch.zeros(3)), "stepped is a tensor")
    victim.refuses_change(lambda c: c["optplug"].update(stepped=False), "before the first step")
    victim.refuses_change(lambda c: state_of(c).clear(), "has no state, after steps")
    victim.refuses_change(lambda c: c["optplug"].update(format=10**30), "its format is")
    for key in ("optplug", "optimizer", "schedulers", "average"):
        for value in (5, "x", {}, {"x": 1}, [5]):
            victim.refuses_change(lambda c, key=key, value=value: c.update({key: value}))
    for key, value in itertools.product(("state", "param_groups"), (None, "ab", 3, [], {}, [3], {0: 3})):
        victim.refuses_change(lambda c, key=key, value=value: c["optimizer"].update({key: value}))
    victim.goes_on()


# ---- nothing has changed ----

BAD = [torch.zeros(3, 2, device="meta"), torch.zeros(3, 2).to_sparse(), torch.zeros(3, 1), "x", OrderedDict]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("value", BAD, ids=lambda v: str(v)[:20])
def test_parameters_averages_and_masters_are_checked_before_the_first_is_written(value):
    victim = Victim("Adam()", average=AVERAGES[1], with_parameters=True)
    victim.refuses_change(lambda c: c["parameters"].update(w=torch.full((4, 3), 777.0), v=value), "'v'")
    victim.refuses_change(
        lambda c: c["average"]["values"].update(w=torch.full((4, 3), 777.0), v=value), "'v'"
    )
    victim.goes_on()
    with option("master_weights"):
        victim = Victim("SGD(lr=0.001)", dtype=torch.bfloat16)
        victim.refuses_change(lambda c: c["masters"].update(w=torch.full((4, 3), 777.0), v=value), "'v'")
        victim.refuses_change(lambda c: c["masters"].pop("v"), "'v'")
        victim.refuses_change(lambda c: c.update(masters=value), "master")
        victim.goes_on()


def test_what_is_wrong_in_the_last_part_leaves_the_first_as_it_was():
    victim = Victim("Adam()", "StepLR", AVERAGES[1], with_parameters=True)

    def change(content: dict) -> None:
        content["parameters"]["w"] += 1
        content["average"]["values"]["w"] += 1
        state_of(content)[0]["exp_avg"] += 1
        group_of(content)["lr"] = 0.5
        content["schedulers"][0]["state"]["last_epoch"] = 77

    for wrong in (
        lambda c: c["parameters"].pop("v"),
        lambda c: c["average"]["values"].pop("v"),
        lambda c: c["average"].update(n_averaged="x"),
        lambda c: state_of(c)[1].update(exp_avg_sq=torch.zeros(2)),
        lambda c: c["schedulers"][0]["state"].pop("base_lrs"),
    ):
        victim.refuses_change(lambda c, wrong=wrong: (change(c), wrong(c)))
    victim.goes_on()
