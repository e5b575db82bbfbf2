"""Checkpoints that are whole and yet wrong, by accident or on purpose: refused, and nothing has changed."""

from __future__ import annotations

import argparse
import copy
import ctypes
import hashlib
import io
import itertools
import math
import os
import pickle
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from optplug import checkpoint, ctypes_api
from optplug.errors import StateError
from optplug.optimizer import HostedOptimizer
from test_checkpoints import AVERAGES, HERE, PLAIN, SPECS, Run, go_plainly, in_memory, plain

lib = ctypes_api.load()
HANGS = 300  # seconds


class Calls:
    """Pickled, it is a call of a function."""

    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def forge(content: object) -> bytes:
    file = io.BytesIO()
    checkpoint.write(file, content)
    return file.getvalue()


def forge_again(content: bytes, change: Callable[[str, bytes], list[tuple[str, bytes, int]]]) -> bytes:
    """Return a checkpoint with other files in its archive: those that `change` makes of each."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.infolist():
            for name, data, kind in change(entry.filename, old.read(entry)):
                new.writestr(name, data, compress_type=kind)
    return seal(file.getvalue())


def seal(data: bytes) -> bytes:
    return data + checkpoint._SEAL + hashlib.sha256(data).digest()


def read(content: bytes) -> dict:
    return torch.load(io.BytesIO(content), weights_only=True)


class Victim:
    """A run, with a twin that loads nothing; both must stay the same."""

    def __init__(
        self,
        spec: str = "Adam()",
        schedule: str = "",
        average: str = "",
        steps: int = 3,
        with_parameters=False,
        **kind,
    ):
        self.run, self.twin = (Run(spec, schedule, average, **kind) for _ in range(2))
        for run in (self.run, self.twin):
            assert lib.opt_checkpoint(run.opt, f"parameters={with_parameters}".encode()) == 0
            run.go(steps)
        self.saved = in_memory(self.run)

    def refuses(self, content: bytes, words: str = "") -> None:
        before = self.run.bits()
        assert lib.opt_load_memory(self.run.opt, content, len(content)) == -1, words
        message = lib.opt_error().decode()
        assert message.startswith("buffer: "), message
        assert words in message
        assert "\n" not in message
        assert len(message) < 1000
        assert self.run.bits() == before
        assert in_memory(self.run) == self.saved

    def refuses_change(self, change: Callable[[dict], object], words: str = "") -> None:
        content = read(self.saved)
        change(content)
        self.refuses(forge(content), words)

    def goes_on(self) -> None:
        for run in (self.run, self.twin):
            run.go(3)
        assert self.run.bits() == self.twin.bits()
        self.run.free()
        self.twin.free()


@contextmanager
def option(text: str):
    assert lib.opt_init(f"{text}=True".encode()) == 0, lib.opt_error()
    try:
        yield
    finally:
        assert lib.opt_init(f"{text}=False".encode()) == 0, lib.opt_error()


def is_plain(value: object) -> bool:
    is_tensor = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_nested
    return is_tensor and not (value.is_meta or value.is_neg() or value.is_conj() or value.is_quantized)


def state_of(content: dict) -> dict:
    return content["optimizer"]["state"]


def group_of(content: dict) -> dict:
    return content["optimizer"]["param_groups"][0]


# ---- tensors ----

SHAPES = {
    "first row": lambda t: t[:1].clone(),
    "first column": lambda t: t[..., :1].clone(),
    "ones": lambda t: t.flatten()[:1].reshape([1] * t.dim()).clone(),
    "empty": lambda t: t[:0].clone(),
    "flat": lambda t: t.flatten(),
    "a number": lambda _: torch.zeros(()),
    "a row more": lambda t: torch.cat([t, t[:1]]),
    "transposed": lambda t: t.mT.clone() if t.dim() > 1 else torch.cat([t, t]),
    "a dimension more": lambda t: t.unsqueeze(0),
}
KINDS = {
    "complex": lambda t: t.to(torch.complex64),
    "double": lambda t: t.double(),
    "half": lambda t: t.half(),
    "integer": lambda t: t.int(),
    "bool": lambda t: t.bool(),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "negative": lambda t: torch.complex(t, t).conj().imag,
    "conjugate": lambda t: torch.complex(t, t).conj(),
    "nested": lambda _: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)]),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "text": lambda _: "x",
    "a number of Python's": lambda _: 0.5,
    "none": lambda _: None,
    "a list": lambda t: [t],
    "a dict": lambda t: {"x": t},
    "a class": lambda _: OrderedDict,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("spec", SPECS)
def test_a_state_that_the_class_does_not_make_for_this_parameter_is_refused(spec):
    victim = Victim(spec)
    content = read(victim.saved)
    tensors = [
        (key, name)
        for key, state in state_of(content).items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.dim()
    ]
    changes = [*SHAPES.values(), *KINDS.values()] if tensors else []
    for (key, name), change in itertools.product(tensors[:4], changes):
        old = state_of(content)[key][name]
        try:
            new = change(old)
        except NotImplementedError:
            continue
        if is_plain(new) and (new.shape, new.dtype) == (old.shape, old.dtype):
            continue
        state_of(content)[key][name] = new
        victim.refuses(forge(content), "parameter")
        state_of(content)[key][name] = old
    for state in state_of(content).values():
        for name in list(state):
            value = state.pop(name)
            if name not in ("al", "momentum_buffer"):  # which a step makes where it is missing
                victim.refuses(forge(content), "has ")
            state[name] = value
        state["other"] = torch.zeros(2)
        victim.refuses(forge(content), "has the state")
        del state["other"]
    victim.goes_on()


def test_a_list_of_lbfgs_that_is_another_is_refused():
    victim = Victim("LBFGS(lr=0.1, max_iter=3, history_size=4)")
    for key in ("old_dirs", "old_stps", "ro"):
        for change in (*KINDS.values(), lambda t: t.expand(7) if t.dim() else t.expand(2), lambda t: t[:0]):
            content = read(victim.saved)
            values = state_of(content)[0][key]
            try:
                values[0] = change(values[0])
            except (IndexError, NotImplementedError, RuntimeError):
                continue
            if key != "ro" or not isinstance(values[0], float):
                victim.refuses(forge(content), key)
        victim.refuses_change(lambda c, key=key: state_of(c)[0][key].pop(), "different lengths")
    for key in ("n_iter", "func_evals"):
        for value in (-1, 0.5, "x", 1 << 60, None):
            victim.refuses_change(lambda c, key=key, value=value: state_of(c)[0].update({key: value}), key)
    victim.refuses_change(lambda c: state_of(c)[0].update(al=[]), "al must have")
    victim.refuses_change(lambda c: state_of(c).update({1: state_of(c)[0]}), "which the first parameter has")
    victim.goes_on()


def bind_nd(shape: tuple[int, ...]) -> tuple[int, torch.Tensor]:
    opt = lib.opt_create(b"Adam(lr=0.1)")
    data, grad = torch.zeros(shape), torch.ones(shape)
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    pointers = data.data_ptr(), None, grad.data_ptr(), None
    assert lib.opt_bind_nd(opt, b"w", b"float32", b"cpu", len(shape), sizes, *pointers) == 0, lib.opt_error()
    data.grad = grad  # keeps it
    return opt, data


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ((6, 5, 1, 1), (6, 5, 3, 3)),
        ((4, 4, 1), (4, 4, 500)),
        ((2, 3, 4, 1, 6), (2, 3, 4, 5, 6)),
        ((1,) * 14, (1,) * 13 + (300,)),
        ((1,) * 14, (1,) * 12 + (3, 1)),
    ],
)
def test_an_honest_file_of_a_parameter_of_other_sizes_is_refused(there, here, tmp_path):
    p = torch.nn.Parameter(torch.zeros(there))
    p.grad = torch.ones_like(p)
    other = torch.optim.Adam([p])
    other.step()
    torch.save(other.state_dict(), tmp_path / "c.pt")
    opt, data = bind_nd(here)
    assert lib.opt_load(opt, str(tmp_path / "c.pt").encode()) == -1
    assert f"has shape {there}, and must have {here}".encode() in lib.opt_error()
    for _ in range(3):
        assert lib.opt_step(opt) == 0
    assert torch.allclose(data.detach(), torch.full(here, -0.3))
    assert lib.opt_free(opt) == 0


def test_a_state_of_many_dimensions_goes_on(tmp_path):
    shape = (1, 2) * 8
    opt, data = bind_nd(shape)
    twin, expected = bind_nd(shape)
    for _ in range(2):
        assert lib.opt_step(opt) == lib.opt_step(twin) == 0
    path = str(tmp_path / "c.pt").encode()
    assert lib.opt_save(opt, path) == 0
    assert lib.opt_load(opt, path) == 0, lib.opt_error()
    assert lib.opt_step(opt) == lib.opt_step(twin) == 0
    assert torch.equal(data.detach(), expected.detach())
    assert lib.opt_free(opt) == lib.opt_free(twin) == 0


@pytest.mark.parametrize("spec", ["Adam()", "SGD(momentum=0.9)", "Adagrad()", "AdamW(amsgrad=True)"])
def test_no_fused_step_runs_on_a_state_that_does_not_fit(spec):
    optimizer = HostedOptimizer(spec)
    data, grad = torch.zeros(4, 3), torch.ones(4, 3)
    optimizer.bind("w", data, grad)
    for _ in range(3):
        optimizer.step()
    (state,) = optimizer.run.built.state.values()
    for key, old in list(state.items()):
        for new in (torch.zeros(4, 1), torch.zeros(12), old.double(), torch.zeros(3, 4).mT, old.to("meta")):
            before = data.clone()
            state[key] = new
            optimizer.planner.forget()  # as a load does
            with pytest.raises(StateError, match=f"parameter 'w': its state {key} does not fit"):
                optimizer.step()
            with pytest.raises(StateError, match="does not fit"):
                optimizer.step_closure(lambda: 0.0)
            assert torch.equal(data, before)
        state[key] = old
    optimizer.step()


# ---- numbers ----

OPTIONS = {
    "lr": ["0.1", None, math.nan, math.inf, -1.0, 10**400, 1j, [0.1], True, torch.zeros(5), {}],
    "betas": [
        "ab",
        (0.9,),
        (0.9, 0.99, 0.9),
        (5.0, -3.0),
        (True, 0.9),
        torch.zeros(2),
        None,
        0.9,
        ("x", 0.9),
    ],
    "eps": ["x", None, -1.0, math.nan, torch.zeros(()), 10**400],
    "weight_decay": [math.nan, -1.0, (0.1,), "0.1"],
    "amsgrad": ["yes", 1, None],
    "maximize": ["no", 0, torch.ones(())],
    "foreach": ["x", 1],
    "fused": [[True], 0.0],
    "initial_lr": ["x", None, -1.0],
    "decoupled_weight_decay": ["x"],
    "params": ["ab", [0, 0], [[0]], None, 3],
    "param_names": [["w", "w"], {"w": 1}, [1], "w", [["w"]]],
    "other": [OrderedDict, Calls(os.system, "touch bomb")],
}


@pytest.mark.parametrize("steps", [0, 3])
def test_groups_are_checked_with_state_and_without(steps):
    victim = Victim("Adam()", steps=steps)
    for key, values in OPTIONS.items():
        for value in values:
            victim.refuses_change(lambda c, key=key, value=value: group_of(c).update({key: value}), "group 0")
    victim.goes_on()


def test_what_else_is_in_a_group_is_left_out():
    victim = Victim("Adam()")
    content = read(victim.saved)
    group_of(content).update(other={"a": [1, 2, {"b": "\x1b[31m%n"}]}, more=3)
    content = forge(content)
    assert lib.opt_load_memory(victim.run.opt, content, len(content)) == 0, lib.opt_error()
    assert str(read(in_memory(victim.run))) == str(read(victim.saved))
    victim.goes_on()


COUNTS = [-5, -1.0, math.nan, math.inf, 1e38, 0.5, 1 << 60, "3", {}, [torch.zeros(())], None, True]
TENSORS = [torch.tensor(v) for v in (-5.0, math.nan, math.inf, 1e38, 0.5, 1 << 60, True, 1j)]


@pytest.mark.parametrize("spec", ["Adam()", "RMSprop()", "SparseAdam()"])
def test_a_count_that_is_none_is_refused(spec):
    victim = Victim(spec, "StepLR", AVERAGES[1])
    for value in (*COUNTS, *TENSORS, torch.zeros(3), torch.zeros(1), torch.zeros((), device="meta")):
        victim.refuses_change(lambda c, value=value: state_of(c)[0].update(step=value), "step")
    for value in COUNTS:
        victim.refuses_change(lambda c, value=value: c["average"].update(n_averaged=value), "number of steps")
        victim.refuses_change(
            lambda c, value=value: c["schedulers"][0]["state"].update(last_epoch=value), "last_epoch"
        )
    for value in ("x", None, [], [None, None], ["x", "y"], [1.0, 1.0, 1.0], torch.ones(2)):
        victim.refuses_change(
            lambda c, value=value: c["schedulers"][0]["state"].update(base_lrs=value), "base_lrs"
        )
    victim.goes_on()


def test_a_word_for_or_against_steps_is_checked():
    victim = Victim("Adam()")
    victim.refuses_change(lambda c: c["optplug"].update(stepped="no"), "stepped is 'no'")
    victim.refuses_change(lambda c: c["optplug"].update(stepped=torch.zeros(3)), "stepped is a tensor")
    victim.refuses_change(lambda c: c["optplug"].update(stepped=False), "before the first step")
    victim.refuses_change(lambda c: state_of(c).clear(), "has no state, after steps")
    victim.refuses_change(lambda c: c["optplug"].update(format=10**30), "it is of format")
    for key in ("optplug", "optimizer", "schedulers", "average"):
        for value in (5, "x", {}, {"x": 1}, [5]):
            victim.refuses_change(lambda c, key=key, value=value: c.update({key: value}), "it ")
    for key, value in itertools.product(("state", "param_groups"), (None, "ab", 3, [], {}, [3], {0: 3})):
        victim.refuses_change(lambda c, key=key, value=value: c["optimizer"].update({key: value}))
    victim.goes_on()


# ---- nothing has changed ----

BAD = [torch.zeros(3, 2, device="meta"), torch.zeros(3, 2).to_sparse(), torch.zeros(3, 1), "x", OrderedDict]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("value", BAD, ids=lambda v: str(v)[:20])
def test_parameters_averages_and_masters_are_checked_before_the_first_is_written(value):
    victim = Victim("Adam()", average=AVERAGES[1], with_parameters=True)
    victim.refuses_change(lambda c: c["parameters"].update(w=torch.full((4, 3), 777.0), v=value), "'v'")
    victim.refuses_change(
        lambda c: c["average"]["values"].update(w=torch.full((4, 3), 777.0), v=value), "'v'"
    )
    victim.goes_on()
    with option("master_weights"):
        victim = Victim("SGD(lr=0.001)", dtype=torch.bfloat16)
        victim.refuses_change(lambda c: c["masters"].update(w=torch.full((4, 3), 777.0), v=value), "'v'")
        victim.refuses_change(lambda c: c["masters"].pop("v"), "'v'")
        victim.refuses_change(lambda c: c.update(masters=value), "it ")
        victim.goes_on()


def test_what_is_wrong_in_the_last_part_leaves_the_first_as_it_was():
    victim = Victim("Adam()", "StepLR", AVERAGES[1], with_parameters=True)

    def change(content: dict) -> None:
        content["parameters"]["w"] += 1
        content["average"]["values"]["w"] += 1
        state_of(content)[0]["exp_avg"] += 1
        group_of(content)["lr"] = 0.5
        content["schedulers"][0]["state"]["last_epoch"] = 77

    for wrong in (
        lambda c: c["parameters"].pop("v"),
        lambda c: c["average"]["values"].pop("v"),
        lambda c: c["average"].update(n_averaged="x"),
        lambda c: state_of(c)[1].update(exp_avg_sq=torch.zeros(2)),
        lambda c: c["schedulers"][0]["state"].pop("base_lrs"),
    ):
        victim.refuses_change(lambda c, wrong=wrong: (change(c), wrong(c)))
    victim.goes_on()


# ---- archives ----


def laugh(depth: int) -> tuple:
    shared: tuple = ("ha",) * 2
    for _ in range(depth):
        shared = shared, shared
    return shared


def nest(depth: int) -> list:
    result: list = []
    for _ in range(depth):
        result = [result]
    return result


PLACES: dict[str, Callable[[dict, object], object]] = {
    "beside": lambda c, x: c.update(other=x),
    "group": lambda c, x: group_of(c).update(other=x),
    "lr": lambda c, x: group_of(c).update(lr=x),
    "betas": lambda c, x: group_of(c).update(betas=x),
    "names": lambda c, x: group_of(c).update(param_names=[x]),
    "params": lambda c, x: group_of(c).update(params=[x]),
    "state": lambda c, x: state_of(c)[0].update(exp_avg=x),
    "class": lambda c, x: c["optplug"].update({"class": x}),
    "format": lambda c, x: c["optplug"].update(format=x),
    "forms": lambda c, x: c["optplug"]["parameters"].update(w=x),
    "spec": lambda c, x: c.update(schedulers=[{"spec": x, "state": {}}]),
    "average": lambda c, x: c.update(average={"spec": x, "n_averaged": 1, "values": {}}),
}


def every_place(value: object) -> None:
    """Load it, from a process of its own, in every place of a file."""
    victim = Victim("Adam()")
    for place, put in PLACES.items():
        if isinstance(value, tuple | list) or place not in ("beside", "group"):
            victim.refuses_change(lambda c, put=put: put(c, value))
    victim.goes_on()


@pytest.mark.parametrize(
    "value",
    [
        "laugh(40)",
        "[laugh(40)] * 2",
        "nest(100)",
        "[nest(40)] * 3 + [nest(100)]",
        "1 << 2000",
        "{1: laugh(30)}",
    ],
)
def test_what_is_shared_or_nested_deep_is_refused_at_once(value):
    code = f"from test_forged import *; every_place({value})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=HERE, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr


STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
ARCHIVES: dict[str, Callable[[str, bytes], list[tuple[str, bytes, int]]]] = {
    "compressed": lambda n, x: [(n, x, DEFLATED)],
    "one record compressed": lambda n, x: [(n, x, DEFLATED if n.endswith("/data/1") else STORED)],
    "short record": lambda n, x: [(n, x[:8] if "/data/" in n else x, STORED)],
    "empty record": lambda n, x: [(n, b"" if "/data/" in n else x, STORED)],
    "long record": lambda n, x: [(n, x + b"\0" * 10**6 if "/data/" in n else x, STORED)],
    "no records": lambda n, x: [] if "/data/" in n else [(n, x, STORED)],
    "other byte order": lambda n, x: [(n, b"big" if n.endswith("byteorder") else x, STORED)],
    "no byte order": lambda n, x: [(n, b"xyz" if n.endswith("byteorder") else x, STORED)],
    "two pickles": lambda n, x: [(n, x, STORED), *[("x/data.pkl", x, STORED)] * n.endswith(".pkl")],
    "no pickle": lambda n, x: [] if n.endswith("data.pkl") else [(n, x, STORED)],
}
TEXT = b"X\1\0\0\0a"
PICKLES = {
    "nothing": b"",
    "no end": b"\x80\x02}",
    "end alone": b"\x80\x02.",
    "unknown operation": b"\x80\x02\xff.",
    "memory of its own": b"\x80\x02}r\xff\xff\xff\x7fj\xff\xff\xff\x7f.",
    "endless text": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "long number": b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".",
    "items of text": b"\x80\x02" + TEXT * 3 + b"s.",
    "building a dict": b"\x80\x02}}b.",
    "too few": b"\x80\x02\x87.",
    "no mark": b"\x80\x02u.",
    "itself": b"\x80\x02}q\0X\5\0\0\0stateh\0sX\x0c\0\0\0param_groupsh\0s.",
    "deep lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 500_000 + b".",
    "a deep tuple for a key": b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.",
    "a shared tuple for a key": b"\x80\x02})" + b"2\x86".replace(b"2", b"q\0h\0") * 60 + b"Ns.",
    "another protocol": b"\x80\x04\x95\x02\0\0\0\0\0\0\0}.",
    "a huge array of bytes": b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R.",
}

GREEDY = {
    "keys of one hash": (
        b"}("
        + b"".join(b"\x8a\x09" + (i * ((1 << 61) - 1)).to_bytes(9, "little") + b"N" for i in range(1, 99))
        + b"u.",
        "other keys",
    ),
    "a long key many times": (b"}(" + TEXT + b"(" + b"N" * 99 + b"tq\0" + b"h\0N" * 99 + b"u.", "other keys"),
    "a list copied many times": (
        b"](" + b"N" * 999 + b"e\x85q\0ctorch\nSize\nq\1(" + b"h\1h\0R" * 99 + b"t.",
        "many times",
    ),
    "a dict copied many times": (
        b"](" + b"NN\x86" * 999 + b"e\x85q\0ccollections\nOrderedDict\nq\1(" + b"h\1h\0R" * 99 + b"t.",
        "many times",
    ),
    "a text copied many times": (
        b"X\xe7\3\0\0" + b"a" * 999 + b"\x85q\0c_codecs\nencode\nq\1(" + b"h\1h\0R" * 99 + b"t.",
        "many times",
    ),
}


def test_what_takes_much_more_time_or_memory_than_it_is_long_is_refused():
    victim = Victim("Adam()")
    for body, words in GREEDY.values():

        def change(n: str, x: bytes, body: bytes = body) -> list[tuple[str, bytes, int]]:
            return [(n, b"\x80\x02" + body if n.endswith("data.pkl") else x, STORED)]

        victim.refuses(forge_again(victim.saved, change), words)
    victim.goes_on()


def test_archives_that_torch_does_not_write_are_refused():
    victim = Victim("Adam()")
    for change in ARCHIVES.values():
        victim.refuses(forge_again(victim.saved, change), "it ")
    with pytest.warns(UserWarning, match="Duplicate name"):
        victim.refuses(forge_again(victim.saved, lambda n, x: [(n, x, STORED)] * 2), "twice")
    for body in PICKLES.values():

        def change(n: str, x: bytes, body: bytes = body) -> list[tuple[str, bytes, int]]:
            return [(n, body if n.endswith("data.pkl") else x, STORED)]

        victim.refuses(forge_again(victim.saved, change), "it ")
    victim.goes_on()


def test_tensors_that_claim_more_than_their_memory_are_refused():
    victim = Victim("Adam()")
    storage = torch.zeros(12)._typed_storage()
    rebuild, nothing = torch._utils._rebuild_tensor_v2, OrderedDict()
    good = (0, (4, 3), (3, 1))
    for offset, shape, strides in (
        (0, (10**12,), (1,)),
        (0, (2**62, 4), (4, 1)),
        (0, (4, 3), (-3, -1)),
        (0, (4, 3), (2**61, 2**61)),
        (0, (-4, 3), (3, 1)),
        (0, (4, 3), (3, 1, 1)),
        (-1, *good[1:]),
        (1, *good[1:]),
        (10**12, *good[1:]),
        ("x", *good[1:]),
        (0.0, *good[1:]),
        (0, (1,) * 65, (1,) * 65),
    ):
        bad = Calls(rebuild, storage, offset, shape, strides, False, nothing)
        victim.refuses_change(lambda c, bad=bad: state_of(c)[0].update(exp_avg=bad), "it is damaged")
    for function in (
        Calls(rebuild, storage, *good, False, nothing, {"neg": True}),
        Calls(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (4, 3), (3, 1), False),
        Calls(bytearray, 10**11),
        Calls(os.system, "touch bomb"),
        Calls(eval, "1"),
        Calls(Counter, [1]),
    ):
        victim.refuses_change(lambda c, f=function: state_of(c)[0].update(exp_avg=f))
    victim.goes_on()


def test_tensors_that_share_memory_get_some_of_their_own():
    victim = Victim("Adam()")
    run, content = Run("Adam()", values=victim.run.values), read(victim.saved)
    shared = torch.arange(13.0)
    state = state_of(content)
    state[0].update(exp_avg=shared[:12].view(4, 3), exp_avg_sq=shared[1:].view(4, 3))
    state[1].update(exp_avg=torch.tensor(0.5).expand(3, 2), exp_avg_sq=shared[:6].view(2, 3).mT)
    values = {
        key: {n: v.clone(memory_format=torch.contiguous_format) for n, v in s.items()}
        for key, s in state.items()
    }
    content = forge(content)
    assert lib.opt_load_memory(run.opt, content, len(content)) == 0, lib.opt_error()
    found = state_of(read(in_memory(run)))
    for key, name in itertools.product(values, ("exp_avg", "exp_avg_sq")):
        assert torch.equal(found[key][name], values[key][name])
    plain_, parameters = plain(run)
    for group in plain_.param_groups:
        group["fused"] = True
    for key, p in enumerate(parameters.values()):
        plain_.state[p] = values[key]
    go_plainly(plain_, parameters, Run("Adam()"))
    run.go(1)
    assert run.bits() == [parameters[n].tolist() for n in sorted(parameters)]


def test_a_pipe_and_a_folder_are_no_files(tmp_path):
    victim = Victim("Adam()")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none", "/dev/zero"):
        assert lib.opt_load(victim.run.opt, str(path).encode()) == -8
        assert str(path).encode() in lib.opt_error()
    victim.goes_on()


# ---- files that PyTorch takes ----

STEPS = {
    "int": int,
    "float": float,
    "float64": lambda t: t.double(),
    "float32": lambda t: torch.as_tensor(float(t)),
    "int64": lambda t: torch.tensor(int(t)),
}


def loads(spec: str, content: object, path, **kind) -> Run:
    torch.save(content, path, **kind)
    run = Run(spec)
    assert lib.opt_load(run.opt, str(path).encode()) == 0, lib.opt_error()
    return run


def resumed(spec: str, made: torch.optim.Optimizer, parameters: dict, content: object, path, **kind) -> None:
    """Check that a run goes on from a file as PyTorch's own optimizer does."""
    run = loads(spec, content, path, **kind)
    for n, p in parameters.items():
        run.values[n].copy_(p.detach())
    shadow = Run(spec)
    for _ in range(3):
        go_plainly(made, parameters, shadow)
    run.go(3)
    assert {n: p.tolist() for n, p in run.values.items()} == {n: p.tolist() for n, p in parameters.items()}
    run.free()
    shadow.free()


def stepped(spec: str) -> tuple[torch.optim.Optimizer, dict[str, torch.nn.Parameter]]:
    made, parameters = plain(Run(spec))
    if "fused" in made.defaults and "f" not in spec.partition("(")[2]:
        for group in made.param_groups:  # what optplug chooses
            group["fused"] = True
    shadow = Run(spec)
    for _ in range(2):
        go_plainly(made, parameters, shadow)
    shadow.free()
    return made, parameters


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("spec", PLAIN)
def test_a_count_of_steps_may_be_of_any_kind(spec, step, tmp_path):
    made, parameters = stepped(spec)
    state = copy.deepcopy(made.state_dict())
    for entries in state["state"].values():
        if "step" in entries:
            entries["step"] = STEPS[step](entries["step"].clone())
    resumed(spec, made, parameters, state, tmp_path / "c.pt")


def test_a_momentum_that_is_none_is_taken(tmp_path):
    made, parameters = stepped("SGD(lr=0.1)")
    state = copy.deepcopy(made.state_dict())
    state["state"] = {0: {"momentum_buffer": None}, 1: {"momentum_buffer": None}}
    resumed("SGD(lr=0.1)", made, parameters, state, tmp_path / "c.pt")


def test_a_momentum_that_one_parameter_of_two_has_goes_on():
    """As where the other never had a gradient, which PyTorch's fused kernel does not take."""
    values = {name: torch.arange(6.0) / 7 for name in "ab"}
    theirs = {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}
    made = torch.optim.SGD(theirs.values(), lr=0.1, momentum=0.9)
    theirs["b"].grad = torch.ones(6) / 3
    made.step()
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    ours, grads = HostedOptimizer("SGD(lr=0.1, momentum=0.9)"), {name: torch.zeros(6) for name in values}
    for name, value in values.items():
        value.copy_(theirs[name].detach())
        ours.bind(name, value, grads[name])
    with checkpoint.load_memory(file.getvalue()) as content:
        ours.load_state_dict(content)
    for step in range(3):
        for name, grad in grads.items():
            grad.fill_(1 / (3 + step))
            theirs[name].grad = grad.clone()
        made.step()
        ours.step()
    assert {n: v.tolist() for n, v in values.items()} == {n: p.tolist() for n, p in theirs.items()}


@pytest.mark.parametrize("key", ["t", "H_diag", "prev_loss"])
def test_a_number_of_lbfgs_that_no_step_could_use_is_refused(key):
    victim = Victim("LBFGS()")
    victim.refuses_change(lambda c: state_of(c)[0].update({key: 10**30}), "too large")
    victim.goes_on()


def test_lbfgs_saves_what_it_has_loaded_bit_for_bit():
    victim = Victim("LBFGS()")
    assert lib.opt_load_memory(victim.run.opt, victim.saved, len(victim.saved)) == 0, lib.opt_error()
    assert in_memory(victim.run) == victim.saved


def test_a_learning_rate_may_be_a_number_of_numpys_or_a_tensor(tmp_path):
    made, parameters = stepped("Adam()")
    for kind in (np.float64, np.float32, torch.tensor):
        for group in made.param_groups:
            group["lr"] = 0.25
        state = copy.deepcopy(made.state_dict())
        state["param_groups"] = [{**g, "lr": kind(0.25)} for g in state["param_groups"]]
        resumed("Adam()", made, parameters, state, tmp_path / "c.pt")


def test_state_of_another_precision_is_cast_as_pytorch_casts_it(tmp_path):
    made, parameters = stepped("Adam()")
    state = copy.deepcopy(made.state_dict())
    for entries in state["state"].values():
        entries["exp_avg"] = entries["exp_avg"].double() / 3
        entries["exp_avg_sq"] = entries["exp_avg_sq"].half()
    made.load_state_dict(state)
    resumed("Adam()", made, parameters, state, tmp_path / "c.pt")


@pytest.mark.parametrize("spec", [s for s in SPECS if not s.startswith("Muon")])
def test_a_file_of_another_default_dtype_goes_on(spec):
    for there, here in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        try:
            torch.set_default_dtype(there)
            run = Run(spec, dtype=torch.float64)
            run.go(3)
            saved = in_memory(run)
            torch.set_default_dtype(here)
            other = Run(spec, dtype=torch.float64, values=run.values)
            other.made = run.made
            assert lib.opt_load_memory(other.opt, saved, len(saved)) == 0, lib.opt_error()
            other.go(3)
            torch.set_default_dtype(there)
            run.go(3)
            if spec.startswith("ASGD"):  # whose rate torch rounds to the default dtype at each step
                assert np.allclose(run.bits()[0], other.bits()[0], rtol=1e-6)
            else:
                assert run.bits() == other.bits()
            run.free()
            other.free()
        finally:
            torch.set_default_dtype(torch.float32)


def test_an_optimizers_state_may_have_any_key(tmp_path):
    made, parameters = stepped("Adam()")
    for wrap in (
        lambda s: {"optimizer_state_dict": s, "epoch": 3, "model_state_dict": {"w": torch.zeros(3)}},
        lambda s: {"optimizer": [s], "args": argparse.Namespace(lr=1)},
        lambda s: {"optimizer_states": [s], "when": np.datetime64("2020-01-01")},
        lambda s: {"optimizer": s, "optimizer_of_another": s},
        OrderedDict,
    ):
        state = copy.deepcopy(made.state_dict())
        resumed("Adam()", made, parameters, wrap(state), tmp_path / "c.pt")
    run = Run("Adam()")
    for content, words in (
        ({"generator": state, "critic": state}, "states of several optimizers: 'generator', 'critic'"),
        ({"weights": torch.zeros(3), "epoch": 3}, "and the keys 'weights', 'epoch'"),
        ({"optimizers": [state, state]}, "and the keys 'optimizers'"),
    ):
        torch.save(content, tmp_path / "c.pt")
        assert lib.opt_load(run.opt, str(tmp_path / "c.pt").encode()) == -1
        assert words in lib.opt_error().decode()
    run.free()


def test_files_of_torch_before_1_6_go_on(tmp_path):
    made, parameters = stepped("Adam()")
    path = tmp_path / "c.pt"
    resumed("Adam()", made, parameters, made.state_dict(), path, _use_new_zipfile_serialization=False)
    whole, run = path.read_bytes(), Run("Adam()")
    for n in (0, 1, 5, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:n])
        assert lib.opt_load(run.opt, str(path).encode()) == -1
        assert b"it is " in lib.opt_error()
    path.write_bytes(pickle.dumps({"state": {}, "param_groups": []}))
    assert lib.opt_load(run.opt, str(path).encode()) == -1
    run.free()


def test_a_bit_that_flips_in_a_file_of_pytorchs_is_noticed(tmp_path):
    made, _ = stepped("Adam()")
    torch.save(made.state_dict(), tmp_path / "c.pt")
    whole = bytearray((tmp_path / "c.pt").read_bytes())
    value = made.state_dict()["state"][0]["exp_avg"].numpy().tobytes()
    whole[whole.index(value) + 5] ^= 1
    run = Run("Adam()")
    assert lib.opt_load_memory(run.opt, bytes(whole), len(whole)) == -1
    assert b"checksum" in lib.opt_error()
    run.free()
