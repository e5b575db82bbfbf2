"""Where nothing may be skipped, a test that is skipped fails."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

import hosts

CONFTEST = pathlib.Path(__file__).parent / "conftest.py"
ONE = 'import pytest\n\n\n@pytest.mark.skip(reason="no GPU here")\ndef test_one():\n    pass\n'


@pytest.mark.parametrize(
    ("may_skip", "counted"), [(None, "1 skipped"), ("no GPU", "1 skipped"), ("nothing", "1 error")]
)
def test_a_skipped_test_fails_where_it_may_not_be(may_skip, counted, tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_one.py").write_text(ONE)
    environment = {name: value for name, value in os.environ.items() if name != "OPTPLUG_TEST_MAY_SKIP"}
    if may_skip:
        environment["OPTPLUG_TEST_MAY_SKIP"] = may_skip
    done = subprocess.run(
        [*hosts.PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert counted in done.stdout, done.stdout
