"""Ranks of torch.distributed: C programs that torchrun starts, and what other launchers start."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import subprocess

import pytest
import torch

import hosts
import optplug

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this PyTorch has no torch.distributed with gloo",
)

PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <unistd.h>
#include <optplug.h>

static double w[100], dw[100];
static int n = 100;

static int closure(void *user, double *loss)
{
    *loss = 0;
    for (int i = 0; i < n; i++) {
        double d = w[i] - *(int *)user - 0.01 * i;
        dw[i] = 2 * d;
        *loss += d * d;
    }
    return 0;
}

int main(int argc, char **argv)
{
    int rank = atoi(getenv("RANK")), restarts = atoi(getenv("TORCHELASTIC_RESTART_COUNT"));
    int opt = opt_create(argv[1]);
    double loss = 0;
    int failed = opt < 0 || opt_distribute(opt, argv[2], NULL, NULL, 0, 0) < 0 ||
                 opt_bind(opt, "w", "float64", n, w, dw) < 0;
    double done = 0;
    if (argc > 4 && !failed) {
        failed = opt_checkpoint(opt, "parameters=True") < 0;
        if (!failed && access(argv[4], F_OK) == 0)
            failed = opt_load(opt, argv[4]) < 0 || opt_get(opt, 0, "step", &done) < 0;
    }
    for (int i = (int)done; i < 5 && !failed; i++) {
        if (argc > 3 && rank == 1 && i == 3 && restarts == 0)
            raise(SIGKILL);
        failed = opt_step_closure(opt, closure, &rank, &loss) < 0 || (argc > 4 && opt_save(opt, argv[4]) < 0);
    }
    if (failed)
        printf("rank %d: %s\n", rank, opt_error());
    else
        printf("rank %d: %.15g %.15g %.15g, from step %g, restarts %d\n", rank, loss, w[0], w[99], done,
               restarts);
    fflush(stdout);
    return opt_free(opt) < 0;
}
"""


def compile_into(folder: pathlib.Path, source: str, *options: str) -> pathlib.Path:
    """Compile a program and return where it is, if it is called main."""
    (folder / "main.c").write_text(source)
    library = pathlib.Path(optplug.library()).parent
    flags = [f"-I{optplug.includedir()}", f"-L{library}", "-loptplug", f"-Wl,-rpath,{library}"]
    subprocess.run([hosts.CC, "main.c", *flags, *options], cwd=folder, check=True)
    return folder / "main"


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("torchrun")
    compile_into(folder, PROGRAM, "-o", "main.so", "-shared", "-fPIC")
    return compile_into(folder, PROGRAM, "-o", "main")


def torchrun(ranks: int, *command: str | pathlib.Path, restarts: int = 0) -> list[str]:
    """Run a program on so many ranks, and return what they have printed, in order."""
    tool = [*hosts.PYTHON, "-m", "torch.distributed.run"]
    options = ["--no-python", "--standalone", "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    done = subprocess.run(
        [*tool, *options, *command],
        capture_output=True,
        text=True,
        timeout=hosts.PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(line for line in done.stdout.splitlines() if line.startswith("rank "))


def test_lbfgs_finds_the_minimum_of_all_parts(program):
    lines = torchrun(2, program, "LBFGS(line_search_fn='strong_wolfe')", "Shard(0)")
    for rank, line in enumerate(lines):
        loss, first, last = map(float, line.partition(": ")[2].partition(",")[0].split())
        assert loss < 1e-20
        assert first == pytest.approx(rank)
        assert last == pytest.approx(rank + 0.99)


def test_a_killed_rank_is_restarted_and_all_go_on_from_their_checkpoint(program, tmp_path):
    adam = *hosts.main_of(f"{program}.so"), "Adam(lr=0.1)", "Replicate()"
    whole = torchrun(2, *adam)
    assert len(whole) == 2
    assert len({line.partition(":")[2] for line in whole}) == 1
    lines = torchrun(2, *adam, "dies", tmp_path / "file", restarts=1)
    again = [line for line in lines if line.endswith("from step 3, restarts 1")]
    assert [line.partition(",")[0] for line in again] == [line.partition(",")[0] for line in whole]


# ---- ranks that do not come, or leave ----

OF_LAUNCHERS = """
import pathlib
import numpy as np
from optplug.ctypes_api import Error, Optimizer
try:
    with Optimizer("SGD(lr=1.0)") as opt:
        opt.distribute("Replicate(), Partial('sum')")
        rank = int(opt.describe().partition("rank: ")[2].partition(" of ")[0])
        w = np.zeros(1)
        opt.bind("w", w, np.full(1, 10.0 ** rank))
        opt.step()
        pathlib.Path(f"said{rank}").write_text(f"{w[0]}")
except Error as error:
    pathlib.Path("error").write_text(str(error))
"""


@pytest.fixture
def environment(tmp_path, monkeypatch) -> dict[str, str]:
    """Where ranks meet, in a folder of their own, without what another launcher has said."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return {**os.environ, **hosts.MPI_ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


LEAVES = r"""
#include <stdio.h>
#include <stdlib.h>
#include <optplug.h>

/* Rank 1 leaves in the midst of the run, and neither frees anything. */
int main(void)
{
    static double w[100], dw[100];
    int rank = atoi(getenv("RANK")), opt = opt_create("Adam()");
    int status = opt_distribute(opt, "Replicate()", NULL, NULL, 0, 0);
    if (status == OPT_OK)
        status = opt_bind(opt, "w", "float64", 100, w, dw);
    for (int i = 0; i < 5 && status == OPT_OK; i++) {
        if (rank == 1 && i == 3)
            exit(4);
        status = opt_step(opt);
    }
    printf("%d %s", status, opt_error());
    return 5;
}
"""


def test_a_rank_that_leaves_is_an_error_on_the_others_and_all_end_as_they_were_told(environment, tmp_path):
    main = compile_into(tmp_path, LEAVES, "-o", "main")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as running:
        ranks = [
            running.enter_context(
                subprocess.Popen([main], env=environment | {"RANK": str(i), "WORLD_SIZE": "2"}, **pipes)
            )
            for i in range(2)
        ]
        said = [rank.communicate(timeout=hosts.PATIENCE) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [5, 4]
    assert said[0][0].startswith("-5 another rank has ended, or does not answer (")
    assert (said[0][1], said[1]) == ("", ("", ""))


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        (0, "MASTER_PORT={port} is in use on this node: give all ranks a free one"),
        (1, "rank 0 has not listened at MASTER_ADDR:MASTER_PORT, nobody.invalid:{port}, for 1 s ("),
    ],
)
def test_ranks_that_cannot_meet_are_told_so_in_a_line(rank, words, environment, tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        there = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "nobody.invalid", "MASTER_PORT": port}
        impatient = OF_LAUNCHERS.replace(
            "try:", "from optplug.ctypes_api import load\nload().opt_init(b'timeout=1')\ntry:"
        )
        hosts.run(*hosts.PYTHON, "-c", impatient, env=environment | there)
    assert (tmp_path / "error").read_text().startswith(words.format(port=port))


# ---- other launchers ----


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("mpiexec", marks=hosts.needs_mpi),
        pytest.param("mpiexec.mpich", marks=hosts.needs_mpich),
    ],
)
def test_an_mpiexec_says_which_rank_a_process_is(launcher, environment, tmp_path):
    hosts.run(launcher, "-n", "2", *hosts.PYTHON, "-c", OF_LAUNCHERS, env=environment)
    assert [(tmp_path / f"said{rank}").read_text() for rank in range(2)] == ["-11.0", "-11.0"]


def slurms(environment: dict[str, str], **variables: object) -> dict[str, str]:
    """What Slurm sets for a job of four tasks, and more: none of it here, so this is what its manual says."""
    said = {"SLURM_JOB_ID": 1, "SLURM_NTASKS": 4, "SLURM_NPROCS": 4, "SLURM_NNODES": 1, "SLURM_NODEID": 0}
    return environment | {name: str(value) for name, value in {**said, **variables}.items()}


def test_srun_says_which_rank_of_a_step_a_process_is(environment, tmp_path):
    with contextlib.ExitStack() as running:
        for rank in range(2):
            variables = slurms(environment, SLURM_PROCID=rank, SLURM_LOCALID=rank, SLURM_STEP_NUM_TASKS=2)
            command = [*hosts.PYTHON, "-c", OF_LAUNCHERS]
            running.enter_context(subprocess.Popen(command, env=variables))
    assert [(tmp_path / f"said{rank}").read_text() for rank in range(2)] == ["-11.0", "-11.0"]


def test_a_batch_script_of_slurms_is_no_rank(environment, tmp_path):
    hosts.run(*hosts.PYTHON, "-c", OF_LAUNCHERS, env=slurms(environment, SLURM_PROCID=0, SLURM_LOCALID=0))
    assert "no launcher says which rank this is" in (tmp_path / "error").read_text()
