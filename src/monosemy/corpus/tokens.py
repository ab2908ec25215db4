"""Documents to batches of tokens that know the document and the characters they come from."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from monosemy.corpus.corpus import Corpus, Part
from monosemy.corpus.document import Document
from monosemy.corpus.place import Place
from monosemy.corpus.policy import TokenPolicy
from monosemy.errors import UserError

# Documents are tokenised together up to this many characters: enough to keep the tokenizer's
# threads busy, few enough that the first batch comes at once.
_GROUP = 2**18

# Rows are shuffled this many at a time, so that a batch holds text of many documents although a
# long document fills hundreds of rows in succession.
_SHUFFLED = 4096

# Characters at the beginning that are looked at to tell one text from another.
_BEGINNING = 2**16

# Tokens on their way to a batch are the columns of a table with these rows.
_TOKEN, _DOCUMENT, _START, _END = range(4)
# Instead of a document's number, where a token comes from none.
_INSERTED, _PADDING = -1, -2

Table = Int64[np.ndarray, "4 tokens"]
Row = Int64[np.ndarray, "4 context"]
Placed = tuple[Table, Place]
"""Some tokens, and the place after them."""


@dataclass(slots=True)
class TokenBatch:
    """Rows of tokens and the way back to the text."""

    tokens: Int[Tensor, "batch context"]
    attention_mask: Bool[Tensor, "batch context"]
    """False at padding."""
    counted: Bool[Tensor, "batch context"]
    """True where the stream's token policy counts the position."""
    document: Int[Tensor, "batch context"]
    """Index into `documents`; -1 at padding and at inserted BOS and separators."""
    start: Int[Tensor, "batch context"]
    """First character of the token in its document's text; -1 where `document` is."""
    end: Int[Tensor, "batch context"]
    """The character after its last; -1 where `document` is."""
    documents: list[Document]
    """The documents this batch touches, in the order of the stream."""
    place: Place
    """Where the stream goes on after this batch."""

    def to(self, device: torch.device | str) -> TokenBatch:
        """Return the batch with its tensors on a device."""
        return TokenBatch(
            tokens=self.tokens.to(device),
            attention_mask=self.attention_mask.to(device),
            counted=self.counted.to(device),
            document=self.document.to(device),
            start=self.start.to(device),
            end=self.end.to(device),
            documents=self.documents,
            place=self.place,
        )

    def next_tokens(self) -> tuple[Int[Tensor, "batch context"], Bool[Tensor, "batch context"]]:
        """Return the token after each position, and which counted positions have one to predict.

        That is, a next token of the same document.
        """
        same = self.document.roll(-1, dims=1) == self.document
        same[:, -1] = False
        return self.tokens.roll(-1, dims=1), self.counted & same

    def numbers(self, known: dict[str, int]) -> Int[Tensor, "batch context"]:
        """Return the number of each token's document, the same through all batches.

        Inserted tokens get 0. `known` holds documents' numbers by id, and takes new ones.
        """
        numbers = [known.setdefault(d.id, len(known)) for d in self.documents]
        return torch.tensor([*numbers, 0])[self.document]


class TokenStream:
    """Batches of tokens from one part of a corpus; each iteration starts anew and is the same.

    `read` goes on from any batch's place.

    Packed, documents follow one another, an EOS between them (BOS where there is no EOS, nothing
    where there is neither), cut into rows of `context` tokens; what does not fill a last row is
    left out, unless it is all there is. Not packed, each document is a row, cut or padded to
    `context`. Either way a row begins with BOS where the tokenizer has one. The last batch may
    have fewer rows.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        part: Part = "train",
        context: int = 128,
        rows: int = 32,
        packed: bool = True,
        policy: TokenPolicy | None = None,
        seed: int | None = 0,
        shuffled_rows: bool = True,
        epochs: int | None = 1,
    ) -> None:
        """Describe a stream; nothing is read until it is iterated over.

        Args:
            corpus: where the text comes from.
            tokenizer: a fast Hugging Face tokenizer; it decides special tokens and padding.
            part: the part of the corpus.
            context: tokens in a row, BOS included.
            rows: rows in a batch.
            packed: several documents in a row, or one.
            policy: which positions count; None for `TokenPolicy()`.
            seed: of the order of documents, another one each epoch, and of rows, 4,096 at a time;
                None: everything in the corpus's own order.
            shuffled_rows: whether the seed is of rows too; else those of a document follow each
                other.
            epochs: how often to go over the corpus; None: for ever.

        Raises:
            UserError: the tokenizer is not a fast one, or a number is out of range.
        """
        if tokenizer is None:
            raise UserError(
                "the model has no tokenizer", "pass one with the model: LM(model, tokenizer=...)"
            )
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"{type(tokenizer).__name__} cannot say which characters a token comes from",
                "a fast tokenizer is needed: `AutoTokenizer.from_pretrained(...)` gives one",
            )
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.part = part
        self.context = context
        self.rows = rows
        self.packed = packed
        self.policy = policy or TokenPolicy()
        self.seed = seed
        self.shuffled_rows = shuffled_rows and seed is not None
        self.epochs = epochs
        # Read once: a Hugging Face tokenizer looks them up by name each time.
        bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        self._bos = bos
        self._separator = bos if eos is None else eos
        self._pad = next((token for token in (pad, eos) if token is not None), 0)
        self._pad_left = tokenizer.padding_side == "left"
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self._body = context - (bos is not None)  # tokens of text in a row
        self._check()

    def __iter__(self) -> Iterator[TokenBatch]:
        """Yield batches from the beginning; see `read`."""
        return self.read()

    def read(self, place: Place | None = None) -> Iterator[TokenBatch]:
        """Yield batches from a place on, bit for bit those that followed there.

        Documents before are read again, but only those of the place's block of rows are tokenised.

        Args:
            place: of the batch after which to go on; None: the beginning.

        Raises:
            UserError: the part of the corpus is empty, a document cannot be read, or the one at the
                place is another than it was.
        """
        here = place or Place()
        numbered: dict[int, Document] = {}
        rows = self._rows(numbered, here)
        at_once = self.rows * (max(_SHUFFLED // self.rows, 1) if self.shuffled_rows else 1)
        rng = np.random.default_rng(self.seed) if self.shuffled_rows else None
        if rng is not None:
            for _ in range(here.block):  # those before were whole, and drew as much
                rng.permutation(at_once)
        while placed := list(itertools.islice(rows, at_once)):
            block, after = [row for row, _ in placed], replace(placed[-1][1], block=here.block + 1)
            _forget(numbered, block)
            if rng is not None:
                block = [block[i] for i in rng.permutation(len(block))]
            for first in range(here.batch * self.rows, len(block), self.rows):
                last = first + self.rows
                following = after if last >= len(block) else replace(here, batch=last // self.rows)
                yield self._batch(np.stack(block[first:last], axis=1), numbered, following)
            here = after

    def place_after(self, batches: int) -> Place:
        """Return the place after the first batches: found by reading them, so not at once."""
        place = Place()
        for batch in itertools.islice(self, batches):
            place = batch.place
        return place

    def checksum(self) -> int:
        """Return the CRC-32 of the first documents' tokens, by which other text is noticed.

        Raises:
            UserError: as `read`.
        """
        first = next(_grouped(self._documents(0), _BEGINNING))
        return _checksum(np.concatenate(list(self._tokenise(first)), axis=1))

    def _check(self) -> None:
        if self._body < 1:
            raise UserError(
                f"context is {self.context}", f"allowed: {self.context - self._body + 1} and above"
            )
        if self.rows < 1:
            raise UserError(f"rows is {self.rows}", "allowed: 1 and above")
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"epochs is {self.epochs}", "allowed: 1 and above, or None for ever")

    def _documents(self, epoch: int) -> Iterator[Document]:
        seed = None if self.seed is None else (self.seed << 32) + epoch
        return self.corpus.documents(self.part, seed=seed)

    def _tables(self, numbered: dict[int, Document], place: Place) -> Iterator[Placed]:
        """Yield the tokens of each document, from the one on in which a place's block begins.

        Documents are numbered through all epochs; the numbers are noted.
        """
        number = 0
        epochs = itertools.count() if self.epochs is None else range(self.epochs)
        for epoch in itertools.islice(epochs, place.epoch, None):
            first, before = number, place.document if epoch == place.epoch else 0
            for document, table, after in self._tokenised(epoch, before):
                if table.shape[1]:
                    table[_DOCUMENT] = number
                    numbered[number] = document
                    number += 1
                    yield table, after
            if number == first:
                raise self._changed() if before else self._no_token()

    def _after(self, place: Place, tables: Iterator[Placed]) -> Iterator[Placed]:
        """Leave out of the first document's tokens those before a place's block."""
        table, after = next(tables, (None, place))
        if table is None or after.checksum != place.checksum:
            raise self._changed()
        yield table[:, place.token :], after
        yield from tables

    def _tokenised(self, epoch: int, before: int) -> Iterator[tuple[Document, Table, Place]]:
        """Yield documents of an epoch, but for the first ones, their tokens and the place after."""
        index = itertools.count(before)
        for group in _grouped(itertools.islice(self._documents(epoch), before, None), _GROUP):
            for document, table in zip(group, self._tokenise(group), strict=True):
                place = Place(epoch, next(index), table.shape[1], checksum=_checksum(table))
                yield document, table, place

    def _tokenise(self, documents: list[Document]) -> Iterator[Table]:
        """Yield the tokens and spans of each document, without special tokens.

        Goes to the tokenizer below the Hugging Face one, which would make Python lists of all the
        things not needed here and warn of texts longer than the model's context.
        """
        tokenizer: Any = self.tokenizer
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        texts = [document.text for document in documents]
        for encoding in backend.encode_batch(texts, add_special_tokens=False):
            table = np.empty((4, len(encoding)), dtype=np.int64)
            table[_TOKEN] = encoding.ids
            spans = itertools.chain.from_iterable(encoding.offsets)
            table[_START:] = np.fromiter(spans, np.int64, 2 * len(encoding)).reshape(-1, 2).T
            yield table

    def _rows(self, numbered: dict[int, Document], place: Place) -> Iterator[Placed]:
        """Yield rows of `context` tokens, from a place's block on, and the place after each."""
        tables = self._tables(numbered, place)
        if place.block:
            tables = self._after(place, tables)
        if self.packed:
            bodies = _cut(self._separated(tables), self._body, nothing_yet=not place.block)
        else:
            bodies = ((table[:, : self._body], end) for table, end in tables if table.shape[1])
        for body, end in bodies:
            yield self._complete(body), end

    def _separated(self, tables: Iterator[Placed]) -> Iterator[Placed]:
        """Put EOS, else BOS, else nothing between documents."""
        for number, (table, end) in enumerate(tables):
            if number and self._separator is not None:
                yield _repeated(self._separator, _INSERTED, 1), replace(end, token=0)
            yield table, end

    def _complete(self, body: Table) -> Row:
        """Put BOS before the tokens of a row and padding where the tokenizer puts it."""
        parts = [body] if self._bos is None else [_repeated(self._bos, _INSERTED, 1), body]
        if missing := self._body - body.shape[1]:
            padding = _repeated(self._pad, _PADDING, missing)
            parts.insert(0 if self._pad_left else len(parts), padding)
        return np.concatenate(parts, axis=1)

    def _batch(
        self,
        table: Int64[np.ndarray, "4 batch context"],
        numbered: dict[int, Document],
        place: Place,
    ) -> TokenBatch:
        """Make a batch, with its own numbering of documents."""
        origin = table[_DOCUMENT]
        touched = np.unique(origin[origin >= 0])
        tokens = torch.from_numpy(table[_TOKEN])
        attention_mask = torch.from_numpy(origin != _PADDING)
        documents = [numbered[number] for number in touched.tolist()]
        inside = None
        if any(document.spans is not None for document in documents):
            inside = torch.from_numpy(_in_spans(table, touched, documents))
        counted = self.policy.mask(tokens, attention_mask, self._special_ids, inside)
        return TokenBatch(
            tokens=tokens,
            attention_mask=attention_mask,
            counted=counted,
            document=torch.from_numpy(
                np.where(origin >= 0, np.searchsorted(touched, origin), _INSERTED)
            ),
            start=torch.from_numpy(table[_START]),
            end=torch.from_numpy(table[_END]),
            documents=documents,
            place=place,
        )

    def _no_token(self) -> UserError:
        return UserError(
            f"the tokenizer finds no token in the {self.part} part of {self.corpus.name}"
        )

    def _changed(self) -> UserError:
        return UserError(
            f"the {self.part} part of {self.corpus.name} cannot be gone on with: it has changed "
            "since, or the tokenizer has",
            "give the text as it was, or begin anew",
        )


def _in_spans(
    table: Int64[np.ndarray, "4 batch context"], touched: np.ndarray, documents: list[Document]
) -> np.ndarray:
    """Return False at tokens of a document that lie outside the stretches that count."""
    inside = np.ones(table.shape[1:], dtype=bool)
    for number, document in zip(touched.tolist(), documents, strict=True):
        if document.spans is not None:
            mine, start, end = table[_DOCUMENT] == number, table[_START], table[_END]
            counts = np.zeros_like(mine)
            for first, last in document.spans:
                counts |= (start < last) & (end > first)
            inside &= ~mine | counts
    return inside


def _forget(numbered: dict[int, Document], rows: list[Row]) -> None:
    """Drop the documents that were over before these rows, which come in order, began."""
    first = next((n for row in rows for n in row[_DOCUMENT].tolist() if n >= 0), None)
    if first is not None:
        for number in [number for number in numbered if number < first]:
            del numbered[number]


def _grouped(documents: Iterable[Document], characters: int) -> Iterator[list[Document]]:
    """Gather documents to be tokenised together, up to so many characters."""
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= characters:
            yield group
            group, size = [], 0
    if group:
        yield group


def _cut(tables: Iterable[Placed], length: int, nothing_yet: bool) -> Iterator[Placed]:
    """Join tables and cut them to a length; the rest at the end counts only if it is all."""
    waiting: list[Table] = []
    size = 0
    end = Place()
    for table, end in tables:
        waiting.append(table)
        size += table.shape[1]
        if size < length:
            continue
        joined = np.concatenate(waiting, axis=1)
        whole = size - size % length
        for last in range(length, whole + 1, length):  # all of them end in this last table
            yield joined[:, last - length : last], replace(end, token=end.token - (size - last))
        waiting, size, nothing_yet = [joined[:, whole:]], size - whole, False
    if size and nothing_yet:
        yield np.concatenate(waiting, axis=1), end


def _checksum(table: Table) -> int:
    return zlib.crc32(table[_TOKEN].tobytes())


def _repeated(token: int, origin: int, count: int) -> Table:
    """Return a token that stands for no characters, some times over."""
    table = np.full((4, count), -1, dtype=np.int64)
    table[_TOKEN], table[_DOCUMENT] = token, origin
    return table
