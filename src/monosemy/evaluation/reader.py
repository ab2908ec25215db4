"""Text and its activations, read once for all suites."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.activations import Activations, counted_activations
from monosemy.coders import Dictionary
from monosemy.corpus import Corpus, Part, Place, TokenBatch, TokenStream
from monosemy.lm import LM

KEPT_BYTES = 2**30
"""Of activations kept for the next suite; more are computed again."""


class Reader:
    """Rows of text, and what a dictionary encodes and explains there."""

    def __init__(self, dictionary: Dictionary, lm: LM, corpus: Corpus) -> None:
        self.dictionary, self.lm, self.corpus = dictionary, lm, corpus
        self._streams: dict[Part, TokenStream] = {}
        self._kept: dict[int, tuple[TokenBatch, Activations]] = {}
        self._bytes = 0

    def stream(self, part: Part) -> TokenStream:
        """Return text cut into rows, and counted, as in training; tokenised once."""
        if part not in self._streams:
            stream = self.dictionary.provenance.stream(self.lm, self.corpus, part)
            self._streams[part] = _KeptStream(stream)
        return self._streams[part]

    def activations(self, batch: TokenBatch) -> Activations:
        """Return the counted tokens' activations where the dictionary encodes, and explains.

        Those of a batch of `stream` are kept, as far as `KEPT_BYTES` go.

        Raises:
            UserError: some are NaN or infinite.
        """
        if id(batch) in self._kept:
            return self._kept[id(batch)][1]
        names = [self.dictionary.hookpoint, self.dictionary.explains]
        values = counted_activations(self.lm, batch, names)
        self.keep(batch, values)
        return values

    def keep(self, batch: TokenBatch, values: Activations) -> None:
        """Keep a batch's activations that were had on the way, as `activations` would."""
        size = sum(x.nbytes for x in {id(x): x for x in values.values()}.values())
        if id(batch) not in self._kept and self._bytes + size <= KEPT_BYTES:
            self._bytes += size
            self._kept[id(batch)] = batch, values  # an id is a batch's only while that is there

    def sample(
        self, tokens: int
    ) -> tuple[Float[Tensor, "tokens d_in"], Float[Tensor, "tokens d_out"]]:
        """Return activations of the first tokens of training text: encoded, and explained."""
        found, count = [], 0
        for batch in self.stream("train"):
            found.append(self.activations(batch))
            count += int(batch.counted.sum())
            if count >= tokens:
                break
        here, there = self.dictionary.hookpoint, self.dictionary.explains
        x = torch.cat([values[here] for values in found])[:tokens]
        if here == there:
            return x, x
        return x, torch.cat([values[there] for values in found])[:tokens]


class _KeptStream(TokenStream):
    """A stream whose batches are the same objects each time."""

    def __init__(self, stream: TokenStream) -> None:
        self.__dict__.update(vars(stream))
        self._batches: list[TokenBatch] = []
        self._source = stream.read()

    def read(self, place: Place | None = None) -> Iterator[TokenBatch]:
        if place is not None and place != Place():
            yield from super().read(place)
            return
        number = 0
        while number < len(self._batches) or self._read_on():
            yield self._batches[number]
            number += 1

    def _read_on(self) -> bool:
        batch = next(self._source, None)
        if batch is not None:
            self._batches.append(batch)
        return batch is not None
