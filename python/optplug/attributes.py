"""A host's own words in a checkpoint: texts by name."""

from __future__ import annotations

from typing import Any

from optplug import spec
from optplug.spec import shown

_MOST_BYTES = 1 << 20  # of all names and texts together, in UTF-8


class Attributes:
    """Texts that a host attaches to an optimizer, and finds again after a load."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def set(self, name: str, text: str | None) -> None:
        """Keep a text under a name, in place of the one that it had; None removes that.

        Raises:
            ValueError: the name is empty, or there would be too much.
        """
        if not name:
            raise ValueError("name must not be empty")
        texts = {key: value for key, value in self._texts.items() if key != name}
        if text is not None:
            texts[name] = text
            size = _size(texts)
            if size > _MOST_BYTES:
                raise ValueError(
                    f"text of {shown(name)} is too long: all attributes would have {size} bytes, and at "
                    f"most {_MOST_BYTES} are possible"
                )
        self._texts = texts

    def get(self, name: str) -> str:
        """Return the text of a name.

        Raises:
            ValueError: there is none.
        """
        spec.check_name(name, self._texts, "attribute")
        return self._texts[name]

    def describe(self) -> list[str]:
        """Return a line for each."""
        return [f"attribute {shown(name)}: {shown(text)}" for name, text in self._texts.items()]

    def state_dict(self) -> dict[str, str]:
        """Return all texts by name."""
        return dict(self._texts)

    def load_state_dict(self, texts: dict[str, str]) -> None:
        """Take over what `read` has returned."""
        self._texts = dict(texts)


def read(saved: Any) -> dict[str, str]:
    """Return the texts by name that a checkpoint has.

    Raises:
        ValueError: they are none that `Attributes` could have.
    """
    is_right = isinstance(saved, dict) and all(
        type(part) is str and "\0" not in part for pair in saved.items() for part in pair
    )
    try:
        if is_right and "" not in saved and _size(saved) <= _MOST_BYTES:
            return saved
    except UnicodeEncodeError:
        pass
    raise ValueError("not a checkpoint: its attributes are malformed")


def _size(texts: dict[str, str]) -> int:
    return sum(len(part.encode()) for pair in texts.items() for part in pair)
