"""python -m optplug."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import pathlib
import pty
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import hosts
import optplug
from optplug import __main__ as cli
from optplug import catalog, ctypes_api, doctor, report, schedules
from optplug.ctypes_api import Optimizer

SITE = pathlib.Path(optplug.__file__).parent.parent
COMMANDS = ("config", "doctor", "list", "describe", "inspect", "bench", "plot")


# How a step, or a command, begins that a doctor tells you to do.
STEP = re.compile(
    r"((/\S+|'/[^']+') -m pip install|apt-get|call|chmod|chown|export|install|link|look|name|see|set|start"
    r"|take|ulimit|unset) "
)


def command(
    *arguments: str, python: str | pathlib.Path = sys.executable, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command; the doctor's remedies are to be steps, whatever it finds."""
    done = subprocess.run(
        [python, "-m", "optplug", *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    for step in re.findall(r'^ +(?:DO: |"do": ")(.*)', done.stdout, re.M):
        assert STEP.match(step), step
    return done


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
    assert hosts.run(tmp_path / "host").stdout.startswith("stepped\n")


def test_config_without_an_option_lists_them():
    done = command("config")
    assert done.returncode == 2
    assert "name what to print: --cflags, --libs" in done.stderr


def test_doctor_reports_what_a_host_gets():
    done = command("doctor")
    assert done.returncode == 0, done.stdout
    for name in ("library:", "python:", "libpython:", "torch:", "devices:", "All is well."):
        assert name in done.stdout


@pytest.mark.skipif(not (hosts.PROGRAMS / "allocator.so").exists(), reason="glibc alone")
def test_doctor_knows_other_allocators():
    library = hosts.PROGRAMS / "allocator.so"
    done = command("doctor", LD_PRELOAD=str(library))
    assert done.returncode == 0
    assert f"NOTE: malloc is that of {library}, so a program with a BLAS" in done.stdout


def test_doctor_says_what_to_do():
    done = command("doctor", OPTPLUG_PYTHON="/nowhere/python3", OPTPLUG_LIBPYTHON="/nowhere/libpython.so")
    assert done.returncode == 1
    assert "names '/nowhere/python3', which is not there\n   DO: unset OPTPLUG_PYTHON" in done.stdout
    assert "OPTPLUG_LIBPYTHON names '/nowhere/libpython.so'" in done.stdout
    assert f"library:            {optplug.library()}" in done.stdout
    assert (
        "WRONG: a program that links optplug cannot start it: OPTPLUG_PYTHON: '/nowhere/python3'"
        in done.stdout
    )
    assert f"\n   DO: export OPTPLUG_PYTHON={sys.executable}\n" in done.stdout


@pytest.fixture
def call(capsys):
    """A command in this process, which has torch already: status, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(list(arguments))
        return status, *capsys.readouterr()

    return run


def test_doctor_notes_what_may_become_wrong(tmp_path):
    (tmp_path / "libiomp5.so").touch()
    done = command(
        "doctor",
        "--json",
        PYTHONPATH="/nowhere",
        LD_LIBRARY_PATH=str(tmp_path),
        SLURM_NTASKS="4",
        OMP_NUM_THREADS="x",
        CXX="no-compiler",
    )
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["host"]["optplug"]) == (0, True, optplug.__version__)
    assert {problem["level"] for problem in found["problems"]} == {"NOTE"}
    notes = {problem["what"]: problem["do"] for problem in found["problems"]}
    expected = {
        "PYTHONPATH is set, which programs that are no Python ignore": "unset PYTHONPATH",
        "OMP_NUM_THREADS": "OMP_ variables",
        f"LD_LIBRARY_PATH puts {tmp_path}/libiomp5.so before": "without LD_LIBRARY_PATH",
        "compile=True will not work: there is no C++ compiler 'no-compiler'": "compile=True",
    }
    if int(found["host"]["threads"]) > 1:
        expected["one of 4 processes (SLURM_NTASKS)"] = 'opt_init("num_threads=1")'
    for what, do in expected.items():
        assert any(what in said and do in remedy for said, remedy in notes.items()), (what, notes)
    assert len(notes) == len(expected)


@pytest.mark.skipif(sys.platform == "darwin", reason="limits of Linux")
def test_doctor_notes_narrow_limits_and_a_place_for_kernels_that_is_none(tmp_path):
    (tmp_path / "file").touch()
    script = f"ulimit -s 128; ulimit -v 2000000; exec {sys.executable} -m optplug doctor"
    done = subprocess.run(
        ["sh", "-c", script],  # noqa: S607
        env={**os.environ, "CXX": hosts.CC, "XDG_CACHE_HOME": str(tmp_path / "file")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        "NOTE: the stack is limited to 128 KB, and torch may need 256 KB\n   DO: ulimit -s 256" in done.stdout
    )
    assert "NOTE: memory is limited to 2000000 KB" in done.stdout
    assert f"compile=True will not work: {tmp_path}/file cannot be written to\n   DO: set XDG_" in done.stdout
    assert "All is well." in done.stdout


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("writable by others", "can be written to by others"),
        ("no compiler", "there is no C++ compiler"),
        ("noexec", "is mounted noexec"),
        ("none", ""),
    ],
)
def test_doctor_says_why_nothing_could_be_compiled(trouble, said, tmp_path, bare):
    (tmp_path / "optplug").mkdir()
    (tmp_path / "optplug").chmod(0o777 if trouble == "writable by others" else 0o700)
    env = {"CXX": "no-compiler" if trouble == "no compiler" else hosts.CC, "XDG_CACHE_HOME": str(tmp_path)}
    script = f"{bare.parents[2]}/bin/python -m optplug doctor"  # without torch, which takes no time
    if trouble == "noexec":
        mount = f"mount -t tmpfs -o noexec none {tmp_path}/optplug"
        inside = ["unshare", "-m", "sh", "-c"]
        if subprocess.run([*inside, mount], capture_output=True, check=False).returncode != 0:
            pytest.skip("mounting is for root on Linux")
        script = f"unshare -m sh -c '{mount} && chmod 700 {tmp_path}/optplug && {script}'"
    done = subprocess.run(
        ["sh", "-c", script],  # noqa: S607
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    notes = [
        part for part in done.stdout.split("\n\n") if part.startswith("NOTE: compile=True will not work: ")
    ]
    assert len(notes) == bool(said)
    assert said in "".join(notes)


def test_doctor_sees_a_library_that_comes_before(tmp_path):
    copy = shutil.copy(optplug.library(), tmp_path)
    name = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"
    done = command("doctor", **{name: str(tmp_path)})
    assert done.returncode == 1
    assert (
        f"WRONG: a program that links {optplug.library()} gets {copy}\n   DO: take its folder" in done.stdout
    )
    assert f"'{copy}' lies in no environment of Python" in done.stdout


def test_doctor_names_what_is_not_installed_too_old_or_missing(bare):
    python = bare.parents[2] / "bin/python"
    (bare / "numpy-1.2.dist-info").mkdir()
    (bare / "numpy-1.2.dist-info/METADATA").write_text("Name: numpy\nVersion: 1.2.1rc3\n")
    (bare / "optplug/include/optplug.h").unlink()
    done = command("doctor", python=python)
    assert done.returncode == 1
    wrong = dict(part.split("\n   DO: ") for part in done.stdout.split("\n\n")[1:-1])
    assert f"{python} -m pip install 'torch>=" in wrong[f"WRONG: torch is not installed in {bare.parents[2]}"]
    assert "--upgrade 'numpy>=" in next(
        do for what, do in wrong.items() if "numpy 1.2.1rc3 is too old" in what
    )
    assert "--force-reinstall" in wrong[f"WRONG: {bare}/optplug/include/optplug.h is missing"]
    [cannot_start] = [what for what in wrong if "cannot start it: " in what]
    assert "No module named 'torch'" in cannot_start
    assert re.fullmatch(r"/\S+ -m pip install 'torch>=[\d.]+'", wrong[cannot_start])
    assert done.stdout.endswith("\n4 problem(s).\n")


def test_doctors_commands_work_where_a_path_has_blanks(bare):
    folder = bare.parents[2].rename(bare.parents[3] / "two words")
    done = command("doctor", python=folder / "bin/python")
    assert len(re.findall(rf"DO: '{folder}/bin/python[\d.]*' -m pip install 'torch>=", done.stdout)) == 2
    done = command("doctor", python=folder / "bin/python", OPTPLUG_PYTHON="/nowhere/python3")
    assert f"DO: export OPTPLUG_PYTHON='{folder}/bin/python'\n" in done.stdout


def test_doctor_survives_a_torch_that_ends_the_process(bare):
    (bare / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)")
    done = command("doctor", python=bare.parents[2] / "bin/python")
    assert done.returncode == 1
    assert "WRONG: a program that links optplug is ended by SIGILL when it starts it" in done.stdout
    assert "optplug-probe; torch alone fails too" in done.stdout


def test_doctor_waits_for_so_long_and_no_longer(bare, monkeypatch, capsys):
    (bare / "torch.py").write_text("import time\ntime.sleep(60)")
    monkeypatch.setattr(doctor, "_PROBE", bare / "optplug/bin/optplug-probe")
    monkeypatch.setattr(doctor, "_PATIENCE", 1)
    assert doctor.main(as_json=False) == 1
    assert "WRONG: a program that links optplug had not started it after 1 s" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "darwin", reason="LD_PRELOAD")
def test_doctor_says_which_package_has_the_libpython_that_is_missing():
    done = command("doctor", LD_PRELOAD=str(hosts.PROGRAMS / "no_libpython.so"))
    assert done.returncode == 1
    assert "cannot start it: no libpython3" in done.stdout
    assert re.search(r"DO: apt-get install libpython3\.\d+ ", done.stdout)


def test_doctor_sees_a_library_of_another_version(bare):
    library = bare / "optplug/lib" / pathlib.Path(optplug.library()).name
    version = optplug.__version__.encode()
    library.write_bytes(library.read_bytes().replace(version + b"\0", b"9" * len(version) + b"\0"))
    done = command("doctor", python=bare.parents[2] / "bin/python", OPTPLUG_PYTHON=sys.executable)
    assert done.returncode == 1
    assert "is of another version than the package optplug" in done.stdout


def test_doctor_sees_what_prints_and_another_optplug(bare):
    (bare / "more.pth").write_text(f"{SITE}\nimport sys; print('hello: I am here'); sys.stdout.flush()\n")
    done = command("doctor", python=bare.parents[2] / "bin/python")
    assert "into the host's output: 'hello: I am here" in done.stdout
    assert f"NOTE: there is another optplug in {SITE}, and this one is in {bare}\n" in done.stdout


def test_doctor_sees_a_variable_that_names_another_environment(bare):
    (bare / "more.pth").write_text(f"{SITE}\n")
    python = bare.parents[2] / "bin/python"
    done = command("doctor", OPTPLUG_PYTHON=str(python))
    assert done.returncode == 0, done.stdout
    assert f"NOTE: OPTPLUG_PYTHON lets programs use {python}, and this is {sys.executable}" in done.stdout


def test_doctor_knows_a_package_that_was_copied_out_of_its_environment(tmp_path):
    for name in ("optplug", *(path.name for path in SITE.glob("optplug-*.dist-info"))):
        shutil.copytree(SITE / name, tmp_path / name)
    done = command("doctor", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    library = tmp_path / "optplug/lib" / pathlib.Path(optplug.library()).name
    assert f"'{library}' lies in no environment of Python" in done.stdout
    assert f"there is another optplug in {SITE}, and this one is in {tmp_path}" in done.stdout


def test_list_says_what_torch_has_and_how_its_steps_run(call):
    status, out, err = call("list", "--json")
    found = json.loads(out)
    assert (status, err, list(found)) == (0, "", ["optimizers", "schedulers"])
    for kind, rows in found.items():
        assert sorted(row["name"] for row in rows) == sorted(ctypes_api.listing(kind))
        assert all(row["summary"] for row in rows)
    for row in found["optimizers"]:
        class_ = getattr(torch.optim, row["name"])
        has_fused = "fused" in inspect.signature(class_).parameters
        assert row["step"].startswith("without Python" if has_fused else "PyTorch's own"), row
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


@pytest.mark.parametrize("arguments", [["--help"], ["list", "devices"], ["config", "--libdir"]])
@pytest.mark.parametrize("end", ["| head -n 0", ">&-", "> /dev/full"])
def test_an_output_that_takes_nothing_is_no_traceback(arguments, end):
    if "full" in end and not pathlib.Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    line = " ".join([sys.executable, "-m", "optplug", *arguments, end])
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)  # noqa: S607
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("lost", ["lib/liboptplug.*", "include/optplug.h", "_optplug.*"])
def test_a_file_that_is_lost_is_no_traceback(bare, lost):
    (bare / "more.pth").write_text(f"{SITE}\n")  # for torch
    for path in (bare / "optplug").glob(lost):
        path.unlink()
    done = command("list", "devices", python=bare.parents[2] / "bin/python")
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or done.stderr.count("\n") == 1


def test_doctor_says_that_the_library_is_lost(bare):
    (bare / "optplug/lib" / pathlib.Path(optplug.library()).name).unlink()
    done = command("doctor", python=bare.parents[2] / "bin/python")
    assert done.returncode == 1
    assert re.search(r"WRONG: \S+/liboptplug\.\w+ is missing\n   DO: install optplug again: ", done.stdout)


def test_config_says_what_to_do_where_a_path_has_blanks(tmp_path):
    """The words of $(...) are split at blanks, quoted or not; eval reads them once more."""
    site = tmp_path / "two  blanks & more"
    shutil.copytree(SITE / "optplug", site / "optplug")
    (tmp_path / "main.c").write_text(hosts.program("c"))
    env = {"PYTHONPATH": str(site), "OPTPLUG_PYTHON": sys.executable}
    done = command("config", "--cflags", "--libs", **env)
    advice = "eval cc main.c $(python -m optplug config --cflags --libs)"
    assert done.stderr == f"the path has blanks or the like: in a shell, write {advice}\n"
    line = advice.replace("python", sys.executable).replace("cc main.c", f"{hosts.CC} main.c -o main")
    command_line = ["sh", "-c", line]
    subprocess.run(command_line, cwd=tmp_path, env=os.environ | env, check=True, capture_output=True)
    assert hosts.run(tmp_path / "main", env=env).stdout == hosts.program("text")
    assert command("config", "--cflags", "--libs").stderr == ""


@pytest.fixture
def saved(tmp_path) -> pathlib.Path:
    """A checkpoint with all that one can have."""
    w, dw = np.ones((3, 2)), np.ones((3, 2))
    v, dv = np.ones(4, np.float32), np.ones(4, np.float32)
    with Optimizer("Adam(lr=0.5)") as opt:
        opt.bind("w", w, dw)
        opt.group("lr=0.25")
        opt.bind("bias", v, dv)
        opt.schedule("StepLR(step_size=2)")
        opt.average("AveragedModel()")
        for _ in range(3):
            opt.step()
            opt.schedule_step()
        opt.checkpoint("parameters=True")
        opt.attribute("note", "tabs\tand\nlines")
        opt.save(tmp_path / "run.pt")
    return tmp_path / "run.pt"


def test_inspect_says_what_is_in_a_checkpoint(call, saved):
    status, out, _ = call("inspect", str(saved), "--json")
    found = json.loads(out)
    tables = {name: rows for name, rows in found.items() if isinstance(rows, list)}
    assert (status, found["bytes"], found["torch"]) == (0, saved.stat().st_size, torch.__version__)
    assert (found["format"], found["seal"], found["optimizer"]) == ("optplug 1", "intact", "Adam")
    assert found["average"] == "AveragedModel() of 3 steps"
    assert found["steps"] == 3
    assert tables["attributes"] == [{"attribute": "note", "text": "tabs\tand\nlines"}]
    assert found["bytes of state"] == 2 * (6 * 8 + 4 * 4) + 2 * 4
    assert found["bytes of parameters"] == found["bytes of the average"] == 6 * 8 + 4 * 4
    assert [row["hyperparameters"]["initial_lr"] for row in tables["groups"]] == [0.5, 0.25]
    assert tables["parameters"] == [
        {
            "parameter": "w",
            "group": 0,
            "dtype": "float64",
            "shape": [3, 2],
            "steps": 3,
            "values": "in the file",
        },
        {
            "parameter": "bias",
            "group": 1,
            "dtype": "float32",
            "shape": [4],
            "steps": 3,
            "values": "in the file",
        },
    ]
    assert {"parameter": "bias", "state": "exp_avg", "dtype": "float32", "shape": [4], "bytes": 16} in tables[
        "state"
    ]
    assert tables["schedulers"] == [{"scheduler": "StepLR(step_size=2)", "steps": 3, "lr": [0.05, 0.025]}]
    lines = call("inspect", str(saved))[1].splitlines()
    assert "w\t0\tfloat64\t[3, 2]\t3\tin the file" in lines


def test_inspect_reads_what_torch_has_saved(call, tmp_path):
    path = tmp_path / "torch.pt"
    parameter = torch.nn.Parameter(torch.ones(5))
    parameter.grad = torch.ones(5)
    optimizer = torch.optim.SGD([("w", parameter)], lr=0.1, momentum=0.9)
    optimizer.step()
    for content in (optimizer.state_dict(), {"optimizer": optimizer.state_dict(), "epoch": 3}):
        torch.save(content, path)
        status, out, _ = call("inspect", str(path))
        assert status == 0
        assert "format:         plain PyTorch\nseal:           none\nbytes of state: 20\n" in out
        assert "w\tmomentum_buffer\tfloat32\t[5]\t20" in out
        assert "lr=0.1, momentum=0.9" in out


def test_inspect_of_a_damaged_or_foreign_file_is_a_line(call, saved, tmp_path):
    bad = tmp_path / "bad.pt"
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    for make, said in (
        (lambda: bad.write_bytes(content), "its checksum is another"),
        (lambda: bad.write_bytes(saved.read_bytes()[:-1]), "it is damaged"),
        (lambda: bad.write_bytes(b""), "it is empty"),
        (lambda: bad.write_text("epoch,loss"), "it is no checkpoint"),
        (lambda: torch.save({"a": 1}, bad), "it has no state of an optimizer in it"),
        (lambda: torch.save({"state": 1, "param_groups": [1]}, bad), "is of another kind than it must be"),
        (lambda: torch.save({"state": {}, "param_groups": [{}]}, bad), "it has no 'params'"),
        (lambda: torch.save(torch.ones(1), bad), "it has a Tensor in it"),
        (bad.unlink, "No such file"),
        (bad.mkdir, "Is a directory"),
    ):
        make()
        status, out, err = call("inspect", str(bad))
        assert (status, out, err.count("\n")) == (1, "", 1), said
        assert err.startswith(f"path '{bad}': ")
        assert said in err


def test_inspect_shows_names_on_one_line_and_without_escapes(call, tmp_path):
    path, names = (
        tmp_path / "c.pt",
        ["\x1b[31mred\x07", "a\nb: fake line", "x\r\x1b[2K", "\u202e rtl", "\x9b31m"],
    )
    values = [torch.nn.Parameter(torch.ones(5)) for _ in names]
    optimizer = torch.optim.Adam(list(zip(names, values, strict=True)))
    optimizer.param_groups[0]["\x1b[1m"] = "\x1b]0;title\x07"
    for value in values:
        value.grad = torch.ones(5)
    optimizer.step()
    torch.save(optimizer.state_dict(), path)
    status, out, _ = call("inspect", str(path))
    assert (status, [c for c in out if not (c.isprintable() or c in "\n\t")]) == (0, [])
    assert [line for line in out.splitlines() if "fake line" in line and not line.startswith("a\\nb")] == []
    assert r"\x1b[31mred\x07" in out
    assert "\x1b" not in call("inspect", str(path), "--json")[1]


def test_inspect_shows_no_more_than_fits(call, tmp_path):
    path, laugh = tmp_path / "c.pt", ("ha",) * 2
    for _ in range(14):
        laugh = laugh, laugh
    group = {"params": [0], "lr": 0.1, "x" * 10**6: "y" * 10**6, "laugh": laugh, "row": [1] * 10**5}
    torch.save({"state": {0: {"step": laugh}}, "param_groups": [group]}, path)
    for form in ((), ("--json",)):
        status, out, _ = call("inspect", str(path), *form)
        assert status == 0
        assert len(out) < 10_000


def test_the_current_folders_modules_are_not_imported(saved):
    for name in ("argparse", "ctypes", "json", "numpy", "pathlib", "rich", "shlex", "torch", "zipfile"):
        (saved.parent / f"{name}.py").write_text("open('imported', 'a').write(__name__)\n")
    for line in (["inspect", saved], ["list"], ["describe", "Adam"], ["doctor"], ["config", "--cflags"]):
        done = subprocess.run(
            [sys.executable, "-m", "optplug", *line],
            cwd=saved.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert not (saved.parent / "imported").exists()


def test_bench_measures_both_and_draws(tmp_path):
    picture = tmp_path / "bench.png"
    arguments = ("SGD(lr=0.1)", "RMSprop()", "--sizes", "10,2e1", "--threads", "1", "--plot", str(picture))
    done = command("bench", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
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


def test_plot_of_no_table_is_an_error(tmp_path):
    table = tmp_path / "no.csv"
    assert "no.csv is no table of numbers" in command("plot", str(table)).stderr
    table.write_text("epoch\n1\n")
    assert "is no table of numbers" in command("plot", str(table)).stderr
    table.write_text("epoch,loss\n1,1\n")
    assert "cannot be written" in command("plot", str(table), "/nowhere/x.png").stderr
    table.write_text("epoch,loss\n1,much\n")
    done = command("plot", str(table))
    assert done.returncode == 1
    assert "could not convert string to float: 'much'" in done.stderr
