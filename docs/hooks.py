"""What mkdocs does besides: write the C reference, include parts of other files, mend links out of docs/.

A line of a page that is nothing but a link with the title "included",
``[the program](../README.md#c "included")``, becomes that section of that file, without its heading.
"""

from __future__ import annotations

import itertools
import logging
import os
import pathlib
import re
import textwrap
from typing import Any

from mkdocs.structure.files import File

from optplug import header

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEADER = "include/optplug.h"
#: Files outside of docs/ that a page of the site shows.
SHOWN = {
    "README.md": "docs/index.md",
    HEADER: "docs/reference.md",
    "bindings/matlab/README.md": "docs/first-steps/matlab-octave.md",
    "bindings/octave/README.md": "docs/first-steps/matlab-octave.md",
}
log = logging.getLogger("mkdocs.hooks")  # whose warnings are errors in a strict build


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
    path = ROOT / page
    return (
        path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") if path.exists() else "C reference"
    )


def relink(text: str, source: str, page: str, repository: str) -> str:
    """Let the links of a text in the file ``source`` work on a page of the site."""

    def link(match: re.Match[str]) -> str:
        label, target, anchor = match["label"], match["path"], match["anchor"] or ""
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))  # noqa: PTH118, PTH120
        if ":" in target or not target:
            return match[0]
        if not (ROOT / path).exists():
            log.warning(f"{source}: there is no file '{target}'")
        path = SHOWN.get(path, path)
        if path.startswith("docs/"):
            label = title(path) if label == target else label
            return f"[{label}]({os.path.relpath(path, os.path.dirname(page))}{anchor})"  # noqa: PTH120
        if repository:
            return f"[{label}]({repository}/blob/HEAD/{path}{anchor})"
        return f"`{path}`" if path.endswith(label.strip("`")) else f"{label} (`{path}`)"

    pattern = r"(?<!!)\[(?P<label>[^\[\]]*)\]\((?P<path>[^()#\s]*)(?P<anchor>#[^()\s]*)?\)"
    pieces = outside_code(text)
    return "".join(piece if is_code else re.sub(pattern, link, piece) for is_code, piece in pieces)


def include(text: str, page: str, repository: str) -> str:
    """Put sections of other files where a page asks for them."""

    def read(match: re.Match[str]) -> str:
        path = os.path.normpath(os.path.join(os.path.dirname(page), match["path"]))  # noqa: PTH118, PTH120
        body = section((ROOT / path).read_text(encoding="utf-8"), match["anchor"])
        if body is None:
            log.warning(f"{page}: there is no section #{match['anchor']} in {path}")
        return relink((body or "").strip(), path, page, repository)

    return re.sub(r'^\[.*\]\((?P<path>[^#]+)#(?P<anchor>\S+) "included"\)$', read, text, flags=re.M)


# ---- the C reference ----

CODE = (
    r'(torch(?:\.\w+)+(?:\([^)]*\)(?:\[[^\]]*\])?)?|"[^"]*"'  # what is Python's, and strings
    r"|\w+\[[^\]]*\]|\{[^}]*\}|\*\w+|(?<!\w)\.(?:data|grad)\b"  # indices[i], {1, m}, *count, .grad
    r"|\w*_\w+(?:\.\.\.)?(?:\((?:\"[^\"]*\")?\))?|\w+\(\)|\w+=(?:\w+)?|NULL|INFINITY)"  # names, fork()
)


def prose(text: str) -> str:
    """Write a comment's words in Markdown: names and strings as code, and our own ones as links."""

    def code(name: str) -> str:
        anchor = name.partition("(")[0] if name.startswith("opt_") else "what-a-call-returns"
        return f"[`{name}`](#{anchor})" if re.match("opt_|OPT_", name) else f"`{name}`"

    pieces = re.split(CODE, re.sub(r"\s+", " ", text.strip()))
    return "".join(code(p) if i % 2 else re.sub(r"([*_<\[\]])", r"\\\1", p) for i, p in enumerate(pieces))


def table(head: str, rows: list[tuple[str, ...]]) -> str:
    """Write a table."""
    rule = re.sub(r"[^|]+", "---", head)
    return "\n".join([head, rule, *("| " + " | ".join(row) + " |" for row in rows)])


def comment(text: str) -> str:
    """Write a comment: paragraphs, programs (indented by four), and lists of options (by two)."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", re.sub(r"^ \* ?", "", text, flags=re.M)):
        for is_indented, group in itertools.groupby(paragraph.splitlines(), lambda line: line[:2] == "  "):
            lines = "\n".join(group)
            if not is_indented:
                parts.append(re.sub(r"^([A-Z]\w+)\. ", r"**\1.** ", prose(lines)))
            elif lines.startswith("    "):
                parts.append(f"```c\n{textwrap.dedent(lines)}\n```")
            else:
                rows = re.findall(r"^  (\S+)  +(.*(?:\n {4}.*)*)", lines, re.M)
                parts.append(table("| option | what it does |", [(f"`{a}`", prose(b)) for a, b in rows]))
    return "\n\n".join(parts)


def reference(path: pathlib.Path) -> str:
    """Write the C reference: each comment that begins a line, with what is declared below it."""
    parts = []
    for part in header.read(path).parts:
        names = [f.name for f in (*part.callbacks, *part.functions)]
        declared = [*names, *(s.name for s in part.statuses)]
        is_short = all(name.startswith(("opt_", "OPT_")) for name in declared)
        title, _, rest = part.comment.partition("." if part.statuses else "\n")
        if re.fullmatch("-+ .* -+", part.comment):
            parts.append(f"## {part.comment.strip('- ').capitalize()}")
        elif part.statuses and is_short:
            rows = [(f"`{s.name}`", str(s.value), prose(s.comment or "success")) for s in part.statuses]
            parts += [f"## {title}", prose(rest), table("| status | number | what it says |", rows)]
        elif names and is_short:
            anchors = "".join(f'<a id="{name}"></a>' for name in names[1:])
            parts += [
                f"{anchors}\n\n### {', '.join(names)} {{ #{names[0]} }}",
                f"```c\n{part.code}```",
                comment(part.comment),
            ]
        elif part.code:
            parts += [comment(part.comment), f"```c\n{part.code}```"]
        elif part.comment:
            parts += ["# C reference", f"From the comments of `{HEADER}`.", comment(rest)]
    return "\n\n".join(part.strip() for part in parts)


# ---- what mkdocs calls ----


def on_files(files: Any, config: Any) -> Any:
    """Add the C reference to the pages."""
    text = reference(ROOT / HEADER)
    files.append(File.generated(config, "reference.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Read what a page includes, and mend its links."""
    source = f"docs/{page.file.src_uri}"
    repository = (config.repo_url or "").rstrip("/")
    return include(relink(markdown, source, source, repository), source, repository)
