"""Measure optplug beside its peers, in one run, and write docs/benchmarks.md with two pictures.

Each peer is a process that is told what to do (see ``server.h``), so that all take turns, round by round.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import torch

import optplug
from optplug.compiled import OPTIMIZERS as COMPILED
from optplug.tools.bench import processor

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
PYTHON = ("PyTorch default", "PyTorch foreach", "PyTorch fused")
# Where foreach=True gives other bits than PyTorch's default, so that optplug takes it only if told to.
FOREACH = ("NAdam", "RAdam", "ASGD", "Adafactor")
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


def start_peers(programs: pathlib.Path, threads: int) -> dict[str, Peer]:
    """Start all that can be measured here."""
    peers = {
        "optplug": Peer([str(programs / "steps")], threads),
        "optplug, foreach": Peer([str(programs / "steps")], threads, BENCHMARK_ARGUMENTS=", foreach=True"),
        "optplug, compiled": Peer([str(programs / "steps")], threads, BENCHMARK_OPTIONS="compile=True"),
    }
    for name in PYTHON:
        script = [sys.executable, str(HERE / "python_steps.py"), name.split()[1]]
        peers[name] = Peer(script, threads)
    if (programs / "libtorch").exists():
        peers["LibTorch C++"] = Peer([str(programs / "libtorch")], threads)
    peers["plain C loop"] = Peer([str(programs / "plain")], threads)
    return peers


def measure(peers: dict[str, Peer], optimizer: str, count: int, size: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of a step for each peer that has the optimizer."""
    only = {"optplug, compiled": COMPILED, "optplug, foreach": FOREACH}
    here = {
        name: peer
        for name, peer in peers.items()
        if optimizer in only.get(name, TRAFFIC) and peer.ask("new", optimizer, count, size)
    }
    times: dict[str, list[float]] = {name: [] for name in here}
    for _ in range(rounds):
        for name, peer in here.items():
            times[name].append(peer.ask("time", SECONDS))
    for peer in here.values():
        peer.ask("end")
    return {name: statistics.median(values) for name, values in times.items()}


def run(given: argparse.Namespace) -> dict:
    """Measure everything."""
    all_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    results: dict = {"threads": sorted({1, all_threads}), "steps": [], "speeds": [], "growth": {}}
    total = len(results["threads"]) * len(given.optimizers) * len(CASES)
    done, begin = 0, time.monotonic()
    for threads in results["threads"]:
        peers = start_peers(given.programs, threads)
        for optimizer in given.optimizers:
            for count, size in CASES:
                done += 1
                spent = time.monotonic() - begin
                print(
                    f"[{done}/{total}] {spent:.0f} s: {optimizer}, {count} x {size}, {threads} threads",
                    file=sys.stderr,
                )
                if size > given.largest:
                    continue
                times = measure(peers, optimizer, count, size, given.rounds)
                results["steps"].append([threads, optimizer, count, size, times])
        for arrays in (2, 3, 4):
            for _, size in CASES[:-1]:
                if size <= given.largest:
                    speeds = [
                        peers["plain C loop"].ask("memory", 4 * arrays * size) for _ in range(given.rounds)
                    ]
                    results["speeds"].append([threads, arrays, size, statistics.median(speeds)])
        if threads == 1:
            results["growth"] = grow(peers["optplug"], given.rounds)
            results["saves"] = [
                [size, *(measure_save(peers[n], size, given.rounds) for n in ("optplug", "PyTorch default"))]
                for size in (10**4, 10**6, 10**7)
                if size <= given.largest
            ]
        for peer in peers.values():
            peer.end()
    return results


def measure_save(peer: Peer, size: int, rounds: int) -> float:
    """Return the median seconds that it takes to save the state of Adam for so many values."""
    return statistics.median(peer.ask("save", size) for _ in range(rounds))


def grow(peer: Peer, rounds: int) -> dict:
    """Measure create, bind and free, and how a step grows with parameters and with handles."""

    def median(*words: object) -> float:
        return statistics.median(peer.ask(*words) for _ in range(rounds))

    parameters = {}
    for count in (1, 10, 100, 1000):
        peer.ask("new", "Adam", count, 100)
        parameters[count] = median("time", SECONDS)
        peer.ask("end")
    return {
        "live": median("live", 0),
        "parameters": parameters,
        "handles": {count: median("handles", count) for count in (1, 10, 100, 1000)},
    }


# ---- the report ----


def microseconds(seconds: float | None) -> str:
    """Format a time with three digits."""
    if seconds is None:
        return ""
    value = seconds * 1e6
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def case_name(count: int, size: int) -> str:
    """Format the size of a case."""
    return f"{size:,}" if count == 1 else f"{count} {TIMES} {size}"


def number(threads: int) -> str:
    """Format a number of threads."""
    return f"{threads} thread{'s' * (threads > 1)}"


def find(results: dict, threads: int, optimizer: str, count: int, size: int) -> dict[str, float]:
    """Return the times of a case, or nothing."""
    return next((row[4] for row in results["steps"] if row[:4] == [threads, optimizer, count, size]), {})


def fastest_python(times: dict[str, float]) -> float:
    """Return the time of the fastest of PyTorch's own ways."""
    return min(times[name] for name in PYTHON if name in times)


def ratio(times: dict[str, float]) -> float:
    """Return how much faster optplug is than PyTorch, each in its fastest way."""
    ours = min(times[name] for name in ("optplug", "optplug, foreach") if name in times)
    return fastest_python(times) / ours


def goals(results: dict) -> list[str]:
    """Return the table of what optplug means to reach."""
    most = results["threads"][-1]
    lines = ["| | threads | optplug | peer | ratio |", "|---|---|---|---|---|"]

    def add(what: str, threads: int, optimizer: str, count: int, size: int, peer: str) -> None:
        times = find(results, threads, optimizer, count, size)
        if peer in times:
            ours, theirs = times["optplug"], times[peer]
            lines.append(
                f"| {what} | {threads} | {microseconds(ours)} µs | {microseconds(theirs)} µs "
                f"| {theirs / ours:.1f} {TIMES} ({'faster' if theirs > ours else 'slower'}) |"
            )

    add("Adam, 50 values, against `torch.optim.Adam`", 1, "Adam", 1, 50, "PyTorch default")
    add("Adam, 50 values, against LibTorch's C++", 1, "Adam", 1, 50, "LibTorch C++")
    add("SGD, 50 values, against LibTorch's C++", 1, "SGD", 1, 50, "LibTorch C++")
    add(f"Adam, 200 {TIMES} 100, against `fused=True`", 1, "Adam", 200, 100, "PyTorch fused")
    for size in (10**6, 10**7):
        for threads in dict.fromkeys((1, most)):
            add(f"Adam, {size:,}, against a plain C loop", threads, "Adam", 1, size, "plain C loop")
    return lines


def slower(results: dict) -> list[str]:
    """Return the cases in which PyTorch has a faster way of its own."""
    lines = []
    for threads, optimizer, count, size, times in results["steps"]:
        if ratio(times) < 0.95:
            names = [n for n in PYTHON if times.get(n) == fastest_python(times)]
            lines.append(
                f"| {optimizer} | {case_name(count, size)} | {threads} | {names[0]} | {ratio(times):.2f} |"
            )
    return ["| optimizer | values | threads | faster | ratio |", "|---|---|---|---|---|", *lines]


def table(results: dict, threads: int) -> list[str]:
    """Return all times with so many threads."""
    names = list(dict.fromkeys(name for row in results["steps"] for name in row[4]))
    head = ["optimizer", "values", *names, "speed relative to the fastest PyTorch"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for count_of_threads, optimizer, count, size, times in results["steps"]:
        if count_of_threads == threads:
            cells = [microseconds(times.get(name)) for name in names]
            cells.append(f"{ratio(times):.2f} {TIMES}")
            lines.append(f"| {optimizer} | {case_name(count, size)} | {' | '.join(cells)} |")
    return lines


def report(results: dict) -> str:
    """Return docs/benchmarks.md."""
    growth = results["growth"]
    most = results["threads"][-1]
    lines = [
        "# How fast a step is",
        "",
        "Written by `cmake --workflow --preset bench`, which anyone can run: "
        f"on {datetime.datetime.now(tz=datetime.timezone.utc):%Y-%m-%d}, on {most} cores of an "
        f"{processor()} under {platform.system()} {platform.release()}, with optplug {optplug.__version__}, "
        f"torch {torch.__version__} and Python {platform.python_version()}.",
        "",
        "Times are of one step, in microseconds, on float32: "
        "medians of rounds in which all peers take turns.",
        "optplug is a C program that calls `opt_step`; compiled is the same with "
        '`opt_init("compile=True")`; PyTorch is a Python program that calls `step()` of the same optimizer, '
        "by default, with `foreach=True` and with `fused=True`; "
        "LibTorch is a C++ program with `torch::optim`; "
        "the plain loop is C, `-O3 -march=native -fno-math-errno`, with OpenMP.",
        "",
        *goals(results),
        "",
        "![Time of a step of Adam against the number of values](benchmarks-time.png)",
        "",
        "The limit is the machine's own speed of memory, over as much of it as the step has to do with: "
        "of copying or of updating in place, whichever is faster. "
        "A fraction of 1 is a step that moves each array once and takes no time besides.",
        "",
        "![Fraction of the limit](benchmarks-limit.png)",
        "",
        "## Where PyTorch has a faster way",
        "",
        "By more than 5 percent.",
        "optplug takes the numbers of PyTorch's default, which is a loop over parameters; where "
        f"`foreach=True` gives other bits ({', '.join(FOREACH)}), it is taken only if the spec says so: "
        "both are measured, and the faster one is compared.",
        "Loops over large arrays make temporary ones, which the C library's `malloc` may take from the "
        "system anew each time, or not: the same step of the same program varies by a factor of 2. "
        "`MALLOC_MMAP_THRESHOLD_=1000000000` in the environment brings the faster of the two, and compiled "
        "steps need no temporary arrays.",
        "",
        *slower(results),
        "",
        "## What else costs",
        "",
        f"`opt_create`, `opt_bind` and `opt_free` of one optimizer, once torch is loaded: "
        f"{growth['live'] * 1e3:.2f} ms.",
        "",
        "| parameters of 100 values, Adam | " + " | ".join(map(str, growth["parameters"])) + " |",
        "|---|" + "---|" * len(growth["parameters"]),
        "| µs a step | " + " | ".join(map(microseconds, growth["parameters"].values())) + " |",
        "",
        "| optimizers of 50 values, stepped in turn | " + " | ".join(map(str, growth["handles"])) + " |",
        "|---|" + "---|" * len(growth["handles"]),
        "| µs a step of one | " + " | ".join(map(microseconds, growth["handles"].values())) + " |",
    ]
    lines += [
        "",
        "`opt_save` of Adam's state, beside `torch.save` and `fsync`; optplug's file has a checksum besides, "
        "and takes the old one's place only when it is whole. It needs negligible extra memory.",
        "",
        "| values | " + " | ".join(f"{size:,}" for size, _, _ in results["saves"]) + " |",
        "|---|" + "---|" * len(results["saves"]),
        "| optplug, ms | " + " | ".join(f"{ours * 1e3:.1f}" for _, ours, _ in results["saves"]) + " |",
        "| PyTorch, ms | " + " | ".join(f"{theirs * 1e3:.1f}" for _, _, theirs in results["saves"]) + " |",
    ]
    for threads in results["threads"]:
        lines += ["", f"## All times, {number(threads)}", "", *table(results, threads)]
    return "\n".join(lines) + "\n"


def draw(results: dict, folder: pathlib.Path) -> None:
    """Draw the two pictures."""
    from matplotlib.figure import Figure

    sizes = [size for count, size in CASES if count == 1]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(results["threads"]), sharey=True, squeeze=False)[0]
    for panel, threads in zip(panels, results["threads"], strict=True):
        rows = [(size, find(results, threads, "Adam", 1, size)) for size in sizes]
        for name in dict.fromkeys(name for _, times in rows for name in times):
            points = [(size, times[name] * 1e6) for size, times in rows if name in times]
            style = {"linewidth": 2.5, "color": "black"} if name == "optplug" else {}
            panel.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=name, **style)
        panel.set(title=f"Adam, {number(threads)}", xlabel="values (float32)")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("microseconds a step")
    panels[0].legend()
    figure.savefig(folder / "benchmarks-time.png", dpi=110)

    speeds = {(threads, arrays, size): speed for threads, arrays, size, speed in results["speeds"]}
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(results["threads"]), sharey=True, squeeze=False)[0]
    for panel, threads in zip(panels, results["threads"], strict=True):
        for optimizer, traffic in TRAFFIC.items():
            points = []
            for size in sizes[3:]:  # below, no step is about memory
                times = find(results, threads, optimizer, 1, size)
                ours = times.get("optplug, compiled", times.get("optplug"))
                if traffic and ours and (threads, traffic[1], size) in speeds:
                    limit = 4 * traffic[0] * size / speeds[threads, traffic[1], size]
                    points.append((size, limit / ours))
            if points:
                label = optimizer + ", compiled" * (optimizer in COMPILED)
                dashed = {"linestyle": "--"} if optimizer in COMPILED else {}
                panel.semilogx(*zip(*points, strict=True), marker="o", markersize=3, label=label, **dashed)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set(title=number(threads), xlabel="values (float32)", ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("fraction of the speed of memory")
    panels[-1].legend(fontsize=8, ncols=2)
    figure.savefig(folder / "benchmarks-limit.png", dpi=110)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", type=pathlib.Path, help="the folder of the built programs")
    parser.add_argument("docs", type=pathlib.Path, help="the folder to write benchmarks.md to")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each time (default: 5)")
    parser.add_argument("--largest", type=int, default=10**7, help="leave out more values than that")
    parser.add_argument("--optimizers", nargs="+", default=list(TRAFFIC), help="default: all")
    given = parser.parse_args()
    results = run(given)
    (given.programs / "results.json").write_text(json.dumps(results))
    (given.docs / "benchmarks.md").write_text(report(results))
    draw(results, given.docs)
    print(given.docs / "benchmarks.md")


if __name__ == "__main__":
    main()
