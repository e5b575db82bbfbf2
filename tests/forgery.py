"""Checkpoints that somebody has changed, whole as files, and an optimizer that they are to harm."""

from __future__ import annotations

import ctypes
import hashlib
import io
import zipfile
from collections.abc import Callable
from contextlib import contextmanager

import torch

from optplug import checkpoint, ctypes_api
from runs import Run, in_memory

lib = ctypes_api.load()

HANGS = 300  # seconds


class Calls:
    """Pickled, it is a call of a function."""

    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def forge(content: object) -> bytes:
    file = io.BytesIO()
    checkpoint.write(file, content)
    return file.getvalue()


def forge_again(content: bytes, change: Callable[[str, bytes], list[tuple[str, bytes, int]]]) -> bytes:
    """Return a checkpoint with other files in its archive: those that `change` makes of each."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.infolist():
            for name, data, kind in change(entry.filename, old.read(entry)):
                new.writestr(name, data, compress_type=kind)
    return seal(file.getvalue())


def seal(data: bytes) -> bytes:
    return data + checkpoint.SEAL + hashlib.sha256(data).digest()


def read(content: bytes) -> dict:
    return torch.load(io.BytesIO(content), weights_only=True)


class Victim:
    """A run, with a twin that loads nothing; both must stay the same."""

    def __init__(
        self,
        spec: str = "Adam()",
        schedule: str = "",
        average: str = "",
        steps: int = 3,
        with_parameters=False,
        **kind,
    ):
        self.run, self.twin = (Run(spec, schedule, average, **kind) for _ in range(2))
        for run in (self.run, self.twin):
            assert lib.opt_checkpoint(run.opt, f"parameters={with_parameters}".encode()) == 0
            run.go(steps)
        self.saved = in_memory(self.run)

    def refuses(self, content: bytes, words: str = "") -> None:
        before = self.run.bits()
        assert lib.opt_load_memory(self.run.opt, content, len(content)) == -1, words
        message = lib.opt_error().decode()
        assert message.startswith("buffer: "), message
        assert words in message
        assert "\n" not in message
        assert len(message) < 1000
        assert self.run.bits() == before
        buffer = ctypes.create_string_buffer(len(self.saved))
        assert lib.opt_save_memory(self.run.opt, buffer, len(buffer)) == len(buffer)
        assert buffer.raw == self.saved

    def refuses_change(self, change: Callable[[dict], object], words: str = "") -> None:
        content = read(self.saved)
        change(content)
        self.refuses(forge(content), words)

    def goes_on(self) -> None:
        for run in (self.run, self.twin):
            run.go(3)
        assert self.run.bits() == self.twin.bits()
        self.run.free()
        self.twin.free()


@contextmanager
def option(text: str):
    assert lib.opt_init(f"{text}=True".encode()) == 0, lib.opt_error()
    try:
        yield
    finally:
        assert lib.opt_init(f"{text}=False".encode()) == 0, lib.opt_error()


def is_plain(value: object) -> bool:
    is_tensor = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_nested
    return is_tensor and not (value.is_meta or value.is_neg() or value.is_conj() or value.is_quantized)


def state_of(content: dict) -> dict:
    return content["optimizer"]["state"]


def group_of(content: dict) -> dict:
    return content["optimizer"]["param_groups"][0]
