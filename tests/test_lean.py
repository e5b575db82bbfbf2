"""What a start costs: nothing of torch that a bare ``import torch`` does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from optplug import recipe
from optplug.lean import lean

STEP_ALL = """
import os, sys
import torch
bare, environment = set(sys.modules), dict(os.environ)
import ctypes, optplug
lib = ctypes.CDLL(optplug.library())
w, g, n, rows = (ctypes.c_float * 4)(), (ctypes.c_float * 4)(), ctypes.c_int64(1), (ctypes.c_int64 * 1)()
shape = (ctypes.c_int64 * 2)(2, 2)
assert lib.opt_init(None) == 0
optplug.known.fingerprint = None  # Python's parser is none for a small stack
lib.opt_bind_sparse.argtypes = [ctypes.c_int] + [ctypes.c_char_p] * 2 + [ctypes.c_int64] * 2 + [
    ctypes.c_void_p, ctypes.c_int64] + [ctypes.c_void_p] * 3
lib.opt_iterate.argtypes = [ctypes.c_int, ctypes.c_double]
for name in sys.argv[1:]:
    opt = lib.opt_create(f"{name}()".encode())
    if name == "SparseAdam":
        assert lib.opt_bind_sparse(opt, b"w", b"float32", 2, 2, w, 1, ctypes.byref(n), rows, g) == 0
    else:
        assert lib.opt_bind_nd(opt, b"w", b"float32", b"cpu", 2, shape, w, None, g, None) == 0
    if name == "LBFGS":
        while (left := lib.opt_iterate(opt, 1.0)) > 0: pass
        assert left == 0
    else:
        assert name == "SparseAdam" or lib.opt_average(opt, b"AveragedModel()") == 0
        for _ in range(3): assert lib.opt_step(opt) == 0
    assert lib.opt_set(opt, -1, b"lr=0.5") == 0
    assert lib.opt_schedule(opt, b"StepLR(3)") == 0
assert dict(os.environ) == environment
print("\\n".join(sorted(set(sys.modules) - bare)))
"""


def test_no_optimizer_needs_more_of_torch_than_its_import_has():
    run = [sys.executable, "-c", STEP_ALL, *recipe.classes()]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    new = {
        name for name in done.stdout.split() if name.partition(".")[0] not in ("optplug", "ctypes", "_ctypes")
    }
    saving = {"resource", "torch.utils.serialization", "torch.utils.serialization.config"}  # little ones
    assert new <= {"_cffi_backend", "_optplug", *saving}, new


@pytest.mark.parametrize("name", recipe.classes())
def test_a_lean_class_is_the_full_one_to_who_looks_at_it(name):
    full, ours = getattr(torch.optim, name), lean(getattr(torch.optim, name))
    assert issubclass(ours, full)
    assert (ours.__name__, ours.__module__, ours.__doc__) == (full.__name__, full.__module__, full.__doc__)
    assert lean(full) is ours
