"""Run every optimizer of torch.optim on three problems, and draw how the loss falls.

python examples/choose.py [--folder docs] [--evaluations 1000]

Each problem is run with five learning rates, and the best one is kept: what is compared is what an
optimizer can do, not its default.  An evaluation is one loss with its gradient, which is what costs a
simulation; LBFGS makes several in a step.  Writes which.png and which.csv.
"""

from __future__ import annotations

import argparse
import csv
import math
import pathlib
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from optplug.ctypes_api import Error, Optimizer, listing

Arrays = dict[str, NDArray[np.float64]]
#: From parameters to the loss and its gradients; and what is drawn, where that is not the loss.
Problem = tuple[Arrays, Callable[[Arrays], tuple[float, Arrays]], Callable[[Arrays], float]]
RATES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
EXTRA = {"SGD": ", momentum=0.9", "LBFGS": ", line_search_fn='strong_wolfe', history_size=20"}
#: LBFGS's tolerances are absolute.
EXTRA["LBFGS"] += ", tolerance_grad=1e-12, tolerance_change=0"


def plate() -> Problem:
    """A field from its equation: 200 values of u with -(k u')' = 1, of which k jumps by 10; no noise."""
    n = 200
    k = np.where(np.arange(n + 1) < n // 2, 1.0, 10.0)
    matrix = np.diag(k[1:] + k[:-1]) - np.diag(k[1:-1], 1) - np.diag(k[1:-1], -1)
    right = np.full(n, 1.0) / n
    solution = np.linalg.solve(matrix, right)
    lowest = -0.5 * right @ solution

    def loss(p: Arrays) -> tuple[float, Arrays]:
        product = matrix @ p["u"]
        return 0.5 * p["u"] @ product - right @ p["u"] - lowest, {"u": product - right}

    return {"u": np.zeros(n)}, loss, lambda p: loss(p)[0]


def noisy() -> Problem:
    """Logistic regression from batches of 16 of 1000 cases: each gradient is an estimate."""
    random = np.random.default_rng(1)
    x = random.normal(size=(1000, 30)) * np.logspace(-1, 0.5, 30)
    y = (x @ random.normal(size=30) / np.logspace(-1, 0.5, 30).mean() + random.logistic(size=1000) > 0) * 1.0

    def loss(p: Arrays, rows: NDArray[np.int64] | slice) -> tuple[float, Arrays]:
        z = x[rows] @ p["w"]
        value = np.mean(np.logaddexp(0, z) - y[rows] * z)
        return value, {"w": x[rows].T @ (1 / (1 + np.exp(-np.clip(z, -50, 50))) - y[rows]) / len(z)}

    best = np.zeros(30)
    for _ in range(30):  # Newton's method
        q = 1 / (1 + np.exp(-x @ best))
        best = best - np.linalg.solve((x.T * (q * (1 - q))) @ x, x.T @ (q - y))
    lowest = loss({"w": best}, slice(None))[0]
    return (
        {"w": np.zeros(30)},
        lambda p: loss(p, random.integers(0, 1000, 16)),
        lambda p: loss(p, slice(None))[0] - lowest,
    )


def network() -> Problem:
    """A network 1 -> 24 -> 24 -> 1 fitted to a curve with a kink, all points at once: not convex."""
    random = np.random.default_rng(2)
    x = np.linspace(-1, 1, 64)[:, None]
    y = np.abs(np.sin(5 * x)) * np.exp(-x)
    start = {
        "w1": random.normal(size=(1, 24)) * 3,
        "b1": random.normal(size=24),
        "w2": random.normal(size=(24, 24)) / 5,
        "b2": np.zeros(24),
        "w3": random.normal(size=(24, 1)) / 5,
    }

    def loss(p: Arrays) -> tuple[float, Arrays]:
        a = np.tanh(x @ p["w1"] + p["b1"])
        b = np.tanh(a @ p["w2"] + p["b2"])
        error = b @ p["w3"] - y
        r = 2 * error / len(x)
        db = r @ p["w3"].T * (1 - b * b)
        da = db @ p["w2"].T * (1 - a * a)
        grads = {"w1": x.T @ da, "b1": da.sum(0), "w2": a.T @ db, "b2": db.sum(0), "w3": b.T @ r}
        return float(np.mean(error**2)), grads

    return start, loss, lambda p: loss(p)[0]


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "an equation, no noise": plate,
    "regression by batches": noisy,
    "a network, all data": network,
}


def curve(problem: Problem, name: str, rate: float, evaluations: int) -> list[float]:
    """Return what remains after each evaluation; inf where a run has failed."""
    start, evaluate, remains = problem
    values = {key: value.copy() for key, value in start.items()}
    grads = {key: np.zeros_like(value) for key, value in start.items()}
    seen: list[float] = []

    def closure() -> float:
        value, new = evaluate(values)
        for key, array in new.items():
            grads[key][...] = array
        seen.append(remains(values))
        return float(value)

    with np.errstate(all="ignore"), Optimizer(f"{name}(lr={rate}{EXTRA.get(name, '')})") as opt:
        for key in values:
            opt.bind(key, values[key].reshape(-1), grads[key].reshape(-1))
        while len(seen) < evaluations and (not seen or math.isfinite(seen[-1])):
            opt.step_closure(closure) if name == "LBFGS" else (closure(), opt.step())
            if name == "LBFGS" and len(seen) > 30 and seen[-1] == seen[-30]:
                break  # it has ended
    seen += [seen[-1]] * (evaluations - len(seen))
    return [value if math.isfinite(value) else math.inf for value in seen[:evaluations]]


def main() -> None:
    """Run all, and write the picture and the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    home = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--folder", type=pathlib.Path, default=home / "docs")
    parser.add_argument("--evaluations", type=int, default=1000)
    given = parser.parse_args()
    folder, n = given.folder, given.evaluations
    figure = Figure(figsize=(9, 6), layout="constrained")
    rows: dict[str, dict[str, str]] = {}
    panels = figure.subplots(1, 3)
    panels[0].set_ylabel("lowest loss so far")
    for panel, (title, make) in zip(panels, PROBLEMS.items(), strict=True):
        found: dict[str, tuple[float, float, list[float]]] = {}
        for name in listing("optimizers"):
            try:
                runs = [(curve(make(), name, rate, n), rate) for rate in RATES]
            except Error as error:  # takes matrices or tables only
                print(f"{name}: {error}")
                continue
            run, rate = min(runs, key=lambda pair: np.median(pair[0][-50:]))
            found[name] = (max(float(np.median(run[-50:])), 1e-16), rate, run)
        for i, (name, (last, rate, run)) in enumerate(sorted(found.items(), key=lambda item: item[1][0])):
            best = np.minimum.accumulate(np.maximum(run, 1e-16))
            style = "-" if i < 10 else "--"
            panel.loglog(range(1, n + 1), best, style, label=f"{name} {rate:g}", linewidth=1.2)
            rows.setdefault(name, {"optimizer": name})[title] = f"{last:.1e} ({rate:g})"
        panel.set(title=title, xlabel="evaluations of the loss")
        panel.legend(fontsize=7, loc="lower left", title="best first, with its rate", title_fontsize=7)
    figure.savefig(folder / "which.png", dpi=120)
    with (folder / "which.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["optimizer", *PROBLEMS], restval="")
        table.writeheader()
        table.writerows(rows.values())
    print(folder / "which.png")


if __name__ == "__main__":
    main()
