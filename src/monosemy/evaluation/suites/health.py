"""The shape a dictionary is in: which features fire, how often, and how near together they lie."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse.linalg import eigsh
from torch import Tensor
from torch.nn.functional import cosine_similarity

from monosemy.coders import Code, SparseCoder
from monosemy.corpus import TokenBatch
from monosemy.evaluation.result import Plot, SuiteResult, Table, joined
from monosemy.evaluation.subject import NotMeaningful, Subject, Suite
from monosemy.metrics import bootstrap_weights, interval
from monosemy.metrics.health import (
    BINS,
    Cosines,
    Firing,
    direction_cosines,
    gini,
    variance_explained,
    weighted_quantile,
)
from monosemy.metrics.table import Better, MetricRow, MetricValue
from monosemy.progress import Task

DENSE = 0.1
"""Density above which a feature is dense."""
SAME = 0.9
"""Cosine above which two features are duplicates; below its negative they are antipodal."""
ASTRAY = 0.2
"""Cosine of a feature's encoder and direction below which it hardly reads what it writes."""
EXPLAINED = 0.25
"""Share of a dense feature's variance from which position, token or document is its class."""
COMPONENTS = 4
"""Principal components which, with the mean, span what dense features may be aligned with."""
CLASS_TOKENS = 16_384
"""Tokens by which dense features are told apart."""
_EDGES = np.linspace(-7, 0, 29)
"""Of the bins of log10 density."""
_MIDDLES = (_EDGES[1:] + _EDGES[:-1]) / 2
_CHUNK = 2**24
"""Numbers held at a time, to bound memory; it changes no figure."""

COLUMNS = ["dictionary", "untrained dictionary", "random directions"]
CLASSES = {
    "antipodal": f"another feature's direction has a cosine below -{SAME}",
    "principal": f"half of its squared length lies along the mean and {COMPONENTS} principal "
    "components of the activations",
    "position": f"the position in the row explains {EXPLAINED:.0%} of its variance",
    "token": f"the token itself explains {EXPLAINED:.0%} of its variance",
    "document": f"the document explains {EXPLAINED:.0%} of its variance",
}

Figures = dict[str, np.ndarray]
"""By name: [1 + draws], the figure itself and then that of each bootstrap draw."""


@dataclass(frozen=True, slots=True)
class _Figure:
    """What is measured, and what is said of it."""

    name: str
    explanation: str
    unit: str = ""
    better: Better = ""
    low: float = -math.inf
    """It asks for a look below, or above `high`."""
    high: float = math.inf
    said: str = ""
    """What it means if it does."""
    remedy: str = ""
    guide: str = ""
    """A band that people start from, and where it does not hold."""


@dataclass(slots=True)
class _Text:
    """What held-out text says of each coder."""

    firing: dict[str, Firing]
    documents: dict[str, int] = field(default_factory=dict)
    codes: dict[str, list[Code]] = field(default_factory=dict)
    """Of the first tokens, of which these are the rest:"""
    groups: dict[str, list[Tensor]] = field(default_factory=dict)
    """Their position, token and document."""


def run(subject: Subject) -> SuiteResult:
    """Say how features are used on `tokens` tokens of held-out text, and how they lie.

    Beside the figures stand those of the untrained dictionary on the same text, and of as many
    random directions as features fire. Nothing is judged by them: a dictionary of random
    directions is in perfect health. What is said is said of each figure by itself. Features that
    never fired are left out of the layout, since training has not moved them.

    Intervals of what is counted on text are from bootstrap draws of documents; those of the dead
    rate, the layout and the classes are from draws of features.

    Raises:
        NotMeaningful: fewer than two features fire.
    """
    coders = {COLUMNS[0]: subject.dictionary.coder, COLUMNS[1]: subject.untrained}
    text = _read(subject, coders)
    live = {name: torch.from_numpy(text.firing[name].counts > 0) for name in coders}
    fires = int(live[COLUMNS[0]].sum())
    if min(int(some.sum()) for some in live.values()) < 2:
        raise NotMeaningful(
            f"{fires} of {subject.dictionary.width:,} features fire on "
            f"{text.firing[COLUMNS[0]].n_tokens:,} tokens: train again, with a smaller learning "
            "rate or with AuxK"
        )
    layouts = {
        name: _layout(subject, live[name], coder.W_dec.cpu(), coder.W_enc)
        for name, coder in coders.items()
    }
    random = torch.randn(
        fires, subject.dictionary.d_out, generator=torch.Generator().manual_seed(subject.seed)
    )
    layouts[COLUMNS[2]] = _layout(subject, torch.ones(fires, dtype=torch.bool), random)
    found = {name: layout.figures for name, layout in layouts.items()}
    draws = _draws(subject, len(text.documents))
    for name, firing in text.firing.items():
        found[name] |= _use(firing, draws, subject.seed)
    return _result(subject, text, found, layouts[COLUMNS[0]])


def _tokens(subject: Subject) -> int:
    return subject.size("tokens", 16_384, 65_536, 262_144)


def _cost(subject: Subject) -> int:
    return subject.fit_tokens + _tokens(subject)


@torch.no_grad()
def _read(subject: Subject, coders: Mapping[str, SparseCoder]) -> _Text:
    """Count, on held-out text, which features of each coder fire, and how strongly."""
    text = _Text({name: Firing(coder.width) for name, coder in coders.items()})
    lengths = {name: coder.W_dec.norm(dim=1) for name, coder in coders.items()}
    here, total, seen = subject.dictionary.hookpoint, _tokens(subject), 0
    with Task("health", total) as task:
        for batch in subject.stream("held_out"):
            x = subject.reader.activations(batch)[here]
            groups = _groups(batch, text.documents)
            for name, coder in coders.items():
                code = coder.encode_sparse(x)
                strength = code.values * lengths[name][code.indices]
                text.firing[name].update(strength, code.indices, code.tokens, groups["document"])
                if seen < CLASS_TOKENS:
                    text.codes.setdefault(name, []).append(code)
            for name, numbers in groups.items() if seen < CLASS_TOKENS else ():
                text.groups.setdefault(name, []).append(numbers)
            seen += len(x)
            task.advance(len(x))
            if seen >= total:
                break
    return text


def _groups(batch: TokenBatch, documents: dict[str, int]) -> dict[str, Int[Tensor, " tokens"]]:
    """Number each counted token's position in its row, itself, and its document."""
    numbers = [documents.setdefault(d.id, len(documents)) for d in batch.documents]
    positions = batch.attention_mask.long().cumsum(1)
    return {
        "position": positions[batch.counted],
        "token": batch.tokens[batch.counted],
        "document": torch.tensor([*numbers, 0])[batch.document][batch.counted],
    }


def _draws(subject: Subject, n: int) -> Float[np.ndarray, "draws n"]:
    """Return all documents or features once, and then how often each is in a bootstrap draw."""
    return np.vstack([np.ones(n), bootstrap_weights(n, subject.draws, subject.seed)])


def _use(firing: Firing, draws: np.ndarray, seed: int) -> Figures:
    """Return how often and how strongly features fire."""
    dead = float((firing.counts == 0).mean())
    # Drawing documents again loses the features that fire in one alone: all draws would lie above.
    drawn = np.random.default_rng(seed).binomial(firing.width, dead, len(draws) - 1)
    median, dense, unequal, *histogram = _of_density(firing, draws).T
    return {
        "dead rate": np.concatenate([[dead], drawn / firing.width]),
        "median density": median,
        "dense": dense,
        "mean active": firing.mean_active(draws),
        "Gini": unequal,
        "L0, 5% of tokens": firing.l0_quantile(draws, 0.05),
        "L0, median": firing.l0_quantile(draws, 0.5),
        "L0, 95% of tokens": firing.l0_quantile(draws, 0.95),
        "histogram": np.stack(histogram, 1),
    }


def _of_density(firing: Firing, draws: np.ndarray) -> Float[np.ndarray, "draws figures"]:
    """Return figures of density, and its histogram, their draws about the figure itself.

    In documents drawn again rare features are rarer than they are, and every figure is off.
    """
    size = max(_CHUNK // firing.width, 1)
    parts = [_densities(firing.density(draws[i : i + size])) for i in range(0, len(draws), size)]
    values = np.concatenate(parts)
    values[1:] = (values[1:] + values[0] - values[1:].mean(0)).clip(min=0)
    return values


def _densities(density: Float[np.ndarray, "draws width"]) -> Float[np.ndarray, "draws figures"]:
    """Return the median of those that fire, the share of dense ones, Gini, and the histogram."""
    live = np.where(density > 0, density, np.nan)
    figures = np.nanmedian(live, axis=1), (density > DENSE).mean(1), gini(density)
    return np.column_stack([*figures, _histogram(density)])


def _histogram(density: Float[np.ndarray, "draws width"]) -> Float[np.ndarray, "draws bins"]:
    """Return the share of features in each bin of log10 density, all of them the whole."""
    (draws, width), n = density.shape, len(_MIDDLES)
    bins = np.searchsorted(10.0 ** _EDGES[1:-1], density)
    places = (np.arange(draws)[:, None] * n + bins)[density > 0]
    return np.bincount(places, minlength=draws * n).reshape(draws, n) / width


class _Layout(NamedTuple):
    """How features that fire lie."""

    features: Int[Tensor, " rows"]
    """Those compared with all others."""
    cosines: Cosines
    figures: Figures


def _layout(
    subject: Subject,
    live: Bool[Tensor, " width"],
    directions: Float[Tensor, "width d_out"],
    encoders: Float[Tensor, "width d_in"] | None = None,
) -> _Layout:
    """Return how near features that fire lie to one another, and encoders to directions.

    Of many features as many as are asked for are drawn; they are compared with all.
    """
    features = live.nonzero()[:, 0]
    most = subject.size("compared", 4_096, 8_192, 16_384)
    generator = torch.Generator().manual_seed(subject.seed)
    rows = torch.randperm(len(features), generator=generator)[:most].sort().values
    chosen = features[rows]
    cosines = direction_cosines(directions[features], rows)
    draws = _draws(subject, len(rows))
    figures = _nearness(cosines, draws)
    # A foreign dictionary is an `encode` and a `decode`: it has no encoder's rows.
    if encoders is not None:
        reads = encoders.cpu()[chosen].float()
        figures |= _spread(reads, draws)
        if not subject.dictionary.is_transcoder:
            figures |= _alignment(reads, directions[chosen].float(), draws)
    return _Layout(chosen, cosines._replace(partner=features[cosines.partner]), figures)


def _nearness(cosines: Cosines, draws: np.ndarray) -> Figures:
    nearest, histogram = cosines.nearest.numpy(), cosines.histogram.double().numpy()
    used = histogram.any(0)  # random directions fill a fifth of the bins
    middles = ((np.arange(BINS) + 0.5) * (2 / BINS) - 1)[used]
    return {
        "nearest cosine, mean": _mean(nearest, draws),
        "nearest cosine, 95%": weighted_quantile(nearest, draws, 0.95),
        "nearest cosine, max": weighted_quantile(nearest, draws, 1),
        "all pairs, mean": _mean(cosines.mean.numpy(), draws),
        "all pairs, 95%": weighted_quantile(middles, draws @ histogram[:, used], 0.95),
        "duplicates": _mean(nearest > SAME, draws),
        "antipodal": _mean(cosines.opposite.numpy() < -SAME, draws),
    }


def _spread(encoders: Tensor, draws: np.ndarray) -> Figures:
    norms = encoders.norm(dim=1).numpy()
    low, high = (weighted_quantile(norms, draws, share) for share in (0.05, 0.95))
    return {"encoder norm spread": high / np.maximum(low, 1e-12)}


def _alignment(encoders: Tensor, directions: Tensor, draws: np.ndarray) -> Figures:
    cosines = cosine_similarity(encoders, directions, dim=1).numpy()
    return {
        "encoder cosine, mean": _mean(cosines, draws),
        "encoder astray": _mean(cosines < ASTRAY, draws),
    }


def _mean(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    return draws @ values / draws.sum(1)


# --- dense features -----------------------------------------------------------------------------


def classify(
    subject: Subject,
    coder: SparseCoder,
    features: Int[Tensor, " n"],
    codes: list[Code],
    groups: Mapping[str, list[Tensor]],
) -> Bool[Tensor, "n classes"]:
    """Say to which of `CLASSES` features belong: none, one or several.

    Of the classes of Sun et al. 2025 (arXiv 2506.15679) these are the ones that activations and
    weights decide alone.

    Args:
        subject: whose activations principal components are of.
        coder: with these features.
        features: dense ones.
        codes: of some tokens, batch by batch.
        groups: `position`, `token`, `document`: a number for each of these tokens.
    """
    directions = coder.W_dec.detach().cpu().float()
    axes = _axes(subject.sample[1][:CLASS_TOKENS])
    chosen = directions[features]
    along = (chosen @ axes).square().sum(1) / chosen.square().sum(1)
    columns = [direction_cosines(directions, features).opposite < -SAME, along > 0.5]
    numbers = {name: torch.cat(parts) for name, parts in groups.items()}
    explained: dict[str, list[Tensor]] = {name: [] for name in numbers}
    for some in features.split(max(_CHUNK // len(numbers["token"]), 1)):
        z = torch.cat([code.columns(some.tolist()).cpu() for code in codes])
        for name, parts in explained.items():
            parts.append(variance_explained(z, numbers[name]) > EXPLAINED)
    columns += [torch.cat(explained[name]) for name in ("position", "token", "document")]
    return torch.stack(columns, 1)


def _axes(sample: Float[Tensor, "tokens d"]) -> Float[Tensor, "d axes"]:
    """Return an orthonormal basis of the mean and the first principal components."""
    x = sample.cpu().double()
    mean = x.mean(0)
    covariance = ((x - mean).T @ (x - mean)).numpy()
    components = min(COMPONENTS, len(covariance) - 1)
    # A fixed start: the same components each time.
    basis = eigsh(covariance, components, v0=np.ones(len(covariance)))[1]
    return torch.linalg.qr(torch.cat([mean[:, None], torch.from_numpy(basis)], 1)).Q.float()


# --- what is said -------------------------------------------------------------------------------


def _figures(text: _Text, found: Mapping[str, Figures]) -> list[_Figure]:
    """Return what is said of each figure; bounds are looser than the guides."""
    firing = text.firing[COLUMNS[0]]
    mean = float(firing.density(np.ones((1, len(text.documents)))).mean())
    chance = {name: float(values[0]) for name, values in found[COLUMNS[2]].items()}
    l0 = float(found[COLUMNS[0]]["L0, median"][0])
    return [
        _Figure(
            "dead rate",
            f"features that fired on none of {firing.n_tokens:,} tokens",
            "share",
            "lower",
            high=0.2,
            said="part of the width is unused",
            remedy="train longer, with AuxK or resampling, or choose a smaller width",
            guide="5% to 20%, of long training; below is better. A feature of density "
            f"{3 / firing.n_tokens:.1g} is missed on 5% of such texts, a rarer one more often",
        ),
        _Figure(
            "median density",
            "share of tokens on which the median feature that fires at all fires",
            low=mean / 10,
            said="a few features do most of the work",
            remedy="train longer, or choose a smaller width or a larger L0",
            guide="0.02 to 0.1, of small dictionaries; the mean is L0/width, "
            f"{mean:.2g} here, whatever the quality",
        ),
        _Figure(
            "dense",
            f"features that fire on more than {DENSE:.0%} of tokens",
            "share",
            high=0.05,
            said="many features fire all the time",
            remedy="see their classes; a smaller L0, or a larger width",
            guide="few; but many of them are signals that are dense in the model (2506.15679)",
        ),
        _Figure("mean active", "mean length that an active feature writes"),
        _Figure(
            "Gini",
            "inequality of densities, over all features; 0 = all fire as often",
            high=0.9,
            said="a few features fire for all",
            remedy="train longer, or choose a smaller width",
            guide="0.2 to 0.6, of small dictionaries; it grows with width, as rare features are "
            "found",
        ),
        _Figure(
            "L0, 5% of tokens",
            "features that fire on a token: 5% of tokens have as many or fewer",
            low=1,
            said="some tokens are explained by nothing",
            remedy="a larger L0, or `topk`, which gives every token as many",
        ),
        _Figure("L0, median", "half of the tokens have as many or fewer"),
        _Figure(
            "L0, 95% of tokens",
            "95% of tokens have as many or fewer",
            high=4 * l0,
            said="few tokens take most of the features",
            remedy="`topk`, which gives every token as many; look for massive activations "
            "(`monosemy stats`)",
        ),
        _Figure(
            "nearest cosine, mean",
            "of each feature that fires with the nearest other",
            high=max(0.3, 1.5 * chance["nearest cosine, mean"]),
            said="features crowd",
            remedy="a smaller width; Matryoshka against splitting",
            guide="below 0.3; not to be had where random directions have more",
        ),
        _Figure(
            "nearest cosine, 95%",
            "95% of features are no nearer to another",
            high=max(0.6, 1.5 * chance["nearest cosine, 95%"]),
            said="some features come in near copies",
            remedy="a smaller width; Matryoshka against splitting",
            guide="below 0.6; not to be had where random directions have more",
        ),
        _Figure("nearest cosine, max", "the nearest pair of all"),
        _Figure(
            "all pairs, mean",
            "mean cosine of two features",
            high=0.1,
            said="directions share an offset",
            remedy="centre activations: the default of `train`",
        ),
        _Figure(
            "all pairs, 95%",
            "95% of pairs have a smaller cosine",
            high=2 * chance["all pairs, 95%"],
            said="directions share few dimensions",
            remedy="look for dominant dimensions (`monosemy stats`); `train --whiten`",
        ),
        _Figure(
            "duplicates",
            f"features with another at a cosine above {SAME}",
            "share",
            "lower",
            high=0.01,
            said="the same is found several times",
            remedy="a smaller width",
        ),
        _Figure(
            "antipodal",
            f"features with another at a cosine below -{SAME}",
            "share",
            high=0.05,
            said="many directions need two features, one for each sign",
            remedy="see the classes of dense features: a signed direction is no error",
        ),
        _Figure(
            "encoder cosine, mean",
            "of a feature's encoder with its direction",
            low=0.3,
            said="features read elsewhere than they write",
            remedy="train longer, or with `tied` weights",
        ),
        _Figure(
            "encoder astray",
            f"features whose encoder has a cosine below {ASTRAY} with their direction",
            "share",
            "lower",
            high=0.1,
            said="some features hardly read what they write",
            remedy="distrust labels drawn from their activations alone; train longer",
        ),
        _Figure(
            "encoder norm spread",
            "95% of encoders' lengths lie below this many times what 5% lie below",
            high=10,
            said="encoders differ much in length",
            remedy="look at the shortest and longest features; a smaller learning rate",
        ),
    ]


def _row(figure: _Figure, found: Mapping[str, Figures]) -> MetricRow:
    """Return a figure beside the baselines', with what it says of the dictionary."""
    values = [_value(found[name].get(figure.name)) for name in COLUMNS]
    judgement, remedy = "", ""
    if values[0] is not None:
        judged = not (math.isinf(figure.low) and math.isinf(figure.high))
        asks = _asks(figure, values[0].value)
        said = [figure.said if asks else "in order"] if judged else []
        judgement = "; ".join(said + ([f"guide: {figure.guide}"] if figure.guide else []))
        remedy = figure.remedy if asks else ""
    return MetricRow(
        figure.name, figure.unit, figure.better, figure.explanation, values, judgement, remedy
    )


def _asks(figure: _Figure, value: float) -> bool:
    return not figure.low <= value <= figure.high


def _value(values: np.ndarray | None) -> MetricValue | None:
    if values is None or not np.isfinite(values).all():
        return None
    return MetricValue(float(values[0]), *interval({"": values[1:]})[""])


def _class_table(
    subject: Subject, text: _Text, coders: Mapping[str, SparseCoder]
) -> tuple[Table, list[dict[str, Any]]]:
    """Return the share of dense features in each class, and the dictionary's dense features."""
    names = [*CLASSES, "unclassified"]
    columns: list[list[MetricValue | None]] = []
    listed: list[dict[str, Any]] = []
    for column, coder in coders.items():
        density = text.firing[column].counts / text.firing[column].n_tokens
        features = torch.from_numpy((density > DENSE).nonzero()[0])
        if not len(features):
            columns.append([None] * len(names))
            continue
        member = classify(subject, coder, features, text.codes[column], text.groups)
        shown = torch.cat([member, ~member.any(1, keepdim=True)], 1).double().numpy()
        draws = _draws(subject, len(features))
        columns.append([_value(_mean(one, draws)) for one in shown.T])
        if column == COLUMNS[0]:
            listed = [
                {
                    "feature": feature,
                    "density": float(density[feature]),
                    "classes": list(itertools.compress(CLASSES, row)),
                }
                for feature, row in zip(features.tolist(), member.tolist(), strict=True)
            ]
    unknown = "none of these: a signal of the model, or a fault of training"
    rows = [
        MetricRow(name, "share", "", CLASSES.get(name, unknown), list(values))
        for name, values in zip(names, zip(*columns, strict=True), strict=True)
    ]
    return Table(list(coders), rows, f"dense features (above {DENSE:.0%} of tokens)"), listed


def _result(
    subject: Subject,
    text: _Text,
    found: Mapping[str, Figures],
    layout: _Layout,
) -> SuiteResult:
    firing = text.firing[COLUMNS[0]]
    figures = _figures(text, found)
    rows = [_row(figure, found) for figure in figures if figure.name in found[COLUMNS[0]]]
    coders = {COLUMNS[0]: subject.dictionary.coder, COLUMNS[1]: subject.untrained}
    classes, dense = _class_table(subject, text, coders)
    asking = [row.name for row in rows if row.remedy]
    judged = sum(bool(row.judgement) for row in rows)
    said = f"none of {judged} figures asks for a look"
    if asking:
        said = f"{len(asking)} of {judged} figures ask for a look: {joined(asking)}"
    return SuiteResult(
        SUITE.name,
        SUITE.title,
        [Table(COLUMNS, rows, "held-out text"), *([classes] if dense else [])],
        verdict=f"On {firing.n_tokens:,} held-out tokens of {len(text.documents)} documents, "
        f"{said}.",
        context={
            "tokens": firing.n_tokens,
            "documents": len(text.documents),
            "live": int((firing.counts > 0).sum()),
            "compared": len(layout.features),
            "interval": "95%, bootstrap over documents; of the dead rate, cosines, norms and "
            "classes over features",
        },
        plots=[_density_plot(found)],
        series=_series(firing, layout) | {"dense": dense},
    )


def _density_plot(found: Mapping[str, Figures]) -> Plot:
    """Return the histogram of log10 density of features that fire."""
    lines = {}
    for name in COLUMNS[:2]:
        cells = [_value(shares) for shares in found[name]["histogram"].T]
        lines[name] = [
            (float(x), cell.value, cell.low, cell.high)
            for x, cell in zip(_MIDDLES, cells, strict=True)
            if cell is not None and cell.value > 0
        ]
    return Plot("How often features fire", "log10 density", "share of features", lines)


def _series(firing: Firing, layout: _Layout) -> dict[str, list[Any]]:
    """Return what is known of each feature, for later pages; None where nothing is."""
    mean = firing.sums.numpy() / np.maximum(firing.counts, 1)

    def spread(values: Tensor) -> list[float | int | None]:
        whole: list[float | int | None] = [None] * firing.width
        for feature, value in zip(layout.features.tolist(), values.tolist(), strict=True):
            whole[feature] = round(value, 4)
        return whole

    return {
        "density": [round(share, 6) for share in (firing.counts / firing.n_tokens).tolist()],
        "mean_active": [round(value, 4) for value in mean.tolist()],
        "nearest": spread(layout.cosines.partner),
        "nearest_cosine": spread(layout.cosines.nearest),
        "opposite_cosine": spread(layout.cosines.opposite),
    }


SUITE = Suite("health", "Health", "quick", run, _cost)
