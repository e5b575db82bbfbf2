"""What a spec says: a class, its arguments, and what optimizers made so can do."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optplug import methods, outside, spec
from optplug.arguments import check_kinds
from optplug.buffers import is_dense, same_order
from optplug.errors import warn
from optplug.kinds import Grad
from optplug.lean import bare_step, lean
from optplug.outside import Allowed
from optplug.spec import Call, Name, SpecError, shown
from optplug.torch_private import grad_mode

#: Torch's implementations of a step: no hyperparameters, but in the groups beside them.
IMPLEMENTATIONS = ("fused", "foreach", "capturable", "differentiable")
_CONSTANT = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype})
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


@functools.cache
def classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Return the optimizers of torch by name, each made `lean`."""
    return {
        name: lean(value)  # type: ignore[arg-type]
        for name, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }


@dataclass(frozen=True, repr=False)
class Recipe:
    """A class and its arguments, as a spec has them; see `read`."""

    class_: type[torch.optim.Optimizer]
    #: Values, or classes and recipes of optimizers that it wraps.
    arguments: dict[str, Any]
    #: Whether a step wants a closure.
    needs_closure: bool
    #: Whether it is of torch.optim.
    is_torchs: bool
    #: Whether the spec says fused=True; whether fused kernels may be chosen, since it says nothing.
    must_fuse: bool
    may_fuse: bool
    #: The constructor's arguments that we have: see `outside.supplied`.
    supplied: tuple[str, ...] = ("params",)
    #: Whether its groups may have the parameters' names in them; some classes take that for an option.
    names_groups: bool = True
    #: Which classes outside torch its groups may name as well.
    third_party: Allowed = False
    #: Where the spec says that the class is, if it is outside torch.
    module: str = ""

    def __repr__(self) -> str:
        shown_ = {
            k: Name(v.__name__, v.__module__) if isinstance(v, type) else v for k, v in self.arguments.items()
        }
        return repr(Call(self.name, (), shown_, self.module))

    @functools.cached_property
    def name(self) -> str:
        """The class's name."""
        return self.class_.__name__

    @property
    def title(self) -> str:
        """The class's name, and those of the classes that it wraps: "Lookahead(SGD)"."""
        inner = [v.title if isinstance(v, Recipe) else v.__name__ for v in self._inner().values()]
        return f"{self.name}({', '.join(inner)})" if inner else self.name

    @property
    def called(self) -> str:
        """Its title, with the module that the spec gives it."""
        return f"{self.module}{':' * bool(self.module)}{self.title}"

    def _inner(self) -> dict[str, Recipe | type]:
        """Return the optimizers that it wraps, by the arguments that they are."""
        return {name: v for name, v in self.arguments.items() if isinstance(v, Recipe | type)}

    def all_classes(self) -> list[type]:
        """Return its class, and those of all that it wraps."""
        inner = (v.all_classes() if isinstance(v, Recipe) else [v] for v in self._inner().values())
        return [self.class_, *(class_ for more in inner for class_ in more)]

    def wrapped(self) -> dict[str, Recipe]:
        """Return the optimizers that it gets ready made, by the arguments that they are."""
        return {name: v for name, v in self.arguments.items() if isinstance(v, Recipe)}

    @property
    def wraps(self) -> bool:
        """Whether it is made of another optimizer."""
        return bool(self._inner())

    def options(self) -> set[str]:
        """Return the names of all arguments that it, and what it wraps, are known to take."""
        found = outside.options(self.class_) | self.arguments.keys()
        for inner in self._inner().values():
            found |= inner.options() if isinstance(inner, Recipe) else outside.options(inner)
        return found

    def changed(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return its arguments with other values for options of its groups, which what it wraps goes by."""
        arguments = dict(self.arguments)
        for name, value in options.items():
            takers = [key for key, inner in self.wrapped().items() if name in inner.options()]
            for key in takers:
                inner = arguments[key]
                arguments[key] = dataclasses.replace(inner, arguments=inner.changed({name: value}))
            if not takers:
                arguments[name] = value
        return arguments

    @functools.cached_property
    def is_constant(self) -> bool:
        """Whether nobody can change anything of its arguments, so that optimizers may share it."""
        return all(map(_is_constant, self.arguments.values()))

    @functools.cached_property
    def _text(self) -> str:
        return repr(self.arguments)

    def text_of(self, arguments: dict[str, Any]) -> str:
        """Return arguments as text, which two have in common only if they are the same; its own at once."""
        return self._text if arguments is self.arguments and self.is_constant else repr(arguments)

    @functools.cached_property
    def is_lbfgs(self) -> bool:
        """Whether it puts all gradients into a row, and keeps one state for all parameters."""
        return issubclass(self.class_, torch.optim.LBFGS)

    def warn_of_unknown(self, names: Iterable[str]) -> None:
        """Warn of options that are no arguments of a class outside torch, and that nothing there mentions."""
        if self.is_torchs:
            return
        known = dataclasses.replace(self, arguments=self._inner()).options()
        for name in names:
            if name not in known and not outside.mentions(self.class_, name):
                warn(f"option {shown(name)}: nothing in {self.class_.__module__} mentions it")

    def warn_of_modes(self) -> None:
        """Warn where what it wraps has weights to evaluate that nobody can ask for."""
        for inner in self.wrapped().values():
            if methods.has(inner.class_) and not methods.has(self.class_):
                warn(
                    f"{self.name} has no train() and eval(), which the {inner.name} in it has, so "
                    "the weights to evaluate cannot be reached"
                )
            inner.warn_of_modes()

    def chosen(self) -> list[str]:
        """Return what the spec says of torch's implementations."""
        return [f"{name}={self.arguments[name]}" for name in IMPLEMENTATIONS if name in self.arguments]

    def build(
        self, groups: list[dict[str, Any]], arguments: dict[str, Any] | None = None
    ) -> torch.optim.Optimizer:
        """Return an optimizer with groups of named parameters, as torch takes them.

        A class outside torch gets them as most programs give them: see `_build_other`.

        Args:
            groups: each with its options.
            arguments: others than the spec's.
        """
        arguments = self.arguments if arguments is None else arguments
        return self.class_(groups, **arguments) if self.is_torchs else self._build_other(groups, arguments)

    def _build_other(self, groups: list[dict[str, Any]], arguments: dict[str, Any]) -> torch.optim.Optimizer:
        """Build an optimizer of a class outside torch, in training mode, if it has one.

        It gets parameters without names, and as a mere list where that is all and it takes one.
        """
        unnamed = [{**group, "params": [p for _, p in group["params"]]} for group in groups]
        is_list = len(unnamed) == 1 and len(unnamed[0]) == 1
        if not self.wrapped() and not outside.are_in_groups(self.supplied):
            options = {name: value for name, value in groups[0].items() if name != "params"}
            if len(groups) > 1 or options.keys() - self.options():
                what = self.supplied[0]
                raise SpecError(
                    f"{self.name} takes its parameters as {what}, without groups: leave out opt_group"
                )
            arguments = {**arguments, **options}
        try:
            made = self._called(groups, unnamed[0]["params"] if is_list else unnamed, arguments)
        except Exception:
            made = self._called(groups, unnamed, arguments)
        if not hasattr(made, "param_groups"):
            raise SpecError(f"{self.name} has no param_groups, in which optplug would find its parameters")
        names = {id(p): name for group in groups for name, p in group["params"]}
        for group in made.param_groups if self.names_groups else ():
            group["param_names"] = [names.get(id(p), "") for p in group["params"]]
        methods.begin(made)
        return made

    def _called(
        self, groups: list[dict[str, Any]], params: Any, arguments: dict[str, Any]
    ) -> torch.optim.Optimizer:
        """Call a constructor, with an optimizer for each that it wraps, or with what makes one."""
        plain = {k: copy.deepcopy(v) for k, v in arguments.items() if not isinstance(v, Recipe)}
        inner = {k: v for k, v in arguments.items() if isinstance(v, Recipe)}
        first, *others = self.supplied or [""]
        given = [outside.of_parameters(first, groups, params)] if first else []
        plain |= {name: outside.of_parameters(name, groups, params) for name in others}
        made: Any = self.class_
        try:
            built = {k: v.build([dict(group) for group in groups]) for k, v in inner.items()}
            return made(*given, **plain, **built)
        except TypeError as error:
            if not inner or "is not callable" not in str(error):
                raise
        return made(*given, **plain, **{k: v.maker() for k, v in inner.items()})

    def maker(self) -> functools.partial[torch.optim.Optimizer]:
        """Return what makes such an optimizer of the parameters and options that it gets."""
        return functools.partial(self.class_, **copy.deepcopy(self.arguments))

    def can_fuse(self, data: Tensor, grad: Grad) -> bool:
        """Tell whether the fused kernels step these arrays rightly.

        They run over both as if flat: where the layouts differ or have gaps, those for the CPU give wrong
        numbers and write outside of the array (torch 2.13), without an error.
        """
        return (
            isinstance(grad, Tensor)
            and data.is_floating_point()
            and ((data.is_contiguous() and grad.is_contiguous()) or _lie_alike(data, grad))
            and fuses_rightly(self.class_, data.dtype, data.device.type)  # type: ignore[arg-type]
        )

    def implementation(self, arrays: Iterable[tuple[Tensor, Grad]]) -> dict[str, Any]:
        """Choose the fused kernels if they step all rightly and the spec names no implementation.

        Args:
            arrays: those that are stepped.
        """
        if not self.may_fuse:
            return {}
        for data, grad in arrays:
            if not self.can_fuse(data, grad):
                return {}
        return {"fused": True}


def _lie_alike(data: Tensor, grad: Tensor) -> bool:
    """Tell whether two arrays have no gaps, and their elements in the same order."""
    return is_dense(data.shape, data.stride()) and same_order(data.shape, data.stride(), grad.stride())


@functools.cache
def fuses_rightly(class_: type[torch.optim.Optimizer], dtype: torch.dtype, device: str) -> bool:
    """Tell whether the fused kernels of a class step numbers of a dtype, by trying that out.

    That of SGD for the CPU in torch 2.13 leaves half-precision numbers as they are, 16 by 16, without an
    error.  On a GPU, where to look at the numbers would wait for it, only whether there are any is tried.
    """

    def step(fused: bool) -> Tensor:
        parameter = nn.Parameter(torch.ones(100, dtype=dtype, device=device))
        parameter.grad = torch.ones_like(parameter)
        optimizer = class_([parameter], lr=0.5, fused=fused)  # type: ignore[call-arg]
        with grad_mode(False):
            bare_step(class_)(optimizer)  # without hooks, which are for the host's steps
        return parameter.detach()

    try:
        made = step(True)
    except Exception:  # this torch has none
        return False
    return device != "cpu" or torch.allclose(step(False), made, rtol=0.05)


def read(text: str, third_party: Allowed) -> Recipe:
    """Read a spec; see `OptimizerOptions` for what classes outside torch it may name.

    Raises:
        ValueError: it cannot be read, names no optimizer, or has an argument of a wrong kind.
    """
    known = _read(text, third_party)
    if known.is_constant:
        return known
    return dataclasses.replace(known, arguments=copy.deepcopy(known.arguments))


def _is_constant(value: Any) -> bool:
    return type(value) in _CONSTANT or (type(value) is tuple and all(map(_is_constant, value)))


@functools.lru_cache(maxsize=100)
def _read(text: str, third_party: Allowed) -> Recipe:
    return _recipe_of(spec.parse(text), third_party)


def _recipe_of(call: Call, third_party: Allowed) -> Recipe:
    class_ = _find_class(call, third_party)
    is_torchs = class_ in classes().values()
    has_optimizer = any(isinstance(v, Call | Name) for v in (*call.args[:1], *call.kwargs.values()))
    supplied = ["params"] if is_torchs else outside.supplied(class_, has_optimizer)
    given = spec.check_arguments(class_, call, supplied)
    check_kinds(class_, given)
    arguments = {name: argument(class_, name, value, third_party) for name, value in given.items()}
    for key, inner in arguments.items():
        for name in arguments.keys() - outside.options(class_):
            if isinstance(inner, Recipe) and name in inner.options():
                raise SpecError(
                    f"{name} is an argument of {inner.name}: write it inside {key}={inner.name}(...)"
                )
    closure = spec.signature_of(class_.step).parameters.get("closure")
    return Recipe(
        class_,
        arguments,
        needs_closure=closure is not None and closure.default is closure.empty,
        is_torchs=is_torchs,
        must_fuse=is_torchs and bool(arguments.get("fused")),
        may_fuse=is_torchs
        and "fused" in spec.signature_of(class_).parameters  # type: ignore[arg-type]
        and not any(name in arguments for name in IMPLEMENTATIONS),
        supplied=tuple(supplied),
        third_party=third_party,
        module="" if is_torchs else call.module,
    )


def argument(class_: type[torch.optim.Optimizer], name: str, value: Any, third_party: Allowed) -> Any:
    """Return what an argument of a class is, for what a spec has for it.

    Raises:
        SpecError: it is a call or a name that stands for nothing there.
    """
    value = _with_dtypes(value)
    may_wrap = class_ not in classes().values() and outside.takes_optimizer(class_, name)
    if may_wrap and isinstance(value, Call | Name):
        return _optimizer(class_, name, value, third_party)
    if _has_call(value):
        raise SpecError(f"{name} must be a literal (a number, True, a tuple, ...), got {shown(value)}")
    return value


def _with_dtypes(value: Any) -> Any:
    """Return a value with torch's dtypes for their names."""
    if isinstance(value, Name) and value.module == "torch":
        spec.check_name(value.name, _DTYPES, "dtype of torch's")
        return _DTYPES[value.name]
    if isinstance(value, dict):
        return {_with_dtypes(k): _with_dtypes(v) for k, v in value.items()}
    return type(value)(map(_with_dtypes, value)) if isinstance(value, list | tuple) else value


def _optimizer(
    class_: type[torch.optim.Optimizer], name: str, value: Call | Name, third_party: Allowed
) -> Recipe | type:
    """Return the optimizer that a class is to wrap, or the class that it is to make one of."""
    try:
        if isinstance(value, Call):
            return _recipe_of(value, third_party)
        found = _find_class(value, third_party)
    except SpecError as error:
        raise SpecError(f"{name}={shown(value)}: {error}") from error
    if not outside.supplied(class_):
        raise SpecError(
            f"{name} must be an optimizer, {value}(...) with its arguments, got the class {value}"
        )
    return found


def _has_call(value: Any) -> bool:
    """Tell whether a value of a spec is a call or a name, or has one in it."""
    if isinstance(value, dict):
        return any(_has_call(v) for pair in value.items() for v in pair)
    return isinstance(value, Call | Name) or (isinstance(value, list | tuple) and any(map(_has_call, value)))


def find_class(text: str, third_party: Allowed) -> type[torch.optim.Optimizer]:
    """Return the class of a name as specs have it, ``"Adam"`` or ``"pytorch_optimizer:Lion"``.

    Raises:
        SpecError: there is none, or its module may not be imported.
    """
    return _find_class(spec.parse(f"{text}()"), third_party)


def _find_class(named: Call | Name, third_party: Allowed) -> type[torch.optim.Optimizer]:
    if named.module not in ("", *spec.MODULES):
        return outside.find(named.module, named.name, third_party)
    spec.check_name(named.name, classes(), "optimizer", lambda name: outside.like(name, third_party))
    spec.check_module(named, "torch.optim")
    return classes()[named.name]
