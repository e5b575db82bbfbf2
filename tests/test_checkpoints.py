"""A run that goes on from a checkpoint is, bit for bit, the run that never stopped."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch

import hosts
from optplug import recipe, schedules
from runs import AVERAGES, HERE, PLAIN, SCHEDULES, SPECS, Run, go_plainly, in_memory, lib, plain


def check_goes_on(attach: bool = True, before: int = 5, after: int = 5, **kind) -> None:
    run = Run(**kind)
    run.go(before)
    saved = in_memory(run)
    resumed = Run(**kind, values=run.values, attach=attach)
    resumed.made = run.made
    assert lib.opt_load_memory(resumed.opt, saved, len(saved)) == 0, lib.opt_error()
    run.go(after)
    resumed.go(after)
    assert run.bits() == resumed.bits()
    run.free()
    resumed.free()


DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_every_optimizer_goes_on(spec, dtype):
    """After steps in each dtype, and before and after the first in one, in turn."""
    for before in (0, 1, 5) if DTYPES[SPECS.index(spec) % 3] == dtype else (5,):
        check_goes_on(spec=spec, dtype=dtype, before=before)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_goes_on(schedule):
    """Attached before the load by one class and not by the other, in turn; one with a function always."""
    has_function = schedule in ("LambdaLR", "MultiplicativeLR")
    turn = list(SCHEDULES).index(schedule) % 2
    for i, spec in enumerate(("Adam(lr=0.01)", "RMSprop(lr=0.01)")):
        check_goes_on(spec=spec, schedule=schedule, attach=has_function or i == turn)


def test_there_is_no_other_schedule():
    assert schedules.classes().keys() == SCHEDULES.keys() - {""}
    assert {spec.partition("(")[0] for spec in SPECS} == recipe.classes().keys()


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("average", AVERAGES)
def test_averages_go_on(average, attach):
    for spec in ("Adam(lr=0.01)", "SGD(momentum=0.9)"):
        check_goes_on(spec=spec, average=average, schedule="StepLR", attach=attach)


@pytest.mark.parametrize("spec", PLAIN)
def test_pytorch_goes_on_from_our_file(spec, tmp_path):
    run = Run(spec)
    run.go(4)
    assert lib.opt_save(run.opt, str(tmp_path / "c.pt").encode()) == 0, lib.opt_error()
    # This is all that the other program needs.
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    made, parameters = plain(run)
    made.load_state_dict(saved["optimizer"])
    shadow = Run(spec)
    shadow.made = run.made
    for _ in range(4):
        go_plainly(made, parameters, shadow)
    run.go(4)
    assert {n: p.tolist() for n, p in run.values.items()} == {n: p.tolist() for n, p in parameters.items()}
    run.free()
    shadow.free()


@pytest.mark.parametrize("form", ["bare", "in a dict", "without names"])
@pytest.mark.parametrize("spec", PLAIN)
def test_we_go_on_from_a_file_of_pytorchs(spec, form, tmp_path):
    shadow = Run(spec)
    made, parameters = plain(shadow)
    implementation = {k: True for k in ("fused",) if k in made.defaults and "f" not in spec.partition("(")[2]}
    for group in made.param_groups:  # what optplug chooses
        group.update(implementation)
    for _ in range(4):
        go_plainly(made, parameters, shadow)
    state = made.state_dict()
    if form == "without names":
        for group in state["param_groups"]:
            del group["param_names"]
    torch.save({"optimizer": state, "epoch": 3} if form == "in a dict" else state, tmp_path / "c.pt")
    run = Run(spec, values={n: p.detach() for n, p in parameters.items()})
    run.made = shadow.made
    assert lib.opt_load(run.opt, str(tmp_path / "c.pt").encode()) == 0, lib.opt_error()
    for _ in range(4):
        go_plainly(made, parameters, shadow)
    run.go(4)
    assert {n: p.tolist() for n, p in run.values.items()} == {n: p.tolist() for n, p in parameters.items()}
    run.free()
    shadow.free()


def test_a_file_of_pytorchs_that_does_not_fit_is_refused(tmp_path):
    run = Run("Adam()")
    run.go(2)
    made, parameters = plain(run)
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    made.step()
    good = made.state_dict()

    def refused(words: str, change) -> None:
        state = {"state": {k: dict(v) for k, v in good["state"].items()}}
        state["param_groups"] = [dict(g) for g in good["param_groups"]]
        state = change(state) or state
        torch.save(state, tmp_path / "c.pt")
        assert lib.opt_load(run.opt, str(tmp_path / "c.pt").encode()) == -1
        assert words in lib.opt_error().decode(), lib.opt_error()

    refused("has shape (5,)", lambda s: s["state"][0].update(exp_avg=torch.zeros(5)))
    refused("is int32, and float32 here", lambda s: s["state"][0].update(exp_avg=torch.zeros(4, 3).int()))
    refused("is str", lambda s: s["state"][0].update(exp_avg="x"))
    refused("has the state exp_avg, step, where", lambda s: s["state"][0].__delitem__("exp_avg_sq"))
    refused("Invalid weight_decay value: -1", lambda s: s["param_groups"][0].update(weight_decay=-1))
    refused("group 0", lambda s: s["param_groups"][0].update(lr="x"))
    refused("group 0", lambda s: s["param_groups"][0].update(betas="x"))
    refused("no parameter 'w'", lambda s: s["param_groups"][0].update(param_names=["x"]))
    refused(
        "2 parameters in the file",
        lambda s: s["param_groups"][0].update(params=[0, 9], param_names=["w", "w"]),
    )
    refused("it has 1 parameter groups", lambda s: s["param_groups"].__delitem__(1))
    refused("belong to none of its groups", lambda s: s["state"].update({7: {}}))
    refused("no optimizer state", lambda _: {"weights": torch.zeros(3)})
    refused("it contains a list", lambda _: [1, 2])
    refused("not a checkpoint", lambda s: s.update(param_groups=3))
    refused("not a checkpoint", lambda s: s.update(state={0: 3}))
    before = [run.values, run.made]
    run.go(3)
    assert run.made == before[1] + 3
    run.free()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch bomb",)


def test_no_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run("Adam()")
    for content in (Bomb(), {"optimizer": Bomb()}, {"optplug": Bomb()}):
        for zipped in (True, False):
            torch.save(content, "c.pt", _use_new_zipfile_serialization=zipped)
            assert lib.opt_load(run.opt, b"c.pt") == -1
            assert lib.opt_error().startswith((b"path 'c.pt': damaged", b"path 'c.pt': not a checkpoint"))
    assert not (tmp_path / "bomb").exists()
    run.free()


# ---- what can happen to files ----


def test_a_new_process_goes_on(tmp_path):
    """The whole run again, in another process: every optimizer, with a schedule and an average."""
    kinds = [
        {"spec": spec, "schedule": "" if "LBFGS" in spec else "StepLR", "average": AVERAGES[1]}
        for spec in SPECS
    ]
    script = (
        "import json, sys, pathlib, torch\n"
        "from runs import Run, lib\n"
        "kinds, folder = json.load(sys.stdin), pathlib.Path(sys.argv[1])\n"
        "for i, kind in enumerate(kinds):\n"
        "    run = Run(**kind, values=torch.load(folder / f'{i}.values', weights_only=True), attach=False)\n"
        "    run.made = 5\n"
        "    assert lib.opt_load(run.opt, str(folder / f'{i}.pt').encode()) == 0, lib.opt_error()\n"
        "    run.go(5)\n"
        "    print(json.dumps(run.bits()))\n"
    )
    expected = []
    for i, kind in enumerate(kinds):
        run = Run(**kind)
        run.go(5)
        assert lib.opt_save(run.opt, str(tmp_path / f"{i}.pt").encode()) == 0, lib.opt_error()
        torch.save(run.values, tmp_path / f"{i}.values")
        run.go(5)
        expected.append(run.bits())
        run.free()
    done = subprocess.run(
        [*hosts.PYTHON, "-c", script, tmp_path],
        input=json.dumps(kinds), capture_output=True, text=True, check=False, cwd=HERE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected


@pytest.mark.parametrize("spec", ["RMSprop(lr=0.1, momentum=0.5)", "SGD(lr=0.1, momentum=0.5)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_momentum_that_a_schedule_has_taken_to_0_goes_on(spec, dtype, monkeypatch):
    schedule = "CyclicLR(base_lr=0.1, max_lr=0.5, step_size_up=2, base_momentum=0.0, max_momentum=0.5)"
    monkeypatch.setitem(SCHEDULES, "to a momentum of 0", [schedule])
    for before in range(1, 6):
        check_goes_on(spec=spec, dtype=dtype, schedule="to a momentum of 0", before=before)
