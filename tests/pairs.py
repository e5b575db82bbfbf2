"""An optimizer in a host and its like in plain PyTorch, compared bit for bit after every step."""

from __future__ import annotations

import ctypes
import itertools
import re

import pytest
import torch
from torch.optim import lr_scheduler

from optplug import ctypes_api
from planned_twins import FUSED_SGD_DTYPES
from words import INSIDES

lib = ctypes_api.load()

# What torch says the first time that any of its optimizers makes a sparse tensor of another.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")

STEPS = 13  # all phases of the schedulers below, and of RAdam and ASGD

OPTIMIZERS = [
    "Adadelta()",
    "Adadelta(lr=0.5, rho=0.8, weight_decay=0.01, maximize=True)",
    "Adafactor()",
    "Adafactor(lr=0.05, beta2_decay=-0.5, weight_decay=0.1, maximize=True)",
    "Adagrad()",
    "Adagrad(lr=0.1, lr_decay=0.01, weight_decay=0.01, initial_accumulator_value=0.1, maximize=True)",
    "Adam()",
    "Adam(lr=0.1, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.01, amsgrad=True, maximize=True)",
    "Adam(lr=0.1, foreach=True)",
    "Adam(lr=0.1, fused=False)",
    "AdamW()",
    "AdamW(lr=0.1, weight_decay=0.1, amsgrad=True)",
    "Adamax()",
    "Adamax(lr=0.1, weight_decay=0.01, maximize=True)",
    "ASGD()",
    "ASGD(lr=0.1, t0=5, weight_decay=0.01, maximize=True)",
    "LBFGS(lr=0.1, max_iter=3)",
    "LBFGS(max_iter=4, history_size=3, line_search_fn='strong_wolfe')",
    "Muon()",
    "Muon(lr=0.1, momentum=0.9, nesterov=False, ns_steps=3, adjust_lr_fn='match_rms_adamw')",
    "NAdam()",
    "NAdam(lr=0.1, weight_decay=0.01, decoupled_weight_decay=True, maximize=True)",
    "RAdam()",
    "RAdam(lr=0.1, weight_decay=0.01, decoupled_weight_decay=True, maximize=True)",
    "RMSprop()",
    "RMSprop(lr=0.1, momentum=0.9, centered=True, weight_decay=0.01, maximize=True)",
    "Rprop()",
    "Rprop(lr=0.1, etas=(0.4, 1.3), step_sizes=(1e-5, 10), maximize=True)",
    "SGD()",
    "SGD(lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01)",
    "SGD(lr=0.1, momentum=0.9, nesterov=True, maximize=True)",
    "SparseAdam()",
    "SparseAdam(lr=0.1, betas=(0.8, 0.99), maximize=True)",
]

# What stands for the optimizer, and for a function of the host's, is put in by those who build them.
SCHEDULERS = [
    "",
    "LambdaLR()",
    "MultiplicativeLR()",
    "StepLR(step_size=3, gamma=0.5)",
    "MultiStepLR([2, 9], gamma=0.3)",
    "ConstantLR(factor=0.3, total_iters=4)",
    "LinearLR(start_factor=0.1, total_iters=8)",
    "ExponentialLR(0.9)",
    "SequentialLR([LinearLR(total_iters=5), CosineAnnealingLR(T_max=10)], milestones=[5])",
    "CosineAnnealingLR(T_max=7, eta_min=1e-4)",
    "ChainedScheduler([PolynomialLR(total_iters=9), StepLR(4)])",
    "ReduceLROnPlateau(patience=1, factor=0.5)",
    "CyclicLR(base_lr=0.01, max_lr=0.1, step_size_up=4, cycle_momentum=False)",
    "CyclicLR(base_lr=0.01, max_lr=0.1, step_size_up=4)",
    "CosineAnnealingWarmRestarts(T_0=3, T_mult=2)",
    "OneCycleLR(max_lr=0.1, total_steps=30, cycle_momentum=False)",
    "OneCycleLR(max_lr=0.1, total_steps=30)",
    "PolynomialLR(total_iters=12, power=0.9)",
    "SWALR(swa_lr=0.05, anneal_epochs=5)",
]

TAKE_A_FUNCTION = ("LambdaLR", "MultiplicativeLR")

DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]

# name: (shape, strides of the data, strides of the gradient)
LAYOUTS = {
    "rows": ((7, 5), (5, 1), (5, 1)),
    "columns": ((7, 5), (1, 7), (1, 7)),
    "rows and columns": ((7, 5), (5, 1), (1, 7)),
    "gaps": ((7, 5), (20, 2), (20, 2)),
    "gaps in the gradient": ((7, 5), (5, 1), (10, 2)),
    "transposed": ((3, 2, 4), (1, 12, 3), (1, 12, 3)),
    "sliced": ((3, 2, 4), (1, 36, 9), (8, 4, 1)),
    "scalar": ((), (), ()),
    "empty": ((0, 5), (5, 1), (5, 1)),
    "sparse rows": ((7, 5), (5, 1), (5, 1)),  # a gradient by opt_bind_sparse
}

DENSE = [layout for layout in LAYOUTS if layout != "sparse rows"]

PARAMETERS = {"one": [1], "three": [3], "two groups": [1, 2]}

# Where optplug takes the fused kernels by itself, the reference is told to.
FUSED = {"Adam", "AdamW", "SGD", "Adagrad"}

SAFE_FOR_FUSED = {"rows", "columns", "transposed", "scalar", "empty"}

GUARD = 16  # elements before and after each array that nobody may touch


def name_of(text: str) -> str:
    return text.partition("(")[0]


def classes(module, base) -> set[str]:
    return {n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, base)} - {
        base.__name__
    }


class Array:
    """An array in memory of its own: with gaps by its strides, and guards around."""

    def __init__(self, dtype: str, shape, strides):
        size = 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        self.memory = torch.full((size + 2 * GUARD,), 9, dtype=getattr(torch, dtype))
        self.tensor = torch.as_strided(self.memory, shape, strides, GUARD)
        self.pointer = self.memory.data_ptr() + GUARD * self.memory.itemsize
        self.shape = (ctypes.c_int64 * len(shape))(*shape)
        self.strides = (ctypes.c_int64 * len(strides))(*strides)

    def bits(self) -> bytes:
        return self.memory.view(torch.uint8).numpy().tobytes()


def factor(epoch: float) -> float:
    return 1 / (1 + epoch)


@ctypes_api.CALLBACK
def c_factor(_, value) -> int:
    value[0] = factor(value[0])
    return 0


def python_scheduler(text: str, optimizer):
    """Evaluate a scheduler's spec as Python: the reference's own way to read it."""

    def build(name):
        def call(*args, **kwargs):
            if name in TAKE_A_FUNCTION:
                args = (factor,)
            if name == "ChainedScheduler":
                return lr_scheduler.ChainedScheduler(*args, **kwargs)
            found = getattr(lr_scheduler, name, None) or torch.optim.swa_utils.SWALR
            return found(optimizer, *args, **kwargs)

        return call

    names = {name_of(other): build(name_of(other)) for other in SCHEDULERS if other}
    return eval(text, names)  # noqa: S307 - this file's own text


class Refused(Exception):  # noqa: N818 - it is no error that torch and optplug refuse the same thing
    """Torch raises an error here, and optplug the same."""


def both(theirs, ours) -> None:
    """Do something by torch and by optplug: both must succeed, or both fail with torch's words.

    Where those are no words about an argument, optplug names what they are about.
    """
    try:
        theirs()
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        words = re.sub(r"\[\[.*\]\]", "[[0, 0]]", words)  # optplug meets parameters one by one
        assert ours() < 0, f"torch refuses: {words}"
        said = " ".join(lib.opt_error().decode().split())
        # Of two things that are wrong, optplug may meet the other first: LBFGS's layouts at opt_bind.
        if INSIDES.search(words) or "gradients in C order without gaps" in said:
            divided = "ZeroDivisionError: float division by zero"  # by a line search, in a step
            assert re.match("(spec|options|parameter) ['\"]", said) or said == divided, said
        else:
            assert words in said
        raise Refused from None
    assert ours() >= 0, lib.opt_error()


class Pair:
    """The same optimizer twice, by optplug and by torch, over arrays that begin alike."""

    def __init__(self, text, dtype, layout, groups, scheduler):
        self.text, self.dtype, self.layout, self.groups = text, dtype, layout, groups
        self.name, self.scheduler = name_of(text), scheduler
        self.generator = torch.Generator().manual_seed(len(text) * 31 + len(scheduler))
        self.opt = lib.opt_create(text.encode())
        assert self.opt > 0, lib.opt_error()
        shape, strides, grad_strides = LAYOUTS[layout]
        self.ours, self.theirs = (
            [(Array(dtype, shape, strides), Array(dtype, shape, grad_strides)) for _ in range(sum(groups))]
            for _ in "ab"
        )
        for (a, _), (b, _) in zip(self.ours, self.theirs, strict=True):
            a.tensor.copy_(self.random())
            b.tensor.copy_(a.tensor)
        self.iterate = False  # LBFGS: by opt_step_closure and by opt_iterate in turn
        self.rows, self.row_count = (ctypes.c_int64 * 3)(), ctypes.c_int64(0)
        self.agreed: dict[tuple[int, str], str] = {}  # hyperparameters that were the same, as they were

    def random(self):
        return torch.randn(LAYOUTS[self.layout][0], generator=self.generator)

    def build_theirs(self):
        arguments = eval(f"dict{self.text[len(self.name) :]}", {})  # noqa: S307 - this file's own text
        chosen = {"fused", "foreach", "capturable", "differentiable"} & arguments.keys()
        fits = self.layout in SAFE_FOR_FUSED and not self.dtype.startswith("complex")
        fits &= self.name != "SGD" or self.dtype in FUSED_SGD_DTYPES
        if self.name in FUSED and fits and not chosen:
            arguments["fused"] = True
        self.parameters = [torch.nn.Parameter(b.tensor) for b, _ in self.theirs]
        for p, (_, grad) in zip(self.parameters, self.theirs, strict=True):
            p.grad = grad.tensor
        left = iter(self.parameters)
        lists = [
            {"params": list(itertools.islice(left, n)), **({"lr": 0.25} if i else {})}
            for i, n in enumerate(self.groups)
        ]
        self.reference = getattr(torch.optim, self.name)(lists, **arguments)

    def build_ours(self) -> int:
        status = 0
        for i, (data, grad) in enumerate(self.ours):
            if i == self.groups[0]:
                status = status or lib.opt_group(self.opt, b"lr=0.25")
            where = (self.opt, f"p{i}".encode(), self.dtype.encode())
            if self.layout == "sparse rows":
                sparse = (3, self.row_count, self.rows, grad.pointer)
                status = status or lib.opt_bind_sparse(*where, *data.shape, data.pointer, *sparse)
            else:
                arrays = (data.pointer, data.strides, grad.pointer, grad.strides)
                status = status or lib.opt_bind_nd(*where, b"cpu", len(data.shape), data.shape, *arrays)
        return status

    def schedule_theirs(self):
        self.schedule = python_scheduler(self.scheduler, self.reference)

    def schedule_ours(self) -> int:
        spec = self.scheduler.encode()
        if name_of(self.scheduler) in TAKE_A_FUNCTION:
            return lib.opt_schedule_callback(self.opt, spec, c_factor, None)
        return lib.opt_schedule(self.opt, spec)

    def build(self):
        """Build both; what torch refuses in its steps, optplug may refuse here, in the same words."""
        status: list[int] = []

        def ours() -> int:
            if not status:
                status.append(self.build_ours())
            return status[0]

        def theirs() -> None:
            self.build_theirs()
            for _ in range(STEPS if ours() < 0 else 0):
                self.draw()
                self.reference.step(*[lambda: 0.0] * (self.name == "LBFGS"))

        both(theirs, ours)
        if self.scheduler:
            both(self.schedule_theirs, self.schedule_ours)

    def loss(self, arrays) -> float:
        """Compute a sum of quadratics and its gradients, by the same operations for both."""
        total = 0.0
        for i, (data, grad) in enumerate(arrays):
            grad.tensor.copy_((data.tensor - 0.5) * (i + 1))
            total += float((data.tensor - 0.5).abs().square().sum()) * (i + 1) / 2
        return total

    def draw(self):
        """Put new random gradients into both."""
        for (_, a), (_, b) in zip(self.ours, self.theirs, strict=True):
            a.tensor.copy_(self.random())
            b.tensor.copy_(a.tensor)
        if self.layout == "sparse rows":
            count = self.row_count.value = int(torch.randint(0, 4, (), generator=self.generator))
            rows = torch.randint(0, 7, (3,), generator=self.generator)
            self.rows[:] = rows.tolist()
            for p, (_, b) in zip(self.parameters, self.theirs, strict=True):
                p.grad = torch.sparse_coo_tensor(
                    rows[:count].unsqueeze(0), b.tensor[:count], p.shape, check_invariants=False
                )

    def step_closure(self) -> int:
        @ctypes_api.CALLBACK
        def closure(_, value):
            value[0] = self.loss(self.ours)
            return 0

        loss = ctypes.c_double()
        status = lib.opt_step_closure(self.opt, closure, None, loss)
        self.first_loss = loss.value
        return status

    def step_iterate(self) -> int:
        losses = [0.0]
        while (status := lib.opt_iterate(self.opt, losses[-1])) == 1:
            losses.append(self.loss(self.ours))
        self.first_loss = losses[1] if len(losses) > 1 else 0.0
        return status

    def step(self):
        if self.name == "LBFGS":
            expected: list[float] = []
            both(
                lambda: expected.append(float(self.reference.step(lambda: self.loss(self.theirs)))),
                self.step_closure if self.iterate else self.step_iterate,
            )
            assert repr(self.first_loss) == repr(expected[0])  # which a nan passes too
            self.iterate = not self.iterate
            return
        self.draw()
        both(self.reference.step, lambda: lib.opt_step(self.opt))

    def step_schedule(self, metric: float):
        if self.scheduler.startswith("ReduceLROnPlateau"):
            both(lambda: self.schedule.step(metric), lambda: lib.opt_schedule_step_metric(self.opt, metric))
        elif self.scheduler:
            both(self.schedule.step, lambda: lib.opt_schedule_step(self.opt))

    def compare(self, is_last: bool = True):
        for ours, theirs in zip(self.ours, self.theirs, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert a.bits() == b.bits()
        for i, group in enumerate(self.reference.param_groups):
            for key in group.keys() - {"params"}:
                value = group[key]
                if is_last or self.agreed.get((i, key)) != repr(value):  # a schedule has moved it
                    self.compare_hyperparameter(i, key, value)
                    self.agreed[i, key] = repr(value)

    def compare_hyperparameter(self, group: int, key: str, value):
        values = {f"{key}[{k}]": v for k, v in enumerate(value)} if isinstance(value, tuple) else {key: value}
        for name, number in values.items():
            if isinstance(number, int | float):
                found = ctypes.c_double()
                assert lib.opt_get(self.opt, group, name.encode(), found) == 0
                assert found.value == float(number)


def compare(text, dtype, layout, groups, scheduler) -> bool:
    """Run a case; True if it ran, every step the same, False if both refuse it alike."""
    pair = Pair(text, dtype, layout, groups, scheduler)
    try:
        pair.build()
        for i in range(STEPS):
            pair.step()
            pair.step_schedule(1.0 if i < 10 else 0.5)
            pair.compare(i == STEPS - 1)
    except Refused:
        return False
    finally:
        assert lib.opt_free(pair.opt) == 0
    return True
