"""What a user reads.

Text copied from PyTorch's documentation works, or the error says what to write; an error names the argument
and its value, and says nothing that only Python's developers understand.
"""

from __future__ import annotations

import ast
import ctypes
import doctest
import inspect

import numpy as np
import pytest

from optplug import buffers, ctypes_api
from words import CLASSES, INSIDES, OPTIMIZERS, SCHEDULERS, Bound, lib, made


@pytest.fixture
def bound():
    bound = Bound()
    yield bound
    bound.close()


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
        ("create", "Adam(w, lr=0.1)", "'w' is a name whose value is unknown here: write the value"),
        ("create", "LBFGS(line_search_fn=strong_wolfe)", "write the value, with quotes if it is text"),
        ("create", "Adam([w], lr=0.1)", "leave out params, optimizer and model"),
        ("create", "Adam(lr=params)", "'params' is a name"),
        ("create", "Adam(amsgrad=.true.)", "write True and False, without dots"),
        ("create", "SGD([{'params': net.parameters()}])", "and groups with opt_group"),
        ("create", "torch.optim.lr_scheduler.Adam()", "write torch.optim.Adam"),
        ("create", "torch.optim:optim.Adam()", "it names two modules"),
        ("schedule", "StepLR(optimizer, step_size=n)", "'n' is a name"),
        ("schedule", "lr_scheduler.SWALR(optimizer, swa_lr=1)", "write torch.optim.swa_utils.SWALR"),
        ("schedule", "somebodys:StepLR(1)", "write torch.optim.lr_scheduler.StepLR"),
        ("schedule", "SequentialLR([optim.StepLR(1)], [])", "write torch.optim.lr_scheduler.StepLR"),
        ("schedule", "LambdaLR(optimizer, lr_lambda=lambda n: 1)", "pass yours to opt_schedule_callback"),
        ("schedule", "LambdaLR(optimizer, lr_lambda=[f, g])", "lr_lambda=[f, g] is a function"),
        ("average", "ema", "'AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.999))' for an exponential"),
        ("average", "EMA(0.99)", "no average 'EMA': write 'AveragedModel()' for equal weights"),
        ("average", "AveragedModel(0.99)", "device=0.99: the average is on the parameters' device: write"),
        ("average", "AveragedModel(model, decay=0.99)", "no argument 'decay': write"),
        ("average", "somebodys:AveragedModel()", "write torch.optim.swa_utils.AveragedModel"),
        ("average", "AveragedModel(avg_fn=optim.get_ema_avg_fn())", "write torch.optim.swa_utils.get_ema"),
        ("average", "AveragedModel(avg_fn=get_ema_avg_fn(model))", "get_ema_avg_fn takes no 'model'"),
        ("bind", "double", "no dtype 'double': write 'float64'"),
        ("bind", "float", "no dtype 'float': write 'float32' or 'float64'"),
        ("bind", "torch.float32", "no dtype 'torch.float32': write 'float32'"),
        ("bind", "int64", "no dtype 'int64': PyTorch does not step integers, only float16"),
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
    "pass yours to opt_schedule_callback",
    "it cannot be read",
    "pass parameters with opt_bind",
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


@pytest.mark.parametrize(
    ("function", "text", "message"),
    [
        ("create", "Adam(betas=(0.9))", "betas must be 2 numbers, as in (0.9, 0.999), got 0.9"),
        ("create", "SGD(nesterov=1, momentum=0.5)", "nesterov must be True or False, got 1"),
        ("create", "SGD(foreach=1)", "foreach must be True, False or None, got 1"),
        ("create", "Adam(1, (0, 0), 1, 0, True, 'no')", "Adam: 'no' needs a name: only lr, betas, eps, "),
        ("create", "Adam(lr=1e999)", "lr must be finite, got inf"),
        (
            "create",
            "SGD(lr=1, momentum=0.5, nesterov=True, dampening=0.5)",
            "dampening=0.5, nesterov=True: Nesterov momentum requires a momentum and zero dampening",
        ),
        (
            "create",
            "SGD(lr=-1, momentum=-2)",
            "lr=-1: Invalid learning rate: -1; lr must be at least 0; momentum must be at least 0",
        ),
        (
            "create",
            "SGD(momentum=-2, lr=-1)",
            "lr=-1: Invalid learning rate: -1; lr must be at least 0; momentum must be at least 0",
        ),
        ("create", "Adam(betas=(0.5, 1.0))", "at index 1: 1.0; betas[1] must be at least 0 and below 1"),
        ("create", f"RAdam(lr={10**30})", f"lr={10**30}: PyTorch rejects it (OverflowError)"),
        ("create", f"Adam(lr={10**400})", "lr must be a number, got a number of"),
        ("set", "momentum=0, nesterov=True", "momentum=0, nesterov=True: Nesterov momentum requires"),
        ("schedule", "MultiStepLR(milestones=5)", "milestones must be a list of whole numbers, got 5"),
        ("schedule", "StepLR(step_size=None)", "step_size must be a whole number from 0, got None"),
        ("schedule", "StepLR(step_size=0)", "step_size=0: PyTorch divides by zero with it"),
        ("schedule", "ReduceLROnPlateau(factor=2)", "factor=2: Factor should be < 1.0."),
        ("schedule", "ReduceLROnPlateau('least')", "mode must be 'min' or 'max', got 'least'"),
        ("schedule", "ExponentialLR(-1)", "gamma=-1: lr becomes -0.5"),
        ("schedule", "LambdaLR(0.5)", "leave lr_lambda out here"),
        ("schedule", "StepLR(3, last_epoch=2)", "last_epoch must be left out, got 2: opt_load resumes"),
        (
            "schedule",
            "SequentialLR([ConstantLR(), StepLR(0)], [1])",
            "StepLR: step_size=0: PyTorch divides by zero with it",
        ),
        ("schedule", "SequentialLR([ConstantLR(), StepLR()], [1])", "StepLR: missing a required argument"),
        ("schedule", "OneCycleLR(0.5)", "You must define either total_steps OR (epochs AND"),
        ("average", "AveragedModel(use_buffers=1)", "use_buffers must be True or False, got 1"),
        (
            "average",
            "AveragedModel(avg_fn=get_ema_avg_fn(2))",
            "get_ema_avg_fn: decay=2: Invalid decay value 2 provided.",
        ),
        ("average", "AveragedModel(avg_fn=get_ema_avg_fn('x'))", "decay must be a number, got 'x'"),
        (
            "average",
            "AveragedModel(avg_fn=get_ema_multi_avg_fn())",
            "avg_fn=get_ema_multi_avg_fn(): PyTorch rejects it (",
        ),
    ],
)
def test_an_error_says_what_is_wrong(bound, function, text, message):
    before = bound.describe()
    status = {
        "create": lambda: lib.opt_create(text.encode()),
        "schedule": lambda: lib.opt_schedule(bound.opt, text.encode()),
        "average": lambda: lib.opt_average(bound.opt, text.encode()),
        "set": lambda: lib.opt_set(bound.opt, -1, text.encode()),
    }[function]()
    assert (status, lib.opt_error().decode().partition(message)[1]) == (-1, message), lib.opt_error()
    assert bound.describe() == before


@pytest.mark.parametrize("order", ["F", "gaps"])
def test_lbfgs_names_a_parameter_that_it_cannot_take_when_it_is_bound(order):
    opt = ctypes_api.Optimizer("LBFGS()")
    whole = np.zeros((4, 6), order="F" if order == "F" else "C")
    grad = whole if order == "F" else whole[:, :3]
    with pytest.raises(ctypes_api.Error, match=r"'w': LBFGS takes gradients in C order .*as one flat array"):
        opt.bind("w", np.zeros(grad.shape), grad)
    opt.bind("w", np.zeros((4, 6), order="F"), np.zeros((4, 6)))
    opt.bind("flat", np.zeros(24), whole.reshape(-1, order="A"))
    assert opt.step_closure(lambda: 0.0) == 0.0
    with pytest.raises(
        ctypes_api.Error, match=r"as one flat array \(Fortran: flat=.true., MATLAB .* 'flat'\)\)$"
    ):
        opt.bind("w", np.zeros((4, 6)), np.zeros((4, 6), order="F"))


@pytest.mark.parametrize("spec", ["Adafactor()", "Adafactor(foreach=True)"])
def test_adafactor_refuses_an_empty_parameter_before_it_could_step_the_others(spec):
    opt, w = ctypes_api.Optimizer(spec), np.ones((3, 2))
    opt.bind("w", w, np.ones((3, 2)))
    for shape in ((0,), (0, 2), (2, 0)):
        with pytest.raises(
            ctypes_api.Error, match=r"^parameter 'e', which is empty: PyTorch divides by zero with it"
        ):
            opt.bind("e", np.ones(shape), np.ones(shape))
    assert opt.step_closure(lambda: 2.0) == 2.0
    assert (w < 1).all()


def test_lbfgs_takes_an_empty_parameter_beside_others():
    opt, w = ctypes_api.Optimizer("LBFGS()"), np.full(3, 2.0)
    opt.bind("e", np.ones(0), np.ones(0))
    opt.bind("w", w, np.ones(3))
    assert opt.step_closure(lambda: 2.0) == 2.0
    assert (w < 2).all()


def test_a_value_that_no_scheduler_can_take_is_named(bound):
    assert lib.opt_schedule(bound.opt, b"CosineAnnealingWarmRestarts(T_0=3, T_mult=2)") == 0
    for value in (-1.0, float("inf"), float("nan")):
        if lib.opt_schedule_step_metric(bound.opt, value) < 0:
            assert f"value {value}: " in lib.opt_error().decode()
            assert not INSIDES.search(lib.opt_error().decode())
    assert lib.opt_schedule_step_metric(bound.opt, -1.0) == -1
