"""The benchmark runs, on a few small cases, and says what its peers took."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest

import hosts


def take_one_processor() -> None:
    """With more, all is measured twice: on one thread, and on as many as there are."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])


def test_rounds_in_which_the_machine_was_disturbed_do_not_count(monkeypatch):
    monkeypatch.syspath_prepend(hosts.PROJECT / "benchmarks")
    from run import in_turn

    # Five rounds, of which two took all the longer, the one that was asked in it last most of all.
    asked = {"ours": iter([1.0, 1.1, 1.5, 1.2, 1.0]), "theirs": iter([50, 51, 900, 52, 95])}
    assert in_turn(5, {name: answers.__next__ for name, answers in asked.items()}) == {
        "ours": 1.1,
        "theirs": 51,
    }


def test_the_benchmark_writes_its_report_and_pictures(tmp_path):
    for program in ("steps", "plain", "as_torch"):  # without LibTorch, which takes long to build
        shutil.copy(pathlib.Path(os.environ["OPTPLUG_TEST_BENCHMARKS"]) / program, tmp_path)
    script = hosts.PROJECT / "benchmarks" / "run.py"
    options = [
        "--python",
        shlex.join(hosts.PYTHON),
        "--rounds",
        "1",
        "--largest",
        "50",
        "--optimizers",
        "Adam",
        "AdamW",
        "SGD",
        "LBFGS",
        "Muon",
        "SparseAdam",
    ]
    done = subprocess.run(
        [*hosts.PYTHON, script, tmp_path, tmp_path, *options],
        preexec_fn=take_one_processor,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "benchmarks.md").read_text()
    assert "| Adam, 50 values, against `torch.optim.Adam` | 1 |" in report
    for row in (
        "AdamW, against PyTorch | 1",
        "AdamW, against PyTorch with `fused=True` | 1",
        "AdamW, `opt_set_value` of lr and `opt_step`, against PyTorch | 1",
        "LBFGS, 50 values, an evaluation beside the closure, against PyTorch | 1",
        "LBFGS, 50 values, an early evaluation beside the closure, against PyTorch | 1",
        "the first `opt_step` of a new optimizer",
        "`opt_create`, `opt_bind`, three `opt_step` and `opt_free`",
    ):
        assert f"| {row} |" in report
    for name in (
        "optplug",
        "PyTorch default",
        "PyTorch foreach",
        "PyTorch fused",
        "plain C loop",
        "the same with PyTorch's roundings",
    ):
        assert f"| {name} |" in report
    for picture in ("benchmarks-loop.png", "benchmarks-time.png", "benchmarks-limit.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert re.search(rf"\]\({picture}\)\n\n\*[^*\n]+\*\n", report), "a caption"


def test_values_that_are_not_pytorchs_stop_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(hosts.PROJECT / "benchmarks")
    import agreement
    from peers import PROCESSORS_SQRT

    class Peer:
        def __init__(self, name, *values):
            self._file, self._values = tmp_path / f"{name}.values", values

        def ask(self, *words):
            assert words == ("values", 5)
            np.array(self._values, dtype=np.float32).tofile(self._file)

    def check(ours, value):
        names = {ours: [1.0, value], "PyTorch default": [1.0, 2.0], "LibTorch C++": []}
        peers = {name: Peer(name, *values) for name, values in names.items()}
        agreement.check(tmp_path, peers, "Adamax", "values", 5)

    nearly = np.nextafter(np.float32(2), np.float32(3))
    check("optplug", 2.0)
    check(PROCESSORS_SQRT, nearly)
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="Adamax: optplug: 1 of 2 values are not those of PyTorch default"):
        check("optplug", nearly)
    with pytest.raises(SystemExit, match="processor': 1 of 2 values"):
        check(PROCESSORS_SQRT, np.nan)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (1.0, 12.0, "12 x faster"),
        (1.0, 1200.0, "1,200 x faster"),
        (2.0, 3.0, "1.50 x faster"),
        (1.0, 2.5, "2.5 x faster"),
        (10.0, 9.0, "0.9 x (slower)"),
        (20.0, 1.0, "0.05 x (slower)"),
        (1.0, 1.001, "1 x (the same)"),
    ],
)
def test_a_ratio_says_which_is_faster(monkeypatch, ours, theirs, said):
    monkeypatch.syspath_prepend(hosts.PROJECT / "benchmarks")
    import report

    assert report.words(ours, theirs) == said.replace("x", report.TIMES)


def test_what_ranks_keep_and_send_is_counted(monkeypatch):
    n = 64000  # of Adam's two moments, and one number for each parameter
    script = str(hosts.PROJECT / "benchmarks" / "ranks.py")
    done = hosts.python(script, "--values", str(n), "--processes")
    assert (done.returncode, done.stderr) == (0, "")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| \| (\d+) \| ([\d.]+) \|$", done.stdout, re.M)
    assert [row[0] for row in rows] == ["8", "64", "1000"]
    for ranks, state, calls, sent in ([float(cell) for cell in row] for row in rows):
        assert state == pytest.approx(8e-6 * n / ranks, abs=2 * 64 * 8e-6)
        assert calls == 2
        assert sent == pytest.approx(8e-6 * n * (ranks - 1) / ranks, abs=0.15)

    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    done = hosts.python(script, "--values", str(n), "--one")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"\| 1 \| 0\.5 \| \d+ \| 0 \| 0\.0 \|\n", done.stdout)


# ---- on a GPU, as far as that can be tested without one ----


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(hosts.PROJECT / "benchmarks")
    import gpu

    return gpu


def test_the_c_host_for_a_gpu_compiles_without_cuda_and_says_where_it_is_missing(gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", hosts.CC)
    assert gpu.build_steps(tmp_path, "-Wall", "-Wextra", "-Werror") == ""
    done = subprocess.run(
        [tmp_path / "gpu_steps"],
        input="new\tAdam\t1\t50\n",
        env={**os.environ, "BENCHMARK_CUDA": "/nowhere/libcudart.so"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "no cudaMalloc of CUDA's runtime in /nowhere/libcudart.so\n"


def test_a_program_that_does_not_compile_is_left_out_with_the_compilers_line(gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", hosts.CC)
    assert "error" in gpu.build_steps(tmp_path, "-include", "nowhere.h")
    monkeypatch.setenv("CC", "no-compiler")
    assert gpu.build_steps(tmp_path) == "there is no no-compiler"


def test_without_a_gpu_the_benchmark_says_what_is_missing(tmp_path):
    done = subprocess.run(
        [*hosts.PYTHON, hosts.PROJECT / "benchmarks" / "gpu.py", "--programs", tmp_path, "--docs", tmp_path],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("no device 'cuda:0': torch ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_report_of_a_gpu_has_goals_and_fractions_of_the_limit(gpu):
    times = {"host": 2e-6, "device": 4e-3}
    results = {
        **{name: f"({name})" for name in ("date", "gpu", "driver", "cuda", "processor", "system")},
        **{name: f"({name})" for name in ("optplug", "torch", "python")},
        "rounds": 3,
        "without_libtorch": "there is no c++",
        # 28 bytes for each of 1e8 values, at 1e12 bytes a second: 2.8 ms.
        "steps": [
            [1, 50, 1e9, {"optplug": times}],
            [1, 10**8, 1e12, {"optplug": times, "PyTorch fused": times}],
            [200, 100, 1e12, {"optplug": times}],
        ],
    }
    page = gpu.report(results)
    for fact in ("on GPU (gpu), driver (driver)", "torch (torch) for CUDA (cuda)", "medians of 3 rounds"):
        assert fact in page
    assert "| Adam, 50 values, host time | 2.00 µs | under 15.0 µs |" in page
    assert (
        f"| Adam, 100,000,000 values, device time | 4,000 µs | under 3,080 µs, 1.1 {gpu.TIMES} the limit |"
        in page
    )
    assert "| 100,000,000 | PyTorch fused | 2.00 | 4,000 | 2,800 | 0.70 |" in page
    assert f"| 200 {gpu.TIMES} 100 | optplug |" in page
    assert "LibTorch's rows are left out: `there is no c++`" in page
    assert "left out" not in gpu.report({**results, "without_libtorch": ""})
