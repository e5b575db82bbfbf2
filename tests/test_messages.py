"""What a user reads: text copied from PyTorch's documentation works, or the error says what to write."""

from __future__ import annotations

import ast
import ctypes
import doctest
import inspect

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

from optplug import buffers, ctypes_api

lib = ctypes_api.load()

OPTIMIZERS = {n: c for n, c in vars(torch.optim).items() if inspect.isclass(c) and n != "Optimizer"}
SCHEDULERS = {n: getattr(lr_scheduler, n) for n in lr_scheduler.__all__ if n != "LRScheduler"} | {
    "SWALR": swa_utils.SWALR
}
CLASSES = {**OPTIMIZERS, **SCHEDULERS, "AveragedModel": swa_utils.AveragedModel}


class Bound:
    """An optimizer of two parameters, in two groups."""

    def __init__(self, spec: str = "SGD(lr=0.5, momentum=0.5)") -> None:
        self.arrays = np.ones((4, 3))
        self.opt = lib.opt_create(spec.encode())
        assert self.opt > 0, lib.opt_error()
        for name in ("w", "v"):
            assert lib.opt_group(self.opt, b"") == 0
            data, grad = (self.arrays[i].ctypes.data for i in ("wv".index(name), 2 + "wv".index(name)))
            assert lib.opt_bind(self.opt, name.encode(), b"float64", 3, data, grad) == 0

    def describe(self) -> str:
        return lib.opt_describe(self.opt).decode()

    def close(self) -> None:
        assert lib.opt_free(self.opt) == 0


@pytest.fixture
def bound():
    bound = Bound()
    yield bound
    bound.close()


def made(text: str) -> str:
    """Return what opt_describe says of an optimizer, or "" with the error."""
    opt = lib.opt_create(text.encode())
    if opt < 0:
        return ""
    described = lib.opt_describe(opt).decode()
    assert lib.opt_free(opt) == 0
    return described


# ---- copied text ----

SAME = [
    ("Adam(lr=0.25)", "torch.optim.Adam(lr=0.25)"),
    ("Adam(lr=0.25)", "optim.Adam(params, lr=0.25)"),
    ("Adam(lr=0.25)", "Adam(params=self.net.parameters(), lr=0.25)"),
    ("Adam(lr=0.25)", "self.optimizer = optim.Adam(self.net.parameters(), lr=0.25)"),
    ("SGD(lr=0.25, momentum=0.5)", "optim.SGD(model.parameters(), lr=0.25, momentum=0.5)"),
    ("SGD(lr=0.25, momentum=0.5)", ">>> opt=torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.5)"),
    ("Adam(amsgrad=True, maximize=False)", "Adam(amsgrad=true, maximize=FALSE)"),
]


@pytest.mark.parametrize(("plain", "copied"), SAME)
def test_an_optimizer_is_what_it_is_in_pytorchs_words(plain, copied):
    assert made(copied) == made(plain) != "", lib.opt_error()


@pytest.mark.parametrize(
    ("plain", "copied"),
    [
        ("StepLR(step_size=2)", "torch.optim.lr_scheduler.StepLR(optimizer, step_size=2)"),
        ("StepLR(step_size=2)", "scheduler = lr_scheduler.StepLR(optimizer=opt, step_size=2)"),
        ("StepLR(step_size=2)", "torch.optim.lr_scheduler:StepLR(2)"),
        ("CosineAnnealingLR(T_max=4)", "CosineAnnealingLR(self.optimizer, T_max=4)"),
        ("SWALR(swa_lr=0.25)", "swa_utils.SWALR(optimizer, swa_lr=0.25)"),
        (
            "SequentialLR([ConstantLR(0.5), StepLR(2)], milestones=[2])",
            "SequentialLR(optimizer, [ConstantLR(optimizer, 0.5), lr_scheduler.StepLR(optimizer, 2)], [2])",
        ),
        (
            "ChainedScheduler([ConstantLR(0.5), StepLR(2)])",
            "ChainedScheduler([ConstantLR(optimizer, 0.5), StepLR(optimizer, 2)], optimizer=optimizer)",
        ),
    ],
)
def test_a_scheduler_is_what_it_is_in_pytorchs_words(plain, copied):
    rates = []
    for text in (plain, copied):
        bound, value = Bound(), ctypes.c_double()
        assert lib.opt_schedule(bound.opt, text.encode()) == 0, lib.opt_error()
        rates.append([])
        for _ in range(6):
            assert lib.opt_step(bound.opt) == lib.opt_schedule_step(bound.opt) == 0
            assert lib.opt_get(bound.opt, -1, b"lr", value) == 0
            rates[-1].append(value.value)
        bound.close()
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (0.5, "swa_model = torch.optim.swa_utils.AveragedModel(model)"),
        (0.25, "swa_utils.AveragedModel(net, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.25))"),
    ],
)
def test_an_average_is_what_it_is_in_pytorchs_words(bound, weight, text):
    assert lib.opt_average(bound.opt, text.encode()) == 0, lib.opt_error()
    values = []
    for _ in range(2):
        assert lib.opt_step(bound.opt) == 0
        values.append(bound.arrays[0].copy())
    average = np.empty(3)
    assert lib.opt_average_get(bound.opt, b"w", average.ctypes.data) == 0
    assert (average == weight * values[0] + (1 - weight) * values[1]).all()


@pytest.mark.parametrize(
    ("function", "text", "words"),
    [
        ("create", "Adam", "it must be a call, such as 'Adam()'"),
        ("create", "torch.optim.Adam", "it must be a call, such as 'Adam()'"),
        ("create", "Adam(w, lr=0.1)", "'w' is a name, and its value is unknown here: write the value"),
        ("create", "Adam([w], lr=0.1)", "parameters, optimizer and model are left out"),
        ("create", "Adam(lr=params)", "'params' is a name"),
        ("create", "Adam(amsgrad=.true.)", "write True and False, without dots"),
        ("create", "SGD([{'params': net.parameters()}])", "groups of them by opt_group"),
        ("create", "torch.optim.lr_scheduler.Adam()", "write torch.optim.Adam"),
        ("create", "torch.optim:optim.Adam()", "it has two modules"),
        ("schedule", "StepLR(optimizer, step_size=n)", "'n' is a name"),
        ("schedule", "lr_scheduler.SWALR(optimizer, swa_lr=1)", "write torch.optim.swa_utils.SWALR"),
        ("schedule", "somebodys:StepLR(1)", "write torch.optim.lr_scheduler.StepLR"),
        ("schedule", "SequentialLR([optim.StepLR(1)], [])", "write torch.optim.lr_scheduler.StepLR"),
        ("schedule", "LambdaLR(optimizer, lr_lambda=lambda n: 1)", "which opt_schedule_callback takes"),
        ("schedule", "LambdaLR(optimizer, lr_lambda=[f, g])", "lr_lambda=[f, g] is a function"),
        ("average", "ema", "'AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.999))' for an exponential"),
        ("average", "EMA(0.99)", "no average 'EMA': write 'AveragedModel()' for equal weights"),
        ("average", "AveragedModel(0.99)", "device=0.99: device is the parameters' own: write"),
        ("average", "AveragedModel(model, decay=0.99)", "no argument 'decay': write"),
        ("average", "somebodys:AveragedModel()", "write torch.optim.swa_utils.AveragedModel"),
        ("average", "AveragedModel(avg_fn=optim.get_ema_avg_fn())", "write torch.optim.swa_utils.get_ema"),
        ("average", "AveragedModel(avg_fn=get_ema_avg_fn(model))", "get_ema_avg_fn takes no 'model'"),
        ("bind", "double", "no dtype 'double': write 'float64'"),
        ("bind", "float", "no dtype 'float': write 'float32' or 'float64'"),
        ("bind", "torch.float32", "no dtype 'torch.float32': write 'float32'"),
        ("bind", "int64", "no dtype 'int64': PyTorch steps no integers, only float16"),
    ],
)
def test_what_cannot_be_read_says_what_to_write(bound, function, text, words):
    before = bound.describe()
    new = np.zeros((2, 3))
    arguments = (b"u", text.encode(), 3, new[0].ctypes.data, new[1].ctypes.data)
    status = {
        "create": lambda: lib.opt_create(text.encode()),
        "schedule": lambda: lib.opt_schedule(bound.opt, text.encode()),
        "average": lambda: lib.opt_average(bound.opt, text.encode()),
        "bind": lambda: lib.opt_bind(bound.opt, *arguments),
    }[function]()
    assert (status, words in lib.opt_error().decode()) == (-1, True), lib.opt_error()
    assert bound.describe() == before


def test_what_is_suggested_for_a_dtype_is_one():
    suggested = {
        name for text in buffers._ALSO.values() for name in ast.literal_eval(f"[{text}]".replace(" or ", ","))
    }
    assert suggested <= buffers.DTYPES.keys()


def examples() -> list[str]:
    """Return the calls of the classes in PyTorch's own documentation of them."""
    found = {}
    for class_ in CLASSES.values():
        for example in doctest.DocTestParser().get_examples(inspect.getdoc(class_) or ""):
            try:
                tree = ast.parse(example.source)
            except SyntaxError:
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func).rpartition(".")[2]
                    if name in CLASSES:
                        found[ast.get_source_segment(example.source, node)] = name
    return sorted((name, text) for text, name in found.items())


EXAMPLES = examples()
REMEDIES = (
    "write the value",
    "which opt_schedule_callback takes",
    "it cannot be read",
    "parameters come by opt_bind",
)


@pytest.mark.parametrize(("name", "text"), EXAMPLES)
def test_pytorchs_examples_work_or_say_what_to_write(bound, name, text):
    if name in OPTIMIZERS:
        done = bool(made(text))
    else:
        function = lib.opt_schedule if name in SCHEDULERS else lib.opt_average
        done = function(bound.opt, text.encode()) == 0
    assert done or any(words in lib.opt_error().decode() for words in REMEDIES), lib.opt_error()


def test_pytorch_has_examples():
    assert len(EXAMPLES) > 15
