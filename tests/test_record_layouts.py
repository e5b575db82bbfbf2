"""Records of arrays with gaps, in other orders than each other, and of complex numbers."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from optplug import _bridge, elementwise
from optplug.buffers import name_of, real
from planned_twins import direct_plans, lib  # noqa: F401 (pytest finds the fixture here)
from test_records import Twins as RecordedTwins

pytestmark = pytest.mark.usefixtures("direct_plans")

OPTIMIZERS = [
    "ASGD(lr=0.1)",
    "Adadelta(lr=0.5, weight_decay=0.1, maximize=True)",
    "Adagrad(lr=0.1)",
    "Adam(lr=0.1)",
    "Adam(lr=0.1, amsgrad=True, maximize=True)",
    "AdamW(lr=0.1)",
    "Adamax(lr=0.1)",
    "NAdam(lr=0.1)",
    "RAdam(lr=0.1)",
    "RMSprop(lr=0.1)",
    "RMSprop(lr=0.1, alpha=0.9, momentum=0.9, centered=True, weight_decay=0.1, maximize=True)",
    "Rprop(lr=0.1)",
    "SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)",
]
#: Those whose steps are element-wise on the real and imaginary parts.
COMPLEX = [
    text
    for text in OPTIMIZERS
    if not text.startswith(("AdamW", "Adadelta", "SGD")) and "weight_decay" not in text
]


def row_major(values: Tensor) -> Tensor:
    return values.clone()


def column_major(values: Tensor) -> Tensor:
    return values.clone().permute(*range(values.dim())[::-1]).contiguous().permute(*range(values.dim())[::-1])


def in_rows(values: Tensor) -> Tensor:
    """Return a copy with gaps after each row, as if it were the first columns of another array."""
    return torch.cat([values, values], dim=-1)[..., : values.shape[-1]]


def scattered(values: Tensor) -> Tensor:
    return elementwise.scattered(values)


def of_columns(values: Tensor) -> Tensor:
    """Return a copy as Fortran has a(1:n, 1:m) of a larger array."""
    return column_major(torch.cat([values, values], dim=0))[: len(values)]


LAYOUTS = {
    "gaps after rows": (in_rows, in_rows),
    "gaps after each value": (scattered, scattered),
    "a part of a column-major array": (of_columns, of_columns),
    "gaps in the values": (in_rows, row_major),
    "gaps in the gradient": (row_major, scattered),
    "a column-major gradient": (row_major, column_major),
    "a column-major part, and a row-major gradient": (of_columns, row_major),
}


class Strided(RecordedTwins):
    """Twins whose arrays lie alike."""

    def __init__(self, text: str, shapes, layouts, dtype: torch.dtype):
        self.generator, self.dtype = torch.Generator().manual_seed(1), dtype
        self.opt = lib.opt_create(text.encode())
        assert self.opt > 0, lib.opt_error()
        self.ours, self.theirs = [], []
        for i, shape in enumerate(shapes):
            values, grad = (lay(self.drawn(shape)) for lay in layouts)
            p = nn.Parameter(layouts[0](values))
            p.grad = layouts[1](grad)
            assert (p.stride(), p.grad.stride()) == (values.stride(), grad.stride())
            self.ours.append((values, grad))
            self.theirs.append(p)
            assert self.bind(i) == 0, lib.opt_error()
        name, _, arguments = text.partition("(")
        arguments = eval(f"dict({arguments}", {})  # noqa: S307 - this file's own text
        self.reference = getattr(torch.optim, name)(self.theirs, **arguments)

    def drawn(self, shape) -> Tensor:
        wide = torch.complex128 if self.dtype.is_complex else torch.float64
        return torch.randn(shape, generator=self.generator, dtype=wide).to(self.dtype)

    def bind(self, i: int) -> int:
        values, grad = self.ours[i]
        n = values.dim()
        shape, strides, grad_strides = (
            (ctypes.c_int64 * n)(*numbers) for numbers in (values.shape, values.stride(), grad.stride())
        )
        name, dtype = f"p{i}".encode(), name_of(values.dtype).encode()
        pointers = values.data_ptr(), strides, grad.data_ptr(), grad_strides
        return lib.opt_bind_nd(self.opt, name, dtype, b"cpu", n, shape, *pointers)

    def draw(self) -> None:
        for (_, grad), p in zip(self.ours, self.theirs, strict=True):
            p.grad.copy_(self.drawn(grad.shape))
            grad.copy_(p.grad)

    def compare(self) -> None:
        for (values, _), p in zip(self.ours, self.theirs, strict=True):
            assert elementwise.is_same(real(values).contiguous(), real(p).contiguous())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text", OPTIMIZERS)
def test_arrays_with_gaps_have_records(text, layout):
    """In both dtypes with each optimizer and each layout, in turn."""
    dtype = (torch.float32, torch.float64)[(OPTIMIZERS.index(text) + list(LAYOUTS).index(layout)) % 2]
    twins = Strided(text, [(5, 3), (2, 3, 4), (70, 600), (1, 9), (6, 1)], LAYOUTS[layout], dtype)
    for _ in range(12):
        twins.step()
    assert twins.is_recorded(), twins.planner().records.reason
    twins.end()


COMPLEX_LAYOUTS = [(row_major, row_major), (of_columns, of_columns), (scattered, in_rows)]


@pytest.mark.parametrize("layout", COMPLEX_LAYOUTS)
@pytest.mark.parametrize("text", COMPLEX)
def test_complex_numbers_have_records(text, layout):
    """In both dtypes, as above."""
    turn = COMPLEX.index(text) + COMPLEX_LAYOUTS.index(layout)
    dtype = (torch.complex64, torch.complex128)[turn % 2]
    twins = Strided(text, [(5, 3), (2, 50), (70, 300)], layout, dtype)
    for _ in range(12):
        twins.step()
    assert twins.is_recorded(), twins.planner().records.reason
    twins.end()


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("text", OPTIMIZERS)
def test_parameters_without_a_dimension_have_records(text, turn):
    """In two of the dtypes with each optimizer, in turn."""
    dtype = elementwise.RECORDED[2 * turn + OPTIMIZERS.index(text) % 2]
    if text.startswith(("Adagrad", "Adam(", "AdamW", "SGD")):
        text = text.replace(")", ", fused=False)")
    twins = Strided(text, [(), (), (3,)], (row_major, row_major), dtype)
    for _ in range(12):
        twins.step()
    assert twins.is_planned(), twins.planner().records.reason
    twins.end()


@pytest.mark.parametrize("text", ["AveragedModel()", "AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.9))"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_averages_of_arrays_with_gaps_have_records(text, layout):
    twins = Strided("RMSprop()", [(5, 3), (70, 600)], LAYOUTS[layout], torch.float32)
    assert lib.opt_average(twins.opt, text.encode()) == 0, lib.opt_error()
    made = eval(text.replace("(", "(nn.ParameterList(), ", 1), {"nn": nn, **vars(swa_utils)})  # noqa: S307
    made.module.extend(nn.Parameter(p.detach().clone()) for p in twins.theirs)
    for _ in range(6):
        twins.step()
        made.update_parameters(nn.ParameterList(twins.theirs))
    assert twins.is_recorded(), twins.planner().records.reason
    assert "AveragedModel" in twins.described().split("\n")[1]
    average = _bridge.optimizer_of(twins.opt).run.average
    for i, expected in enumerate(made.module):
        assert torch.equal(average.read(i), expected)
    twins.end()
