"""Effects of single features: those of the edit itself, and agreement with its null."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monosemy.coders import ablate
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.evaluation.feature_effects import (
    FeatureEffects,
    _places,
    agreement,
    feature_effects,
)
from monosemy.intervene import FeatureEdit
from monosemy.training import Run


@pytest.fixture(scope="module")
def features(run: Run) -> list[int]:
    return run.dictionary.strength.topk(12).indices.tolist()


@pytest.fixture(scope="module")
def effects(run: Run, corpus: Corpus, features: list[int]) -> FeatureEffects:
    stream = run.dictionary.provenance.stream(run.lm, corpus, "held_out")
    return feature_effects(
        run.lm, run.dictionary, features, stream, later=run.dictionary, windows=4, context=12
    )


def test_ablating_is_the_edit_that_ablates(
    run: Run, corpus: Corpus, features: list[int], effects: FeatureEffects
) -> None:
    lm, d = run.lm, run.dictionary
    stream = d.provenance.stream(lm, corpus, "held_out")
    places = _places(lm, d, features, stream, 4, 12, 16)
    for number in (0, len(effects) - 1):
        feature = int(effects.features[number])
        tokens = torch.stack(places[feature])
        original = lm.logits(tokens)[:, -1]
        before = d.encode(lm.capture(tokens, [d.hookpoint])[d.hookpoint][:, -1])
        with lm.edit(FeatureEdit(d, [ablate([feature])])):
            logits = lm.logits(tokens)[:, -1]
            after = d.encode(lm.capture(tokens, [d.hookpoint])[d.hookpoint][:, -1])
        change = (logits - original).mean(0)
        expected = (change - change.mean()).numpy()
        np.testing.assert_allclose(effects.ablated[number], expected, atol=1e-4)
        kl = torch.nn.functional.kl_div(
            logits.log_softmax(-1), original.softmax(-1), reduction="batchmean"
        )
        assert effects.kl_ablated[number] == pytest.approx(float(kl), rel=1e-2, abs=1e-6)
        assert effects.later is not None
        moved = (after - before).mean(0).numpy()
        np.testing.assert_allclose(effects.later[number], moved, atol=1e-3)
        assert effects.later[number][feature] < 0
    assert (effects.windows > 1).all() and (effects.kl_doubled >= 0).all()


def test_agreement_of_the_same_is_perfect_and_of_noise_none() -> None:
    rng = np.random.default_rng(0)
    one, noise = rng.normal(size=(30, 8)), rng.normal(size=(30, 8))
    turned = one @ np.linalg.qr(rng.normal(size=(8, 8)))[0]
    same = agreement(one, turned, draws=200)
    assert same.correlation == pytest.approx(1) and same.p == pytest.approx(1 / 201)
    none = agreement(one, noise, draws=200)
    assert none.p > 0.01 and abs(none.correlation) < 0.3
    assert abs(same.null[0]) < 0.1


def test_what_cannot_be_measured_is_refused(run: Run, corpus: Corpus) -> None:
    stream = run.dictionary.provenance.stream(run.lm, corpus, "held_out")
    with pytest.raises(UserError, match="no feature 96"):
        feature_effects(run.lm, run.dictionary, [96], stream)
    with pytest.raises(UserError, match="fires twice"):
        feature_effects(run.lm, run.dictionary, [0], [], context=12)
