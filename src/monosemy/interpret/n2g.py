"""Neuron-to-Graph: a feature's patterns of tokens, found by shortening and changing its contexts.

Foote et al. 2023 (arXiv 2305.19911), in the form Gao et al. 2024 (arXiv 2406.04093, section 4.3)
score: random contexts in which a feature fires, without augmentation by another model.

Each context, up to the token that the feature fires on, is cut to the shortest suffix that keeps
half of the activation, a token drawn from the text before it; where the context has no more
tokens, text may begin with the suffix. Then each token of the suffix in turn is replaced by
tokens drawn from the text: where half of the activation is left, it is a wildcard. Wildcards in
front are left out. Three tokens are drawn each time and the majority decides, for one alone may
happen to be what the feature fires on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from monosemy.coders import SparseCoder
from monosemy.interpret.firings import Firings, TokenRows
from monosemy.interpret.graph import START, WILDCARD, Graph, Pattern, look_up
from monosemy.lm import LM
from monosemy.progress import Task

Activate = Callable[[Int[np.ndarray, "n time"], Int[np.ndarray, " n"]], Float[np.ndarray, " n"]]
"""Rows of token ids, the start of the text before each, and a feature for each row, to that
feature's activation at the row's last token."""

EXEMPLARS = 16
"""Random contexts of a feature that patterns are made from (Gao et al.)."""
REACH = 8
"""Tokens of the longest pattern; on real text longer ones hardly ever match again."""
DRAWS = 3
"""Tokens drawn, each in its turn, to stand where what stands should not matter."""
KEPT = 0.5
"""Share of the activation that must be left."""

_FEATURES_AT_ONCE = 256
_TOKENS_AT_ONCE = 8192


def explain_features(
    rows: TokenRows,
    firings: Firings,
    features: Sequence[int],
    activate: Activate,
    *,
    bos: int | None = None,
    exemplars: int = EXEMPLARS,
    reach: int = REACH,
    seed: int = 0,
) -> list[Graph]:
    """Return the graph of each feature; one that never fires, or depends on more, has no pattern.

    Contexts are drawn evenly from all tokens on which a feature fires: the first in one random
    order of tokens for all features, so that features that fire on the same token share what is
    run. The same seed gives the same graphs, whatever other features are asked for.

    At most 2 * `exemplars` * `DRAWS` * `reach` * (`reach` + 2) tokens a feature go through the
    model; on real text a fifth of that.

    Args:
        rows: training text.
        firings: who fires where in it.
        features: which are to be explained.
        activate: the model up to where the features live, and their coder: `activate_in`.
        bos: the id that begins text for the model.
        exemplars: contexts of each feature.
        reach: tokens of the longest pattern.
        seed: of contexts and of the tokens drawn.
    """
    rng = np.random.default_rng(seed)
    rank = rng.permutation(rows.tokens.size)
    text = rows.tokens[rows.counted]
    drawn = text[rng.integers(len(text), size=(rows.tokens.size, DRAWS, 2))]
    graphs: list[Graph] = []
    with Task("patterns", len(features), "features") as task:
        for first in range(0, len(features), _FEATURES_AT_ONCE):
            part = features[first : first + _FEATURES_AT_ONCE]
            contexts = _contexts(rows, firings, part, rank, drawn, exemplars, reach)
            graphs += _graphs(contexts, activate, len(part), bos)
            task.advance(len(part))
    return graphs


def activate_in(lm: LM, hookpoint: str, coder: SparseCoder, *, bos: int | None) -> Activate:
    """Return what runs rows through a model, up to a hook point, and reads features there.

    Rows that are the same are run once.
    """

    @torch.no_grad()
    def activate(
        rows: Int[np.ndarray, "n time"], features: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, " n"]:
        distinct, row = np.unique(rows, axis=0, return_inverse=True)
        row, found = row.reshape(-1), np.zeros(len(rows))
        at_once = max(_TOKENS_AT_ONCE // (rows.shape[1] + 1), 1)
        for first in range(0, len(distinct), at_once):
            tokens = torch.from_numpy(distinct[first : first + at_once]).long()
            if bos is not None:
                tokens = torch.nn.functional.pad(tokens, (1, 0), value=bos)
            code = coder.encode_sparse(lm.capture(tokens, [hookpoint])[hookpoint][:, -1].float())
            keys, order = (code.tokens * code.width + code.indices).cpu().sort()
            values = code.values.cpu()[order]
            mine = np.flatnonzero((row >= first) & (row < first + at_once))
            wanted = (row[mine] - first) * code.width + features[mine]
            found[mine] = look_up(keys.numpy(), values.numpy(), wanted, 0)
        return found

    return activate


@dataclass(frozen=True, slots=True)
class _Contexts:
    """Contexts of several features, and the tokens drawn for each."""

    owner: np.ndarray
    """[n] index of the feature among those asked for."""
    feature: np.ndarray
    """[n] its number."""
    tokens: np.ndarray
    """[n, reach + 1] the token it fires on last; `START` from where text begins backwards."""
    activation: np.ndarray
    """[n] its activation."""
    drawn: np.ndarray
    """[n, draws, 2] tokens to stand before a suffix, and in place of one of its tokens."""


def _contexts(
    rows: TokenRows,
    firings: Firings,
    features: Sequence[int],
    rank: np.ndarray,
    drawn: np.ndarray,
    exemplars: int,
    reach: int,
) -> _Contexts:
    owner, place, activation = firings.of_all(features)
    order = np.lexsort((rank[place], owner))
    before = np.searchsorted(owner, owner)  # entries of the features in front of this one
    first = order[np.arange(len(owner)) - before < exemplars]
    owner, place, activation = owner[first], place[first], activation[first]
    row, time = np.divmod(place, rows.tokens.shape[1])
    times = time[:, None] + np.arange(-reach, 1)
    tokens = np.where(times >= 0, rows.tokens[row[:, None], np.maximum(times, 0)], START)
    feature = np.asarray(features, dtype=np.int64)[owner]
    return _Contexts(owner, feature, tokens, activation, drawn[place])


def _graphs(contexts: _Contexts, activate: Activate, count: int, bos: int | None) -> list[Graph]:
    length, anchored, strength = _shorten(contexts, activate)
    found: list[dict[tuple[int, ...], list[float]]] = [defaultdict(list) for _ in range(count)]
    for size in range(1, contexts.tokens.shape[1]):
        for at_start in (False, True):
            mine = np.flatnonzero((length == size) & (anchored == at_start))
            salient = _salient(contexts, mine, size, at_start, strength[mine], activate)
            tokens = np.where(salient, contexts.tokens[mine, -size:], WILDCARD)
            for i, row in zip(mine, tokens.tolist(), strict=True):
                pattern = (START, *row) if at_start else _trimmed(row)
                found[contexts.owner[i]][pattern].append(float(strength[i]))
    return [_graph(patterns, bos) for patterns in found]


def _trimmed(tokens: list[int]) -> tuple[int, ...]:
    """Leave out wildcards in front: what stands there never mattered."""
    first = next((i for i, token in enumerate(tokens) if token != WILDCARD), len(tokens) - 1)
    return tuple(tokens[first:])


def _graph(found: dict[tuple[int, ...], list[float]], bos: int | None) -> Graph:
    patterns = [Pattern(tokens, float(np.mean(a)), len(a)) for tokens, a in found.items()]
    patterns.sort(key=lambda p: (-p.count, -p.activation, p.tokens))
    return Graph(tuple(patterns), bos)


def _shorten(contexts: _Contexts, activate: Activate) -> tuple[np.ndarray, ...]:
    """Find the shortest suffix of each context that keeps the activation.

    Returns:
        Its length, 0 where none does; whether text must begin before it; the activation on it.
    """
    n, reach = len(contexts.owner), contexts.tokens.shape[1] - 1
    length, anchored, strength = np.zeros(n, np.int64), np.zeros(n, bool), np.zeros(n)
    waiting = np.arange(n)
    for size in range(1, reach + 1):
        for at_start in (False, True):
            begins = contexts.tokens[waiting, -size - 1] == START
            tried = waiting[begins] if at_start else waiting
            suffix = contexts.tokens[tried, None, None, -size:]
            activation = np.median(_run(contexts, tried, suffix, at_start, activate)[:, 0], axis=1)
            kept = activation >= KEPT * contexts.activation[tried]
            done = tried[kept]
            length[done], anchored[done], strength[done] = size, at_start, activation[kept]
            waiting = waiting[length[waiting] == 0]
        waiting = waiting[contexts.tokens[waiting, -size - 1] != START]
    return length, anchored, strength


def _salient(
    contexts: _Contexts,
    which: np.ndarray,
    size: int,
    at_start: bool,
    strength: np.ndarray,
    activate: Activate,
) -> np.ndarray:
    """Return [n, size] whether each token of a suffix matters: most others do not do instead."""
    suffix, drawn = contexts.tokens[which, -size:], contexts.drawn[which, :, 1]
    changed = np.repeat(suffix[:, None, None], size, axis=1).repeat(drawn.shape[1], axis=2)
    places = np.arange(size)
    changed[:, places, :, places] = drawn
    activation = _run(contexts, which, changed, at_start, activate)
    differs = drawn[:, None] != suffix[:, :, None]  # a token replaced by itself says nothing
    kept = differs & (activation >= KEPT * strength[:, None, None])
    return 2 * kept.sum(2) <= differs.sum(2)


def _run(
    contexts: _Contexts, which: np.ndarray, rows: np.ndarray, at_start: bool, activate: Activate
) -> np.ndarray:
    """Return [n, variants, draws] the activation on rows [n, variants, draws or 1, time].

    Unless at the start of the text, each draw has its own token before it.
    """
    drawn = contexts.drawn[which, :, 0]
    n, variants, draws, size = len(which), rows.shape[1], drawn.shape[1], rows.shape[3]
    if not n:
        return np.zeros((0, variants, draws))
    rows = np.broadcast_to(rows, (n, variants, draws, size))
    if not at_start:
        before = np.broadcast_to(drawn[:, None, :, None], (n, variants, draws, 1))
        rows = np.concatenate([before, rows], axis=3)
    features = np.repeat(contexts.feature[which], variants * draws)
    found = activate(rows.reshape(-1, rows.shape[3]), features)
    return found.reshape(n, variants, draws)
