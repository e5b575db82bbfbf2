"""Measure optplug beside its peers, in one run, and write docs/benchmarks.md with two pictures."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

from optplug.compiled import OPTIMIZERS as COMPILED
from peers import CASES, FOREACH, SECONDS, TRAFFIC, Peer, start_peers
from pictures import draw
from report import report


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
