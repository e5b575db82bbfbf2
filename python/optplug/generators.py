"""The generators of random numbers that all in a process draw from, and other states for them.

To take a state of torch's generator, or to give it one, takes 8 us after a step; Python's take 25.  So where
that is proven to be the same, another generator takes the place of torch's, and Python's memory is copied.
"""

from __future__ import annotations

import contextlib
import functools
import random
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug._optplug import ffi
from optplug.torch_private import cell_of, default_cell, words_of

_WORDS = 624 * 4  # bytes of a Mersenne twister's numbers
# What torch has around them: where it is among them, and a float and a double in store.
_BEFORE, _AFTER = 20, 28


class Own(ABC):
    """A state of somebody's own, which a generator may have for a while."""

    @abstractmethod
    def enter(self) -> None:
        """Let the generator have it."""

    @abstractmethod
    def leave(self) -> None:
        """Let it have again what it had, and note where it is now."""

    @abstractmethod
    def mark(self) -> Any:
        """Return what tells where it is, while it is not in the generator."""

    @abstractmethod
    def go_back(self, mark: Any) -> None:
        """Return to where it was."""

    def state(self) -> Any:
        """Return the state as the generator's own functions have it."""
        return self.mark()


class _ByState(Own):
    """By the generator's functions."""

    def __init__(self, generator: Generator, state: Any) -> None:
        self._generator, self._state, self._others = generator, state, None

    def enter(self) -> None:
        self._others = self._generator.get()
        self._generator.put(self._state)

    def leave(self) -> None:
        self._state = self._generator.get()
        self._generator.put(self._others)

    def mark(self) -> Any:
        return self._state

    def go_back(self, mark: Any) -> None:
        self._state = mark


class Generator:
    """One that the process shares, by the functions that it has for that.

    Args:
        get, put: its state.
        seeded: returns the state that it has after a seed.
    """

    def __init__(
        self, get: Callable[[], Any], put: Callable[[Any], object], seeded: Callable[[int], Any]
    ) -> None:
        self.get, self.put, self.seeded = get, put, seeded

    def own(self, state: Any) -> Own:
        """Return a state of one's own."""
        return _ByState(self, state)


# ---- torch's ----


class _InPlace(Own):
    """Another generator of torch's, which takes the place of the one that all draw from."""

    def __init__(self, state: Tensor) -> None:
        self._generator = torch.Generator()
        self._own, self._cells, self._hosts = cell_of(self._generator)[0], _cells(), ffi.NULL
        words = words_of(self._generator) if _memory_tells() else 0
        self._memory = _memory_at(words - _BEFORE, _BEFORE + _WORDS + _AFTER) if words else None
        self.go_back(state)

    def enter(self) -> None:
        self._hosts = self._cells[0][0]
        for cell in self._cells:
            cell[0] = self._own

    def leave(self) -> None:
        for cell in self._cells:
            cell[0] = self._hosts

    def mark(self) -> Tensor:
        if self._memory is None or self._memory[:] != self._marked:
            self._note(self._generator.get_state())
        return self._mark

    def go_back(self, mark: Tensor) -> None:
        self._generator.set_state(mark)
        self._note(mark)

    def _note(self, mark: Tensor) -> None:
        self._mark, self._marked = mark, self._memory and self._memory[:]


def _memory_at(address: int, size: int) -> Any:
    return ffi.buffer(ffi.cast("char *", address), size)


def _cells() -> tuple[Any, Any]:
    """Return where C++ and Python have the generator that all draw from, as pointers to its address."""
    return default_cell(), cell_of(torch.default_generator)


def _draw(generator: torch.Generator | None = None) -> list[Tensor]:
    draws = (torch.rand, torch.randn, torch.randn, torch.randperm)
    return [draw(3, generator=generator) for draw in draws]


@functools.cache
def _has_place() -> bool:
    """Prove that another generator can take the place of torch's."""
    try:
        in_cpp, in_python = _cells()
        if in_cpp[0] != in_python[0]:
            return False
        seeded, twin = (torch.Generator().manual_seed(7) for _ in range(2))
        own, before, expected = _InPlace(seeded.get_state()), torch.default_generator.get_state(), _draw(twin)
        own.enter()
        try:
            drawn, there = _draw(), torch.default_generator.get_state()
        finally:
            own.leave()
        states = [
            (before, torch.default_generator.get_state()),
            (twin.get_state(), there),
            (there, own.mark()),
        ]
        return all(a.equal(b) for a, b in [*zip(drawn, expected, strict=True), *states])
    except (AttributeError, OSError):  # it has no such function, or is in no such file
        return False


@functools.cache
def _memory_tells() -> bool:
    """Prove that a generator's memory tells whether somebody has drawn from it."""
    generator = torch.Generator().manual_seed(7)
    if not (words := words_of(generator)):
        return False
    memory = _memory_at(words - _BEFORE, _BEFORE + _WORDS + _AFTER)
    for draw in (torch.rand, torch.randn, torch.randn, torch.randperm):
        for dtype in (torch.float32, torch.float64):
            before, state = memory[:], generator.get_state()
            if memory[:] != before:
                return False
            draw(1 if draw is torch.randn else 3, generator=generator, dtype=dtype)
            if memory[:] == before or generator.get_state().equal(state):
                return False
    return True


# ---- Python's ----


class _Pythons(Own):
    """By the memory of Python's generator, which nobody else runs in, and its next number of a pair."""

    def __init__(self, state: Any) -> None:
        self._shared: Any = random._inst
        self._memory = _memory_of(self._shared)
        self.go_back(_taken(random.Random(), state))  # noqa: S311 (the host's kind)
        self._hosts: tuple[bytes, float | None] = self._mark

    def enter(self) -> None:
        self._hosts = self._memory[:], self._shared.gauss_next
        self._memory[:], self._shared.gauss_next = self._mark

    def leave(self) -> None:
        self._mark = self._memory[:], self._shared.gauss_next
        self._memory[:], self._shared.gauss_next = self._hosts

    def mark(self) -> tuple[bytes, float | None]:
        return self._mark

    def go_back(self, mark: tuple[bytes, float | None]) -> None:
        self._mark = mark

    def state(self) -> Any:
        twin: Any = random.Random()  # noqa: S311
        _memory_of(twin)[:], twin.gauss_next = self._mark
        return twin.getstate()


def _memory_of(generator: Any) -> Any:
    """Return what its object has after Python's header: where it is among the numbers, and these."""
    return _memory_at(id(generator) + object.__basicsize__, 4 + _WORDS)


def _taken(generator: Any, state: Any) -> tuple[bytes, float | None]:
    generator.setstate(state)
    return _memory_of(generator)[:], generator.gauss_next


@functools.cache
def _has_memory() -> bool:
    """Prove that the memory of Python's generator is its state."""
    if not hasattr(random, "_inst") or random.Random.__basicsize__ < object.__basicsize__ + 4 + _WORDS:
        return False
    if getattr(random.random, "__self__", None) is not random._inst:
        return False
    generator: Any = random.Random(7)  # noqa: S311
    for draw in (generator.random, lambda: generator.gauss(0, 1), generator.random):
        draw()
        _, (*words, place), gauss = generator.getstate()
        memory = struct.pack("=i624I", place, *words), gauss
        if (_memory_of(generator)[:], generator.gauss_next) != memory:
            return False
    return True


# ---- all of them ----


class _Torchs(Generator):
    def own(self, state: Any) -> Own:
        return _InPlace(state) if _has_place() else super().own(state)


class _OfPython(Generator):
    def own(self, state: Any) -> Own:
        return _Pythons(state) if _has_memory() else super().own(state)


#: By their names.
SHARED = {
    "torch": _Torchs(
        torch.default_generator.get_state,
        torch.default_generator.set_state,
        lambda seed: torch.Generator().manual_seed(seed).get_state(),
    ),
    "python": _OfPython(random.getstate, random.setstate, lambda seed: random.Random(seed).getstate()),  # noqa: S311 - the host's kind
    "numpy": Generator(
        lambda: np.random.get_state(),  # which loads numpy's generators, when somebody draws
        lambda state: np.random.set_state(state),
        lambda seed: np.random.RandomState(seed).get_state(),
    ),
}


def of_gpu(device: torch.device) -> Generator:
    """Return a GPU's."""
    return Generator(
        functools.partial(torch.cuda.get_rng_state, device),
        functools.partial(torch.cuda.set_rng_state, device=device),
        lambda seed: torch.Generator(device).manual_seed(seed).get_state(),
    )


def states() -> dict[str, Any]:
    """Return the states of the generators that the process shares, to be compared."""
    return {name: plain(generator.get()) for name, generator in SHARED.items()}


def plain(state: Any) -> Any:
    """Return a state that can be compared."""
    if isinstance(state, Tensor):
        return state.numpy().tobytes()
    if state[0] == "MT19937":
        return (state[1].tobytes(), *state[2:])
    return state


@contextlib.contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Let what draws random numbers of torch's, Python's or numpy's leave the next ones as they would be."""
    before = {name: generator.get() for name, generator in SHARED.items()}
    try:
        yield
    finally:
        for name, state in before.items():
            SHARED[name].put(state)
