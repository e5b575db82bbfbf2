"""python -m optplug inspect: what is in a checkpoint."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from optplug.ctypes_api import Optimizer


@pytest.fixture
def saved(tmp_path) -> pathlib.Path:
    """A checkpoint with all that one can have."""
    w, dw = np.ones((3, 2)), np.ones((3, 2))
    v, dv = np.ones(4, np.float32), np.ones(4, np.float32)
    with Optimizer("Adam(lr=0.5)") as opt:
        opt.bind("w", w, dw)
        opt.group("lr=0.25")
        opt.bind("bias", v, dv)
        opt.schedule("StepLR(step_size=2)")
        opt.average("AveragedModel()")
        for _ in range(3):
            opt.step()
            opt.schedule_step()
        opt.checkpoint("parameters=True")
        opt.attribute("note", "tabs\tand\nlines")
        opt.save(tmp_path / "run.pt")
    return tmp_path / "run.pt"


def test_inspect_says_what_is_in_a_checkpoint(call, saved):
    status, out, _ = call("inspect", str(saved), "--json")
    found = json.loads(out)
    tables = {name: rows for name, rows in found.items() if isinstance(rows, list)}
    assert (status, found["bytes"], found["torch"]) == (0, saved.stat().st_size, torch.__version__)
    assert (found["format"], found["seal"], found["optimizer"]) == ("optplug 1", "intact", "Adam")
    assert found["average"] == "AveragedModel() of 3 steps"
    assert found["steps"] == 3
    assert tables["attributes"] == [{"attribute": "note", "text": "tabs\tand\nlines"}]
    assert found["bytes of state"] == 2 * (6 * 8 + 4 * 4) + 2 * 4
    assert found["bytes of parameters"] == found["bytes of the average"] == 6 * 8 + 4 * 4
    assert [row["hyperparameters"]["initial_lr"] for row in tables["groups"]] == [0.5, 0.25]
    assert tables["parameters"] == [
        {
            "parameter": "w",
            "group": 0,
            "dtype": "float64",
            "shape": [3, 2],
            "steps": 3,
            "values": "in the file",
        },
        {
            "parameter": "bias",
            "group": 1,
            "dtype": "float32",
            "shape": [4],
            "steps": 3,
            "values": "in the file",
        },
    ]
    assert {"parameter": "bias", "state": "exp_avg", "dtype": "float32", "shape": [4], "bytes": 16} in tables[
        "state"
    ]
    assert tables["schedulers"] == [{"scheduler": "StepLR(step_size=2)", "steps": 3, "lr": [0.05, 0.025]}]
    lines = call("inspect", str(saved))[1].splitlines()
    assert "w\t0\tfloat64\t[3, 2]\t3\tin the file" in lines


def test_inspect_reads_what_torch_has_saved(call, tmp_path):
    path = tmp_path / "torch.pt"
    parameter = torch.nn.Parameter(torch.ones(5))
    parameter.grad = torch.ones(5)
    optimizer = torch.optim.SGD([("w", parameter)], lr=0.1, momentum=0.9)
    optimizer.step()
    for content in (optimizer.state_dict(), {"optimizer": optimizer.state_dict(), "epoch": 3}):
        torch.save(content, path)
        status, out, _ = call("inspect", str(path))
        assert status == 0
        assert "format:         plain PyTorch\nseal:           none\nbytes of state: 20\n" in out
        assert "w\tmomentum_buffer\tfloat32\t[5]\t20" in out
        assert "lr=0.1, momentum=0.9" in out


def test_inspect_of_a_damaged_or_foreign_file_is_a_line(call, saved, tmp_path):
    bad = tmp_path / "bad.pt"
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    for make, said in (
        (lambda: bad.write_bytes(content), "checksum mismatch"),
        (lambda: bad.write_bytes(saved.read_bytes()[:-1]), "damaged"),
        (lambda: bad.write_bytes(b""), "it is empty"),
        (lambda: bad.write_text("epoch,loss"), "not a checkpoint"),
        (lambda: torch.save({"a": 1}, bad), "it contains no optimizer state"),
        (lambda: torch.save({"state": 1, "param_groups": [1]}, bad), "an entry has the wrong type"),
        (lambda: torch.save({"state": {}, "param_groups": [{}]}, bad), "it has no 'params'"),
        (lambda: torch.save(torch.ones(1), bad), "it contains a Tensor"),
        (bad.unlink, "No such file"),
        (bad.mkdir, "Is a directory"),
    ):
        make()
        status, out, err = call("inspect", str(bad))
        assert (status, out, err.count("\n")) == (1, "", 1), said
        assert err.startswith(f"path '{bad}': ")
        assert said in err


def test_inspect_shows_names_on_one_line_and_without_escapes(call, tmp_path):
    path, names = (
        tmp_path / "c.pt",
        ["\x1b[31mred\x07", "a\nb: fake line", "x\r\x1b[2K", "\u202e rtl", "\x9b31m"],
    )
    values = [torch.nn.Parameter(torch.ones(5)) for _ in names]
    optimizer = torch.optim.Adam(list(zip(names, values, strict=True)))
    optimizer.param_groups[0]["\x1b[1m"] = "\x1b]0;title\x07"
    for value in values:
        value.grad = torch.ones(5)
    optimizer.step()
    torch.save(optimizer.state_dict(), path)
    status, out, _ = call("inspect", str(path))
    assert (status, [c for c in out if not (c.isprintable() or c in "\n\t")]) == (0, [])
    assert [line for line in out.splitlines() if "fake line" in line and not line.startswith("a\\nb")] == []
    assert r"\x1b[31mred\x07" in out
    assert "\x1b" not in call("inspect", str(path), "--json")[1]


def test_inspect_shows_no_more_than_fits(call, tmp_path):
    path, laugh = tmp_path / "c.pt", ("ha",) * 2
    for _ in range(14):
        laugh = laugh, laugh
    group = {"params": [0], "lr": 0.1, "x" * 10**6: "y" * 10**6, "laugh": laugh, "row": [1] * 10**5}
    torch.save({"state": {0: {"step": laugh}}, "param_groups": [group]}, path)
    for form in ((), ("--json",)):
        status, out, _ = call("inspect", str(path), *form)
        assert status == 0
        assert len(out) < 10_000


def test_the_current_folders_modules_are_not_imported(saved):
    for name in ("argparse", "ctypes", "json", "numpy", "pathlib", "rich", "shlex", "torch", "zipfile"):
        (saved.parent / f"{name}.py").write_text("open('imported', 'a').write(__name__)\n")
    for line in (["inspect", saved], ["doctor"]):
        done = subprocess.run(
            [sys.executable, "-m", "optplug", *line],
            cwd=saved.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert not (saved.parent / "imported").exists()
