"""Ranks that are killed, stopped or out of disk: the others are told, and files stay whole."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import hosts
from optplug.ctypes_api import Error, Optimizer
from rank_processes import started, wait_for
from rank_threads import made, on_ranks
from test_readme import build, build_library

needs_gloo = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this PyTorch has no torch.distributed with gloo",
)
ranks_of = contextlib.contextmanager(started)
N = 300_000

SAVING = """
opt = Optimizer("SGD(lr=1.0, momentum=0.5)")
opt.distribute("Shard(0)")
u, du = np.zeros(300_000 // size), np.ones(300_000 // size)
opt.bind("u", u, du)
opt.distribute("Replicate(), Replicate()")
c, dc = np.zeros(1000), np.ones(1000)
opt.bind("c", c, dc)
opt.checkpoint("parameters=True")
try:
    for i in range(1000000):
        opt.step()
        opt.save("file")
        say("saved", i)
except Error as error:
    say("error", error)
opt.free()
os._exit(0)  # torch.distributed waits for the one that is gone
"""


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("spec", ["Adamax(lr=0.1)", "Adam(lr=0.1, fused=False)"])
@pytest.mark.parametrize("placement", ["Replicate()", "Shard(0)", "Replicate(), Replicate()"])
def test_a_scale_is_not_taken_out_of_the_gradients_of_a_step_that_fails(placement, spec, steps):
    def work(comm, fails):
        w, dw, scale = np.ones(6, "float32"), np.arange(6, dtype="float32"), np.full(1, 4, "float32")
        with made(spec, placement, comm) as opt:
            opt.bind("w", w, dw)
            opt.grad_scale(scale)
            opt.schedule("StepLR(step_size=1, gamma=1e45)")
            for _ in range(steps):
                dw[:] = np.arange(6) + w
                opt.step()
            opt.schedule_step()
            dw[:] = np.arange(6) + w
            if fails:
                with pytest.raises(Error, match="without overflow"):
                    opt.step()
            kept = dw.copy()
            opt.set(-1, "lr=0.01")
            opt.step()  # with the same gradients
        return w.tobytes(), kept.tobytes()

    assert on_ranks(2, lambda comm: work(comm, True)) == on_ranks(2, lambda comm: work(comm, False))


def values_in(path) -> np.ndarray:
    """Load what ranks have saved, in one process, and return all of it: values, and momentum buffers."""
    u, c = np.zeros(N), np.zeros(1000)
    with Optimizer("SGD(lr=1.0, momentum=0.5)") as opt:
        opt.bind("u", u, np.zeros_like(u))
        opt.bind("c", c, np.zeros_like(c))
        opt.checkpoint("parameters=True")
        opt.load(path)
        steps = opt.get(0, "step")
    state = torch.load(path, weights_only=True)["optimizer"]["state"]
    value, momentum = 0.0, 0.0
    for _ in range(int(steps)):
        momentum = 0.5 * momentum + 1
        value -= momentum
    assert (u == value).all()
    assert (c == value).all()
    assert all((state[i]["momentum_buffer"] == momentum).all() for i in state)
    return steps


def errors(ranks) -> list[str]:
    return [line for rank in ranks for line in rank.said() if line.startswith("error")]


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_rank_that_is_killed_leaves_a_whole_file_and_an_error_on_the_others(victim, tmp_path):
    with ranks_of(SAVING, 3, tmp_path) as ranks:
        wait_for(lambda: len(ranks[0].said()) > 3 + 2 * victim, ranks)
        time.sleep(0.013 * (1 + victim))
        ranks[victim].send(signal.SIGKILL)
        others = [rank for rank in ranks if rank is not ranks[victim]]
        wait_for(lambda: all(errors([rank]) for rank in others), ranks)
        last = max(int(line.split()[1]) for line in ranks[victim].said() if line.startswith("saved"))
    assert values_in(tmp_path / "file") >= last + 1
    with Optimizer("SGD()") as opt:  # and what is left of the one that did not end is swept up
        opt.bind("w", np.zeros(2), np.ones(2))
        opt.save(tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir() if "optplug" in p.name] == []


@needs_gloo
def test_a_rank_that_is_stopped_is_an_error_on_the_others_within_the_timeout(tmp_path):
    with ranks_of(SAVING, 3, tmp_path, timeout=5) as ranks:
        wait_for(lambda: len(ranks[0].said()) > 3, ranks)
        ranks[1].send(signal.SIGSTOP)
        wait_for(lambda: len(errors(ranks)) == 2, ranks)
        ranks[1].send(signal.SIGCONT)
        wait_for(lambda: len(errors(ranks)) == 3, ranks)
    values_in(tmp_path / "file")


FULL = """
opt = Optimizer("SGD(lr=1.0, momentum=0.5)")
opt.distribute("Shard(0)")
u, du = np.zeros(300_000 // size), np.ones(300_000 // size)
opt.bind("u", u, du)
opt.checkpoint("parameters=True")
opt.step()
opt.save("file")
old = pathlib.Path("file").read_bytes()
opt.step()
before = u.copy()
for limit, value in (resource.RLIMIT_FSIZE, 1048576), (resource.RLIMIT_NOFILE, 3):
    soft, hard = resource.getrlimit(limit)
    if rank == 1:
        resource.setrlimit(limit, (value, hard))
    try:
        opt.save("file")
    except Error as error:
        say("error", error)
    resource.setrlimit(limit, (soft, hard))
    torch.distributed.barrier()
    left = [p.name for p in pathlib.Path().iterdir() if "optplug" in p.name]
    say("whole", pathlib.Path("file").read_bytes() == old, np.array_equal(u, before), left)
    torch.distributed.barrier()
opt.save("file")
say("step", opt.get(0, "step"))
opt.free()
torch.distributed.destroy_process_group()
"""


@needs_gloo
def test_a_rank_that_may_not_write_is_an_error_on_all_and_the_old_file_stays(tmp_path):
    with ranks_of(FULL, 3, tmp_path) as ranks:
        for rank in ranks:
            assert rank.running.wait() == 0, rank.said()
        said = [rank.said() for rank in ranks]
    too_large = "File too large: ulimit -f allows 1048576 bytes"  # its parts lie beyond
    expected = []
    for line in (too_large, "Too many open files"):
        expected += [f"error rank 1: path 'file': {line}", "whole True True []"]
    assert said == [[*expected, "step 2.0"]] * 3


FORKING = """
from optplug.ctypes_api import load
for options in (b"check_ranks=False", b"check_ranks=True"):
    load().optplug_init(options)
    opt = Optimizer("Adam(lr=0.1)")
    opt.distribute("Replicate()")
    w, dw = np.ones(100), np.ones(100)
    opt.bind("w", w, dw)
    opt.step()
    child = os.fork()
    if child == 0:
        for call in (opt.step, lambda: opt.clip_grad_norm(1.0), lambda: opt.save("file")):
            try:
                call()
            except Error as error:
                say("child", error.status, error)
        os._exit(7)
    say("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    opt.step()
    say("step", opt.get(0, "step"))
    opt.free()
torch.distributed.destroy_process_group()
"""


@needs_gloo
def test_a_fork_of_a_rank_is_told_so_and_the_ranks_go_on(tmp_path):
    with ranks_of(FORKING, 2, tmp_path) as ranks:
        for rank in ranks:
            assert rank.running.wait() == 0, rank.said()
        for rank in ranks:
            line = "child -3 the ranks are those of the parent process: step this optimizer there"
            said = [s for s in rank.said() if "fork" not in s and s.strip() != "child = os.fork()"]
            assert said == ([line] * 3 + ["ended 7", "step 2.0"]) * 2


# ---- over MPI ----

MPI4PY = """
import pathlib
import numpy as np
import torch
from mpi4py import MPI
from torch.optim.optimizer import register_optimizer_step_post_hook
from optplug.ctypes_api import Error, Optimizer

rank, size, lines = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size(), []

def fail(*_):
    raise MemoryError("no memory left")

w, dw, alone, whole = np.ones(100), np.ones(100), np.ones(100), np.ones(100)
opt, one = Optimizer("RMSprop(lr=0.1)"), Optimizer("RMSprop(lr=0.1)")
opt.distribute("Replicate(), Partial('sum')", MPI.COMM_WORLD)
opt.bind("w", w, dw)
one.bind("w", alone, whole)
for step in range(6):
    dw[:], whole[:] = np.arange(100) * (rank + 1), np.arange(100) * 3
    if step == 3:
        hook = register_optimizer_step_post_hook(fail) if rank == 1 else None
        try:
            opt.step()
        except Error as error:
            lines.append(str(error))
        if hook:
            hook.remove()
    opt.step()
    one.step()
opt.free()
pathlib.Path(f"said{rank}").write_text(f"{size} {lines} {np.array_equal(w, alone)}")
"""


@hosts.needs_mpi
@pytest.mark.skipif(not importlib.util.find_spec("mpi4py"), reason="no mpi4py: pip install mpi4py")
def test_mpi4pys_ranks_have_the_bits_of_one_process_and_all_the_error_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = {**hosts.MPI_ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    hosts.run("mpiexec", "-n", "2", *hosts.PYTHON, "-c", MPI4PY, env=environment)
    for rank in range(2):
        line = "2 ['MemoryError: rank 1: no memory left'] True"
        assert (tmp_path / f"said{rank}").read_text() == line


MPI = r"""
#include <stdio.h>
#include <unistd.h>
#include <optplug_mpi.h>

static double u[300000], du[300000], c[1000], dc[1000];

int main(int argc, char **argv)
{
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    for (int i = 0; i < 300000; i++)
        du[i] = dc[i % 1000] = 1;
    int opt = opt_create("SGD(lr=1.0, momentum=0.5)");
    int failed = opt < 0 || opt_distribute_mpi(opt, "Shard(0)", MPI_COMM_WORLD) < 0 ||
                 opt_bind(opt, "u", "float64", 300000 / size, u, du) < 0 ||
                 opt_distribute_mpi(opt, "Replicate(), Replicate()", MPI_COMM_WORLD) < 0 ||
                 opt_bind(opt, "c", "float64", 1000, c, dc) < 0 ||
                 opt_checkpoint(opt, "parameters=True") < 0;
    printf("rank %d is %d\n", rank, (int)getpid());
    for (int i = 0; !failed; i++) {
        failed = opt_step(opt) < 0 || opt_save(opt, "file") < 0;
        if (rank == 0)
            printf("saved %d\n", i);
        fflush(stdout);
    }
    if (failed) {
        fprintf(stderr, "rank %d: %s\n", rank, opt_error());
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    return 0;
}
"""


OPEN_MPI, MPICH = ("mpicc", "mpiexec"), ("mpicc.mpich", "mpiexec.mpich", "-pmi-port")


@contextlib.contextmanager
def mpi_ranks(
    mpi: tuple[str, ...], in_python: bool, folder: pathlib.Path
) -> Iterator[tuple[subprocess.Popen[str], dict[int, int]]]:
    """Run the program on ranks, and give mpiexec, and the ranks' ids, when they have saved thrice."""
    compiler, *mpiexec = mpi
    (build_library if in_python else build)(MPI, folder, compiler=(compiler,))
    said = folder / "said"
    with said.open("w") as output:
        running = subprocess.Popen(
            [*mpiexec, "-n", "2", *(hosts.main_of(folder / "main") if in_python else [folder / "main"])],
            cwd=folder,
            env={**os.environ, **hosts.MPI_ENVIRONMENT},
            stdout=output,
            stderr=output,
            text=True,
        )
    try:
        while "saved 2\n" not in said.read_text():
            assert running.poll() is None, said.read_text()
            time.sleep(0.01)
        yield running, {int(r): int(p) for r, p in re.findall(r"rank (\d) is (\d+)", said.read_text())}
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize(
    "mpi", [pytest.param(OPEN_MPI, marks=hosts.needs_mpi), pytest.param(MPICH, marks=hosts.needs_mpich)]
)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_of_mpis_that_is_stopped_is_waited_for_and_one_that_is_killed_ends_the_job(
    victim, mpi, tmp_path
):
    def saved() -> int:
        return (tmp_path / "said").read_text().count("saved")

    with mpi_ranks(mpi, victim == 0, tmp_path) as (running, ranks):
        os.kill(ranks[1], signal.SIGSTOP)
        time.sleep(0.5)
        stopped = saved()
        time.sleep(0.5)
        assert saved() == stopped
        os.kill(ranks[1], signal.SIGCONT)
        while saved() == stopped:
            assert running.poll() is None
            time.sleep(0.01)
        time.sleep(0.017 * (1 + victim))
        os.kill(ranks[victim], signal.SIGKILL)
        assert running.wait(hosts.PATIENCE) != 0
        last = saved()
    assert values_in(tmp_path / "file") >= last
