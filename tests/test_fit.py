"""Dictionaries of activations that somebody brings: arrays, memory-maps, stores; no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from monosemy.activations import Store, SyntheticFeatures, store_arrays
from monosemy.cli.main import main
from monosemy.coders import Dictionary, diagnose
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.metrics import mean_max_cosine
from monosemy.training import fit

KNOWN = SyntheticFeatures(d_in=32, n_features=40, l0=2, seed=0)
SMALL = {"width": 40, "k": 2, "batch": 256, "tokens": 100_000, "lr": 5e-3, "device": "cpu"}


@pytest.fixture(scope="module")
def x() -> Tensor:
    return KNOWN.sample(8000, seed=1)[0] * 3 + 5


@pytest.fixture(scope="module")
def fitted(x: Tensor) -> Dictionary:
    return fit(x, **SMALL)


def test_known_directions_are_found_and_beat_principal_components(
    x: Tensor, fitted: Dictionary
) -> None:
    assert mean_max_cosine(KNOWN.directions, fitted.coder.W_dec) > 0.9
    held_out = fitted.provenance.training["held_out"]
    assert held_out["fvu"] < 0.25 < held_out["fvu_pca"]
    assert held_out["l0"] == pytest.approx(2, rel=0.15)
    left = x - fitted.reconstruct(x)
    assert left.square().sum() < 0.25 * (x - x.mean(0)).square().sum()


def same(a: Dictionary, b: Dictionary) -> bool:
    left, right = a.coder.state_dict(), b.coder.state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)


def test_tensor_array_memory_map_and_store_give_the_same(
    x: Tensor, fitted: Dictionary, tmp_path: Path
) -> None:
    mapped = np.memmap(tmp_path / "x.bin", np.float32, "w+", shape=tuple(x.shape))
    mapped[:] = x.numpy()

    def chunks() -> Iterator[np.ndarray]:
        for first in range(0, len(x), 777):
            yield mapped[first : first + 777]

    store = store_arrays(tmp_path / "store", chunks(), precision="fp32")
    assert torch.equal(store.read(slice(None))["x"], x)
    for source in (x.numpy(), mapped, store, str(store.folder)):
        assert same(fit(source, **SMALL), fitted)


def test_it_is_saved_and_read_again(fitted: Dictionary, x: Tensor, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path / "d")
    again = Dictionary.from_pretrained(tmp_path / "d")
    assert again.fingerprint is None and again.l0 == fitted.l0
    assert torch.equal(again.encode(x[:50]), fitted.encode(x[:50]))


def test_what_needs_a_model_says_that_there_is_none(
    fitted: Dictionary, lm: LM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="fitted to arrays"):
        diagnose(fitted, lm, "layers.1")
    fitted.save_pretrained(tmp_path / "d")
    with pytest.raises(SystemExit):
        main(["features", str(tmp_path / "d")])
    assert "fitted to arrays: it belongs to no model" in capsys.readouterr().err


def test_a_target_makes_a_transcoder(x: Tensor) -> None:
    y = x.relu() @ torch.randn(32, 10)
    transcoder = fit(x, y, skip=True, **SMALL)
    assert transcoder.is_transcoder and transcoder.d_out == 10
    held_out = transcoder.provenance.training["held_out"]
    assert held_out["fvu"] < 0.1
    # A linear map of full rank is the best that no features could do.
    assert held_out["fvu_pca"] > held_out["fvu"]


def test_held_out_rows_do_not_train(x: Tensor, fitted: Dictionary) -> None:
    block = torch.arange(len(x)) * 100 // len(x)
    out = ((block + 1) * 0.1).floor() > (block * 0.1).floor()
    assert out.float().mean() == pytest.approx(0.1, abs=0.01)
    changed = x.clone()
    changed[out] = torch.randn(int(out.sum()), 32) * 100
    again = fit(changed, **SMALL)
    assert same(again, fitted)
    assert again.provenance.training["held_out"]["fvu"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"x": torch.zeros(5, 4, 3)}, r"x has shape \(5, 4, 3\)"),
        ({"x": [1, 2]}, "x is a list"),
        ({"x": torch.randn(100, 8)}, r"of 100 rows 90 are left to train on, fewer than a batch"),
        ({"x": torch.randn(600, 8), "y": torch.randn(599, 8)}, "x has 600 rows, y 599"),
        ({"x": torch.randn(600, 8), "k": 60}, "k is 60, but the dictionary has 40"),
        ({"x": torch.randn(600, 8), "context": 128}, "`fit` has no setting `context`"),
        ({"x": torch.randn(600, 8), "widht": 9}, "`fit` has no setting `widht`"),
        ({"x": torch.randn(600, 8), "held_out": 1.5}, "held_out is 1.5"),
        ({"x": "nowhere"}, "no folder `nowhere`"),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict, what: str) -> None:
    with pytest.raises(UserError, match=what):
        fit(**{**SMALL, **arguments})


def test_rows_that_are_not_numbers_are_named(x: Tensor, tmp_path: Path) -> None:
    bad = x.clone()
    bad[4321, 3] = float("nan")
    with pytest.raises(UserError, match="such as row 4321"):
        fit(bad, **SMALL)
    with pytest.raises(UserError, match="NaN or infinite"):
        store_arrays(tmp_path / "s", bad)
    assert not (tmp_path / "s").exists()


def test_stores_of_arrays_refuse_what_does_not_match(x: Tensor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a chunk is of \{'x': 8\}"):
        store_arrays(tmp_path / "s", iter([x, x[:, :8]]))
    with pytest.raises(UserError, match="differ in rows: x has 8000, y has 10"):
        store_arrays(tmp_path / "s", {"x": x, "y": x[:10]})
    with pytest.raises(UserError, match="gave nothing"):
        store_arrays(tmp_path / "s", iter([]))
    store = store_arrays(tmp_path / "both", {"x": x, "y": x[:, :4]}, precision="int8")
    assert store.widths == {"x": 32, "y": 4} and len(store) == 8000
    with pytest.raises(UserError, match="is a store already"):
        store_arrays(tmp_path / "both", x)
    with pytest.raises(UserError, match="holds no activations of `z`"):
        Store(tmp_path / "both").read(slice(0, 3), ["z"])
