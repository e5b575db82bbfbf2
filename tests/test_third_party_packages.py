"""Every optimizer of packages outside PyTorch, beside itself in plain PyTorch.

What is not installed is left out: pip install pytorch-optimizer heavyball schedulefree prodigyopt
lion-pytorch torchao torch-optimi.  With all of them, and OPTPLUG_WRITE_DOCS=1, this writes
docs/third_party.md.
"""

from __future__ import annotations

import importlib
import inspect
import os
import random
import warnings
from importlib import metadata

import numpy as np
import pytest
import torch

import hosts
from optplug import ctypes_api
from optplug.ctypes_api import Optimizer
from planned_twins import direct_plans  # noqa: F401 (pytest finds the fixture here)

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # heavyball would compile each of its classes
DISTRIBUTIONS = {
    "heavyball": "heavyball",
    "lion_pytorch": "lion-pytorch",
    "optimi": "torch-optimi",
    "prodigyopt": "prodigyopt",
    "pytorch_optimizer": "pytorch-optimizer",
    "schedulefree": "schedulefree",
    "torchao.optim": "torchao",
}
PACKAGES = list(DISTRIBUTIONS)
SHAPES = (50,), (6, 5)
STEPS, SAVED = 25, 13
# What steps only with something that no host has.
NOT_HERE = {"AdaHessian": "does not require grad", "SophiaH": "does not require grad"}

lib = ctypes_api.load()
# By module: the class, its bits, its checkpoint, its steps.
seen: dict[str, list[tuple[str, str, str, str]]] = {}

NOTHING = pytest.param(
    "", "", marks=pytest.mark.skip(f"no packages: pip install {' '.join(DISTRIBUTIONS.values())}")
)

pytestmark = [
    pytest.mark.usefixtures("direct_plans"),
    pytest.mark.filterwarnings("ignore"),  # theirs
]


def found() -> list[tuple[str, str]]:
    """Return modules and classes of the packages that are installed."""
    pairs = []
    for module in PACKAGES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                members = vars(importlib.import_module(module))
        except ImportError:
            continue
        pairs += [
            (module, name)
            for name, value in sorted(members.items())
            if isinstance(value, type)
            and issubclass(value, torch.optim.Optimizer)
            and not value.__module__.startswith("torch.")
        ]
    return pairs


def seed(i: int) -> None:
    for draw in (torch.manual_seed, random.seed, np.random.seed):
        draw(i)


def drawn(i: int) -> list[np.ndarray]:
    generator = np.random.default_rng(i)
    return [generator.standard_normal(shape).astype("float32") for shape in SHAPES]


class Plain:
    """A class on two matrices, each in a group of its own, with a schedule and clipping."""

    def __init__(self, class_, options: dict, order: str):
        self.order = order
        self.values = [torch.from_numpy(np.array(v, order=order)) for v in drawn(0)]
        self.parameters = [torch.nn.Parameter(v) for v in self.values]
        first, second = self.parameters
        seed(0)
        self.opt = class_([{"params": [first]}, {"params": [second], "lr": 0.02}], **options)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.opt, 0.99)
        if hasattr(self.opt, "train"):
            self.opt.train()

    def step(self, i: int) -> None:
        for p, g in zip(self.parameters, drawn(10 + i), strict=True):
            p.grad = torch.from_numpy(np.array(g, order=self.order))
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.opt.step()
        self.schedule.step()

    def bits(self) -> list[bytes]:
        return [np.ascontiguousarray(p.detach().numpy()).tobytes() for p in self.parameters]


class Hosted:
    """The same by optplug."""

    def __init__(self, spec: str, order: str, values: list[np.ndarray] | None = None):
        self.values = values or [np.array(v, order=order) for v in drawn(0)]
        self.grads = [np.zeros_like(v) for v in self.values]
        self.opt = Optimizer(spec)
        for i, (value, grad) in enumerate(zip(self.values, self.grads, strict=True)):
            if i == 1:
                self.opt.group("lr=0.02")
            self.opt.bind(f"w{i}", value, grad)
        self.opt.schedule("ExponentialLR(0.99)")

    def step(self, i: int) -> None:
        for grad, new in zip(self.grads, drawn(10 + i), strict=True):
            grad[...] = new
        self.opt.clip_grad_norm(1.0)
        self.opt.step()
        self.opt.schedule_step()

    def bits(self) -> list[bytes]:
        return [np.ascontiguousarray(v).tobytes() for v in self.values]


@pytest.fixture(autouse=True)
def _allowed():
    names = sorted({module.partition(".")[0] for module in PACKAGES})
    assert lib.opt_init(f"third_party={names}".encode()) == 0
    yield
    assert lib.opt_init(b"third_party=False") == 0


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize(("module", "name"), found() or [NOTHING])
def test_a_class_is_itself(module, name, order):
    class_ = getattr(importlib.import_module(module), name)
    needs_lr = inspect.signature(class_).parameters.get("lr")
    options = {"lr": 0.01} if needs_lr and needs_lr.default is inspect.Parameter.empty else {}
    spec = f"{module}:{name}({', '.join(f'{k}={v}' for k, v in options.items())})"
    expected = plain_steps(class_, options, order)
    if isinstance(expected, Exception):
        note(module, name, order, f"fails in plain PyTorch: {type(expected).__name__}", "", "")
        return
    if name in NOT_HERE:
        with pytest.raises(RuntimeError, match=NOT_HERE[name]):
            Hosted(spec, order)
        note(module, name, order, "asks for a graph of autograd", "", "")
        return
    ours, resumed, saved = Hosted(spec, order), None, ""
    for i in range(STEPS):
        if i == SAVED:
            resumed, saved = resume(ours, spec, order)
        ours.step(i)
        assert ours.bits() == expected[i], f"step {i}"
        if resumed:
            resumed.step(i)
            assert resumed.bits() == expected[i], f"step {i}, resumed"
    recorded = "\nstep: recorded " in ours.opt.describe()
    note(module, name, order, "its own", saved, "recorded" if recorded else "by Python")


def plain_steps(class_, options: dict, order: str) -> list[list[bytes]] | Exception:
    """Return the bits after each step in plain PyTorch, or why there are none."""
    try:
        plain = Plain(class_, options, order)
        found = []
        for i in range(STEPS):
            plain.step(i)
            found.append(plain.bits())
    except Exception as error:
        return error
    return found


def resume(ours: Hosted, spec: str, order: str) -> tuple[Hosted | None, str]:
    """Save, and go on in another optimizer; None where the save refuses."""
    try:
        content = ours.opt.save_memory()
    except ctypes_api.Error as error:
        if "opt_save cannot save" not in str(error):
            raise
        return None, "`opt_save` refuses"
    other = Hosted(spec, order, [v.copy(order="K") for v in ours.values])
    other.opt.load_memory(content)
    return other, "its own"


def note(module: str, name: str, order: str, *what: str) -> None:
    if order == "C":
        seen.setdefault(module, []).append((name, *what))


def table() -> str:
    """Render what this run has seen."""
    lines = [
        "# Optimizers outside PyTorch, class by class",
        "",
        "Written by `tests/test_third_party_packages.py` from a run with torch "
        f"{torch.__version__.partition('+')[0]}: {STEPS} steps of each class, with its defaults, beside the "
        "same class in plain PyTorch, on a vector and a matrix in groups of their own, in row-major and "
        "column-major order, with a schedule and clipping; every bit is compared after each step, and those "
        f"of an optimizer that has been loaded from a checkpoint at step {SAVED}.",
        "[Modern optimizers](modern.md) says how to name such a class, and what it needs.",
        "",
    ]
    for module in PACKAGES:
        version = metadata.version(DISTRIBUTIONS[module])
        lines += [
            f"## {module}",
            "",
            f"{DISTRIBUTIONS[module]} {version}",
            "",
            "| class | its bits | after `opt_load` | steps |",
            "|---|---|---|---|",
        ]
        lines += [f"| {' | '.join(row)} |" for row in seen[module]]
        lines.append("")
    rows = [row for module in PACKAGES for row in seen[module]]
    count = sum(row[1] == "its own" for row in rows)
    recorded = sum(row[3] == "recorded" for row in rows)
    lines.append(f"In all {len(rows)} classes: {count} with their own bits, {recorded} without Python.")
    return "\n".join(lines) + "\n"


def test_the_table_in_docs_is_of_such_a_run():
    missing = [module for module in PACKAGES if module not in seen]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} and the whole file to have run")
    path = hosts.PROJECT / "docs" / "third_party.md"
    if os.environ.get("OPTPLUG_WRITE_DOCS"):
        path.write_text(table())
    assert path.read_text() == table()
