"""Measure opt_step from a C host beside PyTorch's own step, on this machine, in less than a minute."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

import optplug
from optplug import recipe, spec
from optplug.recipe import Recipe
from optplug.tools.report import Told

SPECS = ("Adam()", "SGD(momentum=0.9)")
SIZES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
TABLE = "microseconds of a step"
#: The command that starts the C host.
PROBE = (str(pathlib.Path(optplug.__file__).with_name("bin") / "optplug-probe"),)
_ROUNDS, _SECONDS = 7, 0.02  # of each measurement
_WARM_UP = 8


def run(specs: list[str], sizes: list[int], options: str, told: Told) -> dict[str, Any]:
    """Return the machine's facts and, as rows, the median microseconds of a step of each spec and size.

    optplug and PyTorch take turns, round by round.

    Args:
        specs: of optimizers that step one array of float32, of each size.
        sizes: in values.
        options: for opt_init; PyTorch here gets the num_threads among them.
        told: is told how far it has come.

    Raises:
        ValueError: a spec that cannot be read, or an optimizer that cannot step such an array.
    """
    cases = [(text, size) for text in specs for size in sizes]
    modules = sorted(set().union(*(spec.modules(spec.parse(text)) for text in specs)))
    if modules and "third_party" not in spec.arguments(options):
        options = f"{options}, third_party={modules}"
    load = f"{os.getloadavg()[0]:.1f} before, of {os.cpu_count()} cores"
    rows = []
    with _Host(options) as host:
        told("starting a C host", 0, 0)
        host.seconds(specs[0], sizes[0])  # which says what is wrong with the options
        threads = spec.arguments(options).get("num_threads")
        if threads:
            torch.set_num_threads(threads)
        for done, (text, size) in enumerate(cases):
            told(f"{text}, {size} values", done, len(cases))
            rows.append(_measure(host, text, size))
        facts = host.facts()
    return facts | {"load": load, TABLE: rows}


def curves(results: dict[str, Any]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Return what `plot.draw` takes."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in results[TABLE]:
        for name in ("optplug", "torch", "torch, fused"):
            if row[name] is not None:
                x, y = panels.setdefault(row["spec"], {}).setdefault(name, ([], []))
                x.append(row["values"])
                y.append(row[name])
    return {f"{text}, µs a step": found for text, found in panels.items()}


class _Host:
    """The C host, which steps what it is told to."""

    def __init__(self, options: str) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([*PROBE, options], stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def __enter__(self) -> _Host:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(BrokenPipeError), self._process:
            pass  # closes the pipes, at which it ends

    def seconds(self, text: str, size: int) -> float:
        """Return the seconds of a step."""
        with contextlib.suppress(BrokenPipeError):  # it says why it has ended
            self._stdin.write(f"{size} {_SECONDS} {text}\n")
            self._stdin.flush()
        word, _, said = self._stdout.readline().strip().partition(": ")
        if word != "seconds":
            raise ValueError(said or "the C host has ended: `python -m optplug doctor` may say why")
        return float(said)

    def facts(self) -> dict[str, Any]:
        """Return what was measured: when, where, and of which versions."""
        self._stdin.close()
        described = dict(line.strip().partition(": ")[::2] for line in self._stdout)
        return {
            "date": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
            "processor": processor(),
            "system": platform.platform(),
            "optplug": described["optplug"],
            "torch": str(torch.__version__),
            "threads": f"{described['threads']} for optplug, {torch.get_num_threads()} for torch",
            "timed": f"medians of {_ROUNDS} rounds of {_SECONDS} s, one array of float32",
        }


def _measure(host: _Host, text: str, size: int) -> dict[str, Any]:
    text = " ".join(text.split())
    times: dict[str, list[float]] = {"optplug": [host.seconds(text, size)]}  # which may say what is wrong
    known = recipe.read(text, True)  # whose modules the host has been allowed to import
    if known.is_torchs:
        known = dataclasses.replace(known, class_=getattr(torch.optim, known.name))  # as it is, not lean
    ways = {"torch": _stepper(known, known.arguments, size)}
    if known.may_fuse:
        ways["torch, fused"] = _stepper(known, {**known.arguments, "fused": True}, size)
    for _ in range(_ROUNDS):
        times["optplug"].append(host.seconds(text, size))
        for name, step in ways.items():
            times.setdefault(name, []).append(seconds_of(step, _SECONDS))
    medians = {name: 1e6 * statistics.median(values[-_ROUNDS:]) for name, values in times.items()}
    ours, torchs, fused = medians["optplug"], medians["torch"], medians.get("torch, fused")
    return {
        "spec": text,
        "values": size,
        "optplug": ours,
        "torch": torchs,
        "torch, fused": fused,
        "torch / optplug": torchs / ours,
        "fused / optplug": fused and fused / ours,
    }


def _stepper(known: Recipe, arguments: dict[str, Any], size: int) -> Callable[[], object]:
    parameter = torch.nn.Parameter(torch.full([size], 0.1))
    parameter.grad = torch.full([size], 0.1)
    step = known.build([{"params": [("w", parameter)]}], arguments).step
    for _ in range(_WARM_UP):
        step()
    return step


def seconds_of(function: Callable[[], object], least: float) -> float:
    """Return the seconds that one call takes, of as many as fill ``least`` seconds."""
    done, batch, start, spent = 0, 1, time.perf_counter(), 0.0
    while spent < least:
        for _ in range(batch):
            function()
        done, batch, spent = done + batch, 2 * batch, time.perf_counter() - start
    return spent / done


def processor() -> str:
    """Return what this machine's processor calls itself."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
