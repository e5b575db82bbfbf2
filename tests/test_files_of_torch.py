"""Files that plain PyTorch has saved, in all the ways that it did: they go on."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from forgery import Victim, lib, state_of
from optplug import checkpoint
from optplug.optimizer import HostedOptimizer
from runs import PLAIN, SPECS, Run, go_plainly, in_memory, plain

# ---- files that PyTorch takes ----

STEPS = {
    "int": int,
    "float": float,
    "float64": lambda t: t.double(),
    "float32": lambda t: torch.as_tensor(float(t)),
    "int64": lambda t: torch.tensor(int(t)),
}


def loads(spec: str, content: object, path, **kind) -> Run:
    torch.save(content, path, **kind)
    run = Run(spec)
    assert lib.opt_load(run.opt, str(path).encode()) == 0, lib.opt_error()
    return run


def resumed(spec: str, made: torch.optim.Optimizer, parameters: dict, content: object, path, **kind) -> None:
    """Check that a run goes on from a file as PyTorch's own optimizer does."""
    run = loads(spec, content, path, **kind)
    for n, p in parameters.items():
        run.values[n].copy_(p.detach())
    shadow = Run(spec)
    for _ in range(3):
        go_plainly(made, parameters, shadow)
    run.go(3)
    assert {n: p.tolist() for n, p in run.values.items()} == {n: p.tolist() for n, p in parameters.items()}
    run.free()
    shadow.free()


def stepped(spec: str) -> tuple[torch.optim.Optimizer, dict[str, torch.nn.Parameter]]:
    made, parameters = plain(Run(spec))
    if "fused" in made.defaults and "f" not in spec.partition("(")[2]:
        for group in made.param_groups:  # what optplug chooses
            group["fused"] = True
    shadow = Run(spec)
    for _ in range(2):
        go_plainly(made, parameters, shadow)
    shadow.free()
    return made, parameters


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("spec", PLAIN)
def test_a_count_of_steps_may_be_of_any_kind(spec, step, tmp_path):
    made, parameters = stepped(spec)
    state = copy.deepcopy(made.state_dict())
    for entries in state["state"].values():
        if "step" in entries:
            entries["step"] = STEPS[step](entries["step"].clone())
    resumed(spec, made, parameters, state, tmp_path / "c.pt")


def test_a_momentum_that_is_none_is_taken(tmp_path):
    made, parameters = stepped("SGD(lr=0.1)")
    state = copy.deepcopy(made.state_dict())
    state["state"] = {0: {"momentum_buffer": None}, 1: {"momentum_buffer": None}}
    resumed("SGD(lr=0.1)", made, parameters, state, tmp_path / "c.pt")


def test_a_momentum_that_one_parameter_of_two_has_goes_on():
    """As where the other never had a gradient, which PyTorch's fused kernel does not take."""
    values = {name: torch.arange(6.0) / 7 for name in "ab"}
    theirs = {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}
    made = torch.optim.SGD(theirs.values(), lr=0.1, momentum=0.9)
    theirs["b"].grad = torch.ones(6) / 3
    made.step()
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    ours, grads = HostedOptimizer("SGD(lr=0.1, momentum=0.9)"), {name: torch.zeros(6) for name in values}
    for name, value in values.items():
        value.copy_(theirs[name].detach())
        ours.bind(name, value, grads[name])
    with checkpoint.load_memory(file.getvalue()) as content:
        ours.load_state_dict(content)
    for step in range(3):
        for name, grad in grads.items():
            grad.fill_(1 / (3 + step))
            theirs[name].grad = grad.clone()
        made.step()
        ours.step()
    assert {n: v.tolist() for n, v in values.items()} == {n: p.tolist() for n, p in theirs.items()}


@pytest.mark.parametrize("key", ["t", "H_diag", "prev_loss"])
def test_a_number_of_lbfgs_that_no_step_could_use_is_refused(key):
    victim = Victim("LBFGS()")
    victim.refuses_change(lambda c: state_of(c)[0].update({key: 10**30}), "too large")
    victim.goes_on()


def test_lbfgs_saves_what_it_has_loaded_bit_for_bit():
    victim = Victim("LBFGS()")
    assert lib.opt_load_memory(victim.run.opt, victim.saved, len(victim.saved)) == 0, lib.opt_error()
    assert in_memory(victim.run) == victim.saved


def test_a_learning_rate_may_be_a_number_of_numpys_or_a_tensor(tmp_path):
    made, parameters = stepped("Adam()")
    for kind in (np.float64, np.float32, torch.tensor):
        for group in made.param_groups:
            group["lr"] = 0.25
        state = copy.deepcopy(made.state_dict())
        state["param_groups"] = [{**g, "lr": kind(0.25)} for g in state["param_groups"]]
        is_tensor = kind is torch.tensor  # which torch keeps, and some classes round otherwise with
        words = "lr is a tensor in the file, and the number 0.25 here"
        with pytest.warns(UserWarning, match=words) if is_tensor else contextlib.nullcontext():
            resumed("Adam()", made, parameters, state, tmp_path / "c.pt")


def test_state_of_another_precision_is_cast_as_pytorch_casts_it(tmp_path):
    made, parameters = stepped("Adam()")
    state = copy.deepcopy(made.state_dict())
    for entries in state["state"].values():
        entries["exp_avg"] = entries["exp_avg"].double() / 3
        entries["exp_avg_sq"] = entries["exp_avg_sq"].half()
    made.load_state_dict(state)
    resumed("Adam()", made, parameters, state, tmp_path / "c.pt")


@pytest.mark.parametrize("spec", [s for s in SPECS if not s.startswith("Muon")])
def test_a_file_of_another_default_dtype_goes_on(spec):
    for there, here in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        try:
            torch.set_default_dtype(there)
            run = Run(spec, dtype=torch.float64)
            run.go(3)
            saved = in_memory(run)
            torch.set_default_dtype(here)
            other = Run(spec, dtype=torch.float64, values=run.values)
            other.made = run.made
            assert lib.opt_load_memory(other.opt, saved, len(saved)) == 0, lib.opt_error()
            other.go(3)
            torch.set_default_dtype(there)
            run.go(3)
            if spec.startswith("ASGD"):  # whose rate torch rounds to the default dtype at each step
                assert np.allclose(run.bits()[0], other.bits()[0], rtol=1e-6)
            else:
                assert run.bits() == other.bits()
            run.free()
            other.free()
        finally:
            torch.set_default_dtype(torch.float32)


def test_an_optimizers_state_may_have_any_key(tmp_path):
    made, parameters = stepped("Adam()")
    for wrap in (
        lambda s: {"optimizer_state_dict": s, "epoch": 3, "model_state_dict": {"w": torch.zeros(3)}},
        lambda s: {"optimizer": [s], "args": argparse.Namespace(lr=1)},
        lambda s: {"optimizer_states": [s], "when": np.datetime64("2020-01-01")},
        lambda s: {"optimizer": s, "optimizer_of_another": s},
        OrderedDict,
    ):
        state = copy.deepcopy(made.state_dict())
        resumed("Adam()", made, parameters, wrap(state), tmp_path / "c.pt")
    run = Run("Adam()")
    for content, words in (
        ({"generator": state, "critic": state}, "states of several optimizers: 'generator', 'critic'"),
        ({"weights": torch.zeros(3), "epoch": 3}, "its keys are 'weights', 'epoch'"),
        ({"optimizers": [state, state]}, "its keys are 'optimizers'"),
    ):
        torch.save(content, tmp_path / "c.pt")
        assert lib.opt_load(run.opt, str(tmp_path / "c.pt").encode()) == -1
        assert words in lib.opt_error().decode()
    run.free()


def test_files_of_torch_before_1_6_go_on(tmp_path):
    made, parameters = stepped("Adam()")
    path = tmp_path / "c.pt"
    resumed("Adam()", made, parameters, made.state_dict(), path, _use_new_zipfile_serialization=False)
    whole, run = path.read_bytes(), Run("Adam()")
    for n in (0, 1, 5, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:n])
        assert lib.opt_load(run.opt, str(path).encode()) == -1
        assert (b"damaged" if n else b"it is empty") in lib.opt_error()
    path.write_bytes(pickle.dumps({"state": {}, "param_groups": []}))
    assert lib.opt_load(run.opt, str(path).encode()) == -1
    run.free()


def test_a_bit_that_flips_in_a_file_of_pytorchs_is_noticed(tmp_path):
    made, _ = stepped("Adam()")
    torch.save(made.state_dict(), tmp_path / "c.pt")
    whole = bytearray((tmp_path / "c.pt").read_bytes())
    value = made.state_dict()["state"][0]["exp_avg"].numpy().tobytes()
    whole[whole.index(value) + 5] ^= 1
    run = Run("Adam()")
    assert lib.opt_load_memory(run.opt, bytes(whole), len(whole)) == -1
    assert b"checksum" in lib.opt_error()
    run.free()
