"""The page of what was measured, docs/benchmarks.md."""

from __future__ import annotations

import datetime
import platform

import torch

import optplug
from agreement import TOLERANCE
from optplug.tools.bench import processor
from peers import (
    AS_TORCH,
    CASES,
    FOREACH,
    LIBTORCH,
    PLAIN,
    PROCESSORS_SQRT,
    PYTHON,
    RECORDED,
    TIMES,
    TRAFFIC,
)

# The classes whose steps treat each value alone.
ELEMENTWISE = [name for name, traffic in TRAFFIC.items() if traffic]


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


def fastest_way(times: dict[str, float]) -> str:
    """Return which of PyTorch's own ways is the fastest."""
    return min((name for name in PYTHON if name in times), key=times.__getitem__)


def fastest_python(times: dict[str, float]) -> float:
    """Return the time of the fastest of PyTorch's own ways."""
    return times[fastest_way(times)]


def our_fastest(times: dict[str, float]) -> float:
    """Return the time of optplug's fastest way with PyTorch's numbers."""
    return min(times[name] for name in ("optplug", "optplug, foreach") if name in times)


def words(ours: float, theirs: float) -> str:
    """Say how much faster optplug is than a peer, so that it cannot be read the other way round."""
    times = theirs / ours
    if f"{times:.2f}" == "1.00":
        return f"1 {TIMES} (the same)"
    if times < 1:
        return f"{times:.2g} {TIMES} (slower)"
    return f"{times:,.{2 if times < 2 else 1 if times < 10 else 0}f} {TIMES} faster"


def comparison(what: str, threads: int, times: dict[str, float], peer: str) -> list[str]:
    """Return the row that compares optplug with a peer, or none where one of them is missing."""
    if peer not in times or "optplug" not in times:
        return []
    cells = [what, str(threads), *(f"{microseconds(times[name])} µs" for name in ("optplug", peer))]
    return [f"| {' | '.join([*cells, words(times['optplug'], times[peer])])} |"]


COMPARED = ["| | threads | optplug | peer | |", "|---|---|---|---|---|"]
AGAINST = {
    "PyTorch default": "PyTorch",
    "PyTorch foreach": "PyTorch with `foreach=True`",
    "PyTorch fused": "PyTorch with `fused=True`",
    LIBTORCH: "LibTorch's C++",
}


def loops(results: dict) -> list[str]:
    """Return the table of training loops."""
    lines = []
    for kind, optimizer, times in results["loops"]:
        what = optimizer + (", `opt_set_value` of lr and `opt_step`" if kind == "set" else "")
        for peer, name in AGAINST.items():
            lines += comparison(f"{what}, against {name}", 1, times, peer)
    return [*COMPARED, *lines]


def goals(results: dict) -> list[str]:
    """Return the table of what optplug means to reach."""
    most = results["threads"][-1]
    lines = []

    def add(what: str, threads: int, optimizer: str, count: int, size: int, peer: str) -> None:
        lines.extend(comparison(what, threads, find(results, threads, optimizer, count, size), peer))

    add("Adam, 50 values, against `torch.optim.Adam`", 1, "Adam", 1, 50, "PyTorch default")
    add("Adam, 50 values, against LibTorch's C++", 1, "Adam", 1, 50, LIBTORCH)
    add("SGD, 50 values, against LibTorch's C++", 1, "SGD", 1, 50, LIBTORCH)
    add(f"Adam, 200 {TIMES} 100, against `fused=True`", 1, "Adam", 200, 100, "PyTorch fused")
    for optimizer in ("Adam", "AdamW"):
        for size in (10**6, 10**7):
            for threads in dict.fromkeys((1, most)):
                for peer, how in ((PLAIN, ""), (AS_TORCH, " with PyTorch's roundings")):
                    what = f"{optimizer}, {size:,}, against a plain C loop{how}"
                    add(what, threads, optimizer, 1, size, peer)
    for peer in ("PyTorch default", LIBTORCH):
        for key, when in (("evaluations", "an"), ("fresh", "an early")):
            what = f"LBFGS, 50 values, {when} evaluation beside the closure, against {AGAINST[peer]}"
            lines += comparison(what, 1, results[key], peer)
    return [*COMPARED, *lines]


def fastest(results: dict) -> list[str]:
    """Return the table of the classes without fused kernels, against the fastest of PyTorch's ways."""
    head = ["optimizer", "values", "PyTorch's fastest", "", "optplug", "", "with the processor's sqrt", ""]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for optimizer in RECORDED:
        for size in (50, 10**6, 10**7):
            times = find(results, 1, optimizer, 1, size)
            if times:
                way = fastest_way(times)
                cells = [optimizer, f"{size:,}", microseconds(times[way]), way.split()[1]]
                lines.append(against(times, way, *cells))
    return lines


def many(results: dict) -> list[str]:
    """Return the table of many small parameters, against foreach."""
    head = ["optimizer", "PyTorch foreach", "optplug", "", "with the processor's sqrt", ""]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for optimizer in ELEMENTWISE:
        times = find(results, 1, optimizer, *CASES[-1])
        if times:
            lines.append(against(times, "PyTorch foreach", optimizer, microseconds(times["PyTorch foreach"])))
    return lines


def against(times: dict[str, float], peer: str, *first: str) -> str:
    """Return a row: its first cells, and optplug, with either square root, beside one of PyTorch's ways."""
    cells = list(first)
    for ours in ("optplug", PROCESSORS_SQRT):
        seconds = times.get(ours)
        cells += [microseconds(seconds), words(seconds, times[peer]) if seconds else ""]
    return f"| {' | '.join(cells)} |"


def starts(results: dict) -> list[str]:
    """Return the table of what an optimizer costs before it steps, and of a program's start."""
    names = list(results["live"])
    lines = [f"| Adam, 50 values | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for what, key, unit, factor in (
        ("`opt_create`, `opt_bind` and `opt_free`, once torch is loaded", "live", "µs", 1),
        ("the first `opt_step` of a new optimizer", "first", "µs", 1),
        ("`opt_create`, `opt_bind`, three `opt_step` and `opt_free`", "life", "µs", 1),
        ("a process, from its start until its first steps are made", "start", "s", 1e-6),
    ):
        cells = [f"{microseconds(results[key][name] * factor)} {unit}" for name in names]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return lines


def slower(results: dict) -> list[str]:
    """Return the cases in which PyTorch has a faster way of its own."""
    lines = []
    for threads, optimizer, count, size, times in results["steps"]:
        ours, theirs = our_fastest(times), fastest_python(times)
        if theirs < 0.95 * ours:
            cells = [optimizer, case_name(count, size), str(threads), fastest_way(times), words(ours, theirs)]
            lines.append(f"| {' | '.join(cells)} |")
    return ["| optimizer | values | threads | faster | optplug |", "|---|---|---|---|---|", *lines]


def table(results: dict, threads: int) -> list[str]:
    """Return all times with so many threads."""
    names = list(dict.fromkeys(name for row in results["steps"] for name in row[4]))
    head = ["optimizer", "values", *names, "optplug, against the fastest PyTorch"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for count_of_threads, optimizer, count, size, times in results["steps"]:
        if count_of_threads == threads:
            cells = [microseconds(times.get(name)) for name in names]
            cells.append(words(our_fastest(times), fastest_python(times)))
            lines.append(f"| {optimizer} | {case_name(count, size)} | {' | '.join(cells)} |")
    return lines


def report(results: dict) -> str:
    """Return docs/benchmarks.md."""
    growth = results["growth"]
    most = results["threads"][-1]
    power = f"{TOLERANCE:g}".replace("e-0", "e-")
    lines = [
        "# How fast a step is",
        "",
        "Written by `cmake --workflow --preset bench`, which anyone can run: "
        f"on {datetime.datetime.now(tz=datetime.timezone.utc):%Y-%m-%d}, on {most} cores of an "
        f"{processor()} under {platform.system()} {platform.release()}, with optplug {optplug.__version__}, "
        f"torch {torch.__version__} and Python {platform.python_version()}.",
        "",
        "Times are of one step, in microseconds, on float32: "
        "all peers take turns, round by round, and a time is the median of the quieter half of the rounds.",
        "optplug is a C program that calls `opt_step`; `sqrt='processor'` is an option "
        "of `opt_init`; PyTorch is a Python program that calls `step()` of the same optimizer, "
        "by default, with `foreach=True` and with `fused=True`; "
        "LibTorch is a C++ program with `torch::optim`; "
        "the plain loop is C, `-O3 -march=native -fno-math-errno`, with OpenMP. "
        "Its Adam takes a square root and one division for each value; "
        "PyTorch's bits take two divisions, since the bias correction is one there and no product. "
        "A second loop makes each of PyTorch's roundings: how much slower it is than the plain one "
        "is the price of the bits.",
        "",
        "Before a case is timed, optplug's values after the same steps are compared with PyTorch's, "
        "with those of `fused=True` for Adam, AdamW, SGD and Adagrad: "
        f"unless all bits agree (with `sqrt='processor'`, all values to {power}), the measurement stops.",
        "",
        "## A training loop",
        "",
        "Each iteration clips the norm of the gradients to 0.5, steps the optimizer, steps `StepLR` "
        "and updates an exponential average of the 50 values. "
        "optplug calls `opt_clip_grad_norm`, `opt_step` and `opt_schedule_step`, after one `opt_average`; "
        "PyTorch `clip_grad_norm_`, `step()`, `scheduler.step()` and `update_parameters()` of an "
        "`AveragedModel` with `get_ema_multi_avg_fn`; "
        "LibTorch has the same but for the average, which is a `lerp_`.",
        "",
        *loops(results),
        "",
        "![Time of an iteration of the loop with optplug, PyTorch and LibTorch](benchmarks-loop.png)",
        "",
        "*An iteration in microseconds, with 1 thread: shorter is faster.*",
        "",
        "## A step",
        "",
        *goals(results),
        "",
        "LBFGS takes steps with `line_search_fn='strong_wolfe'` down a quadratic; the time of its closure "
        "is subtracted. An early evaluation is one of the first four iterations, which have little history.",
        "",
        "![Time of a step of Adam against the number of values](benchmarks-time.png)",
        "",
        "*A step of Adam in microseconds, against the number of values: lower is faster.*",
        "",
        "The limit is the machine's own speed of memory, over as much of it as the step has to do with: "
        "of copying or of updating in place, whichever is faster. "
        "A fraction of 1 is a step that moves each array once and takes no time besides.",
        "",
        "![Fraction of the limit](benchmarks-limit.png)",
        "",
        "*The limit's time over the step's: at 1, a step is as fast as memory. "
        "Dashed: classes without fused kernels.*",
        "",
        "### Classes without fused kernels",
        "",
        "With the specs that name nothing but `lr`, with 1 thread, against the fastest of PyTorch's default, "
        "which is a loop over parameters, and `foreach=True`.",
        "",
        *fastest(results),
        "",
        "### 200 parameters of 100 values",
        "",
        *many(results),
        "",
        "### Where PyTorch has a faster way",
        "",
        "By more than 5 percent.",
        "optplug takes the numbers of PyTorch's default, which is a loop over parameters, and `foreach=True` "
        f"only if the spec says so, which gives other bits in {', '.join(FOREACH[:-1])} and {FOREACH[-1]}: "
        "both are measured, and the faster one is compared.",
        "Loops over large arrays make temporary ones, which the C library's `malloc` may take from the "
        "system anew each time, or not: the same step of the same program varies by a factor of 2. "
        "`MALLOC_MMAP_THRESHOLD_=1000000000` in the environment brings the faster of the two, and "
        "recorded steps need no temporary arrays.",
        "",
        *slower(results),
        "",
        "## What else costs",
        "",
        "PyTorch and LibTorch wrap the same arrays as parameters and create their optimizer.",
        "",
        *starts(results),
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
