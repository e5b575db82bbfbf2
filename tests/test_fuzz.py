"""Properties that hold whatever is passed: texts, layouts, orders of calls, checkpoints.

The examples are the same in each run; OPTPLUG_TEST_EXAMPLES=20 takes twenty times as many, and others.
"""

from __future__ import annotations

import ctypes
import io
import warnings

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import stateful
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from chance import GUARD, Memory, call, closure_of_nothing, create, examples, lib, literals, pytestmark, quiet  # noqa: F401 (pytest finds them here)
from optplug import checkpoint

lib.opt_list.restype = ctypes.c_char_p


# ---- orders of calls ----

SPECS = [
    "SGD(lr=0.1)",
    "SGD(lr=0.1, momentum=0.9, nesterov=True)",
    "Adam(lr=0.1)",
    "Adam(lr=0.1, amsgrad=True, fused=False)",
    "AdamW(lr=0.1, weight_decay=0.1)",
    "Adagrad(lr=0.1)",
    "RMSprop(lr=0.1, momentum=0.9, centered=True)",
    "Rprop(lr=0.1)",
    "NAdam(lr=0.1)",
    "Adafactor(lr=0.1)",
]

SCHEDULES = ["StepLR(2, gamma=0.5)", "ExponentialLR(0.9)", "LinearLR(start_factor=0.5, total_iters=3)"]

FUSED = {"Adam", "AdamW", "SGD", "Adagrad"}


def evaluated(text: str, module, *implied, **more):
    """Evaluate a spec as Python, with the arguments that optplug supplies."""
    name, _, rest = text.partition("(")

    def build(*args, **kwargs):
        return getattr(module, name)(*implied, *args, **kwargs, **more)

    return eval(f"build({rest}", {"build": build})  # noqa: S307 - this file's own text


class Pair:
    """One parameter, ours and the reference's, each with its gradient, in memory with guards and gaps."""

    def __init__(self, dtype: str, n: int, gap: int, seed: int):
        self.dtype, self.n = dtype, n
        self.ours = self.new(gap, seed)
        self.parameter = torch.nn.Parameter(torch.empty(0, dtype=getattr(torch, dtype)))
        self.move(gap, seed)

    def new(self, gap: int, seed: int) -> list[np.ndarray]:
        generator = np.random.default_rng(seed)
        size = self.n * gap + 2 * GUARD
        return [generator.standard_normal(size).astype(self.dtype) for _ in "wg"]

    def move(self, gap: int, seed: int) -> None:
        """Go on in other memory, with other values in it."""
        self.gap, self.ours = gap, self.new(gap, seed)
        self.theirs = [array.copy() for array in self.ours]
        data, grad = (torch.from_numpy(array).as_strided((self.n,), (gap,), GUARD) for array in self.theirs)
        self.parameter.data, self.parameter.grad = data, grad

    def arguments(self):
        shape, stride = ((ctypes.c_int64 * 1)(v) for v in (self.n, self.gap))
        w, dw = (a.ctypes.data + GUARD * a.itemsize for a in self.ours)
        return self.dtype.encode(), b"cpu", 1, shape, w, stride, dw, stride

    def draw(self, generator) -> None:
        values = generator.standard_normal(self.n).astype(self.dtype)
        for _, grad in (self.ours, self.theirs):
            grad[GUARD : GUARD + self.n * self.gap : self.gap] = values


class Twins:
    """An optimizer by optplug, and the same by torch."""

    def __init__(self, text: str):
        self.text, self.opt = text, create(text)
        self.groups: list[tuple[dict, list[Pair]]] = [({}, [])]
        self.reference = None
        self.schedulers: list = []
        self.steps = 0

    @property
    def pairs(self) -> list[Pair]:
        return [pair for _, pairs in self.groups for pair in pairs]

    @property
    def may_fuse(self) -> bool:
        return self.text.partition("(")[0] in FUSED and "fused" not in self.text

    @property
    def is_complete(self) -> bool:
        return bool(self.groups[-1][1])

    def build(self) -> None:
        if self.reference is None:
            lists = [{"params": [p.parameter for p in pairs], **options} for options, pairs in self.groups]
            fuses = self.may_fuse and (all(pair.gap == 1 or pair.n == 1 for pair in self.pairs))
            self.reference = evaluated(self.text, torch.optim, lists, **({"fused": True} if fuses else {}))

    def add(self, dtype: str, n: int, gap: int) -> None:
        self.groups[-1][1].append(Pair(dtype, n, gap, len(self.pairs)))
        assert self.bind(len(self.pairs) - 1) == 0, lib.opt_error()

    def bind(self, index: int) -> int:
        return call(lib.opt_bind_nd, self.opt, f"p{index}".encode(), *self.pairs[index].arguments())


pairs = st.tuples(st.sampled_from(["float32", "float64"]), st.integers(1, 40), st.sampled_from([1, 1, 1, 3]))


def rule(condition=lambda _: True, **strategies):
    """Make a rule of a method that takes an optimizer for which a condition holds."""

    def decorate(method):
        def chosen(self, which, **drawn):
            fit = [twins for twins in self.all if condition(twins)]
            method(self, fit[which % len(fit)], **drawn)

        chosen.__name__ = method.__name__
        made = stateful.rule(which=st.integers(0, 2), **strategies)(chosen)
        return stateful.precondition(lambda self: any(map(condition, self.all)))(made)

    return decorate


class Interleaving(stateful.RuleBasedStateMachine):
    """Valid calls in any order, on some optimizers, leave in memory what plain torch leaves."""

    def __init__(self):
        super().__init__()
        self.all: list[Twins] = []
        self.generator = np.random.default_rng(0)

    def teardown(self):
        for twins in self.all:
            assert call(lib.opt_free, twins.opt) == 0

    @stateful.precondition(lambda self: len(self.all) < 3)
    @stateful.rule(text=st.sampled_from(SPECS), shapes=st.lists(pairs, min_size=1, max_size=3))
    def create(self, text, shapes):
        self.all.append(Twins(text))
        for shape in shapes:
            self.all[-1].add(*shape)

    @rule(lambda t: t.reference is None and len(t.pairs) < 5, shape=pairs)
    def bind(self, twins, shape):
        twins.add(*shape)

    @rule(lambda t: t.steps, index=st.integers(0, 3), gap=st.sampled_from([1, 1, 2]), seed=st.integers(0, 9))
    def bind_again(self, twins, index, gap, seed):
        index %= len(twins.pairs)
        pair = twins.pairs[index]
        pair.move(gap, seed)
        assert twins.bind(index) == 0, lib.opt_error()
        if twins.reference and twins.may_fuse and gap > 1 and pair.n > 1:
            for group in twins.reference.param_groups:
                group["fused"] = None

    @rule(lambda t: t.reference is None and t.is_complete, lr=st.sampled_from([0.25, 1.0]))
    def group(self, twins, lr):
        assert call(lib.opt_group, twins.opt, f"lr={lr}".encode()) == 0
        twins.groups.append(({"lr": lr}, []))

    @rule(
        group=st.integers(0, 5), option=st.sampled_from([{"lr": 0.5}, {"weight_decay": 0.25}, {"lr": 0.01}])
    )
    def set(self, twins, option, group):
        group = group % (len(twins.groups) + 1) - 1
        text = ", ".join(f"{k}={v}" for k, v in option.items())
        if "Rprop" in twins.text and "weight_decay" in option:
            assert call(lib.opt_set, twins.opt, group, text.encode()) == -1
            return
        assert call(lib.opt_set, twins.opt, group, text.encode()) == 0, lib.opt_error()
        theirs = twins.reference.param_groups if twins.reference else [options for options, _ in twins.groups]
        for options in theirs if group == -1 else [theirs[group]]:
            options.update(option)

    @rule(lambda t: t.is_complete and len(t.schedulers) < 2, text=st.sampled_from(SCHEDULES))
    def schedule(self, twins, text):
        twins.build()
        assert call(lib.opt_schedule, twins.opt, text.encode()) == 0, lib.opt_error()
        twins.schedulers.append(evaluated(text, lr_scheduler, twins.reference))

    @rule(
        lambda t: t.schedulers,
    )
    def schedule_step(self, twins):
        assert call(lib.opt_schedule_step, twins.opt) == 0, lib.opt_error()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for scheduler in twins.schedulers:
                scheduler.step()

    @rule(
        lambda t: t.is_complete,
        count=st.integers(1, 6),
        way=st.sampled_from(["step", "step", "step", "closure", "iterate"]),
    )
    def step(self, twins, count, way):
        twins.build()
        for _ in range(count):
            for pair in twins.pairs:
                pair.draw(self.generator)
            if way == "step":
                assert call(lib.opt_step, twins.opt) == 0, lib.opt_error()
            elif way == "closure":
                assert call(lib.opt_step_closure, twins.opt, closure_of_nothing, None, None) == 0
            else:
                assert call(lib.opt_iterate, twins.opt, 0.0) == 1
                assert call(lib.opt_iterate, twins.opt, 0.0) == 0
            twins.reference.step()
            twins.steps += 1
            self.all_bytes_are_torchs()

    @rule()
    def zero_grad(self, twins):
        assert call(lib.opt_zero_grad, twins.opt) == 0
        for pair in twins.pairs:
            pair.parameter.grad.zero_()

    @rule(lambda t: t.pairs, bound=st.sampled_from([0.0, 0.5, 2.0]), norm=st.booleans())
    def clip(self, twins, bound, norm):
        parameters = [pair.parameter for pair in twins.pairs]
        if norm:
            found = ctypes.c_double()
            assert call(lib.opt_clip_grad_norm, twins.opt, bound, 2.0, 0, found) == 0
            assert found.value == float(torch.nn.utils.clip_grad_norm_(parameters, bound))
        else:
            assert call(lib.opt_clip_grad_value, twins.opt, bound) == 0
            torch.nn.utils.clip_grad_value_(parameters, bound)

    @rule(lambda t: t.pairs, wrong=st.sampled_from(["lr", "shape", "schedule", "name"]))
    def fail(self, twins, wrong):
        before = lib.opt_describe(twins.opt)
        nowhere = np.zeros(99).ctypes.data
        status = {
            "lr": lambda: call(lib.opt_set, twins.opt, -1, b"weight_decay=0.1, lr=-1"),
            "shape": lambda: call(lib.opt_bind, twins.opt, b"p0", b"float64", 77, nowhere, nowhere),
            "schedule": lambda: call(lib.opt_schedule, twins.opt, b"StepLR(gamma=0.5)"),
            "name": lambda: call(lib.opt_get, twins.opt, 0, b"nothing", ctypes.c_double()),
        }[wrong]()
        assert status < 0
        assert lib.opt_describe(twins.opt) == before

    @rule(lambda t: t.steps > 9)
    def free(self, twins):
        assert call(lib.opt_free, twins.opt) == 0
        self.all.remove(twins)
        assert call(lib.opt_free, twins.opt) == -2

    @stateful.invariant()
    def all_bytes_are_torchs(self):
        for twins in self.all:
            for pair in twins.pairs:
                for ours, theirs in zip(pair.ours, pair.theirs, strict=True):
                    assert ours.tobytes() == theirs.tobytes(), lib.opt_describe(twins.opt).decode()
            for i, group in enumerate(twins.reference.param_groups if twins.reference else []):
                found = ctypes.c_double()
                assert call(lib.opt_get, twins.opt, i, b"lr", found) == 0
                assert found.value == float(group["lr"])


TestInterleaving = Interleaving.TestCase

TestInterleaving.settings = examples(100)


# ---- checkpoints ----

tensors = st.sampled_from(
    [
        torch.tensor(3.0),
        torch.ones(5),
        torch.ones(5, dtype=torch.float64),
        torch.ones(1).expand(5),
        torch.ones(10)[::2],
        torch.ones(0),
        torch.ones(5, 1),
        torch.full((5,), torch.nan),
        torch.ones(5, dtype=torch.int64),
        torch.ones(5).to_sparse(),
    ]
)


def places(value, path=()) -> list[tuple]:
    """Return the way to each thing inside of a checkpoint."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, v in inner for p in [(*path, key), *places(v, (*path, key))]]


@st.composite
def damaged(draw, content) -> bytes:
    """Draw a checkpoint with something else in some places, sealed by optplug or as PyTorch leaves it."""
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(places(content)))
        inside = content
        for key in way:
            inside = inside[key]
        if draw(st.integers(0, 5)) == 0:
            del inside[last]
        else:
            values = literals.filter(lambda v: v is not ... and not isinstance(v, bytes))
            inside[last] = draw(st.one_of(values, tensors))
    file = io.BytesIO()
    if draw(st.booleans()):
        checkpoint.write(file, content)
    else:
        content.pop("optplug", None)
        torch.save(content, file)
    return file.getvalue()


def saved(opt: int) -> bytes:
    size = lib.opt_save_memory(opt, None, 0)
    buffer = (ctypes.c_char * size)()
    assert lib.opt_save_memory(opt, buffer, size) == size
    return buffer.raw


@pytest.mark.parametrize("text", ["Adam(lr=0.1, amsgrad=True)", "SGD(lr=0.1, momentum=0.9)", "RMSprop()"])
@examples(20)
@hypothesis.given(st.data())
def test_a_damaged_checkpoint_is_refused_or_does_no_harm(text, data):
    opt, memory = create(text), [Memory("float32", range(5), i) for i in range(4)]
    for i, (w, dw) in enumerate([memory[:2], memory[2:]]):
        assert lib.opt_bind(opt, f"p{i}".encode(), b"float32", 5, w.pointer, dw.pointer) == 0
    assert lib.opt_schedule(opt, b"StepLR(3)") == 0
    assert lib.opt_average(opt, b"AveragedModel()") == 0
    assert lib.opt_step(opt) == lib.opt_step(opt) == 0
    content = torch.load(io.BytesIO(saved(opt)), weights_only=True)
    bytes_ = data.draw(damaged(content))
    described, state = lib.opt_describe(opt), saved(opt)
    arrays = [m.numbers.copy() for m in memory]
    status = call(lib.opt_load_memory, opt, bytes_, len(bytes_))
    assert all(m.numbers.tobytes() == a.tobytes() for m, a in zip(memory, arrays, strict=True))
    if status < 0:
        assert lib.opt_describe(opt) == described
        assert saved(opt) == state
    assert lib.opt_describe(opt)
    for _ in range(2):
        stepped = call(lib.opt_step, opt)
        assert status == 0 or stepped == 0
        call(lib.opt_schedule_step, opt)
    for m, a in zip(memory, arrays, strict=True):
        m.numbers[m.places], a[m.places] = 0, 0
        assert m.numbers.tobytes() == a.tobytes()  # nothing around them has changed
    assert call(lib.opt_free, opt) == 0
