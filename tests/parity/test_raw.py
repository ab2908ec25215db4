"""Activations cached by SAELens's own code come into a store as they are."""

from __future__ import annotations

from pathlib import Path

import torch

from monosemy.formats.raw import store_raw


def test_the_cache_of_saelens_is_read_row_by_row(peer: object, tmp_path: Path) -> None:
    peer("peer_raw.py", tmp_path)
    expected = torch.load(tmp_path / "expected.pt", weights_only=True)
    store, lost = store_raw(tmp_path / "cache", tmp_path / "store", precision="fp32")
    assert store.widths == {"layers.1": 8} and not lost
    assert torch.equal(store.read(slice(None))["layers.1"], expected["x"])
    assert torch.equal(store.tokens(slice(None)), expected["tokens"])
