"""What LBFGS says of its last step: how far it came, and which of its limits ended it."""

from __future__ import annotations

import numpy as np
import pytest

from optplug import ctypes_api
from test_lbfgs import valley


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        ("max_iter=4", "max_iter=4"),
        ("max_iter=50, max_eval=4", "max_eval=4"),
        ("max_iter=500, tolerance_grad=1e-3", "tolerance_grad=0.001 or tolerance_change=1e-09"),
        ("max_iter=500, tolerance_change=0.1, line_search_fn='strong_wolfe'", "tolerance_change=0.1"),
    ],
)
def test_it_says_how_far_a_step_came_and_what_ended_it(arguments, limit):
    w, dw = np.array([-1.0, 1.0, 0.5]), np.zeros(3)
    losses = []

    def closure() -> float:
        losses.append(valley(w, dw))
        return losses[-1]

    opt = ctypes_api.Optimizer(f"LBFGS({arguments})")
    opt.bind("w", w, dw)
    assert (opt.get(-1, "n_iter"), opt.get(-1, "func_evals")) == (0, 0)
    assert "last step" not in opt.describe()
    opt.step_closure(closure)
    iterations = opt.get(-1, "n_iter")
    said = f"last step: {iterations:.0f} iterations, {len(losses)} evaluations, stopped by {limit}, "
    assert said + f"last loss {losses[-1]:.6g}\n" in opt.describe()
    assert opt.get(0, "func_evals") >= iterations >= 1


def test_it_says_that_a_step_began_at_the_minimum():
    w, dw = np.ones(3), np.zeros(3)
    opt = ctypes_api.Optimizer("LBFGS()")
    opt.bind("w", w, dw)
    opt.step_closure(lambda: valley(w, dw))
    assert "0 iterations, 1 evaluations, stopped by tolerance_grad, which" in opt.describe()
    with pytest.raises(ctypes_api.Error, match="no hyperparameter 'n_iter'"):
        ctypes_api.Optimizer("Adam()").get(-1, "n_iter")


@pytest.mark.parametrize("steps", [1, 6])  # by torch alone, and on rows
def test_it_says_the_same_until_the_next_step_is_made(steps):
    w, dw = np.array([-1.0, 1.0, 0.5]), np.zeros(3)
    opt = ctypes_api.Optimizer("LBFGS(max_iter=400, max_eval=900, tolerance_grad=1e-2)")
    opt.bind("w", w, dw)
    for _ in range(steps):
        w[:] = -1, 1, 0.5
        opt.step_closure(lambda: valley(w, dw))
    said, draw = opt.describe(), np.random.default_rng(0)
    for i in range(30):
        dw[:] = draw.standard_normal(3)
        assert opt.iterate(float(-i))
        assert opt.describe() == said
