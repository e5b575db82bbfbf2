"""Any layout: stepped where no two elements share memory, and nothing else with it."""

from __future__ import annotations

import ctypes
import itertools
import math

import hypothesis
from hypothesis import strategies as st

from chance import Memory, call, create, examples, lib, pytestmark, quiet  # noqa: F401 (pytest finds them here)

REAL = ["float16", "float32", "float64", "complex64", "complex128"]


@st.composite
def layouts(draw):
    """Draw a shape and the strides of two arrays of it: any, or such as permuting and slicing make."""
    shape = draw(st.lists(st.one_of(st.integers(0, 4), st.integers(1, 4), st.just(-1)), max_size=4))

    def strides():
        if draw(st.integers(0, 2)) == 0:
            return draw(st.lists(st.integers(-1, 14), min_size=len(shape), max_size=len(shape)))
        result, step = [0] * len(shape), draw(st.integers(1, 2))
        for i in draw(st.permutations(range(len(shape)))):
            result[i] = step
            step = step * max(shape[i], 1) + draw(st.sampled_from([0, 0, 0, 1]))
        return result

    data = strides()
    return shape, data, data if draw(st.booleans()) else strides()


def offsets(shape, strides) -> list[int]:
    return [
        sum(map(math.prod, zip(at, strides, strict=True))) for at in itertools.product(*map(range, shape))
    ]


def is_fit(shape, strides) -> bool:
    """Tell by looking at each element what opt_bind_nd must say."""
    if any(n < 0 for n in shape) or any(s < 0 for s in strides):
        return False
    places = offsets(shape, strides)
    return len(set(places)) == len(places)


def is_interleaved(shape, strides) -> bool:
    """Tell whether a dimension steps to places between those of another, though no two are the same."""
    inside = 0
    for s, n in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n > 1):
        if s <= inside:
            return True
        inside += s * (n - 1)
    return False


@examples(150)
@hypothesis.given(layouts(), st.sampled_from(REAL))
def test_a_layout_is_taken_if_no_two_elements_share_memory_and_then_they_alone_are_stepped(layout, dtype):
    shape, *both = layout
    fits = all(is_fit(shape, strides) for strides in both)
    if fits and 0 not in shape:  # rows that interleave are refused, though no two elements are the same
        hypothesis.assume(not any(is_interleaved(shape, strides) for strides in both))
    w, dw = (Memory(dtype, offsets(shape, strides) if fits else [999], 1) for strides in both)
    integers = [(ctypes.c_int64 * len(shape))(*v) for v in (shape, *both)]
    opt = create("SGD(lr=1)")
    arrays = (len(shape), integers[0], w.pointer, integers[1], dw.pointer, integers[2])
    status = call(lib.opt_bind_nd, opt, b"w", dtype.encode(), b"cpu", *arrays)
    assert (status == 0) == fits, lib.opt_error()
    if fits:
        expected, gradient = w.numbers.copy(), dw.numbers.copy()
        expected[w.places] -= gradient[dw.places]
        assert call(lib.opt_step, opt) == 0
        assert w.numbers.tobytes() == expected.tobytes()
        assert dw.numbers.tobytes() == gradient.tobytes()
        gradient[dw.places] = 0
        assert call(lib.opt_zero_grad, opt) == 0
        assert dw.numbers.tobytes() == gradient.tobytes()
    else:
        assert status == -1
        assert call(lib.opt_step, opt) == -3  # nothing is bound
    assert call(lib.opt_free, opt) == 0
