"""Measure optplug beside its peers, in one run, and write docs/benchmarks.md with two pictures."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shlex
import statistics
import sys
import time

import agreement
from peers import (
    CASES,
    FOREACH,
    LIBTORCH,
    PLAIN,
    PROCESSORS_SQRT,
    RECORDED,
    SECONDS,
    TRAFFIC,
    Peer,
    commands,
    start,
)
from pictures import draw
from report import report

LOOPS = [("loop", "AdamW"), ("loop", "RMSprop"), ("set", "AdamW")]  # of 50 values
PYTORCH = "PyTorch default"
HOSTS = ("optplug", PYTORCH, LIBTORCH)  # as a user's program has them


def measure(
    given: argparse.Namespace, peers: dict[str, Peer], kind: str, optimizer: str, count: int, size: int
) -> dict[str, float]:
    """Return the median seconds of a step for each peer that has the optimizer."""
    only = {PROCESSORS_SQRT: RECORDED, "optplug, foreach": FOREACH}
    here = {
        name: peer
        for name, peer in peers.items()
        if optimizer in only.get(name, TRAFFIC) and peer.ask(kind, optimizer, count, size)
    }
    steps = agreement.CHECKED_LOOPS if kind == "loop" else agreement.CHECKED_STEPS
    agreement.check(given.programs, here, f"{kind} {optimizer}, {count} x {size}", "values", steps)
    times: dict[str, list[float]] = {name: [] for name in here}
    for _ in range(given.rounds):
        for name, peer in here.items():
            times[name].append(peer.ask("time", SECONDS))
    for peer in here.values():
        peer.ask("end")
    return {name: statistics.median(values) for name, values in times.items()}


def take_turns(peers: dict[str, Peer], rounds: int, *words: object) -> dict[str, float]:
    """Return the median answer of optplug, PyTorch as it is by default, and LibTorch."""
    here = {name: peers[name] for name in HOSTS if name in peers}
    answers = [{name: peer.ask(*words) for name, peer in here.items()} for _ in range(rounds)]
    return {name: statistics.median(answer[name] for answer in answers) for name in here}


def run(given: argparse.Namespace) -> dict:
    """Measure everything."""
    all_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    results: dict = {"threads": sorted({1, all_threads}), "loops": [], "steps": [], "speeds": []}
    total = len(results["threads"]) * len(given.optimizers) * len(CASES)
    done, begin = 0, time.monotonic()
    for threads in results["threads"]:
        names = commands(given.programs, given.python)
        peers = {name: start(given.programs, given.python, name, threads) for name in names}
        if threads == 1:
            measure_once(given, peers, results)
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
                times = measure(given, peers, "new", optimizer, count, size)
                results["steps"].append([threads, optimizer, count, size, times])
        for arrays in (2, 3, 4):
            for _, size in CASES[:-1]:
                if size <= given.largest:
                    speeds = [peers[PLAIN].ask("memory", 4 * arrays * size) for _ in range(given.rounds)]
                    results["speeds"].append([threads, arrays, size, statistics.median(speeds)])
        for peer in peers.values():
            peer.end()
    return results


def measure_once(given: argparse.Namespace, peers: dict[str, Peer], results: dict) -> None:
    """Measure what does not depend on the number of values, or of threads."""
    for kind, optimizer in LOOPS:
        if optimizer in given.optimizers:
            print(f"{kind} of {optimizer}", file=sys.stderr)
            times = measure(given, peers, kind, optimizer, 1, 50)
            results["loops"].append([kind, optimizer, times])
    print("LBFGS, starts, saves", file=sys.stderr)
    for key in ("fresh", "evaluations"):
        results[key] = take_turns(peers, given.rounds, key, 50)
        agreement.check(given.programs, {n: peers[n] for n in ("optplug", PYTORCH)}, f"{key} of LBFGS")
    results["live"] = take_turns(peers, given.rounds, "live", 0)
    results["first"] = take_turns(peers, given.rounds, "first", 0)
    results["life"] = take_turns(peers, given.rounds, "life", 0)
    results["start"] = measure_start(given)
    results["growth"] = grow(peers["optplug"], given.rounds)
    results["saves"] = [
        [size, *(measure_save(peers[name], size, given.rounds) for name in ("optplug", PYTORCH))]
        for size in (10**4, 10**6, 10**7)
        if size <= given.largest
    ]


def measure_start(given: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of a program until it has made the first three steps."""
    times: dict[str, list[float]] = {}
    for _ in range(given.rounds):
        for name in HOSTS:
            if name in commands(given.programs, given.python):
                begin = time.monotonic()
                peer = start(given.programs, given.python, name, 1)
                peer.ask("new", "Adam", 1, 50)
                times.setdefault(name, []).append(time.monotonic() - begin)
                peer.end()
    return {name: statistics.median(values) for name, values in times.items()}


def measure_save(peer: Peer, size: int, rounds: int) -> float:
    """Return the median seconds that it takes to save the state of Adam for so many values."""
    return statistics.median(peer.ask("save", size) for _ in range(rounds))


def grow(peer: Peer, rounds: int) -> dict:
    """Measure how a step grows with parameters and with handles."""

    def median(*words: object) -> float:
        return statistics.median(peer.ask(*words) for _ in range(rounds))

    parameters = {}
    for count in (1, 10, 100, 1000):
        peer.ask("new", "Adam", count, 100)
        parameters[count] = median("time", SECONDS)
        peer.ask("end")
    return {
        "parameters": parameters,
        "handles": {count: median("handles", count) for count in (1, 10, 100, 1000)},
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", type=pathlib.Path, help="the folder of the built programs")
    parser.add_argument("docs", type=pathlib.Path, help="the folder to write benchmarks.md to")
    parser.add_argument(
        "--python",
        default=shlex.quote(sys.executable),
        help="what starts PyTorch's Python (default: this one)",
    )
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
