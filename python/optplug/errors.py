"""Errors that are more than a wrong argument, which is a ValueError; and warnings."""

import warnings


class StateError(RuntimeError):
    """A call at the wrong moment, such as a step with nothing bound."""


class NonFiniteError(ArithmeticError):
    """A gradient with an inf or a nan in it, where the host has asked to be told."""


class FileError(RuntimeError):
    """A file that the system does not let us read or write."""


class RankError(RuntimeError):
    """Another rank of torch.distributed's that has ended, or does not answer."""


class HostError(Exception):
    """A function of the host's that failed; ``status`` is what the call of it returns."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def warn(message: str) -> None:
    """Warn the host, by ``opt_warning``; each time, where Python would say the same once in a process."""
    warnings.warn_explicit(message, UserWarning, __file__, 1, registry=None)
