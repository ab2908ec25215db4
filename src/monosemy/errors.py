"""The one exception for mistakes a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

LISTED = 12
"""Names that an error lists before it counts the rest."""


class UserError(Exception):
    """What is wrong and the value seen (`message`); what is allowed and what to do (`hint`).

    The command line prints both without a traceback and leaves with status 2.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message if not hint else f"{message}\n{hint}")
        self.message = message
        self.hint = hint


def reason(error: BaseException) -> str:
    """Return the first line of what an exception says; its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Say which of `known` are spelled most like `name`: "did you mean `a`, `b`?", or ""."""
    found = difflib.get_close_matches(name, dict.fromkeys(known), n=count, cutoff=0.5)
    return f"did you mean {', '.join(f'`{match}`' for match in found)}?" if found else ""


def first_of(names: Sequence[str], most: int = LISTED) -> str:
    """Return names as a list in words, of which the first are named and the others counted."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
