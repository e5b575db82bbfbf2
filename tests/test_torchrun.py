"""Ranks of torch.distributed: C programs that torchrun starts."""

from __future__ import annotations

import pathlib
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


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "main.c").write_text(PROGRAM)
    library = pathlib.Path(optplug.library()).parent
    flags = [f"-I{optplug.includedir()}", f"-L{library}", "-loptplug", f"-Wl,-rpath,{library}"]
    for options in (("-o", "main"), ("-o", "main.so", "-shared", "-fPIC")):
        subprocess.run([hosts.CC, "main.c", *flags, *options], cwd=folder, check=True)
    return folder / "main"


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
