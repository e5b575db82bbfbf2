"""PyTorch as it may become: torch.optim with a few lines changed, and its steps by optplug beside its own.

    python moved.py "a changed default"

makes that change as torch is imported, as a future torch may bring it, steps optimizers by it and by
optplug, and ends with an error where a bit differs.  It prints a line for each optimizer.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import pathlib
import sys
import tempfile
import types
from dataclasses import dataclass

GROUP = '            beta1, beta2 = group["betas"]\n'
ADAM_INIT = "        decoupled_weight_decay: bool = False,\n    ) -> None:"
ADAM_DEFAULTS = '            "decoupled_weight_decay": decoupled_weight_decay,\n        }'
STEP = "    @_use_grad_for_differentiable\n    def step(self, closure=None):"
EACH = '            for p in group["params"]:\n                '
COUNTS = '            group["rounds"] = group.get("rounds", 0) + 1\n'
DECORATOR = """
def _halving(function):
    @functools.wraps(function)
    def call(self, *args, **kwargs):
        result = function(self, *args, **kwargs)
        self._rounds = vars(self).get("_rounds", 0) + 1
        if self._rounds % 4 == 0:
            with torch.no_grad():
                for group in self.param_groups:
                    torch._foreach_mul_(group["params"], 0.5)
        return result

    return call


class {name}(Optimizer):"""


@dataclass(frozen=True)
class Change:
    """What to replace in which files of torch.optim, and which optimizers to step then."""

    files: dict[str, list[tuple[str, str]]]
    specs: tuple[str, ...]
    #: What the host sets in the middle.
    options: str = "lr=0.05"
    #: A scheduler, which the host attaches anew in the middle, and an average.
    schedule: str = ""
    average: str = ""
    #: Whether it scales its loss, and whether it wants to be called after each step.
    is_scaled: bool = False
    is_hooked: bool = False


def _decorated(name: str) -> list[tuple[str, str]]:
    return [
        ("from torch import Tensor\n", "import functools\nfrom torch import Tensor\n"),
        (f"\nclass {name}(Optimizer):", DECORATOR.format(name=name)),
        (STEP, f"    @_halving\n{STEP}"),
    ]


def _with_maximize(source: str) -> str:
    """Return LBFGS as torch 2.14 has it."""
    for old, new in (
        (
            "line_search_fn: str | None = None,\n    )",
            "line_search_fn: str | None = None, *, maximize=False\n    )",
        ),
        ('"line_search_fn": line_search_fn,', '"line_search_fn": line_search_fn, "maximize": maximize,'),
        (
            "return torch.cat(views, 0)",
            'return torch.cat(views, 0) * (-1 if self.param_groups[0]["maximize"] else 1)',
        ),
        (
            "        loss = float(closure())\n",
            '        loss = float(closure()) * (-1 if self.param_groups[0]["maximize"] else 1)\n',
        ),
        ("loss = float(orig_loss)", 'loss = float(orig_loss) * (-1 if group["maximize"] else 1)'),
        ("loss = float(loss)", 'loss = float(loss) * (-1 if group["maximize"] else 1)'),
    ):
        source = _replaced(source, old, new)
    return source


def _replaced(source: str, old: str, new: str) -> str:
    assert old in source, f"this torch has no {old!r}"
    return source.replace(old, new)


ADAMS = ("Adam(lr=0.1)", "Adam(lr=0.1, fused=False, amsgrad=True)", "AdamW(lr=0.1, weight_decay=0.1)")
LBFGS = ("LBFGS(lr=0.5, max_iter=3)", "LBFGS(max_iter=5, line_search_fn='strong_wolfe')")
RMSPROPS = ("RMSprop(lr=0.1)", "RMSprop(lr=0.1, momentum=0.9, centered=True)")

CHANGES = {
    "nothing": Change({}, (*ADAMS, *LBFGS, *RMSPROPS, "SGD(lr=0.1, momentum=0.9)", "Adafactor()")),
    "an option that step handles": Change(
        {
            "adam": [
                (ADAM_INIT, ADAM_INIT.replace("\n    )", "\n        shrink: float = 0.0,\n    )")),
                (
                    ADAM_DEFAULTS,
                    ADAM_DEFAULTS.replace("\n        }", '\n            "shrink": shrink,\n        }'),
                ),
                (
                    GROUP,
                    GROUP + EACH + 'p.mul_(1 - group["shrink"])\n',
                ),
            ]
        },
        (
            "Adam(lr=0.1)",
            "Adam(lr=0.1, shrink=0.1)",
            "Adam(lr=0.1, fused=False)",
            "AdamW(lr=0.1, capturable=False)",
        ),
        "shrink=0.25",
    ),
    "a counter that step keeps in the group": Change(
        {
            "adam": [(GROUP, GROUP + COUNTS), ('lr=group["lr"],', 'lr=group["lr"] / group["rounds"],')],
            "rmsprop": [
                (
                    "            has_complex = self._init_group(",
                    f"{COUNTS}            has_complex = self._init_group(",
                ),
                ('lr=group["lr"],', 'lr=group["lr"] / group["rounds"],'),
            ],
        },
        (*ADAMS, *RMSPROPS),
    ),
    "a counter of Python's in the state": Change(
        {
            "adam": [
                (
                    '                exp_avgs.append(state["exp_avg"])\n',
                    '                state["rounds"] = state.get("rounds", 0) + 1\n'
                    '                if state["rounds"] % 3 == 0:\n'
                    '                    state["exp_avg"].mul_(0.5)\n'
                    '                exp_avgs.append(state["exp_avg"])\n',
                )
            ]
        },
        ADAMS,
    ),
    "a counter that is an attribute": Change(
        {
            "rmsprop": [
                (
                    "        for group in self.param_groups:\n            params_with_grad",
                    '        self._rounds = vars(self).get("_rounds", 0) + 1\n'
                    "        for group in self.param_groups:\n"
                    "            if self._rounds > 5:\n"
                    '                group["params"][0].mul_(0.5)\n'
                    "            params_with_grad",
                )
            ]
        },
        RMSPROPS,
    ),
    "a second decorator": Change(
        {
            "adam": _decorated("Adam"),
            "rmsprop": _decorated("RMSprop"),
            "sgd": _decorated("SGD"),
        },
        (*ADAMS, *RMSPROPS, "SGD(lr=0.1)"),
    ),
    "a renamed key": Change(
        {
            "adam": [
                ('["decoupled_weight_decay"]', '["decoupled"]'),
                ('"decoupled_weight_decay"', '"decoupled"'),
            ],
            "adamw": [('"decoupled_weight_decay"', '"decoupled"')],
        },
        (*ADAMS, "AdamW(lr=0.1, weight_decay=0.5, fused=True)"),
    ),
    "a changed default": Change(
        {"adamw": [("weight_decay: float = 1e-2", "weight_decay: float = 0.2")]},
        ("AdamW(lr=0.1)", "AdamW(lr=0.1, fused=False)"),
    ),
    "a new key that is on": Change(
        {
            "adam": [
                (
                    ADAM_DEFAULTS,
                    ADAM_DEFAULTS.replace("\n        }", '\n            "nudge": True,\n        }'),
                ),
                (
                    GROUP,
                    GROUP + EACH + 'p.add_(0.01 * group["nudge"])\n',
                ),
            ]
        },
        ADAMS,
    ),
    "a schema with an argument more": Change({}, ADAMS),
    "a fused operator that is gone": Change({}, (*ADAMS, "AdamW(lr=0.1)")),
    "a fused step that counts by two": Change(
        {
            "adam": [
                ("torch._foreach_add_(device_state_steps, 1)", "torch._foreach_add_(device_state_steps, 2)")
            ]
        },
        ADAMS,
    ),
    "another formula of a loop": Change(
        {
            "rmsprop": [
                (
                    "        square_avg.mul_(alpha).addcmul_(grad, grad, value=1 - alpha)\n",
                    "        square_avg.lerp_(grad * grad, 1.01 - alpha)\n",
                )
            ],
            "adamax": [("clr = lr / bias_correction", "clr = lr / bias_correction * 1.5")],
        },
        (*RMSPROPS, "Adamax(lr=0.1)"),
    ),
    "private functions by other names": Change(
        {
            "rmsprop": [("_single_tensor_rmsprop", "_loop_rmsprop")],
            "lbfgs": [
                ("_strong_wolfe(", "_wolfe("),
                ("_cubic_interpolate", "_cubic"),
                ("_gather_flat_grad", "_row"),
                ("_add_grad", "_move"),
            ],
        },
        (*RMSPROPS, *LBFGS),
    ),
    "an argument of a function more": Change(
        {
            "rmsprop": [
                (
                    "    has_complex: bool = False,\n",
                    "    has_complex: bool = False,\n    warm: bool = False,\n",
                ),
                (
                    "                has_complex=has_complex,\n            )",
                    "                has_complex=has_complex,\n                warm=True,\n            )",
                ),
                ("def step(self, closure=None):", "def step(self, closure=None, *, dry=False):"),
            ]
        },
        RMSPROPS,
    ),
    "LBFGS that maximizes": Change(
        {"lbfgs": []},
        ("LBFGS(lr=0.5, max_iter=3)", "LBFGS(lr=0.5, max_iter=3, maximize=True)"),
        "maximize=True",
    ),
    "other directions of LBFGS": Change(
        {"lbfgs": [("H_diag = ys / y.dot(y)", "H_diag = ys / y.dot(y) / 2")]}, LBFGS
    ),
    "an average that begins anew": Change(
        {"swa_utils": [("bool(self.n_averaged == 0)", "bool(self.n_averaged % 8 == 0)")]},
        ("Adam(lr=0.1)",),
        average="AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.5))",
    ),
    "a scheduler that counts by an iterator": Change(
        {
            "lr_scheduler": [
                (
                    "        self.step_size = step_size\n",
                    "        self.step_size = step_size\n        self.ticks = iter(range(1000))\n",
                ),
                (
                    "if (self.last_epoch == 0) or (self.last_epoch % self.step_size != 0):",
                    "if next(self.ticks) % self.step_size != 1:",
                ),
            ]
        },
        ("Adam(lr=0.1)",),
        schedule="StepLR(2, gamma=0.75)",
    ),
    "a first rate by another key": Change(
        {"lr_scheduler": [('"initial_lr"', '"first_lr"')]},
        ("Adam(lr=0.1)",),
        schedule="CosineAnnealingWarmRestarts(T_0=3)",
    ),
    "a rest now and then": Change(
        {
            "adam": [
                (
                    "        if device_found_inf is not None:\n            torch._foreach_sub_(",
                    "        if int(device_state_steps[0]) % 5 == 0:\n"
                    "            torch._foreach_mul_(device_exp_avgs, 0.5)\n"
                    "        if device_found_inf is not None:\n            torch._foreach_sub_(",
                )
            ],
            "rmsprop": [
                (
                    "        square_avg.mul_(alpha).addcmul_(",
                    "        if int(step) % 5 == 0:\n            square_avg.mul_(0.5)\n"
                    "        square_avg.mul_(alpha).addcmul_(",
                ),
                (
                    "        torch._foreach_mul_(grouped_square_avgs, alpha)\n",
                    "        if int(grouped_state_steps[0]) % 5 == 0:\n"
                    "            torch._foreach_mul_(grouped_square_avgs, 0.5)\n"
                    "        torch._foreach_mul_(grouped_square_avgs, alpha)\n",
                ),
            ],
        },
        ("Adam(lr=0.1)", "RMSprop(lr=0.1)"),
    ),
    "a loss scale by another name": Change(
        {"adam": [('getattr(self, "grad_scale", None)', 'getattr(self, "loss_scale", None)')]},
        ("Adam(lr=0.1)",),
        is_scaled=True,
    ),
    "hooks that are called twice": Change(
        {
            "optimizer": [
                (
                    "                    post_hook(self, args, kwargs)\n",
                    "                    post_hook(self, args, kwargs)\n"
                    "                    post_hook(self, args, kwargs)\n",
                )
            ]
        },
        ("Adam(lr=0.1)", "LBFGS(lr=0.5, max_iter=3)"),
        is_hooked=True,
    ),
    "foreach by default": Change(
        {
            "optimizer": [
                (
                    "    foreach = not fused and all(",
                    "    return False, True\n    foreach = not fused and all(",
                )
            ]
        },
        ("RMSprop(lr=0.1)", "NAdam(lr=0.1)"),
    ),
    "a tensor more in the state": Change(
        {
            "adam": [
                (
                    '                exp_avgs.append(state["exp_avg"])\n',
                    '                slow = state.setdefault("slow", torch.zeros_like(p))\n'
                    "                slow.lerp_(p, 0.25)\n"
                    '                if int(state["step"]) % 6 == 5:\n'
                    "                    p.lerp_(slow, 0.5)\n"
                    '                exp_avgs.append(state["exp_avg"])\n',
                )
            ]
        },
        ("Adam(lr=0.1)",),
    ),
    "a loop more over LBFGS's history": Change(
        {
            "lbfgs": [
                (
                    "                # iteration in L-BFGS loop collapsed",
                    "                for i in range(9, num_old):\n"
                    "                    old_stps[i].mul_(0.875)\n"
                    "                # iteration in L-BFGS loop collapsed",
                )
            ]
        },
        ("LBFGS(lr=0.5, max_iter=3)",),
    ),
}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the files of torch.optim as they are to be."""

    def __init__(self, name: str, folder: pathlib.Path) -> None:
        self._name, self._folder = name, folder

    def find_spec(self, name, path=None, _target=None):
        package, _, file = name.rpartition(".")
        files = CHANGES[self._name].files
        if package != "torch.optim" or file not in files:
            return None
        source = (pathlib.Path(path[0]) / f"{file}.py").read_text()
        if self._name == "LBFGS that maximizes" and "maximize" not in source:
            source = _with_maximize(source)
        for old, new in files[file]:
            source = _replaced(source, old, new)
        moved = self._folder / f"{file}.py"
        moved.write_text(source)
        return importlib.util.spec_from_file_location(name, moved)


class _Changed:
    """Something of torch's in which one thing is another."""

    def __init__(self, real, **changed) -> None:
        self._real = real
        vars(self).update(changed)

    def __getattr__(self, name: str):
        return getattr(self._real, name)


def change_operators(name: str) -> None:
    """Change torch's operators, where that is the change."""
    import torch

    if name == "a fused operator that is gone":
        del torch._fused_adam_, torch._fused_adamw_
    if name == "a schema with an argument more":
        for operator in ("_fused_adam_", "_fused_adamw_"):
            real = getattr(torch.ops.aten, operator)
            more = types.SimpleNamespace(name="rate", type="float")
            schema = _Changed(real.default._schema, arguments=[*real.default._schema.arguments, more])
            changed = _Changed(real, default=_Changed(real.default, _schema=schema))
            setattr(torch.ops.aten, operator, changed)


def main(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sys.meta_path.insert(0, _Finder(name, pathlib.Path(folder)))
        for module in [module for module in sys.modules if module.startswith("torch.optim")]:
            del sys.modules[module]  # where torch was there already, without the change
        importlib.import_module("torch.optim")
        change_operators(name)
        from moved_pairs import compare

        for spec in CHANGES[name].specs:
            print(f"{spec}: {compare(spec, CHANGES[name])}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
