"""Minimal pairs: read as published, made for the embedded model, refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from monosemy.corpus.minimal_pairs import MINIMAL_PAIRS, MinimalPair, minimal_pairs
from monosemy.errors import UserError
from monosemy.intervene import fitting
from monosemy.intervene.prompts import margins, tokenise
from monosemy.lm import LM

PUBLISHED = {
    "clean_prefix": "The parents near the car",
    "patch_prefix": "The parent near the car",
    "clean_answer": " are",
    "patch_answer": " is",
    "case": "plural_singular",
}


@pytest.fixture(scope="module")
def stdlib() -> LM:
    return LM("builtin:stdlib", device="cpu")


def written(folder: Path, *rows: object) -> Path:
    path = folder / "pairs.json"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_pairs_are_read_as_published(tmp_path: Path) -> None:
    ours = {"clean": "a", "corrupted": "b", "answer": "c", "wrong": "d"}
    one_sided = {"clean_prefix": "a", "clean_answer": "c", "patch_prefix": None}
    assert minimal_pairs(written(tmp_path, PUBLISHED, ours, one_sided)) == [
        MinimalPair("The parents near the car", "The parent near the car", " are", " is"),
        MinimalPair("a", "b", "c", "d"),
        MinimalPair("a", None, "c", None),
    ]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prefix": "a"}, "clean_prefix"),
        ({"clean_prefix": "a"}, "clean_answer"),
        ({"clean_prefix": "", "clean_answer": "b"}, "clean_prefix"),
        ({"clean_prefix": 3, "clean_answer": "b"}, "int"),
        ([1], "not an object"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_place(tmp_path: Path, row: object, told: str) -> None:
    with pytest.raises(UserError, match=":1") as raised:
        minimal_pairs(written(tmp_path, row))
    assert told in str(raised.value)


def test_a_set_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean `bracket`"):
        minimal_pairs("brackets")
    with pytest.raises(UserError, match="holds no pairs"):
        minimal_pairs(written(tmp_path))


@pytest.mark.parametrize("name", MINIMAL_PAIRS)
def test_built_in_pairs_fit_the_embedded_model_and_it_gets_most_of_them_right(
    name: str, stdlib: LM
) -> None:
    pairs = minimal_pairs(name)
    assert pairs == minimal_pairs(name)
    assert len(set(pairs)) == len(pairs) >= 100
    found = fitting(stdlib, pairs)
    assert found.pairs == pairs, found.refused
    assert found.preferred > 0.8
    # The corruption, too, does what it should: it moves the model to the other answer.
    prompts = tokenise(stdlib, pairs)
    other = tokenise(
        stdlib, [MinimalPair(p.corrupted or "", p.clean, p.answer, p.wrong) for p in pairs]
    )
    moved = margins(stdlib, prompts) > margins(stdlib, other)
    assert moved.float().mean() > 0.9


def test_pairs_the_model_gets_wrong_are_dropped_when_asked(stdlib: LM) -> None:
    pairs = minimal_pairs("bracket")[:10]
    right = fitting(stdlib, pairs, mistaken=False).pairs
    swapped = [MinimalPair(p.clean, p.corrupted, p.wrong or "", p.answer) for p in right]
    found = fitting(stdlib, right + swapped, mistaken=False)
    assert found.pairs == right
    assert found.preferred == 0.5
    assert set(found.refused.values()) == {"the model prefers the wrong answer"}


def test_pairs_of_different_length_are_refused_or_end_together(lm: LM) -> None:
    pair = MinimalPair("zq(q", "q[q", ")", "]")
    with pytest.raises(UserError, match=r"'zq\(q' has .* tokens and 'q\[q'") as raised:
        tokenise(lm, [pair])
    assert "align" in raised.value.hint
    prompts = tokenise(lm, [pair, MinimalPair("q(z", "q[z", ")", "]")], "align")
    (batch,) = prompts.batches(lm, 8)
    assert batch.corrupted is not None
    first, second = batch.pairs.tolist().index(0), batch.pairs.tolist().index(1)
    for side, text in ((batch.clean, pair.clean), (batch.corrupted, pair.corrupted)):
        assert side.tokens[first][side.mask[first]].tolist() == lm.encode(text or "")[0].tolist()
    # Nodes are where both sides have text: the longer one's first token has no partner.
    assert batch.text.sum(1)[first] == batch.text.sum(1)[second] == 3
    assert torch.equal(batch.text[:, -3:], torch.ones(2, 3, dtype=torch.bool))


def test_answers_of_several_tokens_are_refused_with_the_tokens(lm: LM) -> None:
    with pytest.raises(UserError, match="'zq' to 'q' is 2 tokens: 'z', 'q'"):
        tokenise(lm, [MinimalPair("q", None, "zq", None)])
    with pytest.raises(UserError, match="one token"):
        tokenise(lm, [MinimalPair("q", None, "z", "z")])
    with pytest.raises(UserError, match="pair 1 has no `corrupted`"):
        tokenise(lm, [MinimalPair("q", "z", "z", "q"), MinimalPair("q", None, "z", "q")])
    with pytest.raises(UserError, match="no pairs"):
        tokenise(lm, [])
    with pytest.raises(UserError, match="no pair fits"):
        fitting(lm, [MinimalPair("q", None, "zq", None)])
