"""The worked examples build, find what they are to find, and are drawn, by what docs/ names."""

from __future__ import annotations

import csv
import os
import pathlib
import re
import subprocess
import sys

import pytest

import hosts
import optplug
from optplug.ctypes_api import listing

EXAMPLES = hosts.PROJECT / "examples"
PAGES = sorted((hosts.PROJECT / "docs/examples").glob("*.md"))
OCTAVE = os.environ.get("OPTPLUG_TEST_OCTAVE")
HAS_EIGEN = bool(hosts.CXX) and pathlib.Path("/usr/include/eigen3").exists()
needs_eigen = hosts.needs("C++ compiler, or no Eigen", "g++ libeigen3-dev", HAS_EIGEN)
needs_octave = hosts.needs("Octave, or no mkoctfile", "octave octave-dev", OCTAVE)


HERE = {
    "digits": True,
    "heat_inverse": hosts.FC,
    "control": HAS_EIGEN,
    "map": True,
    "recurrent": True,
    "spectrum": OCTAVE,
    "ensemble": True,
    "neural_fortran": hosts.FC,
}


def draw(script: pathlib.Path, folder: pathlib.Path, *names: str) -> dict[str, str]:
    """Run examples by a script, and return what each prints."""
    compilers = {"CC": hosts.CC, "CXX": hosts.CXX or "", "FC": hosts.FC or ""}
    command = [*hosts.PYTHON, script, "--only", *names, "--folder", folder]
    done = subprocess.run(
        command,
        env={**os.environ, **hosts.MPI_ENVIRONMENT, **compilers},
        capture_output=True,
        text=True,
        timeout=hosts.PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    for name in names:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    printed = re.split("|".join(re.escape(f"{folder}/{name}.png\n") for name in names), done.stdout)
    return dict(zip(names, printed, strict=False))


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> dict[str, str]:
    """What the examples print for which everything is here; that of the map is run as a reader does."""
    folder = tmp_path_factory.mktemp("pictures")
    names = [name for name, is_here in HERE.items() if is_here and name != "map"]
    as_libraries = draw(hosts.PROJECT / "tests/linked_pictures.py", folder, *names)
    return {**as_libraries, **draw(EXAMPLES / "pictures.py", folder, "map")}


def numbers(pattern: str, text: str) -> list[float]:
    return [float(x) for x in re.search(pattern, text).groups()]


def test_digits_are_read(printed):
    assert numbers(r": ([\d.]+) % of", printed["digits"])[0] > 95


@hosts.needs_fortran
def test_the_conductivity_is_found(printed):
    misfit, error = numbers(r"misfit +([\d.]+), relative error +([\d.]+)", printed["heat_inverse"])
    assert 0.95 < misfit < 1.1
    assert error < 0.35


@needs_eigen
def test_the_pendulum_is_upright_and_lbfgs_at_the_minimum(printed):
    said = printed["control"]
    adam, lbfgs, gradient = numbers(r"(?s)loss ([\d.]+)\n.*loss ([\d.]+), largest gradient (\S+)\n", said)
    assert lbfgs < adam / 2
    assert gradient < 1e-4
    off, torque = numbers(r"ends (\S+) from upright, with a torque of at most (\S+)", said)
    assert abs(off) < 0.02
    assert torque < 1  # what would hold it at the side


def test_the_map_is_the_true_one(printed):
    assert numbers(r"wrong by ([\d.]+)\n\Z", printed["map"])[0] < 0.2


def test_float32_copies_are_what_bfloat16_lacks(printed):
    with_, without = numbers(r"(?s)True: loss ([\d.]+).*False: loss ([\d.]+)", printed["recurrent"])
    assert with_ < 0.1
    assert without > 5 * with_


@needs_octave
def test_the_peaks_are_found(printed):
    said = printed["spectrum"]
    misfit, noise = numbers(r"LBFGS: misfit ([\d.]+), of which the noise is ([\d.]+)", said)
    assert misfit < noise
    peaks = re.findall(r"peak at ([\d.]+) \(([\d.]+)\)", said)
    assert [float(found) for found, _ in peaks] == pytest.approx([float(true) for _, true in peaks], abs=0.05)


def test_the_ensemble_disagrees_where_nothing_was_measured(printed):
    measured, gap = numbers(r"by ([\d.]+) where there are measurements, and by ([\d.]+)", printed["ensemble"])
    assert gap > 2 * measured


@hosts.needs_fortran
def test_torchs_optimizers_train_layers_of_neural_fortran(printed):
    losses = re.findall(r"^(\w+)\(.*\): loss (.*)$", printed["neural_fortran"], re.M)
    assert [name for name, _ in losses] == ["SGD", "Adam", "RAdam"]
    assert all(float(loss) < 2e-3 for _, loss in losses)


@hosts.needs_fortran
def test_the_adapter_for_neural_fortran_takes_no_rate_but_the_specs(tmp_path):
    source = """
program main
  use torch_optimizers, only: torch_optimizer
  type(torch_optimizer) :: layer
  real :: w(2) = 1
  layer = torch_optimizer("SGD(lr=0.5)")
  call layer%init(2)
  call layer%minimize(w, [1., 2.])
  print *, w
  layer%learning_rate = 1
  call layer%minimize(w, [1., 2.])
end program
"""
    (tmp_path / "main.f90").write_text(source)
    sources = [EXAMPLES / "nf.f90", EXAMPLES / "torch_optimizers.f90", tmp_path / "main.f90"]
    command = [
        hosts.FC,
        f"{optplug.fortrandir()}/optplug.f90",
        *sources,
        *["-shared", "-fPIC", "-o", "main"],
        f"-L{optplug.libdir()}",
    ]
    libraries = ["-loptplug", f"-Wl,-rpath,{optplug.libdir()}"]
    subprocess.run([*command, *libraries], cwd=tmp_path, check=True)
    command = hosts.main_of(tmp_path / "main")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [float(x) for x in done.stdout.split()] == [0.5, 0]
    assert done.returncode != 0
    assert "learning_rate has no effect: the spec has lr" in done.stderr


def test_what_the_guide_says_of_optimizers_is_what_they_do(tmp_path):
    command = [sys.executable, EXAMPLES / "choose.py", "--folder", tmp_path, "--evaluations", "60"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(command, env=quiet, check=True, capture_output=True, timeout=hosts.PATIENCE)
    rows = list(csv.reader((tmp_path / "which.csv").read_text().splitlines()))[1:]
    assert {row[0] for row in rows} == set(listing("optimizers")) - {"Muon", "SparseAdam"}
    equation, batches, network = (
        sorted((row[0] for row in rows), key=lambda name: float(dict(column)[name].split()[0]))
        for column in ([(row[0], row[k]) for row in rows] for k in (1, 2, 3))
    )
    assert equation[0] == "LBFGS"
    assert {"LBFGS", "Rprop"} & set(batches[-4:])
    assert {"LBFGS", "Rprop"} & set(network[:3])


def test_the_guides_table_is_the_one_that_was_run():
    rows = list(csv.reader((hosts.PROJECT / "docs/which.csv").read_text().splitlines()))
    page = (hosts.PROJECT / "docs/which.md").read_text()
    for name, *cells in rows[1:]:
        assert f"| `{name}` | {' | '.join(cells)} |" in page


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "index"], ids=lambda page: page.stem)
def test_a_page_has_a_picture_and_a_program_that_is_read_in_ten_minutes(page):
    text = page.read_text()
    assert f"]({page.stem}.png)" in text
    assert page.with_suffix(".png").stat().st_size > 10_000
    programs = re.findall(r'\((\S+) "program"\)', text)
    assert programs
    for program in programs:
        assert len((page.parent / program).read_text().splitlines()) <= 200
    assert f"({page.name})" in (page.parent / "index.md").read_text()
