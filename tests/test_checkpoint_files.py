"""A checkpoint's file: damaged, killed while it is written, on a full disk; and how it is written."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import torch

from optplug import checkpoint
from optplug.ctypes_api import Error, Optimizer
from runs import AVERAGES, Run, in_memory, lib

KILLS = 50


def test_every_flip_and_every_truncation_is_noticed():
    run, twin = Run("Adam()", "StepLR"), Run("Adam()", "StepLR")
    run.go(3)
    twin.go(3)
    good = in_memory(run)
    rng = random.Random(1)  # noqa: S311
    seal = range(len(good) - 100, len(good))
    damaged = [
        bytes([*good[:i], good[i] ^ (1 << rng.randrange(8)), *good[i + 1 :]])
        for i in (*range(0, len(good) - 100, 7), *seal)
    ]
    damaged += [good[:n] for n in (*range(1, len(good) - 100, 41), *seal)]
    damaged += [good + b"x", good * 2, good[1:], bytes(len(good)), rng.randbytes(len(good))]
    for _ in range(200):
        i, n = rng.randrange(len(good)), rng.randrange(1, 200)
        damaged.append(good[:i] + rng.randbytes(n) + good[i + n :])
    for content in damaged:
        if content != good:
            assert lib.opt_load_memory(run.opt, content, len(content)) == -1
            assert lib.opt_error().startswith((b"buffer: damaged", b"buffer: not a checkpoint"))
    run.go(3)
    twin.go(3)
    assert run.bits() == twin.bits()
    run.free()
    twin.free()


def test_what_is_whole_but_wrong_is_refused():
    run, twin = Run("Adam()", "StepLR", AVERAGES[1]), Run("Adam()", "StepLR", AVERAGES[1])
    run.go(3)
    twin.go(3)
    good = in_memory(run)

    def refused(words: str, change) -> None:
        content = torch.load(io.BytesIO(good), weights_only=True)
        change(content)
        file = io.BytesIO()
        checkpoint.write(file, content)
        content = file.getvalue()
        assert lib.opt_load_memory(run.opt, content, len(content)) == -1
        assert words in lib.opt_error().decode(), lib.opt_error()

    refused("its format is 2, and this optplug reads format 1", lambda c: c["optplug"].update(format=2))
    refused("the file is of SGD, this optimizer is Adam", lambda c: c["optplug"].update({"class": "SGD"}))
    refused("the file has schedulers (none), this optimizer has 'StepLR", lambda c: c.update(schedulers=[]))
    refused("the file has average None, this optimizer has 'Averaged", lambda c: c.update(average=None))
    refused("the saved state of scheduler", lambda c: c["schedulers"][0]["state"].pop("last_epoch"))
    refused(
        "the average of parameter 'w' has another shape",
        lambda c: c["average"]["values"].update(w=torch.zeros(1)),
    )
    refused("not a checkpoint: it has no 'average'", lambda c: c.pop("average"))
    refused("an entry has the wrong type", lambda c: c.update(optplug=3))
    refused("group 0 has no lr", lambda c: c["optimizer"]["param_groups"][0].pop("lr"))
    run.go(3)
    twin.go(3)
    assert run.bits() == twin.bits()
    run.free()
    twin.free()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    path = str(tmp_path / "c.pt").encode()
    run = Run("Adam()")
    assert lib.opt_checkpoint(run.opt, b"parameters=True") == 0, lib.opt_error()
    run.go(1)
    assert lib.opt_save(run.opt, path) == 0
    rng, last, longest = random.Random(2), 1, 0.03  # noqa: S311
    for _ in range(KILLS):
        child = os.fork()
        if not child:
            try:
                while True:
                    run.go(1)
                    lib.opt_save(run.opt, path)
            finally:
                os._exit(1)  # rather than go on with the tests
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert lib.opt_load(run.opt, path) == 0, lib.opt_error()
        steps = int(torch.load(path.decode(), weights_only=True)["optimizer"]["state"][0]["step"])
        assert steps >= last
        longest = max(0.03, longest * (1.1 if steps == last else 0.9))  # as fast as the disk is today
        last = steps
    assert last > KILLS // 10  # they did save
    assert lib.opt_save(run.opt, path) == 0  # whatever the last one has left behind
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]
    run.free()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here: root can")
    yield disk
    subprocess.run(["umount", disk], check=True)  # noqa: S607


def test_a_full_disk_loses_nothing(small_disk):
    path = small_disk / "c.pt"
    run = Run("Adam()")
    run.go(1)
    assert lib.opt_save(run.opt, str(path).encode()) == 0
    before = path.read_bytes()
    (small_disk / "filler").write_bytes(bytes(50000))
    big, gradient = torch.zeros(50000), torch.zeros(50000)
    opt = lib.opt_create(b"Adam()")
    assert lib.opt_bind(opt, b"w", b"float32", 50000, big.data_ptr(), gradient.data_ptr()) == 0
    assert lib.opt_step(opt) == 0
    assert lib.opt_save(opt, str(path).encode()) == -8
    assert b"No space left on device" in lib.opt_error()
    assert path.read_bytes() == before
    assert sorted(p.name for p in small_disk.iterdir()) == ["c.pt", "filler"]
    assert lib.opt_step(opt) == 0
    assert lib.opt_free(opt) == 0
    run.free()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    run = Run("Adam()")
    assert lib.opt_save(run.opt, str(tmp_path / "c.pt").encode()) == -8
    assert b"Permission denied" in lib.opt_error()
    run.free()


def test_a_new_file_gets_the_usual_mode_and_an_old_one_keeps_its_own(tmp_path):
    run = Run("Adam()")
    path = tmp_path / "c.pt"
    before = os.umask(0o027)
    try:
        assert lib.opt_save(run.opt, str(path).encode()) == 0, lib.opt_error()
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o600)
        assert lib.opt_save(run.opt, str(path).encode()) == 0, lib.opt_error()
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    run.free()


def test_a_pipe_is_an_error_and_waits_for_nobody(tmp_path):
    run = Run("Adam()")
    os.mkfifo(tmp_path / "pipe")
    assert lib.opt_save(run.opt, str(tmp_path / "pipe").encode()) == -8
    assert lib.opt_error().endswith(b"/pipe': it must be a file, not a device, pipe or socket")
    run.free()


# ---- how it is written ----


class Counting(io.BytesIO):
    def __init__(self):
        super().__init__()
        self.writes = 0

    def write(self, data):
        self.writes += 1
        return super().write(data)


def sealed(content: dict) -> bytes:
    file = io.BytesIO()
    checkpoint.write(file, content)
    return file.getvalue()


def test_many_small_tensors_are_written_in_few_pieces(monkeypatch):
    started = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), start(thread)))
    file = Counting()
    checkpoint.write(file, {"optimizer": {i: torch.zeros(8) for i in range(1000)}})
    assert len(file.getvalue()) < 1 << 20
    assert (file.writes, len(started)) == (2, 0)  # with the seal
    checkpoint.write(Counting(), {"optimizer": torch.zeros(1 << 19)})
    assert len(started) == 1


def test_small_and_large_pieces_stay_in_their_order():
    sizes = [1, 1 << 18, 3, 1 << 20, 5, 1 << 17, 1 << 17, 1 << 17, 7]
    content = {"optimizer": [torch.full((n,), float(i)) for i, n in enumerate(sizes)]}
    with checkpoint.load_memory(sealed(content)) as read:
        pairs = zip(read["optimizer"], content["optimizer"], strict=True)
        assert all(torch.equal(a.tensor(), b) for a, b in pairs)


def test_where_no_thread_can_be_made_a_checkpoint_is_written_all_the_same():
    content = {"optimizer": torch.arange(1 << 19)}
    before = threading.stack_size(1 << 46)  # more than there is
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=print).start()
        written = sealed(content)
    finally:
        threading.stack_size(before)
    with checkpoint.load_memory(written) as read:
        assert torch.equal(read["optimizer"].tensor(), content["optimizer"])


@pytest.mark.parametrize("count", [10, 1 << 22])
def test_memory_that_is_too_small_stays_as_it_was(count):
    content = {"optimizer": torch.ones(count)}
    size = checkpoint.save_memory(None, content)
    room = bytearray(b"x" * (size + 5))
    with pytest.raises(ValueError, match=f"size must be at least {size}, got {size - 1}"):
        checkpoint.save_memory(memoryview(room)[: size - 1], content)
    assert room == b"x" * (size + 5)
    assert checkpoint.save_memory(room, content) == size
    assert room[size:] == b"xxxxx"
    with checkpoint.load_memory(room[:size]) as read:
        assert torch.equal(read["optimizer"].tensor(), content["optimizer"])


def test_a_sparse_momentum_is_refused_by_the_save_and_not_by_the_load(tmp_path):
    opt, table = Optimizer("SGD(lr=0.5, momentum=0.5)"), np.ones((6, 2), "float32")
    opt.bind_sparse("table", table, np.array([2]), np.array([1, 3]), np.ones((2, 2), "float32"))
    opt.save(tmp_path / "before.pt")  # there is no momentum yet
    opt.step()
    before = table.tobytes()
    with pytest.raises(
        Error, match="parameter 'table': its momentum_buffer is sparse, and opt_load would not"
    ):
        opt.save(tmp_path / "after.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["before.pt"]
    assert table.tobytes() == before
    opt.step()
