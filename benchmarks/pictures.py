"""The two pictures of the page."""

from __future__ import annotations

import pathlib

from matplotlib.figure import Figure

from peers import CASES, RECORDED, TRAFFIC
from report import find, number


def draw(results: dict, folder: pathlib.Path) -> None:
    """Draw the two pictures."""
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
                ours = times.get("optplug")
                if traffic and ours and (threads, traffic[1], size) in speeds:
                    limit = 4 * traffic[0] * size / speeds[threads, traffic[1], size]
                    points.append((size, limit / ours))
            if points:
                label = optimizer
                dashed = {"linestyle": "--"} if optimizer in RECORDED else {}
                panel.semilogx(*zip(*points, strict=True), marker="o", markersize=3, label=label, **dashed)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set(title=number(threads), xlabel="values (float32)", ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("fraction of the speed of memory")
    panels[-1].legend(fontsize=8, ncols=2)
    figure.savefig(folder / "benchmarks-limit.png", dpi=110)
