"""LBFGS beside plain PyTorch, with the same function of the host's: every bit of values and state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optplug import ctypes_api


def valley(w: np.ndarray, grad: np.ndarray) -> float:
    """Rosenbrock's valley, along neighbours, with its gradient; in the arrays' own precision."""
    steep = w[1:] - w[:-1] ** 2
    grad[:] = 0
    grad[:-1] = -2 * (1 - w[:-1]) - 40 * steep * w[:-1]
    grad[1:] += 20 * steep
    return float(np.sum((1 - w[:-1]) ** 2 + 10 * steep**2))


def shifted(values: np.ndarray, offset: int) -> np.ndarray:
    """Return a copy that begins so many values behind an address that torch's own memory could have."""
    whole = np.zeros(values.size + 32, values.dtype)
    first = -whole.ctypes.data % 64 // values.itemsize + offset
    part = whole[first : first + values.size]
    part[:] = values
    return part


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 5])
def test_the_bits_do_not_depend_on_where_the_hosts_arrays_lie(dtype, offset):
    values = np.random.default_rng(1).normal(size=50).astype(dtype)
    w, dw = shifted(values, offset), shifted(0 * values, offset)
    v, dv = values.copy(), 0 * values
    p = torch.nn.Parameter(torch.from_numpy(v))
    p.grad = torch.from_numpy(dv)
    reference = torch.optim.LBFGS([p], line_search_fn="strong_wolfe")
    with ctypes_api.Optimizer("LBFGS(line_search_fn='strong_wolfe')") as opt:
        opt.bind("w", w, dw)
        for _ in range(3):
            loss = opt.step_closure(lambda: valley(w, dw))
            assert loss == reference.step(lambda: valley(v, dv))
            assert w.tobytes() == v.tobytes()
