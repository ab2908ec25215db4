"""Documents from Python objects."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monosemy.corpus.columns import column_of_row, spans_of_row, text_of_row
from monosemy.corpus.document import Document
from monosemy.errors import UserError


@dataclass(frozen=True, eq=False)
class MemorySource:
    """Any iterable of strings, of documents, or of rows (mappings, as `datasets.Dataset` has).

    A generator is refused: it could be read once only, and keeping what it gave would fill the
    memory without the user's knowledge.
    """

    items: Iterable[Any]
    column: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.items, Iterator):
            raise UserError(
                f"a {type(self.items).__name__} can be read only once",
                "pass `list(...)` of it, or an object whose `__iter__` starts again",
            )

    @property
    def name(self) -> str:
        return f"python:{type(self.items).__name__}"

    def describe(self) -> dict[str, str | None]:
        return {"source": self.name, "column": self.column}

    def read(self, rng: random.Random | None) -> Iterator[Document]:
        column = self.column
        for number, item in self._numbered(rng):
            if isinstance(item, Mapping):
                column = column or column_of_row(None, item, "the first row")
                text = text_of_row(item, column, f"row {number}")
                spans = spans_of_row(item, f"row {number}")
                yield Document(id=str(number), text=text, spans=spans)
            else:
                yield _document(item, number)

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the rows, each with the name of its place.

        Raises:
            UserError: an item is no row.
        """
        for number, item in enumerate(self.items):
            if not isinstance(item, Mapping):
                raise UserError(
                    f"item {number} is a {type(item).__name__}, not a row",
                    "allowed: mappings from the name of a column to its value",
                )
            yield f"row {number}", item

    def _numbered(self, rng: random.Random | None) -> Iterator[tuple[int, Any]]:
        if rng is None or not isinstance(self.items, Sequence):
            yield from enumerate(self.items)
            return
        order = list(range(len(self.items)))
        rng.shuffle(order)
        yield from ((number, self.items[number]) for number in order)


def _document(item: object, number: int) -> Document:
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        return Document(id=str(number), text=item)
    raise UserError(
        f"item {number} of the corpus is a {type(item).__name__}",
        "allowed: strings, `Document`s, or mappings with a text column",
    )
