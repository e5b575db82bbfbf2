"""The ranks of a parallel program, and what is sent between them: two collectives, and all else by those."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from optplug.errors import FileError, HostError, NonFiniteError, StateError

#: Makes a collective, "all_gather" or "reduce_scatter" (which adds up), of one tensor into another.
Collective = Callable[[str, Tensor, Tensor], None]

Result = TypeVar("Result")

_KINDS = (ValueError, StateError, NonFiniteError, FileError, MemoryError)
_TAG = 96  # bytes that name a call
_SHARED = 3  # numbers that `World.share` sends
_STEPPED = "stepped"  # what a rank says that has made the step in which another one has failed


class World:
    """The ranks that step one optimizer together.

    Args:
        collective: is called by all ranks in the same order.
        rank: this process's, from 0.
        size: how many there are.
    """

    def __init__(self, collective: Collective, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        #: How many collectives were made, and how many bytes a rank has sent to each other in them.
        self.sent = np.zeros(2, np.int64)
        #: What calls a collective, if it is not to be called where it is wanted.
        self.caller: Callable[[Callable[[], None]], None] | None = None
        #: What makes them.
        self.collective = collective
        self._process = os.getpid()
        #: Whether ranks compare what they are in before each collective, and at calls that make none.
        self.is_checked = False
        #: The call that they are in, and whether that is in a function of the host's.
        self.call, self.is_in_host = "", False
        #: What a call in that function was told of.
        self.failure: Exception | None = None
        #: What has been wrong with the calls, for all that is left of this one.
        self._differ: ValueError | None = None

    def _run(self, what: str, send: Tensor, receive: Tensor) -> None:
        count = min(send.numel(), receive.numel()) * send.itemsize
        if self.is_checked:
            self._compare_calls(f"{self.call}, in {what} of {count} bytes")
        self.sent += 1, count
        self._send(what, send, receive)

    def check_process(self) -> None:
        """Check that this process is a rank, and not a child of one."""
        if os.getpid() != self._process:
            error = StateError("the ranks are those of the parent process: step this optimizer there")
            vars(error)["is_known"] = True
            raise error

    def _send(self, what: str, send: Tensor, receive: Tensor) -> None:
        self.check_process()
        try:
            if self.caller:
                self.caller(functools.partial(self.collective, what, send, receive))
            else:
                self.collective(what, send, receive)
        except Exception as error:
            vars(error)["is_known"] = True  # nobody is left to tell
            raise

    def check(self, call: str) -> None:
        """Note which call this rank is in, and, if ranks are to be checked, fail where another is in another.

        Raises:
            ValueError: one is.  All ranks say the same.
        """
        self.call = call
        if not self.is_in_host:
            self._differ = None
        if self.is_checked:
            self._compare_calls(call)

    def _compare_calls(self, mine: str) -> None:
        if self._differ:
            raise self._differ
        send = torch.frombuffer(bytearray(_tag(mine)), dtype=torch.uint8)
        receive = bytearray(_TAG * self.size)
        self._send("all_gather", send, torch.frombuffer(receive, dtype=torch.uint8))
        calls = [receive[i : i + _TAG].decode().rstrip() for i in range(0, len(receive), _TAG)]
        for rank, call in enumerate(calls):
            if call != calls[0]:
                self._differ = ValueError(
                    f"ranks differ: call is {call!r} on rank {rank}, {calls[0]!r} on rank 0"
                )
                vars(self._differ)["is_of_all"] = vars(self._differ)["is_known"] = True
                raise self._differ

    def all_gather(self, part: Tensor, into: Tensor | None = None) -> Tensor:
        """Return the parts of all ranks, of one size, a row each, or write them into what has room for them.

        Only copies are made, and so all ranks get the same bits.
        """
        part = part.contiguous()
        got = torch.empty(self.size, *part.shape, dtype=part.dtype) if into is None else into
        self._run("all_gather", part.view(-1).view(torch.uint8), got.view(-1).view(torch.uint8))
        return got

    def reduce_scatter(self, rows: Tensor, into: Tensor) -> None:
        """Let rank i have the sum over all ranks of row i."""
        self._run("reduce_scatter", rows.view(-1), into)

    def numbers(self, *values: float) -> list[tuple[float, ...]]:
        """Return some numbers of each rank, by rank."""
        count = len(values)
        if not count:
            return [()] * self.size
        send = torch.frombuffer(bytearray(struct.pack(f"{count}d", *values)), dtype=torch.uint8)
        receive = bytearray(8 * count * self.size)
        self._run("all_gather", send, torch.frombuffer(receive, dtype=torch.uint8))
        return list(struct.iter_unpack(f"{count}d", receive))

    def texts(self, text: str) -> list[str]:
        """Return a text of each rank, by rank."""
        mine = text.encode(errors="replace")
        lengths = [int(n) for (n,) in self.numbers(len(mine))]
        padded = bytearray(mine.ljust(max(*lengths, 1)))
        rows = self.all_gather(torch.frombuffer(padded, dtype=torch.uint8))
        return [bytes(row[:n].tolist()).decode() for row, n in zip(rows, lengths, strict=True)]

    def agree(self, statement: Mapping[str, Any]) -> None:
        """Check that all ranks state the same; one collective of 32 bytes if they do.

        Raises:
            ValueError: they do not, or a statement has an "error".  All ranks say the same.
        """
        text = json.dumps(statement, sort_keys=True)
        digest = bytearray(hashlib.sha256(text.encode()).digest())
        digests = self.all_gather(torch.frombuffer(digest, dtype=torch.uint8))
        try:
            if not (digests == digests[0]).all():
                compare([json.loads(t) for t in self.texts(text)])
            elif "error" in statement:
                compare([dict(statement)] * self.size)
        except Exception as error:
            vars(error)["is_of_all"] = vars(error)["is_known"] = True
            raise

    def exchange(self, error: Exception | None) -> None:
        """Fail on all ranks if one has an error; one collective of a number if none has."""
        if any(failed for (failed,) in self.numbers(error is not None)):
            self.fail(error)

    def fail(self, error: Exception | None, has_stepped: bool = False) -> NoReturn:
        """Raise the error of the lowest rank that has one, on all ranks, which all call this.

        Args:
            error: this rank's.
            has_stepped: whether this rank has made the step in which another one has failed, for good.
        """
        text = _STEPPED if has_stepped else ""
        if error is not None:
            text = f"{_kind(error)}\n{error or type(error).__name__}"
        texts = self.texts(text)
        stepped = [rank for rank, t in enumerate(texts) if t == _STEPPED]
        rank, said = next(
            ((i, t) for i, t in enumerate(texts) if t not in ("", _STEPPED)), (0, "\na step has failed")
        )
        kind, _, message = said.partition("\n")
        if stepped and "load a checkpoint" not in message:
            message += f" (rank {stepped[0]} had already made this step: load a checkpoint on all ranks)"
        raised = _made(kind, f"rank {rank}: {message}")
        vars(raised)["is_of_all"] = vars(raised)["is_known"] = True
        self.failure = raised if self.is_in_host else None
        raise raised from error

    def share(
        self, *values: float, error: Exception | None = None, has_stepped: bool = False
    ) -> list[tuple[float, ...]]:
        """Return up to three numbers of each rank, by rank; fail on all ranks if one has an error.

        All ranks send as many, wherever in a call they are: so one that has failed is heard by the others.
        """
        rest = _SHARED - len(values)
        table = self.numbers(error is not None, *values, *[0.0] * rest)
        if any(failed for failed, *_ in table):
            self.fail(error, has_stepped)
        return [row[1 : 1 + len(values)] for row in table]

    def listen(self) -> None:
        """In a function of the host's, fail if that has failed on another rank, which makes no call in it."""
        if self.is_in_host:
            if self.failure:
                raise self.failure
            self.share()

    @contextlib.contextmanager
    def in_host(self) -> Iterator[None]:
        """Let a block call a function of the host's, and fail with the calls in it that were told to."""
        self.is_in_host, self.failure = True, None
        try:
            yield
        finally:
            self.is_in_host = False
        if self.failure:
            raise self.failure

    @contextlib.contextmanager
    def as_one(self, can_undo: bool = True) -> Iterator[None]:
        """Let a block fail on all ranks if it does on one; before each other collective in it, they `share`.

        Args:
            can_undo: whether what the block has changed is put back if this fails.
        """
        with Unheard() as block:
            yield
        self.share(error=block.error, has_stepped=block.error is None and not can_undo)

    def together(self, work: Callable[[], Result]) -> Result:
        """Do some work, and fail on all ranks if it fails on one."""
        error, result = None, None
        try:
            result = work()
        except Exception as found:
            error = found
        self.exchange(error)
        return cast(Result, result)

    def all_or_none(self, work: Callable[[Callable[[Mapping[str, Any]], None]], Result]) -> Result:
        """Do some work, which states something before it changes anything.

        There it fails on all ranks, if it has failed on one or they state different things.
        """
        is_told = False

        def state(statement: Mapping[str, Any]) -> None:
            nonlocal is_told
            is_told = True
            self.agree(statement)

        try:
            return work(state)
        except Exception as error:
            if not is_told:
                self.agree(statement_of(error))
            raise


def _tag(call: str) -> bytes:
    """Return what names a call, a long one by its beginning and a digest."""
    name = call.encode("ascii", "backslashreplace")
    if len(name) > _TAG:
        name = name[: _TAG - 16] + hashlib.sha256(name).hexdigest()[:16].encode()
    return name.ljust(_TAG)


def is_of_all(error: BaseException) -> bool:
    """Tell whether all ranks have raised an error together."""
    return "is_of_all" in vars(error)


class Unheard:
    """Catches the error of a block, if it has one, that the other ranks are still to be told of."""

    error: Exception | None = None

    def __enter__(self) -> Unheard:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception) or "is_known" in vars(error):  # or who cannot be told
            return False
        self.error = error
        return True


def compare(statements: Sequence[dict[str, Any]]) -> None:
    """Say in which statement the first difference is.

    Raises:
        ValueError: there is one, or an error is stated.
    """
    for rank, statement in enumerate(statements):
        if "error" in statement:
            raise _made(statement["kind"], f"rank {rank}: {statement['error']}")
    first = statements[0]
    for rank, statement in enumerate(statements):
        keys = (first.keys() | statement.keys()) - {"parameters"}
        for key in sorted(keys, key=lambda key: (key != "call", key)):  # by which the others are others
            theirs, ours = statement.get(key), first.get(key)
            if theirs != ours:
                raise ValueError(f"ranks differ: {key} is {theirs!r} on rank {rank}, {ours!r} on rank 0")
        theirs, ours = statement["parameters"], first["parameters"]
        for name in sorted(ours.keys() | theirs.keys()):
            if (name in ours) != (name in theirs):
                there, lacks = (0, rank) if name in ours else (rank, 0)
                raise ValueError(
                    f"ranks differ: parameter {name!r} is bound on rank {there}, and not on rank {lacks}"
                )
            if theirs[name] != ours[name]:
                raise ValueError(
                    f"ranks differ: parameter {name!r} is {theirs[name]} on rank {rank}, "
                    f"{ours[name]} on rank 0"
                )


def statement_of(error: Exception) -> dict[str, str]:
    """Return what a rank states that has an error instead."""
    return {"error": str(error), "kind": _kind(error)}


def _kind(error: Exception) -> str:
    if isinstance(error, HostError):
        return f"HostError {error.status}"
    return next((kind.__name__ for kind in _KINDS if isinstance(error, kind)), "RuntimeError")


def _made(kind: str, message: str) -> Exception:
    name, _, status = kind.partition(" ")
    if status:
        return HostError(message, int(status))
    return {k.__name__: k for k in _KINDS}.get(name, RuntimeError)(message)
