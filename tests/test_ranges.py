"""What is known of PyTorch's judgement without asking again is what PyTorch says."""

from __future__ import annotations

import inspect
import itertools
import math

import pytest
import torch

from optplug.ranges import Range, Ranges, broken
from optplug.recipe import IMPLEMENTATIONS, classes
from optplug.trials import nothing_yet

NUMBERS = [0.0, -0.0, 5e-324, 0.5, 1.0, math.nextafter(1, 0), math.nextafter(1, 2), 1e300, math.inf]
NUMBERS += [-x for x in NUMBERS] + [math.nan]


def needs(*conditions):
    def construct(options):
        if not all(holds(**options) for holds in conditions):
            raise ValueError

    return construct


def options_of(class_):
    """Return what a class takes as numbers, and the rest, as a spec may say it."""
    known = inspect.signature(class_).parameters.keys() - {*IMPLEMENTATIONS}
    defaults = class_(nothing_yet()).defaults
    return {name: float(v) if type(v) is int else v for name, v in defaults.items() if name in known}


@pytest.mark.parametrize("name", classes())
def test_a_number_that_is_covered_is_one_that_torchs_constructor_accepts(name):
    class_ = classes()[name]
    options = options_of(class_)
    known = Ranges(lambda given: class_(nothing_yet(), **given))
    known.watch(options)
    assert known.cover(options)
    assert known.cover({**options, "lr": options["lr"] / 3})
    covered = 0
    for key, value in itertools.product(options, NUMBERS):
        old = options[key]
        changes = [value] if type(old) is float else []
        if isinstance(old, tuple):
            changes = [(*old[:i], value, *old[i + 1 :]) for i in range(len(old)) if type(old[i]) is float]
        for new in changes:
            if known.cover({**options, key: new}):
                class_(nothing_yet(), **{**options, key: new})
                covered += 1
    assert covered > 10


@pytest.mark.parametrize(
    ("condition", "low", "high"),
    [
        (lambda a: a >= 0, 0, math.inf),
        (lambda a: not a < 0, 0, math.inf),
        (lambda a: 0.0 < a <= 2, 5e-324, 2),
        (lambda a: not (a <= 0 or a >= 2), 5e-324, math.nextafter(2, 0)),
        (lambda a: a == a, 1, 1),
        (lambda a: a != 5, 1, 1),
        (lambda a: bool(a), 1, 1),
        (lambda a: a * a < 4, 1, 1),
        (lambda a: -a < 0, 1, 1),
        (lambda a: a.real > 0, 1, 1),
        (lambda a: int(a) == 1, 1, 1),
        (lambda a: a in {1.0}, 1, 1),
        (lambda a: f"{a}" == "1.0", 1, 1),
        (lambda a: a < math.inf, 1, 1),
        (lambda a: a < 10**400, 1, 1),
        (lambda a: not a < math.nan, 1, 1),
        (lambda a: torch.full((1,), a) == 1, 1, 1),
        (lambda a: torch.tensor([a]) == 1, 1, 1),
        (lambda a: isinstance(a, float), -math.inf, math.inf),
    ],
)
def test_a_range_is_where_comparisons_come_out_the_same(condition, low, high):
    known = Ranges(needs(condition))
    known.watch({"a": 1.0})
    assert known.find({"a": 1.0}, "a") == Range(low, high)


def test_numbers_that_are_compared_with_each_other_have_no_room():
    known = Ranges(needs(lambda a, b: a[0] < a[1] and b > 0))
    options = {"a": (1.0, 2.0), "b": 1.0}
    known.watch(options)
    assert known.find(options, "a[0]") == Range(1, 1)
    assert known.find(options, "a[1]") == Range(2, 2)
    assert known.cover({"a": (1.0, 2.0), "b": 3.0})
    assert not known.cover({"a": (1.0, 3.0), "b": 3.0})


def test_what_is_no_float_must_stay_as_it_is():
    known = Ranges(needs())
    known.watch({"lr": 0.5, "count": 3, "on": False, "name": None})
    assert known.cover({"lr": 0.7, "count": 3, "on": False, "name": None})
    for change in (
        {"lr": 1},
        {"count": 3.0},
        {"count": 4},
        {"on": 0},
        {"on": True},
        {"name": ""},
        {"more": 1},
    ):
        assert not known.cover({"lr": 0.5, "count": 3, "on": False, "name": None} | change)
    assert not known.cover({"lr": 0.5, "count": 3, "on": False})


@pytest.mark.parametrize("name", classes())
def test_what_an_error_says_a_number_must_be_is_what_torch_accepts(name):
    def constructed(options):
        return class_(nothing_yet(), **options)

    class_ = classes()[name]
    defaults = options_of(class_)
    told = set()
    for key, value in itertools.product(defaults, NUMBERS):
        places = range(len(defaults[key])) if isinstance(defaults[key], tuple) else [None]
        for place in places:
            old = defaults[key]
            new = value if place is None else (*old[:place], value, *old[place + 1 :])
            if not isinstance(old if place is None else old[place], float):
                continue
            said = broken(constructed, {key: new}, defaults)
            try:
                constructed({key: new})
            except ValueError:
                told.update(said)
                assert len(said) == 1, (key, new)
            except RuntimeError:  # it exceeds a tensor's dtype
                assert not said, (key, new)
            else:
                assert not said or math.isnan(value), (key, new)
    assert told & {"lr must be at least 0", "lr must be above 0"} or name == "LBFGS"


@pytest.mark.parametrize(
    ("range_", "text"),
    [
        (Range(0, math.inf), "at least 0"),
        (Range(5e-324, math.inf), "above 0"),
        (Range(0, math.nextafter(1, 0)), "at least 0 and below 1"),
        (Range(math.nextafter(1, 2), math.inf), "above 1"),
        (Range(-math.inf, 0.5), "at most 0.5"),
        (Range(-math.inf, math.inf), ""),
    ],
)
def test_a_range_in_words(range_, text):
    assert str(range_) == text


def test_what_is_refused_teaches_nothing():
    known = Ranges(needs(lambda a: a > 0))
    assert not known.cover({"a": 1.0})
    known.watch({"a": -1.0})
    assert not known.cover({"a": 1.0})
    known.watch({"a": math.nan})
    assert not known.cover({"a": 1.0})
