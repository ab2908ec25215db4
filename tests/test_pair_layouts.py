"""Pairs as data sets have them: known by their columns, and matched rightly."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from monosemy.corpus import open_corpus, read_pairs
from monosemy.errors import UserError

C = "static int {name}(char *s) {{ return {body}; }}"


def function(name: str, body: str, target: int, commit: str = "c1", **more: Any) -> dict:
    func = C.format(name=name, body=body)
    row = {"func": func, "target": target, "project": "curl", "commit_id": commit}
    return {**row, "cwe": ["CWE-125", "CWE-787"], **more}


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["primevul_paired.jsonl", "diversevul.json"])
def test_functions_of_a_commit_are_matched_by_name(name: str, tmp_path: Path) -> None:
    rows = [
        function("other", "9", 0),
        function("parse", "s[4]", 1),
        function("parse", "s[4]", 0, commit="elsewhere"),
        function("copy", "s[1]", 1),
        function("copy", "s[0]", 0),
        function("parse", "s[3]", 0),
        function("alone", "1", 1, commit="c2"),
    ]
    found = list(read_pairs(jsonl(tmp_path / name, rows)))
    assert [(p.before.text, p.after.text) for p in found] == [
        (rows[1]["func"], rows[5]["func"]),
        (rows[3]["func"], rows[4]["func"]),
    ]
    assert {(p.label, p.group) for p in found} == {("CWE-125", "curl")}
    assert found[0].rest["commit_id"] == "c1" and found[0].before.id == f"{name}:2/before"


def test_a_function_that_the_fix_renames_is_matched_where_it_is_the_only_one(
    tmp_path: Path,
) -> None:
    rows = [function("old", "1", 1), function("new", "2", 0)]
    (pair,) = read_pairs(jsonl(tmp_path / "a.jsonl", rows))
    assert pair.after.text == rows[1]["func"]
    rows.append(function("third", "3", 0))
    with pytest.raises(UserError, match="has no pairs"):
        list(read_pairs(jsonl(tmp_path / "b.jsonl", rows)))


def test_functions_with_other_targets_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [function("f", "1", 2)])
    with pytest.raises(UserError, match="`target` is 2"):
        list(read_pairs(path))


# Functions before and after, a database of CVEfixes, and the same as files.

METHODS = [
    ("m1", "f1", "parse", "parse( char * s)", "return s[4];", "True"),
    ("m2", "f1", "parse", "parse( char * s)", "return s[3];", "False"),
    ("m3", "f1", "same", "same()", "return 1;", "True"),
    ("m4", "f1", "same", "same()", "return 1;", "False"),
    ("m5", "f1", "gone", "gone()", "return 2;", "True"),
    ("m6", "f2", "parse", "parse( char * s)", "return s[0];", "False"),
]
TABLES: dict[str, tuple[tuple[str, ...], list[tuple]]] = {
    "method_change": (
        ("method_change_id", "file_change_id", "name", "signature", "code", "before_change"),
        METHODS,
    ),
    "file_change": (
        ("file_change_id", "hash", "filename"),
        [("f1", "abc", "a.c"), ("f2", "def", "b.c")],
    ),
    "fixes": (
        ("cve_id", "hash", "repo_url"),
        [("CVE-1", "abc", "https://x/curl"), ("CVE-2", "def", "https://x/curl")],
    ),
    "cwe_classification": (("cve_id", "cwe_id"), [("CVE-1", "CWE-125"), ("CVE-2", "CWE-20")]),
    "cve": (("cve_id", "description"), [("CVE-1", "reads too far")]),
}


def database(path: Path, without: str = "") -> Path:
    with sqlite3.connect(path) as opened:
        for name, (columns, rows) in TABLES.items():
            if name != without:
                opened.execute(f"create table {name} ({', '.join(columns)})")
                marks = ", ".join("?" for _ in columns)
                opened.executemany(f"insert into {name} values ({marks})", rows)
    opened.close()
    return path


def folder(path: Path, without: str = "") -> Path:
    path.mkdir()
    for number, (name, (columns, rows)) in enumerate(TABLES.items()):
        if name != without:  # the files' names say nothing
            with (path / f"table{number}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([columns, *rows])
    return path


@pytest.mark.parametrize("make", [database, folder])
def test_cvefixes(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path / "data")
    (pair,) = read_pairs(path)
    assert (pair.before.text, pair.after.text) == ("return s[4];", "return s[3];")
    assert (pair.label, pair.group) == ("CWE-125", "https://x/curl")
    assert pair.rest["cve_id"] == "CVE-1"
    assert len(list(open_corpus(f"pairs:{path}").documents("all"))) == 2


@pytest.mark.parametrize("make", [database, folder])
def test_cvefixes_without_classes_or_without_fixes(make: Any, tmp_path: Path) -> None:
    (pair,) = read_pairs(make(tmp_path / "a", without="cwe_classification"))
    assert pair.label == ""
    with pytest.raises(UserError, match="no table like fixes"):
        list(read_pairs(make(tmp_path / "b", without="fixes")))


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.db"
    path.write_bytes(database(tmp_path / "whole.db").read_bytes()[:3000])
    with pytest.raises(UserError, match="is damaged"):
        list(read_pairs(path))


# Any two columns.


def test_columns_of_texts_class_and_group_can_be_named(tmp_path: Path) -> None:
    rows = [{"true": "a is a", "false": "a is b", "topic": "logic", "from": 3}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    (pair,) = read_pairs(path, ("false", "true"), label="topic", group="from")
    assert (pair.before.text, pair.label, pair.group) == ("a is b", "logic", "3")
    (unnamed,) = read_pairs(path, ("false", "true"))
    assert (unnamed.label, unnamed.group) == ("", "")
    with pytest.raises(UserError, match="no column `kind`"):
        list(read_pairs(path, ("false", "true"), label="kind"))
    with pytest.raises(UserError, match="no column `before`") as caught:
        list(read_pairs(path))
    assert "func_before" in caught.value.hint and "true" in caught.value.hint


def test_usual_names_are_found(tmp_path: Path) -> None:
    row = {"func_before": "a", "func_after": "b", "CWE ID": "CWE-79", "project": "x"}
    (pair,) = read_pairs(jsonl(tmp_path / "a.jsonl", [row]))
    assert (pair.before.text, pair.after.text, pair.label, pair.group) == ("a", "b", "CWE-79", "x")
