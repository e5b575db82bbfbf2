"""The page on other languages shows programs that print the README's numbers in them."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import hosts
from test_readme import OUTPUT, config

PAGE = (hosts.PROJECT / "docs/languages.md").read_text()
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S))
JNA = pathlib.Path("/usr/share/java/jna.jar")
#: Where npm has put koffi: NODE_PATH, or the folder that the tests are run in.
KOFFI = next(
    (
        f
        for f in (*os.environ.get("NODE_PATH", "").split(":"), "node_modules")
        if pathlib.Path(f, "koffi").is_dir()
    ),
    None,
)


def run(folder: pathlib.Path, script: str, **env: str) -> str:
    """Run the page's commands, in which $LIBRARY is the library."""
    done = subprocess.run(
        ["/bin/sh", "-ec", script],
        cwd=folder,
        env={**os.environ, "LIBRARY": config("--library")[0], **env},
        capture_output=True,
        text=True,
        timeout=hosts.PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(title: str) -> str:
    """Return the indented lines of a language's section, with the test's Python as python."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)[1]
    outside = re.sub(r"^```.*?^```$", "", section, flags=re.M | re.S)
    return "\n".join(re.findall(r"^ {4}(.*)$", outside, re.M)).replace("python -m", f"{sys.executable} -m")


def needs(what: str, packages: str, *programs: str, also: object = True) -> pytest.MarkDecorator:
    return hosts.needs(what, packages, also and all(map(shutil.which, programs)))


LANGUAGES = [
    pytest.param("LuaJIT", {"lua": "main.lua"}, marks=needs("LuaJIT", "luajit", "luajit")),
    pytest.param("R", {"c": "glue.c", "r": "main.R"}, marks=needs("R", "r-base-core", "Rscript")),
    pytest.param("Rust", {"rust": "main.rs"}, marks=needs("Rust", "rustc", "rustc")),
    pytest.param("Go", {"go": "main.go"}, marks=needs("Go", "golang-go", "go")),
    pytest.param(
        "Java",
        {"java": "Main.java"},
        marks=needs("Java 11, or no JNA", "default-jdk libjna-java", "java", also=JNA.exists()),
    ),
    pytest.param(
        "JavaScript",
        {"javascript": "main.js"},
        marks=needs("Node, or no koffi (npm install koffi)", "nodejs", "node", also=KOFFI),
    ),
    pytest.param("Ruby", {"ruby": "main.rb"}, marks=needs("Ruby", "ruby", "ruby")),
]


@pytest.mark.parametrize(("title", "files"), LANGUAGES)
def test_the_readmes_numbers_are_printed_in_another_language(title, files, tmp_path):
    for block, name in files.items():
        (tmp_path / name).write_text(BLOCKS[block])
    script = commands(title).replace("jna.jar", str(JNA))
    if title == "Rust":
        script += "\n./main"
    elsewhere = {"GOCACHE": str(tmp_path / "go"), "HOME": os.environ.get("HOME", str(tmp_path))}
    elsewhere["NODE_PATH"] = str(pathlib.Path(KOFFI or ".").resolve())
    assert run(tmp_path, script, **elsewhere) == OUTPUT


def test_every_program_on_the_page_is_run():
    tested = {block for language in LANGUAGES for block in language.values[1]}
    assert tested == set(BLOCKS)
