"""Compiled steps: torch's numbers within the stated tolerance, and what happens where none can be made.

Each kernel takes half a minute; with OPTPLUG_TEST_COMPILE=all every optimizer is compiled, in both dtypes.
"""

from __future__ import annotations

import itertools
import os
import shutil

import pytest
import torch

from optplug import compiled, ctypes_api, toolchain
from optplug.errors import CompileError
from test_plans import Twins

lib = ctypes_api.load()

ALL = os.environ.get("OPTPLUG_TEST_COMPILE") == "all"
KERNELS = [
    ("RMSprop(lr=0.01, momentum=0.9, centered=True, weight_decay=0.01, maximize=True)", "float32"),
    ("NAdam(lr=0.01)", "float64"),
]
if ALL:
    KERNELS += [(f"{name}(lr=0.01)", d) for name in compiled.OPTIMIZERS for d in ("float32", "float64")]

needs_compiler = pytest.mark.skipif(
    not shutil.which("g++"), reason="no C++ compiler (Debian, Ubuntu: apt-get install g++)"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def compiling(monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert lib.opt_init(b"compile=True") == 0
    yield
    assert lib.opt_init(b"compile=False") == 0


class Pair(Twins):
    """Twins whose reference is torch's default, and that may be as far apart as kernels may."""

    fused = None

    def compare(self):
        for (value, _), p in zip(self.ours, self.theirs, strict=True):
            close(value, p)

    def end(self):
        for ours, p in zip(self.state(), self.theirs, strict=True):
            theirs = self.reference.state[p]
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                close(torch.as_tensor(ours[key]), torch.as_tensor(value))
        assert lib.opt_free(self.opt) == 0


def close(ours, theirs):
    assert ours.dtype == theirs.dtype
    bound = compiled.TOLERANCE[ours.dtype]
    ours, theirs = ours.detach(), theirs.detach()
    assert float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max()) <= bound


@needs_compiler
@pytest.mark.parametrize(("text", "dtype"), KERNELS)
def test_a_kernel_makes_torchs_steps_for_any_size_group_and_rate(text, dtype):
    def run():
        pair = Pair(text, [(dtype, n) for n in (1, 2, 7, 100)], [(dtype, 20_000), (dtype, 33)])
        scheduler = torch.optim.lr_scheduler.ExponentialLR(pair.reference, 0.9)
        assert lib.opt_schedule(pair.opt, b"ExponentialLR(0.9)") == 0
        for i in range(12):
            assert pair.is_planned() == (i > 2)  # a schedule is waited for, to see what it changes
            pair.step()
            assert lib.opt_schedule_step(pair.opt) == 0
            scheduler.step()
        assert ".so without Python" in pair.described()
        pair.end()

    run()
    made = {path: path.stat().st_mtime_ns for path in toolchain.folder().iterdir()}
    run()  # with what is there now
    assert {path: path.stat().st_mtime_ns for path in toolchain.folder().iterdir()} == made


@needs_compiler
def test_a_kernel_gives_way_to_torch_where_what_it_has_fixed_changes():
    pair = Pair("NAdam(lr=0.01)", [("float64", 7)])
    for _ in range(4):
        pair.step()
    assert pair.is_planned()
    assert lib.opt_set(pair.opt, -1, b"lr=0.5") == 0
    pair.reference.param_groups[0]["lr"] = 0.5
    pair.step()
    assert pair.is_planned()
    assert lib.opt_set(pair.opt, -1, b"weight_decay=0.25") == 0
    pair.reference.param_groups[0]["weight_decay"] = 0.25
    for _ in range(4):
        pair.step()
    assert not pair.is_planned()
    pair.end()


@needs_compiler
def test_a_kernel_whose_numbers_are_not_torchs_is_not_kept(monkeypatch):
    monkeypatch.setitem(compiled.TOLERANCE, torch.float32, 0.0)
    before = list(toolchain.folder().iterdir())
    with pytest.raises(CompileError, match="after 12 steps it was"):
        compiled.kernel("ASGD", {}, torch.float32, make=True)
    assert list(toolchain.folder().iterdir()) == before


@pytest.mark.parametrize("trouble", ["no compiler", "no folder"])
def test_where_nothing_can_be_compiled_torch_steps_and_a_warning_says_why(trouble, monkeypatch, tmp_path):
    if trouble == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    pair = Pair("RMSprop(lr=0.01)", [("float64", 7)])
    pair.step()
    with pytest.warns(UserWarning, match="RMSprop steps without") as warned:
        pair.step()  # whose calls are the first that a kernel could be made for
    pair.step()
    pair.step()
    assert torch.equal(pair.ours[0][0], pair.theirs[0])
    assert not pair.is_planned()
    assert len(warned) == 1
    assert ("apt-get install g++" if trouble == "no compiler" else "XDG_CACHE_HOME") in str(warned[0].message)
    pair.end()


def test_a_folder_that_others_can_write_to_is_not_trusted(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    toolchain.folder().mkdir()
    toolchain.folder().chmod(0o777)
    with pytest.raises(CompileError, match="chmod go-w"):
        compiled.kernel("RMSprop", {}, torch.float32, make=True)


@pytest.mark.parametrize(
    ("text", "dtype"),
    [("RMSprop(foreach=True)", "float32"), ("RMSprop()", "bfloat16"), ("Adafactor()", "float32")],
)
def test_what_has_no_kernel_steps_as_before(text, dtype):
    pair = Pair(text, [(dtype, 7)])
    for _ in range(3):
        pair.draw()
        pair.reference.step()
        assert lib.opt_step(pair.opt) == 0
        assert torch.equal(pair.ours[0][0], pair.theirs[0])
    assert not pair.is_planned()
    assert lib.opt_free(pair.opt) == 0


def test_every_hyperparameter_but_the_rate_makes_another_kernel(monkeypatch):
    asked = []

    def make(request, output):
        asked.append(request)
        output.touch()

    monkeypatch.setattr(compiled, "_make", make)
    monkeypatch.setattr(compiled, "_check", lambda *_: None)
    options = {"lr": 0.1, "alpha": 0.99, "centered": False}
    changes = [{}, {"lr": 0.2}, {"alpha": 0.9}, {"centered": True}]
    files = [compiled.kernel("RMSprop", options | change, torch.float32, make=True) for change in changes]
    assert files[0] == files[1]
    assert all(a != b for a, b in itertools.combinations(files[1:], 2))
    assert len(asked) == 3
    for file in set(files):
        file.unlink()
