"""Classes outside torch in lists, descriptions, measurements and messages."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from optplug import ctypes_api, spec
from optplug.ctypes_api import Optimizer
from optplug.ctypes_library import Error

lib = ctypes_api.load()
STATUSES = ctypes_api.statuses()

PACKAGE = """
import torch
import somebodys

class Lino(somebodys.Somebodys):
    \"\"\"Steps by a sign.  It has more to say.

    Args:
        params: what it steps
        lr (float, optional): how far (default: 0.1)
        momentum: how long
    \"\"\"
    def direction(self, p, group):
        return p.grad.sign() * group["lr"]

class Asking(somebodys.Polyak):
    \"\"\"Asks for gradients.\"\"\"

class Around(torch.optim.Optimizer):
    def __init__(self, params, inner_optimizer, rho=1.0, **kwargs):
        inner_optimizer(params, **kwargs)
        super().__init__(params, {"rho": rho})

    def step(self, closure=None):
        raise AssertionError

class Never(somebodys.Somebodys):
    def __init__(self, params, what):
        super().__init__(params)
"""


@pytest.fixture(autouse=True)
def _allowed(tmp_path, monkeypatch):
    """A package of that name, which may be imported."""
    folder = tmp_path / "tools_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (tmp_path / "trap_package").mkdir()
    (tmp_path / "trap_package" / "__init__.py").write_text("class Lino: pass\nraise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert lib.opt_init(b"third_party=['tools_package']") == 0
    yield
    assert lib.opt_init(b"third_party=False") == 0
    sys.modules.pop("tools_package", None)


def test_optimizers_of_packages_that_are_named_are_in_the_list():
    found = ctypes_api.listing("optimizers")
    classes = ["Asking", "Around", "Lino", "Never"]
    assert sorted(name for name in found if ":" in name) == [
        f"tools_package:{name}" for name in sorted(classes)
    ]
    assert {"Adam", "SGD"} <= set(found)
    assert ctypes_api.listing("tools_package:Lino") == ["lr=0.1", "momentum=0.9"]
    assert ctypes_api.listing("tools_package:Around") == ["inner_optimizer", "rho=1.0", "kwargs"]
    ctypes_api.init("third_party=False")
    assert not [name for name in ctypes_api.listing("optimizers") if ":" in name]
    with pytest.raises(Error, match=r"outside torch\.optim and would be imported: allow it with"):
        ctypes_api.listing("tools_package:Lino")


def test_a_package_that_is_not_there_is_left_out_with_a_warning():
    ctypes_api.init("third_party=['no_package', 'tools_package']")
    with pytest.warns(UserWarning, match="no_package cannot be imported: No module named 'no_package'"):
        assert "tools_package:Lino" in ctypes_api.listing("optimizers")


def test_the_command_line_lists_a_package(call):
    status, out, err = call("list", "tools_package", "--json")
    assert (status, err) == (0, "")
    rows = {row["name"].partition(":")[2]: row for row in json.loads(out)["optimizers"]}
    assert rows["Lino"]["summary"] == "Steps by a sign"
    assert (rows["Lino"]["calls"], rows["Lino"]["step"]) == ("opt_step", "without Python")
    assert rows["Asking"]["calls"] == "opt_step_closure, opt_iterate"
    assert rows["Around"]["calls"] == ""
    assert "AssertionError" in rows["Around"]["step"]
    for name, words in {
        "no_package": "no_package cannot be imported: No module named 'no_package'; "
        "besides packages there are devices, dtypes, optimizers, schedulers",
        "json": "json has no optimizers",
        "a-b": "no list 'a-b': there are devices, dtypes, optimizers, schedulers",
    }.items():
        assert call("list", name) == (1, "", f"{words}\n")


def test_a_description_says_what_a_class_takes_and_needs(call):
    facts = json.loads(call("describe", "tools_package:Lino", "--json")[1])
    assert facts["example"] == "tools_package:Lino(lr=0.1)"
    assert facts["needs"] == ""
    assert facts["arguments"] == [
        {"argument": "lr", "default": "0.1", "meaning": "how far"},
        {"argument": "momentum", "default": "0.9", "meaning": "how long"},
    ]
    facts = json.loads(call("describe", "tools_package:Around", "--json")[1])
    assert facts["needs"] == "an optimizer's class, in the spec"
    assert facts["example"] == "tools_package:Around(inner_optimizer=SGD, lr=0.1)"
    facts = json.loads(call("describe", "tools_package:Never", "--json")[1])
    assert facts["example"] == "tools_package:Never(what=...)"
    for name, needs in {
        "wrappers:Slow": "an optimizer, in the spec",
        "wrappers:Modelled": "model, from optplug; no groups",
        "wrappers:Sharp": "an optimizer's class, in the spec; a closure: compute the gradients before",
        "somebodys:ScheduleFree": 'opt_call(opt, "eval") before using the weights',
    }.items():
        facts = json.loads(call("describe", name, "--json")[1])
        assert facts["needs"].startswith(needs)
        Optimizer(facts["example"]).free()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "tools_package:Lion",
            "no optimizer in tools_package 'Lion': did you mean Lino? there are Around, As",
        ),
        ("no_package:Lion", "No module named 'no_package', in the environment "),
        ("json:dumps", "json:dumps is not a torch.optim.Optimizer"),
        ("tools_package:", "it cannot be read"),
        ("tools_package:Lino(lr=1)", "is neither a literal"),
        (":Lino", "it cannot be read"),
    ],
)
def test_what_cannot_be_described_is_an_error_of_one_line(call, name, words):
    status, out, err = call("describe", name)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert words in err


def test_bench_measures_a_class_outside_torch(call):
    status, out, err = call("bench", "torch.optim.sgd:SGD(lr=0.1)", "--sizes", "10", "--json")
    assert (status, err) == (0, "")
    (row,) = json.loads(out)["microseconds of a step"]
    assert row["spec"] == "torch.optim.sgd:SGD(lr=0.1)"
    assert row["optplug"] > 0
    assert row["torch"] > 0
    assert row["torch, fused"] is None
    status, out, err = call("bench", "no_package:Lion()")
    assert (status, out) == (1, "")
    assert "no_package:Lion cannot be imported: No module named 'no_package'" in err


def test_a_name_that_torch_lacks_is_found_in_packages_which_are_not_imported(tmp_path, monkeypatch):
    ctypes_api.init("third_party=['trap_package', 'tools_package']")
    for name in ("Lino", "lino", "Linno"):
        with pytest.raises(Error, match=f"no optimizer '{name}': did you mean .*trap_package:Lino"):
            Optimizer(f"{name}()")
    with pytest.raises(
        Error, match=r"no optimizer 'AdEMAMix': did you mean pytorch_optimizer:AdEMAMix\? there"
    ):
        Optimizer("AdEMAMix(lr=0.1)")
    (tmp_path / "heavyball.py").write_text("from .more import *\n")  # some name no class there
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Error, match=r"no optimizer 'PSGDKron': did you mean heavyball:PSGDKron\?"):
        Optimizer("PSGDKron(lr=0.1)")
    with pytest.raises(Error, match=r"no optimizer 'Foo': there are ASGD"):
        Optimizer("Foo()")
    with pytest.raises(Error, match=r"no optimizer 'adam': did you mean Adam"):
        Optimizer("adam()")
    assert "trap_package" not in sys.modules


@pytest.mark.parametrize("third_party", ["False", "True", "['os']"])
def test_schedulers_and_averages_are_of_no_other_module(third_party):
    ctypes_api.init(f"third_party={third_party}")
    opt = Optimizer("SGD()")
    opt.bind("w", np.ones(2), np.ones(2))
    for text in ("os:StepLR(3)", "SequentialLR([os:StepLR(3), StepLR(2)], milestones=[1])"):
        with pytest.raises(Error, match=r"module .os. is not the one of StepLR: write torch\.optim\.lr_s"):
            opt.schedule(text)
    with pytest.raises(Error, match="module 'os' is not the one of AveragedModel"):
        opt.average("os:AveragedModel()")
    with pytest.raises(Error, match="module 'os' is not the one of get_ema_multi_avg_fn"):
        opt.average("AveragedModel(multi_avg_fn=os:get_ema_multi_avg_fn(0.9))")
    with pytest.raises(
        Error, match=r"module 'os': schedulers are PyTorch's own only: set a rate .* opt_set_value"
    ):
        opt.schedule("os:WarmupLR(3)")
    with pytest.raises(Error, match="module 'os': averages are PyTorch's own only: write 'AveragedModel"):
        opt.average("os:ModelEma()")
    with pytest.raises(Error, match="multi_avg_fn must be one of"):
        opt.average("AveragedModel(multi_avg_fn=os:get_ema_multi_avg_fn)")
    opt.schedule("torch.optim.lr_scheduler:StepLR(3)")
    opt.average("torch.optim.swa_utils:AveragedModel()")


def test_the_modules_of_a_spec_are_those_in_its_arguments_too():
    call = spec.parse("a.b:A(B, c:C, x=[d:D, {'k': e:E(optim.SGD(f:F))}], y=torch.float32)")
    assert spec.modules(call) == {"a.b", "c", "d", "e", "f"}
