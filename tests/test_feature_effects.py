"""Effects of single features: those of the edit itself, and likeness beside its nulls."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import exact, make_transcoder

from monosemy.cli.main import main
from monosemy.coders import Dictionary, ablate
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.evaluation.effect_rows import EFFECTS, effect_rows, write_effects
from monosemy.evaluation.feature_effects import (
    FeatureEffects,
    _Draw,
    draw_features,
    feature_effects,
)
from monosemy.evaluation.likeness import (
    agreement,
    cluster_likeness,
    how_like,
    lens_agreement,
    lens_of,
    measure_likeness,
)
from monosemy.index import Index, build_index
from monosemy.interpret import direct_logits
from monosemy.interpret.logit_lens import trained_tokens
from monosemy.intervene import FeatureEdit
from monosemy.lm import LM
from monosemy.training import Run

WINDOWS, CONTEXT = 4, 12


@pytest.fixture(scope="module")
def index(run: Run, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("effects") / "index"
    return build_index(run.dictionary, run.lm, corpus, folder, tokens=2000)


@pytest.fixture(scope="module")
def effects(run: Run, index: Index) -> FeatureEffects:
    return feature_effects(
        run.lm,
        run.dictionary,
        index.live[:24],
        index,
        later=run.dictionary,
        windows=WINDOWS,
        context=CONTEXT,
    )


def by_edit(
    lm: LM, d: Dictionary, index: Index, feature: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The texts that a feature fires at the end of; their logits, as they are and ablated."""
    tokens = torch.from_numpy(_Draw(lm, index, WINDOWS, CONTEXT, 0).texts(feature))
    z = d.encode(lm.capture(tokens, [d.hookpoint])[d.hookpoint])[..., feature]
    tokens, z = tokens[z[:, -1] > 0], z[z[:, -1] > 0]

    def without(y: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
        return y - lm.call.text(y)[..., None] * z[..., None] * d.coder.W_dec[feature]

    edit = {d.explains: without} if d.is_transcoder else FeatureEdit(d, [ablate([feature])])
    with lm.edit(edit):
        logits = lm.logits(tokens)[:, -1]
    return tokens, lm.logits(tokens)[:, -1], logits


def test_ablating_is_the_edit_that_ablates(run: Run, index: Index, effects: FeatureEffects) -> None:
    lm, d = run.lm, run.dictionary
    trained = trained_tokens(lm, lm.unembedding().weight)
    assert effects.tokens.tolist() == trained.nonzero()[:, 0].tolist()
    for number in (0, len(effects) - 1):
        feature = int(effects.features[number])
        tokens, original, logits = by_edit(lm, d, index, feature)
        assert effects.windows[number] == len(tokens)
        change = (logits - original).mean(0)[trained]
        expected = (change - change.mean()).numpy()
        np.testing.assert_allclose(effects.ablated[number], expected, atol=1e-4)
        kl = torch.nn.functional.kl_div(
            logits.log_softmax(-1), original.softmax(-1), reduction="batchmean"
        )
        assert effects.kl_ablated[number] == pytest.approx(float(kl), rel=1e-2, abs=1e-6)
        before = d.encode(lm.capture(tokens, [d.hookpoint])[d.hookpoint][:, -1])
        with lm.edit(FeatureEdit(d, [ablate([feature])])):
            after = d.encode(lm.capture(tokens, [d.hookpoint])[d.hookpoint][:, -1])
        assert effects.later is not None
        moved = (after - before).mean(0).numpy()
        np.testing.assert_allclose(effects.later[number], moved, atol=1e-3)
        assert effects.later[number][feature] < 0
    assert (effects.windows > 1).all() and (effects.kl_doubled >= 0).all()
    assert (np.abs(effects.steady) <= 1 + 1e-5).all()


def test_a_transcoder_is_scaled_where_it_writes(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    d = make_transcoder(lm, corpus)
    index = build_index(d, lm, corpus, tmp_path / "index", tokens=1000)
    chosen = sorted(index.live, key=lambda feature: -index.counts[feature])[:3]
    effects = feature_effects(lm, d, chosen, index, windows=WINDOWS, context=CONTEXT)
    for number, feature in enumerate(effects.features.tolist()):
        _, original, logits = by_edit(lm, d, index, feature)
        change = (logits - original).mean(0)[effects.tokens]
        expected = (change - change.mean()).numpy()
        np.testing.assert_allclose(effects.ablated[number], expected, atol=1e-4)
        assert np.abs(expected).max() > 1e-3


def test_a_feature_is_measured_alike_whatever_others_are(
    run: Run, index: Index, effects: FeatureEffects
) -> None:
    number = len(effects) // 2
    alone = feature_effects(
        run.lm,
        run.dictionary,
        [int(effects.features[number])],
        index,
        windows=WINDOWS,
        context=CONTEXT,
    )
    assert alone.later is None and alone.windows[0] == effects.windows[number]
    np.testing.assert_allclose(alone.doubled[0], effects.doubled[number], atol=1e-4)


def test_features_are_drawn_from_all_densities(index: Index) -> None:
    drawn = draw_features(index, 6, fewest=2)
    counts = sorted(index.counts[drawn])
    often = sorted(c for c in index.counts if c >= 2)
    assert len(set(drawn)) == 6 and drawn == draw_features(index, 6, fewest=2)
    assert counts[0] <= np.quantile(often, 0.25) and counts[-1] >= np.quantile(often, 0.75)
    assert len(draw_features(index, 10_000, fewest=2)) == len(often)


# --- likeness ------------------------------------------------------------------------------------


def test_agreement_of_the_same_is_perfect_and_of_noise_none() -> None:
    rng = np.random.default_rng(0)
    one, noise = rng.normal(size=(30, 8)), rng.normal(size=(30, 8))
    turned = one @ np.linalg.qr(rng.normal(size=(8, 8)))[0]
    same = agreement(one, turned, draws=200)
    assert same.correlation == pytest.approx(1) and same.p == pytest.approx(1 / 201)
    assert how_like(same) == "clearly alike" and same.interval == pytest.approx((1, 1))
    none = agreement(one, noise, draws=200)
    assert none.p > 0.01 and abs(none.correlation) < 0.3
    assert abs(same.null[0]) < 0.1 and none.interval[0] < 0 < none.interval[1]


def test_of_few_features_nothing_is_clear() -> None:
    rng = np.random.default_rng(1)
    one = rng.normal(size=(400, 6))
    other = one @ rng.normal(size=(6, 40)) + 1.5 * rng.normal(size=(400, 40))
    many = agreement(one, other, draws=100)
    assert many.interval[0] < many.correlation < many.interval[1]
    few = agreement(one[:12], other[:12], draws=100)
    width = few.interval[1] - few.interval[0]
    assert width > 3 * (many.interval[1] - many.interval[0])
    assert few.interval[0] < many.correlation < few.interval[1]


def test_what_a_third_thing_explains_is_taken_out() -> None:
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(40, 6))
    one, other = (np.hstack([texts, rng.normal(size=(40, 6))]) for _ in range(2))
    assert agreement(one, other, draws=200).p < 0.01
    given = agreement(one, other, given=texts, draws=200)
    assert abs(given.correlation) < 0.15 and given.p > 0.01
    assert agreement(one, one, given=texts, draws=50).correlation == pytest.approx(1)


def test_clusters_of_like_effects_are_told_from_labels_at_random() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat([0, 1, 2, -1], 10)
    effects = np.eye(4)[clusters] + 0.1 * rng.normal(size=(40, 4))
    found = cluster_likeness(effects, clusters, draws=200)
    assert found.within > 0.9 and abs(found.between) < 0.1 and found.p == pytest.approx(1 / 201)
    assert found.interval[0] > 0.8
    assert found.features == 30 and found.pairs == 3 * 45 and how_like(found) == "clearly alike"
    assert [row.features for row in found.clusters] == [10, 10, 10]
    assert found.clusters[0].within >= found.clusters[1].within
    by_chance = cluster_likeness(effects, rng.permutation(clusters), draws=200)
    assert by_chance.p > 0.01 and "not shown" in how_like(by_chance)
    exact = cluster_likeness(np.repeat(np.eye(6), 2, 0), np.repeat(np.arange(6), 2), draws=50)
    assert (exact.within, exact.between) == (pytest.approx(1), pytest.approx(0))


def test_the_lens_tells_all_where_nothing_comes_after() -> None:
    rng = np.random.default_rng(0)
    lens = rng.normal(size=(20, 50))
    found = lens_agreement(3 * lens + 1, lens, draws=100)
    assert found.median == pytest.approx(1) and found.p == pytest.approx(1 / 101)
    assert abs(found.null[0]) < 0.1 and found.share == pytest.approx(1)
    assert np.abs(found.rest).max() < 1e-9
    assert lens_agreement(rng.normal(size=(20, 50)), lens, draws=100).p > 0.01
    other = rng.normal(size=(20, 50))
    other -= other.mean(1, keepdims=True)
    large = other * (np.arange(20) == 0)[:, None] * 100  # one effect that the lens tells nothing of
    found = lens_agreement(lens + large, lens, draws=10)
    assert found.median > 0.9 and found.share < 0.3
    wrong = lens_agreement(-lens, lens, draws=10)  # and one of the wrong sign is not told either
    assert wrong.median == pytest.approx(-1) and wrong.share == 0


def test_after_the_last_layer_effects_are_those_of_the_lens(
    lm: LM, corpus: Corpus, tmp_path: Path
) -> None:
    d = exact(lm, corpus, "final_norm")
    index = build_index(d, lm, corpus, tmp_path / "index", tokens=1000)
    effects = feature_effects(lm, d, index.live[:24], index, windows=WINDOWS, context=CONTEXT)
    lens = lens_of(lm, d, effects, draws=50)
    assert lens is not None and lens.correlations.min() > 0.999 and lens.p < 0.05
    weights = direct_logits(lm, d, effects.features.tolist())[:, effects.tokens].numpy()
    up = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    assert ((effects.ablated * up).sum(1) < 0).all(), "ablation lowers what the lens raises"
    found = measure_likeness(d, effects, lens=lens, draws=20)
    assert "100% of the variance" in found.verdict


def test_directions_that_are_all_alike_say_nothing() -> None:
    found = agreement(np.eye(12), np.random.default_rng(0).normal(size=(12, 5)), draws=20)
    assert (found.correlation, found.p) == (0, 1) and "not shown" in how_like(found)


def test_likeness_says_in_words_what_its_figures_are(run: Run, effects: FeatureEffects) -> None:
    clusters = np.arange(run.dictionary.width) % 3
    found = measure_likeness(run.dictionary, effects, clusters, draws=100)
    said, (low, high) = "\n".join(found.lines()), found.direction.interval
    assert f"{found.direction.correlation:.2f} ({low:.2f} to {high:.2f}; features" in said
    assert f"p = {found.direction.p:.3f}" in said and "cluster: " in said and "later" in said
    assert how_like(found.direction) in found.verdict and "lens" not in found.verdict
    assert found.beyond_lens is None
    assert json.loads(json.dumps(found.to_dict()))["cluster"]["pairs"] == found.cluster.pairs
    alone = np.arange(run.dictionary.width)  # no two are in one
    assert measure_likeness(run.dictionary, effects, alone, draws=10).cluster is None


# --- rows ----------------------------------------------------------------------------------------


def test_rows_hold_the_largest_changes_and_outlive_other_features(
    run: Run, index: Index, effects: FeatureEffects
) -> None:
    rows = effect_rows(run.dictionary, effects, later={"run": "it"})
    row, change = rows[3], effects.ablated[3]
    for end, best in (("raised", change.argmax()), ("lowered", change.argmin())):
        token, value = row["ablated"][end][0]
        assert token == effects.tokens[best] and value == pytest.approx(change[best], rel=1e-3)
    assert row["later"]["run"] == "it" and row["later"]["features"][0][0] == row["feature"]
    assert row["feature"] not in [other for other, _, _ in row["alike"]]
    write_effects(index, rows[:2])
    write_effects(index, [{**rows[1], "windows": 99}, rows[2]])
    kept = index.table(EFFECTS)
    assert sorted(kept) == [r["feature"] for r in rows[:3]]
    assert kept[rows[1]["feature"]]["windows"] == 99
    assert kept[rows[0]["feature"]] == json.loads(json.dumps(rows[0]))


# --- what is refused -----------------------------------------------------------------------------


def test_what_cannot_be_measured_is_refused(
    run: Run, index: Index, effects: FeatureEffects, tmp_path: Path
) -> None:
    lm, d = run.lm, run.dictionary
    with pytest.raises(UserError, match="no feature 96"):
        feature_effects(lm, d, [96], index)
    with pytest.raises(UserError, match="fires on two texts"):
        feature_effects(lm, d, [], index, context=CONTEXT)
    for context in (1, 33):
        with pytest.raises(UserError, match=f"texts of {context} tokens"):
            feature_effects(lm, d, [0], index, context=context)
    with pytest.raises(UserError, match="effects of 0 features"):
        draw_features(index, 0)
    with pytest.raises(UserError, match="3 features"):
        agreement(np.eye(3), np.eye(3))
    for clusters, told in ((np.zeros(12, int), "one cluster"), (np.arange(12), "different")):
        with pytest.raises(UserError, match=told):
            cluster_likeness(np.eye(12), clusters)
    with pytest.raises(UserError, match="9 features in a cluster"):
        cluster_likeness(np.eye(12), np.repeat([0, 1, -1], [4, 5, 3]))


def test_an_earlier_dictionary_is_not_later(run: Run, corpus: Corpus, index: Index) -> None:
    earlier = exact(run.lm, corpus, "layers.0")
    with pytest.raises(UserError, match=re.escape("`layers.0` is not later")):
        feature_effects(
            run.lm, run.dictionary, index.live[:2], index, later=earlier, context=CONTEXT
        )


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(
    run: Run, corpus: Corpus, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("effects") / "run"
    named = replace(run.dictionary.provenance, model=str(checkpoint))
    dictionary = replace(run.dictionary, provenance=named)
    dictionary.save_pretrained(folder / "dictionary")
    build_index(dictionary, run.lm, corpus, folder / "index", tokens=1500)
    return folder


SMALL_TEXTS = ("--windows", str(WINDOWS), "--context", str(CONTEXT))


def test_the_command_prints_a_table_and_says_whether_like_features_act_alike(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "effects.json"
    asked = ["--count", "24", "--later", str(folder), "--json", str(out), *SMALL_TEXTS]
    main(["effects", str(folder), *asked])
    said = capsys.readouterr().out
    lines = ("direction: ", "direction, beyond the lens: ", "direction, later: ", "cluster: ")
    for words in ("KL, nats", "doubled", "later features", "permuted", *lines):
        assert words in said
    assert "Effects of features of like direction are" in said and "logit lens" in said
    values = json.loads(out.read_text())
    kept = Index.open(folder).table(EFFECTS)
    assert {row["feature"]: row for row in values["features"]} == kept and len(kept) >= 10
    assert values["likeness"]["direction"]["features"] == len(kept)
    row = next(iter(kept.values()))
    assert row["later"]["run"] == "run" and row["later"]["hookpoint"] == "layers.1"
    assert row["later"]["dictionary"] == Index.open(folder).manifest["dictionary"]


def test_named_features_are_all_listed_and_too_few_to_compare(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = draw_features(Index.open(folder), 3)
    main(["effects", str(folder), "--features", *map(str, chosen), *SMALL_TEXTS])
    said = capsys.readouterr().out
    listed = [int(n) for n in re.findall(r"^ +(\d+) .*ablated", said, re.MULTILINE)]
    missing = re.findall(r"\d+", said.partition("such texts: ")[2].partition("\n")[0])
    assert listed and sorted([*listed, *map(int, missing)]) == chosen
    assert "it takes 10 features" in said and "direction: " not in said


def test_the_command_refuses_in_a_sentence(
    folder: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run.dictionary.save_pretrained(tmp_path / "other" / "dictionary").parent
    for wrong, told in (
        ((str(folder), "--features", "96"), "there is no feature 96"),
        ((str(folder), "--later", str(other)), "is of the model LlamaForCausalLM"),
        ((str(folder), "--later", str(tmp_path / "none")), "no folder"),
        ((str(folder), "--context", "33"), "texts of 33 tokens"),
        ((str(folder), "--windows", "0"), "0 texts for each feature"),
        ((str(folder), "--count", "0"), "effects of 0 features"),
        ((str(tmp_path / "none"),), "no folder"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["effects", *wrong])
        assert caught.value.code == 2 and told in capsys.readouterr().err
