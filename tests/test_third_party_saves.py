"""What classes outside torch keep in other places than tensors in a dict: it comes back, or is refused."""

from __future__ import annotations

import math

import pytest
import torch

import forgery
from optplug import _bridge, ctypes_api
from optplug.alike import is_the_same
from optplug.ctypes_api import Error
from test_third_party_checkpoints import LAST, SAVED, resumed, run
from third_party_twins import Hosted, Plain, same

lib = ctypes_api.load()
INTEGERS, BYTES = torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _allowed():
    assert lib.opt_init(b"third_party=True") == 0
    yield
    assert lib.opt_init(b"third_party=False") == 0


@pytest.mark.parametrize(
    "name",
    [
        *("Rowed", "RowedInside", "Tying", "Learned", "Ordering", "Dundering", "Marking"),
        *("HoldsArray", "HoldsGenerator", "HoldsOrder", "Tooling", "Owning"),
        *("SeeingAnew", "SeeingParameter", "Dicing", "Defaulting", "Listing"),
    ],
)
def test_a_run_goes_on_bit_for_bit(name):
    ours, theirs = Hosted(name), Plain(name)
    run(ours, 0, SAVED)
    later = resumed(ours, name)
    run(theirs, 0, LAST)
    for host in (later, ours):
        run(host, SAVED, LAST)
        assert same(host.values, theirs.values)
    again = resumed(later, name)
    for host in (again, later):
        run(host, LAST, LAST + 3)
    assert same(again.values, later.values)


def test_groups_have_one_list_again():
    ours, theirs = (kind("Buffering", group={"lr": 0.02}) for kind in (Hosted, Plain))
    run(ours, 0, SAVED)
    later = resumed(ours, "Buffering", group={"lr": 0.02})
    run(theirs, 0, LAST)
    for host in (later, ours):
        run(host, SAVED, LAST)
        assert same(host.values, theirs.values)


def test_what_is_loaded_takes_the_place_of_what_is_here():
    ours, theirs = Hosted("Marking"), Plain("Marking")
    run(ours, 0, SAVED)
    content, values = ours.opt.save_memory(), [v.copy() for v in ours.values]
    fresh = Hosted("Marking").opt.save_memory()
    run(ours, SAVED, LAST)
    ours.opt.load_memory(content)
    for value, known in zip(ours.values, values, strict=True):
        value[...] = known
    run(ours, SAVED, LAST), run(theirs, 0, LAST)
    assert same(ours.values, theirs.values)
    with pytest.raises(Error):
        ours.opt.load_memory(fresh[:-1])
    ours.opt.load_memory(fresh)
    assert not any(vars(p) for p in _bridge.optimizer_of(ours.opt._handle).parameters.module)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Losing", r"shares memory with"),
        ("Graphing", r"state\[0\]\['last'\]\.grad_fn is a MulBackward0, which no file"),
        ("MarkingObjects", r"parameter 0\.thing is a Slotted, which no file"),
        ("MarkingState", r"state\[0\]\['before'\]\.mark is a int, which no file"),
        ("HoldsCell", r"thing is a function, which no file"),
        ("HoldsPartial", r"thing is a partial, which no file"),
        ("HoldsSlots", r"thing is a Slotted, which no file"),
        ("HoldsModule", r"thing is a BatchNorm1d, which no file"),
        ("KeyedByParameter", r"a key of thing is a Parameter, which no file"),
        ("HoldsGrad", r"thing\.grad is a Tensor, which no file"),
        ("HoldsNumpysGenerator", r"thing\[0\] is a Generator, which no file"),
        ("HoldsIterator", r"thing is a count, which no file"),
        ("ToolingForgetful", r"tool is a Forgetful, which no file"),
        ("ToolingCyclic", r"an object in it refers back to itself, which no file can restore"),
        ("ToolingSeeing", r"state\[0\]\['tool'\]\['values'\] is a Tensor, which no file"),
        ("Seeing", r"state\[0\]\['values'\] shares memory with parameter 0, and would no longer"),
        ("SeeingOwn", r"state\[0\]\['values'\] shares memory with parameter 0, and would no longer"),
        ("SeeingLate", r"values\[0\] shares memory with parameter 0, and would no longer"),
        ("SeeingArray", r"values\[0\] shares memory with parameter 0, and would no longer"),
    ],
)
def test_what_would_not_come_back_is_refused_by_name(name, words):
    ours, theirs = Hosted(name), Plain(name)
    run(ours, 0, SAVED)
    with pytest.raises(Error, match=f"opt_save cannot save {name}: .*{words}"):
        ours.opt.save_memory()
    run(ours, SAVED, LAST), run(theirs, 0, LAST)
    assert same(ours.values, theirs.values)


def test_two_functions_in_c_are_different_values():
    assert is_the_same(math.sin, math.sin)
    assert not is_the_same(math.sin, math.cos)


def test_an_object_of_another_class_is_refused():
    ours, other = Hosted("ToolingChosen"), Hosted("ToolingChosen", turns=True)
    run(ours, 0, SAVED)
    with pytest.raises(Error, match="tool is of class 'Tool', and here of Turning"):
        other.opt.load_memory(ours.opt.save_memory())


def as_kind(kind: str, of: object) -> dict[str, object]:
    return {"optplug kind": kind, "of": of, "requires_grad": True}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda own: own["of parameters"][0].update(add_=1), "a parameter has an attribute 'add_'"),
        (lambda own: own["of parameters"].insert(0, 1), "attributes of its parameters are malformed"),
        (lambda own: own.update(step=1), "its optimizer has an attribute 'step', which is a name of torch's"),
        (lambda own: own.update(direction=1), "attribute 'direction', which Marking defines itself"),
        (lambda own: own.update(defaults=1), "the defaults of its optimizer are malformed"),
        (lambda own: own.update(__class__=1), "its optimizer has an attribute '__class__'"),
        (lambda own: own.update(mark=as_kind("array", 3)), "mark is of no known kind"),
        (lambda own: own.update(mark=as_kind("parameter", INTEGERS)), "mark is of no known kind"),
        (lambda own: own.update(mark=as_kind("generator", BYTES)), "mark is not a generator's state"),
        (lambda own: own.update(mark=as_kind("ordered", [[[], 1]])), "mark is of no known kind"),
    ],
)
def test_forged_attributes_are_refused(change, words):
    ours, theirs = Hosted("Marking"), Plain("Marking")
    run(ours, 0, SAVED)
    content = forgery.read(ours.opt.save_memory())
    change(content["own"])
    with pytest.raises(Error, match=words):
        ours.opt.load_memory(forgery.forge(content))
    run(ours, SAVED, LAST), run(theirs, 0, LAST)
    assert same(ours.values, theirs.values)


def an_object(**attributes: object) -> dict[str, object]:
    return {"optplug kind": "object", "of": attributes}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["optimizer"]["state"][0].update(other=an_object()), "in the file, but not here"),
        (lambda c: c["optimizer"]["state"][0]["tool"].update(of=3), "in the file, but not here"),
        (lambda c: c["optimizer"]["state"][0]["tool"]["of"].update(turn=1), "has an attribute 'turn'"),
        (lambda c: c["optimizer"]["state"][0]["tool"]["of"].update(__class__=1), "attribute '__class__'"),
        (
            lambda c: c["optimizer"]["state"][0]["tool"]["of"].update(__array_interface__={}),
            "in the file, but not here",
        ),
        (lambda c: c["optimizer"]["state"][0]["tool"]["of"].update(seen=1), "rejects it"),
        (lambda c: c["own"].update(mark=an_object()), "in the file, but not here"),
    ],
)
def test_forged_objects_are_refused(change, words):
    ours, theirs = Hosted("Tooling"), Plain("Tooling")
    run(ours, 0, SAVED)
    content = forgery.read(ours.opt.save_memory())
    change(content)
    with pytest.raises(Error, match=words):
        ours.opt.load_memory(forgery.forge(content))
    run(ours, SAVED, LAST), run(theirs, 0, LAST)
    assert same(ours.values, theirs.values)
