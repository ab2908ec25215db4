"""Labelled text that somebody brings: classes of documents, or stretches where a label is true."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosemy.corpus.columns import column_of_row, spans_of_row, text_of_row
from monosemy.corpus.corpus import Corpus, open_corpus
from monosemy.corpus.document import HELD_OUT_SHARE, Document
from monosemy.corpus.files import FileSource
from monosemy.corpus.hub import HubSource
from monosemy.corpus.labels import Spans
from monosemy.corpus.memory import MemorySource
from monosemy.errors import UserError

_FORM = '{"name": [[from, to], ...]}'

_Table = FileSource | HubSource | MemorySource
_Labelled = tuple[Document, Any]


@dataclass(frozen=True, eq=False)
class _Read:
    """Documents of another source, in memory."""

    name: str
    description: dict[str, Any]
    documents: list[Document]

    def describe(self) -> dict[str, Any]:
        return self.description

    def read(self, rng: random.Random | None) -> Iterator[Document]:
        order = list(self.documents)
        if rng is not None:
            rng.shuffle(order)
        yield from order


class LabelledCorpus(Corpus):
    """A corpus with labels, which are true of whole documents or of stretches of them.

    `open_labels` makes it. `describe` returns the arguments for that.
    """

    of_tokens: bool
    """Labels are true of stretches; else of whole documents."""
    classes: tuple[str, ...]
    """All labels that are true somewhere, sorted."""

    def __init__(
        self, source: _Read, spans: Mapping[str, Spans], *, of_tokens: bool, held_out: float
    ) -> None:
        """Join documents and, by their ids, what is true of them; callers want `open_labels`."""
        super().__init__(source, held_out=held_out)
        self._spans = spans
        self.of_tokens = of_tokens
        self.classes = tuple(sorted({name for of in spans.values() for name in of}))

    def labels(self, document: Document) -> tuple[str, ...]:
        """Return the labels that are true of a document, or somewhere in it, sorted."""
        return tuple(sorted(self._spans.get(document.id, ())))

    def spans(self, document: Document) -> Spans | None:
        """Return where each label is true, as `label_tokens` asks; None for a strange document.

        A label of the whole document is true from its first to its last character.
        """
        return self._spans.get(document.id)


def open_labels(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    column: str | None = None,
    label: str | None = None,
    config: str | None = None,
    split: str = "train",
    held_out: float = HELD_OUT_SHARE,
) -> LabelledCorpus:
    """Read labelled text, all of it into memory.

    A row's label is the class of its document (text, a whole number, true or false; several in a
    list), or says where labels are true: `{"name": [[from, to], ...]}`, in characters from 0, `to`
    excluded. A label that a row does not name is nowhere true in it.

    Args:
        source: a .jsonl, .csv or .parquet file, a folder of them, the name of a Hugging Face data
            set, or rows, such as a list of dicts or a `datasets.Dataset`.
        column: the column that holds the text; None finds it.
        label: the column that holds the label; None: `label`, or `labels`.
        config: a Hugging Face data set's configuration.
        split: a Hugging Face data set's split.
        held_out: share of the documents that nothing is fitted to, chosen by a hash of the text.

    Raises:
        UserError: a table cannot be read, is empty or has no such column; a row has no label, one
            of another kind than the rows before, or a stretch outside its text; or the labels tell
            no document or stretch from another.
    """
    opened = open_corpus(source, column=column, config=config, split=split).source
    if not isinstance(opened, _Table):
        raise UserError(
            f"{opened.name} has no labels",
            "allowed: .jsonl .csv .parquet, a Hugging Face data set, rows in Python",
        )
    found = list(_labelled(opened, column, label))
    if not found:
        raise UserError(f"empty corpus: no text in {opened.name}")
    of_tokens = isinstance(found[0][1], Mapping)
    read = _stretches if of_tokens else _classes
    spans = {document.id: read(document, value) for document, value in found}
    _check(spans, of_tokens, opened.name)
    documents = [document for document, _ in found]
    in_memory = _Read(opened.name, {**opened.describe(), "label": label}, documents)
    return LabelledCorpus(in_memory, spans, of_tokens=of_tokens, held_out=held_out)


def _labelled(source: _Table, column: str | None, label: str | None) -> Iterator[_Labelled]:
    """Yield the documents with any text, and their labels as they stand in the row."""
    names: Sequence[str] | None = None
    for where, row in source.rows():
        if names is None:
            label = label or ("labels" if "label" not in row and "labels" in row else "label")
            rest = {name: value for name, value in row.items() if name != label}
            column = column_of_row(column, rest, where)
            names = _class_names(source, label)
        assert label is not None and column is not None
        if label not in row:
            columns = ", ".join(f"`{name}`" for name in row)
            raise UserError(
                f"{where} has no column `{label}`", f"name it with `label`; columns: {columns}"
            )
        text = text_of_row(row, column, where)
        if text and not text.isspace():
            value = row[label]
            if names and isinstance(value, int):
                value = names[value] if value >= 0 else None  # -1: not labelled
            yield Document(where, text, spans_of_row(row, where)), value


def _class_names(source: _Table, label: str) -> Sequence[str]:
    """Return what the numbers of a Hugging Face data set's classes stand for."""
    table = source if isinstance(source, HubSource) else getattr(source, "items", None)
    features = getattr(table, "features", None) or {}
    return getattr(features.get(label), "names", None) or ()


def _classes(document: Document, value: Any) -> Spans:
    """Return the classes of a whole document, as stretches."""
    named = value if isinstance(value, list | tuple) else [value]
    return {_class(one, document.id): [(0, len(document.text))] for one in named}


def _class(value: Any, where: str) -> str:
    if value is None or value == "":
        raise UserError(f"{where} has no label", "give it one, or take the row out")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        raise UserError(
            f"{where}: the label is {value!r}, which is no class",
            "allowed: text, whole numbers, true and false, lists of these; or, in every row, "
            f"{_FORM}",
        )
    return str(value)


def _stretches(document: Document, value: Any) -> Spans:
    """Return where labels are true, sorted."""
    if not isinstance(value, Mapping):
        raise UserError(
            f"{document.id}: the labels are {value!r}, but stretches in the first row",
            f"allowed: in every row {_FORM}",
        )
    length = len(document.text)
    found: dict[str, list[tuple[int, int]]] = {}
    for name, stretches in value.items():
        if stretches is None:  # what Parquet makes of a name that other rows have
            continue
        for stretch in stretches if isinstance(stretches, list | tuple) else [stretches]:
            match stretch:
                case [int(start), int(end)] if 0 <= start < end <= length:
                    found.setdefault(name, []).append((start, end))
                case _:
                    raise UserError(
                        f"{document.id}: `{name}` is at {stretch}, and the text has {length} "
                        "characters",
                        "a stretch is [from, to], from 0 to the number of characters, `to` larger",
                    )
    return {name: sorted(stretches) for name, stretches in found.items()}


def _check(spans: Mapping[str, Spans], of_tokens: bool, name: str) -> None:
    """See that the labels tell some text from other text.

    Raises:
        UserError: they do not.
    """
    counts = Counter(label for labels in spans.values() for label in labels)
    if of_tokens and not counts:
        raise UserError(
            f"{name}: no label is true anywhere in {len(spans)} documents", f"allowed: {_FORM}"
        )
    if not of_tokens and all(count == len(spans) for count in counts.values()):
        raise UserError(
            f"{name}: all {len(spans)} documents have the label {', '.join(counts) or 'none'}",
            "two classes are needed, or more",
        )
