"""The share of pre-training compute: its formula, where checkpoints are found, and the suite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import exact
from sklearn.isotonic import IsotonicRegression
from tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer

from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.evaluation import SuiteResult, evaluate
from monosemy.evaluation.suites.compute import find_checkpoints
from monosemy.lm import LM
from monosemy.metrics import compute_share, falling_fit

# --- the formula ------------------------------------------------------------------------------

COMPUTE, LOSS = np.array([1e18, 1e19, 1e20]), np.array([[4.0, 3.5, 3.0]])


@pytest.mark.parametrize(
    ("loss", "share"),
    [(3.25, 10**-0.5), (3.5, 0.1), (3.0, 1), (2.9, 1), (4.0, 0.01), (9.0, 0.01)],
)
def test_known_shares(loss: float, share: float) -> None:
    assert compute_share(COMPUTE, LOSS, np.array([loss])) == pytest.approx(share)


def test_the_unit_of_compute_does_not_matter() -> None:
    spliced = np.array([3.3])
    assert compute_share(COMPUTE, LOSS, spliced) == pytest.approx(
        compute_share(COMPUTE / 6e12, LOSS, spliced)
    )


def test_the_fit_is_isotonic_regression() -> None:
    curves = np.random.default_rng(0).normal(size=(30, 12)) - 0.2 * np.arange(12)
    for curve, fitted in zip(curves, falling_fit(curves), strict=True):
        theirs = IsotonicRegression(increasing=False).fit_transform(np.arange(12), curve)
        np.testing.assert_allclose(fitted, theirs, atol=1e-12)


def test_a_curve_that_falls_is_left_as_it_is() -> None:
    np.testing.assert_allclose(falling_fit(LOSS), LOSS)


def test_the_loss_of_the_model_itself_is_the_whole_even_where_training_made_it_worse() -> None:
    loss = np.array([[4.0, 2.9, 3.0]])
    assert compute_share(COMPUTE, loss, np.array([3.0])) == pytest.approx(1)


# --- checkpoints ------------------------------------------------------------------------------


def folder_of(parent: Path, names: list[str]) -> Path:
    for name in names:
        (parent / name).mkdir()
        (parent / name / "config.json").write_text("{}")
    return parent


@pytest.mark.parametrize("form", ["step{}", "step_{}", "checkpoint-{}", "{}"])
def test_names_tell_the_order(form: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [form.format(n) for n in (1000, 0, 64, 512)])
    (folder / "logs").mkdir()
    assert [one.trained for one in find_checkpoints(folder)] == [64, 512, 1000]


def test_a_file_tells_it_where_names_do_not(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["all_64", "library_8"])
    with pytest.raises(UserError, match=r"several kinds.*all, library"):
        find_checkpoints(folder)
    (folder / "checkpoints.json").write_text(json.dumps({"library_8": 72_000, "all_64": 64_000}))
    assert [one.folder.name for one in find_checkpoints(folder)] == ["all_64", "library_8"]


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder of checkpoints"):
        find_checkpoints(tmp_path / "nowhere")
    folder = folder_of(tmp_path, ["step0", "step5"])
    with pytest.raises(UserError, match="holds 1 checkpoints"):
        find_checkpoints(folder)
    (folder / "checkpoints.json").write_text('{"step5": 10, "step9": 20}')
    with pytest.raises(UserError, match="step9"):
        find_checkpoints(folder)
    (folder / "checkpoints.json").write_text('["step5"]')
    with pytest.raises(UserError, match="cannot be read"):
        find_checkpoints(folder)


# --- the suite --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[LM, Path]:
    """A tiny model trained for some steps, with its checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer, model = tiny_tokenizer(), tiny_llama().train()
    text = "\n".join(document.text for document in corpus.documents("train"))
    ids = torch.tensor(tokenizer.encode(text))
    ids = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(1, 17):
        batch = ids[torch.arange(step * 8, step * 8 + 8) % len(ids)]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step & (step - 1) == 0:
            model.save_pretrained(folder / f"step{step}")
    return LM(model, tokenizer), folder


def measured(lm: LM, corpus: Corpus, checkpoints: Path | None) -> SuiteResult:
    dictionary = exact(lm, corpus, "layers.1")
    return evaluate(
        dictionary,
        lm,
        corpus,
        suites=["compute"],
        checkpoints=checkpoints,
        loss_tokens=600,
        draws=200,
    )["compute"]


def test_an_exact_dictionary_is_worth_all_and_mean_ablation_little(
    trained: tuple[LM, Path], corpus: Corpus
) -> None:
    found = measured(trained[0], corpus, trained[1])
    assert found.value("share of compute") == pytest.approx(1, abs=1e-3)
    assert found.value("share of compute", "mean ablation") < 0.5
    losses = list(found.context["losses"].values())
    assert losses[-1] == pytest.approx(found.context["model_ce"], abs=1e-4)
    assert losses[0] > losses[-1]
    for row in found.table.rows:
        for cell in row.values:
            assert cell is not None and cell.low <= cell.value <= cell.high
    assert "not this model" not in found.verdict


def test_checkpoints_of_an_earlier_model_are_said_to_be_that(
    trained: tuple[LM, Path], corpus: Corpus, lm: LM
) -> None:
    assert "not this model" in measured(lm, corpus, trained[1]).verdict


def test_checkpoints_of_another_model_are_refused(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    for name, model in (("architecture", tiny_gpt2()), ("number of param", tiny_llama(layers=2))):
        folder = tmp_path / name
        for step in (1, 2):
            model.save_pretrained(folder / f"step{step}")
        with pytest.raises(UserError, match=f"another model: its {name}"):
            measured(lm, corpus, folder)


def test_without_checkpoints_it_says_how_to_give_them(lm: LM, corpus: Corpus) -> None:
    assert "--checkpoints" in measured(lm, corpus, None).skipped
