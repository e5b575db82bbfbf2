"""All hyperparameters as one number, by which ranks see that theirs are alike."""

from __future__ import annotations

import functools
import hashlib
import itertools
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Groups = list[dict[str, Any]]

_MASK = (1 << 64) - 1
# What each rank has of its own: its parameters, and the implementation that its arrays allow.
_OWN = {"params", "param_names", "fused", "foreach"}


def told(groups: Groups) -> dict[str, Any]:
    """Return all hyperparameters by name and group, as JSON can have them."""
    return {
        f"{name} of group {i}": value + 0.0 if _is_number(value) else repr(value)
        for i, name, value in _entries(groups)
    }


def _entries(groups: Groups) -> Iterator[tuple[int, str, Any]]:
    for i, group in enumerate(groups):
        for key, value in group.items():
            if key in _OWN:
                continue
            if isinstance(value, tuple | list):
                yield from ((i, f"{key}[{j}]", v) for j, v in enumerate(value))
            else:
                yield i, key, value


class Digest:
    """The digest of an optimizer's groups, kept until one of their values changes."""

    def __init__(self) -> None:
        self._known: list[Any] = []
        self._digest = 0

    def of(self, groups: Groups) -> int:
        """Return the digest: the sum of those of all hyperparameters, in any order."""
        values = [(type(v), v) for group in groups for k, v in group.items() if k not in _OWN]
        if values != self._known:
            self._known, self._digest = values, sum(itertools.starmap(_one, _entries(groups))) & _MASK
        return self._digest


class Stated:
    """The digest for C, which changes some hyperparameters by itself: their places in a plan, and the rest.

    Args:
        rest: becomes the digest of all that C does not change; C reads it for as long as it has the plan.
        places: returns which of a plan's scalars are a hyperparameter of a group.
    """

    def __init__(
        self,
        groups: Groups,
        rest: np.ndarray[Any, Any],
        places: Callable[[dict[str, Any], str], list[int]],
    ) -> None:
        self._groups, self._rest = groups, rest
        self._moving = [
            (i, name, found[0])
            for i, name, value in _entries(groups)
            if _is_number(value) and (found := places(groups[i], name))
        ]
        self.seeds = [_seed(i, name) for i, name, _ in self._moving]
        self.places = [place for _, _, place in self._moving]
        self.refresh()

    def refresh(self) -> None:
        """Take over hyperparameters that have changed by Python."""
        moving = {(i, name) for i, name, _ in self._moving}
        rest = (_one(*entry) for entry in _entries(self._groups) if entry[:2] not in moving)
        self._rest[0] = sum(rest) & _MASK


def _one(group: int, name: str, value: Any) -> int:
    bits = struct.pack("<d", value + 0.0) if _is_number(value) else _hash(repr(value))
    return _mixed(_seed(group, name) ^ int.from_bytes(bits, "little"))


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 1 << 53)


@functools.lru_cache(1 << 12)
def _seed(group: int, name: str) -> int:
    return int.from_bytes(_hash(f"{group} {name}"), "little")


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:8]


def _mixed(x: int) -> int:
    """Mix 64 bits, as csrc/ranks.c does: the end of splitmix64."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31
