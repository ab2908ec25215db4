"""Which features differ between paired texts, by class: tested on one half, measured on the other.

Pooled activations are compared pair by pair: Wilcoxon's signed-rank test on pairs of one half of
the groups, one family of all features, classes and poolings (Benjamini-Hochberg); effect and
accuracy on the other half, in the direction found on the first, with intervals over groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from monosemy.coders import Dictionary
from monosemy.corpus import Pair
from monosemy.corpus.pairs import CONTROL
from monosemy.errors import UserError
from monosemy.index import Exemplar
from monosemy.interpret.pooled import (
    POOLINGS,
    REGIONS,
    Cut,
    PooledPairs,
    activations_at,
    cut_pairs,
    pool_pairs,
)
from monosemy.lm import LM
from monosemy.metrics import bootstrap_weights, interval
from monosemy.metrics.paired import (
    SignedRanks,
    benjamini_hochberg,
    cohen_dz,
    halves,
    max_t,
    random_flips,
    steadiest,
    wins,
)

ALL = "all"
"""The class of every pair but controls."""
FEWEST = 8
"""Pairs of a class in either half, from two groups at least."""
Q = 0.05
"""False-discovery rate up to which a feature is said to differ."""
_ACTIVE = 0.2
"""Share of pairs in which a feature must fire to be tested: blind to which text it fires in."""
_NONZERO = 8
"""Differences other than 0 that a test needs: with fewer no p-value could be small."""
_CONTROLS = 2
"""Controls kept for each pair of a class at most: all classes share them."""
_FLIPS, _NULL = 500, 20
"""Sign flips of max-T, and of the count of discoveries by chance, which are costlier."""
_DRAWS = 1000
_WINDOW = 32


@dataclass(frozen=True, slots=True, eq=False)
class PairSet:
    """Pairs that are compared, each with its class, group and half."""

    pairs: list[Pair]
    label: Sequence[str]
    group: Int[np.ndarray, " pairs"]
    first: Bool[np.ndarray, " pairs"]
    """In the half that is selected on; the other is measured on. No group is in both."""
    pooled: PooledPairs
    dropped: Mapping[str, int]
    """Why pairs were left out, and how many."""

    def rows(self, label: str, first: bool) -> Int[np.ndarray, " rows"]:
        """Return the pairs of a class, or of `all` but controls, in one half."""
        mine = [name == label or (label == ALL and name != CONTROL) for name in self.label]
        return np.flatnonzero(np.array(mine) & (self.first == first))

    def difference(self, values: np.ndarray) -> np.ndarray:
        """Return before less after: [texts, ...] -> [pairs, ...]."""
        return values[::2] - values[1::2]

    @property
    def classes(self) -> list[str]:
        """Classes with pairs enough in either half, from two groups at least; `all` comes first."""
        return [
            label
            for label in [ALL, *sorted({*self.label} - {CONTROL})]
            if all(
                len(rows) >= FEWEST and len({*self.group[rows].tolist()}) > 1
                for rows in (self.rows(label, True), self.rows(label, False))
            )
        ]


@dataclass(frozen=True, slots=True)
class FeatureContrast:
    """How a feature differs between the texts of pairs of one class."""

    feature: int
    label: str
    region: str
    """Tokens that it is pooled over, those where its p is least: see `REGIONS`."""
    pool: str
    before: bool
    """It fires more before; else after."""
    p: float
    q: float
    p_max_t: float
    """Holds for all features and poolings of the class together."""
    active: float
    """Share of pairs in which it fires there, of the half selected on."""
    pairs: int
    """In the half measured on, of which all below is."""
    effect: float
    """Matched-pairs rank-biserial correlation, in the direction found: 1 always, 0 none."""
    effect_low: float
    effect_high: float
    d_z: float
    accuracy: float
    """Share of pairs in which it fires more in the text it should, ties half."""
    accuracy_low: float
    accuracy_high: float
    tokens_accuracy: float
    """The same of a stand-in that has at each token the feature's mean activation at such tokens:
    what it tells by which tokens are there alone."""
    control_accuracy: float | None
    """The same on controls, whose texts differ by no flaw: 0.5 for one that tells flaws."""
    length_correlation: float
    """Of the difference with that of the texts' lengths, over all pairs of the class."""
    exemplar: Exemplar | None = None
    """Where it differs most, in the text in which it fires more."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Features that differ, of every class, and what is needed to judge them."""

    set: PairSet
    features: list[FeatureContrast]
    """Those whose q is at most 0.05, class by class, the least p first."""
    best: dict[str, FeatureContrast]
    """Of each class the one that is right most often in the half selected on."""
    found: dict[str, int]
    """Features that differ, by class."""
    tests: int
    discoveries: int
    """Tests whose q is at most 0.05."""
    by_chance: float
    """Such tests when the texts of pairs are swapped at random, group by group: how many there are
    where nothing differs."""


def prepare_pairs(
    dictionary: Dictionary, lm: LM, pairs: Sequence[Pair], *, most: int = 40, seed: int = 0
) -> PairSet:
    """Choose pairs, part them in halves, and run them through the model.

    Left out are copies, and pairs with the same tokens.

    Args:
        dictionary: whose features are pooled.
        lm: its model.
        pairs: with their classes and groups; a pair without group is one of its own.
        most: pairs of each class at most, drawn by `seed`; twice as many controls.
        seed: of that.

    Raises:
        UserError: the dictionary does not fit the model, or too few pairs remain.
    """
    distinct = list({(p.before.text, p.after.text): p for p in pairs}.values())
    bos = lm.tokenizer is not None and lm.tokenizer.bos_token_id is not None
    cuts, length = cut_pairs(distinct, lm, dictionary.provenance.context - bos)
    differ = [i for i in range(len(distinct)) if cuts[2 * i] is not None]
    rng = np.random.default_rng(seed)
    kept: list[int] = []
    counts: Counter[str] = Counter()
    for i in rng.permutation(differ).tolist():
        label = distinct[i].label
        if counts[label] < most * (_CONTROLS if label == CONTROL else 1):
            counts[label] += 1
            kept.append(i)
    kept.sort()
    dropped = {
        "copies": len(pairs) - len(distinct),
        "same tokens": len(distinct) - len(differ),
        f"above {most} of a class": len(differ) - len(kept),
    }
    chosen = [distinct[i] for i in kept]
    names = [pair.group or pair.before.id for pair in chosen]
    group = np.unique(names, return_inverse=True)[1] if names else np.zeros(0, np.int64)
    kind = np.unique([pair.label for pair in chosen], return_inverse=True)[1]
    first = halves(group, kind) if len(group) else np.zeros(0, bool)
    texts = [text for i in kept for text in (2 * i, 2 * i + 1)]
    read = [cut for i in texts if (cut := cuts[i]) is not None]
    if len(kept) < 2 * FEWEST or first.all():
        raise UserError(
            f"{len(kept)} different pairs of {len({*names})} groups are too few to compare",
            f"at least {2 * FEWEST} are needed, from two groups; of {len(pairs)} given: "
            + ", ".join(f"{n} {why}" for why, n in dropped.items()),
        )
    pooled = pool_pairs(dictionary, lm, read, [length[i] for i in texts], np.repeat(first, 2))
    return PairSet(chosen, [p.label for p in chosen], group, first, pooled, dropped)


@dataclass(frozen=True, slots=True, eq=False)
class _Tested:
    """The features of one class that are tested, in one pooling after the other."""

    label: str
    feature: Int[np.ndarray, " tests"]
    pooling: Int[np.ndarray, " tests"]
    """Index in `POOLINGS`."""
    active: Float[np.ndarray, " tests"]
    d: Float[np.ndarray, "rows tests"]
    """Before less after, in the half selected on."""
    rows: Int[np.ndarray, " rows"]


def contrast_features(
    found: PairSet, dictionary: Dictionary, lm: LM, *, shown: int = 5, seed: int = 0
) -> Contrast:
    """Test every feature that fires in enough pairs, and measure those that differ.

    Args:
        found: the pairs.
        dictionary: their features are its.
        lm: its model, for the contexts shown.
        shown: features of a class with a context.
        seed: of flips and draws.

    Raises:
        UserError: no class has enough pairs.
    """
    if not found.classes:
        counts = Counter(name or "(none)" for name in found.label)
        raise UserError(
            "no class has enough pairs: " + ", ".join(f"{k} {n}" for k, n in counts.items()),
            f"{FEWEST} are needed in either half of the groups, from two groups each",
        )
    classes = [_tested(found, label) for label in found.classes]
    p, q, by_chance = _significance(found, classes, seed)
    features: list[FeatureContrast] = []
    best: dict[str, FeatureContrast] = {}
    differ: dict[str, int] = {}
    for tested, mine, adjusted in zip(classes, p, q, strict=True):
        if not len(mine):
            differ[tested.label] = 0
            continue
        order = np.argsort(mine, kind="stable")
        leading = order[np.sort(np.unique(tested.feature[order], return_index=True)[1])]
        passed = [int(i) for i in leading if adjusted[i] <= Q]
        top = steadiest(tested.d)
        flips = random_flips(found.group[tested.rows], _FLIPS, seed)
        together = max_t(tested.d, flips)
        chosen = np.array([top, *passed])
        rows = _measured(found, tested, chosen, (mine, adjusted, together), seed)
        differ[tested.label], best[tested.label] = len(passed), rows[0]
        features += rows[1:]
    shown_rows = [*best.values(), *(f for k in best for f in _of(features, k)[:shown])]
    contexts = dict(zip(shown_rows, _exemplars(found, dictionary, lm, shown_rows), strict=True))
    return Contrast(
        found,
        [replace(f, exemplar=contexts.get(f)) for f in features],
        {label: replace(f, exemplar=contexts[f]) for label, f in best.items()},
        differ,
        sum(len(values) for values in p),
        sum(int((values <= Q).sum()) for values in q),
        by_chance,
    )


def _of(features: Sequence[FeatureContrast], label: str) -> list[FeatureContrast]:
    return [f for f in features if f.label == label]


def _tested(found: PairSet, label: str) -> _Tested:
    """Return the features that fire in enough pairs of a class, with differences enough."""
    rows = found.rows(label, True)
    texts = np.stack([2 * rows, 2 * rows + 1], 1).reshape(-1)
    parts = []
    for number, name in enumerate(POOLINGS):
        code = found.pooled.codes[name][texts]
        fires = np.unique(code.indices)
        values = code[:, fires].toarray().astype(np.float64)
        d, active = found.difference(values), (values[::2] + values[1::2] > 0).mean(0)
        kept = (active >= _ACTIVE) & ((d != 0).sum(0) >= _NONZERO)
        parts.append((fires[kept], np.full(kept.sum(), number), active[kept], d[:, kept]))
    feature, pooling, active, d = (np.concatenate(a, axis=-1) for a in zip(*parts, strict=True))
    return _Tested(label, feature, pooling, active, d, rows)


def _significance(
    found: PairSet, classes: Sequence[_Tested], seed: int
) -> tuple[list[np.ndarray], list[np.ndarray], float]:
    """Return p and q of every test by class, and the mean count of discoveries by chance."""
    ranked = [SignedRanks.of(t.d) for t in classes]
    flips = random_flips(found.group, _NULL, seed)
    every = np.concatenate([np.ones((1, len(found.pairs))), flips])
    p = [r.p_values(r.sums(every[:, t.rows])) for t, r in zip(classes, ranked, strict=True)]
    q = [benjamini_hochberg(row) for row in np.concatenate(p, 1)]
    ends = np.cumsum([values.shape[1] for values in p])[:-1]
    by_chance = float(np.mean([(row <= Q).sum() for row in q[1:]]))
    return [values[0] for values in p], np.split(q[0], ends), by_chance


def _measured(
    found: PairSet,
    tested: _Tested,
    chosen: Int[np.ndarray, " chosen"],
    figures: tuple[np.ndarray, np.ndarray, np.ndarray],
    seed: int,
) -> list[FeatureContrast]:
    """Measure tests on the half that they were not chosen on."""
    features, poolings = tested.feature[chosen], tested.pooling[chosen]
    share = wins(tested.d[:, chosen]).mean(0)
    sign = np.where(share < 0.5, -1.0, 1.0)
    every = sign * found.difference(_columns(found.pooled, features, poolings))
    rows, controls = found.rows(tested.label, False), found.rows(CONTROL, False)
    weights = group_weights(found.group[rows], seed)
    ranked, right = SignedRanks.of(every[rows]), wins(every[rows])
    effect, drawn = ranked.effect()[0], ranked.effect(weights)
    accuracy = weights @ right / weights.sum(1, keepdims=True)
    stand_in = _by_token(found.pooled, features, poolings, rows)
    mine = np.concatenate([tested.rows, rows])
    longer = found.difference(found.pooled.length)[mine]
    d_z = cohen_dz(every[rows])
    made = []
    p, q, p_max_t = figures
    for i, test in enumerate(chosen.tolist()):
        ends = interval({"effect": np.nan_to_num(drawn[:, i]), "accuracy": accuracy[:, i]})
        region, pool = POOLINGS[poolings[i]]
        on_controls = float(wins(every[controls, i]).mean()) if len(controls) else None
        made.append(
            FeatureContrast(
                feature=int(features[i]),
                label=tested.label,
                region=region,
                pool=pool,
                before=bool(sign[i] > 0),
                p=float(p[test]),
                q=float(q[test]),
                p_max_t=float(p_max_t[test]),
                active=float(tested.active[test]),
                pairs=len(rows),
                effect=float(np.nan_to_num(effect[i])),
                effect_low=ends["effect"][0],
                effect_high=ends["effect"][1],
                d_z=float(d_z[i]),
                accuracy=float(right[:, i].mean()),
                accuracy_low=ends["accuracy"][0],
                accuracy_high=ends["accuracy"][1],
                tokens_accuracy=float(wins(sign[i] * stand_in[:, i]).mean()),
                control_accuracy=on_controls,
                length_correlation=_correlation(every[mine, i], longer),
            )
        )
    return made


def group_weights(
    group: Int[np.ndarray, " rows"], seed: int, draws: int = _DRAWS
) -> Float[np.ndarray, "draws rows"]:
    """Return how often each pair is drawn in bootstrap samples of groups; never none at all."""
    names, mine = np.unique(group, return_inverse=True)
    return bootstrap_weights(len(names), draws, seed)[:, mine]


def _columns(
    pooled: PooledPairs, features: Int[np.ndarray, " n"], poolings: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "texts n"]:
    """Return pooled activations of features, each in its own pooling."""
    values = np.zeros((len(pooled.cuts), len(features)))
    for pooling in np.unique(poolings):
        mine = poolings == pooling
        values[:, mine] = pooled.codes[POOLINGS[pooling]][:, features[mine]].toarray()
    return values


def _by_token(
    pooled: PooledPairs,
    features: Int[np.ndarray, " n"],
    poolings: Int[np.ndarray, " n"],
    rows: Int[np.ndarray, " rows"],
) -> Float[np.ndarray, "rows n"]:
    """Return differences of what features would be if a token's identity were all they saw."""
    means = pooled.token_means[:, features].toarray()
    d = np.zeros((len(rows), len(features)))
    for pooling in np.unique(poolings):
        region, pool = POOLINGS[pooling]
        columns = np.flatnonzero(poolings == pooling)
        for place, row in enumerate(rows.tolist()):
            for side, text in ((1, 2 * row), (-1, 2 * row + 1)):
                cut = pooled.cuts[text]
                at = means[np.ix_(cut.ids[cut.regions[REGIONS.index(region)]], columns)]
                if len(at):
                    d[place, columns] += side * (at.max(0) if pool == "max" else at.mean(0))
    return d


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation; 0 where one of both does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _exemplars(
    found: PairSet, dictionary: Dictionary, lm: LM, features: Sequence[FeatureContrast]
) -> list[Exemplar]:
    """Return the contexts in which features differ most, in the text in which they fire more."""
    texts = []
    for f in features:
        rows = found.rows(f.label, False)
        code = found.pooled.codes[f.region, f.pool][:, [f.feature]].toarray()[:, 0]
        d = found.difference(code)[rows] * (1 if f.before else -1)
        texts.append(2 * int(rows[d.argmax()]) + (not f.before))
    cuts = [found.pooled.cuts[text] for text in texts]
    values = activations_at(dictionary, lm, cuts, [f.feature for f in features])
    return [
        _exemplar(found, lm, text, cut, activations, f)
        for text, cut, activations, f in zip(texts, cuts, values, features, strict=True)
    ]


def _exemplar(
    found: PairSet, lm: LM, text: int, cut: Cut, activations: np.ndarray, f: FeatureContrast
) -> Exemplar:
    inside = cut.regions[REGIONS.index(f.region)]
    peak = int(np.where(inside, activations, -1).argmax())
    start = max(min(peak - _WINDOW * 2 // 3, len(cut.ids) - _WINDOW), 0)
    window = slice(start, start + _WINDOW)
    assert lm.tokenizer is not None
    tokens = [str(lm.tokenizer.decode([i])) for i in cut.ids[window].tolist()]
    pair = found.pairs[text // 2]
    document = (pair.after if text % 2 else pair.before).id
    return Exemplar(document, tokens, activations[window].tolist(), peak - start)
