"""Which features fire on a text that somebody types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosemy.coders import Dictionary
from monosemy.corpus import TokenBatch, TokenStream, open_corpus
from monosemy.errors import UserError
from monosemy.lm import LM

LONGEST = 20_000
"""Characters of a text."""
_ROWS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class PromptFeature:
    """A feature that fires on a text."""

    feature: int
    max: float
    token: int
    """Index of the token on which it fires most."""
    tokens: int
    """Tokens on which it fires."""
    surprise: float
    """Its activation there over its largest in the index's text, times -log10 of its density: high
    where a rare feature fires strongly."""


@dataclass(frozen=True, slots=True)
class PromptFeatures:
    """The features that fire on a text: token by token, and over all of it."""

    tokens: list[str]
    counted: list[bool]
    """Whether the token policy counts a token; features are of those that it does."""
    by_token: list[list[tuple[int, float]]]
    """Of each token the features that fire and how much, strongest first."""
    overall: list[PromptFeature] = field(default_factory=list)
    """Most telling first."""

    def activations(self, feature: int) -> list[float]:
        """Return a feature's activation on each token."""
        return [dict(firing).get(feature, 0.0) for firing in self.by_token]


@torch.no_grad()
def fire_on(
    text: str, dictionary: Dictionary, lm: LM, *, largest: np.ndarray, density: np.ndarray
) -> PromptFeatures:
    """Run a text through a model and its dictionary, with special tokens as in training.

    Text longer than the context of training is cut into rows of that size, as text in training is.

    Args:
        text: what somebody typed.
        dictionary: whose features.
        lm: the model.
        largest: [width] largest activation of each feature over a corpus, for the order.
        density: [width] share of tokens on which each fires.

    Raises:
        UserError: the text is empty, or too long.
    """
    if not text.strip():
        raise UserError("the text is empty", "type some")
    if len(text) > LONGEST:
        raise UserError(
            f"the text has {len(text):,} characters", f"allowed: up to {LONGEST:,}; index a file"
        )
    batch = _tokenised(text, dictionary, lm)
    inside = batch.document[0] >= 0
    before, tokens = batch.tokens[:, batch.attention_mask[0] & ~inside], batch.tokens[:, inside]
    words = _words(text, batch.start[0, inside].tolist(), batch.end[0, inside].tolist())
    parts: list[Float[Tensor, "tokens d_in"]] = []
    counted: list[bool] = []
    for rows in _rows(before, tokens, dictionary.provenance.context):
        x = lm.capture(rows, [dictionary.hookpoint])[dictionary.hookpoint]
        parts.append(x[:, before.shape[1] :].flatten(0, 1).float())
        policy, everywhere = dictionary.provenance.policy, torch.ones_like(rows, dtype=torch.bool)
        counts = policy.mask(rows, everywhere, lm.special_ids, None)
        counted += counts[:, before.shape[1] :].flatten().tolist()
    code = dictionary.encode_sparse(torch.cat(parts))
    by_token: list[list[tuple[int, float]]] = [[] for _ in words]
    entries = zip(code.tokens.tolist(), code.indices.tolist(), code.values.tolist(), strict=True)
    for token, feature, value in entries:
        if value > 0 and counted[token]:
            by_token[token].append((feature, value))
    for firing in by_token:
        firing.sort(key=lambda pair: -pair[1])
    return PromptFeatures(words, counted, by_token, _overall(by_token, largest, density))


def _tokenised(text: str, dictionary: Dictionary, lm: LM) -> TokenBatch:
    """Return a text as one row, however long."""
    stream = TokenStream(
        open_corpus([text], held_out=0.0),
        lm.tokenizer,
        part="all",
        context=4 * len(text) + 2,  # a character is four bytes at most, and a byte one token
        packed=False,
        policy=dictionary.provenance.policy,
        seed=None,
    )
    return next(iter(stream))


def _rows(
    before: Int[Tensor, "1 inserted"], tokens: Int[Tensor, "1 tokens"], context: int
) -> Iterator[Int[Tensor, "rows time"]]:
    """Cut tokens into rows of a context, each after the inserted ones: the whole ones, the rest."""
    body = context - before.shape[1]
    whole = tokens.shape[1] // body * body
    for part in (tokens[0, :whole].view(-1, body), tokens[:, whole:]):
        for rows in part.split(_ROWS_AT_ONCE):
            if rows.numel():
                yield torch.cat([before.expand(len(rows), -1), rows], dim=1)


def _words(text: str, starts: Sequence[int], ends: Sequence[int]) -> list[str]:
    """Cut a row's tokens out of the text; of those that share a character the first shows it."""
    words, shown = [], 0
    for start, end in zip(starts, ends, strict=True):
        words.append(text[max(start, shown) : end])
        shown = max(shown, end)
    return words


def _overall(
    by_token: list[list[tuple[int, float]]], largest: np.ndarray, density: np.ndarray
) -> list[PromptFeature]:
    best: dict[int, tuple[float, int]] = {}
    times: dict[int, int] = {}
    for token, firing in enumerate(by_token):
        for feature, value in firing:
            times[feature] = times.get(feature, 0) + 1
            if value > best.get(feature, (0.0, 0))[0]:
                best[feature] = value, token
    found = []
    for feature, (value, token) in best.items():
        share = value / max(float(largest[feature]), value)
        rarity = -np.log10(max(float(density[feature]), 1e-8))
        found.append(PromptFeature(feature, value, token, times[feature], share * float(rarity)))
    return sorted(found, key=lambda f: (-f.surprise, f.feature))
