"""Python's parser for threads: ``ast.parse`` in one at a time, and again where another has disturbed it."""

from __future__ import annotations

import ast
import contextlib
import threading
import warnings
from typing import Any

# warnings.catch_warnings changes what the whole process shares: one thread at a time, or the filters
# that it restores may be another's.
_one = threading.Lock()
#: How often a text is read anew.  Before Python 3.12.2, and in 3.11.7, the parser counts its depth for all
#: threads together, and raises SystemError if one of the host's parses meanwhile (python/cpython#106905).
_ATTEMPTS = 50


def parse(text: str) -> ast.Module:
    """Return what ``ast.parse`` does, without warnings of an odd escape in a string."""
    return _parsed(text, "exec")


def parse_expression(text: str) -> ast.expr:
    """Return one expression in the same way."""
    return _parsed(text, "eval").body


def _parsed(text: str, mode: str) -> Any:
    with _one, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(SystemError):
                return ast.parse(text, mode=mode)
        return ast.parse(text, mode=mode)
