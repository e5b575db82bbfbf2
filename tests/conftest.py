"""What tests of several files start from."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import optplug

SITE = pathlib.Path(optplug.__file__).parent.parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Let a skipped test fail where OPTPLUG_TEST_MAY_SKIP is set, a pattern, and is not in the reason."""
    report = yield
    allowed = os.environ.get("OPTPLUG_TEST_MAY_SKIP")
    if report.skipped and not hasattr(report, "wasxfail") and allowed is not None:
        reason = report.longrepr[2]
        if not re.search(allowed, reason):
            report.outcome, report.longrepr = "failed", f"nothing may be skipped here: {reason}"
    return report


@pytest.fixture
def bare(tmp_path) -> pathlib.Path:
    """An environment with optplug and cffi in it, and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    site = pathlib.Path(
        subprocess.run(
            [tmp_path / "bare/bin/python", "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    for name in ("optplug", "cffi"):
        shutil.copytree(SITE / name, site / name)
    for file in (*SITE.glob("_cffi_backend*.so"), *SITE.glob("optplug-*.dist-info")):
        (shutil.copytree if file.is_dir() else shutil.copy)(file, site / file.name)
    shutil.copy(pathlib.Path(sys.executable).parent / "optplug", tmp_path / "bare/bin")
    return site


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> pathlib.Path:
    """The source as it is published; of a copy, since scikit-build-core looks at each file in `build`."""
    place = tmp_path_factory.mktemp("sdist")
    project = pathlib.Path(__file__).resolve().parent.parent
    copy = shutil.copytree(project, place / "copy", ignore=shutil.ignore_patterns("build", ".git"))
    (copy / "build").mkdir()
    (copy / "build/stray").touch()
    program = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, place], cwd=copy, check=True)
    shutil.rmtree(copy)
    [archive] = place.glob("optplug-*.tar.gz")
    return archive


@pytest.fixture
def call(capsys):
    """A command in this process, which has torch already: status, stdout, stderr."""
    from optplug.tools import cli

    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(list(arguments))
        return status, *capsys.readouterr()

    return run
