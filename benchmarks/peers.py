"""What is measured beside what: the optimizers, the sizes, and the programs that step them.

Each peer is a process that is told what to do (see ``server.h``), so that all take turns, round by round.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
# The optimizers, with the arrays of float32 that a step reads and writes for each value in one pass over
# them, and how many arrays those are; None where a step is more than such a pass.
TRAFFIC = {
    "Adam": (7, 4), "AdamW": (7, 4), "SGD": (3, 2), "Adagrad": (5, 3), "RMSprop": (5, 3), "NAdam": (7, 4),
    "RAdam": (7, 4), "Adamax": (7, 4), "Adadelta": (7, 4), "ASGD": (5, 3), "Rprop": (7, 4),
    "Adafactor": None, "LBFGS": None, "Muon": None, "SparseAdam": None,
}  # fmt: skip
TIMES = "\N{MULTIPLICATION SIGN}"
CASES = [(1, n) for n in (10, 50, 1000, 10**4, 10**5, 10**6, 10**7)] + [(200, 100)]
LIBTORCH = "LibTorch C++"
PLAIN, AS_TORCH = "plain C loop", "the same with PyTorch's roundings"
PYTHON = ("PyTorch default", "PyTorch foreach", "PyTorch fused")
# Where foreach=True gives other bits than PyTorch's default, so that optplug takes it only if told to.
FOREACH = ("NAdam", "RAdam", "ASGD", "Adafactor")
# The element-wise ones without kernels of torch's, whose steps are records; with another square root, too.
RECORDED = ("ASGD", "Adadelta", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop")
PROCESSORS_SQRT = "optplug, sqrt='processor'"
SECONDS = 0.02  # of each measurement


class Peer:
    """A process that steps an optimizer of its own when told to."""

    def __init__(self, command: list[str], threads: int, **environment: str) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), **environment}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env, text=True)

    def ask(self, *words: object) -> float:
        """Give a command and return the answer."""
        self._process.stdin.write("\t".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self._process.args} has ended; it was told {words}")
        return float(answer)

    def end(self) -> None:
        """Let the process end."""
        self._process.stdin.close()
        self._process.wait()


def values_of(programs: pathlib.Path, name: str) -> pathlib.Path:
    """Return the file that a peer writes its values to."""
    return programs / f"{name}.values"


def commands(programs: pathlib.Path, python: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return the programs that can be measured here, with what their environment has besides.

    Args:
        programs: the folder of those that were built.
        python: the command that starts a Python with PyTorch.
    """
    steps = [str(programs / "steps")]
    found: dict[str, tuple[list[str], dict[str, str]]] = {
        "optplug": (steps, {}),
        "optplug, foreach": (steps, {"BENCHMARK_ARGUMENTS": ", foreach=True"}),
        PROCESSORS_SQRT: (steps, {"BENCHMARK_OPTIONS": "sqrt='processor'"}),
    }
    for name in PYTHON:
        found[name] = ([*shlex.split(python), str(HERE / "python_steps.py"), name.split()[1]], {})
    if (programs / "libtorch").exists():
        found[LIBTORCH] = ([str(programs / "libtorch")], {})
    found[PLAIN] = ([str(programs / "plain")], {})
    if (programs / "as_torch").exists():
        found[AS_TORCH] = ([str(programs / "as_torch")], {})
    return found


def start(programs: pathlib.Path, python: str, name: str, threads: int) -> Peer:
    """Start one of them."""
    command, environment = commands(programs, python)[name]
    return Peer(command, threads, BENCHMARK_VALUES=str(values_of(programs, name)), **environment)
