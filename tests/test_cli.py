"""python -m optplug."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import pty
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import hosts
import optplug
from command_line import COMMANDS, SITE, command
from optplug import ctypes_api, schedules
from optplug.ctypes_api import Optimizer
from optplug.tools import bench, catalog, cli, report


def test_config_says_where_things_are():
    lines = command("config", "--includedir", "--libdir", "--library").stdout.splitlines()
    assert (pathlib.Path(lines[0]) / "optplug.h").is_file()
    assert pathlib.Path(lines[2]).is_file()
    assert pathlib.Path(lines[2]).parent == pathlib.Path(lines[1])
    assert lines[2] == optplug.library()


def test_config_says_where_matlab_and_octave_find_the_class():
    matlab, octave = command("config", "--matlab", "--octave").stdout.splitlines()
    assert matlab == octave == optplug.matlabdir()
    assert (pathlib.Path(matlab) / "+optplug" / "Optimizer.m").is_file()


def test_config_builds_a_program_that_runs(tmp_path):
    flags = command("config", "--cflags", "--libs").stdout.split()
    source = hosts.PROJECT / "tests" / "host.c"
    subprocess.run([hosts.CC, source, "-o", tmp_path / "host", *flags], check=True)
    assert hosts.asks_for_python(tmp_path / "host")  # where a path has blanks, below, one makes its steps


def test_config_without_an_option_lists_them():
    done = command("config")
    assert done.returncode == 2
    assert "name what to print: --cflags, --libs" in done.stderr


def test_list_says_what_torch_has_and_how_its_steps_run(call):
    status, out, err = call("list", "--json")
    found = json.loads(out)
    assert (status, err, list(found)) == (0, "", ["optimizers", "schedulers"])
    for kind, rows in found.items():
        assert sorted(row["name"] for row in rows) == sorted(ctypes_api.listing(kind))
        assert all(row["summary"] for row in rows)
    for row in found["optimizers"]:
        by_torch = row["name"] in ("Adafactor", "LBFGS", "Muon", "SparseAdam")
        assert row["step"] == ("PyTorch's own" if by_torch else "without Python"), row
    calls = {row["name"]: row["calls"] for row in found["optimizers"] + found["schedulers"]}
    assert calls["LBFGS"] == "opt_step_closure, opt_iterate"
    assert calls["SparseAdam"] == "opt_bind_sparse, opt_step"
    assert calls["ReduceLROnPlateau"] == "opt_schedule_step_metric"
    functions = {row["name"]: row["function"].partition(":")[0] for row in found["schedulers"]}
    assert {name: what for name, what in functions.items() if what} == {
        "LambdaLR": "lr_lambda",
        "MultiplicativeLR": "lr_lambda",
        "CyclicLR": "scale_fn",
    }


def test_list_of_one_kind_is_a_header_and_lines(call):
    assert call("list", "devices") == (0, "name\ncpu\n", "")
    assert call("list", "dtypes")[1].splitlines() == ["name", *ctypes_api.listing("dtypes")]
    header, *lines = call("list", "schedulers")[1].splitlines()
    assert header == "name\tcalls\tfunction\tsummary"
    assert all(line.count("\t") == 3 for line in lines)


@pytest.mark.parametrize("name", [*ctypes_api.listing("optimizers"), *ctypes_api.listing("schedulers")])
def test_describe_has_the_arguments_and_an_example_that_works(name):
    found = catalog.describe(name)
    arguments = [
        row["argument"] + ("" if row["default"] == "(none)" else f"={row['default']}")
        for row in found["arguments"]
    ]
    assert arguments == ctypes_api.listing(name)
    if name in ctypes_api.listing("optimizers"):
        Optimizer(found["example"]).free()
        return
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], momentum=0.5)
    needs_function = found["example"] == f"{name}()" and found["function"]
    schedules.attach(sgd, found["example"], (lambda *_, **__: 1.0) if needs_function else None)


def test_describe_has_torchs_words_and_its_page(call):
    _, out, _ = call("describe", "Adam", "--json")
    found = json.loads(out)
    assert found["page"] == "https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html"
    meanings = {row["argument"]: row["meaning"] for row in found["arguments"]}
    assert all(meanings.values())
    assert meanings["eps"] == "term added to the denominator to improve numerical stability"
    assert "lr_scheduler.StepLR.html" in call("describe", "StepLR")[1]


def test_describe_of_an_unknown_name_says_what_is_near(call):
    status, out, err = call("describe", "adam")
    assert (status, out) == (1, "")
    assert err.startswith("no optimizer or scheduler 'adam': did you mean Adam? there are ASGD, ")
    assert err.count("\n") == 1


def read_all(leader: int) -> str:
    """Return what has been printed in a terminal whose other end is closed, and close it."""
    shown = b""
    with contextlib.suppress(OSError):  # how its end is told
        while part := os.read(leader, 10000):
            shown += part
    os.close(leader)
    return shown.decode()


@pytest.mark.parametrize("has_rich", [True, False])
def test_in_a_terminal_there_is_a_table_if_rich_is_there(monkeypatch, has_rich):
    if not has_rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    leader, follower = pty.openpty()
    monkeypatch.setenv("COLUMNS", "100")
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        cli.main(["list", "devices"])
    shown = read_all(leader)
    assert ("\N{BOX DRAWINGS LIGHT HORIZONTAL}" in shown) == has_rich
    assert "cpu" in shown


@pytest.fixture
def terminal(monkeypatch):
    """What is printed in a terminal of 60 columns where rich is not installed."""
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setenv("COLUMNS", "60")

    def printed(rows: list[dict[str, object]]) -> list[str]:
        leader, follower = pty.openpty()
        with os.fdopen(follower, "w") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            report.show({"rows": rows})
        return read_all(leader).splitlines()

    return printed


def test_in_a_terminal_without_rich_columns_are_aligned(terminal):
    rows = [
        {"name": "w", "values": 7, "what": "one two three four five six seven eight nine ten eleven"},
        {"name": "bias", "values": 1000, "what": "short"},
    ]
    assert terminal(rows) == [
        "name  values  what",
        "w          7  one two three four five six seven eight nine",
        "              ten eleven",
        "bias    1000  short",
    ]
    assert terminal([{"name": "cpu", "bytes": 5}]) == ["name  bytes", "cpu       5"]


@pytest.mark.parametrize("has_rich", [True, False])
def test_what_takes_long_shows_how_far_it_is_and_takes_that_away(monkeypatch, capsys, has_rich):
    if not has_rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    for name, value in {"TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        assert cli.main(["list", "optimizers"]) == 0
    shown = read_all(leader)
    assert "importing PyTorch" in shown
    assert re.search(r"\d+ ?%", shown)
    assert ("\N{BOX DRAWINGS HEAVY HORIZONTAL}" in shown) == has_rich
    assert shown.count("\N{ESC}[?25l") == shown.count("\N{ESC}[?25h")  # the cursor
    assert re.search(r"\N{ESC}\[2?K$", shown)
    assert capsys.readouterr().out.startswith("name\tcalls\t")


def test_what_takes_long_is_silent_where_nobody_looks(call, tmp_path):
    with Optimizer("Adam()") as opt:
        opt.bind("w", np.ones(3), np.ones(3))
        opt.save(tmp_path / "run.pt")
    status, out, err = call("inspect", str(tmp_path / "run.pt"))
    assert (status, err) == (0, "")
    assert "\N{ESC}" not in out


@pytest.mark.parametrize(
    ("arguments", "end"),
    [
        *itertools.product([["--help"], ["config", "--libdir"]], ["| head -n 0", ">&-", "> /dev/full"]),
        (["list", "devices"], "> /dev/full"),
    ],
)
def test_an_output_that_takes_nothing_is_no_traceback(arguments, end):
    if "full" in end and not pathlib.Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    line = f"{shlex.join([*hosts.PYTHON, '-m', 'optplug', *arguments])} {end}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)  # noqa: S607
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("lost", ["lib/liboptplug.*", "include/optplug.h", "_optplug.*"])
def test_a_file_that_is_lost_is_no_traceback(bare, lost):
    for path in (bare / "optplug").glob(lost):
        path.unlink()
    program = f"import sys, runpy; sys.path.insert(0, '{bare}'); sys.argv[1:] = 'list', 'devices'"
    done = hosts.python("-c", f"{program}; runpy.run_module('optplug', run_name='__main__')")
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or done.stderr.count("\n") == 1


def test_config_says_what_to_do_where_a_path_has_blanks(tmp_path):
    """The words of $(...) are split at blanks, quoted or not; eval reads them once more."""
    site = tmp_path / "two  blanks & more"
    shutil.copytree(SITE / "optplug", site / "optplug")
    (tmp_path / "main.c").write_text(hosts.program("c"))
    env = {"PYTHONPATH": str(site), "OPTPLUG_PYTHON": sys.executable}
    done = command("config", "--cflags", "--libs", **env)
    advice = "eval cc main.c $(python -m optplug config --cflags --libs)"
    assert done.stderr == f"the path contains spaces or the like: in a shell, write {advice}\n"
    line = advice.replace("python", sys.executable).replace("cc main.c", f"{hosts.CC} main.c -o main")
    command_line = ["sh", "-c", line]
    subprocess.run(command_line, cwd=tmp_path, env=os.environ | env, check=True, capture_output=True)
    assert hosts.asks_for_python(tmp_path / "main")
    assert command("config", "--cflags", "--libs").stderr == ""


def test_bench_measures_both_and_draws(tmp_path):
    picture = tmp_path / "bench.png"
    arguments = ("SGD(lr=0.1)", "RMSprop()", "--sizes", "10,2e1", "--threads", "1", "--plot", str(picture))
    done = hosts.run(*hosts.PYTHON, "-m", "optplug", "bench", *arguments, "--json")
    found = json.loads(done.stdout)
    assert found["threads"] == "1 for optplug, 1 for torch"
    assert (found["optplug"], found["torch"]) == (optplug.__version__, torch.__version__)
    assert found["picture"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = found["microseconds of a step"]
    cases = [(row["spec"], row["values"]) for row in rows]
    assert cases == [("SGD(lr=0.1)", 10), ("SGD(lr=0.1)", 20), ("RMSprop()", 10), ("RMSprop()", 20)]
    assert all(row["optplug"] > 0 and row["torch"] > 0 for row in rows)
    assert [row["torch, fused"] is None for row in rows] == [False, False, True, True]


@pytest.fixture
def bench_here(tmp_path, monkeypatch):
    """The host of `bench`, in a Python that has torch already."""
    library = tmp_path / "probe.so"
    flags = command("config", "--cflags", "--libs").stdout.split()
    source = hosts.PROJECT / "csrc" / "probe.c"
    subprocess.run([hosts.CC, "-shared", "-fPIC", source, "-o", library, *flags], check=True)
    monkeypatch.setattr(bench, "PROBE", hosts.main_of(library))


@pytest.mark.usefixtures("bench_here")
def test_bench_says_what_is_wrong(call):
    for arguments, said in (
        (["Foo()"], "spec 'Foo()': no optimizer 'Foo': there are"),
        (["LBFGS()"], "LBFGS evaluates the loss several times a step"),
        (["--threads", "0"], "num_threads must be a whole number"),
    ):
        status, out, err = call("bench", *arguments)
        assert (status, out) == (1, "")
        assert said in err
    with pytest.raises(SystemExit):
        call("bench", "--sizes", "10,x")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: python -m optplug")
    assert f"python -m optplug {name}" in text.partition("options:")[0] + text.rpartition("Example: ")[2]


def test_help_names_every_command():
    done = command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"    {name} " in done.stdout for name in COMMANDS)


def test_plot_draws_a_picture(tmp_path):
    table = tmp_path / "losses.csv"
    table.write_text("epoch,loss\n1,0.5\n2,0.25\n")
    done = command("plot", str(table))
    assert (done.returncode, done.stderr) == (0, "")
    picture = pathlib.Path(done.stdout.strip())
    assert picture == tmp_path / "losses.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_plot_of_no_table_is_an_error(tmp_path, call):
    table = tmp_path / "no.csv"
    assert call("plot", str(table)) == (1, "", f"{table}: No such file or directory\n")
    table.write_text("epoch\n1\n")
    assert "is not a table of numbers" in call("plot", str(table))[2]
    table.write_text("epoch,loss\n1,1\n")
    assert "cannot be written" in call("plot", str(table), "/nowhere/x.png")[2]
    table.write_text("epoch,loss\n1,much\n")
    status, _, err = call("plot", str(table))
    assert status == 1
    assert "could not convert string to float: 'much'" in err
