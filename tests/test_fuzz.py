"""Properties that hold whatever is passed: texts, layouts, orders of calls, checkpoints.

The examples are the same in each run; OPTPLUG_TEST_EXAMPLES=20 takes twenty times as many, and others.
"""

from __future__ import annotations

import ctypes
import inspect
import io
import itertools
import math
import os
import re
import tempfile
import warnings

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import configuration, stateful
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from optplug import checkpoint, ctypes_api
from test_messages import INSIDES

lib = ctypes_api.load()
lib.opt_list.restype = ctypes.c_char_p
_home = tempfile.TemporaryDirectory()  # hypothesis keeps tables of Unicode: not in this tree
configuration.set_hypothesis_home_dir(_home.name)


@ctypes_api.CALLBACK
def closure_of_nothing(_, value):
    value[0] = 0.0
    return 0


TIMES = int(os.environ.get("OPTPLUG_TEST_EXAMPLES", "1"))

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence"),  # a tensor where a dict was
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]


def examples(count: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=count * TIMES,
        stateful_step_count=40,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@pytest.fixture(autouse=True)
def quiet(capfd):
    yield
    assert capfd.readouterr() == ("", "")


def call(function, *arguments):
    """Call and check what holds for all: a failure is a status and one new line, and success says nothing."""
    assert lib.opt_step(-12345) == -2
    before = lib.opt_error()
    result = function(*arguments)
    message = lib.opt_error()
    if result is None or (isinstance(result, int) and result < 0):
        assert result in (None, *range(-8, 0))
        assert message != before
        assert re.fullmatch(r"[^\x00-\x1f]+", message.decode()), message
    else:
        assert message == before
    return result


def create(text: str) -> int:
    opt = call(lib.opt_create, text.encode())
    assert opt > 0, lib.opt_error()
    return opt


# ---- texts ----

OPTIMIZERS = {n: c for n, c in vars(torch.optim).items() if inspect.isclass(c) and n != "Optimizer"}
SCHEDULERS = {n: getattr(lr_scheduler, n) for n in lr_scheduler.__all__} | {
    n: getattr(torch.optim.swa_utils, n)
    for n in ("SWALR", "AveragedModel", "get_ema_avg_fn", "get_ema_multi_avg_fn", "get_swa_avg_fn")
}
# They ask PyTorch to compute or allocate that much, and it does.
UNBOUNDED = {"max_iter", "max_eval", "history_size"}

numbers = st.one_of(
    st.integers(-3, 12),
    st.floats(0, 1),
    st.floats(),
    st.sampled_from([10**16, 2**63, 10**400, -(10**30), 1j, 5e-324]),
)
literals = st.recursive(
    st.one_of(numbers, st.booleans(), st.none(), st.text(max_size=5), st.binary(max_size=3), st.just(...)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=2),
    ),
    max_leaves=5,
)


def written(value) -> str:
    """Write a value as a spec has it, an infinity as a number that is too large, a nan as what is none."""
    return re.sub(r"\binf\b", "1e999", "Ellipsis" if value is ... else repr(value))


@st.composite
def calls(draw, names=(*OPTIMIZERS, *SCHEDULERS), depth=2) -> str:
    """Draw a constructor call: known names and arguments with any values, and calls in it."""
    name = draw(st.sampled_from(names))
    known = list(inspect.signature({**OPTIMIZERS, **SCHEDULERS}[name]).parameters)
    allowed = [k for k in known if k not in UNBOUNDED] or ["x"]
    values = literals.map(written)
    if depth:
        inner = calls(tuple(SCHEDULERS), depth - 1)
        values = values | inner | st.lists(inner, max_size=3).map(lambda v: f"[{', '.join(v)}]")
    pairs = draw(st.dictionaries(st.sampled_from(allowed), values, max_size=4))
    return (
        f"{name}({', '.join([*draw(st.lists(values, max_size=1)), *(f'{k}={v}' for k, v in pairs.items())])})"
    )


arguments = st.dictionaries(
    st.sampled_from(["lr", "betas", "eps", "weight_decay", "momentum", "amsgrad", "foreach", "x"]),
    literals.map(written),
    max_size=3,
).map(lambda pairs: ", ".join(f"{k}={v}" for k, v in pairs.items()))
hyperparameters = st.from_regex(r"(lr|betas|eps|fused|params)(\[[0-9-]*\]?)?", fullmatch=True)


@st.composite
def spliced(draw, whole) -> bytes:
    """Draw a text, whole or in pieces, with bytes in between that may be no UTF-8."""
    text = draw(whole).encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        return text
    other = draw(whole).encode("utf-8", "surrogatepass")
    at, after = draw(st.integers(0, len(text))), draw(st.integers(0, len(other)))
    return text[:at] + draw(st.binary(max_size=3)) + other[after:]


texts = st.one_of(st.text(), calls(), arguments, hyperparameters)


@pytest.fixture(scope="module", params=["Adam()", "SGD(lr=0.1, momentum=0.9)", "Rprop()"])
def bound(request):
    """Return an optimizer with arrays that no text is to change, and what it says of itself."""
    opt, arrays = create(request.param), np.ones((2, 9))
    assert lib.opt_bind(opt, b"w", b"float64", 9, *(row.ctypes.data for row in arrays)) == 0
    yield opt, arrays
    assert lib.opt_free(opt) == 0


@examples(250)
@hypothesis.given(spliced(texts))
def test_any_text_makes_an_optimizer_or_an_error(text):
    opt = call(lib.opt_create, text)
    if opt > 0:
        assert call(lib.opt_free, opt) == 0
    else:
        assert not INSIDES.search(lib.opt_error().decode()), lib.opt_error()
    listed = call(lib.opt_list, text)
    assert listed is None or listed.decode() == "" or listed.endswith(b"\n")


@pytest.mark.parametrize("name", ["group", "set", "schedule", "average", "get"])
@examples(60)
@hypothesis.given(spliced(texts), st.sampled_from([-1, 0, 1, -(2**31)]))
def test_any_text_changes_an_optimizer_or_nothing(bound, name, text, group):
    opt, arrays = bound
    function = getattr(lib, f"opt_{name}")
    before = lib.opt_describe(opt)
    value = ctypes.c_double()
    parts = {"set": (group, text), "get": (group, text, value)}.get(name, (text,))
    if call(function, opt, *parts) < 0:
        assert not INSIDES.search(lib.opt_error().decode()), lib.opt_error()
        assert lib.opt_describe(opt) == before
    assert lib.opt_describe(opt)  # whatever it has taken, it can say what it is
    assert (arrays == 1).all()


# ---- layouts ----

GUARD = 16
REAL = ["float16", "float32", "float64", "complex64", "complex128"]


@st.composite
def layouts(draw):
    """Draw a shape and the strides of two arrays of it: any, or such as permuting and slicing make."""
    shape = draw(st.lists(st.one_of(st.integers(0, 4), st.integers(1, 4), st.just(-1)), max_size=4))

    def strides():
        if draw(st.integers(0, 2)) == 0:
            return draw(st.lists(st.integers(-1, 14), min_size=len(shape), max_size=len(shape)))
        result, step = [0] * len(shape), draw(st.integers(1, 2))
        for i in draw(st.permutations(range(len(shape)))):
            result[i] = step
            step = step * max(shape[i], 1) + draw(st.sampled_from([0, 0, 0, 1]))
        return result

    data = strides()
    return shape, data, data if draw(st.booleans()) else strides()


def offsets(shape, strides) -> list[int]:
    return [
        sum(map(math.prod, zip(at, strides, strict=True))) for at in itertools.product(*map(range, shape))
    ]


def is_fit(shape, strides) -> bool:
    """Tell by looking at each element what opt_bind_nd must say."""
    if any(n < 0 for n in shape) or any(s < 0 for s in strides):
        return False
    places = offsets(shape, strides)
    return len(set(places)) == len(places)


def is_interleaved(shape, strides) -> bool:
    """Tell whether a dimension steps to places between those of another, though no two are the same."""
    inside = 0
    for s, n in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n > 1):
        if s <= inside:
            return True
        inside += s * (n - 1)
    return False


class Memory:
    """Numbers with a guard on either side, one array of a layout among them."""

    def __init__(self, dtype, places, seed):
        size = max(places, default=0) + 1 + 2 * GUARD
        generator = np.random.default_rng(seed)
        self.numbers = generator.integers(-99, 99, size).astype(dtype)
        self.places = [GUARD + p for p in places]
        self.pointer = self.numbers.ctypes.data + GUARD * self.numbers.itemsize


@examples(500)
@hypothesis.given(layouts(), st.sampled_from(REAL))
def test_a_layout_is_taken_if_no_two_elements_share_memory_and_then_they_alone_are_stepped(layout, dtype):
    shape, *both = layout
    fits = all(is_fit(shape, strides) for strides in both)
    if fits and 0 not in shape:  # rows that interleave are refused, though no two elements are the same
        hypothesis.assume(not any(is_interleaved(shape, strides) for strides in both))
    w, dw = (Memory(dtype, offsets(shape, strides) if fits else [999], 1) for strides in both)
    integers = [(ctypes.c_int64 * len(shape))(*v) for v in (shape, *both)]
    opt = create("SGD(lr=1)")
    arrays = (len(shape), integers[0], w.pointer, integers[1], dw.pointer, integers[2])
    status = call(lib.opt_bind_nd, opt, b"w", dtype.encode(), b"cpu", *arrays)
    assert (status == 0) == fits, lib.opt_error()
    if fits:
        expected, gradient = w.numbers.copy(), dw.numbers.copy()
        expected[w.places] -= gradient[dw.places]
        assert call(lib.opt_step, opt) == 0
        assert w.numbers.tobytes() == expected.tobytes()
        assert dw.numbers.tobytes() == gradient.tobytes()
        gradient[dw.places] = 0
        assert call(lib.opt_zero_grad, opt) == 0
        assert dw.numbers.tobytes() == gradient.tobytes()
    else:
        assert status == -1
        assert call(lib.opt_step, opt) == -3  # nothing is bound
    assert call(lib.opt_free, opt) == 0


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
TestInterleaving.settings = examples(150)


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
@examples(40)
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
