"""Reductions over vectors whose parts lie on ranks: what LBFGS and clipping ask of whole vectors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from optplug.torch_private import pop_function_mode, push_function_mode
from optplug.world import World


def add(values: Iterable[float]) -> float:
    """Add up numbers one by one: the same bits on every machine."""
    total = 0.0
    for value in values:
        total += value
    return total


def largest(values: Iterable[float]) -> float:
    """Return the largest number; nan if one is."""
    values = list(values)
    return math.nan if any(v != v for v in values) else max(values)


def norm(norms: Iterable[float], norm_type: float) -> float:
    """Return the norm of a vector whose parts have these."""
    norms = list(norms)
    top = largest(norms)
    if norm_type == math.inf or not 0 < top < math.inf:
        return top
    ratios = [n / top for n in norms]
    if norm_type == 2:  # without pow, whose last bits are each library's own
        return top * math.sqrt(add(ratio * ratio for ratio in ratios))
    return top * add(ratio**norm_type for ratio in ratios) ** (1 / norm_type)


class OverRanks(TorchFunctionMode):
    """Lets torch.optim.LBFGS's scalar products, sums and maxima be those of all ranks' parts.

    All else that it does is done value by value, or to such scalars, and so is the same.  Anything else that
    makes a scalar of a vector is an error: a later torch may ask for one.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        # A difference of vectors; once multiplied by another one, its product with itself, and its version.
        self._difference: Tensor | None = None
        self._square: Tensor | None = None
        self._version = 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if not args or not isinstance(args[0], Tensor) or args[0].dim() != 1:
            return function(*args, **given)
        is_plain = len(args) == 1 and not given
        if function is Tensor.dot and not given:
            return self._dot(*args)
        if function is Tensor.sum and is_plain:
            return self._reduced(function(args[0]), add)
        if function is Tensor.max and is_plain:
            part = args[0]
            return self._reduced(function(part) if part.numel() else part.new_full((), -math.inf), largest)
        result = function(*args, **given)
        if isinstance(result, Tensor) and result.dim() == 0:
            name = getattr(function, "__name__", function)
            raise RuntimeError(
                f"this PyTorch's LBFGS calls {name}, which optplug does not know how to compute over ranks: "
                "use another version of PyTorch"
            )
        if function is Tensor.sub:
            self._difference, self._square = result, None
        return result

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply two vectors; a difference by itself as well, which LBFGS asks for next."""
        if a is not self._difference:
            return self._reduced(a.dot(b), add)
        if a is not b:
            part = a.dot(b)
            rows = self._world.share(part.item(), a.dot(a).item())
            product, self._square = (part.new_tensor(add(column)) for column in zip(*rows, strict=True))
            self._version = a._version
            return product
        if self._square is None or self._version != a._version:
            return self._reduced(a.dot(a), add)
        return self._square

    def _reduced(self, part: Tensor, reduce: Callable[[Iterable[float]], float]) -> Tensor:
        value = part.item()
        return part.new_tensor(reduce(v for (v,) in self._world.share(value)))

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Let a block be as if this were not on."""
        mode = pop_function_mode()
        try:
            yield
        finally:
            push_function_mode(mode)
