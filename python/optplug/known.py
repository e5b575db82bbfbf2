"""Which of torch's own functions are those that something of ours was written beside, and may stand in for.

Of an unknown one nothing is left out or replaced: that takes longer, and nothing else.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from typing import Any

from optplug.parsing import parse

# What they were in torch 2.11 to 2.15.
_PRINTS = frozenset(
    {
        "e3fa7ce372bfa300",  # Optimizer.profile_hook_step
        "2295ed2f5609737a",  # the same as Python 3.10 writes it
        "fb8d29396ae13b8b",  # optimizer._use_grad_for_differentiable
        "2c69d70fbd6e4cff",  # _compile._disable_dynamo
        "73116806a84ff273",  # LBFGS._gather_flat_grad, until 2.14 had maximize
        "60684203dc648773",  # LBFGS._add_grad
        "e2ac6d89013f8208",  # LBFGS.step, until 2.14 had maximize
        "62b3bd976ddd6744",  # the same as Python 3.10 writes it
        "f0c0f4825dc6c264",  # LBFGS.step
        "1e0e8a9091064d8c",  # the same as Python 3.10 writes it
        "d190d169a8534b4d",  # AveragedModel.update_parameters
        "715476a4f3e62b01",  # the same as Python 3.10 writes it
    }
)


def is_known(function: Any) -> bool:
    """Tell whether a function of torch's reads as one that was read here.

    Call it on import only: Python's parser may need more stack than a host's thread has.
    """
    return fingerprint(function) in _PRINTS


def fingerprint(function: Any) -> str:
    """Return a digest of what a function does: its source without comments; "" without one."""
    try:  # of its code, since functions that stand before others name those as themselves
        tree = parse(textwrap.dedent(inspect.getsource(function.__code__)))
    except (AttributeError, OSError, SyntaxError, SystemError, TypeError):
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns, node.decorator_list = None, []
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.arg):
            node.annotation = None
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]
