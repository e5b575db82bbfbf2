"""What the tests with random input share."""

from __future__ import annotations

import inspect
import os
import re
import tempfile

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import configuration
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from optplug import ctypes_api

lib = ctypes_api.load()

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

#: What st.text() draws, without a table of what UTF-8 can write, which takes two seconds.
characters = st.characters(exclude_categories=["Cs"])

numbers = st.one_of(
    st.integers(-3, 12),
    st.floats(0, 1),
    st.floats(),
    st.sampled_from([10**16, 2**63, 10**400, -(10**30), 1j, 5e-324]),
)

literals = st.recursive(
    st.one_of(
        numbers,
        st.booleans(),
        st.none(),
        st.text(characters, max_size=5),
        st.binary(max_size=3),
        st.just(...),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(characters, max_size=3), inner, max_size=2),
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


# ---- layouts ----

GUARD = 16


class Memory:
    """Numbers with a guard on either side, one array of a layout among them."""

    def __init__(self, dtype, places, seed):
        size = max(places, default=0) + 1 + 2 * GUARD
        generator = np.random.default_rng(seed)
        self.numbers = generator.integers(-99, 99, size).astype(dtype)
        self.places = [GUARD + p for p in places]
        self.pointer = self.numbers.ctypes.data + GUARD * self.numbers.itemsize
