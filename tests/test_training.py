from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from torch import Tensor

from monosemy.coders import ARCHITECTURES, Dictionary, make_coder
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.training import Member, Run, TrainConfig, auxiliary_loss, train
from monosemy.training.member import AUX_WEIGHT


def synthetic(n: int, d: int = 16, features: int = 24, active: int = 3) -> Tensor:
    """Sums of a few known directions."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.nn.functional.normalize(torch.randn(features, d, generator=generator), dim=1)
    scores = torch.rand(n, features)
    chosen = scores.topk(active, dim=1).indices
    z = torch.zeros(n, features).scatter(1, chosen, torch.rand(n, active) + 0.5)
    return z @ directions


def member(architecture: str, **settings: float) -> Member:
    options = {"l1": 0.5} if architecture == "relu" else {"k": 3}
    coder = make_coder(architecture, 16, 48, **options)
    return Member(coder, **{"lr": 5e-3, "steps": 300, "dead_after": 5000, **settings})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_explains_known_features(architecture: str) -> None:
    trained = member(architecture)
    first = trained.step(synthetic(512))
    for _ in range(299):
        last = trained.step(synthetic(512))
    assert last.fvu < 0.5 * first.fvu
    assert last.fvu < (0.5 if architecture == "relu" else 0.12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_directions_keep_unit_norm(architecture: str) -> None:
    trained = member(architecture)
    for _ in range(5):
        trained.step(synthetic(128))
    norms = trained.coder.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_gradient_equals_finite_differences(architecture: str) -> None:
    """Along random directions, small enough that the same features stay selected."""
    coder = member(architecture).coder.double()
    x = synthetic(64).double()

    def loss() -> Tensor:
        code = coder.select_training(coder.pre_activations(x))
        return (x - coder.decode_sparse(code)).square().sum() + coder.penalty(code)

    for name, parameter in coder.named_parameters():
        direction = torch.randn_like(parameter)
        coder.zero_grad()
        loss().backward()
        assert parameter.grad is not None
        expected = (parameter.grad * direction).sum().item()
        with torch.no_grad():
            eps = 1e-7
            parameter += eps * direction
            up = loss().item()
            parameter -= 2 * eps * direction
            down = loss().item()
            parameter += eps * direction
        assert (up - down) / (2 * eps) == pytest.approx(expected, rel=1e-3, abs=1e-3), name


def test_auxiliary_loss_reaches_encoder_and_decoder_of_dead_features_only() -> None:
    coder = make_coder("topk", 16, 48, k=3)
    x = synthetic(64)
    dead = torch.zeros(48, dtype=torch.bool)
    dead[40:] = True
    residual = torch.randn(64, 16)
    auxiliary_loss(coder, coder.pre_activations(x), residual, dead).backward()
    for gradient in (coder.W_enc.grad, coder.W_dec.grad):
        assert gradient is not None
        assert (gradient[:40] == 0).all()
        assert (gradient[40:].norm(dim=1) > 0).any()
    assert coder.b_dec.grad is None or (coder.b_dec.grad == 0).all()


def test_auxiliary_loss_of_knowing_nothing_is_one() -> None:
    coder = make_coder("topk", 16, 48, k=3)
    residual = torch.randn(64, 16)
    residual -= residual.mean(0)
    silent = torch.full((64, 48), -1.0)
    loss = auxiliary_loss(coder, silent, residual, torch.ones(48, dtype=torch.bool))
    assert loss.item() == pytest.approx(1)


def test_dead_features_are_counted_in_tokens_and_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than half of the features start where nothing is; AuxK brings many to use."""
    shares = {}
    for weight in (AUX_WEIGHT, 0.0):
        monkeypatch.setattr("monosemy.training.member.AUX_WEIGHT", weight)
        torch.manual_seed(0)
        coder = make_coder("topk", 16, 48, k=3)
        with torch.no_grad():
            coder.b_enc[20:] = -0.8
        trained = Member(coder, lr=5e-3, steps=600, dead_after=2000)
        shares[weight] = [trained.step(synthetic(512)).dead_share for _ in range(600)]
        assert shares[weight][2] == 0.0  # 1,536 tokens: too early to call any dead
        assert shares[weight][5] > 0.35
    assert shares[AUX_WEIGHT][-1] < 0.7 * shares[0.0][-1]


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
    settings = {**SMALL, "tokens": 8192, "architecture": architecture}
    if architecture == "relu":
        settings["k"] = None
    made = train(lm, corpus, "layers.1", **settings)
    assert made.dictionary.fingerprint.expected.fvu < 1


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
        ({"architecture": "topk", "l1": 5.0}, "drop l1"),
        ({"context": 1}, "context is 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**settings)


def test_unknown_setting_names_the_known_ones(lm: LM, corpus: Corpus) -> None:
    with pytest.raises(UserError, match="no setting `widht`"):
        train(lm, corpus, widht=3)
