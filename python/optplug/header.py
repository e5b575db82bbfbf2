"""The C headers, read once for all who need what they declare: types, names, numbers and comments.

It knows the C that these headers are written in, and no other: a comment that begins a line, and below it
what it is about, up to an empty line or the next comment.
"""

from __future__ import annotations

import functools
import pathlib
import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Parameter:
    """What a function takes: ``const double *`` and ``grad``, say."""

    type: str
    name: str


@dataclass(frozen=True)
class Function:
    """A function, or a pointer to one that is a member of a struct."""

    result: str
    name: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Status:
    """A number that a call returns, and what it says."""

    name: str
    value: int
    comment: str


@dataclass(frozen=True)
class Part:
    """A comment, and the code that it is about: "" where it stands alone."""

    comment: str
    code: str
    functions: tuple[Function, ...] = ()
    statuses: tuple[Status, ...] = ()
    #: Types that are pointers to functions of the host's.
    callbacks: tuple[Function, ...] = ()


@dataclass(frozen=True)
class Header:
    """A whole header."""

    parts: tuple[Part, ...]
    functions: dict[str, Function] = field(init=False)
    statuses: dict[str, int] = field(init=False)
    callbacks: dict[str, Function] = field(init=False)

    def __post_init__(self) -> None:
        functions = {f.name: f for part in self.parts for f in part.functions}
        object.__setattr__(self, "functions", functions)
        statuses = {s.name: s.value for part in self.parts for s in part.statuses}
        object.__setattr__(self, "statuses", statuses)
        callbacks = {c.name: c for part in self.parts for c in part.callbacks}
        object.__setattr__(self, "callbacks", callbacks)


_TYPE = r"(?:const )?\w+ ?\*?"
_FUNCTION = re.compile(rf"^({_TYPE})\s?(\w+)\(([^()]*)\);", re.M)
_MEMBER = re.compile(rf"({_TYPE})\s?\(\*(\w+)\)\(([^()]*)\);")
_STATUS = re.compile(r"(\w+) = (-?\d+),?[ \t]*(?:/\* (.*) \*/)?")
_CALLBACK = re.compile(rf"^typedef ({_TYPE})\s?\(\*(\w+)\)\(([^()]*)\);", re.M)
_PART = re.compile(r"^/\* ((?:.|\n)*?) ?\*/\n((?:[^/#\n].*\n)*)", re.M)


def read(path: pathlib.Path) -> Header:
    """Read a header."""
    return parse(path.read_text(encoding="utf-8"))


@functools.cache
def parse(text: str) -> Header:
    """Read a header's text."""
    # Names by which the preprocessor defines functions once more come with a comment or without.
    parts = [Part(comment, code, *_declared(code)) for comment, code in _PART.findall(text)]
    known = {f.name for part in parts for f in part.functions}
    others = [f for f in _functions(_FUNCTION, _without_comments(text)) if f.name not in known]
    return Header((*parts, Part("", "", tuple(others))) if others else tuple(parts))


def _declared(code: str) -> tuple[tuple[Function, ...], tuple[Status, ...], tuple[Function, ...]]:
    plain = _without_comments(code)
    statuses = tuple(Status(name, int(value), comment) for name, value, comment in _STATUS.findall(code))
    return tuple(_functions(_FUNCTION, plain)), statuses, tuple(_functions(_CALLBACK, plain))


def _functions(pattern: re.Pattern[str], text: str) -> list[Function]:
    return [
        Function(_tidy(result), name, _parameters(parameters))
        for result, name, parameters in pattern.findall(text)
    ]


def _parameters(text: str) -> tuple[Parameter, ...]:
    text = " ".join(text.split())
    if text in ("", "void"):
        return ()
    found = [re.fullmatch(rf"({_TYPE}) ?\b(\w+)", parameter) for parameter in re.split(r",\s*", text)]
    if None in found:
        raise ValueError(f"a parameter in '{text}' is not one that is read here")
    return tuple(Parameter(_tidy(match[1]), match[2]) for match in found if match)


def _tidy(type_: str) -> str:
    """Return a type as ``int`` or ``const char *``."""
    return re.sub(r"\s*\*$", " *", " ".join(type_.split()))


def _without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.S)


def declarations(path: pathlib.Path) -> str:
    """Return a header's text without the preprocessor's lines, as cffi takes it."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#"))


def members(path: pathlib.Path, struct: str) -> list[Function]:
    """Return the pointers to functions in a struct of a header."""
    body = re.search(rf"struct {struct} \{{(.*?)\n\}}", path.read_text(encoding="utf-8"), re.S)
    if not body:
        raise ValueError(f"{path} has no struct {struct}")
    return _functions(_MEMBER, _without_comments(body[1]))
