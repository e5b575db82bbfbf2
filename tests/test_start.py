"""Finding and starting Python from hosts that are none, in good surroundings and bad."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import hosts
import optplug

STEPPED = "stepped\n"
DLOPENED = hosts.PROGRAMS / "host_dlopened"
VERSION = "{}.{}".format(*sys.version_info)


@pytest.fixture(params=["host", "host_dlopened"])
def host(request) -> pathlib.Path:
    return hosts.PROGRAMS / request.param


def library_in(bare: pathlib.Path) -> str:
    return str(bare / "optplug/lib" / pathlib.Path(optplug.library()).name)


def say(program: pathlib.Path, *arguments: str, **env: str) -> str:
    return hosts.run(program, *arguments, env=env).stdout


def test_a_host_gets_the_environment_that_the_library_lies_in(tmp_path):
    """Whatever variables and PATH say of Python."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('a foreign numpy')")
    (tmp_path / "optplug.py").write_text("raise SystemExit('a foreign optplug')")
    said = say(
        hosts.PROGRAMS / "host",
        PATH=str(tmp_path),
        PYTHONHOME="/nowhere",
        PYTHONPATH=str(tmp_path),
        PYTHONSTARTUP="/nowhere",
        VIRTUAL_ENV="/nowhere",
    )
    assert said.startswith(STEPPED)
    assert f"({sys.prefix}/bin/python" in said
    assert f"library: {optplug.library()}\n" in said


def test_python_can_be_named_by_the_folder_of_its_environment(bare, tmp_path):
    """One without torch, by a library that lies elsewhere; twice, which is not too late for the same one."""
    folder, copy = bare.parents[2], shutil.copy(optplug.library(), tmp_path)
    names = f"python='{folder}/'", f"python='{folder}'"
    lines = say(DLOPENED, *names, OPTPLUG_TEST_LIBRARY=str(copy)).splitlines()[:2]
    assert all(line.startswith(f"-4 Python '{folder}/bin/python") for line in lines), lines
    assert all("No module named 'torch'" in line for line in lines)
    assert say(DLOPENED, OPTPLUG_PYTHON=str(tmp_path)).startswith(
        f"-4 OPTPLUG_PYTHON: '{tmp_path}' is neither an environment's folder nor its bin/python3"
    )


def test_an_environment_may_be_made_by_another_ones_python(tmp_path):
    """And a variable may name it by its folder, where the library lies in none."""
    inner = tmp_path / "inner"
    (inner / "bin").mkdir(parents=True)
    (inner / "bin/python3").symlink_to(pathlib.Path(sys.executable).resolve())
    (inner / "lib").symlink_to(f"{sys.prefix}/lib")
    (inner / "pyvenv.cfg").write_text(f"home = {sys.prefix}/bin\nversion = {VERSION}.0\n")  # as with 3.10
    copy = shutil.copy(optplug.library(), tmp_path)
    said = say(DLOPENED, OPTPLUG_PYTHON=str(inner), OPTPLUG_TEST_LIBRARY=str(copy))
    assert said.startswith(STEPPED)
    assert f"({inner}/bin/python" in said


def test_a_python_that_is_none_is_refused(host, tmp_path):
    assert say(host, OPTPLUG_PYTHON="/nowhere/python3").startswith(
        "-4 OPTPLUG_PYTHON: '/nowhere/python3' is neither an environment's folder"
    )
    assert say(host, "python='/nowhere/python3'").startswith(
        "-4 python: '/nowhere/python3' is neither an environment's folder"
    )
    if pathlib.Path("/usr/bin/env").exists():
        assert "'/usr/bin/env' is not Python" in say(host, OPTPLUG_PYTHON="/usr/bin/env")
    shim = tmp_path / "bin" / "python3"
    shim.parent.mkdir()
    shim.write_text('#!/bin/sh\nexec python3 "$@"\n')
    shim.chmod(0o755)
    assert say(host, OPTPLUG_PYTHON=str(shim)).startswith(
        f"-4 OPTPLUG_PYTHON: '{shim}' is not Python {VERSION}, for which this liboptplug was built"
    )
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.4.1\n")
    assert say(host, OPTPLUG_PYTHON=str(shim)).startswith(
        f"-4 OPTPLUG_PYTHON: '{shim}' is Python 3.4.1, and this liboptplug was built for Python {VERSION}"
    )


@pytest.mark.skipif(sys.platform == "darwin", reason="LD_PRELOAD")
def test_a_missing_libpython_is_an_error_that_says_what_to_install(host):
    said = say(host, LD_PRELOAD=str(hosts.PROGRAMS / "no_libpython.so"))
    assert said.startswith(f"-4 no libpython{VERSION}")
    assert f"apt-get install libpython{VERSION}" in said


def test_a_named_libpython_that_is_missing_is_an_error(host):
    said = say(host, OPTPLUG_LIBPYTHON="/nowhere/libpython.so")
    assert said.startswith("-4 OPTPLUG_LIBPYTHON: ")
    assert "/nowhere/libpython.so" in said


def test_a_copy_of_the_library_outside_of_any_environment_asks_for_one_which_an_option_can_name(tmp_path):
    """Options reach torch."""
    copy = shutil.copy(optplug.library(), tmp_path)
    assert say(DLOPENED, OPTPLUG_TEST_LIBRARY=str(copy)).startswith(f"-4 '{copy}' is not in an environment")
    said = say(DLOPENED, f'num_threads=1, python="{sys.executable}"', OPTPLUG_TEST_LIBRARY=str(copy))
    assert said.startswith(STEPPED)
    assert "threads: 1\n" in said
    assert f"({sys.executable})" in said


def test_a_free_threaded_python_is_refused_by_name(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    shutil.copy(sys.executable, folder / f"python{VERSION}t")
    (folder / "python3").symlink_to(f"python{VERSION}t")
    said = say(hosts.PROGRAMS / "host", OPTPLUG_PYTHON=str(folder / "python3"))
    assert said.startswith(f"-4 OPTPLUG_PYTHON: '{folder}/python3' is a free-threaded Python, which")


def test_a_free_threaded_python_is_refused_by_its_library(tmp_path):
    python = tmp_path / "bin" / f"python{VERSION}"
    encodings = tmp_path / "lib" / f"python{VERSION}t" / "encodings"
    for folder in (python.parent, encodings):
        folder.mkdir(parents=True)
    shutil.copy(sys.executable, python)
    (encodings / "__init__.py").touch()
    said = say(hosts.PROGRAMS / "host", OPTPLUG_PYTHON=str(python))
    assert said.startswith(f"-4 OPTPLUG_PYTHON: '{python}' is a free-threaded Python, which")


def test_a_missing_torch_is_an_error_that_says_what_to_install(bare):
    said = say(DLOPENED, OPTPLUG_TEST_LIBRARY=library_in(bare))
    assert said.startswith("-4 Python '")
    assert "No module named 'torch'" in said
    assert "-m pip install 'torch>=2.11'" in said


def test_a_torch_that_is_too_old_is_refused(bare):
    (bare / "torch.py").write_text("__version__ = '2.10.1+cpu'")
    said = say(DLOPENED, OPTPLUG_TEST_LIBRARY=library_in(bare))
    assert "torch 2.10.1+cpu is too old, optplug needs 2.11" in said


def test_a_start_that_has_failed_in_torch_is_tried_once(bare):
    """Torch's own libraries cannot be loaded a second time."""
    (bare / "torch").mkdir()
    (bare / "torch" / "part.py").write_text("count = 0")
    (bare / "torch" / "__init__.py").write_text(
        "from torch import part\npart.count += 1\nraise RuntimeError(f'failure number {part.count}')"
    )
    said = say(DLOPENED, "", "", "", OPTPLUG_TEST_LIBRARY=library_in(bare))
    assert [line.rpartition(": ")[2] for line in said.splitlines()[:3]] == ["failure number 1"] * 3


@pytest.fixture
def privileged(tmp_path) -> pathlib.Path:
    """A host that runs with rights which its caller does not have."""
    program = shutil.copy(DLOPENED, tmp_path / "privileged")
    groups = [54321] if os.getuid() == 0 else [g for g in os.getgroups() if g != os.getgid()]
    if not groups:
        pytest.skip("nobody to lend rights: run this as root, or with a second group")
    os.chown(program, -1, groups[0])
    program.chmod(0o2755)
    shown = subprocess.run([program], env={"LD_SHOW_AUXV": "1"}, capture_output=True, text=True, check=False)
    if "AT_SECURE" in shown.stdout:
        pytest.skip(f"{tmp_path} is mounted nosuid: name another with --basetemp")
    return program


@pytest.mark.skipif(sys.platform == "darwin", reason="glibc's LD_SHOW_AUXV")
def test_the_environment_chooses_nothing_where_the_host_has_more_rights_than_its_caller(privileged, bare):
    wishes = {"OPTPLUG_PYTHON": "/nowhere/python3", "OPTPLUG_LIBPYTHON": "/nowhere/libpython.so"}
    assert say(privileged, **wishes).startswith(STEPPED)
    assert say(privileged, "python='/nowhere/python'", **wishes).startswith("-4 python: '/nowhere/python' is")
    (bare / "torch.py").write_text("import os\nraise ImportError(f'torch sees {sorted(os.environ)}')")
    assert "torch sees []" in say(privileged, OPTPLUG_TEST_LIBRARY=library_in(bare))
    assert "'OPTPLUG_TEST_LIBRARY'" in say(DLOPENED, OPTPLUG_TEST_LIBRARY=library_in(bare))


def shell(line: str, *around: str, program: pathlib.Path | str = hosts.PROGRAMS / "host") -> str:
    """Run a line of the shell's, in which $1 is the host, by a program that changes what is around it."""
    command = [*around, "sh", "-c", line, "sh"]
    can_be = subprocess.run([*command, "echo"], **TEXT)
    if can_be.returncode != 0:
        pytest.skip(f"not possible here: {can_be.stderr.strip()}")
    done = subprocess.run([*command, program], **TEXT)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


TEXT = {"capture_output": True, "text": True, "timeout": hosts.PATIENCE, "check": False}
# Root has no limits; another user may not be able to read what root has installed.
AS_SOMEBODY = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--securebits=+no_setuid_fixup",
               "--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override")  # fmt: skip


def needs_root(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        os.getuid() != 0 or not shutil.which(program), reason=f"needs root and {program} (util-linux)"
    )


@needs_root("setpriv")
def test_without_threads_to_be_made_torch_uses_one_or_says_so():
    if len(os.sched_getaffinity(0)) == 1:
        return
    assert "and numpy's BLAS needs" in shell("exec prlimit --nproc=1 $1", *AS_SOMEBODY)
    enough_to_start = "export OPENBLAS_NUM_THREADS=1; exec prlimit --nproc=1 $1"
    said = shell(enough_to_start, *AS_SOMEBODY)
    assert said.startswith(STEPPED)
    assert "threads: 1\n" in said


ITERATE = """
import numpy as np
from optplug.ctypes_api import Error, Optimizer
w, dw = np.ones(2), np.ones(2)
opt = Optimizer("LBFGS()")
opt.bind("w", w, dw)
for _ in range(2):
    try:
        opt.iterate(0.0)
    except Error as error:
        print(error)
opt.step_closure(lambda: 1.0)
print("stepped")
"""


@needs_root("setpriv")
def test_with_one_thread_torch_starts_and_a_step_by_reverse_communication_says_what_to_do(tmp_path):
    (tmp_path / "iterate.py").write_text(ITERATE)
    line = f"export OMP_NUM_THREADS=1; exec prlimit --nproc=1 $1 {tmp_path}/iterate.py"
    said = shell(line, *AS_SOMEBODY, program=sys.executable).splitlines()
    assert ["opt_iterate needs a thread" in line for line in said] == [True, True, False]
    assert said[2] == "stepped"


@needs_root("unshare")
def test_without_proc_there_is_an_error_and_nothing_printed():
    said = shell("umount -l /proc && exec $1", "unshare", "-m")
    assert said.startswith("-4 Python")
    assert "/proc/cpuinfo cannot be read" in said


@needs_root("unshare")
def test_without_random_numbers_there_is_one_reason_for_all_calls():
    said = shell("mount -t tmpfs none /dev && exec $1 '' '' ''", "unshare", "-m").splitlines()[:3]
    assert said[0].startswith("-4 Python")
    assert said == [said[0]] * 3
