"""List and describe what PyTorch has here.  Names, arguments, defaults and words are asked of torch."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from typing import Any

import numpy as np

from optplug import ctypes_api, recipe, schedules, spec
from optplug.ctypes_api import Error, Optimizer

_PAGES = "https://docs.pytorch.org/docs/stable/generated"
_BATCHES = 100  # what stands for len(data_loader) in an example of torch's


def lists(kind: str | None) -> dict[str, list[dict[str, Any]]]:
    """Return rows for one of "optimizers", "schedulers", "dtypes" and "devices"; None for the first two."""
    about = {"optimizers": _optimizer, "schedulers": _scheduler}
    return {
        name: [{"name": line} | about.get(name, lambda _: {})(line) for line in _sorted(name)]
        for name in ([kind] if kind else about)
    }


def _sorted(kind: str) -> list[str]:
    names = ctypes_api.listing(kind)
    return names if kind in ("dtypes", "devices") else sorted(names, key=str.lower)


def describe(name: str) -> dict[str, Any]:
    """Return what there is to know about an optimizer or a scheduler, its arguments as rows.

    Raises:
        ValueError: there is none of that name.
    """
    optimizers, schedulers = recipe.classes(), schedules.classes()
    spec.check_name(name, [*optimizers, *schedulers], "optimizer or scheduler")
    is_optimizer = name in optimizers
    class_ = (optimizers if is_optimizer else schedulers)[name]
    facts = {"name": name} | (_optimizer(name) if is_optimizer else _scheduler(name))
    facts["example"] = example(class_)
    module = "torch.optim" if is_optimizer else class_.__module__
    facts["page"] = f"{_PAGES}/{module}.{name}.html"
    words = _words(inspect.getdoc(class_) or "")
    facts["arguments"] = [
        {
            "argument": p.name,
            "default": "(none)" if p.default is p.empty else repr(p.default),
            "meaning": words.get(p.name, ""),
        }
        for p in spec.signature_of(class_).parameters.values()  # type: ignore[arg-type]
        if p.name not in ("params", "optimizer")
    ]
    return facts


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
    first = spec.arguments_of(class_)[0]
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
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return None


def _optimizer(name: str) -> dict[str, Any]:
    calls, path = _step(name)
    step = "without Python" if path.endswith("without Python") else "PyTorch's own"
    return {"calls": calls, "step": step, "summary": _summary(recipe.classes()[name])}


def _step(name: str) -> tuple[str, str]:
    """Return which calls an optimizer steps by, and what opt_describe says of its step, by trying."""
    w, dw = np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)
    row = np.ones(1, np.int64), np.zeros(1, np.int64), np.ones((1, 2), np.float32)

    def dense(tried: Optimizer) -> None:
        tried.bind("w", w, dw)
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
    for calls, way in ways.items():
        with Optimizer(f"{name}()") as tried:
            try:
                way(tried)
            except Error:
                continue
            return calls, tried.describe().partition("\nstep: ")[2].partition("\n")[0]
    return "", ""


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
