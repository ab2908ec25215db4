"""What activations are like: known answers, and the commands that show it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosemy.cli.main import main
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.evaluation import measure_spread
from monosemy.lm import LM
from monosemy.metrics.spread import Spread, SpreadFigures, iso_score, mean_cosine
from monosemy.report.spread import remarks


def spread_of(x: Tensor, context: int = 10, pieces: int = 1) -> SpreadFigures:
    rows = x.reshape(-1, context, x.shape[-1])
    mask = torch.ones(rows.shape[:2], dtype=torch.bool)
    spread = Spread(x.shape[-1], context)
    for part, held in zip(rows.chunk(pieces), mask.chunk(pieces), strict=True):
        spread.update(part, held, held)
    return spread.compute()


@settings(max_examples=20)
@given(d=st.integers(2, 40), data=st.data())
def test_iso_score_of_equal_dimensions_is_known(d: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, d))
    values = torch.zeros(d, dtype=torch.float64)
    values[:k] = 3.0
    assert iso_score(values) == pytest.approx((k - 1) / (d - 1), abs=1e-9)


def test_a_gaussian_has_the_figures_of_one() -> None:
    f = spread_of(torch.randn(50_000, 8) * 2 + torch.tensor([6.0] + [0.0] * 7))
    assert f.std == pytest.approx(2, rel=0.02)
    assert f.offset == pytest.approx(6 / (2 * 8**0.5), rel=0.02)
    assert f.kurtosis == pytest.approx(0, abs=0.1)
    assert f.participation == pytest.approx(8, rel=0.02)
    assert f.iso_score > 0.99 and f.centred_cosine == pytest.approx(0, abs=0.01)
    assert f.cosine > 0.4 and f.massive_share == 0
    assert sum(f.spectrum) == pytest.approx(1)


def test_tails_are_seen() -> None:
    x = torch.distributions.Laplace(0, 1).sample((200_000, 4))
    assert spread_of(x).kurtosis == pytest.approx(3, rel=0.1)


def test_a_far_mean_does_not_cancel_the_variance() -> None:
    x = torch.randn(20_000, 3) + 3e4
    assert spread_of(x).std == pytest.approx(1, rel=0.02)


def test_how_text_is_cut_changes_nothing() -> None:
    x = torch.randn(6000, 5) * torch.arange(1, 6) + 2
    whole, cut = spread_of(x), spread_of(x, pieces=7)
    for name in ("norm", "std", "offset", "kurtosis", "cosine", "participation", "iso_score"):
        assert getattr(cut, name) == pytest.approx(getattr(whole, name), rel=1e-9), name


def test_massive_activations_are_found_where_they_were_put() -> None:
    x = torch.randn(200, 10, 64)
    x[:, 0, 7] = 5000.0
    mask = torch.ones(200, 10, dtype=torch.bool)
    counted = mask.clone()
    counted[:, 0] = False
    spread = Spread(64, 10)
    spread.update(x, counted, mask)
    f = spread.compute()
    assert f.massive_share == pytest.approx(0.1)
    assert f.massive_dims == [(7, 200)] and f.massive_positions == [(0, 200)]
    assert f.norms_by_position[0] > 4000 > 20 > f.norms_by_position[1]
    assert f.norm < 20
    (said,) = remarks({"text": {"layers.1": f}})
    assert "dimension 7, at position 0" in said


def test_mean_cosine_is_that_of_all_pairs() -> None:
    units = torch.nn.functional.normalize(torch.randn(30, 6, dtype=torch.float64), dim=1)
    pairs = units @ units.T
    expected = (pairs.sum() - 30) / (30 * 29)
    assert mean_cosine(units.sum(0), 30) == pytest.approx(expected.item())


def test_text_is_measured_in_one_pass_and_bad_activations_named(lm: LM, corpus: Corpus) -> None:
    found = measure_spread(lm, corpus, ["layers.0", "layers.1"], context=32, tokens=2000)
    assert list(found) == ["layers.0", "layers.1"]
    assert all(f.tokens >= 2000 and f.d == 32 for f in found.values())

    def spoil(x: Tensor, tokens: Tensor | None) -> Tensor:
        return torch.full_like(x, float("nan"))

    with lm.edit({"layers.1": spoil}), pytest.raises(UserError, match="NaN or infinite, in text"):
        measure_spread(lm, corpus, ["layers.1"], context=32, tokens=2000)


def test_stats_prints_a_table_and_writes_a_page(
    checkpoint: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "a" / f"{number}.py").write_text(text)
        (tmp_path / "b" / f"{number}.py").write_text(text.upper())
    page = tmp_path / "page.html"
    arguments = ["stats", str(checkpoint), "--data", str(tmp_path / "a"), "--tokens", "3000"]
    main([*arguments, "--against", str(tmp_path / "b"), "--page", str(page), "--context", "32"])
    printed = capsys.readouterr().out
    assert "IsoScore" in printed and printed.count("layers.0") == 2
    html = page.read_text()
    assert "<script" not in html and html.count("<polyline") == 2 * 2 * 3
    with pytest.raises(SystemExit):
        main([*arguments, "--hookpoint", "layers.7"])
    assert "unknown hook point `layers.7`" in capsys.readouterr().err


def test_tokens_marks_what_counts(
    checkpoint: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(texts[0])
    data = ["--data", str(tmp_path / "a.txt"), "--part", "all", "--held-out", "0"]
    main(["tokens", str(checkpoint), *data, "--rows", "1", "--context", "16"])
    printed = capsys.readouterr().out
    assert "[a.txt:" in printed and "15 of 16 tokens count" in printed
    assert "not 1 special ones, 0 of padding, 0 outside" in printed.replace("\n", " ")
