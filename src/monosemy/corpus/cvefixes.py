"""CVEfixes: functions before and after the fix of a vulnerability, in tables of a database.

Bhandari, Naseer & Moonen 2021, "CVEfixes: automated collection of vulnerabilities and their fixes
from open-source software"; its data dictionary names tables and columns.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monosemy.corpus.files import read_rows
from monosemy.errors import UserError, reason

_TABLES = {
    "method_change": ("file_change_id", "name", "signature", "code", "before_change"),
    "file_change": ("file_change_id", "hash"),
    "fixes": ("cve_id", "hash", "repo_url"),
    "cwe_classification": ("cve_id", "cwe_id"),
}
"""A table is known by its columns. The last may be missing: then no class is known."""

# A commit may fix several vulnerabilities, and these have several classes; the first is taken.
_QUERY = """
select b.code as before, a.code as after, min(c.cwe_id) as cwe_id, x.repo_url as repo_url,
       min(x.cve_id) as cve_id, b.name as name
from "method_change" b
join "method_change" a on a.file_change_id = b.file_change_id and a.name = b.name
     and a.signature = b.signature
join "file_change" f on f.file_change_id = b.file_change_id
join "fixes" x on x.hash = f.hash
left join "cwe_classification" c on c.cve_id = x.cve_id
where lower(b.before_change) in ('true', '1') and lower(a.before_change) in ('false', '0')
      and a.code <> b.code
group by b.code, a.code
order by x.repo_url, x.hash, b.name
"""


def is_database(path: Path) -> bool:
    """Say whether a file is an SQLite database, whatever it is called."""
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


def cvefixes_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield a row for each function that a fix changed: before, after, cwe_id, repo_url, cve_id.

    Args:
        path: the SQLite database, or a folder with its tables as .csv.

    Raises:
        UserError: it cannot be read, or a table is missing.
    """
    database = sqlite3.connect("") if path.is_dir() else _opened(path)
    database.row_factory = sqlite3.Row
    try:
        there = _load(database, path) if path.is_dir() else _tables_in(database)
        missing = [name for name in list(_TABLES)[:-1] if name not in there]
        if missing:
            wanted = "; ".join(f"{name}: {', '.join(_TABLES[name])}" for name in missing)
            raise UserError(
                f"{path} is not CVEfixes: it has no table like {', '.join(missing)}",
                f"a table is known by its columns; {wanted}",
            )
        for name, columns in _TABLES.items():
            names = ", ".join(f'"{column}"' for column in columns)
            if name in there:
                rows = f'select {names} from main."{there[name]}"'
            else:
                rows = f"select {', '.join('null' for _ in columns)}"
            database.execute(f'create temp view "{name}" ({names}) as {rows}')
        for number, row in enumerate(database.execute(_QUERY), start=1):
            yield f"{path}:{number}", dict(row)
    except sqlite3.Error as error:
        raise UserError(f"{path} is damaged: {reason(error)}", "copy it again") from error
    finally:
        database.close()


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _tables_in(database: sqlite3.Connection) -> dict[str, str]:
    """Return what each known table is called in a database."""
    query = "select name from main.sqlite_master where type = 'table' order by name"
    there: dict[str, str] = {}
    for (table,) in database.execute(query).fetchall():
        columns = [
            row["name"] for row in database.execute("select * from pragma_table_info(?)", [table])
        ]
        for name in _known(columns):
            there.setdefault(name, table)
    return there


def _load(database: sqlite3.Connection, folder: Path) -> dict[str, str]:
    """Copy the known tables of a folder into a database, which keeps them in a temporary file."""
    there: dict[str, str] = {}
    for file in sorted(folder.glob("*.csv")):
        _, first = next(read_rows(file), (0, {}))
        for name in _known(list(first)):
            if name not in there:
                there[name] = name
                columns = _TABLES[name]
                names = ", ".join(f'"{column}"' for column in columns)
                database.execute(f'create table main."{name}" ({names})')
                rows = ([row[column] for column in columns] for _, row in read_rows(file))
                marks = ", ".join("?" for _ in columns)
                database.executemany(f'insert into main."{name}" values ({marks})', rows)
    return there


def _known(columns: list[str]) -> list[str]:
    """Return the names of the tables that one with such columns may be."""
    return [name for name, wanted in _TABLES.items() if set(wanted) <= set(columns)]
