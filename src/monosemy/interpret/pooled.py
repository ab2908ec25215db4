"""Paired texts as the model reads them: features pooled over what changed, and what did not."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor

from monosemy.coders import Dictionary, attach
from monosemy.corpus import Pair
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.progress import Task

REGIONS = ("changed", "unchanged", "whole")
"""Tokens that a diff takes out or puts in; those after the first change that are the same in both
texts, one to one; all that are read."""
POOLS = ("max", "mean")
_TOKENS_AT_ONCE = 4096

Pooling = tuple[str, str]
"""A region and how activations are pooled over it."""
POOLINGS: tuple[Pooling, ...] = tuple((region, pool) for region in REGIONS for pool in POOLS)


class Cut(NamedTuple):
    """The tokens of a text that are read, and which region they are of."""

    ids: Int[np.ndarray, " time"]
    regions: Bool[np.ndarray, "regions time"]


@dataclass(frozen=True, slots=True, eq=False)
class PooledPairs:
    """What a dictionary's features and the raw activations are over regions of paired texts."""

    cuts: list[Cut]
    """[2 * pairs] before and after of each pair in turn; so are the rows of all below."""
    length: Int[np.ndarray, " texts"]
    """Tokens of the whole text, also those that are not read."""
    codes: dict[Pooling, sparse.csr_array]
    """[texts, width]; 0 where there is no such token."""
    raw: dict[Pooling, Float[np.ndarray, "texts d_in"]]
    token_means: sparse.csr_array
    """[vocabulary, width] mean activation at each token, over the texts it was asked for."""


def cut_pair(before: Sequence[int], after: Sequence[int], most: int) -> tuple[Cut, Cut] | None:
    """Return the tokens of a pair that are read, and their regions; None where nothing differs.

    Texts longer than `most` tokens are read around the first change, both from the same place on,
    at most half of it before the change. A token is unchanged only if its partner is read too.
    """
    first = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b),
                 min(len(before), len(after)))  # fmt: skip
    if first == len(before) == len(after):
        return None
    longest = max(len(before), len(after))
    start = max(min(first - most // 2, longest - most), 0)
    sides = [np.zeros((len(REGIONS), len(ids)), dtype=bool) for ids in (before, after)]
    for side in sides:
        side[REGIONS.index("changed"), first:] = True
        side[REGIONS.index("whole")] = True
    # Of what both share at the beginning, nothing is to be compared.
    matcher = difflib.SequenceMatcher(None, before[first:], after[first:], autojunk=False)
    for i, j, size in matcher.get_matching_blocks():
        i, j = first + i, first + j
        read = max(min(size, start + most - max(i, j)), 0)
        for side, at in zip(sides, (i, j), strict=True):
            side[REGIONS.index("changed"), at : at + size] = False
            side[REGIONS.index("unchanged"), at : at + read] = True
    window = slice(start, start + most)
    cuts = [
        Cut(np.array(ids[window], dtype=np.int64), side[:, window])
        for ids, side in zip((before, after), sides, strict=True)
    ]
    return cuts[0], cuts[1]


def cut_pairs(pairs: Sequence[Pair], lm: LM, most: int) -> tuple[list[Cut | None], list[int]]:
    """Tokenise pairs: the cuts of before and after of each in turn, and the texts' lengths.

    Raises:
        UserError: the model has no fast tokenizer.
    """
    if lm.tokenizer is None or not lm.tokenizer.is_fast:
        raise UserError(f"{lm.name} has no fast tokenizer", "pass one: LM(model, tokenizer=...)")
    backend = lm.tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    texts = [text.text for pair in pairs for text in (pair.before, pair.after)]
    ids = [e.ids for e in backend.encode_batch(texts, add_special_tokens=False)]
    cuts: list[Cut | None] = []
    for before, after in zip(ids[::2], ids[1::2], strict=True):
        cuts += cut_pair(before, after, most) or (None, None)
    return cuts, [len(i) for i in ids]


def pool_pairs(
    dictionary: Dictionary,
    lm: LM,
    cuts: list[Cut],
    length: Sequence[int],
    of_means: Bool[np.ndarray, " texts"],
) -> PooledPairs:
    """Run texts through the model and pool every feature over each region.

    Args:
        dictionary: whose features; checked.
        lm: the model it belongs to.
        cuts: before and after of each pair in turn.
        length: tokens of the whole texts.
        of_means: the texts that mean activations at tokens are taken over.

    Raises:
        UserError: the dictionary does not fit the model.
    """
    attach(dictionary, lm)
    width, vocabulary = dictionary.width, int(max(c.ids.max(initial=0) for c in cuts)) + 1
    parts: dict[Pooling, list[tuple[np.ndarray, ...]]] = {p: [] for p in POOLINGS}
    raw = {p: np.zeros((len(cuts), dictionary.d_in), np.float32) for p in POOLINGS}
    sums = sparse.csr_array((vocabulary, width), dtype=np.float64)
    seen = np.zeros(vocabulary)
    sizes = np.zeros((len(REGIONS), len(cuts)))
    with Task("pairs", sum(len(c.ids) for c in cuts)) as task:
        for batch in _batches(cuts):
            x, row, at = _activations(dictionary, lm, [cuts[i] for i in batch])
            text = np.array(batch)[row]
            regions = np.stack([cuts[i].regions[:, t] for i, t in zip(text, at, strict=True)], 1)
            ids = np.array([cuts[i].ids[t] for i, t in zip(text, at, strict=True)])
            code = dictionary.encode_sparse(x)
            entries = tuple(a.cpu().numpy() for a in (code.tokens, code.indices, code.values))
            token, feature, value = (a[entries[2] > 0] for a in entries)
            for number, region in enumerate(REGIONS):
                inside = regions[number, token]
                for pool, found in _pooled(
                    text[token[inside]], feature[inside], value[inside], width
                ).items():
                    parts[region, pool].append(found)
                for pool, rows in _pooled_raw(x, row, regions[number], len(batch)).items():
                    raw[region, pool][batch] = rows
                sizes[number] += np.bincount(text[regions[number]], minlength=len(cuts))
            mine = of_means[text]
            kept = mine[token]
            sums += sparse.csr_array(
                (value[kept].astype(np.float64), (ids[token[kept]], feature[kept])), sums.shape
            )
            np.add.at(seen, ids[mine], 1)
            task.advance(len(x))
    scale = sparse.diags_array(1 / seen.clip(1))
    return PooledPairs(
        cuts,
        np.array(length),
        {p: _gathered(found, p, sizes, width) for p, found in parts.items()},
        raw,
        (scale @ sums).tocsr(),
    )


def activations_at(
    dictionary: Dictionary, lm: LM, cuts: Sequence[Cut], features: Sequence[int]
) -> Iterator[Float[np.ndarray, " time"]]:
    """Yield one feature's activations at the tokens of each text."""
    for cut, feature in zip(cuts, features, strict=True):
        x, _, at = _activations(dictionary, lm, [cut])
        values = np.zeros(len(cut.ids), np.float32)
        values[at] = dictionary.encode(x)[:, feature].cpu().numpy()
        yield values


def _batches(cuts: Sequence[Cut]) -> Iterator[list[int]]:
    """Yield numbers of texts of like length, so that little is padded."""
    order = sorted(range(len(cuts)), key=lambda i: len(cuts[i].ids))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(cuts[i].ids) > _TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(i)
    yield batch


@torch.no_grad()
def _activations(
    dictionary: Dictionary, lm: LM, cuts: Sequence[Cut]
) -> tuple[Float[Tensor, "tokens d_in"], Int[np.ndarray, " tokens"], Int[np.ndarray, " tokens"]]:
    """Return activations of the tokens that count, the text each is of, and its place there."""
    bos = lm.tokenizer.bos_token_id if lm.tokenizer is not None else None
    head = int(bos is not None)
    longest = max(len(c.ids) for c in cuts) + head
    tokens = torch.full((len(cuts), longest), bos or 0)
    mask = torch.zeros(len(cuts), longest, dtype=torch.bool)
    for row, cut in enumerate(cuts):
        tokens[row, head : head + len(cut.ids)] = torch.from_numpy(cut.ids)
        mask[row, : head + len(cut.ids)] = True
    counted = dictionary.provenance.policy.mask(tokens, mask, lm.special_ids)
    if head:
        counted[:, 0] = False
    point = dictionary.hookpoint
    found = lm.capture(tokens, [point], attention_mask=mask)[point]
    text, at = counted.nonzero(as_tuple=True)
    return found[counted.to(found.device)].float(), text.numpy(), at.numpy() - head


def _pooled(
    text: np.ndarray, feature: np.ndarray, value: np.ndarray, width: int
) -> dict[str, tuple[np.ndarray, ...]]:
    """Return the largest activation and the sum, for each text and feature that fires in it."""
    key = text.astype(np.int64) * width + feature
    order = np.argsort(key, kind="stable")
    key, value = key[order], value[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    if not len(starts):
        return {pool: (key, value) for pool in POOLS}
    return {
        "max": (key[starts], np.maximum.reduceat(value, starts)),
        "mean": (key[starts], np.add.reduceat(value, starts)),
    }


def _gathered(
    parts: list[tuple[np.ndarray, ...]], pooling: Pooling, sizes: np.ndarray, width: int
) -> sparse.csr_array:
    key, value = (np.concatenate(a) for a in zip(*parts, strict=True))
    text, feature = np.divmod(key, width)
    if pooling[1] == "mean":
        value = value / sizes[REGIONS.index(pooling[0]), text]
    shape = (sizes.shape[1], width)
    return sparse.csr_array((value.astype(np.float32), (text, feature)), shape)


def _pooled_raw(x: Tensor, row: np.ndarray, inside: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """Return the largest and the mean of each number over a region; 0 where that is empty."""
    chosen = torch.from_numpy(inside)
    into, values = torch.from_numpy(row)[chosen][:, None].expand(-1, x.shape[1]), x.cpu()[chosen]
    none = torch.zeros(rows, x.shape[1])
    return {
        pool: none.scatter_reduce(0, into, values, kind, include_self=False).numpy()
        for pool, kind in (("max", "amax"), ("mean", "mean"))
    }
