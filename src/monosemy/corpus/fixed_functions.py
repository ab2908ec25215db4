"""Functions that are each flawed or not, as PrimeVul and DiverseVul have them: pairs of a commit.

PrimeVul (Ding et al. 2024, arXiv 2403.18624), DiverseVul (Chen et al. 2023, arXiv 2304.00409).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monosemy.corpus.columns import text_of_row
from monosemy.corpus.files import read_rows
from monosemy.errors import UserError

COLUMNS = ("func", "target", "commit_id")
"""By which the layout is known: source, 1 where it is flawed, and the fix it comes from."""

_CALLED = re.compile(r"([A-Za-z_~$][\w:~$]*)\s*\(")
_TARGETS = {"1": True, "true": True, "0": False, "false": False}

_Commit = tuple[str, str]
_Function = tuple[int, dict[str, Any]]


def fixed_functions(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield a row for each function that a commit gives flawed and not, under the same name.

    Where names differ, a commit's only flawed function goes with its only other one. The table
    is read twice, and of functions that are not flawed only those kept that may be wanted.

    Yields:
        The place of the flawed function, and its columns, `before` and `after` among them.

    Raises:
        UserError: it cannot be read, a target is neither 0 nor 1, or no commit gives a pair.
    """
    flawed: dict[_Commit, list[_Function]] = defaultdict(list)
    fixed: dict[_Commit, dict[str, list[_Function]]] = defaultdict(lambda: defaultdict(list))
    for number, row in read_rows(path):
        if _target(row, f"{path}:{number}"):
            flawed[_commit(row)].append((number, row))
    for number, row in read_rows(path):
        if (commit := _commit(row)) in flawed and not _target(row, f"{path}:{number}"):
            fixed[commit][_name(row, f"{path}:{number}")].append((number, row))
    found = 0
    for commit, functions in flawed.items():
        others = fixed[commit]
        lone = len(functions) == 1 and sum(map(len, others.values())) == 1
        for number, row in functions:
            name = next(iter(others)) if lone else _name(row, f"{path}:{number}")
            if others.get(name):
                after = others[name].pop(0)[1]["func"]
                if after != row["func"]:
                    found += 1
                    rest = {k: v for k, v in row.items() if k not in ("func", "target")}
                    yield f"{path}:{number}", {"before": row["func"], "after": after, **rest}
    if not found:
        raise UserError(
            f"{path} has no pairs: no commit gives a function of the same name with target 1 "
            "and with target 0",
            "PrimeVul's paired files have them, and DiverseVul's whole table",
        )


def _commit(row: Mapping[str, Any]) -> _Commit:
    return str(row.get("project")), str(row.get("commit_id"))


def _target(row: Mapping[str, Any], where: str) -> bool:
    value = str(row.get("target")).lower()
    if value not in _TARGETS:
        raise UserError(f"{where}: `target` is {row.get('target')!r}", "allowed: 1 (flawed) or 0")
    return _TARGETS[value]


def _name(row: Mapping[str, Any], where: str) -> str:
    """Return the function's name: what stands before the first parenthesis."""
    found = _CALLED.search(text_of_row(row, "func", where))
    return found[1] if found else ""
