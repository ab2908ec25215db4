"""Activation maximisation: text, found by search, that excites a feature most at a given fluency.

Evolutionary prompt optimisation (Thompson, Straznickas and Sklar 2024, arXiv 2402.01702), whose
steps are those of GCG (Zou et al. 2023, arXiv 2307.15043): the gradient with respect to each
token, taken as one-hot, proposes swaps of one token; those proposed are run and the best are kept.
Each member of a population pays another price for cross-entropy, and what they find together is
the frontier between activation and likelihood.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosemy.coders import Dictionary, attach
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.progress import Task

PENALTIES = tuple(float(p) for p in np.geomspace(0.01, 1, 8))
"""Prices of a nat a token, as shares of the feature's strongest activation in text: at the first
fluency hardly counts, at the last hardly anything else does."""
_CHILDREN = 16
"""Swaps tried of each member at a step."""
_PROPOSED = 256
"""Tokens with the largest gradient at a position, out of which swaps are drawn."""
_TRIES = 64
"""Tokens tried in one place of a random text until its tokens can be read back."""
_LOGITS_AT_ONCE = 2**24
_TOKEN_EMBEDDING = "hook_embed"  # of tokens alone, in all models; positions may come after

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Input:
    """Text as tokens, and what it does to a feature."""

    ids: Ids
    """Token ids, without BOS; they are what the tokenizer makes of `text`."""
    text: str
    activation: float
    """The feature's largest activation on its tokens; 0 if it does not fire."""
    pre_activation: float
    """The largest before selection: what was optimised."""
    cross_entropy: float
    """Nats a token, of all tokens that have another, or BOS, before them."""


@dataclass(frozen=True, slots=True)
class Maximised:
    """What a search found, beside the corpus."""

    feature: int
    frontier: list[Input]
    """Largest activation first; each further one is likelier text."""
    exemplar: Input | None
    """The best exemplar in the corpus, in the context that was given."""

    def ratio(self, found: Input) -> float:
        """Return an input's activation over the best exemplar's; NaN without one that fires."""
        best = self.exemplar.activation if self.exemplar else 0.0
        return found.activation / best if best > 0 else float("nan")


def maximise(
    dictionary: Dictionary,
    lm: LM,
    feature: int,
    *,
    exemplar: Sequence[int] | None = None,
    length: int = 12,
    steps: int = 60,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> Maximised:
    """Search for the inputs that excite a feature most, each at another price of fluency.

    The search starts from the best exemplar and from random tokens. It climbs the pre-activation,
    which has a gradient where the feature does not fire; what is returned is on the frontier of
    true activation against cross-entropy, of all inputs that were tried as far as pre-activation
    can tell, and the starts. No special token is used, BOS stands in front where the tokenizer has
    one, and every input can be typed: its text gives back its tokens.

    Args:
        dictionary: an autoencoder or a transcoder; checked against the model first.
        lm: its model, a causal language model.
        feature: its number.
        exemplar: token ids of the best exemplar in the corpus, up to the token it fires on; the
            last `length` are a start.
        length: tokens of an input.
        steps: each tries up to 16 swaps for each penalty.
        penalties: prices of a nat a token, as shares of the feature's `strength`.
        seed: of random starts and swaps.

    Raises:
        UserError: no such feature, a dictionary that does not fit, a model that is not causal, has
            no tokenizer or was loaded in part, or a length it does not take.
    """
    dictionary.check_feature(feature)
    search = _Search(dictionary, lm, feature, length, np.random.default_rng(seed))
    attach(dictionary, lm)
    given = tuple(i for i in exemplar or () if i not in lm.special_ids)
    starts = search.starts(given, len(penalties))
    pool = search.score(starts)
    scale = float(dictionary.strength[feature]) or float(np.abs(pool.pre).max()) or 1.0
    prices = np.array(penalties)[:, None] * scale
    archive, tried = pool, set(starts)
    with Task("maximise", max(steps, 1), "steps") as task:
        for _ in range(steps):
            members = pool.best(prices)
            children = [c for c in search.children(members, prices[:, 0]) if c not in tried]
            tried.update(children)
            pool = members.joined(search.score(children))
            archive = archive.joined(pool).frontier()
            task.advance(1)
    last = dict.fromkeys([*archive.ids, *pool.best(prices).ids, *starts])
    return Maximised(
        feature,
        _frontier(search.inputs(last)),
        next(iter(search.inputs([given])), None) if given else None,
    )


@dataclass(frozen=True, slots=True)
class _Pool:
    """Inputs of one length, and their scores."""

    ids: list[Ids]
    pre: Float[np.ndarray, " n"]
    cross_entropy: Float[np.ndarray, " n"]

    def best(self, prices: np.ndarray) -> _Pool:
        """Return the best input at each price; some may be the same."""
        return self._at((self.pre - prices * self.cross_entropy).argmax(1))

    def joined(self, other: _Pool) -> _Pool:
        pre = np.concatenate([self.pre, other.pre])
        return _Pool(
            [*self.ids, *other.ids], pre, np.append(self.cross_entropy, other.cross_entropy)
        )

    def frontier(self) -> _Pool:
        """Return the inputs that no other one beats in both scores."""
        return self._at(_undominated(self.pre, self.cross_entropy))

    def _at(self, which: np.ndarray) -> _Pool:
        ids = [self.ids[i] for i in which.tolist()]
        return _Pool(ids, self.pre[which], self.cross_entropy[which])


class _Search:
    """A feature of a model, as something that scores inputs and proposes others."""

    def __init__(
        self, dictionary: Dictionary, lm: LM, feature: int, length: int, rng: np.random.Generator
    ) -> None:
        lm.require_whole("fluency cannot be measured")
        if not lm.is_causal or lm.tokenizer is None:
            what = "has no tokenizer" if lm.is_causal else "is not a causal language model"
            raise UserError(f"`{lm.name}` {what}", "fluency is how well one predicts its tokens")
        embedding = lm.token_embedding()
        if embedding is None:
            raise UserError(
                f"`{lm.name}` does not look its tokens up in a table",
                "the search takes gradients with respect to rows of one",
            )
        most = (lm.context_limit or 10**9) - 1
        if not 2 <= length <= most:
            raise UserError(f"inputs of {length} tokens", f"allowed: 2 to {most}")
        self.lm, self.coder, self.feature = lm, dictionary.coder, feature
        self.hookpoint, self.length, self.rng = dictionary.hookpoint, length, rng
        self.tokenizer: Any = lm.tokenizer
        self.embedding = embedding
        self.bos = self.tokenizer.bos_token_id
        self.allowed = self._allowed()

    # --- inputs -----------------------------------------------------------------------------

    def starts(self, exemplar: Ids, count: int) -> list[Ids]:
        """Return the end of the exemplar, if it can be read back, and `count` random inputs."""
        begins = range(max(len(exemplar) - self.length, 0), -1, -1)
        ends = [exemplar[i : i + self.length] for i in begins] if exemplar else []
        found = [self._extend(ids) for ids in self._read_back(ends)[:1]]
        return list(dict.fromkeys([*found, *(self._extend(()) for _ in range(count))]))

    def _extend(self, ids: Ids) -> Ids:
        """Append random tokens, each so that all can be read back."""
        while len(ids) < self.length:
            drawn = self.rng.choice(self.allowed, _TRIES).tolist()
            longer = self._read_back([(*ids, token) for token in drawn])
            # Where no token can follow, the last one is drawn anew.
            ids = longer[0] if longer else ids[:-1]
        return ids

    def _read_back(self, inputs: Sequence[Ids]) -> list[Ids]:
        """Keep the inputs that the tokenizer makes of their text."""
        if not inputs:
            return []
        again = self.tokenizer([self._text(ids) for ids in inputs])["input_ids"]
        return [
            ids
            for ids, found in zip(inputs, again, strict=True)
            if ids
            == tuple(found[1:] if self.bos is not None and found[:1] == [self.bos] else found)
        ]

    def _text(self, ids: Ids) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def _allowed(self) -> Int[np.ndarray, " tokens"]:
        """Return the tokens inputs are made of: none that is special, or that is no token."""
        added = self.tokenizer.added_tokens_decoder
        special = {i for i, token in added.items() if token.special} | self.lm.special_ids
        known = set(self.tokenizer.get_vocab().values()) - special
        return np.array(sorted(i for i in known if i < len(self.embedding)))

    # --- scores -----------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, inputs: Sequence[Ids]) -> _Pool:
        """Run inputs of one length through the model, some at a time."""
        pre, cross_entropy = [np.zeros(0)], [np.zeros(0)]
        for part in self._parts(inputs):
            x, logits = self._run(part)
            pre.append(self._pre(x).amax(1).double().cpu().numpy())
            cross_entropy.append(self._cross_entropy(part, logits).double().cpu().numpy())
        return _Pool(list(inputs), np.concatenate(pre), np.concatenate(cross_entropy))

    @torch.no_grad()
    def inputs(self, inputs: Iterable[Ids]) -> list[Input]:
        """Return inputs with true activations."""
        found = []
        for ids in inputs:
            tokens = self._tokens([ids])
            x, logits = self._run(tokens)
            code = self.coder.encode_sparse(x[0])
            mine = code.values[code.indices == self.feature]
            found.append(
                Input(
                    ids,
                    self._text(ids),
                    max(float(mine.max()), 0.0) if len(mine) else 0.0,
                    float(self._pre(x).max()),
                    float(self._cross_entropy(tokens, logits)),
                )
            )
        return found

    def _parts(self, inputs: Sequence[Ids]) -> Iterable[Tensor]:
        size = (self.length + 1) * len(self.embedding)
        at_once = max(_LOGITS_AT_ONCE // size, 1)
        for first in range(0, len(inputs), at_once):
            yield self._tokens(inputs[first : first + at_once])

    def _tokens(self, inputs: Sequence[Ids]) -> Tensor:
        front = () if self.bos is None else (self.bos,)
        return torch.tensor([(*front, *ids) for ids in inputs], device=self.lm.device)

    def _run(self, tokens: Tensor, change: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what the dictionary reads at tokens other than BOS, and all logits, in fp32.

        With `change`, which is added to embeddings, both have gradients that reach it.
        """
        seen: list[Tensor] = []

        def read(x: Tensor, _: Tensor | None) -> Tensor:
            seen.append(x)
            return x

        add = {} if change is None else {_TOKEN_EMBEDDING: lambda x, _: x + change}
        with self.lm.edit(add), self.lm.edit({self.hookpoint: read}):
            logits = self.lm.logits(tokens, gradients=change is not None)
        return seen[0][:, self._front :].float(), logits.float()

    @property
    def _front(self) -> int:
        return 0 if self.bos is None else 1

    def _pre(self, x: Float[Tensor, "n time d"]) -> Float[Tensor, "n time"]:
        rows, _, _ = self.coder.normalised(x.flatten(0, 1))
        pre = rows @ self.coder.W_enc[self.feature] + self.coder.b_enc[self.feature]
        return pre.view(x.shape[:2])

    @staticmethod
    def _cross_entropy(tokens: Tensor, logits: Tensor) -> Float[Tensor, " n"]:
        scores = logits[:, :-1].log_softmax(-1)
        return -scores.gather(2, tokens[:, 1:, None])[..., 0].mean(1)

    # --- proposals --------------------------------------------------------------------------

    def children(self, members: _Pool, prices: Float[np.ndarray, " n"]) -> list[Ids]:
        """Return members with one token swapped for one that the gradient proposes."""
        proposed = self._proposals(members, prices)
        found: dict[Ids, None] = {}
        for ids, tokens in zip(members.ids, proposed, strict=True):
            places = self.rng.integers(self.length, size=_CHILDREN)
            # The nth largest gradient with a probability of about 1/n.
            ranks = tokens.shape[1] ** self.rng.random(_CHILDREN) - 1
            for place, rank in zip(places.tolist(), ranks.astype(int).tolist(), strict=True):
                found[(*ids[:place], int(tokens[place, rank]), *ids[place + 1 :])] = None
        return self._read_back(list(found))

    def _proposals(self, members: _Pool, prices: np.ndarray) -> Int[np.ndarray, "n time proposed"]:
        """Return the allowed tokens with the largest gradient, by position, largest first."""
        gradient = self._gradient(members, prices)
        hidden = torch.ones(gradient.shape[-1], dtype=torch.bool, device=gradient.device)
        hidden[torch.from_numpy(self.allowed)] = False
        gradient = gradient.masked_fill(hidden, -torch.inf)
        return gradient.topk(min(_PROPOSED, len(self.allowed)), dim=2).indices.cpu().numpy()

    def _gradient(
        self, members: _Pool, prices: Float[np.ndarray, " n"]
    ) -> Float[Tensor, "n time vocab"]:
        """Return the objective's gradient with respect to each token as one-hot.

        A token counts in two ways: as what is read, through its embedding, and as what is to be
        predicted, through the logits before it.
        """
        tokens = self._tokens(members.ids)
        weights = torch.from_numpy(prices).float().to(tokens.device)
        shape = *tokens.shape, self.embedding.shape[1]
        change = torch.zeros(shape, device=tokens.device, requires_grad=True)
        x, logits = self._run(tokens, change)
        with torch.enable_grad():
            value = self._pre(x).amax(1) - weights * self._cross_entropy(tokens, logits)
            (gradient,) = torch.autograd.grad(value.sum(), change)
        found = gradient[:, self._front :] @ self.embedding.T
        predicted = logits.detach()[:, :-1].log_softmax(-1) / (tokens.shape[1] - 1)
        found[:, 1 - self._front :] += weights[:, None, None] * predicted
        return found


def _frontier(inputs: Sequence[Input]) -> list[Input]:
    scores = [(found.activation, found.cross_entropy) for found in inputs]
    return [inputs[i] for i in _undominated(*np.array(scores).T).tolist()]


def _undominated(high: np.ndarray, low: np.ndarray) -> Int[np.ndarray, " some"]:
    """Return, highest first, those of which no other is as high and lower, or higher and as low."""
    order = np.lexsort((low, -high))
    least = np.minimum.accumulate(np.append(np.inf, low[order]))
    return order[low[order] < least[:-1]]
