"""A class of `somebodys`, or of a file like it, over arrays of a host, and the same in PyTorch alone."""

from __future__ import annotations

import numpy as np
import torch

import autograd_held
import holders
import lying_held
import somebodys
import tools_held
import views_held
from optplug.ctypes_api import Optimizer

SHAPES = (5, 3), (4,)


def module_of(name: str):
    return next(
        module
        for module in (holders, lying_held, tools_held, views_held, autograd_held, somebodys)
        if hasattr(module, name)
    )


def written(arguments: dict[str, object] | None) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in (arguments or {}).items())


def drawn(seed: int, order: str = "C", dtype: str = "float32") -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [np.asarray(generator.standard_normal(shape), dtype=dtype, order=order) for shape in SHAPES]


class Hosted:
    """A class by its name, over two arrays of the host's."""

    def __init__(self, name, order="C", dtype="float32", group=None, groups=None, **arguments):
        self.order, self.dtype = order, dtype
        self.values = drawn(0, order, dtype)
        self.grads = [np.zeros_like(v) for v in self.values]
        self.opt = Optimizer(f"{module_of(name).__name__}:{name}({written(arguments)})")
        groups = groups or [{}, group or {}]
        for i, (value, grad) in enumerate(zip(self.values, self.grads, strict=True)):
            if groups[i:] and groups[i]:
                self.opt.group(written(groups[i]))
            self.opt.bind(f"w{i}", value, grad)

    def fill(self, i: int) -> float:
        """Put a gradient into the arrays, as a host would, that depends on the values there."""
        for grad, value, new in zip(self.grads, self.values, drawn(10 + i), strict=True):
            grad[...] = new.astype(self.dtype) + value
        return float(sum(torch.from_numpy(v).abs().sum() for v in self.values))


class Plain:
    """The same class in PyTorch alone."""

    def __init__(self, name, order="C", dtype="float32", group=None, groups=None, **arguments):
        self.order, self.dtype = order, dtype
        self.tensors = [torch.nn.Parameter(torch.from_numpy(v)) for v in drawn(0, order, dtype)]
        options = groups or [{}, *[group or {}] * (len(SHAPES) - 1)]
        given = [{"params": [p], **o} for p, o in zip(self.tensors, options, strict=True)]
        self.opt = getattr(module_of(name), name)(given if group or groups else self.tensors, **arguments)

    def fill(self, i: int) -> torch.Tensor:
        for p, new in zip(self.tensors, drawn(10 + i), strict=True):
            grad = new.astype(self.dtype) + p.detach().numpy()
            p.grad = torch.from_numpy(np.array(grad, order=self.order))
        return sum(p.detach().abs().sum() for p in self.tensors)

    @property
    def values(self) -> list[np.ndarray]:
        return [p.detach().numpy() for p in self.tensors]


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
