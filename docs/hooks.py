"""What mkdocs does besides: include parts of other files, mend links out of docs/, add the references.

A line of a page that is nothing but a link with the title "included",
``[the program](../README.md#c "included")``, becomes that section of that file, without its heading;
one with the title "program", ``[the program](../examples/map.c "program")``, becomes that file.
"""

from __future__ import annotations

import logging
import os
import pathlib
import re
import shutil
import sys
from typing import Any

import references

import optplug

ROOT = pathlib.Path(__file__).resolve().parent.parent
#: Files outside of docs/ that a page of the site shows.
SHOWN = {
    "README.md": "docs/index.md",
    "include/optplug.h": "docs/reference.md",
    "include/optplug.hpp": "docs/reference-cxx.md",
    "bindings/fortran/optplug.f90": "docs/reference-fortran.md",
    "bindings/matlab/+optplug/Optimizer.m": "docs/reference-matlab.md",
    "python/optplug/ctypes_api.py": "docs/reference-python.md",
    "python/optplug/tools/cli.py": "docs/reference-cli.md",
    "bindings/matlab/README.md": "docs/first-steps/matlab-octave.md",
    "bindings/octave/README.md": "docs/first-steps/matlab-octave.md",
}
#: Stands for {source} as long as pyproject.toml has no address.
NO_ADDRESS = "; the source is the folder that you install from, and has no public address yet"
log = logging.getLogger("mkdocs.hooks")  # whose warnings are errors in a strict build


def repository() -> str:
    """Return the repository's address, which is "" until somebody has published it."""
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    address = re.search(r'^Repository = "(.+?)/?"$', settings, re.M)
    return address[1] if address else ""


# ---- links, and parts of other files ----


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def outside_code(text: str) -> list[tuple[bool, str]]:
    """Cut a page into what is code, from fence to fence, and what is not."""
    pieces = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    return [(piece.startswith("```"), piece) for piece in pieces]


def section(text: str, anchor: str) -> str | None:
    """Return what stands below a heading, up to the next one of whatever level."""
    found = None
    for is_code, piece in outside_code(text):
        for line in [piece] if is_code else piece.splitlines(keepends=True):
            if re.match(r"#+ ", line):
                if found is not None:
                    return found
                found = "" if slug(line.lstrip("#")) == anchor else None
            elif found is not None:
                found += line
    return found


def title(page: str) -> str:
    """Return a page's heading, which its site shows where a text in the source has its path."""
    name = page.removeprefix("docs/")
    text = references.PAGES[name]() if name in references.PAGES else (ROOT / page).read_text(encoding="utf-8")
    return text.partition("\n")[0].lstrip("# ")


def relink(text: str, source: str, page: str) -> str:
    """Let the links of a text in the file ``source`` work on a page of the site."""

    def link(match: re.Match[str]) -> str:
        label, target, anchor = match["label"], match["path"], match["anchor"] or ""
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))  # noqa: PTH118, PTH120
        if ":" in target or not target:
            return match[0]
        if not (ROOT / path).exists() and path.removeprefix("docs/") not in references.PAGES:
            log.warning(f"{source}: there is no file '{target}'")
        path = SHOWN.get(path, path)
        if path.startswith("docs/"):
            label = title(path) if label == target else label
            return f"[{label}]({os.path.relpath(path, os.path.dirname(page))}{anchor})"  # noqa: PTH120
        if address:
            return f"[{label}]({address}/blob/HEAD/{path}{anchor})"
        return f"`{path}`" if path.endswith(label.strip("`")) else f"{label} (`{path}`)"

    address = repository()
    pattern = r"(?<!!)\[(?P<label>[^\[\]]*)\]\((?P<path>[^()#\s]*)(?P<anchor>#[^()\s]*)?\)"
    pieces = outside_code(text)
    return "".join(piece if is_code else re.sub(pattern, link, piece) for is_code, piece in pieces)


def include(text: str, page: str) -> str:
    """Put sections of other files where a page asks for them."""

    def read(match: re.Match[str]) -> str:
        path = os.path.normpath(os.path.join(os.path.dirname(page), match["path"]))  # noqa: PTH118, PTH120
        body = section((ROOT / path).read_text(encoding="utf-8"), match["anchor"])
        if body is None:
            log.warning(f"{page}: there is no section #{match['anchor']} in {path}")
        return relink((body or "").strip(), path, page)

    def show(match: re.Match[str]) -> str:
        path = ROOT / os.path.dirname(page) / match["path"]  # noqa: PTH120
        if not path.exists():
            log.warning(f"{page}: there is no file '{match['path']}'")
            return ""
        language = {"f90": "fortran", "m": "matlab", "nml": "text"}.get(path.suffix[1:], path.suffix[1:])
        return (
            f"`{path.resolve().relative_to(ROOT)}`:\n\n```{language}\n{path.read_text(encoding='utf-8')}```"
        )

    text = re.sub(r'^\[.*\]\((?P<path>[^#\s]+) "program"\)$', show, text, flags=re.M)
    return re.sub(r'^\[.*\]\((?P<path>[^#]+)#(?P<anchor>\S+) "included"\)$', read, text, flags=re.M)


def link_functions(text: str, page: str) -> str:
    """Let each function of C's that a text names lead to the reference."""
    reference = os.path.relpath("docs/reference.md", os.path.dirname(page))  # noqa: PTH120

    def link(match: re.Match[str]) -> str:
        is_known = match["name"] in references.c_functions()
        return f"[{match[0]}]({reference}#{match['name']})" if is_known else match[0]

    lines = [
        line
        if is_code or line.startswith("#")
        else re.sub(r"(?<!\[)`(?P<name>opt_\w+)[^`]*`(?!\])", link, line)
        for is_code, piece in outside_code(text)
        for line in ([piece] if is_code else piece.splitlines(keepends=True))
    ]
    return "".join(lines)


def finish(markdown: str, page: str) -> str:
    """Read what a page includes, mend its links, and write what stands as {version} and {source}."""
    path, address = f"docs/{page}", repository()
    markdown = markdown.replace("{version}", optplug.__version__)
    markdown = markdown.replace("{source}", f", [source]({address})" if address else NO_ADDRESS)
    return link_functions(include(relink(markdown, path, path), path), path)


# ---- what mkdocs calls ----


def on_config(config: Any) -> Any:
    """Show the repository on each page."""
    config.repo_url, config.repo_name = repository() or None, "Source"
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the references to the pages."""
    from mkdocs.structure.files import File

    for name, write in references.PAGES.items():
        files.append(File.generated(config, name, content=write()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Finish a page."""
    return finish(markdown, page.file.src_uri)


# ---- for any other program that makes a site of Markdown: python docs/hooks.py FOLDER ----


def write(folder: pathlib.Path) -> None:
    """Write all pages, finished, and what they show into a folder."""
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    pages = {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.md")}
    for name, text in {**pages, **{name: write() for name, write in references.PAGES.items()}}.items():
        (folder / name).write_text(finish(text, name), encoding="utf-8")


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]))
