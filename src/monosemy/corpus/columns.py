"""Which column of a table holds the text, and the text of one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monosemy.errors import UserError, nearest

_USUAL_NAMES = ("text", "content", "code")


def choose_column(
    asked: str | None, columns: Sequence[str], text_columns: Sequence[str], where: str
) -> str:
    """Return the column that holds the text: the one asked for, a usual name, or the only one.

    Args:
        asked: the user's choice, or None to find it.
        columns: all there are.
        text_columns: those that hold strings.
        where: the file or data set, for the message.

    Raises:
        UserError: the column asked for is missing, or none or several could be meant.
    """
    if asked is not None:
        if asked in columns:
            return asked
        hint = f"columns: {_listed(columns)}. {nearest(asked, columns)}".rstrip()
        raise UserError(f"{where} has no column `{asked}`", hint)
    for name in _USUAL_NAMES:
        if name in text_columns:
            return name
    if len(text_columns) == 1:
        return text_columns[0]
    problem = "has several text columns" if text_columns else "has no text column"
    raise UserError(f"{where} {problem}", f"name one with `column`; columns: {_listed(columns)}")


def column_of_row(asked: str | None, row: Mapping[str, Any], where: str) -> str:
    """Choose the text column of a table without a schema by its first row.

    Raises:
        UserError: as `choose_column`.
    """
    # A null may stand where other rows have text; passing over it could choose the wrong column.
    text_columns = [name for name, value in row.items() if value is None or isinstance(value, str)]
    return choose_column(asked, list(row), text_columns, where)


def text_of_row(row: Mapping[str, Any], column: str, where: str) -> str:
    """Return the row's text; an absent value (null) is an empty text.

    Raises:
        UserError: the row lacks the column, or holds something else there.
    """
    if column not in row:
        raise UserError(f"{where} has no column `{column}`", f"columns: {_listed(list(row))}")
    value = row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(
            f"{where}: column `{column}` holds {kind}, not text", "name another with `column`"
        )
    return value


def spans_of_row(row: Mapping[str, Any], where: str) -> tuple[tuple[int, int], ...] | None:
    """Return the stretches of characters that count, where a row has any under `spans`.

    Raises:
        UserError: they are not pairs of numbers.
    """
    spans = row.get("spans")
    if spans is None:
        return None
    try:
        return tuple((int(first), int(last)) for first, last in spans)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: `spans` must be a list of [from, to], characters that count",
            "leave it out to count all",
        ) from error


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in columns) or "none"
