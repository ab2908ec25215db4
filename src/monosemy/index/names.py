"""What features are called, by people and by methods: plain JSON lines in the index's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosemy.artefact import disk_error, write_text
from monosemy.errors import UserError

HUMAN = "human.jsonl"
NO_CONCEPT = "no known concept"
"""The label of a feature that stands for none of the concepts tried."""
LONGEST = 500
"""Characters in a name."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name somebody gave a feature; an empty one takes back what they called it before."""

    feature: int
    name: str
    by: str
    at: str
    """Time, ISO 8601 in UTC."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON lines file; none where there is no file.

    Raises:
        UserError: a line is no JSON object with a feature's number.
    """
    if not path.is_file():
        return []
    lines = [line for line in path.read_text("utf-8").split("\n") if line and not line.isspace()]
    try:
        rows: list[dict[str, Any]] = json.loads(f"[{','.join(lines)}]")  # faster than one by one
        if len(rows) == len(lines) and all(int(row["feature"]) >= 0 for row in rows):
            return rows
    except (ValueError, KeyError, TypeError):
        pass
    return [_row(path, number, line) for number, line in enumerate(lines, start=1)]


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    """Return a row, or say what is wrong with it."""
    try:
        row: dict[str, Any] = json.loads(line)
        int(row["feature"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"`{path}` line {number} is not as it was written: {line[:80]!r}",
            'each line is a JSON object with `"feature": NUMBER`; mend or remove it',
        ) from error
    return row


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines, whole or not at all.

    Raises:
        UserError: the disk refuses.
    """
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_names(folder: Path) -> dict[int, list[Name]]:
    """Return what people call each feature: the latest name by each, in the order given.

    Raises:
        UserError: a line is not as it was written.
    """
    latest: dict[tuple[int, str], Name] = {}
    for row in read_lines(folder / HUMAN):
        name = _name(row, folder / HUMAN)
        key = name.feature, name.by
        if key in latest and latest[key].at > name.at:
            continue
        latest.pop(key, None)
        latest[key] = name
    found: dict[int, list[Name]] = {}
    for name in latest.values():
        if name.name:
            found.setdefault(name.feature, []).append(name)
    return found


def add_name(folder: Path, name: Name) -> None:
    """Add a line. Several programs may do so at once: a line is written in one piece.

    Raises:
        UserError: it is too long, or the disk refuses.
    """
    if len(name.name) > LONGEST:
        raise UserError(f"a name of {len(name.name)} characters", f"allowed: up to {LONGEST}")
    line = json.dumps(
        {"feature": name.feature, "name": name.name, "by": name.by, "at": name.at},
        ensure_ascii=False,
    )
    path = folder / HUMAN
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, (line + "\n").encode("utf-8", "replace"))
        finally:
            os.close(file)
    except OSError as error:
        raise disk_error(path, error, "make room; the name was not kept") from error


def merge_names(folder: Path, other: Path, width: int) -> int:
    """Take in the names of another file, such as a colleague's; returns how many lines were new.

    Raises:
        UserError: the file is missing or damaged, or names a feature that is not there.
    """
    if not other.is_file():
        raise UserError(f"no file `{other}`", f"expected a `{HUMAN}`")
    theirs = [_name(row, other) for row in read_lines(other)]
    for name in theirs:
        if not 0 <= name.feature < width:
            raise UserError(
                f"`{other}` names feature {name.feature}",
                f"this dictionary has features 0 to {width - 1}: is it of another one?",
            )
    mine = {_name(row, folder / HUMAN) for row in read_lines(folder / HUMAN)}
    new = [name for name in dict.fromkeys(theirs) if name not in mine]
    for name in new:
        add_name(folder, name)
    return len(new)


def _name(row: dict[str, Any], path: Path) -> Name:
    try:
        return Name(int(row["feature"]), str(row["name"]), str(row["by"]), str(row["at"]))
    except KeyError as error:
        raise UserError(
            f"a line of `{path}` has no {error}: {row}", "needed: feature, name, by, at"
        ) from error
