"""Draw pictures as examples/pictures.py does, but from programs that are linked as libraries.

A Python that has torch already runs each of them, which saves its import.
"""

from __future__ import annotations

import sys

import hosts

sys.path.append(str(hosts.PROJECT / "examples"))
import pictures

start = pictures.run


def run(command: list[str], *arguments: str) -> None:
    """Run what `build` has built in the current folder, or what others have."""
    is_built = command[0].startswith("./")
    start([*hosts.main_of(command[0])] if is_built else command, *arguments)


if __name__ == "__main__":
    pictures.LIBS += "-shared", "-fPIC"
    pictures.run = run
    pictures.main()
