"""Read specs: constructor calls as text, parsed and never evaluated.

A spec is what a user of PyTorch writes, with or without the arguments that optplug supplies itself:
``"Adam(lr=1e-3, betas=(0.9, 0.99))"``, ``"optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)"``.
It may hold literals, containers of them, further calls, and names of classes and dtypes:
``"pytorch_optimizer:SAM(base_optimizer=SGD, lr=0.1)"``, ``"heavyball:AdamW(storage_dtype=torch.bfloat16)"``.
Names are read and kept as they are; `recipe` looks them up.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import inspect
import io
import itertools
import math
import re
import reprlib
import tokenize
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from optplug.parsing import parse_expression

_ASSIGNED = re.compile(r"\s*(>>>\s*)?([A-Za-z_][\w.]*\s*=(?!=))?")  # what an example has before a call
#: Whose names a spec may have in front of a call.
MODULES = ("torch.optim", "torch.optim.lr_scheduler", "torch.optim.swa_utils")
_TORCHS = {"", "torch", *MODULES}
# As programs write them, whatever they import: "lr_scheduler".
_WRITTEN = {full.split(".", i)[-1]: full for full in MODULES for i in range(full.count(".") + 1)}
# What programs call what optplug supplies itself, alone or as the last part of a longer name.
_SUPPLIED = {"params", "parameters", "model", "net", "network", "module", "optimizer", "opt"}
_PARAMETERS = {"params", "optimizer", "model"}  # what the classes call it
# Stands for the colon between a module and a class where Python's parser reads, which knows none there.
_COLON = ".__colon__."
_WORDS = {"true": True, "false": False, "inf": math.inf, "nan": math.nan}  # as other languages write them
# What makes Python's parser, which is written in C, call itself once more.
_DEEPER = re.compile(r"[()\[\]{},]|\*\*|[-+~]|\b(?:not|lambda|if|await|yield)\b")
_STRING = re.compile(r"'[^'\\]*'|\"[^\"\\]*\"")
_MOST_SHOWN = 60  # names in a message
_MAX_DEPTH = 48  # a host's thread may have a stack of 128 KB
_MAX_LENGTH = 65536  # far beyond any constructor call, and short of what makes the parser slow


class SpecError(ValueError):
    """A spec that cannot be read, or that names what does not exist."""


@dataclass(frozen=True)
class Call:
    """A call as it was written: ``module:name(*args, **kwargs)``, with ``module`` often ``""``."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    module: str = ""

    def __repr__(self) -> str:
        arguments = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"{self.module}{':' * bool(self.module)}{self.name}({', '.join(arguments)})"


@dataclass(frozen=True)
class Name:
    """What a name stands for that is a value: a class, ``SGD`` or ``module:SGD``, or ``torch.float32``."""

    name: str
    module: str = ""

    def __repr__(self) -> str:
        dot = "." if self.module == "torch" else ":" * bool(self.module)
        return f"{self.module}{dot}{self.name}"


@dataclass(frozen=True)
class Supplied:
    """What stands for the parameters, the optimizer or the model, which the caller of a class has itself."""

    source: str

    def __repr__(self) -> str:
        return self.source


class _Short(reprlib.Repr):
    """``repr`` that makes no more of a value than is shown, whatever is in it and however often."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = self.maxfrozenset = self.maxdeque = 8
        self.maxstring = self.maxlong = self.maxother = limit

    def repr_str(self, value: str, _: int) -> str:
        text = repr(value[: self.maxstring])
        return text if len(value) <= self.maxstring else text[:-1] + "..." + text[-1]

    def repr_type(self, value: type, _: int) -> str:
        return value.__name__

    def repr_int(self, value: int, _: int) -> str:
        return repr(value) if value.bit_length() <= self.maxlong else f"a number of {value.bit_length()} bits"

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{...}"
        items = islice(value.items(), self.maxdict)
        shown_ = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in items]
        return "{" + ", ".join(shown_ + ["..."] * (len(value) > self.maxdict)) + "}"

    repr_Counter = repr_OrderedDict = repr_dict  # noqa: N815 (what reprlib looks for)


def shown(value: object, limit: int = 120) -> str:
    """Return a value as an error message shows it: quoted, on one line, of bounded length."""
    text = " ".join(_Short(4 * limit).repr(value).split("\n"))
    return text if len(text) <= limit else text[: limit - 4] + "..." + text[-1]


def parse(text: str) -> Call:
    """Parse a spec into a Call.

    Raises:
        SpecError: the text is no single call of literals and further calls.
    """
    assigned = _ASSIGNED.match(text)
    text = text[assigned.end() if assigned else 0 :]
    tree = _expression(text)
    if not isinstance(tree, ast.Call):
        name = _dotted(tree).replace(_COLON, ":")
        hint = f"{name if ':' in name else name.rpartition('.')[2]}()" if name else "Adam(lr=1e-3)"
        raise SpecError(f"it must be a call, such as {shown(hint)}")
    return _value(tree)


def arguments(text: str) -> dict[str, Any]:
    """Parse ``"name=value, name=value"``.

    Raises:
        SpecError: the text is no list of keyword arguments with literal values.
    """
    # The outer commas may have stood beside an item that C took out; the newline keeps a comment in
    # the text from swallowing the parenthesis.
    tree = _expression(f"_({text.strip(' ,')}\n)")
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
        raise SpecError("it must be 'name=value, name=value'")
    return {k.arg: _value(k.value) for k in _keywords(tree)}  # type: ignore[misc]


def check_name(
    name: str, known: Iterable[str], kind: str, elsewhere: Callable[[str], list[str]] = lambda _: []
) -> None:
    """Check that ``name`` is one of ``known``, or raise SpecError with the nearest ones and all of them.

    Args:
        elsewhere: returns what else may be meant.
    """
    known = sorted(known)
    if name not in known:
        near = nearest(name, known) + elsewhere(name)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        names = ", ".join([*known[:_MOST_SHOWN], *["..."] * (len(known) > _MOST_SHOWN)])
        raise SpecError(f"no {kind} {shown(name)}: {hint}there are {names or 'none'}")


def nearest(name: str, known: Iterable[str], least: float = 0.6) -> list[str]:
    """Return which names are most like one that may be misspelt."""
    known = sorted(known)
    alike = [k for k in known if k.lower() == name.lower()]
    return alike or difflib.get_close_matches(name, known, n=3, cutoff=least)


def modules(value: Any) -> set[str]:
    """Return the modules outside torch that a call names, in its arguments as well."""
    found: set[str] = set()
    if isinstance(value, Call | Name):
        found = {value.module} - _TORCHS
    if isinstance(value, Call):
        found |= modules(value.args) | modules(value.kwargs)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        found = found.union(*map(modules, value))
    return found


def check_is_torchs(call: Call | Name, what: str, remedy: str) -> None:
    """Check that a call or a name is of no module outside torch, of which we take no ``what``."""
    if call.module not in _TORCHS:
        raise SpecError(f"module {shown(call.module)}: {what} are PyTorch's own only: {remedy}")


def check_module(call: Call | Name, module: str) -> None:
    """Check that a call or a name of something in ``module`` names no other one, or raise SpecError."""
    if call.module not in ("", module):
        raise SpecError(
            f"module {shown(call.module)} is not the one of {call.name}: write {module}.{call.name}"
        )


def check_arguments(
    function: Callable[..., Any], call: Call, supplied: Collection[str] = ()
) -> dict[str, Any]:
    """Check a call's arguments against a signature of which we supply some ourselves.

    Returns:
        The arguments by name, without those that we supply and without defaults.
    """
    signature = signature_of(function)
    signature = signature.replace(
        parameters=[p for p in signature.parameters.values() if p.name not in supplied]
    )
    call = without_supplied(function, call)
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        for name in call.kwargs:
            check_name(name, signature.parameters, f"argument of {call.name}")
    for name in call.kwargs.keys() & set(supplied):
        raise SpecError(f"{call.name} gets {name} from optplug: leave it out")
    unnamed = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    has_more = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    if len(call.args) > len(unnamed) and not has_more:
        raise SpecError(
            f"{call.name}: {shown(call.args[len(unnamed)])} needs a name: "
            f"only {', '.join(unnamed) or 'no argument'} may be given without one"
        )
    try:
        found = dict(signature.bind(*call.args, **call.kwargs).arguments)
    except TypeError as error:
        raise SpecError(f"{call.name}: {error}") from None
    for p in signature.parameters.values():
        if p.kind is p.VAR_KEYWORD:  # each by its own name
            found |= found.pop(p.name, {})
    return found


def without_supplied(function: Callable[..., Any], call: Call) -> Call:
    """Return a call of a function without the arguments that its caller supplies."""
    names = signature_of(function).parameters.keys() & _PARAMETERS
    args, kwargs = call.args, dict(call.kwargs)
    if names and args and isinstance(args[0], Supplied):
        args = args[1:]
    for name in names:
        if isinstance(kwargs.get(name), Supplied):
            del kwargs[name]
    for value in (*args, *kwargs.values()):
        if isinstance(value, Supplied):
            raise SpecError(f"{call.name} takes no {shown(str(value))}: leave it out")
    return replace(call, args=args, kwargs=kwargs)


#: ``inspect.signature``, which is slow, once for each function or class.
signature_of = functools.cache(inspect.signature)


def arguments_of(class_: type, supplied: Collection[str]) -> list[str]:
    """Return the arguments of a class, as a spec has them, each with its default: ``"lr=0.001"``."""
    parameters = list(signature_of(class_).parameters.values())
    return [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in parameters
        if p.name not in supplied
    ]


def _expression(text: str) -> ast.expr:
    if len(text) > _MAX_LENGTH:
        raise SpecError(f"it is longer than {_MAX_LENGTH} characters")
    if _depth(text) > _MAX_DEPTH:
        raise SpecError("it is too deeply nested")
    text = text.strip()
    try:
        try:
            return parse_expression(text)
        except SyntaxError:
            with contextlib.suppress(SyntaxError, tokenize.TokenError):
                return parse_expression(_without_colons(text))
            raise
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or "too deeply nested"
        if re.search(r"\.(true|false)\.", text, re.IGNORECASE):
            reason = "write True and False, without dots"
        raise SpecError(f"it cannot be read: {reason}") from None


def _without_colons(text: str) -> str:
    """Return a text in which each module and class, ``module:Class``, are one name to Python's parser."""
    starts = [0, *itertools.accumulate(map(len, io.StringIO(text, newline="")))]
    tokens = tokenize.generate_tokens(io.StringIO(text, newline="").readline)
    found = [token for token in tokens if token.type != tokenize.NL]
    parts, done = [], 0
    for before, colon, after in zip(found, found[1:], found[2:], strict=False):
        if colon.string == ":" and before.type == after.type == tokenize.NAME:
            end, start = (starts[row - 1] + column for row, column in (before.end, after.start))
            if text[end:start].strip() == ":":
                parts += [text[done:end], _COLON]
                done = start
    return "".join([*parts, text[done:]])


def _depth(text: str) -> int:
    """Return how deep Python's parser could go: brackets, and operators that stand before a value."""
    open_brackets: list[int] = []
    operators = deepest = 0
    for found in _DEEPER.findall(_STRING.sub("''", text)):
        match found:
            case "(" | "[" | "{":
                open_brackets.append(operators + 1)
                operators = 0
            case ")" | "]" | "}":
                operators = open_brackets.pop() - 1 if open_brackets else 0
            case ",":
                operators = 0
            case _:
                operators += 1
        deepest = max(deepest, sum(open_brackets) + operators)
        if deepest > _MAX_DEPTH:
            break
    return deepest


def _value(node: ast.expr) -> Any:
    """Turn a syntax tree into values, Calls for calls; refuse everything else."""
    try:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.UnaryOp(
                op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)
            ):
                return -value if isinstance(sign, ast.USub) else value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
                return -math.inf
            case ast.Tuple(elts=elements):
                return tuple(_value(e) for e in elements)
            case ast.List(elts=elements):
                return [_value(e) for e in elements]
            case ast.Dict(keys=keys, values=values) if None not in keys:
                return {_value(k): _value(v) for k, v in zip(keys, values, strict=True)}  # type: ignore[arg-type]
            case ast.Name(id=name) if name.lower() in _WORDS:
                return _WORDS[name.lower()]
            case ast.Call():
                return _call(node)
            case ast.Name() | ast.Attribute() if (found := _name(_dotted(node))) is not None:
                return found
        raise SpecError(_complaint(node))
    except RecursionError:
        raise SpecError("it is too deeply nested") from None
    except TypeError as error:  # a dict with a list for a key
        raise SpecError(str(error)) from None


def _call(node: ast.Call) -> Call:
    """Turn a call into a Call: of a plain name, or of one in a module."""
    module, colon, name = _dotted(node.func).rpartition(_COLON)
    if not colon:
        module, _, name = name.rpartition(".")
    if "." in name:
        raise SpecError(f"it names two modules, {module} and {name.rpartition('.')[0]}")
    if not name or _COLON in module or (module and not colon and module not in _WRITTEN):
        raise SpecError(_complaint(node))
    args = [_argument("", a) if i == 0 else _value(a) for i, a in enumerate(node.args)]
    kwargs = {k.arg: _argument(k.arg, k.value) for k in _keywords(node)}  # type: ignore[arg-type]
    return Call(name, tuple(args), kwargs, module if colon else _WRITTEN.get(module, ""))  # type: ignore[arg-type]


def _name(text: str) -> Name | None:
    """Return what a dotted name stands for, where it is one of a class or a dtype as people write them."""
    module, colon, name = text.rpartition(_COLON)
    if colon:
        return Name(name, module) if "." not in name and _COLON not in module else None
    module, _, name = name.rpartition(".")
    is_class = module in ("", *_WRITTEN) and name[:1].isupper()
    return Name(name, _WRITTEN.get(module, module)) if is_class or module == "torch" else None


def _argument(name: str, node: ast.expr) -> Any:
    """Return the first argument of a call, or one with a name, which may be what the caller has itself."""
    is_call = isinstance(node, ast.Call) and not (node.args or node.keywords)
    written = _dotted(node.func if is_call else node)  # type: ignore[attr-defined]
    last = written.rpartition(".")[2] if _COLON not in written else ""
    if name in ("", *_PARAMETERS) and (last == "parameters" if is_call else last in _SUPPLIED):
        return Supplied(ast.unparse(node))
    try:
        return _value(node)
    except SpecError as error:
        if name in ("lr_lambda", "scale_fn"):
            raise SpecError(
                f"{name}={_source(node)} is a function: pass yours to opt_schedule_callback, and leave "
                f"{name} out here"
            ) from None
        if name in ("", *_PARAMETERS):
            raise SpecError(f"{error}; leave out params, optimizer and model") from None
        raise


def _keywords(node: ast.Call) -> list[ast.keyword]:
    names = [k.arg for k in node.keywords]
    if None in names:
        raise SpecError(_complaint(node))
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"argument {shown(name)} is given twice")
    return node.keywords


def _dotted(node: ast.expr) -> str:
    """Return a name as it is written, "optim.Adam"; "" for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _complaint(node: ast.expr) -> str:
    source = shown(_source(node))
    if isinstance(node, ast.Lambda):
        return f"{source} is a function, which a spec cannot contain: pass yours to opt_schedule_callback"
    name = _dotted(node.func if isinstance(node, ast.Call) else node)
    if name.endswith("parameters"):
        return f"{source}: pass parameters with opt_bind, and groups with opt_group"
    if name and not isinstance(node, ast.Call):
        return f"{source} is a name whose value is unknown here: write the value, with quotes if it is text"
    return f"{source} is neither a literal (a number, True, a tuple, ...) nor a plain call"


def _source(node: ast.expr) -> str:
    source = "*" + ast.unparse(node.value) if isinstance(node, ast.Starred) else ast.unparse(node)
    return source.replace(_COLON, ":")
