"""The benchmark runs, on a few small cases, and says what its peers took."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import hosts


def test_the_benchmark_writes_its_report_and_pictures(tmp_path):
    for program in ("steps", "plain"):  # without LibTorch, which takes long to build
        shutil.copy(pathlib.Path(os.environ["OPTPLUG_TEST_BENCHMARKS"]) / program, tmp_path)
    script = hosts.PROJECT / "benchmarks" / "run.py"
    options = [
        "--rounds",
        "1",
        "--largest",
        "50",
        "--optimizers",
        "Adam",
        "SGD",
        "LBFGS",
        "Muon",
        "SparseAdam",
    ]
    done = subprocess.run(
        [sys.executable, script, tmp_path, tmp_path, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "benchmarks.md").read_text()
    assert "| Adam, 50 values, against `torch.optim.Adam` | 1 |" in report
    for name in ("optplug", "PyTorch default", "PyTorch foreach", "PyTorch fused", "plain C loop"):
        assert f"| {name} |" in report
    for picture in ("benchmarks-time.png", "benchmarks-limit.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
