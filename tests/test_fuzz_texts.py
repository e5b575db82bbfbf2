"""Any text: an optimizer, or an error."""

from __future__ import annotations

import ctypes
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from chance import call, calls, characters, create, examples, lib, literals, pytestmark, quiet, written  # noqa: F401 (pytest finds them here)
from words import INSIDES

arguments = st.dictionaries(
    st.sampled_from(["lr", "betas", "eps", "weight_decay", "momentum", "amsgrad", "foreach", "x"]),
    literals.map(written),
    max_size=3,
).map(lambda pairs: ", ".join(f"{k}={v}" for k, v in pairs.items()))

hyperparameters = st.from_regex(
    r"(lr|betas|eps|fused|params)(\[[0-9-]*\]?)?", fullmatch=True, alphabet=characters
)


@st.composite
def spliced(draw, whole) -> bytes:
    """Draw a text, whole or in pieces, with bytes in between that may be no UTF-8."""
    text = draw(whole).encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        return text.replace(b"\0", b"")  # where C would end it
    other = draw(whole).encode("utf-8", "surrogatepass")
    at, after = draw(st.integers(0, len(text))), draw(st.integers(0, len(other)))
    return (text[:at] + draw(st.binary(max_size=3)) + other[after:]).replace(b"\0", b"")


#: Nested deep, and closed or not: parsers stop somewhere.
nested = st.builds(
    lambda head, opener, depth, closed: head + opener * depth + "1" + ")" * closed,
    st.sampled_from(["", "Adam(lr=", "StepLR("]),
    st.sampled_from(["(", "[", "{", "-", "A(", "A(x=", "Adam([", "not ", "lambda:", "{1:", "f'{", "'", "#"]),
    st.integers(1, 800),
    st.integers(0, 60),
)
#: Names where values are, with modules and without, in pieces.
pieces = st.lists(
    st.sampled_from(
        [
            *(
                "torch",
                "float32",
                "SGD",
                "optim",
                "wrappers",
                "Slow",
                "os",
                "system",
                "__class__",
                "x",
                "params",
            ),
            *(":", ".", "(", ")", "[", "]", "{", "}", ",", "=", "'", '"', "\n", "\\", "#", "@", " ", "1"),
            *(
                "lambda ",
                "f'",
                "\x0c",
                "\r",
                "\u2028",
                "optimizer=",
                "SGD(lr=0.1)",
                "wrappers:Slow(",
                "torch.float32",
            ),
        ]
    ),
    max_size=16,
).map("".join)
names = st.builds(str.format, st.sampled_from(["wrappers:Slow({})", "Adam({})", "lr={}", "{}"]), pieces)
texts = st.one_of(st.text(characters), calls(), arguments, hyperparameters, nested, names)


@pytest.fixture(scope="module", params=["Adam()", "SGD(lr=0.1, momentum=0.9)", "Rprop()"])
def bound(request):
    """Return an optimizer with arrays that no text is to change, and what it says of itself."""
    opt, arrays = create(request.param), np.ones((2, 9))
    assert lib.opt_bind(opt, b"w", b"float64", 9, *(row.ctypes.data for row in arrays)) == 0
    yield opt, arrays
    assert lib.opt_free(opt) == 0


@examples(80)
@hypothesis.given(spliced(texts))
def test_any_text_makes_an_optimizer_or_an_error(text):
    opt = call(lib.opt_create, text)
    if opt > 0:
        assert call(lib.opt_free, opt) == 0
    else:
        assert not INSIDES.search(lib.opt_error().decode()), lib.opt_error()
    listed = call(lib.opt_list, text)
    assert listed is None or listed.decode() == "" or listed.endswith(b"\n")


@pytest.fixture(scope="module")
def known():
    """The modules that are there when one that is allowed has been imported, and has made an optimizer."""
    assert lib.opt_init(b"third_party=['wrappers']") == 0
    assert lib.opt_free(create("wrappers:Slow(SGD())")) == 0
    yield set(sys.modules)
    assert lib.opt_init(b"third_party=False") == 0


@examples(100)
@hypothesis.given(names)
def test_any_names_import_nothing_but_what_is_allowed(known, text):
    assert lib.opt_init(b"third_party=['wrappers']") == 0
    opt = call(lib.opt_create, text.encode())
    assert lib.opt_init(b"third_party=False") == 0
    assert not sys.modules.keys() - known
    if opt > 0:
        assert call(lib.opt_free, opt) == 0
    else:
        assert not INSIDES.search(lib.opt_error().decode()), lib.opt_error()


@pytest.mark.parametrize("name", ["group", "set", "schedule", "average", "get"])
@examples(25)
@hypothesis.given(spliced(texts), st.sampled_from([-1, 0, 1, -(2**31)]))
def test_any_text_changes_an_optimizer_or_nothing(bound, name, text, group):
    opt, arrays = bound
    function = getattr(lib, f"opt_{name}")
    before = lib.opt_describe(opt)
    value = ctypes.c_double()
    parts = {"set": (group, text), "get": (group, text, value)}.get(name, (text,))
    if call(function, opt, *parts) < 0:
        assert not INSIDES.search(lib.opt_error().decode()), lib.opt_error()
        assert lib.opt_describe(opt) == before
    assert lib.opt_describe(opt)  # whatever it has taken, it can say what it is
    assert (arrays == 1).all()
