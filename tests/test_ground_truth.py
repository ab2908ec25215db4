"""The suite `recovery`: architectures, and components, on activations whose features are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from handmade import make_transcoder
from sklearn.decomposition import FastICA
from torch import Tensor
from torch.nn.functional import normalize

from monosemy.corpus import Corpus
from monosemy.evaluation import SuiteResult, evaluate
from monosemy.evaluation.suites import recovery
from monosemy.lm import LM
from monosemy.training import Run


def sources(n: int = 6000, d: int = 6) -> Tensor:
    """Independent, heavy-tailed, of variance 1."""
    return torch.from_numpy(np.random.default_rng(0).laplace(size=(n, d)) / 2**0.5).float()


def found_alike(a: Tensor, b: Tensor) -> Tensor:
    """Largest absolute cosine of each row of a with one of b."""
    return (normalize(a, dim=1) @ normalize(b, dim=1).T).abs().amax(1)


def test_independent_components_are_the_mixed_sources() -> None:
    s, mixing = sources(), torch.randn(6, 6)
    found = recovery.independent_components(s @ mixing + 3, seed=0)
    assert found_alike(mixing, found).min() > 0.99
    torch.testing.assert_close(
        found.norm(dim=1).sort().values, mixing.norm(dim=1).sort().values, rtol=0.05, atol=0
    )


def test_they_are_scikit_learns() -> None:
    x = sources() @ torch.randn(6, 6) + 3
    theirs = FastICA(6, whiten="unit-variance", random_state=1).fit(x.numpy()).mixing_.T
    found = recovery.independent_components(x, seed=0)
    assert found_alike(torch.from_numpy(theirs).float(), found).min() > 0.999


def test_principal_components_are_orthogonal_and_uncorrelated() -> None:
    x = sources() @ torch.randn(6, 6) + 3
    found = recovery.principal_components(x)
    torch.testing.assert_close(found @ found.T, torch.eye(6), atol=1e-5, rtol=0)
    factors = ((x - x.mean(0)) @ found.T).T.cov()
    assert (factors - factors.diagonal().diag()).abs().max() < 1e-3


def test_half_waves_are_nonnegative_and_add_up() -> None:
    components, centred = torch.randn(5, 5), torch.randn(40, 5)
    directions, z = recovery._half_waves(components, centred, l0=5)
    assert (z >= 0).all() and directions.shape == (10, 5)
    torch.testing.assert_close(z @ directions, centred, atol=1e-4, rtol=1e-4)
    _, few = recovery._half_waves(components, centred, l0=2)
    assert ((few > 0).sum(1) == 2).all()
    assert (few[few > 0][:, None] == z[few > 0][:, None]).all()


def test_partners_of_true_directions() -> None:
    truth = torch.eye(8)
    assert recovery.mean_partner_cosine(torch.cat([torch.randn(5, 8), truth]), truth) == 1
    assert recovery.mean_partner_cosine(truth[:2], truth) == pytest.approx(0.25)
    # One direction cannot be the partner of two.
    assert recovery.mean_partner_cosine(truth[:1].repeat(8, 1), truth) == pytest.approx(1 / 8)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"D_IN": 16, "SEEDS": 2, "ROWS": 6000, "TEST_ROWS": 3000}.items():
        monkeypatch.setattr(recovery, name, value)


def measured(*args: object, **settings: object) -> SuiteResult:
    return evaluate(*args, suites=["recovery"], synthetic_tokens=25_000, **settings)[  # type: ignore[arg-type]
        "recovery"
    ]


def test_the_architecture_beats_what_is_not_trained(small: None, run: Run) -> None:
    found = measured(run)
    assert found.table.columns == ["dictionary", "untrained dictionary", "PCA", "ICA"]
    assert {j.baseline for j in found.judgements if j.outcome == "wins against"} == {
        "untrained dictionary",
        "PCA",
        "ICA",
    }
    assert found.value("MCC") <= found.value("MMCS") <= 1
    for row in found.table.rows:
        for cell in row.values:
            assert cell is not None and cell.low <= cell.value <= cell.high
    assert found.context["architecture"] == "batch_topk"
    assert json.loads(json.dumps(found.context)) == found.context


def test_penalties_reach_the_same_l0(small: None, lm: LM, corpus: Corpus) -> None:
    found = measured(make_transcoder(lm, corpus), lm, corpus)
    assert found.context["architecture"] == "jumprelu"
    assert found.value("MCC") > found.value("MCC", "untrained dictionary")


def test_sizes_are_the_dictionarys_a_dimension() -> None:
    assert recovery._sizes(2048, 256, 32.4) == (512, 8)
    assert recovery._sizes(65_536, 768, 40.0) == (1024, 3)  # at most sixteen times as wide
    assert recovery._sizes(96, 32, 8.0) == (192, 14)  # more would fire on every token
    assert recovery._sizes(8, 768, 1.0) == (2, 1)


def test_the_same_seed_gives_the_same_figures(small: None) -> None:
    first, again, other = (recovery._one_seed("topk", 40, 2, 3000, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_it_needs_an_architecture_that_can_find_them(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Peer:
        encode, decode = run.dictionary.encode, run.dictionary.decode

    said = measured(Peer(), run.lm, run.corpus, hookpoint="layers.1").skipped
    assert "no architecture that could be trained here" in said
    monkeypatch.setattr(type(run.dictionary.coder), "architecture", "nonnegative")
    assert "both signs" in measured(run).skipped
