"""The random numbers that classes outside torch draw: a stream of each optimizer's own.

Torch, Python and numpy each have one generator that everybody in the process draws from, and so does each
GPU.  While such a class has its turn, they have the state of its optimizer's stream; after that, and while a
function of the host's runs, they have the host's again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug.checks import check_count, check_tensor, is_number
from optplug.generators import SHARED, Generator, Own, of_gpu, plain
from optplug.spec import shown

# ---- which classes draw ----

_seen: dict[type, set[str]] = {}  # drawing, where their code does not say so

#: Names by which torch draws, whatever they are of.
_DRAWING = re.compile(
    r"_?(rand(?!om$).*|.*normal_?|uniform_?|bernoulli_?|multinomial|exponential_|cauchy_|geometric_|poisson|binomial"
    r"|.*dropout.*|rrelu_?|.*lowrank|init|kaiming_.*|xavier_.*|orthogonal_|r?sample|Generator|.*seed"
    r"|.*rng_state|default_generator|Linear|Bilinear|Embedding|Conv\w*|\w*RNN\w*|LSTM\w*|GRU\w*)"
)


def drawn_by(class_: type) -> set[str]:
    """Return the names of the generators that a class may draw from, by its code and by what was seen."""
    known = _seen.get(class_)
    return _seen.setdefault(class_, set(_said_by(class_))) if known is None else known


@functools.cache
def _said_by(class_: type) -> frozenset[str]:
    """Read the code of a class that its steps may run, and of what that uses, as far as it is somebody's.

    A method is run if code that may be run has its name.
    """
    found: set[str] = set()
    known: set[int] = set()
    names = {"step", "train", "eval"}
    methods: dict[str, list[Any]] = {}  # of the classes that are used, and not run yet
    to_read: list[Any] = [class_]
    while to_read:
        value = to_read.pop()
        if id(value) not in known:
            known.add(id(value))
            if isinstance(value, staticmethod | classmethod):
                to_read.append(value.__func__)
            elif isinstance(value, property):
                to_read += [value.fget, value.fset]
            elif isinstance(value, functools.partial):
                to_read.append(value.func)
            elif isinstance(value, type) and _is_somebodys(value.__module__):
                for base in value.__mro__:
                    for name, member in vars(base).items():
                        methods.setdefault(name, []).append(member)
            elif isinstance(value, FunctionType) and _is_somebodys(value.__module__):
                used = set(_names(value.__code__))
                names |= used
                to_read += _read(value, used, found)
        if not to_read:
            run = [name for name in methods if name in names or name.startswith("__")]
            to_read += [member for name in run for member in methods.pop(name)]
    return frozenset(found)


def _is_somebodys(module: str | None) -> bool:
    """Tell whether a module is neither torch's nor numpy's nor Python's."""
    package = (module or "").partition(".")[0]
    return package not in ("torch", "numpy", "optplug") and package not in sys.stdlib_module_names - {"test"}


def _read(function: FunctionType, names: set[str], found: set[str]) -> Iterator[Any]:
    """Note what a function's code, with these names in it, says of generators; yield what else it uses."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is empty yet
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield getattr(function, "__wrapped__", None)
    used = [function.__globals__[name] for name in names if name in function.__globals__]
    for value in used:
        if isinstance(value, ModuleType) and _is_somebodys(value.__name__):
            yield from (vars(value)[name] for name in names if name in vars(value))
        else:
            yield value
    if any(map(_DRAWING.fullmatch, names)):
        found.add("torch")
    owners = [getattr(value, "__self__", None) for value in used]
    is_imported_there = "random" in names and "random" not in function.__globals__
    if random in used or is_imported_there or any(isinstance(o, random.Random) for o in owners):
        found.add("python")
    has_numpy = np in used or "numpy" in names
    if (has_numpy and "random" in names) or np.random in used or np.random.mtrand._rand in owners:
        found.add("numpy")


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names in a function's code, and the words that may be names."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
        elif isinstance(constant, str):
            yield from constant.split(".")


# ---- an optimizer's stream ----


class _Turns:
    """Whose turn the shared generators are, in this process: a child of fork begins anew."""

    def __init__(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()

    def take(self) -> None:
        if self._process != os.getpid():
            self._process, self._lock = os.getpid(), threading.Lock()
        self._lock.acquire()

    def give(self) -> None:
        if self._process == os.getpid() and self._lock.locked():
            self._lock.release()


_turns = _Turns()


class _Turn:
    """A block that draws from a stream: no generator's context, which takes longer."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._before = stream, stream.marks()

    def __enter__(self) -> None:
        self._stream.enter()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stream.leave()
        if kind is not None:
            self._stream.go_back(self._before)


class Stream:
    """The random numbers of one optimizer of a class outside torch.

    Args:
        classes: the optimizer's, and those of the ones that it wraps.
        seed: what torch's, Python's and numpy's generators begin with.
        parameters: returns its parameters, another list whenever one is bound.
        gpus: returns those that they are on.
    """

    def __init__(
        self,
        classes: list[type],
        seed: int,
        parameters: Callable[[], Sequence[Tensor]],
        gpus: Callable[[], Iterable[int]],
    ) -> None:
        self._classes, self._parameters, self._gpus = classes, parameters, gpus
        #: What it began with.
        self.seed = seed
        self._own: dict[str, Own] = {}  # where its generators are, as far as it has drawn
        self._taken: list[Own] | None = None  # those that are in place, while this one has its turn
        self._sees_all = False
        self._before: dict[str, Any] = {}  # where they were, then
        self._known: tuple[Sequence[Tensor], int, dict[str, Generator]] = (), -1, {}

    @property
    def is_drawn_from(self) -> bool:
        """Whether the class may draw random numbers."""
        return any(self._drawn)

    @functools.cached_property
    def _drawn(self) -> list[set[str]]:
        return list(map(drawn_by, self._classes))  # the sets themselves, which grow by what is seen

    @property
    def sources(self) -> dict[str, Generator]:
        """The generators that it draws from."""
        parameters, count = self._parameters(), sum(map(len, self._drawn))
        if self._known[0] is not parameters or self._known[1] != count:
            self._known = parameters, count, self._generators(set().union(*self._drawn))
        return self._known[2]

    def _generators(self, shared: Iterable[str]) -> dict[str, Generator]:
        found = {name: generator for name, generator in SHARED.items() if name in shared}
        if "torch" in found:
            found |= {f"cuda:{i}": of_gpu(torch.device("cuda", i)) for i in sorted(self._gpus())}
        return found

    def restart(self) -> None:
        """Begin with the seed again, for another optimizer."""
        self._own = {}

    def current(self, sees_all: bool = False) -> contextlib.AbstractContextManager[None]:
        """Let a block draw from this stream; if it fails, it has drawn nothing.

        Args:
            sees_all: whether to see what the block draws from, which its code may not say.
        """
        if self._taken is not None or not (sees_all or self.is_drawn_from):
            return contextlib.nullcontext()
        self._sees_all = sees_all
        return _Turn(self)

    @contextlib.contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """Let a block that fails leave the stream where it is."""
        before, seed = self.marks(), self.seed
        try:
            yield
        except BaseException:
            self.go_back(before)
            self.seed = seed
            raise

    def marks(self) -> dict[str, tuple[Own, Any]]:
        """Return what tells where it is."""
        return {name: (own, own.mark()) for name, own in self._own.items()}

    def go_back(self, marks: dict[str, tuple[Own, Any]]) -> None:
        """Return to where it was."""
        self._own = {name: own for name, (own, _) in marks.items()}
        for own, mark in marks.values():
            own.go_back(mark)

    def enter(self) -> None:
        """Take the generators from the host."""
        generators = self._generators(SHARED) if self._sees_all else self.sources
        _turns.take()
        taken = []
        for name, generator in generators.items():
            own = self._own.get(name)
            if own is None:
                own = self._own[name] = generator.own(generator.seeded(self.seed))
            if self._sees_all:
                self._before[name] = plain(own.state())
            taken.append(own)
        for own in taken:
            own.enter()
        self._taken = taken

    def leave(self) -> None:
        """Give them back."""
        assert self._taken is not None
        taken, self._taken = self._taken, None
        for own in taken:
            own.leave()
        if self._sees_all:
            now = {name: plain(own.state()) for name, own in self._own.items() if name in SHARED}
            drawn_by(self._classes[0]).update({name for name in now if now[name] != self._before[name]})
        _turns.give()

    def aside(self, function: Callable[[], float]) -> float:
        """Call a function of the host's, which draws from the host's generators."""
        if self._taken is None:
            return function()
        self.leave()
        try:
            return function()
        finally:
            self.enter()

    # ---- in checkpoints ----

    def state_dict(self) -> dict[str, Any] | None:
        """Return where it is, as plain values and tensors; None if the class draws nothing."""
        sources = self.sources
        if not sources:
            return None
        own = self._own
        found = {n: own[n].state() if n in own else g.seeded(self.seed) for n, g in sources.items()}
        return {"seed": self.seed, **{name: _written(state) for name, state in found.items()}}

    def read(self, saved: Any) -> Callable[[], None]:
        """Check what `state_dict` returned, and return a function that lets the stream go on from there.

        Raises:
            ValueError: it is no such thing.
        """
        if type(saved) is not dict or not all(type(name) is str for name in saved):
            raise ValueError("not a checkpoint: its random numbers are malformed")
        seed = check_count("the seed of its random numbers", saved["seed"])
        known = self._generators(SHARED)
        names = [name for name in saved if name != "seed" and not name.startswith("cuda:")]
        for name in names:
            if name not in known:
                raise ValueError(f"not a checkpoint: it has random numbers of {shown(name)}")
        found = {
            name: _checked(name, saved[name]) for name in saved if name in known
        }  # of another GPU: left out

        def go_on() -> None:
            drawn_by(self._classes[0]).update(names)
            self.seed = seed
            self._own = {name: known[name].own(state) for name, state in found.items()}

        return go_on


def _written(state: Any) -> Any:
    """Return a generator's state as a file can have it."""
    if isinstance(state, Tensor):
        return state
    if state[0] == "MT19937":
        _, keys, *rest = state
        return [torch.from_numpy(keys.astype(np.int64)), *rest]
    version, keys, gauss = state
    return [version, torch.tensor(keys, dtype=torch.int64), gauss]


def _checked(name: str, saved: Any) -> Any:
    """Return a state that a file has, once a generator has taken it, or raise ValueError."""
    what = f"its random numbers of {name}"
    try:
        if name == "python":
            version, keys, gauss = saved
            keys = check_tensor(what, keys, torch.int64, (625,)).tensor().tolist()
            state: Any = (version, tuple(keys), gauss)
            random.Random().setstate(state)  # noqa: S311
            if not (gauss is None or is_number(gauss)):
                raise ValueError(f"gauss is {shown(gauss)}")
        elif name == "numpy":
            keys, place, has_gauss, gauss = saved
            keys = check_tensor(what, keys, torch.int64, (624,)).tensor().numpy().astype(np.uint32)
            if not 0 <= check_count(what, place) <= 624:  # which numpy does not look at
                raise ValueError(f"place {place}")
            state = ("MT19937", keys, place, has_gauss, gauss)
            np.random.RandomState().set_state(state)
        else:
            generator = torch.Generator(name if name != "torch" else "cpu")
            state = check_tensor(what, saved, torch.uint8, generator.get_state().shape).tensor()
            generator.set_state(state)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be resumed: {error}") from error
    return state
