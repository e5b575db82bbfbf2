"""The Fortran example on a real problem, examples/heat_inverse.f90; test_heat.f90 checks its gradient."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess

import pytest

import hosts

PROGRAM = os.environ.get("OPTPLUG_TEST_HEAT")
#: The same as a library, for a Python that has torch already; signals are to end the program itself.
LIBRARY = os.environ.get("OPTPLUG_TEST_HEAT_LIBRARY", "")
pytestmark = hosts.needs("Fortran compiler", "gfortran", PROGRAM)
NAMELIST = (hosts.PROJECT / "examples/heat_inverse.nml").read_text()
LBFGS = {
    "spec": "LBFGS(line_search_fn='strong_wolfe')",
    "schedule": "",
    "iterations": 8,
    "print_every": 1,
    "checkpoint_every": 3,
}


def namelist(place: pathlib.Path, **changes: object) -> pathlib.Path:
    """Write the example's namelist with values of its variables changed; files are to be in place."""
    text = NAMELIST
    for name, value in {
        "checkpoint": f"{place}/run.restart",
        "field": f"{place}/field.csv",
        **changes,
    }.items():
        shown = f'"{value}"' if isinstance(value, str) else f".{value}." if value is True else value
        text, found = re.subn(f"^  {name} = .*$", f"  {name} = {shown}", text, flags=re.M)
        assert found == 1, name
    path = place / "run.nml"
    path.write_text(text)
    return path


def invert(place: pathlib.Path, **changes: object) -> list[str]:
    return hosts.run_main(LIBRARY, str(namelist(place, **changes))).stdout.splitlines()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[pathlib.Path, list[str]]:
    """A run that nothing stops, with a checkpoint after every third iteration: its folder, and its lines."""
    place = tmp_path_factory.mktemp("whole")
    return place, invert(place, **LBFGS)


def test_another_namelist_is_another_optimizer_and_the_field_is_drawn(whole):
    place, (header, *rows, last) = whole
    assert header.split("  ")[0] == "iteration"
    assert [int(row.split()[0]) for row in rows] == list(range(1, 9))
    assert {len(row) for row in rows} == {len(header)}
    misfit = float(re.search(r"misfit ([\d.]+)", last)[1])
    assert misfit < 1.1
    assert misfit < float(rows[0].split()[3])
    draw = [*hosts.PYTHON, hosts.PROJECT / "examples/heat_inverse_plot.py", place / "field.csv"]
    drawn = subprocess.run(draw, capture_output=True, text=True, check=True)
    assert drawn.stdout == f"{place / 'field.png'}\n"
    assert (place / "field.png").read_bytes().startswith(b"\x89PNG")


def test_a_schedule_by_the_misfit_lowers_the_rate(tmp_path):
    _, *rows, _ = invert(
        tmp_path,
        spec="SGD(lr=1)",
        schedule="ReduceLROnPlateau(patience=0, threshold=0.5)",
        iterations=9,
        print_every=3,
    )
    assert [int(row.split()[0]) for row in rows] == [1, 3, 6, 9]
    rates = [float(row.split()[1]) for row in rows]
    assert rates[0] == 1
    assert rates[-1] < 1


def test_a_killed_run_goes_on_as_if_it_had_not_been(whole, tmp_path):
    place, lines = whole
    changes = {**LBFGS, "restart": True}
    with subprocess.Popen(
        [PROGRAM, str(namelist(tmp_path, **changes))], stdout=subprocess.PIPE, text=True
    ) as running:
        for line in running.stdout:
            if line.split()[0] == "5":
                running.kill()
                break
    assert running.returncode == -signal.SIGKILL
    assert not (tmp_path / "field.csv").exists()
    said, header, *rows = invert(tmp_path, **changes)
    done = int(re.fullmatch(f"going on with {tmp_path}/run.restart, after iteration (.+)", said)[1])
    assert done % 3 == 0
    assert done > 0
    assert [header, *rows] == [lines[0], *lines[1 + done :]]
    assert (tmp_path / "field.csv").read_bytes() == (place / "field.csv").read_bytes()


def stop(place: pathlib.Path, **changes: object) -> str:
    """Run the program, which must fail, and return what it says of why."""
    path = namelist(place, **changes)
    done = subprocess.run([*hosts.main_of(LIBRARY), str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr.splitlines()[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "CosineLR()"}, "optplug: spec 'CosineLR()': no scheduler 'CosineLR': did you mean"),
        ({"iterations": "many"}, "heat_inverse: {}/run.nml: "),
        ({"field": "/nowhere/field.csv", "iterations": 0}, "heat_inverse: /nowhere/field.csv: "),
    ],
)
def test_a_mistake_in_the_namelist_is_told(changes, words, tmp_path):
    assert stop(tmp_path, **changes).startswith(f"ERROR STOP {words.format(tmp_path)}")


def test_a_checkpoint_that_does_not_fit_is_told(whole, tmp_path):
    checkpoint = tmp_path / "run.restart"
    checkpoint.write_bytes((whole[0] / "run.restart").read_bytes())
    assert "the file is of LBFGS, this optimizer is SGD" in stop(tmp_path, spec="SGD()", restart=True)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    assert stop(tmp_path, restart=True).startswith(f"ERROR STOP heat_inverse: {checkpoint}: ")


def test_a_run_that_diverges_ends_at_its_first_overflow(tmp_path):
    path = namelist(tmp_path, spec="SGD(lr=1e9)", schedule="")
    done = subprocess.run([PROGRAM, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGFPE
