"""A document, and the decision on which side of the held-out split it falls."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

HELD_OUT_SHARE = 0.1
"""Share of documents kept away from training, unless asked otherwise."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from."""

    id: str
    """Where the text came from, for people: a path, a row number."""
    text: str
    spans: tuple[tuple[int, int], ...] | None = None
    """Stretches of characters, [from, to): tokens with one of them count; None: all do."""
    split_key: str = field(default="")
    """What the held-out split hashes. Empty: the text itself, so that copies fall on one side."""

    def is_held_out(self, share: float = HELD_OUT_SHARE) -> bool:
        """Say whether this document is in the held-out part.

        Depends on `split_key` (or the text) alone, never on order, seed or other documents.
        """
        key = self.split_key or self.text
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < share * 2**64
