"""Reconstruction beside other decompositions of the same activations, at equal L0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.evaluation import baselines
from monosemy.evaluation.baselines import Reconstruct
from monosemy.evaluation.components import (
    MOST,
    independent,
    non_negative,
    principal,
    scaled_neurons,
)
from monosemy.evaluation.controls import (
    ROWS,
    control_tokens,
    frozen_decoder,
    knows_settings,
    random_model,
    trained_as_briefly,
)
from monosemy.evaluation.result import Judgement, SuiteResult, Table, judge, told
from monosemy.evaluation.splice import Splices
from monosemy.evaluation.subject import NotMeaningful, Subject, Suite
from monosemy.metrics import LossEffect, Reconstruction, bootstrap_weights, interval
from monosemy.metrics.table import Better, MetricRow, MetricValue
from monosemy.progress import Task

DICTIONARY, BRIEF, FROZEN = "dictionary", "the same, trained briefly", "frozen random decoder"
UNTRAINED, RANDOM = "untrained dictionary", "the same on a random model"
COMPONENTS = [
    "PCA of rank k",
    "PCA, k largest",
    "ICA, k largest",
    "NMF, k largest",
    "neurons, k largest",
    "neurons, k largest z-scores",
]
_JUDGED = [*COMPONENTS[1:4], COMPONENTS[5]]
"""What `reconstruction` judges is not judged again."""
SAMPLE = 16_384
"""Training tokens that independent components are found on; a quarter of it for NMF, which is
slower."""

_ROWS: list[tuple[str, str, Better, str]] = [
    ("FVU", "fvu", "lower", "share of variance left unexplained, token-pooled"),
    ("cosine", "cosine", "higher", "mean cosine of activation and reconstruction"),
    ("L0", "l0", "", "numbers used a token: features, factors or coordinates"),
    (
        "loss recovered (mean)",
        "recovered_mean",
        "higher",
        "with it spliced in: 1 = no harm, 0 = as the mean activation",
    ),
]

Figures = dict[str, dict[str, np.ndarray]]
"""Column -> figure -> [draws]."""


def run(subject: Subject) -> SuiteResult:
    """Hold the dictionary beside components and coordinates, and dictionaries trained for it.

    Components are fitted on training text. Of each token as many of their factors are kept as the
    dictionary uses features. Controls (`evaluation.controls`) are trained as briefly as time
    allows, and so is the dictionary's twin that they compare with. The same dictionary on a model
    of random weights is measured on that model's own activations: it says how easily noise is
    reconstructed, and is not judged. Figures are on `tokens` held-out tokens, those of the loss on
    `loss_tokens`; intervals are 95%, from bootstrap draws of documents.

    Raises:
        NotMeaningful: it is a transcoder, or scikit-learn is not installed.
    """
    if subject.dictionary.is_transcoder:
        raise NotMeaningful(
            "components decompose what is encoded, and a transcoder explains other activations: "
            "`reconstruction` has its baselines"
        )
    decompositions, context = _decompositions(subject)
    own = {
        DICTIONARY: baselines.of_dictionary(subject.dictionary),
        **decompositions,
        BRIEF: baselines.of_dictionary(trained_as_briefly(subject)),
        FROZEN: baselines.of_dictionary(frozen_decoder(subject)),
        UNTRAINED: baselines.of_coder(subject.untrained),
    }
    random = random_model(subject)
    points, samples, documents = _measure(subject, own, subject.sample[0].mean(0))
    noise = {RANDOM: baselines.of_dictionary(random.dictionary)}
    noise_points, noise_samples, _ = _measure(random, noise, random.dictionary.mean, splice=False)
    points, samples = {**points, **noise_points}, {**samples, **noise_samples}
    judgements = _judge(subject, samples)
    tables = [
        _table([DICTIONARY, *COMPONENTS], points, samples, f"components, k = {context['k']}"),
        _table(
            [DICTIONARY, BRIEF, FROZEN, UNTRAINED, RANDOM], points, samples, "other dictionaries"
        ),
    ]
    where = f"{_tokens(subject):,} held-out tokens of {documents} documents, at equal L0"
    return SuiteResult(
        SUITE.name,
        SUITE.title,
        tables,
        verdict=f"On {where}: {told(judgements)}.",
        judgements=judgements,
        context={
            **context,
            "documents": documents,
            "tokens": _tokens(subject),
            "loss_tokens": _loss_tokens(subject),
            "control_tokens": control_tokens(subject),
            "control_l0": random.dictionary.l0,
            "interval": "95%, bootstrap over documents",
        },
    )


def _tokens(subject: Subject) -> int:
    return subject.size("tokens", 4_096, 8_192, 65_536)


def _loss_tokens(subject: Subject) -> int:
    return subject.size("loss_tokens", 1_024, 2_048, 16_384)


def _cost(subject: Subject) -> int:
    passes = len(COMPONENTS) + 6
    read = subject.fit_tokens + ROWS + 2 * _tokens(subject)
    return read + passes * _loss_tokens(subject)


def _decompositions(subject: Subject) -> tuple[dict[str, Reconstruct], dict[str, Any]]:
    """Return what needs no training of features, and whether it came to rest."""
    x, _ = subject.sample
    k = min(max(round(subject.dictionary.l0), 1), x.shape[1])
    steps = subject.size("component_steps", 10, 20, 200)
    ica = independent(x[:SAMPLE], 4 * steps, subject.seed)
    nmf = non_negative(x[: SAMPLE // 4], min(x.shape[1], MOST), steps, subject.seed)
    found = [
        baselines.pca(x, k),
        principal(x).largest(k),
        ica.largest(k),
        nmf.largest(k),
        baselines.raw_neurons(x, k),
        scaled_neurons(x).largest(k),
    ]
    rested = {"ica_converged": ica.converged, "nmf_converged": nmf.converged}
    return dict(zip(COMPONENTS, found, strict=True)), {"k": k, **rested}


def _measure(
    subject: Subject,
    columns: Mapping[str, Reconstruct],
    mean: Float[Tensor, " d_in"],
    *,
    splice: bool = True,
) -> tuple[Figures, Figures, int]:
    """Return figures of each column, whole and in draws of documents, and how many these are."""
    here, splices = subject.dictionary.hookpoint, Splices(subject.lm, subject.dictionary)
    sums = {name: Reconstruction(mean) for name in columns}
    loss = LossEffect([*columns, "mean"], ablations=["mean"])
    documents: dict[str, int] = {}
    tokens, loss_tokens = 0, 0
    with Task("baselines", _tokens(subject)) as task, torch.no_grad():
        for batch in subject.stream("held_out"):
            groups = batch.numbers(documents)
            x = subject.reader.activations(batch)[here]
            made = {name: reconstruct(x) for name, reconstruct in columns.items()}
            for name, (values, used) in made.items():
                sums[name].update(x, values, used, groups[batch.counted])
            if splice and subject.lm.is_causal and loss_tokens < _loss_tokens(subject):
                targets, counted = batch.next_tokens()
                original, _ = splices.original(batch)
                put = {name: values for name, (values, _) in made.items()} | {"mean": mean}
                replaced = ((name, splices.spliced(batch, put[name])) for name in put)
                loss.update(original, replaced, targets, counted, groups)
                loss_tokens += int(counted.sum())
            tokens += len(x)
            task.advance(len(x))
            if tokens >= _tokens(subject):
                break
    weights = bootstrap_weights(len(documents), subject.draws, subject.seed)
    points: Figures = {name: _arrays(one.compute()) for name, one in sums.items()}
    samples: Figures = {name: one.resample(weights) for name, one in sums.items()}
    if loss_tokens:
        computed, drawn = loss.compute(), loss.resample(weights)
        for name in columns:
            points[name].update(_arrays(computed[name]))
            samples[name].update(drawn[name])
    return points, samples, len(documents)


def _arrays(figures: Mapping[str, float]) -> dict[str, np.ndarray]:
    return {name: np.array([value]) for name, value in figures.items()}


def _judge(subject: Subject, samples: Figures) -> list[Judgement]:
    """Judge FVU; controls against the twin that was trained as briefly as they were."""
    fvu = {name: figures["fvu"] for name, figures in samples.items()}
    own = {name: fvu[name] for name in (DICTIONARY, *_JUDGED)}
    judgements = judge("FVU", own, better="lower")
    if knows_settings(subject.dictionary):
        both = {BRIEF: fvu[BRIEF], FROZEN: fvu[FROZEN]}
        judgements += judge("FVU, trained briefly", both, better="lower", of=BRIEF)
    return judgements


def _table(columns: list[str], points: Figures, samples: Figures, title: str) -> Table:
    def value(name: str, key: str) -> MetricValue | None:
        if key not in points[name]:
            return None
        low, high = interval({key: samples[name][key]})[key]
        return MetricValue(float(points[name][key][0]), low, high)

    rows = [
        MetricRow(row, "", better, said, [value(name, key) for name in columns])
        for row, key, better, said in _ROWS
        if key in points[DICTIONARY]
    ]
    return Table(columns, rows, title)


SUITE = Suite("baselines", "Beside other decompositions", "standard", run, _cost)
