"""What a corpus reads its documents from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from monosemy.corpus.document import Document


@runtime_checkable
class Source(Protocol):
    """Documents that can be read again and again."""

    @property
    def name(self) -> str:
        """What a user would type to open it again, where that is possible."""

    def read(self, rng: random.Random | None) -> Iterator[Document]:
        """Yield every document; files and items that can be listed are shuffled first with `rng`.

        Raises:
            UserError: a document cannot be read; the message names its file and row.
        """

    def describe(self) -> dict[str, Any]:
        """The arguments of `open_corpus` that say where the documents come from."""
