"""What the tests of messages share: every class of PyTorch's, and an optimizer to ask."""

from __future__ import annotations

import inspect
import re

import numpy as np
import torch
from torch.optim import lr_scheduler, swa_utils

from optplug import ctypes_api

lib = ctypes_api.load()

OPTIMIZERS = {n: c for n, c in vars(torch.optim).items() if inspect.isclass(c) and n != "Optimizer"}

SCHEDULERS = {n: getattr(lr_scheduler, n) for n in lr_scheduler.__all__ if n != "LRScheduler"} | {
    "SWALR": swa_utils.SWALR
}

CLASSES = {**OPTIMIZERS, **SCHEDULERS, "AveragedModel": swa_utils.AveragedModel}


class Bound:
    """An optimizer of two parameters, in two groups."""

    def __init__(self, spec: str = "SGD(lr=0.5, momentum=0.5)") -> None:
        self.arrays = np.ones((4, 3))
        self.opt = lib.opt_create(spec.encode())
        assert self.opt > 0, lib.opt_error()
        for name in ("w", "v"):
            assert lib.opt_group(self.opt, b"") == 0
            data, grad = (self.arrays[i].ctypes.data for i in ("wv".index(name), 2 + "wv".index(name)))
            assert lib.opt_bind(self.opt, name.encode(), b"float64", 3, data, grad) == 0

    def describe(self) -> str:
        return lib.opt_describe(self.opt).decode()

    def close(self) -> None:
        assert lib.opt_free(self.opt) == 0


def made(text: str) -> str:
    """Return what opt_describe says of an optimizer, or "" with the error."""
    opt = lib.opt_create(text.encode())
    if opt < 0:
        return ""
    described = lib.opt_describe(opt).decode()
    assert lib.opt_free(opt) == 0
    return described


# ---- wrong arguments ----

# What Python and torch say to their own developers.
INSIDES = re.compile(
    r"not supported between|unsupported operand|object (is|has|cannot)|NoneType|ellipsis|must be \w+, not"
    r"|positional argument(?! follows)|unexpected keyword|object of type|concatenate|multiply sequence|unpack"
    r"|\.py\b|aten::|tuple of Tensors|Call\(|\bat 0x|<class|<function|<torch|Error: |division by zero"
)
