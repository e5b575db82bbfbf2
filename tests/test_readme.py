"""What the README and the header show is what happens."""

from __future__ import annotations

import re
import subprocess
import sys

import hosts

README = (hosts.PROJECT / "README.md").read_text()


def build(source: str, folder) -> None:
    (folder / "main.c").write_text(source)
    flags = subprocess.run(
        [sys.executable, "-m", "optplug", "config", "--cflags", "--libs"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    subprocess.run(
        [
            hosts.CC,
            "-std=c99",
            "-Wall",
            "-Wextra",
            "-Werror",
            folder / "main.c",
            "-o",
            folder / "main",
            *flags,
        ],
        check=True,
    )


def test_the_readmes_program_prints_what_the_readme_says(tmp_path):
    source = re.search(r"```c\n(.*?)```", README, re.S)[1]
    output = re.search(r"```text\n(.*?)```", README, re.S)[1]
    build(source, tmp_path)
    assert hosts.run(tmp_path / "main").stdout == output


def test_the_headers_program_runs(tmp_path):
    header = (hosts.PROJECT / "include" / "optplug.h").read_text()
    lines = re.search(r"^ \*     double w(?:.*\n \*     )+.*opt_free.*$", header, re.M)[0]
    body = lines.replace(" *     ", "    ")
    program = (
        "#include <stdio.h>\n#include <optplug.h>\n"
        "static void gradient(const double *w, double *dw)\n"
        "{\n    for (int i = 0; i < 3; i++)\n        dw[i] = 2 * (w[i] - i);\n}\n"
        f"int main(void)\n{{\n{body}\n"
        '    printf("%.1f %.1f %.1f\\n", w[0], w[1], w[2]);\n    return 0;\n}\n'
    )
    build(program, tmp_path)
    assert hosts.run(tmp_path / "main").stdout == "0.0 1.0 2.0\n"


def test_the_programs_of_the_page_on_checkpoints_go_on_alike(tmp_path, monkeypatch):
    page = (hosts.PROJECT / "docs" / "checkpoints.md").read_text()
    build(re.search(r"```c\n(.*?)```", page, re.S)[1], tmp_path)
    monkeypatch.chdir(tmp_path)
    begun = hosts.run("./main").stdout
    python = hosts.run(sys.executable, "-c", re.search(r"```python\n(.*?)```", page, re.S)[1]).stdout
    restarted = hosts.run("./main", "restart").stdout
    assert python == restarted != begun


def test_commands_in_the_readme_are_presets():
    presets = (hosts.PROJECT / "CMakePresets.json").read_text()
    for name in re.findall(r"cmake --workflow --preset (\w+)", README):
        assert f'"name": "{name}"' in presets
