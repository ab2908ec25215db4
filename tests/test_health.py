"""The shape of a dictionary: known answers of its figures, and what is said of sick ones."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade import exact, make_transcoder
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from monosemy.coders import Code
from monosemy.corpus import Corpus
from monosemy.evaluation import SUITES, Subject, SuiteResult, gather, make_subject, run_suites
from monosemy.evaluation.suites.health import CLASSES, classify
from monosemy.lm import LM
from monosemy.metrics import health
from monosemy.metrics.health import (
    Firing,
    direction_cosines,
    gini,
    variance_explained,
    weighted_quantile,
)
from monosemy.report.evaluation import evaluation_html
from monosemy.report.terminal import suite_tables
from monosemy.training import Run

# --- formulas ---------------------------------------------------------------------------------


def test_gini_of_the_worked_examples() -> None:
    rows = np.array([[1, 1, 1, 1], [0, 0, 0, 1], [4, 2, 3, 1], [0, 0, 0, 0]], dtype=float)
    np.testing.assert_allclose(gini(rows), [0, 0.75, 0.25, np.nan])
    assert gini(rows[2:3] * 7)[0] == pytest.approx(0.25)


def test_firing_equals_the_dense_matrix() -> None:
    z = torch.relu(torch.randn(60, 7) - 0.8)
    z[:, 3] = 0
    groups = torch.randint(0, 5, (60,))
    firing = Firing(7)
    for part, some in zip(z.split(17), groups.split(17), strict=True):
        code = Code.from_mask(part, part >= 0)  # entries of 0 are in it, and fire on nothing
        firing.update(code.values, code.indices, code.tokens, some)
    np.testing.assert_array_equal(firing.counts, (z > 0).sum(0))
    torch.testing.assert_close(firing.sums, z.double().sum(0))
    one = np.ones((1, 5))
    np.testing.assert_allclose(firing.density(one)[0], (z > 0).double().mean(0))
    assert firing.mean_active(one)[0] == pytest.approx(z[z > 0].mean().item())
    l0 = (z > 0).sum(1).double().numpy()
    for share in (0.05, 0.5, 0.95):
        expected = np.quantile(l0, share, method="inverted_cdf")
        assert firing.l0_quantile(one, share)[0] == expected
    # One document drawn alone is that document.
    mine = groups == 2
    np.testing.assert_allclose(firing.density(np.eye(5)[2:3])[0], (z[mine] > 0).double().mean(0))


def test_cosines_of_an_orthonormal_basis_and_of_a_duplicate() -> None:
    found = direction_cosines(torch.eye(6))
    assert found.nearest.abs().max() == found.opposite.abs().max() == found.mean.abs().max() == 0
    twice = direction_cosines(torch.cat([torch.eye(6), 3 * torch.eye(6)[:1]]))
    assert twice.nearest.tolist() == [1, 0, 0, 0, 0, 0, 1]
    assert twice.partner[[0, 6]].tolist() == [6, 0]
    both = direction_cosines(torch.cat([torch.eye(3), -torch.eye(3)]))
    assert both.opposite.tolist() == [-1] * 6 and both.nearest.max() == 0
    with pytest.raises(ValueError, match="1 directions"):
        direction_cosines(torch.eye(1))


@settings(max_examples=20)
@given(n=st.integers(2, 40), d=st.integers(2, 9), size=st.sampled_from([1, 7, 512]))
def test_cosines_equal_those_of_the_whole_matrix(n: int, d: int, size: int) -> None:
    directions = torch.randn(n, d, generator=torch.Generator().manual_seed(n * d))
    unit = directions / directions.norm(dim=1, keepdim=True)
    others = (unit @ unit.T)[~torch.eye(n, dtype=torch.bool)].reshape(n, n - 1)
    rows = torch.arange(0, n, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(health, "_ROWS", size)
        found = direction_cosines(directions, rows)
    torch.testing.assert_close(found.nearest, others.amax(1)[rows])
    torch.testing.assert_close(found.opposite, others.amin(1)[rows])
    torch.testing.assert_close(found.mean, others.mean(1)[rows], atol=1e-6, rtol=0)
    assert (found.histogram.sum(1) == n - 1).all() and (found.histogram >= 0).all()


def test_random_directions_have_the_known_mean_and_quantile() -> None:
    found = direction_cosines(torch.randn(512, 64))
    assert found.nearest.mean() == pytest.approx(0.368, abs=0.01)
    middles = (np.arange(health.BINS) + 0.5) * (2 / health.BINS) - 1
    pooled = found.histogram.sum(0, keepdim=True).numpy()
    # The cosine of random directions has a standard deviation of 1 / sqrt(d).
    assert weighted_quantile(middles, pooled, 0.95)[0] == pytest.approx(1.645 / 8, abs=0.01)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=9).filter(any))
def test_weighted_quantiles_equal_those_of_repeated_values(weights: list[int]) -> None:
    values = np.random.default_rng(0).permutation(len(weights)).astype(float)
    repeated = np.repeat(values, weights)
    for share in (0.05, 0.5, 0.95, 1.0):
        found = weighted_quantile(values, np.array([weights, weights]), share)
        assert (found == np.quantile(repeated, share, method="inverted_cdf")).all()


def test_variance_explained_is_one_where_decided_and_nothing_where_independent() -> None:
    groups = torch.arange(2000) % 40
    values = torch.stack([groups.float() ** 2, torch.randn(2000), torch.ones(2000)], 1)
    decided, independent, constant = variance_explained(values, groups).tolist()
    assert decided == pytest.approx(1) and abs(independent) < 0.03 and np.isnan(constant)
    mixed = values[:, :1] / values[:, 0].std() + torch.randn(2000, 1)
    assert variance_explained(mixed, groups).item() == pytest.approx(0.5, abs=0.05)
    assert not variance_explained(values, torch.arange(2000)).isfinite().any()


# --- the suite --------------------------------------------------------------------------------

SIZES = {"tokens": 1500}


@pytest.fixture(scope="module")
def subject(run: Run) -> Subject:
    return make_subject(run, draws=100, sizes=SIZES)


@pytest.fixture(scope="module")
def healthy(subject: Subject) -> SuiteResult:
    return measured(subject)


def measured(subject: Subject) -> SuiteResult:
    return next(run_suites(subject, [SUITES["health"]]))


def changed(subject: Subject, **weights: Tensor) -> Subject:
    """The same, but for some weights of the dictionary; its baselines stay."""
    coder = copy.deepcopy(subject.dictionary.coder)
    for name, weight in weights.items():
        getattr(coder, name).data.copy_(weight)
    other = replace(subject, dictionary=replace(subject.dictionary, coder=coder))
    for name in ("reader", "sample", "untrained"):
        vars(other)[name] = getattr(subject, name)
    return other


def asking(result: SuiteResult) -> set[str]:
    return {row.name for row in result.table.rows if row.remedy}


def test_every_figure_has_an_interval_and_stands_beside_baselines(healthy: SuiteResult) -> None:
    assert healthy.table.columns == ["dictionary", "untrained dictionary", "random directions"]
    for table in healthy.tables:
        for row in table.rows:
            assert row.explanation and row.values[0] is not None
            for cell in row.values:
                assert cell is None or cell.low <= cell.value + 1e-9 <= cell.high + 2e-9, row
    assert healthy.value("encoder cosine, mean", "untrained dictionary") == pytest.approx(1)
    l0 = [healthy.value(f"L0, {what}") for what in ("5% of tokens", "median", "95% of tokens")]
    assert l0 == sorted(l0) and l0[2] > 0


def test_nothing_is_won_by_health_alone(healthy: SuiteResult) -> None:
    assert not healthy.judgements


def test_series_are_of_every_feature_and_json(run: Run, healthy: SuiteResult) -> None:
    series = json.loads(json.dumps(healthy.series))
    for name in ("density", "mean_active", "nearest", "nearest_cosine", "opposite_cosine"):
        assert len(series[name]) == run.dictionary.width
    dead = [share == 0 for share in series["density"]]
    assert [value is None for value in series["nearest_cosine"]] == dead
    assert np.mean(dead) == pytest.approx(healthy.value("dead rate"))
    dense = {one["feature"] for one in series["dense"]}
    assert dense == {i for i, share in enumerate(series["density"]) if share > 0.1}
    shares = [y for _, y, _, _ in healthy.plots[0].lines["dictionary"]]
    assert sum(shares) == pytest.approx(1 - np.mean(dead))


def test_what_is_said_is_shown_everywhere(subject: Subject) -> None:
    W_dec = subject.dictionary.coder.W_dec
    sick = changed(subject, W_dec=W_dec[:1].expand_as(W_dec))
    result = measured(sick)
    found = gather(sick, [result])
    assert {"duplicates", "nearest cosine, mean", "all pairs, mean"} <= asking(result)
    assert result.value("duplicates") == 1 and "duplicates" in result.verdict
    row = next(row for row in result.table.rows if row.name == "duplicates")
    assert "several times" in row.judgement and "smaller width" in row.remedy
    console = Console(width=400)
    with console.capture() as captured:
        console.print(suite_tables(result))
    for shown in (captured.get(), evaluation_html(found), repr(result), found._repr_html_()):
        assert row.judgement in shown and row.remedy in shown
    saved = found.to_dict()["suites"][0]["tables"][0]["rows"]
    assert any(r["remedy"] == row.remedy for r in saved)


def test_dead_features_are_counted_and_left_out_of_the_layout(subject: Subject) -> None:
    coder, width = subject.dictionary.coder, subject.dictionary.width
    half = torch.arange(width) < width // 2
    result = measured(
        changed(
            subject,
            W_enc=coder.W_enc.masked_fill(half[:, None], 0),
            b_enc=coder.b_enc.masked_fill(half, -1),
            W_dec=torch.where(half[:, None], coder.W_dec[:1], coder.W_dec),
        )
    )
    assert result.value("dead rate") >= 0.5 and "dead rate" in asking(result)
    assert result.value("duplicates") < 0.5
    assert all(value is None for value in result.series["nearest"][: width // 2])


def test_a_dictionary_that_never_fires_is_said_to_be_dead(subject: Subject) -> None:
    coder = subject.dictionary.coder
    nothing, below = torch.zeros_like(coder.W_enc), torch.full_like(coder.b_enc, -1)
    result = measured(changed(subject, W_enc=nothing, b_enc=below))
    assert f"0 of {coder.width} features fire" in result.skipped


def test_a_signed_basis_is_dense_and_antipodal(lm: LM, corpus: Corpus) -> None:
    """relu(x) - relu(-x): each feature fires on about half of the tokens, and has an opposite."""
    result = measured(Subject(exact(lm, corpus, "layers.1"), lm, corpus, draws=50, sizes=SIZES))
    assert result.value("antipodal") == 1 and result.value("duplicates") == 0
    assert result.value("encoder cosine, mean") == pytest.approx(1)
    assert result.value("encoder norm spread") == pytest.approx(1)
    assert {"dense", "antipodal"} <= asking(result)
    classes = result.tables[1]
    assert classes.value("antipodal", "dictionary") == 1
    assert classes.value("unclassified", "dictionary") == 0


def test_planted_classes_are_found(subject: Subject) -> None:
    width, n, random = subject.dictionary.width, 3000, torch.Generator().manual_seed(0)
    groups = {
        "position": torch.arange(n) % 30,
        "token": torch.randint(0, 50, (n,), generator=random),
        "document": torch.arange(n) // 200,
    }
    z = torch.zeros(n, width)
    z[:, 0] = (groups["position"] < 10).float()
    z[:, 1] = (groups["token"] < 20).float()
    z[:, 2] = (groups["document"] % 3 == 0).float()
    z[:, 3:6] = torch.rand(n, 3, generator=random) * (torch.rand(n, 3, generator=random) < 0.3)
    coder = copy.deepcopy(subject.dictionary.coder)
    coder.W_dec.data[4] = -coder.W_dec.data[5]
    coder.W_dec.data[3] = subject.sample[1].mean(0)
    codes = [Code.from_mask(part, part > 0) for part in z.split(1000)]
    parts = {name: list(numbers.split(1000)) for name, numbers in groups.items()}
    member = classify(subject, coder, torch.arange(6), codes, parts)
    found = {name: member[:, i].nonzero()[:, 0].tolist() for i, name in enumerate(CLASSES)}
    assert 3 in found["principal"] and {4, 5} <= set(found["antipodal"])
    assert (found["position"], found["token"], found["document"]) == ([0], [1], [2])


def test_a_transcoder_reads_and_writes_in_two_spaces(lm: LM, corpus: Corpus) -> None:
    found = measured(Subject(make_transcoder(lm, corpus), lm, corpus, draws=50, sizes=SIZES))
    names = {row.name for row in found.table.rows}
    assert "encoder norm spread" in names and "encoder cosine, mean" not in names


def test_a_foreign_object_has_no_encoder_and_the_same_strength(
    run: Run, healthy: SuiteResult
) -> None:
    class Peer:
        def encode(self, x: Tensor) -> Tensor:
            return run.dictionary.encode(x) / 2

        def decode(self, z: Tensor) -> Tensor:
            return run.dictionary.decode(2 * z)

    found = measured(
        make_subject(Peer(), run.lm, run.corpus, hookpoint="layers.1", draws=50, sizes=SIZES)
    )
    assert not any("encoder" in row.name for row in found.table.rows)
    # It is what a feature writes: how that is split between code and direction is moot. Rows of
    # text are longer than ours.
    assert found.value("mean active") == pytest.approx(healthy.value("mean active"), rel=0.1)
