"""Runs of optimizers, in a host and in plain PyTorch, that are saved and go on."""

from __future__ import annotations

import ctypes
import pathlib

import torch

from optplug import ctypes_api

lib = ctypes_api.load()

HERE = pathlib.Path(__file__).parent

SPECS = [
    "ASGD(t0=2)",
    "Adadelta()",
    "Adafactor()",
    "Adagrad()",
    "Adam(lr=0.01, amsgrad=True)",
    "Adam(fused=False)",
    "Adam(foreach=True, maximize=True)",
    "AdamW(betas=(0.8, 0.9))",
    "Adamax()",
    "LBFGS(lr=0.1, max_iter=3, history_size=4)",
    "LBFGS(max_iter=4, line_search_fn='strong_wolfe')",
    "Muon()",
    "NAdam()",
    "RAdam()",
    "RMSprop(momentum=0.5, centered=True)",
    "Rprop()",
    "SGD(lr=0.1)",
    "SGD(momentum=0.9, nesterov=True)",
    "SparseAdam()",
]

SCHEDULES = {
    "": [],
    "ChainedScheduler": ["ChainedScheduler([ConstantLR(0.5, total_iters=4), ExponentialLR(0.9)])"],
    "ConstantLR": ["ConstantLR(0.5, total_iters=4)"],
    "CosineAnnealingLR": ["CosineAnnealingLR(T_max=7)"],
    "CosineAnnealingWarmRestarts": ["CosineAnnealingWarmRestarts(T_0=3)"],
    "CyclicLR": ["CyclicLR(base_lr=1e-4, max_lr=1e-2, step_size_up=3, cycle_momentum=False)"],
    "ExponentialLR": ["ExponentialLR(0.9)"],
    "LambdaLR": ["LambdaLR()"],
    "LinearLR": ["LinearLR(total_iters=7)", "ExponentialLR(0.9)"],
    "MultiStepLR": ["MultiStepLR([2, 6])"],
    "MultiplicativeLR": ["MultiplicativeLR()"],
    "OneCycleLR": ["OneCycleLR(max_lr=0.1, total_steps=40)"],
    "PolynomialLR": ["PolynomialLR(total_iters=9, power=2.0)"],
    "ReduceLROnPlateau": ["ReduceLROnPlateau(patience=1)"],
    "SequentialLR": ["SequentialLR([ConstantLR(0.5), CosineAnnealingLR(9)], milestones=[6])"],
    "StepLR": ["StepLR(2, gamma=0.5)"],
    "SWALR": ["SWALR(swa_lr=0.05, anneal_epochs=7)"],
}

AVERAGES = ["", "AveragedModel()", "AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.9))"]


@ctypes_api.CALLBACK
def factor(_, value):
    value[0] = 0.9 ** value[0]
    return 0


class Run:
    """An optimizer on two matrices, each in a group of its own, where the class has groups."""

    def __init__(
        self,
        spec: str,
        schedule: str = "",
        average: str = "",
        dtype: torch.dtype = torch.float32,
        values: dict[str, torch.Tensor] | None = None,
        attach: bool = True,
    ):
        self.spec, self.schedules, self.average, self.dtype = spec, SCHEDULES[schedule], average, dtype
        self.name = spec.partition("(")[0]
        generator = torch.Generator().manual_seed(7)
        shapes = {"w": (4, 3), "v": (3, 2)}
        start = {
            n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()
        }
        source = values or start
        # In the other order, where the order is not the groups'.
        names = list(start) if values is None or self.has_groups() else list(start)[::-1]
        self.values = {n: source[n].to(dtype).clone() for n in names}
        self.grads = {n: torch.zeros_like(p) for n, p in self.values.items()}
        self.count, self.rows = ctypes.c_int64(2), (ctypes.c_int64 * 2)(0, 2)
        self.opt = lib.opt_create(spec.encode())
        assert self.opt > 0, lib.opt_error()
        for i, (n, p) in enumerate(self.values.items()):
            if i and self.has_groups():
                assert lib.opt_group(self.opt, b"lr=2e-3") == 0, lib.opt_error()
            self.bind(n, p)
        self.made = 0
        if attach:
            for text in self.schedules:
                if text.startswith(("Lambda", "Multiplicative")):
                    assert lib.opt_schedule_callback(self.opt, text.encode(), factor, None) == 0, (
                        lib.opt_error()
                    )
                else:
                    assert lib.opt_schedule(self.opt, text.encode()) == 0, lib.opt_error()
            if average:
                assert lib.opt_average(self.opt, average.encode()) == 0, lib.opt_error()

    def has_groups(self) -> bool:
        return self.name != "LBFGS"

    def bind(self, n: str, p: torch.Tensor) -> None:
        dtype = str(self.dtype).removeprefix("torch.").encode()
        if self.name == "SparseAdam":
            status = lib.opt_bind_sparse(
                self.opt,
                n.encode(),
                dtype,
                *p.shape,
                p.data_ptr(),
                2,
                ctypes.byref(self.count),
                self.rows,
                self.grads[n].data_ptr(),
            )
        else:
            shape = (ctypes.c_int64 * 2)(*p.shape)
            data, grad = p.data_ptr(), self.grads[n].data_ptr()
            status = lib.opt_bind_nd(self.opt, n.encode(), dtype, b"cpu", 2, shape, data, None, grad, None)
        assert status == 0, lib.opt_error()

    def loss(self, _=None, value=None) -> int:
        total = 0.0
        for n, p in self.values.items():
            generator = torch.Generator().manual_seed(self.made * 2 + (n == "w"))
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(self.dtype)
            self.grads[n].copy_(p + 0.3 * noise)
            total += float((p * p).double().sum())
        if value is not None:
            value[0] = total
        return 0

    def go(self, steps: int) -> None:
        for _ in range(steps):
            if self.name == "LBFGS":
                closure = ctypes_api.CALLBACK(self.loss)
                assert lib.opt_step_closure(self.opt, closure, None, None) == 0, lib.opt_error()
            else:
                self.loss()
                assert lib.opt_step(self.opt) == 0, lib.opt_error()
            self.made += 1
            if any(text.startswith("Reduce") for text in self.schedules):
                assert lib.opt_schedule_step_metric(self.opt, 1.0) == 0, lib.opt_error()
            elif self.schedules:
                assert lib.opt_schedule_step(self.opt) == 0, lib.opt_error()

    def averages(self) -> list[torch.Tensor]:
        result = []
        for n in sorted(self.values) if self.average else []:
            result.append(torch.empty_like(self.values[n]))
            assert lib.opt_average_get(self.opt, n.encode(), result[-1].data_ptr()) == 0, lib.opt_error()
        return result

    def bits(self) -> list[list]:
        return [
            t.double().tolist() for t in (*(self.values[n] for n in sorted(self.values)), *self.averages())
        ]

    def free(self) -> None:
        assert lib.opt_free(self.opt) == 0


def in_memory(run: Run) -> bytes:
    size = lib.opt_save_memory(run.opt, None, 0)
    assert size > 0, lib.opt_error()
    buffer = ctypes.create_string_buffer(size)
    assert lib.opt_save_memory(run.opt, buffer, size) == size, lib.opt_error()
    return buffer.raw


# ---- with plain PyTorch ----

PLAIN = [s for s in SPECS if not s.startswith(("LBFGS", "SparseAdam"))]


def plain(run: Run) -> tuple[torch.optim.Optimizer, dict[str, torch.nn.Parameter]]:
    """Return what a program of plain PyTorch would have: the same optimizer, with the same parameters."""
    parameters = {n: torch.nn.Parameter(p.clone()) for n, p in run.values.items()}
    groups = [{"params": [pair], **({"lr": 2e-3} if i else {})} for i, pair in enumerate(parameters.items())]
    arguments = run.spec.partition("(")[2].removesuffix(")")
    made = eval(f"torch.optim.{run.name}(groups, {arguments})", {"torch": torch, "groups": groups})  # noqa: S307
    return made, parameters


def go_plainly(made: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter], like: Run) -> None:
    """Make the steps that `like` is to make."""
    for n, p in parameters.items():
        like.values[n].copy_(p.detach())
    like.loss()
    like.made += 1
    for n, p in parameters.items():
        p.grad = like.grads[n].clone()
    made.step()
