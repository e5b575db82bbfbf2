"""A PyTorch that is not as it was read: its own steps, whatever they have become, or a clear error."""

from __future__ import annotations

import pytest

import hosts
import moved

#: What ends with an error at the start: something that optplug takes from torch is gone.
GONE = {
    "torch._foreach_copy_": "del torch._foreach_copy_",
    "torch.optim.optimizer._global_optimizer_pre_hooks": "import torch.optim.optimizer as o; "
    "del o._global_optimizer_pre_hooks",
    "torch.optim.Adam": "del torch.optim.Adam",
}

START = """
import ctypes, torch
{}
import optplug
lib = ctypes.CDLL(optplug.library())
lib.opt_error.restype = ctypes.c_char_p
for _ in "ab":
    assert lib.opt_init(None) == -4
    said = lib.opt_error().decode()
    assert lib.opt_create(b"SGD(lr=0.1)") == -4
    assert lib.opt_error().decode() == said
print(said)
"""


def run(*arguments: str) -> str:
    done = hosts.python(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("change", moved.CHANGES)
def test_steps_are_those_of_a_torch_that_has_changed(change):
    said = run(str(hosts.PROJECT / "tests/moved.py"), change)
    assert said.count("step:") == 2 * len(moved.CHANGES[change].specs)
    if change == "nothing":  # or all the others would show nothing
        assert said.count("without Python") == 2 * 6
        assert said.count("on rows") == 2 * 2


@pytest.mark.parametrize("name", GONE)
def test_a_torch_that_lacks_something_is_an_error_of_the_start(name):
    said = run("-c", START.format(GONE[name]))
    assert "has no attribute" in said
    assert name.rpartition(".")[2] in said
    assert "is unknown to optplug, which knows torch up to 2." in said
    assert "-m pip install 'torch==2." in said
