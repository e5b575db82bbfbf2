"""Layout is the tools' to decide, and they agree with what is here."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

import hosts


@pytest.mark.skipif(not (hosts.PROJECT / ".git").exists(), reason="pre-commit needs a git checkout")
def test_pre_commit_finds_nothing(tmp_path):
    tools = pathlib.Path(sys.executable).parent
    settings = (hosts.PROJECT / ".pre-commit-config.yaml").read_text()
    assert "build/venv/bin/" in settings
    own = tmp_path / "settings.yaml"  # for an environment that is elsewhere
    own.write_text(settings.replace("build/venv/bin/", f"{tools}/"))
    done = subprocess.run(
        [tools / "pre-commit", "run", "--config", own, "--all-files", "--show-diff-on-failure"],
        cwd=hosts.PROJECT,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
