"""Archives that somebody has made up: refused at once, without much time, memory or anybody's code."""

from __future__ import annotations

import itertools
import os
import subprocess
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable

import pytest
import torch

import hosts
from forgery import HANGS, Calls, Victim, forge, forge_again, group_of, lib, read, state_of
from runs import HERE, Run, go_plainly, in_memory, plain

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
    code = f"from test_archives import *; every_place({value})"
    done = subprocess.run(
        [*hosts.PYTHON, "-c", code], capture_output=True, text=True, check=False, cwd=HERE, timeout=HANGS
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
        "keys are not text or numbers",
    ),
    "a long key many times": (
        b"}(" + TEXT + b"(" + b"N" * 99 + b"tq\0" + b"h\0N" * 99 + b"u.",
        "keys are not text or numbers",
    ),
    "a list copied many times": (
        b"](" + b"N" * 999 + b"e\x85q\0ctorch\nSize\nq\1(" + b"h\1h\0R" * 99 + b"t.",
        "too often",
    ),
    "a dict copied many times": (
        b"](" + b"NN\x86" * 999 + b"e\x85q\0ccollections\nOrderedDict\nq\1(" + b"h\1h\0R" * 99 + b"t.",
        "too often",
    ),
    "a text copied many times": (
        b"X\xe7\3\0\0" + b"a" * 999 + b"\x85q\0c_codecs\nencode\nq\1(" + b"h\1h\0R" * 99 + b"t.",
        "too often",
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
        victim.refuses(forge_again(victim.saved, change))
    with pytest.warns(UserWarning, match="Duplicate name"):
        victim.refuses(forge_again(victim.saved, lambda n, x: [(n, x, STORED)] * 2), "twice")
    for body in PICKLES.values():

        def change(n: str, x: bytes, body: bytes = body) -> list[tuple[str, bytes, int]]:
            return [(n, body if n.endswith("data.pkl") else x, STORED)]

        victim.refuses(forge_again(victim.saved, change))
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
        victim.refuses_change(lambda c, bad=bad: state_of(c)[0].update(exp_avg=bad), "damaged")
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
