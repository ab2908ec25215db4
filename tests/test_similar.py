"""Like features are found, and nothing is found where there is nothing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import adjusted_rand_score

from monosemy.errors import UserError
from monosemy.interpret import Firings
from monosemy.interpret.families import parents_by_activation, parents_by_direction
from monosemy.interpret.inputs import cluster_inputs
from monosemy.interpret.map import cluster_features, map_features
from monosemy.interpret.similar import (
    Neighbours,
    nearest_by_activation,
    nearest_by_direction,
    nearest_by_exemplars,
)


def firings(activations: np.ndarray) -> Firings:
    """Every entry of a dense [width, tokens] matrix above 0."""
    features, places = activations.nonzero()
    offsets = np.searchsorted(features, np.arange(len(activations) + 1))
    values = activations[features, places].astype(np.float32)
    return Firings(offsets, places.astype(np.int32), values)


def planted(groups: int, each: int, tokens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features [groups * each, tokens] of which those of a group tend to fire together."""
    rng = np.random.default_rng(seed)
    topic = np.repeat(rng.random((groups, tokens)) < 0.08, each, axis=0)
    fires = np.where(topic, rng.random(topic.shape) < 0.6, rng.random(topic.shape) < 0.005)
    return fires * (0.5 + rng.random(topic.shape)), np.repeat(np.arange(groups), each)


def all_neighbours(activations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Jaccard index and correlation of all pairs, as tables."""
    width, tokens = activations.shape
    found = nearest_by_activation(firings(activations), np.arange(tokens), width)
    tables = []
    for features, scores in (found.jaccard, found.correlation):
        table = np.zeros((width, width))
        rows, columns = np.nonzero(features >= 0)
        table[rows, features[rows, columns]] = scores[rows, columns]
        tables.append(table)
    return tables[0], tables[1]


# --- neighbours -------------------------------------------------------------------------------


@given(arrays(np.float32, (6, 30), elements=st.sampled_from([0, 0, 0.5, 1, 2, 7])))
def test_co_activation_is_what_it_says(activations: np.ndarray) -> None:
    jaccard, correlation = all_neighbours(activations)
    fires = activations > 0
    either = (fires[:, None] | fires[None]).sum(2)
    expected = (fires[:, None] & fires[None]).sum(2) / np.maximum(either, 1)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(jaccard, expected, atol=1e-6)
    np.testing.assert_array_equal(jaccard, jaccard.T)
    varies = activations.std(1) > 0
    expected = np.zeros((6, 6))
    if varies.any():
        expected[np.ix_(varies, varies)] = np.corrcoef(activations[varies].astype(float))
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(correlation, expected.clip(0), atol=1e-3)


def test_identical_sets_one_disjoint_sets_none() -> None:
    activations = np.zeros((3, 10), dtype=np.float32)
    activations[0, :4] = activations[1, :4] = [1, 2, 3, 4]
    activations[2, 6:] = 1
    jaccard, correlation = nearest_by_activation(firings(activations), np.arange(10), 2)[:2]
    assert jaccard.features.tolist() == [[1, -1], [0, -1], [-1, -1]]
    assert jaccard.scores.tolist() == [[1, 0], [1, 0], [0, 0]]
    assert correlation.scores[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("width", [5, 700])
def test_a_duplicate_is_found_and_never_the_feature_itself(width: int) -> None:
    """Of equal features each has the others, whichever comes first in the order."""
    directions = torch.nn.functional.normalize(torch.randn(width, 64), dim=1)
    directions[[1, width - 2]] = directions[0].clone()
    features, scores = nearest_by_direction(directions, 3)
    equal = {0, 1, width - 2}
    for feature in equal:
        assert set(features[feature, :2]) == equal - {feature}
        np.testing.assert_allclose(scores[feature, :2], 1, atol=1e-6)
    assert not (features == np.arange(width)[:, None]).any()


def test_directions_are_compared_whatever_their_length_and_opposite_is_far() -> None:
    rows = torch.tensor([[1.0, 0.0], [5.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])
    features, scores = nearest_by_direction(rows, 3)
    assert features[0].tolist() == [1, 3, 2]
    assert scores[0].tolist() == [1, 0, -1]


def test_fewer_features_than_neighbours_asked_for() -> None:
    features, _ = nearest_by_direction(torch.eye(3), 10)
    assert features.shape == (3, 3)
    assert (features[:, 2] == -1).all()


def test_a_sample_is_stated_and_close() -> None:
    activations, _ = planted(4, 3, 40_000)
    whole = nearest_by_activation(firings(activations), np.arange(40_000), 2)
    part = nearest_by_activation(firings(activations), np.arange(40_000), 2, tokens=20_000)
    assert (whole.n_tokens, part.n_tokens) == (40_000, 20_000)
    np.testing.assert_allclose(part.jaccard.scores, whole.jaccard.scores, atol=0.05)
    again = nearest_by_activation(firings(activations), np.arange(40_000), 2, tokens=20_000)
    np.testing.assert_array_equal(again.jaccard.features, part.jaccard.features)


def test_places_that_are_not_counted_change_nothing() -> None:
    """BOS lies between: places have gaps, tokens have none."""
    activations, _ = planted(2, 3, 500)
    spread = np.zeros((6, 2000), dtype=np.float32)
    counted = np.sort(np.random.default_rng(0).choice(2000, 500, replace=False))
    spread[:, counted] = activations
    a = nearest_by_activation(firings(spread), counted, 3)
    b = nearest_by_activation(firings(activations), np.arange(500), 3)
    np.testing.assert_array_equal(a.correlation.features, b.correlation.features)
    np.testing.assert_allclose(a.correlation.scores, b.correlation.scores, rtol=1e-4)


def test_the_same_contexts_at_other_tokens() -> None:
    """Two features that never fire together, in the same windows; a third elsewhere."""
    activations = np.zeros((3, 320), dtype=np.float32)
    activations[0, 0:160:32] = activations[1, 5:165:32] = activations[2, 170::32] = 1
    features, scores = nearest_by_exemplars(firings(activations), 2)
    assert features.tolist() == [[1, -1], [0, -1], [-1, -1]]
    assert scores[0, 0] == 1


def test_contexts_are_the_strongest() -> None:
    activations = np.zeros((2, 64 * 32), dtype=np.float32)
    activations[:, ::32] = 0.1
    activations[0, : 20 * 32 : 32] = activations[1, 20 * 32 : 40 * 32 : 32] = 1
    assert nearest_by_exemplars(firings(activations), 1).features.tolist() == [[-1], [-1]]


# --- clusters and map -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def groups() -> tuple[np.ndarray, np.ndarray, Neighbours]:
    activations, group = planted(6, 15, 6000)
    activations[40] = 0
    near = nearest_by_activation(firings(activations), np.arange(6000), 10).correlation
    return activations, group, near


def test_planted_clusters_are_found(groups: tuple) -> None:
    activations, group, near = groups
    found = cluster_features(near, 6)
    fires = activations.any(1)
    assert adjusted_rand_score(group[fires], found[fires]) == 1
    assert found[~fires].tolist() == [-1]
    sizes = np.bincount(found[fires])
    assert (np.diff(sizes) <= 0).all()
    np.testing.assert_array_equal(found, cluster_features(near, 6))


def test_the_map_keeps_groups_together_and_comes_out_the_same(groups: tuple) -> None:
    activations, group, near = groups
    fires = activations.any(1)
    places = map_features(near, fires)
    assert places.shape == (90, 2)
    np.testing.assert_array_equal(np.isnan(places).any(1), ~fires)
    on = places[fires]
    away = np.linalg.norm(on[:, None] - on, axis=2) + 1e9 * np.eye(len(on))
    assert (group[fires][away.argmin(1)] == group[fires]).mean() > 0.95
    np.testing.assert_array_equal(places, map_features(near, fires))
    assert not np.array_equal(places[fires], map_features(near, fires, seed=1)[fires])


def test_features_that_do_not_fire_are_left_off_though_they_have_directions() -> None:
    near = nearest_by_direction(torch.randn(40, 8), 5)
    fires = np.arange(40) >= 12
    places = map_features(near, fires)
    np.testing.assert_array_equal(np.isnan(places).any(1), ~fires)


def test_too_few_features_are_refused() -> None:
    near = nearest_by_direction(torch.randn(8, 4), 3)
    with pytest.raises(UserError, match="only 8 features"):
        map_features(near, np.ones(8, dtype=bool))
    near = nearest_by_direction(torch.randn(30, 4), 3)
    with pytest.raises(UserError, match="too few for 64 clusters"):
        cluster_features(near)


@pytest.mark.parametrize("module", ["umap", "sklearn.cluster"])
def test_a_missing_package_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    near = nearest_by_direction(torch.randn(30, 4), 3)
    with pytest.raises(UserError, match="not installed") as caught:
        if module == "umap":
            map_features(near, np.ones(30, dtype=bool))
        else:
            cluster_features(near, 3)
    assert "monosemy[map]" in caught.value.hint


# --- families ---------------------------------------------------------------------------------


def split(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Parents [6, tokens], and children: three of each of the first four, then six unrelated."""
    rng = np.random.default_rng(seed)
    parents = (rng.random((6, 20_000)) < 0.05) * (0.5 + rng.random((6, 20_000)))
    which = rng.integers(3, size=(4, 20_000))
    children = [parents[i] * (which[i] == j) for i in range(4) for j in range(3)]
    others = (rng.random((6, 20_000)) < 0.03) * (0.5 + rng.random((6, 20_000)))
    return parents, np.concatenate([children, others])


def test_planted_families_are_found_by_activation() -> None:
    parents, children = split()
    found = parents_by_activation(firings(parents), firings(children), np.arange(20_000))
    assert found.parent.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [-1] * 6
    assert found.families == {i: [3 * i, 3 * i + 1, 3 * i + 2] for i in range(4)}
    np.testing.assert_array_equal(found.contained[:12], 1)
    np.testing.assert_allclose(found.covered[:12], 1 / 3, atol=0.05)
    assert np.isnan(found.contained[12:]).all()
    assert found.threshold < 0.1


def test_an_absorbed_child_has_no_parent_by_activation_but_one_by_direction() -> None:
    """The child fires instead of its parent, though what it stands for holds the parent's."""
    parents, _ = split()
    instead = (parents[0] == 0) & (np.random.default_rng(1).random(20_000) < 0.02)
    found = parents_by_activation(
        firings(parents), firings(instead[None].astype(float)), np.arange(20_000)
    )
    assert found.parent.tolist() == [-1]
    directions = torch.randn(300, 64)
    child = directions[:1] + 0.5 * torch.randn(1, 64)
    wide = torch.cat([child, torch.randn(500, 64)])
    assert parents_by_direction(directions, wide).parent[0] == 0


def test_children_that_fire_rarely_have_no_parent() -> None:
    parents, children = split()
    rare = np.where(np.cumsum(children[0] > 0) <= 50, children[0], 0)[None]
    found = parents_by_activation(firings(parents), firings(rare), np.arange(20_000))
    assert found.parent.tolist() == [-1] and np.isnan(found.score).all()


def test_planted_families_are_found_by_direction_and_few_by_chance() -> None:
    torch.manual_seed(3)
    narrow = torch.randn(50, 64)
    children = narrow[:20].repeat_interleave(2, 0) + 0.6 * torch.randn(40, 64)
    wide = torch.cat([children, torch.randn(400, 64)])
    found = parents_by_direction(narrow, wide)
    assert found.parent[:40].tolist() == [i // 2 for i in range(40)]
    assert (found.parent[40:] >= 0).sum() <= 16  # 4 are expected
    assert parents_by_direction(torch.randn(50, 64), wide).families.keys() < set(range(50))


def test_directions_that_all_lean_one_way_are_no_families() -> None:
    """A common component makes every cosine high; chance has it too."""
    common = 3 * torch.nn.functional.normalize(torch.randn(1, 64)) * 8
    found = parents_by_direction(torch.randn(50, 64) + common, torch.randn(400, 64) + common)
    assert found.score.min() > 0.7
    assert (found.parent >= 0).mean() < 0.05


# --- inputs -----------------------------------------------------------------------------------


def test_kinds_of_text_are_found() -> None:
    """Thirty documents of three kinds, each with features of its own; a fourth fires in all."""
    rng = np.random.default_rng(0)
    kind = np.arange(30) % 3
    document = np.repeat(np.arange(30), 100)
    document[::100] = -1
    activations = np.zeros((10, 3000), dtype=np.float32)
    for group in range(3):
        mine = np.flatnonzero((kind[document] == group) & (document >= 0))
        for feature in range(3 * group, 3 * group + 3):
            activations[feature, rng.choice(mine, 300, replace=False)] = 1 + group
    activations[9, document >= 0] = 5
    labels, clusters = cluster_inputs(firings(activations), document, 3)
    assert adjusted_rand_score(kind, labels) == 1
    assert [cluster.size for cluster in clusters] == [10, 10, 10]
    for number, cluster in enumerate(clusters):
        assert len(set(kind[cluster.nearest])) == 1
        group = kind[cluster.nearest[0]]
        assert labels[cluster.nearest[0]] == number
        assert {f for f, _ in cluster.features} == {3 * group, 3 * group + 1, 3 * group + 2}
        assert all(lift == pytest.approx(3, rel=0.05) for _, lift in cluster.features)


def test_an_input_without_activations_is_in_no_cluster() -> None:
    activations = np.random.default_rng(0).random((4, 60)).astype(np.float32)
    activations[:, 20:30] = 0
    labels, _ = cluster_inputs(firings(activations), np.repeat(np.arange(6), 10), 2)
    assert labels[2] == -1 and (np.delete(labels, 2) >= 0).all()


def test_more_clusters_than_inputs_are_refused() -> None:
    activations = np.ones((2, 10), dtype=np.float32)
    with pytest.raises(UserError, match="20 clusters of 2 inputs"):
        cluster_inputs(firings(activations), np.repeat(np.arange(2), 5))
