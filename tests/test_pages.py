"""Every program of the pages on how to do things compiles, runs, and prints what its page says."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import torch

import hosts
from optplug.ctypes_api import Error, Optimizer, listing
from test_readme import C99, build, build_library

DOCS = hosts.PROJECT / "docs"
PAGES = ("recipes.md", "from-adam.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def shown(page: str) -> list[tuple[str, str, str]]:
    """Return a page's programs in C, each with its section's title and what it prints."""
    found, headings = [], re.compile(r"^## (.*)$", re.M)
    text = (DOCS / page).read_text()
    blocks = list(BLOCK.finditer(text))
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] == "c" and "main(" in block[2]:
            assert following is not None, (page, block[2])
            assert following[1] == "text", (page, block[2])
            title = headings.findall(text[: block.start()])[-1]
            found.append((title, block[2], following[2]))
    return found


PROGRAMS = [(page, *program) for page in PAGES for program in shown(page)]


def test_the_pages_have_programs():
    assert len(PROGRAMS) > 10


@pytest.mark.parametrize(
    ("page", "title", "source", "output"), PROGRAMS, ids=[f"{page}-{title}" for page, title, *_ in PROGRAMS]
)
def test_a_program_prints_what_its_page_says(page, title, source, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    header = BLOCK.search((DOCS / page).read_text())[2]
    (tmp_path / "check.h").write_text(header)
    if "Ofast" in title:  # which acts where a program is linked
        build(source, tmp_path, compiler=(*C99, "-Ofast"))
        assert hosts.run("./main").stdout == output
    else:
        build_library(source, tmp_path)
        assert hosts.run_main("./main").stdout == output


def test_recipes_are_half_a_page():
    for title, source, _ in shown("recipes.md"):
        assert len(source.splitlines()) <= 62, title


def test_moments_from_a_file_of_ones_own_go_on(tmp_path, monkeypatch):
    """The Python of the page on hand-written Adam writes what opt_load takes."""
    from optplug.ctypes_api import Optimizer

    monkeypatch.chdir(tmp_path)
    python = next(
        code for name, code in BLOCK.findall((DOCS / "from-adam.md").read_text()) if name == "python"
    )
    hosts.run(*hosts.PYTHON, "-c", python)
    import numpy as np

    w, dw = np.zeros(3), np.ones(3)
    with Optimizer("Adam(lr=1e-3)") as opt:
        opt.bind("w", w, dw)
        opt.load("adam.pt")
        opt.step()
        assert opt.get(0, "step") == 1001
    # By hand: the moments are 0.1 and 0.001, and no correction is left but that of v.
    assert w == pytest.approx(-1e-3 * 0.1 / np.sqrt(0.001 / (1 - 0.999**1001)), rel=1e-6)


def test_the_guides_table_of_memory_is_what_torch_allocates():
    """Count the values of the state after two steps on a matrix, in whole copies of it."""
    table = (DOCS / "which.md").read_text().partition("## Memory")[2]
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", table, re.M)
    said = {spec: int(copies) for copies, specs in rows for spec in re.findall(r"`(\w+[^`]*)`", specs)}
    assert len(said) > 14
    for spec, copies in said.items():
        w = torch.nn.Parameter(torch.ones(64, 32))
        name, _, arguments = spec.rstrip(")").partition("(")
        given = {
            key: float(value) if value != "True" else True
            for key, value in re.findall(r"(\w+)=(\w[\w.]*)", arguments)
        }
        optimizer = getattr(torch.optim, name)([w], lr=0.1, **given)
        for _ in range(2):
            w.grad = torch.ones(64, 32).to_sparse(1) if name == "SparseAdam" else torch.ones(64, 32)
            optimizer.step()
        values = sum(x.numel() for x in optimizer.state[w].values() if torch.is_tensor(x))
        assert values // w.numel() == copies, spec


@pytest.mark.parametrize("kind", ["optimizer", "schedule"])
def test_the_guide_has_each_class_with_the_papers_and_arguments_of_its_docstring(kind):
    section = (DOCS / "which.md").read_text().partition(f"## Each {kind}\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M))
    assert set(rows) == set(listing("optimizers" if kind == "optimizer" else "schedulers"))
    modules = torch.optim, torch.optim.lr_scheduler, torch.optim.swa_utils
    for name, text in rows.items():
        class_ = next(getattr(module, name) for module in modules if hasattr(module, name))
        said = " ".join(class_.__doc__.replace("\\", "").split()).lower()
        for title in re.findall(r"\[([^]]+)\]\(http", text):  # whose link is not the same in each PyTorch
            assert title.lower() in said, (name, title)
        arguments = set(re.findall(r"`([a-z_]\w+)(?:=[^`]+)?`", text)) - hosts.FUNCTIONS
        assert arguments <= set(inspect.signature(class_).parameters), name


def test_the_page_names_the_classes_that_a_rate_of_0_does_not_hold_still():
    page = (DOCS / "from-adam.md").read_text()
    (row,) = [line for line in page.splitlines() if "requires_grad_(False)" in line]
    named = set(re.findall(r"`(\w+)`", row.partition("except in")[2]))
    others = set()
    for name in set(listing("optimizers")) - {"LBFGS"}:  # which has no groups
        opt, w, rows = Optimizer(f"{name}()"), np.ones((2, 2)), np.array([0])
        if name == "SparseAdam":
            opt.bind_sparse("w", w, np.array([1]), rows, np.ones((1, 2)))
        else:
            opt.bind("w", w, np.ones((2, 2)))
        opt.step()
        before = w.copy()
        try:
            opt.set_value(0, "lr", 0.0)
        except Error:
            others.add(name)
        opt.step()
        if not np.array_equal(w, before):
            others.add(name)
    assert others == named
