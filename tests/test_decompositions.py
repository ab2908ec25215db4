"""Decompositions and controls that a dictionary stands beside, and what noise may never do."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import torch
from handmade import dictionary_of, make_transcoder
from scipy.optimize import linear_sum_assignment, nnls
from tiny_models import tiny_llama, tiny_tokenizer
from torch import Tensor

from monosemy.activations import Statistics
from monosemy.coders import Dictionary, Provenance, SparseCoder, make_coder
from monosemy.corpus import Corpus
from monosemy.evaluation import (
    Subject,
    SuiteResult,
    choose_suites,
    components,
    evaluate,
    make_subject,
    run_suites,
)
from monosemy.evaluation.baselines import pca
from monosemy.evaluation.components import independent, non_negative, principal, scaled_neurons
from monosemy.evaluation.controls import frozen_decoder, random_model, trained_as_briefly
from monosemy.lm import LM
from monosemy.metrics.stability import rotation
from monosemy.training import Run

# --- decompositions ---------------------------------------------------------------------------


def fvu(x: Tensor, xhat: Tensor) -> float:
    return float((x - xhat).square().sum() / (x - x.mean(0)).square().sum())


@pytest.fixture(scope="module")
def x() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2000, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + 5


def test_all_components_leave_nothing(x: Tensor) -> None:
    for found in (principal(x), scaled_neurons(x), independent(x, 100, 0)):
        assert fvu(x, found.largest(12)(x)[0]) == pytest.approx(0, abs=1e-6)


def test_more_factors_explain_more_of_every_token(x: Tensor) -> None:
    for found in (principal(x), scaled_neurons(x)):
        errors = [(found.largest(k)(x)[0] - x).norm(dim=1) for k in (1, 4, 8)]
        assert (errors[0] >= errors[1] - 1e-4).all() and (errors[1] >= errors[2] - 1e-4).all()
        assert found.largest(4)(x)[1].eq(4).all()


def test_the_largest_components_of_a_token_beat_the_first_of_all(x: Tensor) -> None:
    assert fvu(x, principal(x).largest(3)(x)[0]) < fvu(x, pca(x, 3)(x)[0])


def test_independent_sources_are_found() -> None:
    rng = np.random.default_rng(0)
    sources = rng.laplace(size=(8000, 6))
    mixed = torch.from_numpy(sources @ rng.normal(size=(6, 6))).float()
    found = independent(mixed, 200, 0)
    assert found.converged
    factors = (mixed - found.mean) @ found.encoder
    torch.testing.assert_close(factors.var(0), torch.ones(6), atol=0.01, rtol=0)
    cosines = np.abs(np.corrcoef(sources.T, factors.T.numpy())[:6, 6:])
    assert cosines[linear_sum_assignment(-cosines)].min() > 0.95


def test_directions_without_variance_are_left_out(x: Tensor) -> None:
    flat = torch.cat([x, x[:, :1]], 1)  # the last repeats the first
    found = independent(flat, 100, 0)
    assert len(found.directions) == 12
    assert fvu(flat, found.largest(12)(flat)[0]) == pytest.approx(0, abs=1e-6)
    assert not independent(flat, 2, 0).converged


def test_non_negative_factors_are_those_of_scipy(x: Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    directions = torch.rand(10, 24, generator=generator) * (
        torch.rand(10, 24, generator=generator) < 0.5
    )
    targets = torch.rand(20, 24, generator=generator)
    found = components.nnls(targets, directions, steps=400)
    for row, z in zip(targets, found, strict=True):
        expected, _ = nnls(directions.T.double().numpy(), row.double().numpy())
        np.testing.assert_allclose(z.numpy(), expected, atol=1e-3)
    allowed = torch.zeros(20, 10, dtype=torch.bool)
    allowed[:, ::2] = True
    some = components.nnls(targets, directions, allowed, steps=400)
    assert not some[:, 1::2].any()
    torch.testing.assert_close(
        some[:, ::2], components.nnls(targets, directions[::2], steps=400), atol=1e-3, rtol=0
    )


def test_non_negative_components_stand_for_signed_activations(x: Tensor) -> None:
    found = non_negative(x, 24, 100, 0)
    assert (found.parts >= 0).all()
    errors = [fvu(x, found.largest(k)(x)[0]) for k in (1, 4, 24)]
    assert errors[2] < errors[1] < errors[0] < 1
    out, used = found.largest(4)(x)
    assert out.shape == x.shape and used.max() <= 4


# --- the suite --------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "tokens": 1500,
    "loss_tokens": 300,
    "control_tokens": 8192,
    "component_steps": 10,
}


@pytest.fixture(scope="module")
def subject(run: Run) -> Subject:
    return make_subject(run, sizes=SIZES, draws=200)


@pytest.fixture(scope="module")
def found(subject: Subject) -> SuiteResult:
    (result,) = run_suites(subject, choose_suites("quick", ["baselines"]))
    return result


def test_every_rival_has_its_figures(found: SuiteResult) -> None:
    components_table, others = found.tables
    assert len(components_table.columns) == 7 and len(others.columns) == 5
    for table in found.tables:
        for row in table.rows:
            for name, cell in zip(table.columns, row.values, strict=True):
                if cell is None:  # another model has another loss
                    assert (row.name, name) == ("loss recovered (mean)", others.columns[-1])
                else:
                    assert cell.low <= cell.high and np.isfinite(cell.value)
    k = round(found.value("L0"))
    for name in components_table.columns[1:]:
        assert components_table.value("L0", name) <= k + 1
    assert found.value("FVU") < found.value("FVU", "frozen random decoder")
    judged = {(j.figure, j.baseline) for j in found.judgements}
    assert ("FVU", "ICA, k largest") in judged
    assert ("FVU, trained briefly", "frozen random decoder") in judged
    assert not any("random model" in baseline for _, baseline in judged)


def test_controls_are_the_dictionary_but_for_what_they_control(run: Run, subject: Subject) -> None:
    brief, frozen, random = (
        trained_as_briefly(subject),
        frozen_decoder(subject),
        random_model(subject),
    )
    for control in (brief, frozen, random.dictionary):
        assert control.width == run.dictionary.width
        assert control.hookpoint == run.dictionary.hookpoint
        assert control.coder.architecture == run.dictionary.coder.architecture
        assert control.provenance.training["tokens"] == SIZES["control_tokens"]
    assert frozen_decoder(subject) is frozen and random_model(subject) is random
    assert random.lm.name.endswith("random weights")
    start = make_coder("batch_topk", 32, 96, seed=1).W_dec.detach()
    torch.testing.assert_close(frozen.coder.W_dec, start)
    mine, its = run.lm.model.state_dict(), random.lm.model.state_dict()
    assert {n: w.shape for n, w in mine.items()} == {n: w.shape for n, w in its.items()}
    assert not torch.equal(mine["model.embed_tokens.weight"], its["model.embed_tokens.weight"])


def test_a_transcoder_has_its_own_baselines(lm: LM, corpus: Corpus) -> None:
    made = make_transcoder(lm, corpus)
    assert "transcoder" in evaluate(made, lm, corpus, suites=["baselines"])["baselines"].skipped


def test_without_scikit_learn_it_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "sklearn":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    skipped = evaluate(run, suites=["baselines"], **SIZES)["baselines"].skipped
    assert "monosemy[evaluate]" in skipped


# --- what may never win, and what must --------------------------------------------------------


QUICK: dict[str, Any] = {"tokens": 1000, "loss_tokens": 300, "draws": 200}


def of(coder: SparseCoder, lm: LM, corpus: Corpus) -> Dictionary:
    """A dictionary at `layers.0` that nothing was folded into."""
    provenance = Provenance(
        model=lm.name, hookpoint="layers.0", context=32, corpus=corpus.describe()
    )
    origin = Statistics(torch.zeros(32), 1.0, 0.0)
    return dictionary_of(coder, lm, corpus, provenance, origin, None)


@pytest.mark.parametrize("seed", range(20))
def test_random_directions_in_a_random_model_never_win(seed: int, corpus: Corpus) -> None:
    lm = LM(tiny_llama(seed=seed, layers=2), tiny_tokenizer())
    coder = make_coder("topk", 32, 128, k=8, seed=seed).eval().requires_grad_(False)
    found = evaluate(of(coder, lm, corpus), lm, corpus, tier="quick", seed=seed, **QUICK)
    assert found.judgements and not found.wins
    assert not found.verdict.startswith("Verdict: better")


def test_planted_features_win(corpus: Corpus) -> None:
    """Activations are sparse sums of known directions: which of them, is decided by the token."""
    model = tiny_llama(layers=2)
    directions = rotation(32, seed=0)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        places = torch.rand(embedding.shape).topk(3, dim=1).indices
        amounts = torch.zeros_like(embedding).scatter(1, places, 1 + torch.rand(places.shape))
        embedding.copy_(amounts @ directions)
        block = model.model.layers[0]
        for adds in (block.self_attn.o_proj, block.mlp.down_proj):
            adds.weight.zero_()
    lm = LM(model, tiny_tokenizer())
    coder = make_coder("relu", 32, 32).eval().requires_grad_(False)
    coder.W_enc.copy_(directions)
    coder.W_dec.copy_(directions)
    coder.b_enc.fill_(-1e-4)  # rounding is no feature
    found = evaluate(of(coder, lm, corpus), lm, corpus, tier="quick", **QUICK)
    assert found.wins and found.verdict.startswith("Verdict: better")
    assert found["reconstruction"].value("L0") == pytest.approx(3)
    assert found["reconstruction"].value("FVU") == pytest.approx(0, abs=1e-4)
