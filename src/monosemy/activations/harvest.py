"""Fill a store with a model's activations, as far as they are needed, and mend it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from monosemy.activations.live import counted_activations
from monosemy.activations.precision import TOKEN_BYTES, bytes_per_row, pack
from monosemy.activations.recipe import Recipe
from monosemy.activations.store import (
    SHARD_BYTES,
    Damage,
    Run,
    Store,
    StoreWriter,
    rows_per_shard,
    write_shard,
)
from monosemy.corpus import Corpus, Place, TokenBatch, TokenStream
from monosemy.device import fix_threads
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.progress import Task


class Harvest:
    """A store that grows as it is asked for more; use as a context manager.

    Text is gone over again and again, so a store can hold more tokens than there are. Killed at
    any moment and begun again it goes on with the next shard, and ends with the same files.

    Args:
        lm: the model.
        corpus: the text.
        recipe: hook points, and how text is read.
        folder: of the store, new or begun.
        tokens: how many the store is to hold in the end; the last shard holds what is left.
        precision: how activations are kept; None: as the store has them, bf16 in a new one.
        shard_bytes: size of a shard, about.

    Raises:
        UserError: the folder holds activations of something else, or another process writes there.
    """

    def __init__(
        self,
        lm: LM,
        corpus: Corpus,
        recipe: Recipe,
        folder: str | Path,
        *,
        tokens: int,
        precision: str | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        fix_threads()
        self.lm, self.corpus, self.recipe, self.tokens = lm, corpus, recipe, tokens
        self._stream = recipe.stream(lm, corpus, None)
        widths = {name: lm.hookpoint(name).width for name in recipe.hookpoints}
        self._writer = StoreWriter(folder, widths, precision, recipe)
        self.store = self._writer.store
        try:
            if self.store.shards:
                check_text(self.store, lm, corpus)
            else:
                self.store.text = self._stream.checksum()
            check_disk(self.store, tokens)
        except BaseException:
            self._writer.close()
            raise
        rows = rows_per_shard(self.store.widths, self.store.precision, shard_bytes)
        self._batches = max(rows // recipe.tokens_at_once, 1)
        self._text: Iterator[TokenBatch] | None = None
        self._buffer = _Buffer(self._batches * recipe.tokens_at_once, self.store)

    def __enter__(self) -> Harvest:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others write there."""
        self._writer.close()

    def grow(self, rows: int | None = None, task: Task | None = None) -> None:
        """Write shards until the store holds at least `rows`, or all that it is to hold.

        Raises:
            UserError: the disk is full, or activations are NaN or infinite; what is written stays.
        """
        rows = self.tokens if rows is None else rows
        while len(self.store) < rows:
            first = self._writer.n_batches
            if self._text is None:
                place = _begins(self.store, len(self.store.shards), self._stream)
                self._text = self._stream.read(place)
            wanted = max(self.tokens, rows) - len(self.store)
            taken: list[TokenBatch] = []
            self._buffer.clear()
            while len(taken) < self._batches and self._buffer.rows < wanted:
                taken.append(next(self._text))
                added = self._buffer.add(self.lm, taken[-1])
                if task is not None:
                    task.advance(added)
            self._writer.add(self._buffer.packed(), *_described(taken, first))


def check_text(store: Store, lm: LM, corpus: Corpus) -> None:
    """Hold the beginning of the text against what the store was made from.

    Raises:
        UserError: they differ.
    """
    if store.recipe is None or not len(store):
        return
    text = store.recipe.stream(lm, corpus, None)
    same = _same_tokens(store, text) if store.text is None else store.text == text.checksum()
    if not same:
        raise UserError(
            f"`{store.folder}` was made from other text than `{corpus.name}` holds now: "
            "the text has changed",
            "give the text it was made from, or choose another folder",
        )


def check_disk(store: Store, tokens: int) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        UserError: what is still to be written exceeds what is free.
    """
    missing = max(tokens - len(store), 0)
    needed = missing * (bytes_per_row(store.widths, store.precision) + TOKEN_BYTES)
    free = shutil.disk_usage(store.folder).free
    if needed > free:
        most = len(store) + free // (needed // missing)
        raise UserError(
            f"{missing:,} tokens need {needed / 1e9:.2f} GB on disk, {free / 1e9:.2f} GB is free "
            f"at `{store.folder}`",
            f"choose at most {most:,} tokens, --precision int8, or another folder",
        )


def repair(lm: LM, corpus: Corpus, folder: str | Path, damages: Sequence[Damage]) -> Iterator[str]:
    """Make damaged shards again, and only them; yield what is to be said about each.

    Raises:
        UserError: the store was not made from this model and text, or the text has changed since.
    """
    fix_threads()
    store = Store(folder, damaged=True)
    if store.recipe is None:
        raise UserError(
            f"`{folder}` was made from arrays, which are not there to make it again",
            "make the store again from the arrays",
        )
    with StoreWriter(folder, store.widths, store.precision, store.recipe, damaged=True) as writer:
        for damage in damages:
            shard = damage.shard
            text = store.recipe.stream(lm, corpus, None)
            first, last = shard.batches
            batches = list(islice(text.read(_begins(store, damage.number, text)), last - first))
            span, tokens, runs, place = _described(batches, first)
            if len(tokens) != shard.rows:
                raise UserError(
                    f"the text gives {len(tokens)} tokens for `{shard.name}`, which had "
                    f"{shard.rows}: it has changed since the store was made",
                    "give the text it was made from, or make the store again",
                )
            buffer = _Buffer(len(tokens), store)
            for batch in batches:
                buffer.add(lm, batch)
            made = write_shard(store.folder, shard.name, buffer.packed(), span, tokens, runs, place)
            writer.mend(damage.number, made)
            same = made.sha256 == shard.sha256
            yield f"{shard.name}: made again" + (
                "" if same else "; not bit for bit, as on another machine or number of threads"
            )


class _Buffer:
    """Where a shard's activations gather, packed; kept from shard to shard."""

    def __init__(self, size: int, store: Store) -> None:
        self.size, self.store, self.rows = size, store, 0
        self.autocast = store.recipe is not None and store.recipe.autocast
        self._tensors: dict[str, Tensor] = {}

    def clear(self) -> None:
        self.rows = 0

    def add(self, lm: LM, batch: TokenBatch) -> int:
        """Run the model on a batch; return the number of tokens counted."""
        values = counted_activations(lm, batch, self.store.hookpoints, self.autocast)
        for point, x in values.items():
            for name, part in pack(point, x, self.store.precision).items():
                if name not in self._tensors:
                    shape = (self.size, *part.shape[1:])
                    self._tensors[name] = torch.empty(shape, dtype=part.dtype)
                self._tensors[name][self.rows : self.rows + len(part)] = part
        added = len(next(iter(values.values())))
        self.rows += added
        return added

    def packed(self) -> dict[str, Tensor]:
        return {name: x[: self.rows] for name, x in self._tensors.items()}


def _begins(store: Store, number: int, text: TokenStream) -> Place:
    """Return where a shard's text begins; stores of before there were places count batches."""
    if number == 0:
        return Place()
    before = store.shards[number - 1]
    return before.place or text.place_after(before.batches[1])


def _same_tokens(store: Store, text: TokenStream) -> bool:
    """Say whether a store, of before there were checksums, holds the first tokens of a text."""
    batch = next(iter(text))
    asked = batch.tokens[batch.counted][: len(store)]
    there = store.tokens(slice(0, len(asked)))
    return there is not None and torch.equal(there, asked)


def _described(
    batches: Sequence[TokenBatch], first: int
) -> tuple[tuple[int, int], Int[Tensor, " rows"], list[Run], Place]:
    """Return where batches stand in the text, their counted tokens, documents, and what follows."""
    tokens = torch.cat([batch.tokens[batch.counted] for batch in batches])
    return (first, first + len(batches)), tokens, _runs(batches), batches[-1].place


def _runs(batches: Sequence[TokenBatch]) -> list[Run]:
    """Return where, among the counted tokens, another document begins or a place is skipped."""
    runs: list[Run] = []
    row = 0
    for batch in batches:
        document, start = batch.document[batch.counted], batch.start[batch.counted]
        rows = torch.arange(len(batch.tokens))[:, None].expand_as(batch.tokens)[batch.counted]
        new = torch.ones(len(document), dtype=torch.bool)
        new[1:] = (document[1:] != document[:-1]) | (rows[1:] != rows[:-1])
        for place in new.nonzero()[:, 0].tolist():
            number = int(document[place])
            name = batch.documents[number].id if number >= 0 else ""
            runs.append(Run(row + place, name, int(start[place])))
        row += len(document)
    return runs
