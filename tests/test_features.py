"""What is shown of a feature is true: aligned with the text, the strongest, all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from monosemy.corpus import TokenStream
from monosemy.errors import UserError
from monosemy.evaluate import text_of
from monosemy.interpret import Features, choose_features, collect_features, logit_lens
from monosemy.lm import LM
from monosemy.training import Run


def stream(run: Run, part: str = "held_out") -> TokenStream:
    return text_of(run.dictionary, run.lm, run.corpus, part)


@pytest.fixture(scope="module")
def features(run: Run) -> Features:
    return collect_features(run.dictionary, run.lm, stream(run), tokens=3000)


@pytest.fixture(scope="module")
def brute_force(run: Run) -> dict[tuple[int, str, int], float]:
    """Every activation, computed the plain way: (feature, document, first character) -> value."""
    found = {}
    seen = 0
    for batch in stream(run):
        x = run.lm.capture(batch.tokens, ["layers.1"], attention_mask=batch.attention_mask)
        z = run.dictionary.encode(x["layers.1"])
        for row, time in batch.counted.nonzero().tolist():
            document = batch.documents[batch.document[row, time]].id
            for feature in z[row, time].nonzero()[:, 0].tolist():
                key = (feature, document, int(batch.start[row, time]))
                found[key] = float(z[row, time, feature])
        seen += int(batch.counted.sum())
        if seen >= 3000:
            break
    return found


def test_every_activation_is_there(features: Features, brute_force: dict) -> None:
    assert len(features.values) == len(brute_force)
    assert features.values.sum() == pytest.approx(sum(brute_force.values()), rel=1e-4)


def test_density_and_maximum(features: Features, brute_force: dict) -> None:
    for feature in features.live[:20]:
        mine = [value for (f, _, _), value in brute_force.items() if f == feature]
        view = features[feature]
        assert view.density == len(mine) / features.n_tokens
        assert view.max == pytest.approx(max(mine), rel=1e-5)
        assert view.mean_active == pytest.approx(np.mean(mine), rel=1e-4)
        assert sum(view.histogram[1]) == len(mine)


def test_exemplars_are_aligned_with_the_true_text(
    run: Run, features: Features, brute_force: dict
) -> None:
    """Token by token: the text shown is the document's, the activation that token's own.

    A shift by one token, or a document taken for another, fails here.
    """
    texts = {d.id: d.text for d in run.corpus.documents("all")}
    checked = 0
    for view in features:
        for exemplar in view.exemplars:
            shown = "".join(exemplar.tokens)
            assert shown in texts[exemplar.document]
            peak = exemplar.activations[exemplar.peak]
            # Where the window begins in the document: the place that explains every activation.
            starts = [
                i
                for i in range(len(texts[exemplar.document]))
                if texts[exemplar.document].startswith(shown, i)
            ]
            assert any(_explains(view.id, exemplar, start, brute_force) for start in starts), (
                view.id,
                exemplar,
            )
            assert peak > 0
            checked += 1
    assert checked > 100


def _explains(feature: int, exemplar, start: int, brute_force: dict) -> bool:
    position = start
    for token, activation in zip(exemplar.tokens, exemplar.activations, strict=True):
        truth = brute_force.get((feature, exemplar.document, position), 0.0)
        if abs(truth - activation) > 1e-3 * max(1.0, truth):
            return False
        position += len(token)
    return True


def test_exemplars_are_the_strongest_one_a_document_first(
    features: Features, brute_force: dict
) -> None:
    for feature in features.live[:30]:
        best: dict[str, float] = {}
        for (f, document, _), value in brute_force.items():
            if f == feature:
                best[document] = max(best.get(document, 0), value)
        view = features.view(feature, exemplars=5)
        peaks = [e.activations[e.peak] for e in view.exemplars]
        assert peaks == sorted(peaks, reverse=True)
        expected = sorted(best.values(), reverse=True)[:5]
        if len(best) >= 5:
            np.testing.assert_allclose(peaks, expected, rtol=1e-4)


def test_saved_features_answer_without_the_model(features: Features, tmp_path: Path) -> None:
    again = Features.load(features.save(tmp_path / "features"))
    for feature in features.live[:10]:
        assert again[feature] == features[feature]


def test_damaged_features_are_refused(features: Features, tmp_path: Path) -> None:
    folder = features.save(tmp_path / "features")
    path = folder / "features.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        Features.load(folder)


def test_feature_out_of_range(features: Features) -> None:
    with pytest.raises(UserError, match="no feature 96") as caught:
        features[96]
    assert "0 to 95" in caught.value.hint


def test_a_silent_feature_can_be_looked_at(run: Run) -> None:
    few = collect_features(run.dictionary, run.lm, stream(run), tokens=1)
    dead = [i for i in range(96) if few.counts[i] == 0]
    for feature in dead[:1]:
        view = few[feature]
        assert (view.density, view.max, view.exemplars) == (0, 0, [])


def test_chosen_features_are_live_and_different(features: Features) -> None:
    chosen = choose_features(features, 10)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(features.live)
    densest = features.live[0]
    assert densest not in chosen


def test_logit_lens_by_hand(lm: LM) -> None:
    """A direction that is a token's own unembedding row, gain undone, promotes that token most."""
    weight, gain, _, centres = lm.unembedding()
    assert not centres
    rows = (weight - weight.mean(0))[[40, 77]]
    direction = torch.nn.functional.normalize(rows / gain, dim=1)
    values, ids = logit_lens(lm, direction, count=3)
    by_hand = (direction * gain) @ (weight - weight.mean(0)).T
    by_hand[:, 0] = -torch.inf  # the special token
    assert ids[:, 0].tolist() == by_hand.argmax(1).tolist()
    torch.testing.assert_close(values[:, 0], by_hand.max(1).values)
    assert (values[:, 3:] < 0).all()
    assert 0 not in ids
