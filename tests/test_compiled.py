"""Compiled steps: torch's numbers within the stated tolerance, and what happens where none can be made.

Each kernel takes half a minute; with OPTPLUG_TEST_COMPILE=all every optimizer is compiled, in both dtypes.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pathlib
import shutil

import pytest
import torch

from optplug import compiled, ctypes_api, toolchain
from optplug.errors import CompileError
from planned_twins import Twins

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


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(autouse=True)
def compiling(monkeypatch, cache, temporary):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("TMPDIR", str(temporary))
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
def test_a_kernel_makes_torchs_steps_for_any_size_group_and_rate(text, dtype, temporary):
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
    assert list(temporary.iterdir()) == []  # where others could have made it first
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
    for i in range(5):
        rate = 0.1 / (i + 1)
        assert lib.opt_set_value(pair.opt, -1, b"lr", rate) == 0
        pair.reference.param_groups[0]["lr"] = rate
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
    before = sorted(toolchain.folder().glob("*.so"))
    with pytest.raises(CompileError, match="after 12 steps it was"):
        compiled.kernel("ASGD", {}, torch.float32, make=True)
    assert sorted(toolchain.folder().glob("*.so")) == before
    assert not [path for path in toolchain.folder().iterdir() if path.is_dir()]


def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


def no_folder(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))


def no_home(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))


def an_empty_home(monkeypatch, _):
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "")


def a_folder_that_others_can_write_to(*_):
    toolchain.folder().mkdir()
    toolchain.folder().chmod(0o777)


def a_folder_in_one_that_others_can_write_to(_, tmp_path):
    tmp_path.chmod(0o777)


def a_folder_whose_code_cannot_run(monkeypatch, _):
    real = os.statvfs

    def statvfs(path):
        found = list(real(path))
        found[8] |= os.ST_NOEXEC  # f_flag
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", statvfs)


def kernel_file(content: bytes = b"whatever", make: bool = True) -> pathlib.Path | None:
    """Return the file that is, by its name, the kernel of RMSprop(lr=0.01) for float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_make", lambda _, output: output.write_bytes(content))
        patch.setattr(compiled, "_check", lambda *_: None)
        options = torch.optim.RMSprop([torch.zeros(1)], lr=0.01).defaults
        return compiled.kernel("RMSprop", options, torch.float64, make)


def a_kernel_that_others_can_write_to(*_):
    kernel_file().chmod(0o602)


def a_kernel_of_another_user(*_):
    if os.getuid() != 0:
        pytest.skip("only root can make files of other users")
    os.chown(kernel_file(), 12345, -1)


def a_kernel_that_is_a_link(_, tmp_path):
    path = kernel_file()
    path.rename(tmp_path / "elsewhere.so")
    path.symlink_to(tmp_path / "elsewhere.so")


def a_kernel_that_is_no_library(*_):
    kernel_file()


TROUBLES = {
    no_compiler: "apt-get install g\\+\\+",
    no_folder: "XDG_CACHE_HOME",
    no_home: "there is no home folder: set XDG_CACHE_HOME",
    an_empty_home: "there is no home folder: set XDG_CACHE_HOME",
    a_folder_that_others_can_write_to: "chmod go-w",
    a_folder_in_one_that_others_can_write_to: "can be written to by others",
    a_folder_whose_code_cannot_run: "is mounted noexec",
    a_kernel_that_others_can_write_to: "chmod go-w",
    a_kernel_of_another_user: "chown it",
    a_kernel_that_is_a_link: "can be written to by others",
    a_kernel_that_is_no_library: "cannot be loaded",
}


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
def test_where_nothing_can_be_compiled_torch_steps_and_a_warning_says_why(trouble, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trouble(monkeypatch, tmp_path)
    pair = Pair("RMSprop(lr=0.01)", [("float64", 7)])
    pair.step()
    with pytest.warns(
        UserWarning, match=f"compile=True: .*{TROUBLES[trouble]}.*; RMSprop runs uncompiled"
    ) as warned:
        pair.step()  # whose calls are the first that a kernel could be made for
    pair.step()
    pair.step()
    assert torch.equal(pair.ours[0][0], pair.theirs[0])
    assert not pair.is_planned()
    assert len(warned) == 1
    pair.end()
    assert not (tmp_path / "nowhere").exists()


def test_a_kernel_that_has_been_cut_short_is_not_loaded_and_made_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = kernel_file(b"whole")
    assert kernel_file(b"another", make=False) == path
    for damaged in (b"wh", b"", b"WHOLE"):
        path.write_bytes(damaged)
        assert kernel_file(make=False) is None
        assert kernel_file(b"whole") == path
        assert path.read_bytes() == b"whole"
    assert sorted(p.name for p in toolchain.folder().iterdir()) == [path.name, "lock"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_without_locks_kernels_are_made_all_the_same(monkeypatch, tmp_path):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fcntl, "flock", flock)
    assert kernel_file().read_bytes() == b"whatever"


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
