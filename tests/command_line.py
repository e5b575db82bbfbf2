"""Commands of the command line, run as a user would run them."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import optplug

SITE = pathlib.Path(optplug.__file__).parent.parent

COMMANDS = ("config", "doctor", "list", "describe", "inspect", "bench", "plot")

# How a step, or a command, begins that a doctor tells you to do.
STEP = re.compile(
    r"((/\S+|'/[^']+') -m pip install|apt-get|call|chmod|chown|export|install|link|look|name|see|set|start"
    r"|remove|ulimit|unset) "
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
