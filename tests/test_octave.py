"""MATLAB's and Octave's class in Octave: through the MEX file, and through a stand-in for loadlibrary."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import torch

import hosts
import optplug
import test_from_pytorch as loop

OCTAVE = os.environ.get("OPTPLUG_TEST_OCTAVE")
pytestmark = hosts.needs("Octave, or no mkoctfile", "octave octave-dev", OCTAVE)

FOLDER = hosts.PROJECT / "tests" / "matlab"
TESTS = re.findall(r"^function (test_\w+)", (FOLDER / "run_tests.m").read_text(), re.M)


def octave(code: str, *path: object, **env: str) -> str:
    """Run code in an Octave with the package and these folders on its path, and return what it prints."""
    done = subprocess.run(
        [
            OCTAVE,
            *["--norc", "--no-gui", "--no-history"],
            *["--path", ":".join(map(str, [optplug.matlabdir(), *path]))],
            *["--eval", code],
        ],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=hosts.PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), (done.stdout, done.stderr)
    return done.stdout


#: What names Python to a package that is in no environment.
PYTHON = {"OPTPLUG_PYTHON": sys.executable}


@pytest.fixture(scope="module")
def first_session(tmp_path_factory):
    """Build the MEX file as users do, in a folder with blanks; return that and what Octave says."""
    package = tmp_path_factory.mktemp("mex") / "two words"
    for name in ("include", "lib", "matlab"):
        shutil.copytree(pathlib.Path(optplug.matlabdir()).parent / name, package / name)
    code = f"addpath('{package / 'matlab'}'); setenv('CFLAGS', '-Wall -Wextra -Werror'); "
    code += "try, optplug.Optimizer('Adam()'); catch e, disp(e.identifier), disp(e.message), end, "
    code += "optplug.build(); disp(optplug.version()); opt = optplug.Optimizer('Adam()'); disp(class(opt))"
    return package / "matlab", octave(code, **PYTHON).splitlines()


@pytest.fixture(scope="module")
def mex(first_session):
    return first_session[0]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Build the stand-in for MATLAB's loadlibrary, calllib and libpointer."""
    folder = tmp_path_factory.mktemp("stand_in")
    source = FOLDER / "shim" / "shim_mex.c"
    octave(f"[~, failed] = mkoctfile('--mex', '-o', '{folder}/shim_mex.mex', '{source}'); assert(~failed)")
    return folder


@pytest.fixture(scope="module")
def printed(mex, stand_in, tmp_path_factory):
    """What the programs of this file print through each, which start PyTorch once, for all of them."""
    place = tmp_path_factory.mktemp("printed")  # where the tables' loop writes

    def run(programs: dict[str, str], *folders: pathlib.Path) -> dict[str, str]:
        code = "clear\nprintf('\\f')\n".join(f"{code}\n" for code in programs.values())
        said = octave(f"cd '{place}'\n{code}", *folders, **PYTHON).split("\f")
        return dict(zip(programs, said, strict=True))

    tests = {"the tests": "run_tests"}
    of_readmes = {name: code for name, (code, _) in shown().items()}
    through_mex = {"the loop": loop_of_the_page(), "calls": refused_calls(), **of_readmes, "held": HELD}
    return {
        "mex": run(tests | through_mex, FOLDER, mex),
        "stand_in": run(tests | {"unloaded": UNLOADED}, FOLDER, stand_in, FOLDER / "shim"),
    }


@pytest.fixture(scope="module", params=["mex", "stand_in"])
def lines(request, printed):
    """Return the line of each of the tests in Octave."""
    said = printed[request.param]["the tests"].splitlines()
    return {re.search(r"(?:test|run)_\w+", line)[0]: line for line in said}


@pytest.mark.parametrize("name", TESTS)
def test_the_class_passes(lines, name):
    assert lines[name] == f"ok {name}"


def loop_of_the_page() -> str:
    lines = "".join(f"{call};\n" for call in loop.calls(1, 2))
    return f"""
function dw = gradient(w), dw = 2 * w; end
function [loss, grads] = closure(p), loss = sum(p.w.^2); grads = struct('w', 2 * p.w, 'b', 0 * p.b); end
closure = @closure; w = [3; -2; 1]; b = w;
{lines}printf('%.17g\\n', norm, loss, lr, opt.data('w'));
"""


def test_the_column_of_the_page_for_programs_from_pytorch_has_its_numbers(printed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where PyTorch's column writes
    assert printed["mex"]["the loop"] == loop.expected()


def column_major(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).T.contiguous().T


def adam() -> list[float]:
    w = torch.tensor([5.0, -3, 2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.1, fused=True)
    for _ in range(50):
        w.grad = 2 * (w.detach() - torch.tensor([1.0, 2, 3], dtype=torch.float64))
        optimizer.step()
    return w.tolist()


def two_arrays() -> list[float]:
    b = torch.tensor([1.0, -2], requires_grad=True)
    w = column_major([[1, 2, 3], [4, 5, 6]]).requires_grad_()
    optimizer = torch.optim.SGD([b, w], lr=0.1, momentum=0.9, fused=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    for _ in range(10):
        b.grad, w.grad = 2 * b.detach(), 2 * w.detach()
        torch.nn.utils.clip_grad_norm_([b, w], 1.5)
        optimizer.step()
        scheduler.step()
    return [*w.detach().T.flatten().tolist(), *b.tolist()]


def lbfgs() -> list[float]:
    w = torch.tensor([-1.0, 1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], line_search_fn="strong_wolfe")

    def closure() -> float:
        x, y = w.tolist()
        dx = -2 * (1 - x) - 400 * x * (y - x * x)
        w.grad = torch.tensor([dx, 200 * (y - x * x)], dtype=torch.float64)
        return (1 - x) * (1 - x) + 100 * (y - x * x) * (y - x * x)

    for _ in range(5):
        loss = optimizer.step(closure)
    return [*w.tolist(), loss]


@pytest.mark.parametrize("run", [adam, two_arrays, lbfgs])
def test_a_run_is_pytorchs_to_the_last_bit(lines, run):
    expected = torch.tensor(run(), dtype=torch.float64).view(torch.int64).tolist()
    assert lines[f"run_{run.__name__}"].split()[1:] == [f"{x & (2**64 - 1):016x}" for x in expected]


def test_octave_without_the_mex_file_is_told_to_build_it_and_uses_it_in_the_same_session(first_session):
    folder, said = first_session
    assert said == [
        "optplug:start",
        "Octave calls optplug through a MEX file: run optplug.build once to make it",
        optplug.__version__,
        "optplug.Optimizer",
    ]
    assert list(folder.glob("optplug_mex.*mex*"))


def test_a_python_that_is_not_there_is_a_start_error(mex):
    code = "try, optplug.Optimizer('Adam()'); catch e, disp(e.identifier), disp(e.message), end, "
    code += "try, optplug.list('optimizers'); catch e, disp(e.identifier), end"
    identifier, message, again = octave(code, mex, OPTPLUG_PYTHON="/nowhere/python3").splitlines()
    assert identifier == again == "optplug:start"
    assert "/nowhere/python3" in message


HOLD = "p = optplug_mex('hold', 1); "
#: Calls of the MEX file's, and words of what it says of each.
REFUSED = {
    "optplug_mex()": "takes the name",
    "optplug_mex('optplug_nothing')": "no function 'optplug_nothing'",
    "optplug_mex('optplug_step')": "takes 1 arguments, got 0",
    "optplug_mex('optplug_step', 'x')": "takes a number",
    "optplug_mex('optplug_step', 1e10)": "takes an int here, got 1e+10",
    "optplug_mex('optplug_create', 1)": "takes text",
    "optplug_mex('hold', {1})": "takes a double, single or uint8 array",
    "optplug_mex('hold', 1i)": "takes a real, full array",
    "optplug_mex('held', 99)": "no array is held as 99",
    "optplug_mex('release', 99)": "no array is held as 99",
    HOLD + "optplug_mex('release', p); optplug_mex('held', p)": "no array is held",
    HOLD + "optplug_mex('optplug_copy', p, [1 2], 8)": "has another size or class",
    HOLD + "optplug_mex('optplug_copy', p, single(1), 8)": "has another size or class",
    HOLD + "optplug_mex('optplug_load_memory', 1, p, 9)": "has 1 elements, not 9",
    HOLD
    + "n = int64(2); optplug_mex('optplug_bind_nd', 1, 'w', 'float64', 'cpu', 1, n, p, n, p, n)": "not 2",
    HOLD + "optplug_mex('optplug_bind_nd', 1, 'w', 'float64', 'cpu', 1, 1, p, 1, p, 1)": "an int64 array",
}


def refused_calls() -> str:
    return "\n".join(f"try, {call}; disp('no error'); catch e, disp(e.message), end" for call in REFUSED)


def test_the_mex_file_refuses_what_it_does_not_hold(printed):
    said = printed["mex"]["calls"].splitlines()
    for message, (call, expected) in zip(said, REFUSED.items(), strict=True):
        assert expected in message, call


HELD = """
    setenv('HELD', num2str(optplug_mex('hold', [1 2 3])));
    opt = optplug.Optimizer('SGD(lr=1.0)'); opt.bind(1);
    clear all
    clear optplug_mex
    disp(optplug_mex('held', str2double(getenv('HELD')))')
"""


def test_held_memory_outlives_clear_all(printed):
    assert printed["mex"]["held"].split() == ["1", "2", "3"]


UNLOADED = """
    opt = optplug.Optimizer('SGD(lr=1.0)');
    opt.bind(1);
    clear opt
    unloadlibrary('liboptplug');
    opt = optplug.Optimizer('SGD(lr=1.0)');
    disp(opt.step(3, 1))
"""


def test_the_stand_in_can_unload_and_load_again(printed):
    assert printed["stand_in"]["unloaded"] == "2\n"


def shown() -> dict[str, tuple[str, str]]:
    """Return the programs of the first README, MATLAB's and Octave's, each with what it prints."""
    found = {"the first": (hosts.program("matlab"), hosts.program("text"))}
    for language in ("matlab", "octave"):
        readme = (hosts.PROJECT / "bindings" / language / "README.md").read_text()
        pattern = r"```matlab\n(.*?)```\n\nIt prints\n\n```text\n(.*?)```"
        found[language] = re.search(pattern, readme, re.S).groups()
    return found


def test_the_programs_of_the_readmes_print_what_these_say(printed):
    said = {name: printed["mex"][name] for name in shown()}
    assert said == {name: output for name, (_, output) in shown().items()}
