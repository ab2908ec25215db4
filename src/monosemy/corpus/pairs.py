"""Paired texts: before and after a change, which is of some class and from one of many groups."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosemy.corpus.columns import text_of_row
from monosemy.corpus.cvefixes import cvefixes_rows, is_database
from monosemy.corpus.document import Document
from monosemy.corpus.files import read_rows
from monosemy.corpus.fixed_functions import COLUMNS as FUNCTIONS
from monosemy.corpus.fixed_functions import fixed_functions
from monosemy.corpus.made_pairs import made_pairs
from monosemy.corpus.refactorings import REFACTORINGS
from monosemy.errors import UserError

PREFIX = "pairs:"
BUILTIN = "builtin:stdlib"
"""Pairs made from Python's standard library."""
COLUMNS = ("before", "after")
"""Of the two texts, unless others are named."""
CONTROL = "control"
"""Class of pairs of which one text is as good as the other."""

_TEXTS = (COLUMNS, ("func_before", "func_after"))
_LABELS = ("class", "label", "cwe", "cwe_id", "CWE ID")
_GROUPS = ("group", "project", "repo_url", "repo", "file")

Row = tuple[str, Mapping[str, Any]]
"""The name of a row's place, and its columns."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts of one row, what they differ in, and the row's other columns."""

    before: Document
    after: Document
    rest: dict[str, Any]
    label: str = ""
    """Class of the change, such as `CWE-193`; `control`: of none; "" where none is named."""
    group: str = ""
    """What it shares with other pairs, such as a project; "" where none is named."""


def read_pairs(
    source: str | Path,
    columns: tuple[str, str] | None = None,
    *,
    label: str | None = None,
    group: str | None = None,
) -> Iterator[Pair]:
    """Yield paired texts, of a layout that is known by its columns.

    - Any table (.jsonl, .csv, .parquet) with two columns of text: those named, or `before` and
      `after`, or `func_before` and `func_after`.
    - Functions with `func`, `target` and `commit_id` (PrimeVul, DiverseVul): a commit's function
      whose target is 1, and the one of the same name whose target is 0.
    - CVEfixes: its SQLite database, or a folder with its tables as .csv.
    - `builtin:stdlib`: `made_pairs`; the class of a refactoring is `control`.

    Their documents are called FILE:ROW/before and FILE:ROW/after, whatever the columns are. The
    held-out split hashes both texts, so that it never parts them; of `builtin:stdlib`, the path.

    Args:
        source: a file, a folder, or `builtin:stdlib`.
        columns: of the two texts.
        label: column of the class; of a list the first counts. None: a usual name, where there.
        group: column of the group; likewise.

    Raises:
        UserError: it cannot be read, is of no known layout, or a row lacks a column or holds no
            text there.
    """
    if str(source) == BUILTIN:
        yield from _builtin()
        return
    for where, row in _rows(Path(source).expanduser(), columns):
        names = columns or _text_columns(row, where)
        texts = [text_of_row(row, column, where) for column in names]
        before, after = (
            Document(f"{Path(where).name}/{side}", text, split_key="\0".join(texts))
            for side, text in zip(COLUMNS, texts, strict=True)
        )
        rest = {k: v for k, v in row.items() if k not in names}
        said = (_said(row, label, _LABELS, where), _said(row, group, _GROUPS, where))
        yield Pair(before, after, rest, *said)


def _rows(path: Path, columns: tuple[str, str] | None) -> Iterator[Row]:
    """Yield rows with two texts each, whatever the layout."""
    if path.is_dir() or is_database(path):
        yield from cvefixes_rows(path)
        return
    _, first = next(read_rows(path), (0, {}))
    paired = columns is not None or any(set(names) <= set(first) for names in _TEXTS)
    if not paired and set(FUNCTIONS) <= set(first):
        yield from fixed_functions(path)
        return
    for number, row in read_rows(path):
        yield f"{path}:{number}", row


def _text_columns(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    for names in _TEXTS:
        if set(names) <= set(row):
            return names
    missing = next(name for name in COLUMNS if name not in row)
    raise UserError(
        f"{where} has no column `{missing}`",
        f"columns: {', '.join(row)}. Name two of them, as BEFORE,AFTER; known without names: "
        f"before, after; func_before, func_after; {', '.join(FUNCTIONS)}",
    )


def _said(row: Mapping[str, Any], asked: str | None, usual: Sequence[str], where: str) -> str:
    """Return a row's class or group; the first where it names several."""
    if asked is not None and asked not in row:
        raise UserError(f"{where} has no column `{asked}`", f"columns: {', '.join(row)}")
    value = row.get(asked or next((name for name in usual if name in row), ""))
    if isinstance(value, list):
        value = value[0] if value else None
    return "" if value is None else str(value)


def _builtin() -> Iterator[Pair]:
    for made in made_pairs():
        names = [f"{made.file}:{made.name} ({made.kind})/{side}" for side in COLUMNS]
        before, after = (
            Document(name, text, split_key=made.file)
            for name, text in zip(names, (made.before, made.after), strict=True)
        )
        label = CONTROL if made.kind in REFACTORINGS else made.kind
        yield Pair(before, after, {"kind": made.kind}, label, made.file)


@dataclass(frozen=True)
class PairSource:
    """Both texts of every pair, one after the other."""

    path: str
    columns: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if self.path != BUILTIN:
            next(self._pairs(), None)  # what is missing shall be known at once

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.path}"

    def describe(self) -> dict[str, Any]:
        column = None if self.columns is None else ",".join(self.columns)
        return {"source": self.name, "column": column}

    def read(self, rng: random.Random | None) -> Iterator[Document]:
        for pair in self._pairs():
            yield pair.before
            yield pair.after

    def _pairs(self) -> Iterator[Pair]:
        return read_pairs(self.path, self.columns)


def pair_source(name: str, column: str | None) -> PairSource:
    """Return the source that `pairs:FILE` names; `column` holds two names, BEFORE,AFTER.

    Raises:
        UserError: it cannot be read, or other than two columns are named.
    """
    return PairSource(name.removeprefix(PREFIX), None if column is None else two_columns(column))


def two_columns(text: str) -> tuple[str, str]:
    """Return the names in `BEFORE,AFTER`.

    Raises:
        UserError: there are other than two.
    """
    names = tuple(part.strip() for part in text.split(","))
    if len(names) != 2 or not all(names):
        raise UserError(
            f"column is `{text}`, but pairs have two", "such as `func_before,func_after`"
        )
    return names[0], names[1]
