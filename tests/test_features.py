"""What is shown of a feature is true: aligned with the text, the strongest, all of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from monosemy.corpus import Part, TokenStream
from monosemy.errors import UserError
from monosemy.index import Exemplar
from monosemy.interpret import Features, build_features, choose_features, logit_lens
from monosemy.lm import LM
from monosemy.training import Run


def stream(run: Run, part: Part = "held_out") -> TokenStream:
    """Text as the index reads it, so that the plain computation below can follow it."""
    return run.dictionary.provenance.stream(run.lm, run.corpus, part, shuffled_rows=False)


@pytest.fixture(scope="module")
def features(run: Run) -> Features:
    return build_features(run.dictionary, run.lm, run.corpus, tokens=3000)


@pytest.fixture(scope="module")
def truth(run: Run) -> dict[str, list[tuple[int, int, Tensor]]]:
    """Every token computed the plain way: document -> (start, end, code) in reading order."""
    found: dict[str, list[tuple[int, int, Tensor]]] = {}
    seen = 0
    for batch in stream(run):
        x = run.lm.capture(batch.tokens, ["layers.1"], attention_mask=batch.attention_mask)
        z = run.dictionary.encode(x["layers.1"])
        for row, time in batch.counted.nonzero().tolist():
            document = batch.documents[batch.document[row, time]].id
            span = int(batch.start[row, time]), int(batch.end[row, time])
            found.setdefault(document, []).append((*span, z[row, time]))
        seen += int(batch.counted.sum())
        if seen >= 3000:
            break
    return {name: sorted(tokens, key=lambda t: t[0]) for name, tokens in found.items()}


def codes(truth: dict) -> Tensor:
    return torch.stack([z for tokens in truth.values() for _, _, z in tokens])


def test_every_activation_is_there(features: Features, truth: dict) -> None:
    z = codes(truth)
    assert features.n_tokens == len(z)
    assert len(features.index.values) == int((z > 0).sum())
    assert features.index.values.sum() == pytest.approx(float(z.sum()), rel=1e-4)


def test_density_and_maximum(features: Features, truth: dict) -> None:
    z = codes(truth)
    for feature in features.live[:20]:
        mine = z[:, feature][z[:, feature] > 0]
        view = features[feature]
        assert view.density == len(mine) / len(z)
        assert view.max == pytest.approx(float(mine.max()), rel=1e-5)
        assert view.mean_active == pytest.approx(float(mine.mean()), rel=1e-4)
        assert sum(view.histogram[1]) == len(mine)


def test_exemplars_are_aligned_with_the_true_text(
    run: Run, features: Features, truth: dict
) -> None:
    """Token by token: the text shown is the document's, the activation that token's own.

    A shift by one token, or a document taken for another, fails here.
    """
    texts = {d.id: d.text for d in run.corpus.documents("all")}
    checked = caught = 0
    for view in features:
        for exemplar in view.exemplars:
            assert "".join(exemplar.tokens) in texts[exemplar.document]
            assert exemplar.activations[exemplar.peak] > 0
            assert _is_there(view.id, exemplar, truth[exemplar.document], texts), exemplar
            shifted = replace(exemplar, activations=[0.0, *exemplar.activations[:-1]])
            caught += not _is_there(view.id, shifted, truth[exemplar.document], texts)
            checked += 1
    assert checked > 100
    assert caught > 0.9 * checked  # repetitive text may fit twice


def _is_there(feature: int, exemplar: Exemplar, tokens: list, texts: dict) -> bool:
    """Say whether the document has these tokens in succession, with these activations."""
    text, size = texts[exemplar.document], len(exemplar.tokens)
    for first in range(len(tokens) - size + 1):
        part = tokens[first : first + size]
        shown = "".join(exemplar.tokens)
        if text[part[0][0] : part[-1][1]] != shown:
            continue
        values = [float(z[feature]) for _, _, z in part]
        if np.allclose(values, exemplar.activations, rtol=1e-3, atol=1e-3):
            return True
    return False


def test_exemplars_are_the_strongest_one_a_document_first(features: Features, truth: dict) -> None:
    for feature in features.live[:30]:
        best = [max(float(z[feature]) for _, _, z in tokens) for tokens in truth.values()]
        best = sorted((value for value in best if value > 0), reverse=True)[:5]
        if len(best) < 5:
            continue
        view = features.view(feature, exemplars=5)
        peaks = [e.activations[e.peak] for e in view.exemplars]
        assert peaks[0] == pytest.approx(best[0], rel=1e-4)
        np.testing.assert_array_less(peaks, np.array(best) * (1 + 1e-4))
        texts = {_before(e) for e in features.index.exemplars(feature, 24)}
        for document in {e.document for e in view.exemplars}:
            strongest = _strongest_in(features, feature, document)
            assert _before(strongest) in texts  # there, or the same text of another document


def _before(exemplar: Exemplar) -> tuple[str, ...]:
    return tuple(exemplar.tokens[max(exemplar.peak - 5, 0) : exemplar.peak + 1])


def _strongest_in(features: Features, feature: int, document: str) -> Exemplar:
    index = features.index
    places, values = index.entries(feature)
    mine = index.text.document[places] == list(index.text.names).index(document)
    return index.exemplar(feature, int(places[mine][values[mine].argmax()]))


def test_feature_out_of_range(features: Features) -> None:
    with pytest.raises(UserError, match="no feature 96") as caught:
        features[96]
    assert "0 to 95" in caught.value.hint


def test_a_silent_feature_can_be_looked_at(run: Run) -> None:
    few = build_features(run.dictionary, run.lm, run.corpus, tokens=1)
    dead = [i for i in range(96) if few.counts[i] == 0]
    for feature in dead[:1]:
        view = few[feature]
        assert (view.density, view.max, view.exemplars) == (0, 0, [])


def test_chosen_features_are_live_and_different(features: Features) -> None:
    """Even where all are dense: 8 of 96 features fire on a token."""
    chosen = choose_features(features, 10)
    assert len(set(chosen)) == len(chosen) == 10
    assert set(chosen) <= set(features.live)
    densest = features.live[0]
    assert densest not in chosen


def test_logit_lens_by_hand(lm: LM) -> None:
    """A direction that is a token's own unembedding row, gain undone, promotes that token most."""
    weight, gain, _, centres = lm.unembedding()
    assert not centres
    weight = weight - weight[1 : len(lm.tokenizer)].mean(0)  # of the tokens of text
    direction = torch.nn.functional.normalize(weight[[40, 77]] / gain, dim=1)
    values, ids = logit_lens(lm, direction, count=3)
    by_hand = (direction * gain) @ weight.T
    by_hand[:, 0] = -torch.inf  # the special token
    assert ids[:, 0].tolist() == by_hand.argmax(1).tolist()
    torch.testing.assert_close(values[:, 0], by_hand.max(1).values)
    assert (values[:, 3:] < 0).all()
    assert 0 not in ids
