"""The pictures of the page."""

from __future__ import annotations

import pathlib

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peers import CASES, PROCESSORS_SQRT, RECORDED, TRAFFIC
from report import find, number

SIZES = [size for count, size in CASES if count == 1]


def draw(results: dict, folder: pathlib.Path) -> None:
    """Draw a loop, a step by its size, and what of the speed of memory it reaches."""
    draw_loops(results).savefig(folder / "benchmarks-loop.png", dpi=110)
    draw_times(results).savefig(folder / "benchmarks-time.png", dpi=110)
    draw_limits(results).savefig(folder / "benchmarks-limit.png", dpi=110)


def draw_loops(results: dict) -> Figure:
    """Draw how long an iteration takes in each peer."""
    loops = [(optimizer, times) for kind, optimizer, times in results["loops"] if kind == "loop"]
    figure = Figure(figsize=(11, 3), layout="constrained")
    for panel, (optimizer, times) in zip(
        figure.subplots(1, len(loops), sharex=True, squeeze=False)[0], loops, strict=True
    ):
        names = [name for name in times if name != PROCESSORS_SQRT][::-1]
        colours = ["black" if name == "optplug" else "tab:blue" for name in names]
        bars = panel.barh(names, [times[name] * 1e6 for name in names], color=colours)
        panel.bar_label(bars, [f"{times[name] * 1e6:.3g}" for name in names], padding=3)
        panel.set(title=f"{optimizer}, 50 values", xlabel="microseconds an iteration", xscale="log")
        panel.margins(x=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def panels_of(results: dict) -> tuple[Figure, list[tuple[Axes, int]]]:
    """Return a figure with a panel for each number of threads."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(results["threads"]), sharey=True, squeeze=False)[0]
    return figure, list(zip(panels, results["threads"], strict=True))


def draw_times(results: dict) -> Figure:
    """Draw a step of Adam by the number of values."""
    figure, panels = panels_of(results)
    for panel, threads in panels:
        rows = [(size, find(results, threads, "Adam", 1, size)) for size in SIZES]
        for name in dict.fromkeys(name for _, times in rows for name in times):
            points = [(size, times[name] * 1e6) for size, times in rows if name in times]
            style = {"linewidth": 2.5, "color": "black"} if name == "optplug" else {}
            panel.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=name, **style)
        panel.set(title=f"Adam, {number(threads)}", xlabel="values (float32)")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("microseconds a step")
    panels[0][0].legend()
    return figure


def draw_limits(results: dict) -> Figure:
    """Draw which fraction of the speed of memory the steps of long arrays reach."""
    speeds = {(threads, arrays, size): speed for threads, arrays, size, speed in results["speeds"]}
    figure, panels = panels_of(results)
    for panel, threads in panels:
        for optimizer, traffic in TRAFFIC.items():
            points = []
            for size in SIZES[3:]:  # below, no step is about memory
                times = find(results, threads, optimizer, 1, size)
                ours = times.get("optplug")
                if traffic and ours and (threads, traffic[1], size) in speeds:
                    limit = 4 * traffic[0] * size / speeds[threads, traffic[1], size]
                    points.append((size, limit / ours))
            if points:
                style = {"linestyle": "--"} if optimizer in RECORDED else {}
                style |= {"marker": "o", "markersize": 3}
                panel.semilogx(*zip(*points, strict=True), label=optimizer, **style)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set(title=number(threads), xlabel="values (float32)", ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("fraction of the speed of memory")
    if panels[-1][0].lines[1:]:
        panels[-1][0].legend(fontsize=8, ncols=2)
    return figure
