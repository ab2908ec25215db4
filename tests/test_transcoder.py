"""Transcoders after training: what they explain is elsewhere than what they encode."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import INPUT, TARGET, exact, make_transcoder
from safetensors.torch import load_file
from sklearn.linear_model import LinearRegression
from tiny_models import tiny_llama, tiny_tokenizer
from torch import Tensor

from monosemy.activations import counted_activations
from monosemy.artefact import MANIFEST
from monosemy.coders import Add, Clamp, Dictionary, Scale, SuppressAll, attach, diagnose
from monosemy.corpus import Corpus, TokenBatch, open_corpus
from monosemy.errors import UserError
from monosemy.evaluation import SuiteResult, baselines, evaluate
from monosemy.evaluation.dose import Writing, dose_response, raising, random_direction
from monosemy.evaluation.neutral import Neutral
from monosemy.evaluation.wanted import Reencoded, Sample
from monosemy.interpret import build_features, logit_lens
from monosemy.intervene import FeatureEdit, Firing, Positions, VectorEdit, steer
from monosemy.lm import LM, Replay
from monosemy.report import report_run


@pytest.fixture(scope="module")
def transcoder(lm: LM, corpus: Corpus) -> Dictionary:
    return make_transcoder(lm, corpus)


@pytest.fixture(scope="module")
def skipping(lm: LM, corpus: Corpus) -> Dictionary:
    return make_transcoder(lm, corpus, skip=True)


@pytest.fixture(scope="module")
def uneven(lm: LM, corpus: Corpus) -> Dictionary:
    """What it explains is twice as wide as what it encodes."""
    return make_transcoder(lm, corpus, target="layers.1.mlp.up_proj")


@pytest.fixture(scope="module")
def evaluation(skipping: Dictionary, lm: LM, corpus: Corpus) -> SuiteResult:
    return evaluate(
        skipping, lm, corpus, tokens=2000, loss_tokens=1000, draws=100, suites=["reconstruction"]
    )["reconstruction"]


# --- on disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["transcoder", "skipping", "uneven"])
def test_saving_and_loading_is_bitwise(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    dictionary: Dictionary = request.getfixturevalue(name)
    loaded = Dictionary.from_pretrained(dictionary.save_pretrained(tmp_path / "dictionary"))
    for key, weight in dictionary.coder.state_dict().items():
        assert torch.equal(weight, loaded.coder.state_dict()[key])
    assert loaded.provenance == dictionary.provenance
    assert loaded.target_mean is not None and dictionary.target_mean is not None
    assert torch.equal(loaded.target_mean, dictionary.target_mean)
    assert loaded.target_scale == dictionary.target_scale
    x = torch.randn(2, 3, dictionary.d_in)
    assert loaded.reconstruct(x).shape == (2, 3, dictionary.d_out)
    assert torch.equal(loaded.reconstruct(x), dictionary.reconstruct(x))
    assert f"explaining `{dictionary.explains}` from `{INPUT}`" in repr(loaded)


def test_the_format_is_readable_without_the_package(skipping: Dictionary, tmp_path: Path) -> None:
    """Predict a token's target by hand from what `docs/format.md` says."""
    folder = skipping.save_pretrained(tmp_path / "dictionary")
    manifest = json.loads((folder / MANIFEST).read_text())
    weights = load_file(folder / "coder.safetensors")
    x = weights["mean"] * 1.5
    pre = weights["W_enc"] @ x + weights["b_enc"]
    z = torch.where(pre > weights["log_threshold"].exp(), pre, 0)
    predicted = weights["W_dec"].T @ z + weights["b_dec"] + weights["W_skip"] @ x
    torch.testing.assert_close(predicted, skipping.reconstruct(x[None])[0], atol=1e-4, rtol=1e-4)
    assert manifest["provenance"]["target"] == TARGET
    assert manifest["normalisation"]["target_scale"] == skipping.target_scale


def test_a_transcoder_without_its_target_mean_is_refused(
    transcoder: Dictionary, tmp_path: Path
) -> None:
    cut = replace(transcoder, target_mean=None, target_scale=None)
    folder = cut.save_pretrained(tmp_path / "dictionary")
    with pytest.raises(UserError, match=r"not as its manifest says.*target_mean"):
        Dictionary.from_pretrained(folder)


# --- attaching --------------------------------------------------------------------------------


def test_the_fingerprint_measures_what_is_explained(
    transcoder: Dictionary, lm: LM, corpus: Corpus
) -> None:
    f = transcoder.fingerprint
    values = lm.capture(f.tokens, [INPUT, TARGET], attention_mask=f.attention_mask)
    x, y = values[INPUT][f.counted], values[TARGET][f.counted]
    residual = (y - transcoder.reconstruct(x)).square().sum()
    fvu = float(residual / (y - y.mean(0)).square().sum())
    assert f.expected.fvu == pytest.approx(fvu, rel=1e-3)
    assert fvu < 0.8
    assert f.expected.norm == pytest.approx(float(x.norm(dim=1).mean()), rel=1e-4)
    found = diagnose(transcoder, lm)
    assert found.healthy
    assert found.hookpoint == f"{INPUT} -> {TARGET}"
    attach(transcoder, lm)


def moved(dictionary: Dictionary, hookpoint: str, target: str) -> Dictionary:
    provenance = replace(dictionary.provenance, hookpoint=hookpoint, target=target)
    return replace(dictionary, provenance=provenance)


def test_swapped_hook_points_are_named(transcoder: Dictionary, lm: LM) -> None:
    found = diagnose(moved(transcoder, TARGET, INPUT), lm)
    assert found.cause == "hook point"
    assert "swapped" in found.explanation
    assert f"`{INPUT} -> {TARGET}`" in found.explanation


@pytest.mark.parametrize(
    ("hookpoint", "target"),
    [
        ("layers.0.post_attention_layernorm", TARGET),  # the input is wrong
        ("layers.1", TARGET),
        (INPUT, "layers.2.mlp"),  # the target is
        (INPUT, "layers.1.mlp.up_proj"),  # and has another width
        ("layers.2", "layers.0.mlp"),  # both are
    ],
)
def test_wrong_hook_points_are_named_with_the_right_ones(
    transcoder: Dictionary, lm: LM, hookpoint: str, target: str
) -> None:
    wrong = moved(transcoder, hookpoint, target)
    found = diagnose(wrong, lm)
    assert found.cause == "hook point"
    assert "swapped" not in found.explanation
    assert f"encodes `{INPUT}` and explains `{TARGET}`" in found.advice
    with pytest.raises(UserError, match=f"does not fit `{hookpoint} -> {target}`"):
        attach(wrong, lm)


def test_another_input_can_be_tried(transcoder: Dictionary, lm: LM) -> None:
    found = diagnose(transcoder, lm, "layers.0")
    assert found.cause == "hook point"
    assert found.hookpoint == f"layers.0 -> {TARGET}"


def test_normalisation_that_was_never_folded(skipping: Dictionary, lm: LM) -> None:
    coder, d = copy.deepcopy(skipping.coder), skipping
    assert d.target_mean is not None and d.target_scale is not None
    coder.fold(-d.mean * d.scale, 1 / d.scale, -d.target_mean * d.target_scale, 1 / d.target_scale)
    found = diagnose(replace(d, coder=coder), lm)
    assert found.cause == "scale"
    assert "never folded" in found.explanation
    assert "target_mean" in found.advice


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_a_target_of_another_scale(transcoder: Dictionary, lm: LM, factor: float) -> None:
    with lm.edit({TARGET: lambda y, tokens: y * factor}):
        found = diagnose(transcoder, lm)
    assert found.cause == "scale"
    assert f"at `{TARGET}` {factor:.2g}" in found.explanation


def test_input_and_target_of_another_scale(lm: LM, corpus: Corpus) -> None:
    """Here the target is the input, so that both are scaled together."""
    dictionary = make_transcoder(lm, corpus, "layers.1.mlp.down_proj", TARGET)
    with lm.edit({"layers.1.mlp.down_proj": lambda x, tokens: x * 3}):
        found = diagnose(dictionary, lm)
    assert found.cause == "scale"
    assert "here are 3 times" in found.explanation


def test_fingerprint_tokens_that_lost_their_bos(transcoder: Dictionary, lm: LM) -> None:
    f = transcoder.fingerprint
    cut = replace(
        f,
        tokens=f.tokens[:, 1:],
        attention_mask=f.attention_mask[:, 1:],
        counted=f.counted[:, 1:],
    )
    assert diagnose(replace(transcoder, fingerprint=cut), lm).cause == "BOS"


def test_other_weights_of_the_same_model(transcoder: Dictionary) -> None:
    other = LM(tiny_llama(seed=7), tiny_tokenizer())
    assert diagnose(transcoder, other).cause == "base model"


# --- measuring --------------------------------------------------------------------------------


def test_figures_stand_beside_baselines_that_predict_the_target(
    skipping: Dictionary, evaluation: SuiteResult
) -> None:
    k = round(skipping.l0)
    rivals = ["linear map", f"rank-{k} linear map", "untrained dictionary"]
    assert evaluation.table.columns == ["dictionary", *rivals]
    assert evaluation.value("FVU", "linear map") < evaluation.value("FVU", f"rank-{k} linear map")
    assert evaluation.value("FVU") < evaluation.value("FVU", "untrained dictionary") < 1
    assert "at equal L0" not in evaluation.verdict
    assert json.loads(json.dumps(asdict(evaluation))) == asdict(evaluation)


def held_out(
    dictionary: Dictionary, lm: LM, corpus: Corpus, tokens: int
) -> tuple[list[TokenBatch], Tensor, Tensor]:
    """The batches that `evaluate` sees, and their activations."""
    batches, x, y = [], [], []
    for batch in dictionary.provenance.stream(lm, corpus, "held_out"):
        values = lm.capture(batch.tokens, [INPUT, TARGET], attention_mask=batch.attention_mask)
        batches.append(batch)
        x.append(values[INPUT][batch.counted])
        y.append(values[TARGET][batch.counted])
        if sum(map(len, x)) >= tokens:
            break
    return batches, torch.cat(x), torch.cat(y)


def test_figures_by_hand(
    skipping: Dictionary, lm: LM, corpus: Corpus, evaluation: SuiteResult
) -> None:
    """Errors are shares of the target's variance; the skip path counts, and then it does not."""
    _, x, y = held_out(skipping, lm, corpus, 2000)
    variance = (y - y.mean(0)).square().sum()
    predicted = skipping.reconstruct(x)
    fvu = float((y - predicted).square().sum() / variance)
    assert evaluation.value("FVU") == pytest.approx(fvu, rel=1e-4)
    assert skipping.coder.W_skip is not None
    features = predicted - (x - skipping.mean) @ skipping.coder.W_skip.T
    alone = float((y - features).square().sum() / variance)
    assert evaluation.value("FVU without skip path") == pytest.approx(alone, rel=1e-4)
    assert alone > fvu + 0.01
    assert evaluation.value("L0") == pytest.approx(
        float((skipping.encode(x) > 0).sum(1).double().mean())
    )


def test_the_loss_is_that_of_predictions_in_the_targets_place(
    skipping: Dictionary, lm: LM, corpus: Corpus, evaluation: SuiteResult
) -> None:
    """Once with hooks of its own: the target's output is replaced, nothing else."""
    batches, _, _ = held_out(skipping, lm, corpus, 2000)
    losses: list[Tensor] = []
    for batch in batches:
        if sum(map(len, losses)) >= 1000:
            break
        values = lm.capture(batch.tokens, [INPUT, TARGET], attention_mask=batch.attention_mask)
        put = values[TARGET].clone()
        put[batch.counted] = skipping.reconstruct(values[INPUT][batch.counted])
        module = lm.model.get_submodule(lm.hookpoint(TARGET).path)
        handle = module.register_forward_hook(lambda *_, put=put: put)
        logits = lm.logits(batch.tokens, attention_mask=batch.attention_mask)
        handle.remove()
        follows = batch.document[:, 1:] == batch.document[:, :-1]
        counted = batch.counted[:, :-1] & follows
        wrong = torch.nn.functional.cross_entropy(
            logits[:, :-1][counted], batch.tokens[:, 1:][counted], reduction="none"
        )
        losses.append(wrong)
    assert evaluation.value("CE") == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_an_exact_transcoder_recovers_everything(lm: LM, corpus: Corpus) -> None:
    """An MLP's last projection gives what the MLP gives, and is run before it is over."""
    dictionary = exact(lm, corpus, "layers.1.mlp.down_proj", TARGET)
    found = evaluate(
        dictionary, lm, corpus, tokens=1000, loss_tokens=1000, draws=20, suites=["reconstruction"]
    )["reconstruction"]
    assert found.value("FVU") == pytest.approx(0, abs=1e-9)
    assert found.value("CE increase") == pytest.approx(0, abs=1e-6)
    assert found.value("loss recovered (mean)") == pytest.approx(1)
    assert found.value("KL") == pytest.approx(0, abs=1e-6)


def test_an_input_after_the_target_is_refused_unless_the_loss_is_left_out(
    lm: LM, corpus: Corpus
) -> None:
    dictionary = exact(lm, corpus, TARGET, "layers.1.mlp.down_proj")
    with pytest.raises(UserError, match=r"`layers.1.mlp` comes after `layers.1.mlp.down_proj`"):
        evaluate(dictionary, lm, corpus, tokens=500, loss_tokens=500, draws=20)
    found = evaluate(
        dictionary, lm, corpus, tokens=500, loss_tokens=0, draws=20, suites=["reconstruction"]
    )["reconstruction"]
    assert found.value("FVU") == pytest.approx(0, abs=1e-9)
    assert found.context["ce"] == {}


def test_other_widths_can_be_measured(uneven: Dictionary, lm: LM, corpus: Corpus) -> None:
    found = evaluate(
        uneven, lm, corpus, tokens=500, loss_tokens=200, draws=20, suites=["reconstruction"]
    )["reconstruction"]
    assert found.value("FVU") < 1
    assert found.value("FVU", "linear map") == pytest.approx(0, abs=1e-3)  # it is a linear map


def test_the_linear_map_equals_scikit_learns() -> None:
    x = torch.randn(400, 10) @ torch.randn(10, 10) + 3
    y = x @ torch.randn(10, 6) + torch.randn(400, 6) - 2
    full, of_rank = baselines.linear_maps(x, y, 2)
    theirs = LinearRegression().fit(x.numpy(), y.numpy()).predict(x.numpy())
    np.testing.assert_allclose(full(x)[0].numpy(), theirs, atol=2e-2)
    assert (full(x)[1] == 10).all() and (of_rank(x)[1] == 2).all()
    # By Eckart and Young: the fit of a rank misses the full fit by its smallest singular values.
    centred = full(x)[0] - y.mean(0)
    missed = torch.linalg.svdvals(centred)[2:].square().sum()
    difference = (full(x)[0] - of_rank(x)[0]).square().sum()
    torch.testing.assert_close(difference, missed, rtol=1e-3, atol=1e-3)


def test_the_linear_map_bears_dimensions_that_never_vary() -> None:
    x, y = torch.randn(50, 8), torch.randn(50, 4)
    x[:, 3] = 7
    yhat, _ = baselines.linear_maps(x, y, 2)[0](x + 1)
    assert yhat.isfinite().all() and yhat.abs().max() < 20


def test_untrained_features_are_scaled_at_their_best() -> None:
    x = torch.randn(3000, 16) + 2
    y = (x @ torch.randn(16, 12)).relu()
    yhat, l0 = baselines.of_coder(baselines.untrained_transcoder_coder(x, y, 64, 4, seed=0))(x)
    error, mean = (y - yhat).square().sum(), y.mean(0)
    assert error < (y - mean).square().sum()
    assert l0.max() <= 4
    for factor in (0.9, 1.1):
        assert error < (y - (mean + factor * (yhat - mean))).square().sum()


# --- looking, steering, reporting -------------------------------------------------------------


def test_features_fire_at_the_input_and_write_at_the_target(
    transcoder: Dictionary, lm: LM, corpus: Corpus
) -> None:
    features = build_features(transcoder, lm, corpus, tokens=1000)
    stream = transcoder.provenance.stream(lm, corpus, "held_out", shuffled_rows=False)
    parts = (counted_activations(lm, batch, [INPUT])[INPUT] for batch in stream)
    z = transcoder.encode(torch.cat(list(parts))[: features.n_tokens])
    assert len(features.index.values) == int((z > 0).sum())
    assert features.index.values.sum() == pytest.approx(float(z.sum()), rel=1e-4)
    values, _ = logit_lens(lm, transcoder.coder.W_dec)
    for feature in range(0, transcoder.width, 7):
        shown = [value for _, value in features.lens(feature)]
        np.testing.assert_array_equal(np.float32(shown), values[feature].numpy())


def test_directions_outside_the_residual_stream_have_no_logit_lens(
    uneven: Dictionary, lm: LM, corpus: Corpus
) -> None:
    features = build_features(uneven, lm, corpus, tokens=500)
    view = features[features.live[0]]
    assert view.exemplars and not view.promoted and not view.suppressed


PROMPT = "def read_file(path):"


def text_of(lm: LM, tokens: Tensor) -> Tensor:
    return ~torch.isin(tokens[0], torch.tensor(sorted(lm.special_ids)))


@pytest.mark.parametrize("name", ["transcoder", "skipping", "uneven"])
@pytest.mark.parametrize("positions", ["all", range(2, 6)], ids=str)
def test_a_clamped_feature_is_changed_where_it_writes(
    name: str, positions: Positions, lm: LM, request: pytest.FixtureRequest
) -> None:
    """y + (c - z) d at the positions asked for; y bit for bit elsewhere, and the input too."""
    d: Dictionary = request.getfixturevalue(name)
    feature, tokens = int(d.strength.argmax()), lm.encode(PROMPT)
    before = lm.capture(tokens, [d.hookpoint, d.explains])
    with lm.edit(FeatureEdit(d, [Clamp({feature: 2.0})], positions)):
        after = lm.capture(tokens, [d.hookpoint, d.explains])
    assert torch.equal(before[d.hookpoint], after[d.hookpoint])
    y, edited = before[d.explains][0], after[d.explains][0]
    where = text_of(lm, tokens)
    if isinstance(positions, range):
        where &= torch.isin(torch.arange(len(where)), torch.tensor(list(positions)))
    assert 0 < where.sum() < len(where)
    assert torch.equal(edited[~where], y[~where])
    z = d.encode(before[d.hookpoint][0])[where, feature]
    moved = (2 * d.strength[feature] - z)[:, None] * d.coder.W_dec[feature]
    torch.testing.assert_close(edited[where], y[where] + moved, atol=1e-5, rtol=1e-4)


def test_through_a_transcoder_is_its_prediction(skipping: Dictionary, lm: LM) -> None:
    """With the error dropped and nothing changed; its skip path is there."""
    tokens = lm.encode(PROMPT)
    with lm.edit(FeatureEdit(skipping, [], error="drop")):
        found = lm.capture(tokens, [INPUT, TARGET])
    text = text_of(lm, tokens)
    predicted = skipping.reconstruct(found[INPUT][0, text])
    torch.testing.assert_close(found[TARGET][0, text], predicted, atol=1e-5, rtol=1e-4)


def test_no_change_is_exactly_none(skipping: Dictionary, lm: LM) -> None:
    a, b = skipping.strength.topk(2).indices.tolist()
    tokens = lm.encode(PROMPT)
    plain = lm.logits(tokens)
    for changes in ([], [Add({a: 0.0})], [Scale({a: 1.0, b: 1.0})], [SuppressAll(1.0)]):
        with lm.edit(FeatureEdit(skipping, changes)):
            assert torch.equal(lm.logits(tokens), plain), changes


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", range(2, 9), "firing"])
def test_steered_with_and_without_a_cache_token_for_token(
    transcoder: Dictionary, lm: LM, positions: Positions
) -> None:
    a, b = transcoder.strength.topk(2).indices.tolist()
    if positions == "firing":
        positions = Firing(b)
    with lm.edit(FeatureEdit(transcoder, [Clamp({a: 8.0})], positions)):
        texts = [
            lm.write(PROMPT, max_new_tokens=16, use_cache=cache).tokens for cache in (True, False)
        ]
    assert torch.equal(*texts)


def test_what_a_transcoder_is_steered_to_write_stands_beside_the_rest(
    transcoder: Dictionary, lm: LM
) -> None:
    edit = FeatureEdit(transcoder, [Clamp({int(transcoder.strength.argmax()): 8.0})], "generated")
    plain, through, steered = steer(lm, [edit], PROMPT, max_new_tokens=8)
    assert plain.text == lm.generate(PROMPT, max_new_tokens=8)
    assert steered.touched == [n >= steered.prompt for n in range(len(steered.tokens))]
    assert through.touched == [False] + [True] * (len(through.tokens) - 1)


def test_a_pass_that_ends_before_the_target_leaves_nothing_behind(
    transcoder: Dictionary, lm: LM
) -> None:
    edit = FeatureEdit(transcoder, [Clamp({int(transcoder.strength.argmax()): 1.0})])
    tokens = lm.encode(PROMPT)
    with lm.edit(edit):
        expected = lm.logits(tokens)
        lm.capture(lm.encode("x"), [INPUT])
        assert torch.equal(lm.logits(tokens), expected)


def test_features_that_write_before_they_fire_are_refused(lm: LM, corpus: Corpus) -> None:
    dictionary = exact(lm, corpus, TARGET, "layers.1.mlp.down_proj")
    edit = FeatureEdit(dictionary, [Clamp({0: 1.0})])
    with (
        pytest.raises(UserError, match=r"`layers.1.mlp` comes after `layers.1.mlp.down_proj`"),
        lm.edit(edit),
    ):
        lm.logits(lm.encode(PROMPT))


def test_bare_activations_cannot_be_steered_by_a_transcoder(transcoder: Dictionary) -> None:
    feature = int(transcoder.strength.argmax())
    with pytest.raises(UserError, match=f"fire at `{INPUT}` and write at `{TARGET}`") as caught:
        transcoder.steer(torch.zeros(1, 2, transcoder.d_in), feature=feature, scale=1.0)
    assert "lm.edit(FeatureEdit(dictionary, changes))" in caught.value.hint


def test_dose_and_response_of_a_transcoder(lm: LM, corpus: Corpus) -> None:
    """Side effects are those of a whole pass, where what is read lies in an earlier block too."""
    d = make_transcoder(lm, corpus, "layers.0.mlp", "layers.1")
    feature = int(d.strength.argmax())
    neutral = Neutral(lm, d.provenance.stream(lm, corpus, "held_out"), tokens=200, draws=20)
    family, rival = raising(d, feature), random_direction(d, feature)
    assert family.hookpoint == rival.hookpoint == "layers.1"
    curve = dose_response(
        lm,
        family,
        Reencoded(d, feature),
        ["def f(x):\n", "class A:\n"],
        neutral,
        strengths=[0.0, 4.0],
        writing=Writing(tokens=6),
        draws=20,
    )
    none, much = curve.doses
    assert none.kl.value == none.ce.value == none.top1.value == 0 < much.kl.value
    whole = Neutral(lm, d.provenance.stream(lm, corpus, "held_out"), tokens=200, draws=20)
    whole._replays["layers.0"] = Replay(lm, "embed")
    (all_of_it,) = whole.measure("layers.0", [family.at(4.0)])
    assert much.kl.value == pytest.approx(all_of_it["kl"].value, rel=1e-6)
    vector = rival.at(1.0)
    assert isinstance(vector, VectorEdit) and vector.vector.norm() == pytest.approx(
        float(d.strength[feature] * d.coder.W_dec[feature].norm()), rel=1e-5
    )


def test_the_effect_read_again_is_at_the_input(transcoder: Dictionary, lm: LM) -> None:
    feature = int(transcoder.strength.argmax())
    written = lm.write(PROMPT, max_new_tokens=6)
    found = Reencoded(transcoder, feature).measure(lm, [Sample(PROMPT, written)])
    x = lm.capture(written.tokens[None], [INPUT])[INPUT][0, written.start :]
    expected = transcoder.encode(x)[:, feature].mean() / transcoder.strength[feature]
    assert found == pytest.approx([float(expected)], rel=1e-4, abs=1e-6)


def test_the_report_says_what_is_explained_from_what(
    lm: LM,
    texts: list[str],
    skipping: Dictionary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("monosemy.report.build.choose_features", lambda found: found.live[:2])
    folder, run = tmp_path / "text", tmp_path / "run"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:03}.txt").write_text(text)
    corpus = open_corpus(folder, held_out=0.25)
    training = {**skipping.provenance.training, "seconds": 1.0}
    provenance = replace(skipping.provenance, corpus=corpus.describe(), training=training)
    replace(skipping, provenance=provenance).save_pretrained(run / "dictionary")
    line = {"tokens": 100, "loss": 1.0, "fvu": 1.0, "l0": 8.0, "dead_share": 0.0}
    (run / "train.jsonl").write_text(json.dumps(line) + "\n")
    report = report_run(run, lm)
    page = report.path.read_text()
    assert f"96 features that explain {TARGET} from {INPUT}" in page
    assert "FVU without skip path" in page and "a linear path beside them" in page
    assert ("monosemy steer" in page) == bool(report.steering)
