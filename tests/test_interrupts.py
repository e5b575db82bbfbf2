"""Ctrl-C in a Python host: it comes after a call, or in a closure, and never in the middle of a step."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time

import pytest
import torch

from optplug import ctypes_api

lib = ctypes_api.load()
SIZE, STEPS = 50_000, 400


class Interrupter:
    """Sends SIGINT to this process again and again; when it is armed, one of them is KeyboardInterrupt."""

    def __enter__(self):
        self._before = signal.signal(signal.SIGINT, self._raise)
        self.armed, self.raised, self._ends = False, 0, False
        self._thread = threading.Thread(target=self._send)
        self._thread.start()
        return self

    def _send(self):
        while not self._ends:
            time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)

    def _raise(self, *_):
        if self.armed:
            self.armed = False
            self.raised += 1
            raise KeyboardInterrupt

    def __exit__(self, *error):
        self.armed, self._ends = False, True
        self._thread.join()
        signal.signal(signal.SIGINT, self._before)


def make(spec: str, w: torch.Tensor, dw: torch.Tensor) -> int:
    opt = lib.opt_create(spec.encode())
    assert opt > 0
    assert lib.opt_bind(opt, b"w", b"float64", w.numel(), w.data_ptr(), dw.data_ptr()) == 0
    assert lib.opt_step(opt) == 0
    return opt


def made_step(opt: int) -> bool:
    """Step; False where an interrupt that was there already, and that Python saw in the call, left it out."""
    status = lib.opt_step(opt)
    assert status == 0 or lib.opt_error() == b"PyTorch raised KeyboardInterrupt"
    return status == 0


@pytest.mark.parametrize("spec", ["RMSprop(lr=1e-3)", "Adam(lr=1e-3)", "NAdam(lr=1e-3)"])
def test_an_interrupt_leaves_no_step_half_made(spec):
    w, calm = torch.zeros(SIZE, dtype=torch.float64), torch.zeros(SIZE, dtype=torch.float64)
    dw = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    opt, reference = make(spec, w, dw), make(spec, calm, dw)
    seen = 0
    with Interrupter() as interrupter:

        def is_enough():  # where the machine is busy, interrupts are few, or end every step
            return seen + interrupter.raised >= STEPS and interrupter.raised > 10

        while not is_enough():
            try:
                while not is_enough():
                    interrupter.armed = True
                    seen += made_step(opt)
                interrupter.armed = False
            except KeyboardInterrupt:
                continue
    made = 0
    while not torch.equal(w, calm):  # a step whose end Python did not see is made as well
        assert made < seen + interrupter.raised, "w is what no number of whole steps makes"
        assert lib.opt_step(reference) == 0
        made += 1
    assert made >= seen
    assert lib.opt_free(opt) == 0
    assert lib.opt_free(reference) == 0


@pytest.mark.parametrize("spec", ["SGD(momentum=0.9)", "RMSprop()"])
def test_an_interrupt_that_python_has_not_seen_yet_leaves_out_the_step(spec):
    w = torch.zeros(50, dtype=torch.float64)
    opt = make(spec, w, torch.ones_like(w))
    before = w.clone()
    send = ctypes.cast(getattr(ctypes.CDLL(None), "raise"), ctypes_api.CALLBACK)
    with pytest.raises(KeyboardInterrupt):
        lib.opt_step_closure(opt, send, signal.SIGINT, ctypes.byref(ctypes.c_double()))
    assert torch.equal(w, before)
    assert made_step(opt)
    assert not torch.equal(w, before)
    assert lib.opt_free(opt) == 0


def test_an_interrupt_in_a_closure_is_the_closures():
    w = torch.zeros(SIZE, dtype=torch.float64)
    opt = make("SGD()", w, torch.ones_like(w))
    seen = []

    @ctypes_api.CALLBACK
    def closure(_, loss):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            seen.append("interrupted")
        loss[0] = 1.0
        return -77

    before = signal.getsignal(signal.SIGINT)
    assert lib.opt_step_closure(opt, closure, None, ctypes.byref(ctypes.c_double())) == -77
    assert seen == ["interrupted"]
    assert signal.getsignal(signal.SIGINT) is before
    assert lib.opt_free(opt) == 0
