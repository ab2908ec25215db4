from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from torch import Tensor

from monosemy.coders import ARCHITECTURES, Dictionary, make_coder
from monosemy.corpus import Corpus, TokenPolicy
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.training import Run, TrainConfig, expand, fit, make_plans, resume, sweep, train
from monosemy.training.geometry import geometric_median


def test_the_same_seed_gives_the_same_dictionary(lm: LM, corpus: Corpus, run: Run) -> None:
    again = train(lm, corpus, "layers.1", **SMALL).dictionary
    other = train(lm, corpus, "layers.1", **SMALL, seed=1).dictionary
    for name, weight in run.dictionary.coder.state_dict().items():
        assert torch.equal(weight, again.coder.state_dict()[name]), name
    assert not torch.equal(run.dictionary.coder.W_dec, other.coder.W_dec)


def test_a_run_leaves_its_settings_curve_and_dictionary(
    lm: LM, corpus: Corpus, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    made = train(lm, corpus, "layers.1", **{**SMALL, "tokens": 4096}, out=folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["hookpoint"] == "layers.1"
    assert config["training"]["width"] == 96
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert lines == made.history
    assert lines[-1]["tokens"] == 4096
    loaded = Dictionary.from_pretrained(folder)
    assert torch.equal(loaded.coder.W_enc, made.dictionary.coder.W_enc)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_trains_on_a_model(architecture: str, lm: LM, corpus: Corpus) -> None:
    made = train(lm, corpus, "layers.1", **settings_for(architecture, tokens=16_384))
    assert made.dictionary.fingerprint.expected.fvu < 1


def settings_for(architecture: str, **more: object) -> dict:
    """Settings of a small run at L0 8, however that is asked for."""
    settings = {**SMALL, "architecture": architecture, **more}
    if not TrainConfig(architecture=architecture).has_k:
        settings["target_l0"] = settings.pop("k")
    return settings


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated", "p_anneal", "nonnegative"])
def test_the_target_l0_is_reached_on_held_out_text(
    architecture: str, lm: LM, corpus: Corpus
) -> None:
    made = train(lm, corpus, "layers.1", **settings_for(architecture, tokens=100_000))
    assert made.dictionary.l0 == pytest.approx(8, rel=0.1)


def test_a_transcoder_explains_another_hook_point(lm: LM, corpus: Corpus) -> None:
    settings = {**SMALL, "target": "layers.1", "skip": True}
    made = train(lm, corpus, "layers.0", **settings)
    assert made.dictionary.provenance.target == "layers.1"
    assert made.dictionary.fingerprint.expected.fvu < 0.5
    assert made.history[-1]["fvu"] < 0.5


@pytest.mark.parametrize("objective", ["kl", "ce"])
def test_end_to_end_training_lowers_what_the_model_loses(
    objective: str, lm: LM, corpus: Corpus
) -> None:
    made = train(lm, corpus, "layers.1", **{**SMALL, "objective": objective, "tokens": 25_000})
    first, last = made.history[0]["loss"], made.history[-1]["loss"]
    assert last < first - 0.02
    assert all(p.grad is None for p in lm.model.parameters())
    assert any(p.requires_grad for p in lm.model.parameters())


def test_clamped_features_stay_where_they_are_held(lm: LM, corpus: Corpus) -> None:
    held = train(lm, corpus, "layers.1", **{**SMALL, "clamp": {"3": 0.0}, "revive": "none"})
    free = train(lm, corpus, "layers.1", **{**SMALL, "revive": "none"})
    start = held.dictionary.coder.W_enc[3] / free.dictionary.coder.W_enc[3]
    assert start.std() > 0  # it did not learn what the free one learned
    assert held.dictionary.fingerprint.expected.fvu < 1


@pytest.mark.parametrize(
    "settings",
    [
        {"tied": True},
        {"init": "data"},
        {"centre": "median"},
        {"unit_norm": True},
        {"revive": "ghost"},
        {"revive": "resample"},
        {"ema": 0.9},
        {"multi": True, "architecture": "topk"},
        {"whiten": True},
        {"sparsity": "tanh", "architecture": "jumprelu", "k": None, "target_l0": 8.0},
    ],
    ids=str,
)
def test_options_train_and_leave_unit_directions(settings: dict, lm: LM, corpus: Corpus) -> None:
    made = train(lm, corpus, "layers.1", **{**SMALL, "tokens": 16_384, **settings})
    assert made.dictionary.fingerprint.expected.fvu < 0.6
    norms = made.dictionary.coder.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-4, rtol=1e-4)
    expected = bool(settings.get("tied"))
    assert torch.equal(made.dictionary.coder.W_enc, made.dictionary.coder.W_dec) == expected


def test_whitened_training_gives_a_dictionary_of_the_models_own_activations(
    lm: LM, corpus: Corpus, tmp_path: Path
) -> None:
    made = train(lm, corpus, "layers.1", **SMALL, whiten=True, out=tmp_path / "r")
    coder = made.dictionary.coder
    assert coder.importance is not None
    assert coder.importance.std() > 0.01
    # What the log calls FVU is in the model's own space, as that of the finished dictionary.
    assert made.dictionary.fingerprint is not None
    found = made.dictionary.fingerprint.expected.fvu
    assert found == pytest.approx(made.history[-1]["fvu"], rel=0.3)
    again = Dictionary.from_pretrained(tmp_path / "r")
    x = torch.randn(50, coder.d_in)
    torch.testing.assert_close(again.reconstruct(x), made.dictionary.reconstruct(x))


def test_geometric_median_known_answers() -> None:
    line = torch.tensor([[-1.0, 0], [0, 0], [1, 0]])
    assert geometric_median(line).tolist() == [0, 0]  # it starts on a row
    far = torch.cat([0.001 * torch.randn(30, 2), torch.tensor([[10.0, 0]] * 10)])
    assert geometric_median(far).norm() < 0.01
    assert far.mean(0).norm() > 2


def test_existing_run_folder_is_refused_and_kept(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(UserError, match=r"run folder .* exists"):
        train(lm, corpus, **SMALL, out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_a_mistake_leaves_no_folder(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for wrong in ({"width": 4, "k": 5}, {"context": 4096}):
        with pytest.raises(UserError):
            train(lm, corpus, **{**SMALL, **wrong}, out=folder)
    with pytest.raises(UserError, match="unknown hook point"):
        train(lm, corpus, "layer.1", **SMALL, out=folder)
    assert not folder.exists()


def test_nan_activations_are_refused_with_their_documents(lm: LM, corpus: Corpus) -> None:
    hurt = lm.hookpoint("layers.0")

    def poison(x: Tensor, tokens: Tensor | None) -> Tensor:
        return x.index_fill(1, torch.tensor([5]), float("nan"))

    with (
        lm.edit({hurt.name: poison}),
        pytest.raises(UserError, match=r"activations at `layers.1` are NaN .* in `\d+`"),
    ):
        train(lm, corpus, "layers.1", **SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"lr": -1.0}, "lr is -1"),
        ({"architecture": "relu", "k": 5}, "drop k"),
        ({"architecture": "topk", "penalty": 5.0}, "drop penalty"),
        ({"context": 1}, "context is 1"),
        ({"architecture": "jumprelu", "k": 5, "target_l0": 7.0}, "k is 5.*target_l0 is 7"),
        ({"architecture": "batch_topk", "k": 5, "target_l0": 7.0}, "target_l0 is 7.*k.*is 5"),
        ({"architecture": "relu", "penalty": 1.0, "target_l0": 7.0}, "contradict"),
        ({"architecture": "jumprelu", "sparsity": "step"}, "needs a penalty"),
        ({"architecture": "relu", "multi": True}, "`relu` has no such option"),
        ({"architecture": "batchtopk"}, "no architecture `batchtopk`"),
        ({"ema": 1.0}, "ema is 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**settings)


def test_unknown_setting_names_the_known_ones(lm: LM, corpus: Corpus) -> None:
    with pytest.raises(UserError, match="no setting `widht`") as caught:
        train(lm, corpus, widht=3)
    assert "did you mean `width`" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 4, "k": 5}, "k is 5, but the dictionary has 4 features"),
        ({"width": 16, "k": 5, "architecture": "topk", "multi": True}, "4 times as many"),
        ({"clamp": {"96": 1.0}}, "clamp names feature 96"),
        ({"target": "layers.9"}, "unknown hook point"),
        ({"target": "layers.0.mlp"}, "`layers.0.mlp` is computed before `layers.1`"),
        ({"width": 10**10}, "training needs .* of memory, .* is free"),
    ],
)
def test_plans_that_cannot_work_are_refused_before_the_start(
    settings: dict, message: str, lm: LM, corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(lm, corpus, "layers.1", **{**SMALL, **settings}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_plan_says_every_default(lm: LM, corpus: Corpus) -> None:
    config = TrainConfig(architecture="relu", tokens=100_000)
    (plan,) = make_plans(lm, corpus, [None], [config], TokenPolicy(), None)
    said = plan.describe()
    assert said["sparsity"] == "target L0 32, by a controller"
    assert said["learning rate"] == f"0.0226 = 0.008 / sqrt({plan.width} / 2048)"
    assert said["tokens"] == "100,000 in 49 steps of 2,048"
    assert "fall over the last 9" in said["schedule"]


def test_a_grid_gives_k_and_target_l0_to_those_that_have_them() -> None:
    grid = {"architecture": ["topk", "relu"], "k": [8, 16], "target_l0": [10.0], "seed": [0, 1]}
    made = [(c.architecture, c.k, c.target_l0, c.seed) for c in expand(TrainConfig(), grid)]
    assert made == [
        ("topk", 8, None, 0),
        ("topk", 8, None, 1),
        ("topk", 16, None, 0),
        ("topk", 16, None, 1),
        ("relu", None, 10.0, 0),
        ("relu", None, 10.0, 1),
    ]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"witdh": [64]}, "no setting `witdh`"),
        ({"batch": [64, 128]}, "batch cannot vary"),
        ({"k": []}, "the list of k is empty"),
        ({"k": [4, 4]}, "would train `batch_topk-l0-4` twice"),
    ],
)
def test_grids_that_cannot_work_are_refused(
    grid: dict, message: str, lm: LM, corpus: Corpus
) -> None:
    with pytest.raises(UserError, match=message):
        sweep(lm, corpus, ["layers.1"], grid=grid, **{**SMALL, "k": None})


def test_a_sweep_over_hook_points_and_budgets(lm: LM, corpus: Corpus) -> None:
    grid = {"tokens": [2048, 4096]}
    runs = sweep(lm, corpus, ["layers.0", "layers.1"], grid=grid, **SMALL)
    found = [(run.dictionary.hookpoint, run.history[-1]["tokens"]) for run in runs]
    assert found == [
        ("layers.0", 2048),
        ("layers.0", 4096),
        ("layers.1", 2048),
        ("layers.1", 4096),
    ]
    alone = train(lm, corpus, "layers.1", **{**SMALL, "tokens": 4096})
    assert torch.equal(alone.dictionary.coder.W_dec, runs[3].dictionary.coder.W_dec)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_frozen_decoder_stays_as_it_began(architecture: str) -> None:
    x = torch.randn(4096, 16) + 3
    settings = {"architecture": architecture, "width": 64, "tokens": 8192, "batch": 512}
    settings["k" if TrainConfig(architecture=architecture).has_k else "target_l0"] = 4
    frozen = fit(x, **settings, freeze_decoder=True, device="cpu").coder
    began = make_coder(architecture, 16, 64, seed=0)
    torch.testing.assert_close(frozen.W_dec, began.W_dec.detach())
    assert not torch.allclose(frozen.W_enc, began.W_enc.detach())
    free = fit(x, **settings, device="cpu").coder
    assert not torch.allclose(free.W_dec, frozen.W_dec, atol=0.05)


@pytest.mark.parametrize("other", [{"tied": True}, {"revive": "resample"}])
def test_what_changes_directions_contradicts_a_frozen_decoder(other: dict) -> None:
    with pytest.raises(UserError, match="freeze_decoder"):
        TrainConfig(freeze_decoder=True, **other)


def test_a_frozen_decoder_goes_on_from_a_checkpoint(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    settings = {**SMALL, "freeze_decoder": True}
    whole = train(lm, corpus, "layers.1", out=tmp_path / "run", **settings)
    longer = resume(tmp_path / "run", lm, corpus, extend=60_000)[0]
    assert torch.equal(longer.dictionary.coder.W_dec, whole.dictionary.coder.W_dec)
