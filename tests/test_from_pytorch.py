"""The columns of the tables of from-adam.md are one loop in each language, and give PyTorch's numbers."""

from __future__ import annotations

import functools
import re

import pytest
import torch

import hosts
from test_readme import build_library, config

PAGE = hosts.PROJECT / "docs" / "from-adam.md"


def tables() -> list[list[list[str]]]:
    """Return the cells of the tables that have every call of a loop."""
    section = PAGE.read_text().partition("## From a loop in PyTorch")[2].partition("\n## ")[0]
    found = [
        [re.split(r" \| ", row.strip("| ")) for row in table.splitlines()[2:]]
        for table in re.findall(r"^\|.*(?:\n\|.*)+", section, re.M)
    ]
    return [rows for rows in found if len(rows[0]) == 3]


def calls(table: int, column: int, language: str = "") -> list[str]:
    """Return a column's pieces of code, without those that stand behind another language's name."""
    cells = [row[column] for row in tables()[table]]
    pieces = re.findall(r"(?:(C\+\+|Python) )?`([^`]+)`", "\n".join(cells))
    return [code for name, code in pieces if name in ("", language)]


@functools.cache
def expected() -> str:
    """Run PyTorch's column, and return what all the others print: the norm, the loss, the rate and w."""
    w, b = (torch.nn.Parameter(torch.tensor([3.0, -2, 1], dtype=torch.float64)) for _ in range(2))
    model = torch.nn.Module()
    model.w, model.b = w, b

    def closure() -> torch.Tensor:
        w.grad = None
        loss = (w**2).sum()
        loss.backward()
        return loss.detach()

    names = {
        **{name: getattr(torch.optim.lr_scheduler, name) for name in ("StepLR", "ReduceLROnPlateau")},
        **{name: getattr(torch.nn.utils, name) for name in ("clip_grad_norm_", "clip_grad_value_")},
        "Adam": functools.partial(torch.optim.Adam, fused=True),
        "AveragedModel": torch.optim.swa_utils.AveragedModel,
        **{"torch": torch, "model": model, "w": w, "b": b, "closure": closure, "loss": (w**2).sum()},
    }
    code = "\n".join(calls(0, 0)).replace("(\n", "(")
    exec(code, names)  # noqa: S102  (a page of ours)
    return printed(names["norm"].item(), names["loss"].item(), names["lr"], *w.tolist())


def printed(*numbers: float) -> str:
    return "".join(f"{number:.17g}\n" for number in numbers)


def test_both_tables_have_the_same_rows():
    first, second = tables()
    assert [row[0] for row in first] == [row[0] for row in second]
    assert len(first) > 15


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_column_in_c_has_pytorchs_numbers(tmp_path):
    lines = "".join(
        f"    {call};\n" if call.startswith("gradient") else f"    if (({call}) < 0)\n        return 1;\n"
        for call in calls(0, 1)
    )
    source = f"""#include <stdio.h>
#include <optplug.h>
enum {{ n = 3 }};
static double w[n] = {{3, -2, 1}}, dw[n], b[n] = {{3, -2, 1}}, db[n];
static void gradient(const double *at, double *slope)
{{
    for (int i = 0; i < n; i++)
        slope[i] = 2 * at[i];
}}
static int closure(void *user, double *loss)
{{
    (void)user;
    gradient(w, dw);
    *loss = w[0] * w[0] + w[1] * w[1] + w[2] * w[2];
    return 0;
}}
int main(void)
{{
    double norm, loss, lr, *user = NULL;
    int opt;
{lines}    printf("%.17g\\n%.17g\\n%.17g\\n%.17g\\n%.17g\\n%.17g\\n", norm, loss, lr, w[0], w[1], w[2]);
    return 0;
}}
"""
    build_library(source, tmp_path)
    assert hosts.run_main("./main").stdout == expected()


@hosts.needs_cxx
def test_the_column_in_cxx_has_pytorchs_numbers(tmp_path):
    lines = "".join(f"    {call};\n" for call in calls(0, 2, "C++"))
    source = f"""#include <cstdio>
#include <optplug.hpp>
static double w[] = {{3, -2, 1}}, dw[3], b[] = {{3, -2, 1}}, db[3];
static void gradient(const double *at, double *slope)
{{
    for (int i = 0; i < 3; i++)
        slope[i] = 2 * at[i];
}}
int main()
{{
    double norm, loss, lr;
    auto closure = [] {{
        gradient(w, dw);
        return w[0] * w[0] + w[1] * w[1] + w[2] * w[2];
    }};
{lines}    for (double number : {{norm, loss, lr, w[0], w[1], w[2]}})
        std::printf("%.17g\\n", number);
}}
"""
    build_library(source, tmp_path, "main.cpp", (hosts.CXX, "-std=c++17"))
    assert hosts.run_main("./main").stdout == expected()


@hosts.needs_fortran
def test_the_column_in_fortran_has_pytorchs_numbers(tmp_path):
    lines = "".join(f"  call {call}\n" for call in calls(1, 1))
    source = f"""program main
  use, intrinsic :: iso_fortran_env, only: real64
  use optplug, only: optimizer
  implicit none
  real(real64), target :: w(3) = [3, -2, 1], dw(3), b(3) = [3, -2, 1], db(3)
  real(real64) :: norm, loss, lr
  type(optimizer) :: opt

{lines}  print "(es25.17)", norm, loss, lr, w

contains

  subroutine gradient(at, slope)
    real(real64), intent(in) :: at(3)
    real(real64), intent(out) :: slope(3)

    slope = 2 * at
  end subroutine

  subroutine closure(loss, stat, context)
    real(real64), intent(out) :: loss
    integer, intent(inout) :: stat
    class(*), intent(inout), optional :: context

    call gradient(w, dw)
    loss = sum(w * w)
  end subroutine
end program
"""
    compiler = (hosts.FC, "-Wno-unused-dummy-argument", f"{config('--fortran')[0]}/optplug.f90")
    build_library(source, tmp_path, "main.f90", compiler)
    assert printed(*map(float, hosts.run_main("./main").stdout.split())) == expected()


def test_the_column_in_python_has_pytorchs_numbers():
    lines = "\n".join(calls(0, 2, "Python"))
    source = f"""
import numpy as np
from optplug.ctypes_api import Optimizer

w, b = np.array([3.0, -2.0, 1.0]), np.array([3.0, -2.0, 1.0])
dw, db = np.zeros(3), np.zeros(3)

def gradient(at, slope):
    slope[:] = 2 * at

def closure():
    gradient(w, dw)
    return float((w**2).sum())

{lines}
for number in (norm, loss, lr, *w):
    print(f"{{number:.17g}}")
"""
    assert hosts.run(*hosts.PYTHON, "-c", source).stdout == expected()
