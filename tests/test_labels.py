"""Labels of tokens, and labelled text that somebody brings."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import jaxtyping
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tiny_models import tiny_tokenizer

from monosemy.corpus import (
    CONCEPTS,
    Corpus,
    Document,
    Place,
    TokenBatch,
    TokenPolicy,
    TokenStream,
    label_tokens,
    open_corpus,
    open_labels,
    syntax_spans,
)
from monosemy.errors import UserError

TOKENIZER = tiny_tokenizer()


def batch_of(document: Document, edges: list[tuple[int, int]]) -> TokenBatch:
    """Return a row of tokens that come from these characters, after one that was inserted."""
    start, end = (torch.tensor([[-1, *side]]) for side in zip(*edges, strict=True))
    yes = torch.ones_like(start, dtype=torch.bool)
    origin = torch.where(start < 0, -1, 0)
    return TokenBatch(start, yes, yes, origin, start, end, [document], Place())


def labelled(text: str, tokens: list[str], *spans: tuple[int, int]) -> list[bool]:
    """Return which of the tokens that make up a text have a label that is true at `spans`."""
    edges, at = [], 0
    for token in tokens:
        edges.append((at, at + len(token)))
        at += len(token)
    assert at == len(text)
    batch = batch_of(Document("a", text), edges)
    labels, known = label_tokens(batch, lambda _: {"x": spans}, ["x"])
    assert known.tolist() == [[False] + [True] * len(tokens)]
    assert not labels[0, 0, 0]
    return labels[0, 0, 1:].tolist()


def test_one_character_of_a_token_is_enough() -> None:
    tokens = ["ab", "cd", "ef"]
    assert labelled("abcdef", tokens, (1, 3)) == [True, True, False]
    assert labelled("abcdef", tokens, (2, 4)) == [False, True, False]
    assert labelled("abcdef", tokens, (0, 1), (5, 6)) == [True, False, True]
    assert labelled("abcdef", tokens) == [False, False, False]


def test_white_space_counts_only_where_a_token_is_nothing_else() -> None:
    tokens = ["a", " ", " b", "c\n", "\n  ", "d e"]
    text = "".join(tokens)
    assert labelled(text, tokens, (1, 3)) == [False, True, False, False, False, False]
    assert labelled(text, tokens, (5, 7)) == [False, False, False, False, True, False]
    assert labelled(text, tokens, (10, 11)) == [False] * 6
    assert labelled(text, tokens, (2, 5)) == [False, False, True, True, False, False]


def test_tokens_may_share_a_character_and_have_none() -> None:
    batch = batch_of(Document("a", "é東"), [(0, 1), (0, 1), (1, 1), (1, 2), (2, 2)])
    labels, _ = label_tokens(batch, lambda _: {"x": [(0, 1)], "y": [(1, 2)]}, ["x", "y"])
    assert labels[0, 0, 1:].tolist() == [True, True, False, False, False]
    assert labels[1, 0, 1:].tolist() == [False, False, False, True, False]


def test_stretches_may_overlap_and_come_in_any_order() -> None:
    assert labelled("abcd", list("abcd"), (2, 3), (0, 2), (1, 3), (0, 0)) == [True] * 3 + [False]


def test_documents_of_which_nothing_is_known_are_said(corpus: Corpus) -> None:
    def spans(document: Document) -> dict[str, Any] | None:
        return {"all": [(0, len(document.text))]} if len(document.id) == 2 else None

    for batch in TokenStream(corpus, TOKENIZER, context=64, rows=8):
        labels, known = label_tokens(batch, spans, ["all", "other"])
        expected = [
            [i >= 0 and len(batch.documents[i].id) == 2 for i in row]
            for row in batch.document.tolist()
        ]
        assert known.tolist() == expected
        assert not labels[:, ~known].any() and labels[0][known].all() and not labels[1].any()


def test_spans_are_asked_for_once_a_document(corpus: Corpus) -> None:
    asked = []

    def spans(document: Document) -> dict[str, Any]:
        asked.append(document.id)
        return {}

    for batch in TokenStream(corpus, TOKENIZER, context=64, rows=2, epochs=2):
        label_tokens(batch, spans, ["a"])
    assert len(asked) == len(set(asked)) > 50


def test_a_stretch_outside_the_text_is_named() -> None:
    for span in [(0, 5), (-1, 2)]:
        with pytest.raises(UserError, match=r"a: a stretch of `x` lies outside its 4 characters"):
            labelled("abcd", ["abcd"], span)


def slow_labels(batch: TokenBatch, spans: Any, names: list[str]) -> list[Any]:
    """Do what `label_tokens` does, one token and one character at a time."""

    def one(name: str, number: int, start: int, end: int) -> bool:
        if number < 0:
            return False
        document = batch.documents[number]
        inside = {at for a, b in spans(document).get(name, ()) for at in range(a, b)}
        solid = {at for at in range(start, end) if not document.text[at].isspace()}
        return bool(inside & (solid or set(range(start, end))))

    rows = list(zip(batch.document.tolist(), batch.start.tolist(), batch.end.tolist(), strict=True))
    return [
        [[one(name, *token) for token in zip(*row, strict=True)] for row in rows] for name in names
    ]


@settings(max_examples=60)
@given(st.data())
def test_labels_are_those_of_a_direct_loop(data: st.DataObject) -> None:
    texts = data.draw(
        st.lists(st.text("ab é東\n\t", min_size=1, max_size=30), min_size=1, max_size=4)
    )
    texts = [f"x{text}" for text in texts]
    names = [f"n{i}" for i in range(data.draw(st.integers(1, 10)))]
    known = {}
    for number, text in enumerate(texts):
        edge = st.integers(0, len(text))
        span = st.tuples(edge, edge).map(sorted).map(tuple)
        known[str(number)] = {n: data.draw(st.lists(span, max_size=4)) for n in names[1:]}

    def spans(document: Document) -> dict[str, Any]:
        return known[document.id]

    corpus = open_corpus(texts, held_out=0.0)
    context = data.draw(st.integers(2, 12))
    packed = data.draw(st.booleans())
    for batch in TokenStream(corpus, TOKENIZER, context=context, rows=4, packed=packed):
        labels, _ = label_tokens(batch, spans, names)
        assert labels.tolist() == slow_labels(batch, spans, names)


def test_concepts_of_source_reach_the_tokens() -> None:
    source = "def f(x):\n    '''Say it.'''\n    # no\n    return x\n" * 3
    (batch,) = TokenStream(open_corpus([source], held_out=0.0), TOKENIZER, context=512)
    labels, known = label_tokens(batch, lambda d: syntax_spans(d.text), list(CONCEPTS))
    of = dict(zip(CONCEPTS, labels, strict=True))
    assert known.sum() == batch.counted.sum()
    assert of["docstring"].any() and of["comment"].any()
    assert not (of["docstring"] & of["comment"]).any()
    words = {
        source[a:b].strip()
        for a, b in zip(batch.start[of["return"]], batch.end[of["return"]], strict=True)
    }
    assert "".join(words) and all(word in "return" for word in words)


# --- labelled text ----------------------------------------------------------------------------

CLASSES = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(40)]
STRETCHES = [
    {"text": "Call Ann at noon.", "labels": {"time": [[12, 16]], "person": [[5, 8]]}},
    {"text": "Ann, Bob", "labels": {"person": [[5, 8], [0, 3]]}},
    {"text": "nobody", "labels": {}},
]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    match file.suffix:
        case ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".csv":
            with file.open("w", newline="") as opened:
                writer = csv.DictWriter(opened, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        case _:
            parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


KINDS = ("jsonl", "csv", "parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_classes_of_documents_are_read_from_a_table(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path / f"a.{kind}", CLASSES)
    corpus = open_labels(file, held_out=0.25)
    assert corpus.classes == ("a", "b") and not corpus.of_tokens
    documents = list(corpus.documents("all"))
    assert [d.text for d in documents] == [row["text"] for row in CLASSES]
    assert [d.id for d in documents][:2] == [f"a.{kind}:1", f"a.{kind}:2"]
    assert [corpus.labels(d) for d in documents] == [(row["label"],) for row in CLASSES]
    assert corpus.spans(documents[0]) == {"a": [(0, len("text 0"))]}
    assert corpus.spans(Document("strange", "text")) is None
    parts = [{d.text for d in corpus.documents(part)} for part in ("train", "held_out")]
    assert all(parts) and not parts[0] & parts[1]
    same_split = open_corpus(file, column="text", held_out=0.25)
    assert parts[1] == {d.text for d in same_split.documents("held_out")}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_stretches_are_read_from_a_table(tmp_path: Path, kind: str) -> None:
    corpus = open_labels(write(tmp_path / f"a.{kind}", STRETCHES), held_out=0.0)
    assert corpus.classes == ("person", "time") and corpus.of_tokens
    documents = list(corpus.documents())
    assert [corpus.labels(d) for d in documents] == [("person", "time"), ("person",), ()]
    assert corpus.spans(documents[1]) == {"person": [(0, 3), (5, 8)]}
    stream = TokenStream(
        corpus, TOKENIZER, seed=None, context=32, packed=False, policy=TokenPolicy()
    )
    (batch,) = stream
    labels, known = label_tokens(batch, corpus.spans, corpus.classes)
    assert (known == batch.counted).all()
    for row, document in enumerate(documents):
        for name, label in zip(corpus.classes, labels, strict=True):
            hit = [
                document.text[a:b].strip()
                for a, b in zip(
                    batch.start[row][label[row]], batch.end[row][label[row]], strict=True
                )
            ]
            stretches = [document.text[a:b] for a, b in STRETCHES[row]["labels"].get(name, [])]
            assert all(any(word in s or s in word for s in stretches) for word in hit)
            assert bool(hit) == bool(stretches)


def test_any_column_can_be_the_label_and_any_value_a_class() -> None:
    values = [3, 4.0, True, "x", ["x", "3"], []]
    rows = [{"title": f"t{i}", "kind": value} for i, value in enumerate(values)]
    corpus = open_labels(rows, label="kind", held_out=0.0)
    found = [corpus.labels(d) for d in corpus.documents()]
    assert found == [("3",), ("4",), ("True",), ("x",), ("3", "x"), ()]
    rows = [{"body": f"b{i}", "title": f"t{i}", "label": i} for i in range(2)]
    assert next(open_labels(rows, column="title").documents("all")).text == "t0"
    with pytest.raises(UserError, match=r"row 0 has several text columns\n.*`body`, `title`"):
        open_labels(rows)


def test_names_of_a_hugging_face_data_sets_classes_are_used() -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(6)]
    table = datasets.Dataset.from_list(rows, features=features)
    corpus = open_labels(table, held_out=0.0)
    assert corpus.classes == ("neg", "pos")
    assert [corpus.labels(d) for d in corpus.documents()] == [("neg",), ("pos",)] * 3
    unknown = datasets.Dataset.from_list([{"text": "a", "label": -1}], features=features)
    with pytest.raises(UserError, match="row 0 has no label"):
        open_labels(unknown)


def test_a_folder_of_tables_is_one_corpus_and_rows_without_text_are_left_out(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a.jsonl", [{"text": "x", "label": "a"}, {"text": " ", "label": "c"}])
    write(tmp_path / "b.csv", [{"text": "y", "label": "b"}])
    corpus = open_labels(tmp_path, held_out=0.0)
    assert corpus.classes == ("a", "b")
    assert {d.id: corpus.labels(d) for d in corpus.documents()} == {
        "a.jsonl:1": ("a",),
        "b.csv:1": ("b",),
    }


def test_a_seed_shuffles_and_a_description_opens_it_again(tmp_path: Path) -> None:
    corpus = open_labels(write(tmp_path / "a.csv", CLASSES), label="label", held_out=0.2)
    shuffled = [d.id for d in corpus.documents("all", seed=0)]
    assert shuffled != sorted(shuffled) and set(shuffled) == {d.id for d in corpus.documents("all")}
    again = open_labels(**json.loads(json.dumps(corpus.describe())))
    assert again.describe() == corpus.describe() and again.classes == corpus.classes
    assert list(again.documents("held_out")) == list(corpus.documents("held_out"))


BAD = [
    ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], r"all 2 documents .*label x\ntwo"),
    ([{"text": "a"}], r"a\.jsonl:1 has no column `label`\n.*columns: `text`"),
    ([{"text": "a", "label": "x"}, {"text": "b"}], r"a\.jsonl:2 has no column `label`"),
    ([{"label": "x"}], r"a\.jsonl:1 has no text column"),
    ([{"text": "a", "label": "x"}, {"label": "y"}], r"a\.jsonl:2 has no column `text`"),
    ([{"text": "a", "label": None}], r"a\.jsonl:1 has no label"),
    ([{"text": "a", "label": ""}], r"a\.jsonl:1 has no label"),
    ([{"text": "a", "label": 0.5}], r"a\.jsonl:1: the label is 0\.5, which is no class"),
    ([{"text": "a", "label": "x"}, {"text": "b", "label": {"y": []}}], r"a\.jsonl:2: the label is"),
    ([*STRETCHES, {"text": "b", "labels": "y"}], r"a\.jsonl:4: the labels are 'y', but stretches"),
    (
        [*STRETCHES, {"text": "b", "labels": {"y": [[0, 2]]}}],
        r":4: `y` is at \[0, 2\], .*has 1 char",
    ),
    ([{"text": "abc", "labels": {"y": [[2, 2]]}}], r"a\.jsonl:1: `y` is at \[2, 2\]"),
    ([{"text": "abc", "labels": {"y": [[-1, 2]]}}], r"a\.jsonl:1: `y` is at \[-1, 2\]"),
    ([{"text": "abc", "labels": {"y": [["0", 2]]}}], r"a\.jsonl:1: `y` is at \['0', 2\]"),
    ([{"text": "abc", "labels": {"y": [0, 2]}}], r"a\.jsonl:1: `y` is at 0"),
    ([{"text": "abc", "labels": {"y": 2}}], r"a\.jsonl:1: `y` is at 2"),
    (
        [{"text": "abc", "labels": {"y": []}}],
        r"no label is true anywhere in 1 documents\n.*\[\[from",
    ),
    ([{"text": " ", "label": "x"}], r"empty corpus: no text in .*a\.jsonl"),
    ([], r"empty corpus: no text in .*a\.jsonl"),
]


@pytest.mark.parametrize(("rows", "problem"), BAD, ids=lambda value: str(value)[:60])
def test_bad_labels_are_named_with_their_row(tmp_path: Path, rows: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        open_labels(write(tmp_path / "a.jsonl", rows))


def test_text_without_rows_has_no_labels(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"a\.txt: not a table"):
        open_labels(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"builtin:stdlib has no labels\nallowed: \.jsonl"):
        open_labels("builtin:stdlib")
    with pytest.raises(UserError, match="no such file"):
        open_labels(tmp_path / "none.csv")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match="item 0 is a str, not a row"):
        open_labels(["text"])
