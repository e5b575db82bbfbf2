"""List and describe what PyTorch has here, and packages that a command names.

Names, arguments, defaults and words are asked of the classes.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from optplug import ctypes_api, methods, outside, recipe, schedules, spec
from optplug.ctypes_api import Error, Optimizer
from optplug.parsing import parse_expression
from optplug.tools.report import Told

_PAGES = "https://docs.pytorch.org/docs/stable/generated"
_STEPS = 7  # until steps are recorded
_NUMBERS = {"lr": "0.001", "num_iterations": "1000", "num_data": "1000"}  # of arguments without a default
KINDS = ("optimizers", "schedulers", "dtypes", "devices")
_BATCHES = 100  # what stands for len(data_loader) in an example of torch's


def lists(kind: str | None, told: Told) -> dict[str, list[dict[str, Any]]]:
    """Return rows for one of `KINDS`, or for the optimizers of a package; None for the first two kinds."""
    about = {"optimizers": _optimizer, "schedulers": _scheduler}
    if kind is not None and kind not in KINDS:
        return {"optimizers": _rows(_of_package(kind), _optimizer, told)}
    return {
        name: _rows(_sorted(name), about.get(name, lambda _: {}), told)
        for name in ([kind] if kind else about)
    }


def _rows(names: list[str], about: Callable[[str], dict[str, Any]], told: Told) -> list[dict[str, Any]]:
    rows = []
    for done, name in enumerate(names):
        told(name, done, len(names))
        rows.append({"name": name} | about(name))
    return rows


def _sorted(kind: str) -> list[str]:
    names = ctypes_api.listing(kind)
    return names if kind in ("dtypes", "devices") else sorted(names, key=str.lower)


def _of_package(package: str) -> list[str]:
    """Return the names of a package's optimizers, as specs have them."""
    if not all(map(str.isidentifier, package.split("."))):
        spec.check_name(package, KINDS, "list")
    try:
        importlib.import_module(package)
    except Exception as error:
        is_typo = isinstance(error, ModuleNotFoundError) and error.name == package
        kinds = f"; besides packages there are {', '.join(sorted(KINDS))}" if is_typo else ""
        said = str(error) or type(error).__name__
        raise ValueError(f"{package} cannot be imported: {said}{kinds}") from error
    _allow(package)
    found = outside.classes_in(package)
    if not found:
        raise ValueError(f"{package} has no optimizers")
    return sorted((f"{package}:{name}" for name in found), key=str.lower)


def _allow(module: str) -> None:
    """Let specs name what somebody at the command line has named, and so wants to be imported."""
    ctypes_api.init(f"third_party=[{module!r}]")


def describe(name: str) -> dict[str, Any]:
    """Return what there is to know about an optimizer or a scheduler, its arguments as rows.

    Raises:
        ValueError: there is none of that name.
    """
    if ":" in name:
        return _describe_other(name)
    optimizers, schedulers = recipe.classes(), schedules.classes()
    spec.check_name(name, [*optimizers, *schedulers], "optimizer or scheduler")
    is_optimizer = name in optimizers
    class_ = (optimizers if is_optimizer else schedulers)[name]
    facts = {"name": name} | (_optimizer(name) if is_optimizer else _scheduler(name))
    facts["example"] = example(class_)
    module = "torch.optim" if is_optimizer else class_.__module__
    facts["page"] = f"{_PAGES}/{module}.{name}.html"
    facts["arguments"] = _arguments(class_, {"params", "optimizer"})
    return facts


def _describe_other(name: str) -> dict[str, Any]:
    """Return what there is to know about a class outside torch, with its module before its name."""
    class_ = recipe.find_class(name, True)
    _allow(name.partition(":")[0].strip())
    facts = {"name": name} | _optimizer(name)
    facts["needs"] = "; ".join(_needs(class_, facts["calls"]))
    facts["example"] = _example_of(name, class_)
    facts["arguments"] = _arguments(class_, outside.supplied(class_))
    return facts


def _needs(class_: type, calls: str) -> Iterator[str]:
    """Yield what a program has to know of a class outside torch, beside its arguments."""
    supplied = outside.supplied(class_)
    if not outside.are_in_groups(supplied):
        yield (
            f"{' and '.join(supplied)}, from optplug; no groups" if supplied else "an optimizer, in the spec"
        )
    elif any(outside.takes_optimizer(class_, p.name) for p in _needed(class_)):
        yield "an optimizer's class, in the spec"
    if "closure" in calls:
        yield "a closure: compute the gradients before the step as well"
    if methods.has(class_):
        yield 'opt_call(opt, "eval") before using the weights, and "train" before you train on'


def _needed(class_: type) -> list[inspect.Parameter]:
    """Return the arguments of a class that a spec must have."""
    return [
        p
        for p in spec.signature_of(class_).parameters.values()
        if p.default is p.empty and p.name in outside.options(class_) and p.kind <= p.KEYWORD_ONLY
    ]


def _example_of(name: str, class_: type) -> str:
    """Return a spec for a class outside torch, with what it cannot do without."""
    given = []
    for p in _needed(class_):
        if outside.takes_optimizer(class_, p.name):
            given.append(f"{p.name}=SGD{'' if outside.supplied(class_) else '(lr=0.1)'}")
        else:
            given.append(f"{p.name}={_NUMBERS.get(p.name, '...')}")
    if not given or any(value.endswith("=SGD") for value in given):
        more = [a for a in spec.arguments_of(class_, outside.supplied(class_)) if a.startswith("lr=")]
        given += more or ["lr=0.1"] * bool(given)
    return f"{name}({', '.join(given)})"


def _arguments(class_: type, supplied: Collection[str]) -> list[dict[str, Any]]:
    words = _words(inspect.getdoc(class_) or "")
    return [
        {
            "argument": p.name,
            "default": "(none)" if p.default is p.empty else repr(p.default),
            "meaning": words.get(p.name, ""),
        }
        for p in spec.signature_of(class_).parameters.values()
        if p.name not in supplied
    ]


def example(class_: type) -> str:
    """Return a spec for a class, out of torch's own documentation where there is one in it."""
    name, doc = class_.__name__, inspect.getdoc(class_) or ""
    source = "".join(e.source for e in doctest.DocTestParser().get_examples(doc))
    values: dict[str, ast.expr] = {}
    for variable, value in re.findall(r"^(\w+) = (.+)$", source, re.M):
        tree = _parsed(value)
        if tree and variable != "optimizer":
            values[variable] = tree
    for found in re.finditer(rf"\b{name}\(", source):
        ends = (m.end() for m in re.finditer(r"\)", source) if m.end() > found.end())
        tree = next(filter(None, (_parsed(source[found.start() : end]) for end in ends)), None)
        if isinstance(tree, ast.Call):
            return ast.unparse(_Literal(values).visit(tree))
    first = spec.arguments_of(class_, {"params", "optimizer"})[0]
    return f"{name}({first if '=' in first else f'{first}=...'})"


class _Literal(ast.NodeTransformer):
    """Put in what variables stand for, and leave out what no spec has: the optimizer, functions."""

    def __init__(self, values: dict[str, ast.expr]) -> None:
        self._values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        value = self._values.get(node.id)
        return self.visit(value) if value else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        if name == "len":
            return ast.Constant(_BATCHES)
        args = [arg for arg in map(self.visit, node.args) if _is_literal(arg)]
        keywords = [ast.keyword(k.arg, self.visit(k.value)) for k in node.keywords]
        return ast.Call(ast.Name(name), args, [k for k in keywords if _is_literal(k.value)])


def _is_literal(node: ast.expr) -> bool:
    try:
        value = spec.parse(f"_({ast.unparse(node)})").args[0]
    except spec.SpecError:
        return False
    return not isinstance(value, spec.Supplied)


def _parsed(text: str) -> ast.expr | None:
    try:
        return parse_expression(text)
    except SyntaxError:
        return None


def _optimizer(name: str) -> dict[str, Any]:
    if ":" not in name:
        calls, path = _step(f"{name}()")
        step = "without Python" if path.endswith("without Python") else "PyTorch's own"
        return {"calls": calls, "step": step, "summary": _summary(recipe.classes()[name])}
    class_ = recipe.find_class(name, True)
    calls, path = _step(_example_of(name, class_))
    step = "without Python" if path.endswith("without Python") else "by Python" if calls else path
    return {"calls": calls, "step": step, "summary": _summary(class_)}


def _step(text: str) -> tuple[str, str]:
    """Return which calls an optimizer steps by, and what opt_describe says of its step, by trying.

    Of one that does not step so, return "" and the first reason.
    """
    w, dw = np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)
    row = np.ones(1, np.int64), np.zeros(1, np.int64), np.ones((1, 2), np.float32)

    def dense(tried: Optimizer) -> None:
        tried.bind("w", w, dw)
        for _ in range(_STEPS):
            tried.step()

    def closure(tried: Optimizer) -> None:
        tried.bind("w", w, dw)
        tried.step_closure(lambda: 1.0)

    def sparse(tried: Optimizer) -> None:
        tried.bind_sparse("w", w, *row)
        tried.step()

    ways = {
        "opt_step": dense,
        "opt_step_closure, opt_iterate": closure,
        "opt_bind_sparse, opt_step": sparse,
    }
    reasons = []
    for calls, way in ways.items():
        try:
            with Optimizer(text) as tried:
                way(tried)
                return calls, tried.describe().partition("\nstep: ")[2].partition("\n")[0]
        except Error as error:
            reasons.append(str(error))
    return "", reasons[0]


def _scheduler(name: str) -> dict[str, Any]:
    class_ = schedules.classes()[name]
    functions = [
        p.name
        for p in spec.signature_of(class_).parameters.values()  # type: ignore[arg-type]
        if "Callable" in str(p.annotation)
    ]
    step = list(spec.signature_of(class_.step).parameters.values())[1:]
    needs_value = any(p.default is p.empty for p in step)
    return {
        "calls": f"opt_schedule_step{'_metric' if needs_value else ''}",
        "function": ", ".join(functions) and f"{', '.join(functions)}: opt_schedule_callback",
        "summary": _summary(class_),
    }


def _summary(class_: type) -> str:
    """Return the first sentence of torch's documentation of a class."""
    first = " ".join((inspect.getdoc(class_) or "").partition("\n\n")[0].split())
    return _bare(first.partition(". ")[0]).rstrip(".")


def _words(doc: str) -> dict[str, str]:
    """Return what a docstring's "Args" say of each argument."""
    section = re.search(r"^Args:\n((?:[ \t].*\n?|\n)+)", doc, re.M)
    entries = re.split(r"^    (?=\w+ ?(?:\(|:))", section[1], flags=re.M)[1:] if section else []
    found = {}
    for entry in entries:
        match = re.match(r"(\w+)\s*(?:\((?:[^()]|\([^()]*\))*\))?\s*:?\s*(.*)", entry, re.S)
        if not match:
            continue
        name, text = match.groups()
        text = _bare(" ".join(text.partition("\n\n")[0].split()))
        # Without the default, which stands beside it.
        found[name] = re.sub(r"\s*(?:\(default: (?:[^()]|\([^()]*\))*\)\.?|Default: \S+)$", "", text)
    return found


def _bare(text: str) -> str:
    """Return a text without the marks of reStructuredText."""
    return re.sub(r"(?::\w+:)?`+~?([^`<]*?)(?: ?<[^`]*>)?`+_?", r"\1", text)
