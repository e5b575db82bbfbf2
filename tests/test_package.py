"""The wheel that pip makes of the published source, and the recipes for other package managers."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
import yaml

import hosts
import optplug

PROJECT = (hosts.PROJECT / "pyproject.toml").read_text()
RUN = ast.literal_eval(re.search(r"^dependencies = (.*)$", PROJECT, re.M)[1])
BUILD = ast.literal_eval(re.search(r"^requires = (.*)$", PROJECT, re.M)[1])
PYTHON = re.search(r'^requires-python = ">=(.*)"$', PROJECT, re.M)[1]
VERSION = re.search(r'OPTPLUG_VERSION "(.*)"', (hosts.PROJECT / "include" / "optplug.h").read_text())[1]


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> pathlib.Path:
    """Build it in isolation, as any environment with a compiler does."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    settings = [
        f"--config-settings=build-dir={place}/build",
        *(f"--config-settings=cmake.define.{s}" for s in hosts.QUICKLY),
    ]
    subprocess.run([*pip, *settings, "--wheel-dir", place, sdist], check=True)
    [found] = place.glob("optplug-*.whl")
    return found


def test_the_published_source_leaves_out_what_is_built(sdist):
    with tarfile.open(sdist) as archive:
        names = {pathlib.PurePath(name).parts[1] for name in archive.getnames()}
    assert {"CMakeLists.txt", "README.md", "csrc", "python", "tests"} <= names
    assert names.isdisjoint({"build", ".ci", ".github"})


def test_a_wheel_holds_everything_and_no_path_of_the_build(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        contents = {name: archive.read(name) for name in names}
    suffix = "dylib" if sys.platform == "darwin" else "so"
    assert {
        "optplug/bin/optplug-probe",
        "optplug/fortran/fpm.toml",
        "optplug/fortran/optplug.f90",
        "optplug/include/optplug.h",
        "optplug/include/optplug.hpp",
        "optplug/include/optplug_mpi.f90",
        "optplug/include/optplug_mpi.h",
        "optplug/lib/cmake/optplug/optplug-config.cmake",
        f"optplug/lib/liboptplug.{suffix}",
        "optplug/lib/pkgconfig/optplug.pc",
        "optplug/matlab/+optplug/Optimizer.m",
        "optplug/matlab/liboptplug_proto.m",
        "optplug/matlab/optplug_mex.c",
    } <= names
    assert sum(name.startswith("optplug/matlab/liboptplug_thunk_") for name in names) == 1
    assert sum(pathlib.Path(name).name.startswith("_optplug.") for name in names) == 1
    assert all(name.startswith("optplug/") for name in names)
    for name, content in contents.items():
        assert str(hosts.PROJECT).encode() not in content, name
        assert str(wheel.parent).encode() not in content, name


def test_a_wheel_of_the_published_source_is_what_is_installed(wheel):
    package = pathlib.Path(optplug.__file__).parent
    files = [f for f in package.rglob("*") if f.is_file() and f.suffix != ".pyc"]
    installed = {str(file.relative_to(package.parent)): file.read_bytes() for file in files}
    with zipfile.ZipFile(wheel) as archive:
        made = {name: archive.read(name) for name in archive.namelist() if name.startswith("optplug/")}
    assert made.keys() == installed.keys()
    # What is compiled goes by the versions of what builds it, which are the newest ones here.
    compiled = re.compile(r"\.so(\.\d+)?$|\.dylib$|-probe$")
    assert [n for n in made if made[n] != installed[n] and not compiled.search(n)] == []


@pytest.mark.skipif(sys.platform == "darwin", reason="reads ELF")
def test_a_wheel_needs_nothing_but_libc(wheel):
    done = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", wheel], check=True, capture_output=True, text=True
    )
    assert re.search(r'platform tag: "manylinux_\d+_\d+_', " ".join(done.stdout.split()))
    assert set(re.findall(r"\b(lib\w+)\.so", done.stdout)) <= {"libc", "libm", "libdl", "libpthread"}


def wanted(requirements: list[str]) -> set[tuple[str, str]]:
    """Return names and least versions of "name>=1.2"."""
    return {tuple(requirement.split(">=")) for requirement in requirements}


def test_the_recipe_for_spack_says_what_pyproject_says():
    text = (hosts.PROJECT / "packaging" / "spack" / "package.py").read_text()
    [recipe] = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    statements = [node.value for node in recipe.body if isinstance(node, ast.Expr)]
    calls = [node for node in statements if isinstance(node, ast.Call)]
    arguments = [(c.func.id, c.args[0].value, ast.unparse(c)) for c in calls]
    depends = {(spec, call) for name, spec, call in arguments if name == "depends_on"}
    for kind, requirements in (("run", RUN), ("build", BUILD)):
        specs = {spec for spec, call in depends if f"'{kind}'" in call}
        assert {f"py-{name}@{least}:" for name, least in wanted(requirements)} <= specs
    assert f"python@{PYTHON}:" in {spec for spec, _ in depends}
    assert ("version", VERSION) in {(name, value) for name, value, _ in arguments}


def test_the_recipe_for_conda_says_what_pyproject_says():
    recipe = yaml.safe_load((hosts.PROJECT / "packaging" / "conda" / "recipe.yaml").read_text())
    assert recipe["context"]["version"] == VERSION
    needs = recipe["requirements"]
    for kind, requirements in (("run", RUN), ("host", BUILD)):
        for name, least in wanted(requirements):
            assert f"{name.replace('torch', 'pytorch')} >={least}" in needs[kind]


def test_cibuildwheel_builds_for_each_python_that_is_supported():
    pytest.importorskip("cibuildwheel", reason="it needs Python 3.11")
    command = [sys.executable, "-m", "cibuildwheel", "--platform", "linux", "--archs", "x86_64"]
    done = subprocess.run(
        [*command, "--print-build-identifiers"],
        cwd=hosts.PROJECT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [f"cp3{minor}-manylinux_x86_64" for minor in range(10, 15)]
