"""Specs are parsed, never evaluated."""

from __future__ import annotations

import math
import warnings

import pytest

from optplug import spec
from optplug.spec import Call, SpecError


def test_a_call_comes_with_its_arguments():
    assert spec.parse("Adam(lr=1e-3, betas=(0.9, 0.99), amsgrad=True)") == Call(
        "Adam", (), {"lr": 1e-3, "betas": (0.9, 0.99), "amsgrad": True}
    )


def test_calls_nest_in_lists_and_arguments():
    parsed = spec.parse(" SequentialLR([ConstantLR(0.5), StepLR(step_size=3)], milestones=[-5]) ")
    assert parsed == Call(
        "SequentialLR",
        ([Call("ConstantLR", (0.5,)), Call("StepLR", (), {"step_size": 3})],),
        {"milestones": [-5]},
    )


def test_a_module_stands_before_a_colon():
    assert spec.parse("my_pkg.sub : Lion(lr=1)") == Call("Lion", (), {"lr": 1}, "my_pkg.sub")
    assert spec.parse("A(x={'a': 1}, y='b:c')").kwargs == {"x": {"a": 1}, "y": "b:c"}


def test_a_module_may_be_followed_by_colons():
    assert spec.parse("a.b:C(x={'a': 1}, y='d:e')") == Call("C", (), {"x": {"a": 1}, "y": "d:e"}, "a.b")


def test_infinity_and_none_are_values():
    assert spec.parse("A(x=-1e999, y=None)").kwargs == {"x": -math.inf, "y": None}


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('false')",
        "Adam(lr=__import__('os').getpid())",
        "Adam(lr=a.b)",
        "Adam(lr=x)",
        "Adam(lr=[i for i in (1, 2)])",
        "Adam(lr=9**9**9)",
        "Adam(lr='a' * 9)",
        "Adam(lr=f'{1}')",
        "Adam(lr=lambda: 1)",
        "Adam(**{'lr': 1})",
        "Adam(*(1, 2))",
        "Adam(lr={**{}})",
        "Adam(lr={[]: 1})",
        "Adam(lr=1 if 1 else 2)",
        "Adam(lr=(y := 1))",
        "(Adam)(lr=1)(2)",
        "Adam(lr=1), SGD(lr=2)",
        "Adam(lr=1); SGD(lr=2)",
        "Adam(lr=" + "-" * 20000 + "1)",
        "Adam(lr=" + "9" * 20000 + ")",
        "A(" * 500 + ")" * 500,
        "Adam(lr=\x00)",
        "Adam(lr=1, lr=2)",
    ],
)
def test_nothing_but_calls_and_literals_is_read(text):
    with pytest.raises(SpecError):
        spec.parse(text)


def test_odd_strings_and_numbers_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert spec.parse(r"A(x='\d')").kwargs == {"x": r"\d"}
        with pytest.raises(SpecError):
            spec.parse("A(x=1if 1else 2)")


def test_arguments_are_names_with_values():
    assert spec.arguments("lr=1e-4, betas=(0.9, 0.99)") == {"lr": 1e-4, "betas": (0.9, 0.99)}
    assert spec.arguments("") == {}
    assert spec.arguments("lr=1 # )") == {"lr": 1}
    for text in ("1", "lr", "lr=1)(b=2", "lr=1) + _(b=2", "lr=x"):
        with pytest.raises(SpecError):
            spec.arguments(text)


def test_a_shown_value_is_quoted_and_short():
    assert spec.shown("a\nb") == r"'a\nb'"
    assert len(spec.shown("x" * 10**6)) == 120
