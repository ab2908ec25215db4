"""A corpus: documents from somewhere, in two parts that never mix."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from monosemy.corpus.document import HELD_OUT_SHARE, Document
from monosemy.corpus.download import bytes_in
from monosemy.corpus.files import SUFFIXES, FileSource
from monosemy.corpus.hub import HubSource
from monosemy.corpus.memory import MemorySource
from monosemy.corpus.mix import PREFIX, MixSource, split_mix
from monosemy.corpus.pairs import PREFIX as PAIRS
from monosemy.corpus.pairs import pair_source
from monosemy.corpus.source import Source
from monosemy.corpus.stdlib import StdlibSource
from monosemy.errors import UserError

Part = Literal["train", "held_out", "all"]

# Documents wait in memory to be shuffled until they hold this many characters; a short one
# counts for at least what its Python objects weigh.
_SHUFFLE_BUFFER = 2**23
_DOCUMENT_OVERHEAD = 256


class Corpus:
    """Documents that can be read again and again, with a share of them held out.

    A document is held out or not by a hash of its text (or path, for `builtin:stdlib`): neither
    order, seed nor the other documents matter, and copies of a text fall on the same side.
    """

    def __init__(self, source: Source, *, held_out: float = HELD_OUT_SHARE) -> None:
        """Open a corpus; most callers want `open_corpus`.

        Args:
            source: where the documents come from.
            held_out: share of the documents that training never sees, 0 to below 1.

        Raises:
            UserError: `held_out` is out of range.
        """
        if not 0 <= held_out < 1:
            raise UserError(f"held_out is {held_out}", "allowed: 0 to below 1, such as 0.1")
        self.source = source
        self.held_out = held_out

    @property
    def name(self) -> str:
        """Where the documents come from: `builtin:stdlib`, a path, the name of a data set."""
        return self.source.name

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, held_out={self.held_out})"

    def describe(self) -> dict[str, Any]:
        """Return the arguments with which `open_corpus` opens it again, fit for JSON."""
        return {**self.source.describe(), "held_out": self.held_out}

    def documents(self, part: Part = "train", *, seed: int | None = None) -> Iterator[Document]:
        """Yield the documents of one part that hold any text.

        Args:
            part: `train`, `held_out`, or `all` for both.
            seed: shuffle by this seed: the files and items that can be listed, then all documents
                through a buffer of 8 million characters. None: the source's own order.

        Raises:
            UserError: the part is unknown or empty, or a document cannot be read.
        """
        if part not in get_args(Part):
            raise UserError(f"unknown part `{part}`", "allowed: `train`, `held_out`, `all`")
        if seed is None:
            return self._of_part(part, None)
        rng = random.Random(seed)
        return _shuffled(self._of_part(part, rng), rng)

    def check(self, *parts: Part) -> None:
        """Look whether each part has a document, so that long work fails before it starts.

        Raises:
            UserError: a part is empty, or a document cannot be read.
        """
        for part in parts:
            next(self.documents(part))

    def _of_part(self, part: Part, rng: random.Random | None) -> Iterator[Document]:
        found = other = 0
        for document in self.source.read(rng):
            if not document.text or document.text.isspace():
                continue
            if part == "all" or document.is_held_out(self.held_out) == (part == "held_out"):
                found += 1
                yield _encodable(document)
            else:
                other += 1
        if not found:
            raise self._empty(part, other)

    def _empty(self, part: Part, other: int) -> UserError:
        if not other:
            return UserError(f"empty corpus: no text in {self.name}")
        if part == "held_out" and self.held_out == 0:
            return UserError(
                f"{self.name} has no held-out documents: held_out is 0", "choose such as 0.1"
            )
        return UserError(
            f"the {part.replace('_', '-')} part of {self.name} is empty: all {other} documents "
            "fall on the other side",
            f"add documents, or change held_out (now {self.held_out})",
        )


def open_corpus(
    source: Corpus | str | Path | Iterable[str | Document | Mapping[str, Any]],
    *,
    column: str | None = None,
    config: str | None = None,
    split: str = "train",
    held_out: float = HELD_OUT_SHARE,
    skip_bad: bool = False,
    disk_budget: str | int | None = None,
) -> Corpus:
    """Open a corpus.

    Args:
        source: `builtin:stdlib` (Python's standard library); a file or folder of .txt .md .py
            .jsonl .csv .parquet; the name of a Hugging Face data set; several of these, mixed by
            weight, as `mix:NAME=WEIGHT,NAME=WEIGHT`; a table of paired texts, as
            `pairs:FILE`; or a re-iterable of strings, `Document`s or rows, such as a list or a
            `datasets.Dataset`. A corpus is returned as it is, the other arguments then having no
            effect.
        column: the column that holds the text; None finds it. Of pairs two, as `BEFORE,AFTER`.
        config: a Hugging Face data set's configuration.
        split: a Hugging Face data set's split.
        held_out: share of the documents that training never sees.
        skip_bad: pass over files that cannot be read, and say which; else they are an error.
        disk_budget: read a Hugging Face data set from whole files, downloaded ahead and removed
            when read, which never take more than this, in bytes or such as `20GB`; shared evenly
            by the sources of a mix. The documents and their order are the same as without, which
            streams rows.

    Raises:
        UserError: there is nothing there, or it cannot be read.
    """
    if isinstance(source, Corpus):
        return source
    if not isinstance(source, str | Path):
        if not isinstance(source, Iterable):
            raise UserError(
                f"cannot open a {type(source).__name__} as a corpus",
                "allowed: `builtin:stdlib`, a path, a data set's name, an iterable of strings",
            )
        return Corpus(MemorySource(source, column), held_out=held_out)
    budget = None if disk_budget is None else bytes_in(disk_budget)
    found = _named_source(source, column, config, split, skip_bad, budget)
    return Corpus(found, held_out=held_out)


def _named_source(
    source: str | Path,
    column: str | None,
    config: str | None,
    split: str,
    skip_bad: bool,
    disk_budget: int | None,
) -> Source:
    name = str(source)
    if name.startswith(PREFIX):
        parts = split_mix(name)
        share = None if disk_budget is None else disk_budget // len(parts)
        return MixSource(
            [(_named_source(s, column, config, split, skip_bad, share), w) for s, w in parts]
        )
    if name.startswith(PAIRS):
        return pair_source(name, column)
    if name == StdlibSource.name:
        return StdlibSource()
    if name.startswith("builtin:"):
        raise UserError(f"no corpus `{name}`", f"built in: `{StdlibSource.name}`")
    if name.startswith("python:"):
        raise UserError(
            f"`{name}` was made from Python objects, which are gone", "pass the documents again"
        )
    path = Path(name).expanduser()
    if isinstance(source, Path) or path.exists() or _looks_like_path(name):
        return FileSource(path, column, skip_bad)
    hub = HubSource(name, config, split, column, skip_bad, disk_budget)
    hub.check()  # a wrong name must fail here, not at the first document
    return hub


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((os.sep, ".", "~"))
        or name.endswith((os.sep, *SUFFIXES))
        or name.count("/") > 1  # a data set's name has one at most
        or not name.strip()
    )


def _shuffled(documents: Iterator[Document], rng: random.Random) -> Iterator[Document]:
    """Shuffle a stream through a buffer: what leaves is drawn evenly from all that wait."""
    buffer: list[Document] = []
    size = 0
    for document in documents:
        buffer.append(document)
        size += _size(document)
        while size > _SHUFFLE_BUFFER:
            drawn = rng.randrange(len(buffer))
            buffer[drawn], buffer[-1] = buffer[-1], buffer[drawn]
            size -= _size(buffer[-1])
            yield buffer.pop()
    rng.shuffle(buffer)
    yield from buffer


def _size(document: Document) -> int:
    return len(document.text) + _DOCUMENT_OVERHEAD


def _encodable(document: Document) -> Document:
    """Replace half surrogate pairs (JSON can hold them, UTF-8 and so tokenizers cannot) by `?`."""
    try:
        document.text.encode()
    except UnicodeEncodeError:
        return replace(document, text=document.text.encode(errors="replace").decode())
    return document
