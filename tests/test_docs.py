"""The documentation's site has no dead link, has every function, and shows programs that run."""

from __future__ import annotations

import html
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

import hosts
from optplug import ctypes_api
from optplug.tools import cli
from test_readme import build, build_library, config

DOCS = hosts.PROJECT / "docs"
MAKE = shutil.which("make")
CLOSURE = "1.0000 1.0000\n"
ADDRESS = "https://example.org/optplug"


def mkdocs(source: pathlib.Path, site: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("site")
    done = mkdocs(hosts.PROJECT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def programs(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.S)


# ---- the site ----


def test_every_page_is_in_the_site(site):
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS).with_suffix(".html")).exists()


def test_every_function_and_status_is_in_the_reference(site):
    reference = (site / "reference.html").read_text()
    assert len(hosts.FUNCTIONS) >= 28
    assert hosts.FUNCTIONS | {"opt_callback"} <= set(re.findall(r'id="(opt_\w+)"', reference))
    statuses = re.findall(r"<td><code>(OPT_\w+)</code></td>\s*<td>(-?\d+)</td>", reference)
    assert {name: int(value) for name, value in statuses} == hosts.STATUSES


def test_every_word_of_the_header_is_in_the_reference(site):
    header = (hosts.PROJECT / "include/optplug.h").read_text()
    comments = " ".join(re.findall(r"^/\*.*?\*/", header, re.M | re.S)).partition("\n")[2]
    reference = html.unescape(re.sub(r"<[^>]*>", "", (site / "reference.html").read_text()))
    words = [set(re.findall(r"\w+", text.lower())) for text in (comments, reference)]
    assert len(words[0]) > 400
    assert words[0] - words[1] == set()


def of_cxx() -> set[str]:
    return set(re.findall(r"\bopt\.(\w+)\(", (hosts.PROJECT / "tests/test_cxx.cpp").read_text()))


def of_fortran() -> set[str]:
    files = (hosts.PROJECT / "tests").glob("test_fortran*.f90")
    return {name for file in files for name in re.findall(r"\bopt%(\w+)\(", file.read_text())}


def of_matlab() -> set[str]:
    text = (hosts.PROJECT / "bindings/matlab/+optplug/Optimizer.m").read_text()
    return set(re.findall(r"^ *% {7}(\w+) +- ", text, re.M))


def of_python() -> set[str]:
    return {name for name in dir(ctypes_api.Optimizer) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("page", "names"),
    [("cxx", of_cxx), ("fortran", of_fortran), ("matlab", of_matlab), ("python", of_python)],
)
def test_every_function_of_a_language_is_in_its_reference(site, page, names):
    text = (site / f"reference-{page}.html").read_text()
    assert len(names()) > 20
    assert names() <= set(re.findall(r'<h3 id="\w+">(\w+)', text))


def test_a_program_in_a_docstring_keeps_its_lines(site):
    page = re.sub("<[^>]*>", "", (site / "reference-python.html").read_text())
    program = textwrap.dedent(ctypes_api.__doc__.partition("::\n\n")[2].partition("\n\n")[0])
    assert program.count("\n") > 3
    assert program in html.unescape(page)


def test_a_function_that_a_page_names_leads_to_the_reference(site):
    for page, up in (("recipes", ""), ("examples/map", "../")):
        text = (site / f"{page}.html").read_text()
        assert len(re.findall(rf'<a href="{up}reference.html#opt_\w+"><code>', text)) > 0
    assert "<a" not in re.search(r"<h2[^>]*>(.*?)<a class=", (site / "reference.html").read_text(), re.S)[1]


def test_every_option_of_the_command_line_is_in_its_reference(site, capsys):
    def said_by(*command: str) -> str:
        with pytest.raises(SystemExit, match="0"):
            cli.main([*command, "--help"])
        return capsys.readouterr().out

    commands = re.findall(r"^ {4}(\w+)", said_by().partition("commands:")[2], re.M)
    text = (site / "reference-cli.html").read_text()
    assert len(commands) > 7
    for name in commands:
        said = said_by(name)
        section = text.partition(f'<h2 id="{name}">')[2].partition("<h2")[0]
        for option in set(re.findall(r"--\w+", said.partition("options:")[2].partition("Example")[0])) - {
            "--help"
        }:
            assert option in section, (name, option)


#: Mistakes, each in a page, with what is said of it.
MISTAKES = {
    ("docs/gpu.md", "[here](nothing.md)"): "'nothing.md'",
    ("docs/gpu.md", "[here](checkpoints.md#nowhere)"): "#nowhere",
    ("docs/gpu.md", "[here](../csrc/nothing.c)"): "there is no file '../csrc/nothing.c'",
    ("docs/gpu.md", "[here](../include/optplug.h#opt_nothing)"): "#opt_nothing",
    ("docs/gpu.md", '[here](../README.md#nothing "included")'): "there is no section #nothing",
    ("docs/gpu.md", "![here](nothing.png)"): "'nothing.png'",
    ("docs/gpu.md", '[here](../examples/nothing.c "program")'): "there is no file '../examples/nothing.c'",
    ("docs/new.md", "# A page that nobody finds"): "new.md",
    ("bindings/matlab/README.md", "[here](nothing.m)"): "there is no file 'nothing.m'",
}


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], pathlib.Path]:
    """The site of a copy that has an address, and mistakes: what was said, and the folder."""
    folder = tmp_path_factory.mktemp("changed")
    ignored = shutil.ignore_patterns("build", ".git", "__pycache__")
    source = shutil.copytree(hosts.PROJECT, folder / "optplug", ignore=ignored)
    for page, line in MISTAKES:
        with (source / page).open("a") as file:
            file.write(f"\n{line}\n")
    plain = "plugins: []\n", "  - pymdownx.highlight: {use_pygments: false}\n"  # which have no part in links
    text = (source / "mkdocs.yml").read_text()
    assert (text.count("plugins: [search]\n"), text.count("  - pymdownx.highlight\n")) == (1, 1)
    text = text.replace("plugins: [search]\n", plain[0]).replace("  - pymdownx.highlight\n", plain[1])
    (source / "mkdocs.yml").write_text(text)
    settings = source / "pyproject.toml"
    place = r"# (\[project.urls\]\n)# (Repository = ).*"
    settings.write_text(re.sub(place, rf'\1\2"{ADDRESS}/"', settings.read_text()))
    return mkdocs(source, folder / "site"), folder / "site"


def test_dead_links_are_errors(changed):
    done, _ = changed
    assert done.returncode != 0
    errors = "\n".join(re.findall(r"^(?:WARNING|ERROR).*(?:\n  .*)*", done.stderr, re.M))
    assert [mistake for mistake in MISTAKES.values() if mistake not in errors] == []


def test_where_there_is_an_address_the_site_leads_to_it(changed):
    page = (changed[1] / "index.html").read_text()
    assert f'<a href="{ADDRESS}">source</a>' in page
    assert f'href="{ADDRESS}/blob/HEAD/examples/heat_inverse.f90"' in page
    assert f'<a href="{ADDRESS}" title="Go to repository"' in page


def test_no_address_is_named_but_the_projects(site):
    address = re.search(r'^Repository = "(.*)"$', (hosts.PROJECT / "pyproject.toml").read_text(), re.M)
    cited = re.search(r"^repository-code: (.*)$", (hosts.PROJECT / "CITATION.cff").read_text(), re.M)
    assert (cited and cited[1]) == (address and address[1])
    page = (site / "index.html").read_text()
    assert ("Go to repository" in page) == bool(address)
    assert ("no public address yet" in page) != bool(address)


def test_the_version_is_the_headers(site):
    version = re.search(r'OPTPLUG_VERSION "(.*)"', (hosts.PROJECT / "include/optplug.h").read_text())[1]
    assert f"\nversion: {version}\n" in (hosts.PROJECT / "CITATION.cff").read_text()
    assert (site / "index.html").read_text().count(f"ersion {version}") == 2


def test_the_finished_pages_need_neither_hooks_nor_theme(tmp_path):
    """Another program can make the site: here it is mkdocs as it comes."""
    write = [sys.executable, DOCS / "hooks.py", tmp_path / "docs"]
    subprocess.run(write, check=True, capture_output=True)
    pages = {path.relative_to(tmp_path / "docs") for path in (tmp_path / "docs").rglob("*.md")}
    assert {path.relative_to(DOCS) for path in DOCS.rglob("*.md")} < pages
    assert '"included"' not in (tmp_path / "docs/index.md").read_text()
    (tmp_path / "mkdocs.yml").write_text("site_name: optplug\nuse_directory_urls: false\nplugins: []\n")
    done = mkdocs(tmp_path, tmp_path / "site")
    assert done.returncode == 0, done.stderr


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not re.findall(r'(?:src|<link[^>]*href)="(?:https?:)?//[^"]*"', page.read_text())


def test_every_link_of_other_markdown_files_leads_to_a_file():
    folders = [hosts.PROJECT / name for name in ("bindings", "docs", "examples", "packaging")]
    for path in [*hosts.PROJECT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*.md"))]:
        for target in re.findall(r"\]\(([^()#:\s]+)(?:#\S*)?(?: \"included\")?\)", path.read_text()):
            assert (path.parent / target).exists(), (path, target)


# ---- the programs ----


def test_the_programs_in_c_print_what_the_page_says(tmp_path):
    page = (DOCS / "first-steps/c.md").read_text()
    fit, closure = programs("first-steps/c.md", "c")
    for source, output in ((fit, re.search(r"```text\n(.*?)```", page, re.S)[1]), (closure, CLOSURE)):
        build_library(source, tmp_path)
        assert hosts.run_main(tmp_path / "main").stdout == output


@pytest.mark.skipif(not MAKE, reason="no make: apt-get install make")
def test_the_makefile_builds_the_program(tmp_path):
    (tmp_path / "main.c").write_text(programs("first-steps/c.md", "c")[1])
    (tmp_path / "Makefile").write_text(programs("first-steps/c.md", "make")[0])
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run([MAKE, "-s"], check=True, cwd=tmp_path, env=os.environ | {"PATH": path})
    assert (tmp_path / "main").exists()


#: What the pieces of programs on pages take as given.
AROUND = """
#include <stdio.h>
enum { n = 3 };
static double w[n], g[n];
#define dw g
static void gradient(const double *at, double *slope)
{
    for (int i = 0; i < n; i++)
        slope[i] = at[i] - i - 1;
}
static int left = 300;
#define running (left-- > 0)
"""


def test_the_pieces_in_c_run_without_an_error(tmp_path):
    """What pages show of programs that are not whole; a call of theirs that fails leaves its message."""
    loop = 'int opt = opt_create("Adam(lr=0.1)");\nopt_bind(opt, "w", "float64", n, w, dw);\n'
    loop += programs("../README.md", "c")[1]
    pieces = {
        # 1000 steps against a gradient that keeps its sign, each of a rate that is 1.5e-4 in the mean.
        "first_page": (programs("index.md", "c")[0], "0.15 0.15 0.15"),
        "readme": (loop, "1.00 2.00 3.00"),
        "from_adam": (programs("from-adam.md", "c")[1], "0.00 0.00 0.00"),
    }
    source = f"{programs('abi.md', 'c')[0]}{AROUND}"
    for name, (piece, _) in pieces.items():
        source += f"static void {name}(void)\n{{\n{piece}}}\n"
    source += "int main(void)\n{\n"
    for name in pieces:
        source += f"    {name}();\n"
        source += '    printf("%.2f %.2f %.2f %s\\n", w[0], w[1], w[2], opt_error());\n'
        source += "    w[0] = w[1] = w[2] = g[0] = g[1] = g[2] = 0;\n"
    build_library(f"{source}    return 0;\n}}\n", tmp_path)
    printed = hosts.run_main(tmp_path / "main").stdout.splitlines()
    assert printed == [f"{values} " for _, values in pieces.values()]


@hosts.needs_cxx
def test_the_closure_in_cxx_runs(tmp_path):
    build_library(programs("first-steps/cxx.md", "cpp")[0], tmp_path, "main.cpp", (hosts.CXX, "-std=c++17"))
    assert hosts.run_main(tmp_path / "main").stdout == CLOSURE


@hosts.needs_fortran
def test_the_closure_in_fortran_runs(tmp_path):
    compiler = (hosts.FC, "-Wno-unused-dummy-argument", f"{config('--fortran')[0]}/optplug.f90")
    program, lines = programs("first-steps/fortran.md", "fortran")
    without_target = (
        "  block\n    type(optimizer) :: opt\n    real(real64) :: w(2) = [2, 3], dw(2) = 2\n"
        f'    call opt%create("SGD(lr=0.5)")\n{lines}    print "(f6.4, 1x, f6.4)", w\n'
        "  end block\n\ncontains\n"
    )
    program = program.replace("\ncontains\n", f"\n{without_target}", 1)
    build_library(program, tmp_path, "main.f90", compiler)
    assert hosts.run_main(tmp_path / "main").stdout == f"{CLOSURE}1.0000 2.0000\n"


def test_the_closure_in_python_runs():
    assert hosts.run(*hosts.PYTHON, "-c", programs("first-steps/python.md", "python")[0]).stdout == CLOSURE


def test_libtorch_has_as_many_classes_as_the_page_says():
    folder = pathlib.Path(torch.__file__).parent / "include/torch/csrc/api/include/torch/optim"
    headers = "".join(path.read_text() for path in folder.rglob("*.h"))
    assert len(re.findall(r"^class TORCH_API \w+ : public Optimizer ", headers, re.M)) == 6
    schedulers = r"^class TORCH_API (?:\w+ : public LRScheduler|ReduceLROnPlateauScheduler) "
    assert len(re.findall(schedulers, headers, re.M)) == 2
    assert "six optimizers and two schedulers" in (DOCS / "faq.md").read_text()


def test_the_second_order_program_prints_what_the_page_says():
    page = (DOCS / "modern.md").read_text()
    printed = hosts.run(*hosts.PYTHON, "-c", programs("modern.md", "python")[0]).stdout
    assert printed == re.search(r"```text\n(.*?)```", page, re.S)[1]


@hosts.needs_mpi
def test_the_program_under_mpi_runs(tmp_path):
    build(programs("clusters.md", "c")[0], tmp_path, "main.c", ("mpicc", "-std=c99"))
    output = "0.500\n"
    assert f"`{output.strip()}`" in (DOCS / "clusters.md").read_text()
    command = ["mpiexec", "-n", "2", tmp_path / "main"]
    done = subprocess.run(
        command, env=os.environ | hosts.MPI_ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout == output


# ---- the messages ----


def messages() -> list[str]:
    """Return the messages that the page on troubleshooting lists, as they stand there."""
    page = (DOCS / "troubleshooting.md").read_text()
    cells = re.findall(r"^\| (`.*?) \| ", page.partition("## Starting")[2], re.M)
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


#: What optplug passes on.
OTHERS = {
    "No module named 'torch': ...",
    "Attempting CUDA graph capture ...",
    "Invalid learning rate: ...; ... must be ...",
}


def test_every_message_is_one_that_is_told():
    text = ""
    for path in [*(hosts.PROJECT / "csrc").glob("*.c"), *(hosts.PROJECT / "python/optplug").glob("*.py")]:
        code = re.sub(r"SONAME", '"libpython3.X.so.1.0"', path.read_text())
        code = re.sub(r"PYTHON_VERSION", '"3.X"', code)
        text += re.sub(r"[\"']\s*f?[\"']", "", code)
        text += "".join(f"no {kind}\n" for kind in re.findall(r'check_name\(.*, f?"([^"{]+)', code))
    assert len(messages()) > 30
    for message in set(messages()) - OTHERS:
        for piece in re.split(r"\.\.\.|3\.Y|(?<!\.)\bX\b", message):
            assert piece.strip(" :,;") in text, (message, piece)
