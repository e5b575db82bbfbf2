"""Checkpoints of classes outside torch, whose own state_dict and load_state_dict are the judge."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch

from optplug import _bridge, checkpoint, ctypes_api
from optplug.ctypes_library import Error
from third_party_twins import Hosted, Plain, drawn, same

lib = ctypes_api.load()
LAST, SAVED = 8, 3  # steps, and those before the save
NAMES = [
    "Growing",
    "Naming",
    "Storing",
    *("Somebodys", "Dropping", "Contiguous", "Replacing", "Keeping", "Flat"),
    *("Counting", "Telling", "Forgetting", "Collecting", "Unpickling", "Wrapping"),
]


@pytest.fixture(autouse=True)
def _allowed():
    assert lib.opt_init(b"third_party=True") == 0
    yield
    assert lib.opt_init(b"third_party=False") == 0


def run(twin, first: int, last: int) -> None:
    for i in range(first, last):
        twin.fill(i)
        twin.opt.step()


def resumed(ours: Hosted, name: str, **arguments) -> Hosted:
    """Return another host that goes on from the first one's checkpoint and values."""
    content = ours.opt.save_memory()
    later = Hosted(name, ours.order, ours.dtype, **arguments)
    for value, known in zip(later.values, ours.values, strict=True):
        value[...] = known
    later.opt.load_memory(content)
    return later


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("group", [None, {"lr": 0.02}])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_goes_on_bit_for_bit(name, group, dtype):
    ours, theirs = (kind(name, "F", dtype, group) for kind in (Hosted, Plain))
    run(ours, 0, SAVED)
    later = resumed(ours, name, group=group)
    assert later.opt.get(0, "step") == SAVED
    run(theirs, 0, LAST)
    run(later, SAVED, LAST)
    assert same(later.values, theirs.values)
    run(ours, SAVED, LAST)  # the save has changed nothing
    assert same(ours.values, theirs.values)


def test_options_that_the_class_has_no_argument_for_come_back():
    groups = [{"use_sign": True}, {"use_sign": False, "rank": 3}]
    ours, theirs = Hosted("Choosing", groups=groups), Plain("Choosing", groups=groups)
    run(ours, 0, SAVED)
    later = resumed(ours, "Choosing", groups=[{"use_sign": False}, {"use_sign": True, "rank": 1}])
    run(later, SAVED, LAST), run(theirs, 0, LAST)
    assert same(later.values, theirs.values)


@pytest.mark.parametrize("name", ["Counting", "Telling"])
def test_a_load_and_its_trial_leave_the_state_as_it_was_saved(name):
    """Saved, loaded, saved: the same; an option that is set between steps counts no step either."""
    ours = Hosted(name)
    run(ours, 0, SAVED)
    later = resumed(ours, name)
    later.opt.set(-1, "lr=0.1")
    for host in (ours, later):
        built = _bridge.optimizer_of(host.opt._handle).run.built
        assert built.param_groups[0]["count"] == SAVED
        assert built.param_groups[0]["d"] == 0.5 * 1.25**SAVED
    contents = [checkpoint.read(io.BytesIO(h.opt.save_memory()))["optimizer"] for h in (ours, later)]
    assert contents[0].keys() == contents[1].keys()
    assert [c.get("scale") for c in contents] == [1.5**SAVED if name == "Telling" else None] * 2


def test_schedulers_averages_and_the_parameters_own_values_come_back():
    ours = Hosted("Counting")
    for text, call in (("AveragedModel()", ours.opt.average), ("ExponentialLR(0.5)", ours.opt.schedule)):
        call(text)
    ours.opt.checkpoint("parameters=True")
    for i in range(SAVED):
        ours.fill(i)
        ours.opt.step(), ours.opt.schedule_step()
    later = Hosted("Counting")
    later.opt.checkpoint("parameters=True")
    later.opt.load_memory(ours.opt.save_memory())
    for host in (ours, later):
        for i in range(SAVED, LAST):
            host.fill(i)
            host.opt.step(), host.opt.schedule_step()
    assert same(later.values, ours.values)
    assert later.opt.get(0, "lr") == 0.1 * 0.5**LAST
    assert same(*([h.opt.average_get(f"w{i}") for i in range(2)] for h in (ours, later)))


def test_what_cannot_come_back_is_refused_by_the_save(tmp_path):
    ours, theirs = Hosted("LateTooling"), Plain("LateTooling")
    run(ours, 0, SAVED)
    (tmp_path / "run.pt").write_bytes(b"the file before")
    with pytest.raises(
        Error, match=r"cannot save LateTooling: state\[0\]\['late'\] is a Tool, which no file"
    ) as e:
        ours.opt.save(tmp_path / "run.pt")
    assert e.value.status == ctypes_api.statuses()["OPT_ESTATE"]
    assert (tmp_path / "run.pt").read_bytes() == b"the file before"
    run(ours, SAVED, LAST), run(theirs, 0, LAST)
    assert same(ours.values, theirs.values)


def plain_file(tmp_path, state) -> str:
    torch.save(state, tmp_path / "plain.pt")
    return str(tmp_path / "plain.pt")


def test_a_file_of_pytorchs_goes_on_as_its_class_goes_on_there(tmp_path):
    before = Plain("Counting")
    run(before, 0, SAVED)
    path = plain_file(tmp_path, before.opt.state_dict())
    ours, theirs = Hosted("Counting"), Plain("Counting")
    theirs.opt.load_state_dict(torch.load(path))
    ours.opt.load(path)
    run(ours, SAVED, LAST), run(theirs, SAVED, LAST)
    assert same(ours.values, theirs.values)


class Trap:
    def __reduce__(self):
        return open, ("trapped", "w")


@pytest.mark.parametrize("given", [pickle.dumps(Trap()), Trap()])
def test_a_class_that_unpickles_gets_nothing_of_a_file_to_unpickle(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = Plain("Unpickling")
    run(theirs, 0, SAVED)
    path = plain_file(tmp_path, {**theirs.opt.state_dict(), "schedule": given})
    ours = Hosted("Unpickling")
    run(ours, 0, SAVED)
    if isinstance(given, bytes):
        with pytest.raises(Error, match=r"schedule is b'"):
            ours.opt.load(path)
    else:
        ours.opt.load(path)  # what is no value stays as it is here
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("name", ["Counting", "Replacing", "Telling"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["param_groups"][0].update(lr=-1.0), "lr must not be negative"),
        (lambda s: s["param_groups"][0].update(lr=float("nan")), "lr must not be negative"),
        (
            lambda s: s["state"].update({0: {"before": torch.ones(2, 2), "last": torch.ones(2, 2)}}),
            "rejects it",
        ),
        (lambda s: s["param_groups"].append(s["param_groups"][0]), "2 parameter groups"),
        (lambda s: s.pop("state"), "not a checkpoint"),
        (lambda s: s["state"].update({0: {"before": torch.ones(()).expand(5, 3)}}), "larger than its memory"),
    ],
)
def test_a_load_that_fails_changes_nothing(name, change, words, tmp_path):
    ours, theirs = Hosted(name), Plain(name)
    run(ours, 0, SAVED), run(theirs, 0, SAVED)
    state = theirs.opt.state_dict()
    change(state)
    values = [v.copy() for v in ours.values]
    with pytest.raises(Error, match=words):
        ours.opt.load(plain_file(tmp_path, state))
    assert same(ours.values, values)
    run(ours, SAVED, LAST)
    theirs = Plain(name)
    run(theirs, 0, LAST)
    assert same(ours.values, theirs.values)


def test_a_load_that_fails_puts_back_what_the_class_has_loaded_into_the_parameters():
    ours, other = Hosted("Storing"), Hosted("Storing")
    run(ours, 0, SAVED)
    content = other.opt.save_memory()
    ours.opt.average("AveragedModel()")
    values = [v.copy() for v in ours.values]
    with pytest.raises(Error, match="this optimizer has 'AveragedModel"):
        ours.opt.load_memory(content)
    assert same(ours.values, values)


def test_a_module_that_has_changed_is_refused_by_the_save():
    ours = Hosted("Learning")
    assert ours.opt.save_memory()
    run(ours, 0, SAVED)
    with pytest.raises(Error, match="module is a BatchNorm1d, which no file can restore"):
        ours.opt.save_memory()


def test_a_queue_whose_length_would_be_forgotten_is_refused_by_the_save():
    ours = Hosted("Queueing")
    run(ours, 0, SAVED)
    with pytest.raises(Error, match=r"state\[0\]\['queues'\]\[0\] differs after its own load_state_dict"):
        ours.opt.save_memory()


def test_a_class_with_memory_of_its_own_keeps_it_where_a_load_fails(tmp_path):
    ours, theirs = Hosted("Flat"), Plain("Flat")
    run(ours, 0, SAVED), run(theirs, 0, SAVED)
    state = theirs.opt.state_dict()
    state["param_groups"][0]["lr"] = -1.0
    with pytest.raises(Error, match="lr must not be negative"):
        ours.opt.load(plain_file(tmp_path, state))
    state["param_groups"][0]["lr"] = 0.1
    run(ours, SAVED, LAST), run(theirs, SAVED, LAST)
    assert same(ours.values, theirs.values)


def test_saves_and_loads_draw_no_random_numbers():
    ours = Hosted("Drawing")
    run(ours, 0, SAVED)
    states = torch.get_rng_state(), np.random.get_state()[1]
    later = resumed(ours, "Drawing")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    run(ours, SAVED, LAST), run(later, SAVED, LAST)
    assert same(ours.values, later.values)


def test_a_constructor_that_writes_parameters_does_so_once():
    """At the first step, call or schedule: no question, save or load changes the arrays."""
    ours, theirs = Hosted("Starting"), Plain("Starting")
    before = drawn(0)
    ours.opt.get(0, "lr")
    content = ours.opt.save_memory()
    ours.opt.describe()
    assert same(ours.values, before)
    ours.opt.load_memory(content)
    assert same(ours.values, before)
    ours, theirs = Hosted("Starting"), Plain("Starting")
    ours.opt.get(0, "lr")
    ours.opt.schedule("ConstantLR(factor=1.0)")  # which is when it is built
    assert same(ours.values, theirs.values)
    run(ours, 0, SAVED)
    later = resumed(ours, "Starting")
    assert same(later.values, ours.values)
    run(theirs, 0, LAST)
    for host in (ours, later):
        run(host, SAVED, LAST)
        assert same(host.values, theirs.values)


def test_a_first_step_that_fails_undoes_what_the_constructor_has_written():
    ours, theirs = Hosted("Starting"), Plain("Starting")
    with pytest.raises(ValueError, match="a host's reason"):
        ours.opt.step_closure(failing)
    assert same(ours.values, drawn(0))
    ours.opt.schedule("ConstantLR(factor=1.0)")
    assert same(ours.values, theirs.values)
    run(ours, 0, LAST), run(theirs, 0, LAST)
    assert same(ours.values, theirs.values)


def failing() -> float:
    raise ValueError("a host's reason")
