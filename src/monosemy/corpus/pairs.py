"""Paired texts: two columns of a table that belong together, such as before and after a change."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosemy.corpus.columns import text_of_row
from monosemy.corpus.document import Document
from monosemy.corpus.files import read_rows
from monosemy.errors import UserError

PREFIX = "pairs:"
COLUMNS = ("before", "after")
"""Of the two texts, unless others are named."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts of one row, and the row's other columns."""

    before: Document
    after: Document
    rest: dict[str, Any]


def read_pairs(file: str | Path, columns: tuple[str, str] = COLUMNS) -> Iterator[Pair]:
    """Yield the pairs of a table (.jsonl, .csv, .parquet).

    Their documents are called FILE:ROW/before and FILE:ROW/after, whatever the columns are. The
    held-out split hashes both texts, so that it never parts them.

    Raises:
        UserError: the table cannot be read, or a row lacks a column or holds no text there.
    """
    path = Path(file)
    for number, row in read_rows(path):
        texts = [text_of_row(row, column, f"{path}:{number}") for column in columns]
        before, after = (
            Document(f"{path.name}:{number}/{side}", text, split_key="\0".join(texts))
            for side, text in zip(COLUMNS, texts, strict=True)
        )
        yield Pair(before, after, {k: v for k, v in row.items() if k not in columns})


@dataclass(frozen=True)
class PairSource:
    """Both texts of every pair, one after the other."""

    path: Path
    columns: tuple[str, str] = COLUMNS

    def __post_init__(self) -> None:
        next(read_rows(self.path), None)  # what is missing shall be known at once

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.path}"

    def describe(self) -> dict[str, Any]:
        column = None if self.columns == COLUMNS else ",".join(self.columns)
        return {"source": self.name, "column": column}

    def read(self, rng: random.Random | None) -> Iterator[Document]:
        for pair in read_pairs(self.path, self.columns):
            yield pair.before
            yield pair.after


def pair_source(name: str, column: str | None) -> PairSource:
    """Return the source that `pairs:FILE` names; `column` holds two names, BEFORE,AFTER.

    Raises:
        UserError: it cannot be read, or other than two columns are named.
    """
    names = COLUMNS if column is None else tuple(part.strip() for part in column.split(","))
    if len(names) != 2 or not all(names):
        raise UserError(
            f"column is `{column}`, but pairs have two", "such as `--column func_before,func_after`"
        )
    return PairSource(Path(name.removeprefix(PREFIX)).expanduser(), (names[0], names[1]))
