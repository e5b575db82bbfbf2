"""Every optimizer of packages outside PyTorch, beside itself in plain PyTorch.

They are those of third_party.txt, which says how to install them; what is not installed is left out.  With
all of them, and OPTPLUG_WRITE_DOCS=1, this writes docs/third_party.md.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import os
import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import pytest
import torch

import hosts
from optplug import ctypes_api, outside
from optplug.ctypes_api import Optimizer
from planned_twins import direct_plans  # noqa: F401 (pytest finds the fixture here)

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # heavyball would compile each of its classes
REQUIREMENTS = hosts.PROJECT / "tests" / "third_party.txt"
#: By module: the name that its package is installed by.
DISTRIBUTIONS = {
    module: name
    for name, modules in re.findall(r"^(\S+)==\S+  # (.+)$", REQUIREMENTS.read_text(), re.MULTILINE)
    for module in modules.split()
}
PACKAGES = list(DISTRIBUTIONS)
STEPS, SAVED = 25, 13
#: What to step: vectors are no matter for some classes, and some take one dtype only.
ARRAYS = [((50,), (6, 5), "float32"), ((6, 5), (5, 4), "float32"), ((50,), (6, 5), "bfloat16")]
#: What steps no parameters by `step` alone: what optplug says, and why.
NOT_HERE = {
    ("pytorch_optimizer", "SafeFP16Optimizer"): ("has no param_groups", "other methods of its own step it"),
    ("transformers.optimization", "LayerWiseDummyOptimizer"): (
        "rejects",
        "steps nothing: hooks of a model do",
    ),
}
#: What classes want for arguments that have no default.
NUMBERS = {"lr": 0.01, "num_iterations": 100, "num_data": 100, "momentum": 0.9, "nu": 0.7}
#: What else they want, by module and name.
MOMENTUM = {"momentum": 0.9}
FIXED = {"lr": 0.01, "relative_step": False, "scale_parameter": False}
FLASH = {"quantize": False, "master_weight_bits": None, "fused": False}
ARGUMENTS = {
    **{("bitsandbytes.optim", f"{c}{b}"): MOMENTUM for c in ("LARS", "SGD") for b in ("", "8bit", "32bit")},
    ("bitsandbytes.optim", "PytorchLARS"): MOMENTUM,
    ("came_pytorch", "CAME"): {"lr": 0.01},
    **{("flashoptim", f"Flash{name}"): FLASH for name in ("Adam", "AdamW", "Lion", "SGD", "SGDW")},
    **{(module, "GaLoreAdafactor"): FIXED for module in ("apollo_torch", "galore_torch")},
    ("optimi", "StableAdamW"): {"triton": False},
    ("transformers.optimization", "Adafactor"): FIXED,
    **{
        ("ranger21", name): {"num_epochs": 5, "num_batches_per_epoch": 10}
        for name in ("Ranger21", "Ranger21abel")
    },
}
BASE = "SGD", torch.optim.SGD, {"lr": 0.01}  # what is wrapped: as a spec has it, itself, its options
#: Options of both groups, where others than a rate are wanted: as a host writes them.
MUON = {"use_muon": False}, {"use_muon": True}
GROUPS = {
    ("heavyball", "SplitOpt"): (
        {"optimizer": "heavyball:AdamW", "lr": 0.01},
        {"optimizer": "heavyball:Muon", "lr": 0.02},
    ),
}
#: Why a class fails in plain PyTorch, by its name, or by what it says.
ROW_MAJOR = "it wants row-major arrays"
REASONS = {
    r"to view|view size": ROW_MAJOR,
    r"Distributed|process group": "torch.distributed is not there",
    r"CUDA|XPU": "it wants a GPU",
    r"grad_fn|requires grad|LOMO |Lomo ": "it steps through a graph of autograd",
    r"abstract class|:(PSGDBase|SOAPBase|CoreOptimiser) ": "it is a base class",
    r"AdEMAMix32bit ": "its kernel for the CPU refuses its state",
    r":GSAM ": "it wants an object, a scheduler of its own",
    r":QAPOLLOAdamW ": "it wants another version of bitsandbytes",
    r":Sparse": "it wants sparse gradients",
    r":IVON ": "it wants gradients at values that a method of its own draws",
    r":SpectralSphere ": "it wants another option in its groups",
}
WRAPPED = object()  # what is made of `BASE` for a class that wraps an optimizer

lib = ctypes_api.load()
# By module: the class, its bits, its checkpoint, its steps.
seen: dict[str, list[tuple[str, str, str, str]]] = {}
row_major: set[tuple[str, str]] = set()

NOTHING = pytest.param(
    "", "", marks=pytest.mark.skip("no packages: pip install --no-deps -r tests/third_party.txt")
)

pytestmark = [
    pytest.mark.usefixtures("direct_plans"),
    pytest.mark.filterwarnings("ignore"),  # theirs
]


def found() -> list[tuple[str, str]]:
    """Return modules and classes of the packages that are installed."""
    pairs, known = [], []
    for module in PACKAGES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                members = vars(importlib.import_module(module))
        except ImportError:
            continue
        for name, value in sorted(members.items()):
            is_torchs = getattr(value, "__module__", "torch").partition(".")[0] == "torch"
            if outside._is_optimizer(value) and not is_torchs and value not in known:
                known.append(value)
                pairs.append((module, name))
    return pairs


def seed(i: int) -> None:
    for draw in (torch.manual_seed, random.seed, np.random.seed):
        draw(i)


def drawn(i: int, case: Case, order: str) -> list[torch.Tensor]:
    generator = np.random.default_rng(i)
    *shapes, dtype = case.arrays
    arrays = [np.array(generator.standard_normal(shape), "float32", order=order) for shape in shapes]
    return [torch.from_numpy(a).to(getattr(torch, dtype)) for a in arrays]


def memory_of(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@dataclass
class Case:
    """A way to use a class, which plain PyTorch may refuse."""

    module: str
    name: str
    groups: tuple[dict[str, Any], ...]
    has_closure: bool
    has_schedule: bool
    arrays: tuple[Any, ...] = ARRAYS[0]
    #: Its arguments: as plain PyTorch has them, but for what it wraps, and as a spec does.
    values: dict[str, Any] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.class_ = getattr(importlib.import_module(self.module), self.name)
        self.supplied = outside.supplied(self.class_)
        base, _, options = self.base = BASE
        more = ARGUMENTS.get((self.module, self.name), {})
        self.values |= more
        self.written += [f"{name}={value}" for name, value in more.items()]
        for p in inspect.signature(self.class_).parameters.values():
            is_needed = p.default is p.empty or "Required" in type(p.default).__name__
            if p.name in more or not is_needed or p.kind > p.KEYWORD_ONLY or p.name in self.supplied:
                continue
            if not outside.takes_optimizer(self.class_, p.name):
                self.values[p.name] = NUMBERS.get(p.name, 100)
                self.written.append(f"{p.name}={self.values[p.name]}")
            elif self.supplied:
                self.values |= {p.name: self.base[1], **options}
                self.written += [f"{p.name}={base}", *(f"{k}={v}" for k, v in options.items())]
            else:
                self.values[p.name] = WRAPPED
                self.written.append(f"{base}({', '.join(f'{k}={v}' for k, v in options.items())})")

    @property
    def call(self) -> str:
        return f"{self.name}({', '.join(self.written)})" if self.written else self.name

    @property
    def spec(self) -> str:
        return f"{self.module}:{self.name}({', '.join(self.written)})"

    def make(self, parameters: list[torch.nn.Parameter]):
        """Make the optimizer in plain PyTorch."""

        def option(value):
            module, colon, name = str(value).partition(":")
            return getattr(importlib.import_module(module), name) if colon else value

        def given():
            if not any(self.groups):
                return parameters
            options = ({k: option(v) for k, v in group.items()} for group in self.groups)
            return [{"params": [p], **more} for p, more in zip(parameters, options, strict=True)]

        named = {f"w{i}": p for i, p in enumerate(parameters)}
        model = torch.nn.Module()
        for name, p in named.items():
            model.register_parameter(name, p)
        ours = {"model": model, "named_parameters": list(named.items())}
        _, base, options = self.base
        values = {k: base(given(), **options) if v is WRAPPED else v for k, v in self.values.items()}
        first = [ours.get(name) or given() for name in self.supplied[:1]]
        return self.class_(*first, **{n: ours.get(n) or given() for n in self.supplied[1:]}, **values)


def cases(module: str, name: str) -> Iterator[Case]:
    """Yield ways to use a class, the usual one first."""
    groups = GROUPS.get((module, name))
    choices = [groups] if groups else [({}, {"lr": 0.02}), MUON, ({}, {})]
    supplied = outside.supplied(getattr(importlib.import_module(module), name))
    if supplied and set(supplied) <= {"model", "named_parameters"}:
        choices = [({}, {})]
    for arrays, options, has_schedule in itertools.product(ARRAYS, choices, (True, False)):
        for has_closure in (False, True):
            yield Case(module, name, options, has_closure, has_schedule, arrays)


class Plain:
    """A class on two matrices, each in a group of its own, with a schedule and clipping."""

    def __init__(self, case: Case, order: str):
        self.case, self.order = case, order
        self.parameters = [torch.nn.Parameter(v) for v in drawn(0, case, order)]
        seed(0)
        self.opt = case.make(self.parameters)
        if case.has_schedule:
            self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.opt, 0.99)
        if hasattr(self.opt, "train"):
            with contextlib.suppress(AttributeError):  # heavyball's SAMWrapper has one for what may have none
                self.opt.train()

    def fill(self, i: int) -> torch.Tensor:
        for p, grad in zip(self.parameters, drawn(10 + i, self.case, self.order), strict=True):
            p.grad = grad
        return torch.tensor(1 / (i + 1), requires_grad=True)

    def step(self, i: int) -> None:
        self.fill(i)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.opt.step(*[lambda: self.fill(i + 1000)] * self.case.has_closure)
        if self.case.has_schedule:
            self.schedule.step()

    def bits(self) -> list[bytes]:
        return [memory_of(p.detach()).tobytes() for p in self.parameters]


class Hosted:
    """The same by optplug."""

    def __init__(self, case: Case, order: str, values: list[np.ndarray] | None = None):
        self.case, self.order = case, order
        self.values = values or list(map(memory_of, drawn(0, case, order)))
        self.grads = [np.zeros_like(v) for v in self.values]
        self.opt = Optimizer(case.spec)
        for i, (value, grad) in enumerate(zip(self.values, self.grads, strict=True)):
            if case.groups[i]:
                self.opt.group(", ".join(f"{k}={v}" for k, v in case.groups[i].items()))
            self.opt.bind(f"w{i}", value, grad, dtype=case.arrays[-1])
        if case.has_schedule:
            self.opt.schedule("ExponentialLR(0.99)")

    def fill(self, i: int) -> float:
        for grad, new in zip(self.grads, drawn(10 + i, self.case, self.order), strict=True):
            grad[...] = memory_of(new)
        return 1 / (i + 1)

    def step(self, i: int) -> None:
        self.fill(i)
        self.opt.clip_grad_norm(1.0)
        if self.case.has_closure:
            self.opt.step_closure(lambda: self.fill(i + 1000))
        else:
            self.opt.step()
        if self.case.has_schedule:
            self.opt.schedule_step()

    def bits(self) -> list[bytes]:
        return [v.tobytes() for v in self.values]


@pytest.fixture(autouse=True)
def _allowed():
    names = sorted({module.partition(".")[0] for module in PACKAGES})
    assert lib.opt_init(f"third_party={names}".encode()) == 0
    yield
    assert lib.opt_init(b"third_party=False") == 0


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize(("module", "name"), found() or [NOTHING])
def test_a_class_is_itself(module, name, order):
    errors = []
    for case in cases(module, name):
        expected = plain_steps(case, order)
        if not isinstance(expected, Exception):
            break
        errors.append(expected)
    else:
        note(module, name, order, f"fails in plain PyTorch: {reason_of(module, name, errors)}", "", "")
        return
    if (module, name) in NOT_HERE:
        words, reason = NOT_HERE[module, name]
        with pytest.raises(ctypes_api.Error, match=words):
            Hosted(case, order)
        note(module, name, order, reason, "", "")
        return
    ours, resumed, saved = Hosted(case, order), None, ""
    for i in range(STEPS):
        if i == SAVED:
            resumed, saved = resume(ours, order)
        ours.step(i)
        assert ours.bits() == expected[i], f"step {i}"
        if resumed:
            resumed.step(i)
            assert resumed.bits() == expected[i], f"step {i}, resumed"
    recorded = "\nstep: recorded " in ours.opt.describe()
    steps = "with a closure" if case.has_closure else "recorded" if recorded else "by Python"
    note(module, case.call, order, "its own", saved, steps)


def a_dozen() -> list[tuple[str, str, str]]:
    """Return the specs of docs/modern.md whose packages are here, whether they are recorded, their groups."""
    page = (hosts.PROJECT / "docs" / "modern.md").read_text()
    rows = re.findall(r'^\| `"([\w.:]+\(.*?\))"` \| (yes|no|one .*?) \|.*\|(.*)\|$', page, re.MULTILINE)
    assert len(rows) > 12
    here = {module for module, _ in found()}
    groups = (re.search(r'opt_group\(opt, "(.*)"\)', needs) for *_, needs in rows)
    return [
        (spec, is_recorded, group[1] if group else "")
        for (spec, is_recorded, _), group in zip(rows, groups, strict=True)
        if ":" not in spec or spec.partition(":")[0] in here
    ]


def test_the_pages_first_lines_and_other_specs_make_optimizers():
    page = (hosts.PROJECT / "docs" / "modern.md").read_text()
    lines = re.search(r"^```c\n(.*?)^```$", page, re.M | re.S)[1]
    [allowed], [spec] = re.findall(r'opt_init\("(.*)"\)', lines), re.findall(r'opt_create\("(.*)"\)', lines)
    specs = re.findall(r'^\| .*?`"([\w.]+:\w+\(.*?\))"`', page.partition("## Training")[2], re.M)
    assert (allowed, len(specs) > 5) == ("third_party=['pytorch_optimizer']", True)
    here, made = {module for module, _ in found()}, 0
    for each in (spec, *specs):
        if set(re.findall(r"([\w.]+):\w+", each)) <= here:
            Optimizer(each).free()
            made += 1
    if not made:
        pytest.skip("no packages: pip install --no-deps -r tests/third_party.txt")


@pytest.mark.parametrize(("spec", "is_recorded", "group"), a_dozen())
def test_a_line_of_the_page_is_as_it_says(spec, is_recorded, group):
    for count in (1, 3):
        values = [np.random.default_rng(i).standard_normal((10, 5)).astype("float32") for i in range(count)]
        before, opt = [v.copy() for v in values], Optimizer(spec)
        if group:
            opt.group(group)
        for i, value in enumerate(values):
            opt.bind(f"w{i}", value, value.copy())
        for _ in range(10):
            opt.step()
        assert not any(np.array_equal(v, b) for v, b in zip(values, before, strict=True))
        recorded = "\nstep: recorded " in opt.describe()
        assert recorded == (is_recorded == "yes")


def reason_of(module: str, name: str, errors: list[Exception]) -> str:
    words = [f"{module}:{name} {type(error).__name__}: {error}" for error in errors]
    found = [reason for pattern, reason in REASONS.items() if any(re.search(pattern, w) for w in words)]
    assert found, words
    return found[0]


def plain_steps(case: Case, order: str) -> list[list[bytes]] | Exception:
    """Return the bits after each step in plain PyTorch, or why there are none."""
    try:
        plain = Plain(case, order)
        found = []
        for i in range(STEPS):
            plain.step(i)
            found.append(plain.bits())
    except Exception as error:
        return error
    return found


def resume(ours: Hosted, order: str) -> tuple[Hosted | None, str]:
    """Save, and go on in another optimizer; None where the save refuses."""
    try:
        content = ours.opt.save_memory()
    except ctypes_api.Error as error:
        refusal = re.search(r"opt_save cannot save \w+: (.*); to be able to resume", str(error))
        if not refusal:
            raise
        return None, f"`opt_save` refuses: {refusal[1]}"
    other = Hosted(ours.case, order, [v.copy(order="K") for v in ours.values])
    other.opt.load_memory(content)
    return other, "its own"


def note(module: str, name: str, order: str, *what: str) -> None:
    if order == "C":
        seen.setdefault(module, []).append((name, *what))
    elif ROW_MAJOR in what[0]:
        row_major.add((module, name))


def table() -> str:
    """Render what this run has seen."""
    lines = [
        "# Optimizers outside PyTorch, class by class",
        "",
        "Written by `tests/test_third_party_packages.py` from a run with torch "
        f"{torch.__version__.partition('+')[0]}: {STEPS} steps of each class, with its defaults or what is "
        "shown, beside the same class in plain PyTorch, on a vector and a matrix in groups of their own (two "
        "matrices, where it takes no vectors), in row-major and column-major order, with a schedule and "
        "clipping, where the class takes that; every bit is compared after each step, and those of an "
        f"optimizer that has been loaded from a checkpoint at step {SAVED}.",
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
        for name, bits, *more in seen[module]:
            is_row_major = (module, name.partition("(")[0]) in row_major
            words = f"{bits}, of row-major arrays" if is_row_major else bits
            lines.append(f"| {' | '.join([name, words, *more])} |")
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
