"""The ranks of torch.distributed: which of them a launcher says that this is, and where they meet."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from optplug.errors import RankError, StateError
from optplug.spec import shown
from optplug.world import World

#: How launchers tell a process its rank and the number of ranks.  Not SLURM_NTASKS: a batch script, which
#: srun has not started, is SLURM_PROCID 0 of so many.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
_PAUSE = 0.2  # seconds between two looks for rank 0


def torchs(rank: int, size: int, timeout: float) -> World:
    """Return the ranks of torch.distributed, which is started if it has not been.

    Args:
        rank: this process's as the host knows it, ...
        size: ... with the number of ranks; 0 for what the launcher says.
        timeout: seconds after which a rank that does not answer is an error.
    """
    if not torch.distributed.is_available():
        raise StateError("this PyTorch is built without torch.distributed: pass a collective of your own")
    if not torch.distributed.is_initialized():
        _start(timeout)
    found = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if size and found != (rank, size):
        raise ValueError(
            f"rank {rank} of size {size}: torch.distributed has rank {found[0]} of {found[1]}: pass 0 and 0"
        )
    return World(_ByTorch(), *found)


def _start(timeout: float) -> None:
    environment = os.environ
    found = next(((r, s) for r, s in _LAUNCHERS if environment.get(r) and environment.get(s)), None)
    if found is None:
        raise StateError(
            "collective is NULL, and no launcher says which rank this is (RANK and WORLD_SIZE are not set): "
            "start the program by torchrun --no-python, mpiexec or srun, or pass a collective, as "
            "optplug_mpi.h does"
        )
    size = _number(found[1], 1, sys.maxsize)
    rank = _number(found[0], 0, size - 1)
    _check_is_new(rank, size)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if size > 1 and missing:
        raise StateError(
            f"collective is NULL, and {missing[0]} is not set: torch.distributed's ranks meet at "
            "MASTER_ADDR:MASTER_PORT, which torchrun sets; or use optplug_mpi.h"
        )
    if size == 1:
        store: Any = torch.distributed.HashStore()  # type: ignore[attr-defined]
    else:
        has_agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        is_first = rank == 0 and not has_agent
        port, begun = _number("MASTER_PORT", 0, 65535), time.monotonic()
        host = "localhost" if is_first else _address_of(environment["MASTER_ADDR"], port, timeout)
        left = datetime.timedelta(seconds=max(timeout - (time.monotonic() - begun), 1))
        try:
            with _lost():
                store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
                    host, port, size, is_master=is_first, timeout=left
                )
        except RuntimeError as error:
            if "address already in use" not in str(error):
                raise
            raise RankError(
                f"MASTER_PORT={port} is in use on this node: give all ranks a free one"
            ) from error
    # Torchrun's store outlives a restart, and the addresses of before in it would mislead the next attempt.
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = torch.distributed.PrefixStore(f"optplug/{attempt}", store)  # type: ignore[attr-defined]
    with _lost():
        torch.distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=timeout)
        )


def _check_is_new(rank: int, size: int) -> None:
    """Check that RANK and WORLD_SIZE are not left from another program, where another launcher says a rank.

    Torchrun says that it has set them.  What else sets them on purpose, in a process of another launcher,
    starts as many ranks in each of those, in order.

    Raises:
        StateError: they do not go with what the other launcher says.
    """
    own, *others = _LAUNCHERS
    if os.environ.get("TORCHELASTIC_RUN_ID") or not all(map(os.environ.get, own)):
        return
    for names in others:
        if all(map(os.environ.get, names)):
            count = _number(names[1], 1, sys.maxsize)
            process = _number(names[0], 0, count - 1)
            if size % count or rank // (size // count) != process:
                raise StateError(
                    f"collective is NULL, and the environment has RANK={rank} and WORLD_SIZE={size}, but "
                    f"{names[0]}={process} and {names[1]}={count}: unset the first two if they are left from "
                    "another program, else the last two"
                )
            return


def _address_of(name: str, port: int, timeout: float) -> str:
    """Wait until somebody listens where the ranks meet, and return the address by number.

    torch's own wait lasts twice as long and writes its stack to stderr, and its look for a name's IPv6
    address writes that there is none.
    """
    end, why = time.monotonic() + timeout, ""
    while True:
        try:
            with socket.create_connection((name, port), max(end - time.monotonic(), _PAUSE)) as connection:
                return str(connection.getpeername()[0])
        except OSError as error:
            why = error.strerror or str(error)
        if time.monotonic() + _PAUSE > end:
            raise RankError(
                f"rank 0 has not listened at MASTER_ADDR:MASTER_PORT, {name}:{port}, for {timeout:g} s "
                f"({why}): see that it was started, that this is its node's address, and that no firewall "
                "keeps ranks apart"
            )
        time.sleep(_PAUSE)


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    """Say in one line what torch says at length where another rank has ended or does not answer."""
    try:
        yield
    except RuntimeError as error:
        text = re.sub(r"^\[[^]]*\] ", "", " ".join(str(error).split())).partition(". This is")[0]
        if not re.search("connection|timed? ?out|closed|peer", text, re.IGNORECASE):
            raise
        raise RankError(
            f"another rank has ended, or does not answer ({text}): end this one too; "
            "torchrun can start all of them again, and opt_load goes on from a checkpoint"
        ) from error


def _number(name: str, least: int, most: int) -> int:
    """Return a variable's value; StateError if it is no number from least to most."""
    text = os.environ[name]
    if not text.isdecimal() or not least <= int(text) <= most:
        bound = f"from {least}" if most == sys.maxsize else f"from {least} to {most}"
        raise StateError(
            f"collective is NULL, and the environment has {name}={shown(text)}: it must be a whole number "
            f"{bound}; unset it if it is left from another program, or correct it where the ranks are started"
        )
    return int(text)


class _ByTorch:
    """Makes torch.distributed's collectives."""

    def __init__(self) -> None:
        # The last one: torch's own thread drops it at some time after it is done, and must not be the last to
        # have it, since it would wait for Python to drop its tensors, which aborts a process that is ending.
        self._last: Any = None

    def __call__(self, what: str, send: Tensor, receive: Tensor) -> None:
        # From 2.13 on torch warns of the names before.
        names = ("single", "into_tensor") if what == "all_gather" else ("single", "tensor")
        found = (getattr(torch.distributed, f"{what}_{name}", None) for name in names)
        function = next(function for function in found if function)
        with _lost():
            self._last = function(receive, send, async_op=True)
            self._last.wait()
