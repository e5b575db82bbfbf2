"""Classes outside torch whose steps go by something that changes once in a while: they step as they are."""

from __future__ import annotations

import pytest
import torch

import changeable
from planned_twins import direct_plans  # noqa: F401 (pytest finds the fixture here)
from test_third_party_records import Twins, _allowed, numbers_of  # noqa: F401 (a fixture, too)

pytestmark = pytest.mark.usefixtures("direct_plans")

#: Of which there are records until the change, or with a guard for it.
LATE = ["ByAttribute", "ByState", "ByTensor", "ByOption", "Losing", "ByKind", "Large", "Growing"]
#: Of which there is none at all, and why.
NEVER = {
    "ByText": "a text has a number in it",
    "ByAttributeOfParameter": "a parameter has attributes",
    "BySlots": "it holds a Slots, which may change unseen",
    "ByArray": "it holds a ndarray, which may change unseen",
    "OwnDice": "it holds a Random, which may change unseen",
    "ByCell": "it holds a function, which may change unseen",
}


class Changing(Twins):
    """Twins of a class of `changeable`."""

    module = changeable


@pytest.mark.parametrize("name", LATE)
def test_a_record_ends_with_what_it_was_made_of(name):
    twins = Changing(name)
    twins.step(9)
    assert twins.is_recorded(), twins.described()
    twins.step(50)
    twins.opt.get(0, "lr")
    assert twins.numbers() == numbers_of(twins.plain)


@pytest.mark.parametrize("name", NEVER)
def test_what_may_change_unseen_has_no_record(name):
    twins = Changing(name)
    twins.step(60)
    assert NEVER[name] in twins.described()


def test_a_step_with_a_closure_may_change_the_others():
    twins = Changing("ByClosures")
    for i in range(3):
        twins.step(15)
        assert i or twins.is_recorded(), twins.described()
        twins.plain.step(lambda: torch.zeros(()))
        twins.opt.step_closure(lambda: 0.0)
        twins.compare()
    assert not twins.is_recorded()


def test_a_change_is_seen_after_a_closure_too():
    """The class steps memory of its own from then on."""
    twins = Changing("ByAttribute")
    twins.step(5)
    twins.plain.step(lambda: torch.zeros(()))
    twins.opt.step_closure(lambda: 0.0)
    twins.step(40)
