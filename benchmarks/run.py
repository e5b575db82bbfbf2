"""Measure optplug beside its peers, in one run, and write docs/benchmarks.md with two pictures."""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import pathlib
import shlex
import statistics
import sys
import time
from collections.abc import Callable

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


def in_turn(rounds: int, asks: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Ask all in turn, round by round, and return each one's median of the quieter half of the rounds.

    How busy the machine was in a round shows in all that were asked in it: by how much they took longer,
    taken together, than each one's least.
    """
    answers = [{name: ask() for name, ask in asks.items()} for _ in range(rounds)]
    least = {name: min(answer[name] for answer in answers) for name in asks}
    answers.sort(key=lambda answer: sum(math.log(answer[name] / least[name]) for name in asks))
    quieter = answers[: (rounds + 1) // 2]
    return {name: statistics.median(answer[name] for answer in quieter) for name in asks}


def measure(
    given: argparse.Namespace, peers: dict[str, Peer], kind: str, optimizer: str, count: int, size: int
) -> dict[str, float]:
    """Return the seconds of a step for each peer that has the optimizer."""
    only = {PROCESSORS_SQRT: RECORDED, "optplug, foreach": FOREACH}
    here = {
        name: peer
        for name, peer in peers.items()
        if optimizer in only.get(name, TRAFFIC) and peer.ask(kind, optimizer, count, size)
    }
    steps = agreement.CHECKED_LOOPS if kind == "loop" else agreement.CHECKED_STEPS
    agreement.check(given.programs, here, f"{kind} {optimizer}, {count} x {size}", "values", steps)
    times = ask(here, given.rounds, "time", SECONDS)
    for peer in here.values():
        peer.ask("end")
    return times


def ask(peers: dict[str, Peer], rounds: int, *words: object) -> dict[str, float]:
    """Return what each peer answers, in turn."""
    return in_turn(rounds, {name: functools.partial(peer.ask, *words) for name, peer in peers.items()})


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
                    speed = speed_of_memory(peers[PLAIN], given.rounds, 4 * arrays * size)
                    results["speeds"].append([threads, arrays, size, speed])
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
    hosts = {name: peers[name] for name in HOSTS if name in peers}
    savers = {name: peers[name] for name in ("optplug", PYTORCH)}
    for key in ("fresh", "evaluations"):
        results[key] = ask(hosts, given.rounds, key, 50)
        agreement.check(given.programs, savers, f"{key} of LBFGS")
    for key in ("live", "first", "life"):
        results[key] = ask(hosts, given.rounds, key, 0)
    results["start"] = in_turn(
        given.rounds, {name: functools.partial(start_up, given, name) for name in hosts}
    )
    results["growth"] = grow(peers["optplug"], given.rounds)
    results["saves"] = [
        [size, *ask(savers, given.rounds, "save", size).values()]
        for size in (10**4, 10**6, 10**7)
        if size <= given.largest
    ]


def start_up(given: argparse.Namespace, name: str) -> float:
    """Return the seconds of a program until it has made the first three steps."""
    at = time.monotonic()
    peer = start(given.programs, given.python, name, 1)
    peer.ask("new", "Adam", 1, 50)
    seconds = time.monotonic() - at
    peer.end()
    return seconds


def speed_of_memory(peer: Peer, rounds: int, size: int) -> float:
    """Return the bytes a second, read and written, over so much memory."""
    return 1 / in_turn(rounds, {"a byte": lambda: 1 / peer.ask("memory", size)})["a byte"]


def grow(peer: Peer, rounds: int) -> dict:
    """Measure how a step grows with parameters and with handles."""

    def seconds(*words: object) -> float:
        return ask({"": peer}, rounds, *words)[""]

    parameters = {}
    for count in (1, 10, 100, 1000):
        peer.ask("new", "Adam", count, 100)
        parameters[count] = seconds("time", SECONDS)
        peer.ask("end")
    return {
        "parameters": parameters,
        "handles": {count: seconds("handles", count) for count in (1, 10, 100, 1000)},
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
    parser.add_argument("--rounds", type=int, default=12, help="measurements of each time (default: 12)")
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
