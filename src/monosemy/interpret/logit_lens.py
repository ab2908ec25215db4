"""The logit lens: which tokens a feature's direction promotes and suppresses, all else ignored.

Its direction goes through the final norm's gain and the unembedding, the mean over the vocabulary
taken away (softmax does not see it). Only the direct path is shown; layers between are not. In the
same way the embedding says which tokens' vectors a feature reads, and which its direction is like.

How a feature's weights are distributed over the vocabulary tells kinds of features apart: far from
0 in skewness and kurtosis, it says or forbids a few tokens; high in kurtosis alone, it sets two
groups of tokens apart; near 0 in both, it does not speak of the next token (Bloom and Lin 2024,
"Understanding SAE features with the logit lens").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosemy.coders import Dictionary
from monosemy.lm import LM, Unembedding
from monosemy.lm.hooks import INPUT
from monosemy.metrics.moments import Moments, moments

_ENTRIES_AT_ONCE = 2**24
"""Weights worked on at a time: 64 MB, which goes back to the system each time it is let go."""


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """What features are to the tokens of a vocabulary.

    Left out are tokens that are special, that the tokenizer does not have, and whose row is zero:
    they were hardly trained, and their outliers would pass for the features'.
    """

    values: Float[Tensor, "features both"]
    """Weights of the n highest tokens, then of the n lowest, furthest first in both halves; less
    the feature's mean over the vocabulary."""
    tokens: Int[Tensor, "features both"]
    """Their ids, int32."""
    moments: Moments
    """Of each feature's weights over the vocabulary, their mean not taken away."""


@torch.no_grad()
def logit_lens(
    lm: LM, directions: Float[Tensor, "features d"], count: int = 10
) -> tuple[Float[Tensor, "features both"], Int[Tensor, "features both"]]:
    """Return the `count` most promoted tokens, then the `count` most suppressed, of each feature.

    Tokens that were hardly trained are left out, see `TokenWeights`.

    Returns:
        Logit weights for a unit of activation, strongest first in both halves; token ids.

    Raises:
        UserError: the model is not a causal language model.
    """
    unembedding = lm.unembedding()
    rows = _through_norm(directions, unembedding)
    found = token_weights(rows, unembedding.weight, trained_tokens(lm, unembedding.weight), count)
    return found.values, found.tokens


@torch.no_grad()
def vocabulary_lens(lm: LM, dictionary: Dictionary, count: int = 10) -> dict[str, np.ndarray]:
    """Return what every feature of a dictionary is to the vocabulary, as arrays by name.

    There are up to four tables:

    - `logits`: the direction through the final norm's gain and the unembedding;
    - `logits_without_norm`: the same without the gain and, for a LayerNorm, its centring;
    - `reads`: encoder rows times token embeddings, how much of a token's vector is read;
    - `writes`: directions times token embeddings.

    Each has `TABLE.values` and `TABLE.tokens` [width, 2 count], as in `TokenWeights`, and
    `TABLE.mean`, `.std`, `.skewness`, `.kurtosis` [width]. Embeddings are as the model stores
    them. A table is missing where it would say nothing: without a head (`logits`), where the
    dictionary does not write to the residual stream (all but `reads`) or does not read in its
    coordinates (`reads`). At `final_norm`, which the gain has been applied to, both tables of
    logits are the same.

    Memory: some 400 MB, whatever the width and the vocabulary, beside the matrices and the result.

    Args:
        lm: the model.
        dictionary: whose features; not checked against the model.
        count: tokens at either end; fewer where the vocabulary is smaller.
    """
    tables: dict[str, TokenWeights] = {}
    coder = dictionary.coder
    writes = in_stream(lm, dictionary.explains)
    unembedding = _unembedding_of(lm, dictionary)
    if unembedding is not None:
        weight, trained = unembedding.weight, trained_tokens(lm, unembedding.weight)
        rows = _through_norm(coder.W_dec, unembedding)
        tables["logits"] = token_weights(rows, weight, trained, count)
        tables["logits_without_norm"] = token_weights(coder.W_dec, weight, trained, count)
    embedding = lm.token_embedding()
    if embedding is not None:
        trained = trained_tokens(lm, embedding)
        if in_stream(lm, dictionary.hookpoint) and embedding.shape[1] == dictionary.d_in:
            tables["reads"] = token_weights(coder.W_enc, embedding, trained, count)
        if writes and embedding.shape[1] == dictionary.d_out:
            tables["writes"] = token_weights(coder.W_dec, embedding, trained, count)
    return {
        f"{name}.{part}": array.numpy()
        for name, table in tables.items()
        for part, array in _arrays(table).items()
    }


@torch.no_grad()
def direct_logits(
    lm: LM, dictionary: Dictionary, features: Sequence[int]
) -> Float[Tensor, "features vocab"] | None:
    """Return features' logit weights for a unit of activation, of all tokens.

    That is table `logits` of `vocabulary_lens` in full, means not taken away; None where there is
    none.
    """
    unembedding = _unembedding_of(lm, dictionary)
    if unembedding is None:
        return None
    rows = _through_norm(dictionary.coder.W_dec[list(features)], unembedding)
    return rows @ unembedding.weight.T


def _unembedding_of(lm: LM, dictionary: Dictionary) -> Unembedding | None:
    """Return what a dictionary's directions go through; None where they do not lead to logits."""
    if not lm.has_head or not in_stream(lm, dictionary.explains):
        return None
    unembedding = lm.unembedding()
    if lm.hookpoint(dictionary.explains).name == "final_norm":
        return unembedding._replace(gain=None, centres=False)
    return unembedding


def in_stream(lm: LM, name: str) -> bool:
    """Say whether activations at a hook point are in the coordinates of the residual stream.

    Those inside attention or an MLP are not, though they may have the same width (queries often
    do); those are that either of them writes, and norms.
    """
    point = lm.hookpoint(name)
    module = point.name.removesuffix(INPUT)
    if module != point.name and not module.startswith("layers."):
        return False  # what a head reads has been through the final norm
    inside = module.startswith("layers.") and module.count(".") > 2
    standard = {p.path: p.width for p in lm.hookpoints() if not p.name.endswith(INPUT)}
    width = next(iter(standard.values()), None)
    return point.width == width and (point.path in standard or not inside)


@torch.no_grad()
def token_weights(
    rows: Float[Tensor, "features d"],
    vocabulary: Float[Tensor, "vocab d"],
    trained: Bool[Tensor, " vocab"],
    count: int,
) -> TokenWeights:
    """Return each row's products with those of a vocabulary that were trained, in fp32."""
    rows = rows.detach().to(vocabulary.device).float()
    ids = trained.to(vocabulary.device).nonzero()[:, 0]
    count = min(count, len(ids))
    at_once = max(_ENTRIES_AT_ONCE // max(len(vocabulary), 1), 1)
    parts = [_some_weights(part @ vocabulary.T, ids, count) for part in rows.split(at_once)]
    values, tokens, *shape = (torch.cat(columns).cpu() for columns in zip(*parts, strict=True))
    return TokenWeights(values, tokens, Moments(*shape))


def _some_weights(weights: Tensor, ids: Tensor, count: int) -> tuple[Tensor, ...]:
    if len(ids) < weights.shape[1]:
        weights = weights[:, ids]
    shape = moments(weights)
    top = weights.topk(count, dim=1)
    bottom = weights.topk(count, dim=1, largest=False)
    values = torch.cat([top.values, bottom.values], 1) - shape.mean[:, None]
    tokens = ids[torch.cat([top.indices, bottom.indices], 1)].int()
    return values, tokens, *shape


def _arrays(table: TokenWeights) -> dict[str, Tensor]:
    return {"values": table.values, "tokens": table.tokens, **table.moments._asdict()}


def _through_norm(directions: Tensor, unembedding: Unembedding) -> Tensor:
    v = directions.detach().to(unembedding.weight.device).float()
    if unembedding.centres:
        v = v - v.mean(1, keepdim=True)
    return v if unembedding.gain is None else v * unembedding.gain


def trained_tokens(lm: LM, weight: Float[Tensor, "vocab d"]) -> Bool[Tensor, " vocab"]:
    """Say which rows belong to tokens of text: not special, known to the tokenizer, not zero."""
    trained = (weight != 0).any(1)
    if lm.tokenizer is not None:
        known = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
        added: dict[int, object] = getattr(lm.tokenizer, "added_tokens_decoder", {})
        special = {i for i, token in added.items() if getattr(token, "special", False)}
        words = set(lm.tokenizer.get_vocab().values()) - special - lm.special_ids
        known[sorted(i for i in words if i < len(weight))] = True
        trained &= known
    return trained
