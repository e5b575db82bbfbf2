"""What is around a step: clipping, averages, scales, checkpoints, processes."""

from __future__ import annotations

import ctypes
import io
import os
import subprocess
import sys

import pytest
import torch
from asked import (
    COUNT_OURS,
    FUSED,
    SPECS,
    Run,
    as_found,  # noqa: F401 (pytest finds it here)
    lib,
    saved,
    waits,
)

from optplug import _bridge

# ---- what is around a step ----


def test_zeroing_and_clipping_wait_only_for_a_norm_that_is_asked_for():
    run, norm = Run("Adam()", 0, 0, 0), ctypes.c_double()
    for asked in (
        run.do("opt_zero_grad"),
        run.do("opt_clip_grad_value", 1.0),
        run.do("opt_clip_grad_norm", 1.0, 2.0, 0, None),
    ):
        assert asked
        assert not waits(asked)
        assert all(run.on in line for line in asked)
    assert len(run.do("opt_zero_grad")) == 1  # for all three
    assert waits(run.do("opt_clip_grad_norm", 1.0, 2.0, 0, norm))


@pytest.mark.parametrize(
    "average",
    [
        "AveragedModel()",
        "AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.9))",
        "AveragedModel(avg_fn=get_ema_avg_fn(0.9))",
    ],
)
def test_averages_wait_only_where_the_cpu_gets_one(average):
    run = Run("Adam()")
    run.do("opt_average", average.encode())
    for _ in range(4):
        asked = run.do("opt_step")
        assert len(asked) > 2
        assert not waits(asked)
        assert all(run.on in line for line in asked)
    assert not waits(run.do("opt_average_swap"))
    assert not waits(run.do("opt_average_swap"))
    here, there = torch.ones(50), torch.ones(50, device="cuda:0")
    assert not waits(run.do("opt_average_get", b"p0", there.data_ptr()))
    assert waits(run.do("opt_average_get", b"p0", here.data_ptr()))
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("spec", FUSED)
def test_a_scale_is_read_on_the_gpu(spec):
    run, plain = Run(spec), Run(spec)
    scale, found_inf = torch.ones(1).to("cuda:0"), torch.zeros(1).to("cuda:0")
    run.do("opt_grad_scale", scale.data_ptr(), found_inf.data_ptr())
    asked, expected = run.steps(), [line.replace(plain.on, run.on) for line in plain.steps()]
    if not spec.startswith("SGD"):
        expected += [f"{run.on} {COUNT_OURS}"]  # takes the count back where the step is left out
    assert asked == expected
    assert "without Python" in run.describe()
    here = torch.ones(1)
    assert lib.opt_grad_scale(run.opt, here.data_ptr(), None) < 0
    assert b"scale is at address" in lib.opt_error()
    assert run.steps() == asked


def test_a_scale_on_one_gpu_is_for_all():
    run, scale = Run("Adam()", 0, 1), torch.ones(1).to("cuda:0")
    run.do("opt_grad_scale", scale.data_ptr(), None)
    assert any("copy 4 bytes" in line for line in run.steps())  # to the other one, for this step
    assert "without Python" not in run.describe()


def test_master_copies_are_made_on_the_gpu():
    assert lib.opt_init(b"master_weights=True") == 0
    run = Run("AdamW()", dtype=torch.bfloat16)
    copies = [f"{run.on} CopyFunctor"]
    assert run.steps() == [*copies, f"{run.on} {COUNT_OURS}", f"{run.on} FusedAdamMathFunctor", *copies]
    assert "stepped in float32" in run.describe()


def test_a_scale_with_averages_waits_at_the_first_steps_alone():
    run, scale, found_inf = Run("Adam()"), torch.ones(1).to("cuda:0"), torch.zeros(1).to("cuda:0")
    run.do("opt_average", b"AveragedModel()")
    run.do("opt_grad_scale", scale.data_ptr(), found_inf.data_ptr())
    assert waits(run.steps(1))
    assert not waits(run.steps(3))


def test_memory_of_before_a_stream_is_kept_until_that_has_done_with_it():
    assert lib.opt_init(b"master_weights=True") == 0
    run = Run("AdamW()", dtype=torch.bfloat16)  # whose copies are made before
    run.steps()
    assert f"stream {run.on}: record" in run.do("opt_free")


def test_a_look_at_gradients_waits():
    assert lib.opt_init(b"error_if_nonfinite=True") == 0
    run = Run("Adam()")
    assert waits(run.steps())
    assert "without Python" not in run.describe()


# ---- checkpoints ----


def state_in(text) -> dict[str, object]:
    return torch.load(io.BytesIO(text), weights_only=True)["optimizer"]["state"].get(0, {})


def devices_of(opt) -> list[tuple[str, torch.device]]:
    states = _bridge.optimizer_of(opt).run.built.state.values()
    return sorted((key, t.device) for s in states for key, t in s.items() if isinstance(t, torch.Tensor))


@pytest.mark.parametrize("spec", SPECS)
def test_checkpoints_go_from_one_device_to_another(spec):
    data, grad = torch.zeros(50), torch.zeros(50)
    here = lib.opt_create(spec.encode())
    assert lib.opt_bind(here, b"p0", b"float32", 50, data.data_ptr(), grad.data_ptr()) == 0
    for _ in range(3):
        assert lib.opt_step(here) == 0
    text, run = saved(here), Run(spec, 1)
    assert lib.opt_load_memory(run.opt, text, len(text)) == 0, lib.opt_error()
    states = [
        torch.load(io.BytesIO(t), weights_only=True)["optimizer"]["state"] for t in (text, saved(run.opt))
    ]
    for name, value in states[0].get(0, {}).items():
        there = states[1][0][name]
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, there), name
        else:
            assert value == there
    fresh = Run(spec, 1)
    fresh.steps(1)
    assert devices_of(run.opt) == devices_of(fresh.opt)
    assert run.steps() == [line.replace(fresh.on, run.on) for line in fresh.steps()]
    back = saved(run.opt)
    for value in state_in(back).values():
        assert not isinstance(value, torch.Tensor) or not value.is_cuda
    assert lib.opt_load_memory(here, back, len(back)) == 0, lib.opt_error()
    assert lib.opt_step(here) == 0, lib.opt_error()
    assert lib.opt_free(here) == 0


# ---- the process ----


def test_the_environment_is_as_before_and_nothing_more_is_imported():
    program = """if True:
        import ctypes, os, sys
        from optplug import ctypes_api
        lib, memory, shape = ctypes_api.load(), ctypes.c_void_p(), (ctypes.c_int64 * 1)(3)
        before = dict(os.environ)
        assert ctypes.CDLL(None).cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(24)) == 0
        opt, grad = lib.opt_create(b"Adam()"), memory.value + 12
        assert lib.opt_bind_nd(opt, b"w", b"float32", b"cuda:0", 1, shape, memory, None, grad, None) == 0
        assert lib.opt_step(opt) == lib.opt_step(opt) == lib.opt_free(opt) == 0
        assert dict(os.environ) == before
        assert "torch._dynamo" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_forked_process_has_no_gpu():
    runs = Run("Adam()"), Run("RMSprop()")
    for run in runs:
        run.steps()
    child = os.fork()
    if child == 0:
        refused = [
            call(run.opt, *arguments) < 0 and b"which a forked process cannot use" in lib.opt_error()
            for run in runs
            for call, *arguments in (
                (lib.opt_step,),
                (lib.opt_zero_grad,),
                (lib.opt_average, b"AveragedModel()"),
            )
        ]
        os._exit(0 if all(refused) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("graph", [[], ["graph"]])
def test_a_host_in_c(graph):
    done = subprocess.run(
        [os.environ["OPTPLUG_TEST_GPU_HOST"], "Adam(lr=0.1)", "50", "6", *graph],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout == "0x0p+0\n" * 50


def test_the_program_in_docs():
    done = subprocess.run(os.environ["OPTPLUG_TEST_GPU_PAGE"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 0 0\n", "")
