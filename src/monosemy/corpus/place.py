"""A place in a stream of text, from which it goes on without tokenising what came before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from monosemy.errors import UserError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stream stands: before some batch of a block of rows.

    The block begins in a document, after some of its tokens; from there on text is tokenised
    again. A stream begins at `Place()`.
    """

    epoch: int = 0
    """Times the corpus was gone over to its end."""
    document: int = 0
    """Documents of this epoch before the one in which the block begins."""
    token: int = 0
    """Tokens of that one before the block."""
    block: int = 0
    """Blocks before."""
    batch: int = 0
    """Batches of the block before."""
    checksum: int = 0
    """CRC-32 of the document's tokens, so that other text is noticed; 0 in the first block."""

    def to_dict(self) -> dict[str, int]:
        """Return the numbers by name, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Place:
        """Return the place that `to_dict` described.

        Raises:
            UserError: a number is missing, unknown or negative, or is none.
        """
        known = [field.name for field in fields(cls)]
        numbers = all(isinstance(n, int) and n >= 0 for n in values.values())
        if not numbers or set(values) != set(known):
            raise UserError(
                f"{dict(values)} is no place in a text",
                f"it has {', '.join(known)}, each 0 or above; the file was edited, or made by a "
                "different version",
            )
        return cls(**values)
