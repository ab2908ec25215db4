"""What single features cause: logits and later features, without them and with twice as much.

And whether features that are alike, by the cosine of their directions, are alike in their effects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosemy.coders import Dictionary
from monosemy.corpus import TokenBatch
from monosemy.errors import UserError
from monosemy.lm import LM

ABLATED, DOUBLED = 0.0, 2.0
_ROWS = 128
"""Windows in one pass."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureEffects:
    """The mean effects of features at places where they fire, on what is predicted there.

    Logits have their mean over the vocabulary taken away: softmax does not see it.
    """

    features: Int[np.ndarray, " n"]
    windows: Int[np.ndarray, " n"]
    """Places looked at."""
    kl_ablated: Float[np.ndarray, " n"]
    """KL(original || ablated) of the next token, nats."""
    kl_doubled: Float[np.ndarray, " n"]
    ablated: Float[np.ndarray, "n vocab"]
    """Change of logits where the feature is ablated."""
    doubled: Float[np.ndarray, "n vocab"]
    later: Float[np.ndarray, "n later_width"] | None
    """Change of a later dictionary's activations where it is ablated."""

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether features that are alike in one thing are alike in another.

    Attributes:
        correlation: Pearson's, over pairs of features, of the two cosines.
        null: mean and standard deviation of the same, features of one side permuted.
        p: share of permutations, the data among them, that correlate as much (Mantel 1967).
    """

    correlation: float
    null: tuple[float, float]
    p: float


@torch.no_grad()
def feature_effects(
    lm: LM,
    dictionary: Dictionary,
    features: Sequence[int],
    stream: Iterable[TokenBatch],
    *,
    later: Dictionary | None = None,
    windows: int = 8,
    context: int = 32,
    batches: int = 16,
) -> FeatureEffects:
    """Ablate and double each feature in text that ends where it fires.

    Features are scaled at all places of the text, and the effect is read at its end. Those that
    fire on fewer than two places are left out.

    Args:
        lm: the model.
        dictionary: whose features; no transcoder.
        features: which.
        stream: of text, such as `Provenance.stream` gives.
        later: a dictionary at a hook point further on.
        windows: places for each feature, at most.
        context: tokens before and at such a place.
        batches: of the stream to look for places in.

    Raises:
        UserError: there is no such feature, a transcoder, or none of them fires.
    """
    dictionary.check_one_place()
    for feature in features:
        dictionary.check_feature(feature)
    places = _places(lm, dictionary, features, stream, windows, context, batches)
    kept = [feature for feature in features if len(places[feature]) > 1]
    if not kept:
        raise UserError("none of these features fires twice in this text", "give more text")
    parts = []
    at_once = max(_ROWS // windows, 1)
    for first in range(0, len(kept), at_once):
        some = kept[first : first + at_once]
        tokens = torch.stack([row for feature in some for row in places[feature]])
        owner = torch.tensor([n for n, f in enumerate(some) for _ in places[f]], device=lm.device)
        numbers = torch.tensor(some, device=lm.device)[owner]
        parts.append(_effects(lm, dictionary, later, tokens.to(lm.device), owner, numbers))
    columns = [np.concatenate(part) for part in zip(*parts, strict=True)]
    return FeatureEffects(
        features=np.array(kept),
        windows=np.array([len(places[feature]) for feature in kept]),
        kl_ablated=columns[0],
        kl_doubled=columns[1],
        ablated=columns[2],
        doubled=columns[3],
        later=columns[4] if later is not None else None,
    )


def agreement(
    one: Float[np.ndarray, "n d"],
    other: Float[np.ndarray, "n e"],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Say whether things that are alike in one respect are alike in another.

    Args:
        one: such as directions of features.
        other: such as their effects; rows are of the same features.
        draws: permutations.
        seed: of them.
    """
    a, b = _cosines(one), _cosines(other)
    rng, upper = np.random.default_rng(seed), np.triu_indices(len(a), 1)
    found = float(np.corrcoef(a[upper], b[upper])[0, 1])
    null = np.empty(draws)
    for draw in range(draws):
        order = rng.permutation(len(a))
        null[draw] = np.corrcoef(a[order][:, order][upper], b[upper])[0, 1]
    p = (1 + int((null >= found).sum())) / (1 + draws)
    return Agreement(found, (float(null.mean()), float(null.std())), p)


def _cosines(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return units @ units.T


def _places(
    lm: LM,
    dictionary: Dictionary,
    features: Sequence[int],
    stream: Iterable[TokenBatch],
    windows: int,
    context: int,
    batches: int,
) -> dict[int, list[Int[Tensor, " context"]]]:
    """Return for each feature texts of `context` tokens that end where it fires."""
    found: dict[int, list[Tensor]] = {feature: [] for feature in features}
    point = dictionary.hookpoint
    for _, batch in zip(range(batches), stream, strict=False):
        if context > batch.tokens.shape[1]:
            raise UserError(
                f"rows of {batch.tokens.shape[1]} tokens hold no {context}", "ask for less context"
            )
        x = lm.capture(batch.tokens, [point], attention_mask=batch.attention_mask)[point]
        whole = batch.counted.unfold(1, context, 1).sum(-1) >= context - 1
        ends = torch.zeros_like(batch.counted)
        ends[:, context - 1 :] = whole & batch.counted[:, context - 1 :]
        at = ends.nonzero()
        code = dictionary.coder.encode_sparse(x[ends.to(x.device)].float())
        for feature in features:
            fires = code.tokens[code.indices == feature].cpu()
            # One of a row, then the next row: neighbours would be the same text again.
            rows = dict.fromkeys(at[fires, 0].tolist())
            for place in fires.tolist():
                row, end = at[place].tolist()
                if row in rows and len(found[feature]) < windows:
                    del rows[row]
                    text = batch.tokens[row, end - context + 1 : end + 1].clone()
                    text[0] = batch.tokens[row, 0]
                    found[feature].append(text)
        if all(len(texts) >= windows for texts in found.values()):
            break
    return found


def _effects(
    lm: LM,
    dictionary: Dictionary,
    later: Dictionary | None,
    tokens: Int[Tensor, "rows context"],
    owner: Int[Tensor, " rows"],
    numbers: Int[Tensor, " rows"],
) -> tuple[np.ndarray, ...]:
    """Return KL of both changes, both changes of logits, and that of later activations."""
    original, z = _read(lm, dictionary, later, tokens, numbers, 1.0)
    log_p = original.log_softmax(-1)
    kls, changes, moved = [], [], None
    for factor in (ABLATED, DOUBLED):
        logits, after = _read(lm, dictionary, later, tokens, numbers, factor)
        kl = torch.linalg.vecdot(log_p.exp(), log_p - logits.log_softmax(-1)).clamp_min(0)
        change = logits - original
        kls.append(_means(kl[:, None], owner)[:, 0])
        changes.append(_means(change - change.mean(-1, keepdim=True), owner))
        if factor == ABLATED and z is not None and after is not None:
            moved = _means(after - z, owner)
    return (*kls, *changes) if moved is None else (*kls, *changes, moved)


def _read(
    lm: LM,
    dictionary: Dictionary,
    later: Dictionary | None,
    tokens: Int[Tensor, "rows context"],
    numbers: Int[Tensor, " rows"],
    factor: float,
) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, "rows later_width"] | None]:
    """Return logits and later activations at the end, each row's own feature scaled."""
    directions = dictionary.coder.W_dec[numbers]
    kept: list[Tensor] = []

    def scale(x: Tensor, _: Tensor | None) -> Tensor:
        own = numbers[:, None, None].expand(*x.shape[:2], 1)
        z = dictionary.encode(x.float()).gather(-1, own)
        moved = (factor - 1) * z * directions[:, None]
        return torch.where(lm.call.text(x)[..., None], x + moved.to(x.dtype), x)

    def keep(x: Tensor, _: Tensor | None) -> Tensor:
        kept.append(x[:, -1].float())
        return x

    edits = [{dictionary.hookpoint: scale}]
    if later is not None:
        edits.append({later.hookpoint: keep})
    with lm.edit(*edits):
        logits = lm.logits(tokens, last=1)[:, 0].float()
    return logits, later.encode(kept[0]) if later is not None else None


def _means(values: Float[Tensor, "rows columns"], owner: Int[Tensor, " rows"]) -> np.ndarray:
    count = int(owner.max()) + 1
    sums = torch.zeros(count, values.shape[1], device=values.device).index_add_(0, owner, values)
    return (sums / owner.bincount(minlength=count)[:, None]).cpu().numpy()
