"""A wrong argument is named with its value, whatever it is."""

from __future__ import annotations

import ctypes
import inspect
import re
import resource

import numpy as np
import pytest

from optplug import arguments, spec
from optplug.ctypes_api import Error, Optimizer
from words import CLASSES, INSIDES, OPTIMIZERS, SCHEDULERS, Bound, lib

# What a scheduler must have, for one wrong argument to be the only one.
NEEDED = {
    "StepLR": {"step_size": "3"},
    "MultiStepLR": {"milestones": "[3]"},
    "ExponentialLR": {"gamma": "0.5"},
    "CosineAnnealingLR": {"T_max": "5"},
    "CyclicLR": {"base_lr": "0.25", "max_lr": "0.5"},
    "OneCycleLR": {"max_lr": "0.5", "total_steps": "9"},
    "CosineAnnealingWarmRestarts": {"T_0": "3"},
    "SequentialLR": {"schedulers": "[ConstantLR(), StepLR(2)]", "milestones": "[2]"},
    "ChainedScheduler": {"schedulers": "[ConstantLR()]"},
    "SWALR": {"swa_lr": "0.25"},
}

VALUES = [
    *("None", "True", "0", "-1", "2.5", "-0.5", "1e999", "-1e999", "1j", str(10**30), str(10**400)),
    *(
        "'abc'",
        "''",
        "b'x'",
        "...",
        "()",
        "(0.9)",
        "(0.9,)",
        "(0.9, 0.99, 0.999)",
        "('a', 'b')",
        "(None, 0.9)",
    ),
    *(
        "[]",
        "[0.1]",
        "[1, 2, 3]",
        "[[1]]",
        "{}",
        "{'a': 1}",
        "StepLR(3)",
        "[StepLR(3)]",
        "[StepLR(0)]",
        "f(1)",
    ),
]

TOO_LONG = {"max_iter", "max_eval"}  # PyTorch makes that many steps


def value_of(text: str) -> object:
    return spec.parse(f"_({text})").args[0]


def check_names(name: str, text: str) -> None:
    """Check that this thread's error is about the argument of that name and value."""
    said = lib.opt_error().decode()
    message = re.split(r"^(?:spec|options) (?:'[^']*'|\"[^\"]*\"|'.*?(?<=\.\.\.[)=,])'): ", said)[-1]
    assert not INSIDES.search(message), said
    shown = spec.shown(value_of(text))
    if message.startswith("StepLR: step_size=0: ") and shown == "[StepLR(0)]":
        return  # of the schedulers in a list, the one that is wrong
    assert re.search(rf"\b{name}\b", message), said
    assert shown in message, said


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_wrong_argument_of_an_optimizer_is_named_with_its_value(name):
    refused = 0
    for argument in list(inspect.signature(OPTIMIZERS[name]).parameters)[1:]:
        for text in VALUES:
            if argument in TOO_LONG and text in ("1e999", str(10**30), str(10**400)):
                continue
            opt = lib.opt_create(f"{name}({argument}={text})".encode())
            if opt > 0:
                assert lib.opt_free(opt) == 0
                continue
            check_names(argument, text)
            refused += 1
    assert refused > len(VALUES)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_wrong_argument_of_a_scheduler_is_named_with_its_value(name):
    refused, metric = 0, ctypes.c_double(0.5)
    bound = Bound()  # until something is taken, as it is before anything is
    before = bound.describe()
    for argument in inspect.signature(SCHEDULERS[name]).parameters:
        if argument == "optimizer" or (argument == "last_epoch" and name in ("LambdaLR", "MultiplicativeLR")):
            continue
        for text in VALUES:
            given = {**NEEDED.get(name, {}), argument: text}
            call = f"{name}({', '.join(f'{key}={value}' for key, value in given.items())})"
            if lib.opt_schedule(bound.opt, call.encode()) == 0:
                for _ in range(4):
                    assert lib.opt_step(bound.opt) == 0
                    if name == "ReduceLROnPlateau":
                        assert lib.opt_schedule_step_metric(bound.opt, metric) == 0, lib.opt_error()
                    else:
                        assert lib.opt_schedule_step(bound.opt) == 0, (call, lib.opt_error())
                bound.close()
                bound = Bound()
                assert bound.describe() == before
            else:
                refused += 1
                assert bound.describe() == before
                if argument != "lr_lambda" or text != "None":
                    check_names(argument, text)
    bound.close()
    assert refused > len(VALUES) / 2


@pytest.mark.parametrize("name", ["lr", "weight_decay", "betas", "eps", "amsgrad"])
def test_a_wrong_option_is_named_with_its_value(name):
    bound = Bound("Adam()")
    before = bound.describe()
    for text in VALUES:
        if lib.opt_set(bound.opt, -1, f"{name}={text}".encode()) < 0:
            check_names(name, text)
            assert bound.describe() == before
        else:
            bound.close()
            bound = Bound("Adam()")
    bound.close()


def test_every_argument_has_a_kind_or_is_ours():
    for class_ in CLASSES.values():
        for name in inspect.signature(class_).parameters:
            if name not in ("params", "optimizer", "model"):
                assert arguments._kind(arguments._hint(class_, name)), (class_, name)


def test_pytorchs_own_calls_are_of_the_kinds_that_its_signatures_say():
    """The defaults are, at least; what its documentation has is tried by the examples."""
    for class_ in CLASSES.values():
        defaults = {
            p.name: p.default
            for p in inspect.signature(class_).parameters.values()
            if p.default is not p.empty and p.name != "optimizer"
        }
        arguments.check_kinds(class_, defaults)


def test_a_parameter_of_many_dimensions_that_is_rejected_takes_no_memory():
    opt, n, values = Optimizer("Muon()"), 27, np.zeros((1,) * 27)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Error, match="bind it as a matrix"):
        opt.bind("w", values, np.zeros_like(values))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**n * 8 / 1024 / 4
