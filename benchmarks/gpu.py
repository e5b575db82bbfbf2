"""Measure optplug's steps on a GPU beside its peers, in one run, and write docs/benchmarks-gpu.md.

An environment with optplug and a torch for CUDA is all that it needs, and a C compiler: what it measures it
compiles itself, without CMake and without CUDA's toolkit.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time

import torch

import optplug
from optplug import devices
from optplug.tools.bench import processor
from peers import HERE, TIMES, TRAFFIC, Peer
from report import case_name, microseconds

CASES = [(1, 50), (1, 10**6), (1, 10**8), (200, 100)]
OPTPLUG, PYTORCH, LIBTORCH = "optplug", "PyTorch fused", "LibTorch C++"
STEPS = 50  # in a row: fused ones are few enough launches for the queue of a GPU, which holds 1,024
CHECKED_STEPS = 5
PASSES, ARRAYS = TRAFFIC["Adam"]
# What optplug means to reach: the host's seconds for 50 values, and the GPU's for 1e8, of the limit.
GOAL_HOST, GOAL_DEVICE = 15e-6, 1.1


def why_not() -> str:
    """Return a line that says what is missing here; "" if nothing is."""
    if torch.version.hip:
        return f"no CUDA: torch {torch.__version__} is ROCm's, whose runtime this does not know"
    try:
        devices.find("cuda:0")
    except ValueError as error:
        return str(error)
    return ""


# ---- programs ----


def error_of(command: list[str]) -> str:
    """Run a compiler, or what it has made; return the line that says why it failed, "" if it did not."""
    if not shutil.which(command[0]):
        return f"there is no {command[0]}"
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    return lines[0].strip() if lines else f"{command[0]} ended with status {done.returncode}"


def build_steps(folder: pathlib.Path, *flags: str) -> str:
    """Compile the C host; return what `error_of` does."""
    folder.mkdir(parents=True, exist_ok=True)
    config = [sys.executable, "-m", "optplug", "config", "--cflags", "--libs"]
    wanted = subprocess.run(config, capture_output=True, text=True, check=True).stdout
    compiler = os.environ.get("CC", "cc")
    # Values are compared: those that it starts from are not to be rounded in another way than Python's.
    flags = ("-O2", "-ffp-contract=off", *flags)
    source, program = str(HERE / "gpu_steps.c"), str(folder / "gpu_steps")
    return error_of([compiler, *flags, source, "-o", program, *shlex.split(wanted), "-ldl"])


def build_libtorch(folder: pathlib.Path) -> str:
    """Compile LibTorch's program, and see that it starts; return what `error_of` does."""
    home = pathlib.Path(torch.__file__).parent
    include, lib = home / "include", home / "lib"
    program = str(folder / "gpu_libtorch")
    command = [
        *(os.environ.get("CXX", "c++"), "-std=c++20", "-O2"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *("-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include")),
        *(str(HERE / "gpu_libtorch.cpp"), "-o", program),
        *(f"-L{lib}", f"-Wl,-rpath,{lib}", "-Wl,--no-as-needed"),
        *("-ltorch_cuda", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"),
    ]
    return error_of(command) or error_of([program])


def start_peers(folder: pathlib.Path, has_libtorch: bool) -> dict[str, Peer]:
    """Start all that can be measured here."""
    commands = {
        OPTPLUG: [str(folder / "gpu_steps")],
        PYTORCH: [sys.executable, str(HERE / "gpu_steps.py")],
        LIBTORCH: [str(folder / "gpu_libtorch")],
    }
    if not has_libtorch:
        del commands[LIBTORCH]
    environment = {"OPTPLUG_PYTHON": sys.executable, "BENCHMARK_CUDA": cuda_runtime()}
    return {
        name: Peer(command, 1, **environment, BENCHMARK_VALUES=str(values_of(folder, name)))
        for name, command in commands.items()
    }


def cuda_runtime() -> str:
    """Return the library of the CUDA runtime: that which torch has loaded, or one that the loader knows."""
    loaded = re.search(r"/.*/libcudart\.so.*", pathlib.Path("/proc/self/maps").read_text())
    return loaded[0] if loaded else f"libcudart.so.{torch.version.cuda.split('.')[0]}"


# ---- measuring ----


def values_of(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Return the file that a peer writes its values to."""
    return folder / f"{name}.values"


def differing(peers: dict[str, Peer], folder: pathlib.Path, count: int, size: int) -> int:
    """Return how many values optplug and PyTorch have made different of the same, in some steps."""
    made = []
    for name in (OPTPLUG, PYTORCH):
        peers[name].ask("new", "Adam", count, size)
        peers[name].ask("values", CHECKED_STEPS)
        peers[name].ask("end")
        file = values_of(folder, name)
        made.append(torch.from_file(str(file), size=count * size, dtype=torch.int32))
        file.unlink()
    return int(torch.count_nonzero(made[0] != made[1]))


def measure(peers: dict[str, Peer], count: int, size: int, rounds: int) -> tuple[float, dict]:
    """Return the bytes a second of a copy, and each peer's median seconds of a step, host and device."""
    speeds: list[float] = []
    times: dict[str, dict[str, list[float]]] = {}
    for name, peer in peers.items():
        peer.ask("new", "Adam", count, size)
        times[name] = {"host": [], "device": []}
    for _ in range(rounds):
        speeds.append(peers[OPTPLUG].ask("memory", 4 * ARRAYS * count * size))
        for name, peer in peers.items():
            for what, values in times[name].items():
                values.append(peer.ask(what, STEPS))
    for peer in peers.values():
        peer.ask("end")
    medians = {
        name: {what: statistics.median(values) for what, values in kinds.items()}
        for name, kinds in times.items()
    }
    return statistics.median(speeds), medians


def run(given: argparse.Namespace, without_libtorch: str) -> dict:
    """Compare values, and measure everything."""
    cases = [(count, size) for count, size in CASES if count * size <= given.largest]
    results = {**facts(), "rounds": given.rounds, "without_libtorch": without_libtorch, "steps": []}
    peers = start_peers(given.programs, has_libtorch=not without_libtorch)
    begin = time.monotonic()

    def tell(done: int, count: int, size: int, what: str) -> None:
        spent = time.monotonic() - begin
        print(f"[{done}/{2 * len(cases)}] {spent:.0f} s: {count} x {size}, {what}", file=sys.stderr)

    for done, (count, size) in enumerate(cases, 1):
        tell(done, count, size, "values")
        wrong = differing(peers, given.programs, count, size)
        if wrong:
            raise SystemExit(
                f"Adam, {count} x {size}: {wrong:,} of {count * size:,} values are not those of "
                f"torch.optim.Adam(fused=True)"
            )
    for done, (count, size) in enumerate(cases, 1 + len(cases)):
        tell(done, count, size, "times")
        results["steps"].append([count, size, *measure(peers, count, size, given.rounds)])
    for peer in peers.values():
        peer.end()
    return results


def facts() -> dict[str, str]:
    """Return when and where it is measured, and of which versions."""
    tool = shutil.which("nvidia-smi")
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = tool and subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return {
        "date": f"{datetime.datetime.now(tz=datetime.timezone.utc):%Y-%m-%d}",
        "gpu": torch.cuda.get_device_name(0),
        "driver": said[0] if said else "unknown",
        "cuda": torch.version.cuda,
        "processor": processor(),
        "system": f"{platform.system()} {platform.release()}",
        "optplug": optplug.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


# ---- the report ----


def limit(count: int, size: int, speed: float) -> float:
    """Return the seconds of a step that moves each array once and takes no time besides."""
    return 4 * PASSES * count * size / speed


def goals(results: dict) -> list[str]:
    """Return the table of what optplug means to reach."""
    lines = ["| | measured | goal |", "|---|---|---|"]
    for count, size, speed, times in results["steps"]:
        ours = times[OPTPLUG]
        if (count, size) == (1, 50):
            lines.append(
                f"| Adam, 50 values, host time | {microseconds(ours['host'])} µs "
                f"| under {microseconds(GOAL_HOST)} µs |"
            )
        if (count, size) == (1, 10**8):
            most = limit(count, size, speed)
            lines.append(
                f"| Adam, {size:,} values, device time | {microseconds(ours['device'])} µs "
                f"| under {microseconds(GOAL_DEVICE * most)} µs, {GOAL_DEVICE} {TIMES} the limit |"
            )
    return lines


def table(results: dict) -> list[str]:
    """Return all times."""
    head = ["values", "", "host, µs", "device, µs", "limit, µs", "fraction of the limit"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for count, size, speed, times in results["steps"]:
        least = limit(count, size, speed)
        for name, seconds in times.items():
            cells = [microseconds(value) for value in (seconds["host"], seconds["device"], least)]
            cells.append(f"{least / seconds['device']:.2f}")
            lines.append(f"| {case_name(count, size)} | {name} | {' | '.join(cells)} |")
    return lines


def report(results: dict) -> str:
    """Return docs/benchmarks-gpu.md."""
    r = results
    lines = [
        "# How fast a step is on a GPU",
        "",
        "Written by `python benchmarks/gpu.py`, which anyone with a GPU of NVIDIA's can run: "
        f"on {r['date']}, on GPU {r['gpu']}, driver {r['driver']}, beside an {r['processor']} under "
        f"{r['system']}, with optplug {r['optplug']}, torch {r['torch']} for CUDA {r['cuda']} and Python "
        f"{r['python']}.",
        "",
        f"Times are of one step of Adam, in microseconds, on float32: medians of {r['rounds']} rounds in "
        "which all peers take turns.",
        "optplug is a C program that calls `opt_step` on memory of `cudaMalloc`; PyTorch is a Python program "
        "that calls `step()` of `torch.optim.Adam(fused=True)`; LibTorch is a C++ program with "
        "`torch::optim::Adam`.",
        f"After {CHECKED_STEPS} steps with gradients that change, optplug's values were those of that "
        "PyTorch, bit for bit, in each of these cases; otherwise nothing would have been measured.",
        "",
        *goals(results),
        "",
        f"Host time is what a call takes until it returns, of {STEPS} in a row onto an idle GPU.",
        f"Device time is what the GPU takes for a step, by CUDA's events around {STEPS} that were queued "
        "while it had other work.",
        f"LibTorch's step of 200 {TIMES} 100 is more launches than the queue of a GPU holds, which is 1,024: "
        "both of its times have waiting in them.",
        f"The limit is the {4 * PASSES} bytes that a step reads and writes for each value, at the speed at "
        "which the same GPU copies within its memory, over as much of it as the step has to do with.",
        "A fraction of 1 is a step that moves each array once and takes no time besides.",
        "",
        *table(results),
    ]
    if r["without_libtorch"]:
        lines += ["", f"LibTorch's rows are left out: `{r['without_libtorch']}`"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="The GPU is the first that CUDA_VISIBLE_DEVICES lets through."
    )
    root = HERE.parent
    parser.add_argument(
        "--programs",
        type=pathlib.Path,
        default=root / "build" / "gpu",
        help="the folder to compile in, and to write results.json to (default: build/gpu)",
    )
    parser.add_argument(
        "--docs",
        type=pathlib.Path,
        default=root / "docs",
        help="the folder to write benchmarks-gpu.md to (default: docs)",
    )
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each time (default: 15)")
    parser.add_argument(
        "--largest",
        type=int,
        default=10**8,
        help="leave out more values than that: 1e8 of them take 10 GB of the GPU's memory",
    )
    given = parser.parse_args()
    missing = why_not() or build_steps(given.programs)
    if missing:
        print(missing, file=sys.stderr)
        sys.exit(2)
    without_libtorch = build_libtorch(given.programs)
    if without_libtorch:
        print(f"without LibTorch: {without_libtorch}", file=sys.stderr)
    results = run(given, without_libtorch)
    (given.programs / "results.json").write_text(json.dumps(results))
    (given.docs / "benchmarks-gpu.md").write_text(report(results))
    print(given.docs / "benchmarks-gpu.md")


if __name__ == "__main__":
    main()
