"""Classes outside torch.optim: found where that is allowed, and what their constructors want to have.

Names are looked up, in modules that a host allows, and nothing is evaluated.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pathlib
import re
import sys
from collections.abc import Iterable
from inspect import Parameter
from typing import Any

import torch

from optplug.errors import warn
from optplug.spec import SpecError, check_name, nearest, shown, signature_of
from optplug.torch_private import module_of

#: Whether a spec may name classes outside torch, or of which packages it may.
Allowed = bool | tuple[str, ...]

# Packages that have optimizers, and some of those, to tell of them where they are not installed.
_KNOWN = {
    "pytorch_optimizer": "AdEMAMix AdaBelief Adan Lamb Lion Lookahead Prodigy RAdam SAM SOAP Shampoo Sophia",
    "heavyball": "Muon PSGDKron SOAP",
    "schedulefree": "AdamWScheduleFree RAdamScheduleFree SGDScheduleFree",
    "prodigyopt": "Prodigy",
    "lion_pytorch": "Lion",
    "optimi": "StableAdamW",
    "torchao.optim": "AdamW4bit AdamW8bit AdamWFp8",
}
# What constructors call what they get of the parameters, other than a list of them or of groups.
_MODELS = {"model", "module", "net", "network"}
_NAMED = {"named_parameters", "named_params"}
# What an optimizer is to us, where it is not one of torch's.
_METHODS = ("step", "zero_grad", "state_dict", "load_state_dict", "param_groups")


def check_allowed(module: str, allowed: Allowed) -> None:
    """Check, before a module is imported, that it may be, or raise SpecError."""
    if not allowed:
        raise SpecError(
            f"module {shown(module)} is outside torch.optim and would be imported: allow it with "
            'opt_init("third_party=True")'
        )
    if isinstance(allowed, tuple) and not any(_is_within(module, name) for name in allowed):
        packages = [*allowed, module.partition(".")[0]]
        raise SpecError(
            f"module {shown(module)} is in no package that may be imported: allow it with "
            f'opt_init("third_party={packages}")'
        )


def _is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def find(module: str, name: str, allowed: Allowed) -> type[torch.optim.Optimizer]:
    """Return an optimizer's class of a module, which is imported where that is allowed.

    Raises:
        SpecError: it is not allowed, or there is none.
    """
    check_allowed(module, allowed)
    try:
        if not hasattr(importlib.import_module(module), name):
            check_name(name, classes_in(module), f"optimizer in {module}")
        found = getattr(sys.modules[module], name)
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, ModuleNotFoundError):
            reason += f", in the environment {sys.prefix}"
        raise SpecError(f"{module}:{name} cannot be imported: {reason}") from error
    if not _is_optimizer(found):
        raise SpecError(f"{module}:{name} is not a torch.optim.Optimizer")
    return found


def classes_in(module: str) -> list[str]:
    """Return the names of the optimizers of a module that is imported, without those that are torch's."""
    return [
        name
        for name, value in vars(sys.modules[module]).items()
        if _is_optimizer(value)
        and not value.__module__.startswith("torch.")
        and not (name.startswith("_") or inspect.isabstract(value))
    ]


def classes_of(allowed: Allowed) -> list[str]:
    """Return the classes of the packages that a host has named, as specs name them; they are imported."""
    found = []
    for package in allowed if isinstance(allowed, tuple) else ():
        try:
            importlib.import_module(package)
        except Exception as error:
            warn(f"third_party: {package} cannot be imported: {str(error) or type(error).__name__}")
        else:
            found += [f"{package}:{name}" for name in classes_in(package)]
    return found


def like(name: str, allowed: Allowed) -> list[str]:
    """Return what may be meant by the name of a class that is none of torch's, with its module.

    Nothing is imported: most installed packages name their classes in the text of their first file.
    """
    packages = {**dict.fromkeys(allowed if isinstance(allowed, tuple) else (), ""), **_KNOWN}
    found = []
    for package, some in packages.items():
        names = set(re.findall(r"\b[A-Z]\w+", f"{_source(package)} {some}"))
        found += [f"{package}:{near}" for near in nearest(name, names, 0.8)[:1]]
    return sorted(found, key=lambda f: f.partition(":")[2] != name)[:3]


def _source(package: str) -> str:
    """Return the text of a package's first file; "" where that is not installed."""
    top, *inner = package.split(".")
    try:
        origin = importlib.util.find_spec(top)
        if origin is None or not origin.origin:
            return ""
        path = pathlib.Path(origin.origin)
        if inner:
            path = path.parent.joinpath(*inner, "__init__.py")
        return path.read_text(errors="replace")
    except (OSError, ValueError):
        return ""


def _is_optimizer(value: object) -> bool:
    """Tell whether something is a class of optimizers; some that wrap one are none of torch's."""
    if not isinstance(value, type):
        return False
    return issubclass(value, torch.optim.Optimizer) or all(hasattr(value, name) for name in _METHODS)


# ---- constructors ----


def _parameters(class_: type) -> list[Parameter]:
    return list(signature_of(class_).parameters.values())


def supplied(class_: type, has_optimizer: bool = True) -> list[str]:
    """Return the arguments of a constructor that we have: parameters, as such, with names, or in a model.

    They come first, but for a model, which may come later.  A class that wraps an optimizer may have none.

    Args:
        has_optimizer: whether a spec has one; some classes take parameters in its place.
    """
    found = [
        p.name
        for p in _parameters(class_)
        if p.name in ("params", *_MODELS, *_NAMED) and p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    first = next(iter(_parameters(class_)), None)
    if first is None or first.name in found:
        return found
    needs_optimizer = has_optimizer or "Iterable" not in str(first.annotation)
    return found if needs_optimizer and takes_optimizer(class_, first.name) else [first.name, *found]


def options(class_: type) -> set[str]:
    """Return the names of the arguments that a spec may have for a class."""
    return {p.name for p in _parameters(class_) if p.kind < p.VAR_KEYWORD} - {*supplied(class_)}


def takes_optimizer(class_: type, name: str) -> bool:
    """Tell whether an argument is an optimizer, or a class of them, that the class is to wrap."""
    p = signature_of(class_).parameters.get(name)
    is_value = p is not None and not isinstance(p.default, type | None)
    annotation = "" if p is None else str(p.annotation)
    return ("optim" in name.lower() or "Optimizer" in annotation) and not is_value


def are_in_groups(names: Iterable[str]) -> bool:
    """Tell whether a constructor that gets these from us gets parameters that may be in groups."""
    return any(name not in _MODELS | _NAMED for name in names)


def of_parameters(name: str, groups: list[dict[str, Any]], params: Any) -> Any:
    """Return what an argument that we have is to be.

    Args:
        groups: the parameters, with their names.
        params: the same as the class takes them where it wants no names.
    """
    pairs = [pair for group in groups for pair in group["params"]]
    if name in _MODELS:
        return module_of(pairs)
    return pairs if name in _NAMED else params


def mentions(class_: type, name: str) -> bool:
    """Tell whether the modules of a class outside torch, and of its bases, have a name in quotes."""
    modules = {base.__module__ for base in class_.__mro__}
    for module in (m for m in modules if not m.startswith(("torch.", "builtins"))):
        try:
            source = inspect.getsource(sys.modules[module])
        except (OSError, TypeError):
            return True  # nobody can tell
        if re.search(rf"""['"]{re.escape(name)}['"]""", source):
            return True
    return False
