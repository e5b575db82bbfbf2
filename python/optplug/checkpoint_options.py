"""What a host has chosen for an optimizer's checkpoints, by opt_checkpoint."""

from __future__ import annotations

import dataclasses

from optplug import spec
from optplug.spec import shown


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """The options, by their names in ``"name=value, name=value"``."""

    #: Whether a checkpoint has the parameters' values in it, and loading puts those into the host's arrays.
    parameters: bool = False
    #: Whether loading brings schedulers, and the hyperparameters that they set.
    schedules: bool = True

    def changed(self, text: str) -> CheckpointOptions:
        """Return these options with those in a text changed.

        Raises:
            ValueError: it cannot be read, or there is no such option or value.
        """
        try:
            given = spec.arguments(text)
            for name, value in given.items():
                spec.choose(name, vars(self), "option")
                if type(value) is not bool:
                    raise ValueError(f"{name} must be True or False, got {shown(value)}")
        except ValueError as error:
            raise ValueError(f"options {shown(text)}: {error}") from error
        return dataclasses.replace(self, **given)

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in vars(self).items())
