"""What single features cause: logits and later features, without them and with twice as much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.index import Index
from monosemy.interpret.logit_lens import trained_tokens
from monosemy.lm import LM, Edit, Replay
from monosemy.progress import Task

ABLATED, DOUBLED = 0.0, 2.0
WINDOWS, CONTEXT = 8, 32
_ROWS = 128
"""Texts in one pass."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureEffects:
    """The mean effects of features at places where they fire, on what is predicted there.

    Logits are those of tokens that were trained, less their mean, which softmax does not see.
    """

    features: Int[np.ndarray, " n"]
    windows: Int[np.ndarray, " n"]
    """Places measured."""
    tokens: Int[np.ndarray, " tokens"]
    """Ids of the tokens, see `trained_tokens`."""
    kl_ablated: Float[np.ndarray, " n"]
    """KL(original || ablated) of the next token, nats."""
    kl_doubled: Float[np.ndarray, " n"]
    ablated: Float[np.ndarray, "n tokens"]
    """Change of logits where the feature is ablated."""
    doubled: Float[np.ndarray, "n tokens"]
    steady: Float[np.ndarray, " n"]
    """Cosine of the change by ablation on half of the places with that on the other half: near 1,
    the feature does the same wherever it fires; near 0, it depends on the text, or more places are
    needed."""
    original: Float[np.ndarray, "n tokens"]
    """Logits with the feature as it is: what its texts have in common."""
    later: Float[np.ndarray, "n later_width"] | None
    """Change of a later dictionary's activations where it is ablated."""

    def __len__(self) -> int:
        return len(self.features)


@torch.no_grad()
def feature_effects(
    lm: LM,
    dictionary: Dictionary,
    features: Sequence[int],
    index: Index,
    *,
    later: Dictionary | None = None,
    windows: int = WINDOWS,
    context: int = CONTEXT,
    seed: int = 0,
) -> FeatureEffects:
    """Ablate and double each feature in text that ends where it fires.

    Features are scaled at all places of the text, and the effect is read at its end. Texts come
    from the index, one a row of it; those on which a feature no longer fires, cut so short, do not
    count, and features that are left with fewer than two are left out. Of a transcoder, what its
    features write is scaled.

    Args:
        lm: the model.
        dictionary: whose features.
        features: which.
        index: of the dictionary; says where they fire.
        later: a dictionary at a hook point further on.
        windows: texts for each feature, at most.
        context: tokens in each.
        seed: of the draw of texts.

    Raises:
        UserError: there is no such feature, none of them fires, the index is another dictionary's,
            the later dictionary is not later, the model does not predict the next token, or fewer
            than two texts, or longer ones than rows, are asked for.
    """
    chosen = sorted(set(features))
    for feature in chosen:
        dictionary.check_feature(feature)
    index.check_dictionary(dictionary)
    if not lm.is_causal:
        raise UserError(
            f"{lm.name} does not predict the next token, on which effects are measured",
            "use a dictionary of a causal language model",
        )
    trained = trained_tokens(lm, lm.unembedding().weight).nonzero()[:, 0]
    draw = _Draw(lm, index, windows, context, seed)
    parts: list[dict[str, Tensor]] = []
    at_once = max(_ROWS // windows, 1)
    with Task("effects", len(chosen), "features") as task:
        for first in range(0, len(chosen), at_once):
            some = chosen[first : first + at_once]
            rows = [draw.texts(feature) for feature in some]
            owner = np.repeat(some, [len(texts) for texts in rows])
            if len(owner):
                tokens, numbers = torch.from_numpy(np.concatenate(rows)), torch.from_numpy(owner)
                numbers = numbers.to(lm.device)
                parts.append(_effects(_Texts(lm, dictionary, later, tokens, numbers), trained))
            task.advance(len(some))
    parts = [part for part in parts if part]
    if not parts:
        raise UserError(
            "none of these features fires on two texts of the index",
            "choose others, or look at more text: monosemy index RUN --tokens N --anew",
        )
    columns = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    moved = columns.pop("later", None)
    return FeatureEffects(tokens=trained.cpu().numpy(), later=moved, **columns)


def draw_features(
    index: Index, count: int, *, fewest: int = 2 * WINDOWS, seed: int = 0
) -> list[int]:
    """Return features of all densities, evenly by rank: one drawn from each of `count` shares.

    Args:
        index: says how often each fires.
        count: how many; all where there are no more.
        fewest: tokens on which they must fire.
        seed: of the draw.
    """
    if count < 1:
        raise UserError(f"effects of {count} features", "allowed: 1 and above")
    often = [feature for feature in index.live if index.counts[feature] >= fewest]
    rng, shares = np.random.default_rng(seed), np.array_split(often, min(count, len(often)) or 1)
    return sorted(int(rng.choice(share)) for share in shares if len(share))


class _Draw:
    """Texts of an index that end where a feature fires."""

    def __init__(self, lm: LM, index: Index, windows: int, context: int, seed: int) -> None:
        """Find the places that have so much text before them in their row.

        Raises:
            UserError: there are too few tokens in a row, or too few texts are asked for.
        """
        row = index.text.context
        if not 2 <= context <= row:
            raise UserError(
                f"texts of {context} tokens", f"rows of the index allow 2 to {row} tokens"
            )
        if windows < 2:
            raise UserError(f"{windows} texts for each feature", "allowed: 2 and above")
        self._index, self._windows, self._context, self._seed = index, windows, context, seed
        missing = np.concatenate([[0], np.cumsum(index.text.document < 0)])
        ends = np.arange(len(index.text))
        begins = np.maximum(ends - context + 2, 0)  # what stands first may be from no document
        self._whole = (ends % row >= context - 1) & (missing[ends + 1] == missing[begins])
        self._special = np.array(sorted(lm.special_ids), np.int64)

    def texts(self, feature: int) -> Int[np.ndarray, "rows context"]:
        """Return texts, each from another row: neighbours would be the same text again."""
        places, _ = self._index.entries(feature)
        places = places[self._whole[places]]
        places = np.random.default_rng((self._seed, feature)).permutation(places)
        row = self._index.text.context
        _, first = np.unique(places // row, return_index=True)
        places = places[np.sort(first)[: self._windows]].astype(np.int64)
        ids = self._index.text.ids
        texts = ids[places[:, None] + np.arange(1 - self._context, 1)].astype(np.int64)
        begins = ids[places // row * row]
        # A model that is used to a special token in front gets it there.
        texts[:, 0] = np.where(np.isin(begins, self._special), begins, texts[:, 0])
        return texts


class _Texts:
    """Texts, each with a feature of its own, run as they are and with it scaled."""

    def __init__(
        self,
        lm: LM,
        dictionary: Dictionary,
        later: Dictionary | None,
        tokens: Int[Tensor, "rows context"],
        numbers: Int[Tensor, " rows"],
    ) -> None:
        """Run the model on the texts as they are.

        Attributes:
            logits: [rows, vocab], of the token after each text.
            z: [rows, context], activations of its feature.
        """
        self.lm, self.dictionary, self.later, self.numbers = lm, dictionary, later, numbers
        self._replay = Replay(lm, dictionary.hookpoint)
        self._read: dict[str, Tensor] = {}
        keep = self._keep
        with lm.edit({dictionary.hookpoint: keep("x")}, {dictionary.explains: keep("y")}):
            self.logits = self._run(partial(self._replay.record, tokens))
        if list(self._read)[-1] == "y" and later is not None:
            raise UserError(
                f"`{later.hookpoint}` is not later than `{dictionary.explains}`",
                "give a dictionary at a hook point further on",
            )
        distinct, own = numbers.unique(return_inverse=True)
        code = dictionary.encode_sparse(self._read["x"].flatten(0, 1).float())
        z = code.columns(distinct.tolist()).reshape(*tokens.shape, -1)
        self.z = z.gather(-1, own[:, None, None].expand(*tokens.shape, 1))[..., 0]

    def scaled(self, rows: Int[Tensor, " some"], factor: float) -> Float[Tensor, "some vocab"]:
        """Return the logits of some of the texts, their features scaled wherever they fire."""
        directions = self.dictionary.coder.W_dec[self.numbers[rows]]
        moved = (factor - 1) * self.z[rows][..., None] * directions[:, None]

        def move(y: Tensor, _: Tensor | None) -> Tensor:
            return torch.where(self.lm.call.text(y)[..., None], y + moved.to(y.dtype), y)

        with self.lm.edit({self.dictionary.explains: move}):
            return self._run(partial(self._replay.again, rows))

    @property
    def read_later(self) -> Float[Tensor, "rows d"]:
        """What the later dictionary reads at the end, in the last pass."""
        return self._read["later"][:, -1].float()

    def _run(self, run: Callable[..., Tensor]) -> Float[Tensor, "some vocab"]:
        read = {self.later.hookpoint: self._keep("later")} if self.later is not None else {}
        with self.lm.edit(read):
            return run(last=1)[:, -1].float()

    def _keep(self, name: str) -> Edit:
        """Return an edit that changes nothing and keeps what it sees, the latest last."""

        def keep(x: Tensor, _: Tensor | None) -> Tensor:
            self._read.pop(name, None)
            self._read[name] = x.clone()  # later code may change it in place
            return x

        return keep


def _effects(texts: _Texts, trained: Int[Tensor, " tokens"]) -> dict[str, Tensor]:
    """Return the columns of `FeatureEffects`, of features that fire at the end of two texts."""
    fires = texts.z[:, -1] > 0
    features, counts = texts.numbers[fires].unique(return_counts=True)
    features, counts = features[counts > 1], counts[counts > 1]
    rows = (fires & torch.isin(texts.numbers, features)).nonzero()[:, 0]
    if not len(rows):
        return {}
    own, original = torch.searchsorted(features, texts.numbers[rows]), texts.logits[rows]
    log_p, later = original.log_softmax(-1), texts.later
    before = texts.read_later[rows] if later is not None else None
    found = {"features": features, "windows": counts}
    found["original"] = _means(_centred(original[:, trained]), own)
    for name, factor in (("ablated", ABLATED), ("doubled", DOUBLED)):
        logits = texts.scaled(rows, factor)
        kl = torch.linalg.vecdot(log_p.exp(), log_p - logits.log_softmax(-1)).clamp_min(0)
        change = _centred((logits - original)[:, trained])
        found[f"kl_{name}"] = _means(kl[:, None], own)[:, 0]
        found[name] = _means(change, own)
        if factor == ABLATED:
            found["steady"] = _steadiness(change, own)
            if later is not None and before is not None:
                moved = later.encode(texts.read_later) - later.encode(before)
                found["later"] = _means(moved, own)
    return {name: column.cpu() for name, column in found.items()}


def _centred(logits: Float[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens"]:
    return logits - logits.mean(-1, keepdim=True)


def _steadiness(
    change: Float[Tensor, "rows tokens"], own: Int[Tensor, " rows"]
) -> Float[Tensor, " features"]:
    """Return the cosine between the means over every other text of each feature."""
    begins = torch.searchsorted(own, own)
    half = (torch.arange(len(own), device=own.device) - begins) % 2
    means = _means(change, 2 * own + half)
    return torch.cosine_similarity(means[0::2], means[1::2], dim=1)


def _means(
    values: Float[Tensor, "rows columns"], owner: Int[Tensor, " rows"]
) -> Float[Tensor, "owners columns"]:
    count = int(owner.max()) + 1
    sums = torch.zeros(count, values.shape[1], device=values.device).index_add_(0, owner, values)
    return sums / owner.bincount(minlength=count)[:, None]
