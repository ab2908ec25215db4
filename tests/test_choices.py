"""Prompts with two answers: as they are published, as tables of two texts, and built in."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from monosemy.corpus.choices import (
    CAA,
    KINDS,
    Choice,
    made_choices,
    read_choices,
    split_choices,
)
from monosemy.errors import UserError

ROWS = [
    dict(zip(CAA, ("Do you agree?\n\nChoices:\n (A) Yes\n (B) No", "(A)", "(B)"), strict=True)),
    dict(zip(CAA, ("Is it so?\n\nChoices:\n (A) No\n (B) Yes", " (B) ", "(A)"), strict=True)),
]


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("layout", ["list", "lines", "lines called json"])
def test_published_contrast_pairs_are_read(layout: str, tmp_path: Path) -> None:
    text = json.dumps(ROWS, indent=1)
    if layout != "list":
        text = "".join(json.dumps(row) + "\n" for row in ROWS)
    found = list(
        read_choices(written(tmp_path / ("a.jsonl" if layout == "lines" else "a.json"), text))
    )
    assert [(c.wanted, c.other) for c in found] == [("(A)", "(B)"), ("(B)", "(A)")]
    assert all(c.asks for c in found) and found[0].prompt == ROWS[0]["question"]


def test_two_columns_share_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["positive", "negative", "topic"])
        rows.writerow(["I love it", "I hate it", "a"])
    (found,) = read_choices(path)
    assert found == Choice("I ", "love it", "hate it")
    (found,) = read_choices(f"pairs:{path}", ("negative", "positive"))
    assert found.wanted == "hate it" and not found.asks
    with pytest.raises(UserError, match="no column `good`"):
        list(read_choices(path, ("good", "bad")))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "empty list"),
        ('[{"question": "a"', "not JSON"),
        ('["a"]', "is a str, not an object"),
        (json.dumps([{CAA[0]: "a", CAA[1]: "(A)"}]), f"has no `{CAA[2]}`"),
        (json.dumps([{CAA[0]: "a", CAA[1]: "(A)", CAA[2]: "(A)"}]), "both texts are the same"),
        (json.dumps([{CAA[0]: "a", CAA[1]: ["(A)"], CAA[2]: "(A)"}]), "holds list, not text"),
        ('{"positive": "a", "negative": "ab"}', "beginning of the other"),
        ('{"positive": "a", "negative": "a"}', "are the same"),
        ('{"before": "a", "after": "b"}', "no column `positive`"),
    ],
)
def test_malformed_pairs_are_named(text: str, told: str, tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.json", text)
    with pytest.raises(UserError) as raised:
        list(read_choices(path))
    assert told in str(raised.value) and "pairs.json" in raised.value.message


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        list(read_choices(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"cannot read .*none\.csv"):
        list(read_choices(tmp_path / "none.csv"))
    with pytest.raises(UserError, match="builtin:docstring"):
        list(read_choices("builtin:doc"))


def test_a_group_is_never_parted() -> None:
    choices = [Choice(f"{i} ", "a", "b", f"file {i % 7}") for i in range(70)]
    made, tested = split_choices(choices)
    assert len(made) + len(tested) == 70
    assert not {c.group for c in made} & {c.group for c in tested}
    assert split_choices(choices[::-1]) == (made[::-1], tested[::-1])
    with pytest.raises(UserError, match=r"of 10 pairs, (0|10) are held out"):
        split_choices(choices[::7])


@pytest.mark.parametrize("kind", ["docstring", "for"])
def test_openings_of_functions_in_held_out_files(kind: str) -> None:
    found = list(made_choices(kind, most=30))
    assert len(found) == 30 and len({choice.group for choice in found}) > 5
    for choice in found:
        if kind == "docstring":
            assert choice.wanted.strip("rRuU")[0] in "\"'" and choice.other[0] not in "\"'"
        else:
            assert choice.wanted.startswith("for ") and not choice.other.startswith("for ")
        assert "def " in choice.prompt and choice.prompt[-1] in " \n"  # indentation belongs to it
    assert kind in KINDS and found == list(made_choices(kind, most=30))
