"""References of every language, written from its own source.

The C header is the manual: in the other languages each entry says what its own comment says, and leads to
the C function of its name.
"""

from __future__ import annotations

import argparse
import ast
import functools
import itertools
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator

from optplug import header
from optplug.tools import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEADER = "include/optplug.h"

# ---- words, tables and entries ----

CODE = (
    r'(torch(?:\.\w+)+(?:\([^)]*\)(?:\[[^\]]*\])?)?|"[^"]*"'  # what is Python's, and strings
    r"|\w+\[[^\]]*\]|\{[^}]*\}|\*\w+|(?<!\w)\.(?:data|grad)\b"  # indices[i], {1, m}, *count, .grad
    r"|\w*_\w+(?::\w+|\.\.\.)?(?:\((?:\"[^\"]*\")?\))?|\w+\(\)|\w+=(?:\w+)?|NULL|INFINITY)"  # names, fork()
)


def prose(text: str) -> str:
    """Write a comment's words in Markdown: names and strings as code, and our own ones as links."""

    def code(name: str) -> str:
        anchor = name.partition("(")[0]
        if anchor.upper().startswith(("OPT_E", "OPT_OK", "OPT_DONE")):
            anchor = "what-a-call-returns"
        elif anchor not in c_functions():
            return f"`{name}`"
        return f"[`{name}`](reference.md#{anchor})"

    pieces = re.split(CODE, re.sub(r"\s+", " ", text.strip()))
    return "".join(code(p) if i % 2 else re.sub(r"([*_<\[\]])", r"\\\1", p) for i, p in enumerate(pieces))


def table(head: str, rows: list[tuple[str, ...]]) -> str:
    """Write a table."""
    rule = re.sub(r"[^|]+", "---", head)
    return "\n".join([head, rule, *("| " + " | ".join(row) + " |" for row in rows)])


def comment(text: str, language: str = "c") -> str:
    """Write a comment: paragraphs, programs (indented by four), and lists of options (by two)."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", re.sub(r"^ \* ?", "", text, flags=re.M)):
        if paragraph.startswith("* "):
            parts.append(
                "\n".join(f"- {prose(item)}" for item in re.split(r"^\* ", paragraph, flags=re.M)[1:])
            )
            continue
        for is_indented, group in itertools.groupby(paragraph.splitlines(), lambda line: line[:2] == "  "):
            lines = "\n".join(group)
            if not is_indented:
                parts.append(re.sub(r"^([A-Z]\w+)\. ", r"**\1.** ", prose(lines)))
            elif lines.startswith("    "):
                parts.append(f"```{language}\n{textwrap.dedent(lines)}\n```")
            else:
                rows = re.findall(r"^  (\S+(?: \S+)*)  +(.*(?:\n {4}.*)*)", lines, re.M)
                parts.append(table("| value | meaning |", [(f"`{a}`", prose(b)) for a, b in rows]))
    return "\n\n".join(parts)


@functools.cache
def c_functions() -> frozenset[str]:
    """Return the names of the C functions, and of the types of the host's."""
    read = header.read(ROOT / HEADER)
    return frozenset({*read.functions, *read.callbacks})


def entry(name: str, language: str, code: str, words: str, c_name: str = "") -> str:
    """Write what a page says of a function: its name, its declaration, its comment, and where C's is."""
    c_name = c_name or f"opt_{name}"
    manual = f"The manual: [`{c_name}`](reference.md#{c_name})." if c_name in c_functions() else ""
    return "\n\n".join(part for part in [f"### {name}", f"```{language}\n{code}\n```", words, manual] if part)


def page(title: str, source: str, *parts: str) -> str:
    """Write a page: its title, where it comes from, and its parts."""
    return "\n\n".join([f"# {title}", f"From the comments of `{source}`.", *parts]) + "\n"


# ---- C ----


def c() -> str:
    """Write the C reference: each comment that begins a line, with what is declared below it."""
    parts = []
    for part in header.read(ROOT / HEADER).parts:
        names = [f.name for f in (*part.callbacks, *part.functions)]
        declared = [*names, *(s.name for s in part.statuses)]
        is_short = all(name.startswith(("opt_", "OPT_")) for name in declared)
        title, _, rest = part.comment.partition("." if part.statuses else "\n")
        if re.fullmatch("-+ .* -+", part.comment):
            title = part.comment.strip("- ")
            parts.append(f"## {title[0].upper()}{title[1:]}")
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


# ---- C++ ----

CXX = "include/optplug.hpp"
#: What the header declares for itself.
INNER = "Sizes Layout check check_text decltype has_strides layout_of"
CXX_PIECE = re.compile(r"/\*.*?\*/|\"(?:\\.|[^\"])*\"|^ *#.*$|[(){};]|[^(){};\"/#]+|.", re.S | re.M)


def cxx_declarations(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield each declaration of a namespace's or class's body: its comment, its words, and its own body."""
    words, remark, body, parens, braces = "", "", "", 0, 0
    for piece in CXX_PIECE.findall(text):
        if braces:
            body += piece
        elif piece.startswith("/*"):
            remark, words = piece, words if words.strip() else ""
        elif not piece.lstrip().startswith("#") and (parens or piece not in ("{", ";")):
            words += piece
        parens += {"(": 1, ")": -1}.get(piece, 0)
        if piece == "{" and (braces or not parens):
            braces += 1
        elif piece == "}" and braces:
            braces -= 1
        if not braces and ((piece == "}" and body) or (piece == ";" and not parens)):
            yield remark.strip("/* \n"), textwrap.dedent(words.strip("\n")).strip(), body[:-1]
            words, remark, body = "", "", ""


def cxx_name(words: str) -> str:
    """Return what a declaration declares."""
    plain = re.sub(r"template <[^>]*> *", "", words)
    plain = re.sub(r"\s:\s.*", "", plain, flags=re.S)
    if found := re.match(r"(?:class|struct) (\w+)", plain):
        return found[1]
    found = re.match(r"using (\w+)", plain) or re.search(r"(operator bool|\w+)\s*\(", plain)
    return found[1] if found else ""


def cxx_entries(text: str, skipped: str = "") -> str:
    """Write the entries of a body, those of one name together."""
    found: dict[str, list[tuple[str, str]]] = {}
    for remark, words, _ in cxx_declarations(text):
        clean = re.sub(r"^(?:public|private):\s*", "", words).strip()
        code = re.sub(r"\)( noexcept)?\s*:\s.*", r")\1", clean, flags=re.S)
        name = cxx_name(code)
        if name and name not in skipped.split() and "operator=" not in code:
            found.setdefault(name, []).append((textwrap.dedent(code), remark))
    parts = []
    for name, all_ in found.items():
        words = "\n\n".join(
            comment(re.sub(r"^ +\*", " *", remark, flags=re.M), "cpp") for _, remark in all_ if remark
        )
        parts.append(entry(name, "cpp", ";\n".join(code for code, _ in all_) + ";", words))
    return "\n\n".join(parts)


def cxx() -> str:
    """Write the C++ reference."""
    text = (ROOT / CXX).read_text(encoding="utf-8")
    intro = re.match(r"/\*.*?\n(.*?)\*/", text, re.S)[1]  # type: ignore[index]
    body = text.partition("namespace optplug\n{")[2].rpartition("} // namespace")[0]
    classes = {cxx_name(words): (remark, inner) for remark, words, inner in cxx_declarations(body)}
    parts = [comment(intro.partition("\n *\n")[2], "cpp")]
    for title in ("Optimizer", "Error"):
        remark, inner = classes[title]
        public = inner.partition("public:")[2].partition("private:")[0]
        parts += [f"## optplug::{title}", comment(remark, "cpp"), cxx_entries(public)]
    return page("C++ reference", CXX, *parts, "## Functions", cxx_entries(body, f"Optimizer Error {INNER}"))


# ---- Fortran ----

FORTRAN = "bindings/fortran/optplug.f90"
KINDS = r"_(?:real32|real64|complex32|complex64)$"
PROCEDURE = re.compile(
    r"(?P<doc>(?:^ *!>.*\n)*)"
    r"^(?P<code> *(?:(?:pure|recursive|elemental|logical|real\(\w+\)|integer(?:\(\w+\))?) )*"
    r"(?:subroutine|function) (?P<name>\w+)\(.*\n(?: .*\n)*?)(?=^$| *end (?:subroutine|function))",
    re.M,
)


def fortran_code(code: str) -> str:
    """Return a procedure's head and the declarations of its arguments and result."""
    lines = textwrap.dedent(code).splitlines()
    head = list(itertools.takewhile(lambda line: line.endswith("&"), lines))
    head.append(lines[len(head)])
    arguments = set(re.findall(r"\w+", " ".join(head).partition("(")[2]))
    kept = []
    for line in lines[len(head) :]:
        names = re.sub(r"\([^)]*\)", "", line.partition("::")[2]).replace(" ", "").split(",")
        if "::" in line and arguments & set(names) and "class(optimizer)" not in line:
            kept.append(line)
    return "\n".join([*head, *kept])


def fortran_words(doc: str) -> str:
    """Write a comment of Fortran's in Markdown."""
    return comment(re.sub(r"^ *!> ?", "", doc.strip("\n"), flags=re.M), "fortran")


def fortran() -> str:
    """Write the Fortran reference."""
    text = (ROOT / FORTRAN).read_text(encoding="utf-8")
    intro = "".join(re.findall(r"^!> ?(.*\n)", text, re.M)).partition("\n\n")[2]
    procedures = {match["name"]: match for match in PROCEDURE.finditer(text)}
    kind = re.search(r"^  type :: optimizer\n(.*?)^  end type", text, re.M | re.S)[1]  # type: ignore[index]
    kind = re.sub(r"&\n *", "", kind)
    names: dict[str, list[str]] = {}
    for line in kind.splitlines():
        if found := re.match(r" *generic :: (\w+) => (.*)", line):
            names[found[1]] = found[2].split(", ")
        elif found := re.match(r" *procedure :: (.*)", line):
            for name, _, own in (word.partition(" => ") for word in found[1].split(", ")):
                names[name] = [own or name]
    parts = [fortran_words(intro), "## type(optimizer)"]
    for name, specifics in names.items():
        parts.append(fortran_entry(name, specifics, procedures))
    public = re.findall(r"\w+", "".join(re.findall(r"^  public :: (.*)$", text, re.M)))
    parts.append("## Procedures")
    parts += [fortran_entry(name, [name], procedures, name) for name in public if name in procedures]
    return page("Fortran reference", FORTRAN, *parts)


def fortran_entry(
    name: str, specifics: Iterable[str], procedures: dict[str, re.Match[str]], c_name: str = ""
) -> str:
    """Write an entry; of procedures that differ by kind, one is shown."""
    codes: dict[str, str] = {}
    docs: dict[str, None] = {}
    for specific in specifics:
        match = procedures[specific]
        if not re.search(KINDS, specific) or specific.endswith("real64"):
            codes[specific] = fortran_code(match["code"])
        if match["doc"]:
            docs[fortran_words(match["doc"])] = None
    return entry(name, "fortran", "\n\n".join(codes.values()), "\n\n".join(docs), c_name)


# ---- MATLAB and Octave ----

MATLAB = "bindings/matlab/+optplug/"
HELP = re.compile(r"^ *(?:function|classdef) (?P<head>.*)\n(?P<help>(?: *%.*\n)+)", re.M)


def matlab_words(text: str) -> str:
    """Write a help text in Markdown: its first line without the name, and examples as code."""
    lines = textwrap.dedent(re.sub(r"^ *% ?", "", text, flags=re.M)).splitlines()
    words = textwrap.dedent("\n".join(line for line in lines[1:] if "See also" not in line))
    parts = [prose(re.sub(r"^[A-Z_]+ ", "", lines[0]))]
    for paragraph in re.split(r"\n\s*\n", words.partition("Optimizer methods:")[0]):
        if paragraph.startswith("Example:\n"):
            parts.append(f"```matlab\n{textwrap.dedent(paragraph.partition(chr(10))[2])}\n```")
        else:
            parts.append(prose(re.sub(r"(?<!\w)'([^']*)'(?!\w)", r'"\1"', paragraph)))
    return "\n\n".join(part for part in parts if part)


def matlab() -> str:
    """Write the reference of MATLAB and Octave."""
    text = (ROOT / MATLAB / "Optimizer.m").read_text(encoding="utf-8")
    start, *methods = HELP.finditer(text)
    parts = ["## optplug.Optimizer", matlab_words(start["help"])]
    named = [*re.findall(r"^ *% {7}(\w+) +- ", text, re.M), "set_value"]
    for match in methods:
        name = re.search(r"(\w+)(?:\(|$)", match["head"])[1]  # type: ignore[index]
        if name in named:
            parts.append(entry(name, "matlab", match["head"], matlab_words(match["help"])))
    parts.append("## Functions")
    for path in sorted((ROOT / MATLAB).glob("[a-z]*.m")):
        match = next(HELP.finditer(path.read_text(encoding="utf-8")))
        head = match["head"].replace(path.stem, f"optplug.{path.stem}", 1)
        parts.append(entry(path.stem, "matlab", head, matlab_words(match["help"])))
    return page("MATLAB and Octave reference", f"{MATLAB}*.m", *parts)


# ---- Python ----

PYTHON = "python/optplug/ctypes_api.py"


def python_words(text: str) -> str:
    """Write a docstring in Markdown: arguments as a table, programs as code."""
    words, _, arguments = text.partition("Args:\n")
    words = re.sub(r"``(.+?)``", r"`\1`", words)
    words = re.sub(
        r"^Raises:\n {4}(\w+): (.*(?:\n {8}.*)*)",
        lambda m: f"Raises `{m[1]}`: " + re.sub(r"\s+", " ", m[2]),
        words,
        flags=re.M,
    )
    words = re.sub(
        r"::\n\n((?: {4}.*\n?|\n)+)",
        lambda m: f":\n\n```python\n{textwrap.dedent(m[1]).strip()}\n```\n",
        words,
    )
    rows = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", arguments, re.M)
    cells = [(f"`{name}`", re.sub(r"\s+", " ", text).replace("``", "`")) for name, text in rows]
    return words.strip() + ("\n\n" + table("| argument | what it is |", cells) if cells else "")


def python_entries(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the public functions of a module's or a class's body."""
    for node in body:
        if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            name = "Optimizer" if node.name == "__init__" else node.name
            arguments = re.sub(r"^self(, |$)", "", ast.unparse(node.args))
            if len(arguments) > 80:
                arguments = "\n    " + re.sub(r", (?=\w+: )", ",\n    ", arguments) + ",\n"
            code = f"{name}({arguments}){returns}"
            yield entry(name, "python", code, python_words(ast.get_docstring(node) or ""))


def python() -> str:
    """Write the reference of ctypes_api."""
    tree = ast.parse((ROOT / PYTHON).read_text(encoding="utf-8"))
    (kind,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Optimizer")
    parts = [
        python_words(ast.get_docstring(tree) or ""),
        "## Optimizer",
        python_words(ast.get_docstring(kind) or ""),
    ]
    parts += [*python_entries(kind.body), "## Functions", *python_entries(tree.body)]
    return page("Python reference", PYTHON, *parts)


# ---- the command line ----


def command_line() -> str:
    """Write what ``optplug --help`` says, and that of each command."""
    parser = cli._parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parts = ["# Command line", f"{parser.description}", "`optplug` is short for `python -m optplug`."]
    for name, command in commands.choices.items():
        rows = []
        for action in command._actions:
            if not isinstance(action, argparse._HelpAction):
                words = ", ".join(action.option_strings) or action.metavar or action.dest
                value = f" {action.metavar}" if action.option_strings and action.metavar else ""
                choice = f" ({', '.join(f'`{c}`' for c in action.choices)})" if action.choices else ""
                rows.append((f"`{words}{value}`", f"{action.help or ''}{choice}".strip()))
        example, _, _ = (command.epilog or "").partition(".  Exit status")
        parts += [f"## {name}", prose(command.description or ""), table("| argument | what it does |", rows)]
        if example:
            parts.append(f"```sh\n{example.removeprefix('Example: ')}\n```")
    parts += ["## Exit status", prose(cli._EPILOG.removeprefix("Exit status: "))]
    return "\n\n".join(parts) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "reference.md": c,
    "reference-cxx.md": cxx,
    "reference-fortran.md": fortran,
    "reference-matlab.md": matlab,
    "reference-python.md": python,
    "reference-cli.md": command_line,
}
