"""Activations in other tools' files become the same rows of a store, or a clear refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from monosemy import fit
from monosemy.activations import Store
from monosemy.cli.main import main
from monosemy.errors import UserError
from monosemy.formats import raw as raw_module
from monosemy.formats.raw import RawActivations, store_raw

CONTEXT, D = 6, 8


def activations(n: int, d: int = D, seed: int = 0) -> Tensor:
    return torch.randn(n, CONTEXT, d, generator=torch.Generator().manual_seed(seed))


def stored(path: Path, folder: Path, **options: str) -> dict[str, Tensor]:
    store, _ = store_raw(path, folder, precision="fp32", **options)
    return store.read(slice(None))


def chunk(path: Path, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = {} if mask is None else {"mask": mask, "attention_mask": torch.ones_like(mask)}
    save_file({"activation": x, "tokens": tokens, **beside}, path)


def chunks(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    x, tokens = activations(5), torch.arange(30).reshape(5, CONTEXT)
    mask = tokens % 7 != 0
    for number, rows in enumerate((slice(0, 2), slice(2, 5))):
        for place, scale in (("blocks.1.hook_resid_post", 1), ("blocks.2.hook_resid_post", 2)):
            name = f"chunk-{number:08d}"
            chunk(folder / place / f"{name}.safetensors", scale * x[rows], tokens[rows], mask[rows])
            (folder / place / f"{name}.meta.json").write_text("[]")
    return x, tokens, mask


def test_chunks_keep_unmasked_tokens_of_every_hook_point(tmp_path: Path) -> None:
    x, tokens, mask = chunks(tmp_path / "cache")
    store, lost = store_raw(tmp_path / "cache", tmp_path / "s", precision="fp32")
    found = store.read(slice(None))
    assert list(found) == ["layers.1", "layers.2"]
    assert torch.equal(found["layers.1"], x[mask])
    assert torch.equal(found["layers.2"], 2 * x[mask])
    assert torch.equal(store.tokens(slice(None)), tokens[mask])
    assert lost == ["which texts they come from (`.meta.json`)"]


def test_chunks_are_ordered_by_shard_then_number(tmp_path: Path) -> None:
    x = activations(11)
    for i in range(11):
        name = f"shard-{i // 6}-chunk-{i % 6:08d}.safetensors"
        chunk(tmp_path / "c" / name, x[i : i + 1], torch.full((1, CONTEXT), i))
    assert torch.equal(stored(tmp_path / "c", tmp_path / "s")["x"], x.reshape(-1, D))


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_a_folder_of_arrays_is_read_in_the_order_of_its_numbers(
    tmp_path: Path, suffix: str
) -> None:
    folder, x = tmp_path / "a", activations(12)
    folder.mkdir()
    for i in range(12):
        if suffix == ".npy":
            np.save(folder / f"part_{i}.npy", x[i].numpy())
        else:
            torch.save(x[i], folder / f"part_{i}.pt")
    found = stored(folder, tmp_path / "s", hookpoint="layers.3")
    assert torch.equal(found["layers.3"], x.reshape(-1, D))


def test_one_file_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_module, "_VALUES", 3 * CONTEXT * D)
    x = activations(10)
    np.save(tmp_path / "x.npy", x.numpy().astype(np.float64))
    pieces = list(RawActivations(tmp_path / "x.npy"))
    assert [len(piece["x"]) for piece in pieces] == [18, 18, 18, 6]
    assert torch.equal(torch.cat([piece["x"] for piece in pieces]), x.reshape(-1, D))


def test_bf16_and_fp16_are_kept(tmp_path: Path) -> None:
    x = activations(3)
    torch.save(x.bfloat16(), tmp_path / "b.pt")
    np.save(tmp_path / "h.npy", x.numpy().astype(np.float16))
    assert torch.equal(stored(tmp_path / "b.pt", tmp_path / "1")["x"], x.bfloat16().view(-1, D))
    half = stored(tmp_path / "h.npy", tmp_path / "2")["x"]
    assert torch.equal(half, x.half().float().reshape(-1, D))


def data_set(folder: Path, x: Tensor, tokens: Tensor | None = None) -> None:
    from datasets import Array2D, Dataset, Features, Sequence, Value

    name = "blocks.2.hook_resid_pre"
    features = {name: Array2D(shape=(CONTEXT, D), dtype="float32")}
    columns = {name: x.numpy()}
    if tokens is not None:
        features["token_ids"] = Sequence(Value("int32"), length=CONTEXT)
        columns["token_ids"] = tokens.int().numpy()
    Dataset.from_dict(columns, features=Features(features)).save_to_disk(str(folder))


def test_the_cache_of_saelens_keeps_rows_and_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_module, "_VALUES", 2 * CONTEXT * D)
    x, tokens = activations(5), torch.arange(30).reshape(5, CONTEXT)
    data_set(tmp_path / "cache", x, tokens)
    store, _ = store_raw(tmp_path / "cache", tmp_path / "s", precision="fp32")
    assert store.widths == {"layers.1": D}
    assert torch.equal(store.read(slice(None))["layers.1"], x.reshape(-1, D))
    assert torch.equal(store.tokens(slice(None)), tokens.reshape(-1))


def test_a_store_made_so_can_be_fitted(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", activations(400).reshape(-1, D).numpy())
    main(["store", "import", str(tmp_path / "x.npy"), str(tmp_path / "s")])
    dictionary = fit(tmp_path / "s", width=16, k=2, tokens=512, batch=128)
    assert dictionary.d_in == D and len(Store(tmp_path / "s")) == 2400


def bad_widths(folder: Path) -> None:
    np.save(folder / "0.npy", np.ones((4, 8), np.float32))
    np.save(folder / "1.npy", np.ones((4, 9), np.float32))


def bad_nan(folder: Path) -> None:
    np.save(folder / "0.npy", np.ones((4, 8), np.float32))
    np.save(folder / "1.npy", np.full((4, 8), np.nan, np.float32))


def bad_empty(folder: Path) -> None:
    np.save(folder / "0.npy", np.ones((0, 8), np.float32))


def bad_truncated(folder: Path) -> None:
    np.save(folder / "0.npy", np.ones((400, 8), np.float32))
    whole = (folder / "0.npy").read_bytes()
    (folder / "0.npy").write_bytes(whole[:-100])


def bad_truncated_chunk(folder: Path) -> None:
    chunk(folder / "chunk-00000000.safetensors", activations(4), torch.ones(4, CONTEXT))
    whole = (folder / "chunk-00000000.safetensors").read_bytes()
    (folder / "chunk-00000000.safetensors").write_bytes(whole[:-100])


def bad_truncated_pt(folder: Path) -> None:
    torch.save(activations(40), folder / "0.pt")
    whole = (folder / "0.pt").read_bytes()
    (folder / "0.pt").write_bytes(whole[: len(whole) // 2])


def bad_missing_chunk(folder: Path) -> None:
    for number in (0, 2):
        name = f"chunk-{number:08d}.safetensors"
        chunk(folder / name, activations(2), torch.ones(2, CONTEXT))


def bad_tokens(folder: Path) -> None:
    for place, tokens in (("layers.1", 1), ("layers.2", 2)):
        path = folder / place / "chunk-00000000.safetensors"
        chunk(path, activations(2), torch.full((2, CONTEXT), tokens))


def bad_rows(folder: Path) -> None:
    for place, n in (("layers.1", 3), ("layers.2", 4)):
        (folder / place).mkdir()
        np.save(folder / place / "0.npy", np.ones((n, 8), np.float32))


def bad_counts(folder: Path) -> None:
    for place, n in (("layers.1", 1), ("layers.2", 2)):
        (folder / place).mkdir()
        for i in range(n):
            np.save(folder / place / f"{i}.npy", np.ones((3, 8), np.float32))


def bad_kinds(folder: Path) -> None:
    np.save(folder / "0.npy", np.ones((4, 8), np.float32))
    torch.save(torch.ones(4, 8), folder / "1.pt")


def bad_type(folder: Path) -> None:
    np.save(folder / "0.npy", np.ones((4, 8), np.int32))


def bad_objects(folder: Path) -> None:
    np.save(folder / "0.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def bad_dict(folder: Path) -> None:
    torch.save({"acts": torch.ones(4, 8)}, folder / "0.pt")


def bad_masked(folder: Path) -> None:
    none = torch.zeros(2, CONTEXT, dtype=torch.bool)
    chunk(folder / "chunk-0.safetensors", activations(2), torch.ones(2, CONTEXT), none)


def bad_nothing(folder: Path) -> None:
    (folder / "notes.txt").write_text("nothing")


def bad_truncated_data_set(folder: Path) -> None:
    data_set(folder, activations(50))
    (arrow,) = folder.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:900])


def bad_data_set_of_text(folder: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"text": ["a"]}).save_to_disk(str(folder))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (bad_widths, "1.npy` is 9 wide, .*0.npy` 8"),
        (bad_nan, "1.npy` holds NaN"),
        (bad_empty, r"0.npy` holds activations \[0, 8\]"),
        (bad_truncated, "0.npy` cannot be read"),
        (bad_truncated_chunk, "cannot be read"),
        (bad_truncated_pt, "cannot be read"),
        (bad_missing_chunk, "no chunk 1 of 2"),
        (bad_tokens, "different tokens"),
        (bad_rows, r"tokens \[4\], .* \[3\]"),
        (bad_counts, "differ in files"),
        (bad_kinds, "holds .npy and .pt files"),
        (bad_type, "is of int32"),
        (bad_objects, "cannot be read"),
        (bad_dict, "holds `acts`"),
        (bad_masked, "no activations to store"),
        (bad_nothing, "holds no activations"),
        (bad_truncated_data_set, "cannot be read"),
        (bad_data_set_of_text, "holds no activations"),
    ],
)
def test_what_cannot_be_read_is_refused_and_leaves_nothing(
    tmp_path: Path, made: object, said: str
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    made(folder)
    with pytest.raises(UserError, match=said):
        store_raw(folder, tmp_path / "s")
    assert [p.name for p in tmp_path.iterdir()] == ["bad"]


def test_a_malicious_pt_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "pwned",))

    torch.save({"activation": Evil()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="may run code"):
        store_raw(tmp_path / "x.pt", tmp_path / "s")
    assert not (tmp_path / "pwned").exists()


def test_a_store_that_is_there_is_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 8), np.float32))
    store_raw(tmp_path / "x.npy", tmp_path / "s")
    before = json.loads((tmp_path / "s" / "manifest.json").read_text())
    with pytest.raises(UserError, match="not empty"):
        store_raw(tmp_path / "x.npy", tmp_path / "s")
    assert json.loads((tmp_path / "s" / "manifest.json").read_text()) == before
