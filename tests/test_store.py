"""Stored activations: the same batches as live ones, whole or mended, never silently wrong."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from children import Child
from conftest import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st

from monosemy.activations import Harvest, Recipe, Store, repair, verify
from monosemy.activations import store as store_module
from monosemy.activations.precision import pack, unpack
from monosemy.activations.store import Damage, Shard
from monosemy.corpus import Corpus, open_corpus
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.training import resume, train
from monosemy.training.feed import PoolFeed, StoreFeed

POINTS = ("layers.0", "layers.1")
SHARD = 2**17


@pytest.fixture(scope="module")
def recipe(lm: LM, corpus: Corpus) -> Recipe:
    return Recipe(
        model=lm.name,
        hookpoints=POINTS,
        context=32,
        corpus=corpus.describe(),
        tokens_at_once=512,
    )


def fill(
    lm: LM, corpus: Corpus, recipe: Recipe, folder: Path, tokens: int, precision: str = "fp32"
) -> Store:
    with Harvest(
        lm, corpus, recipe, folder, tokens=tokens, precision=precision, shard_bytes=SHARD
    ) as harvest:
        harvest.grow()
    return Store(folder)


@pytest.fixture(scope="module")
def store(
    lm: LM, corpus: Corpus, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    return fill(lm, corpus, recipe, tmp_path_factory.mktemp("store") / "s", 6000)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("shard-*"))}


def test_live_stored_and_rolling_sources_give_the_same_batches(
    lm: LM, corpus: Corpus, recipe: Recipe, store: Store, tmp_path: Path
) -> None:
    sizes = {"size": 2048, "batch": 256, "seed": 3}
    live = PoolFeed(lm, recipe.stream(lm, corpus, None), POINTS, **sizes)
    stored = StoreFeed(store, None, POINTS, device=lm.device, **sizes)
    with Harvest(
        lm, corpus, recipe, tmp_path / "r", tokens=4096, precision="fp32", shard_bytes=SHARD
    ) as harvest:
        rolling = StoreFeed(harvest.store, harvest.grow, POINTS, device=lm.device, **sizes)
        for feed in (stored, rolling):
            for name, x in live.sample(1000).items():
                assert torch.equal(feed.sample(1000)[name], x)
        for _ in range(12):
            expected = next(live).activations
            for feed in (stored, rolling):
                found = next(feed).activations
                assert list(found) == list(POINTS)
                for name, x in expected.items():
                    assert torch.equal(found[name], x), name


def test_a_run_from_a_store_is_the_run_without_one(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    small = {**SMALL, "tokens": 8192}
    live = train(lm, corpus, "layers.1", **small)
    folder = str(tmp_path / "store")
    rolling = train(lm, corpus, "layers.1", store=folder, precision="fp32", **small)
    before = files(tmp_path / "store")
    stored = train(lm, corpus, "layers.1", store=folder, precision="fp32", **small)
    for run in (rolling, stored):
        for name, weights in live.dictionary.coder.state_dict().items():
            assert torch.equal(run.dictionary.coder.state_dict()[name], weights), name
    assert files(tmp_path / "store") == before


def test_a_run_from_a_store_is_resumed_from_it(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    small = {**SMALL, "tokens": 8192, "store": str(tmp_path / "store")}
    whole = train(lm, corpus, "layers.1", out=tmp_path / "whole", **small)
    train(lm, corpus, "layers.1", out=tmp_path / "run", **{**small, "tokens": 4096})
    (extended,) = resume(tmp_path / "run", lm, corpus, extend=8192)
    assert extended.config.store == whole.config.store
    assert len(Store(tmp_path / "store")) >= 8192 + SMALL["pool"]


def test_a_store_knows_its_tokens_and_documents(
    lm: LM, corpus: Corpus, recipe: Recipe, store: Store
) -> None:
    batch = next(iter(recipe.stream(lm, corpus, None)))
    expected = batch.tokens[batch.counted]
    assert torch.equal(store.tokens(slice(0, len(expected))), expected)
    assert lm.tokenizer is not None
    texts = {d.id: d.text for d in corpus.documents("train")}
    runs, tokens = store.runs(0), store.tokens(slice(0, store.shards[0].rows))
    assert runs[0].row == 0 and len(runs) > 3
    for run, following in list(pairwise(runs))[:20]:
        text = lm.tokenizer.decode(tokens[run.row : following.row]).strip("�")  # half a character
        assert text[:8] in texts[run.document][run.start : run.start + 12]


@settings(max_examples=30)
@given(rows=st.lists(st.integers(0, 5999), max_size=40))
def test_rows_come_in_the_order_asked_for(store: Store, rows: list[int]) -> None:
    whole = store.read(slice(None))
    found = store.read(torch.tensor(rows, dtype=torch.int64), ["layers.1"])
    assert list(found) == ["layers.1"]
    assert torch.equal(found["layers.1"], whole["layers.1"][rows])


@pytest.mark.parametrize(("precision", "share"), [("fp32", 0.0), ("bf16", 2**-8), ("int8", 0.004)])
def test_precision_errs_by_what_it_says(precision: str, share: float) -> None:
    x = torch.randn(200, 64) * torch.logspace(-3, 3, 200)[:, None]
    packed = pack("x", x, precision)
    error = (unpack("x", packed, slice(None)) - x).abs()
    scale = x.abs() if precision == "bf16" else x.abs().amax(1, keepdim=True)
    assert (error <= share * scale + 1e-12).all()
    assert torch.equal(
        unpack("x", packed, torch.tensor([5, 3])), unpack("x", packed, slice(None))[[5, 3]]
    )


def test_bf16_takes_half_and_int8_a_quarter(
    lm: LM, corpus: Corpus, recipe: Recipe, store: Store, tmp_path: Path
) -> None:
    per_row = store.bytes / len(store)
    for precision, share in (("bf16", 0.55), ("int8", 0.35)):
        made = fill(lm, corpus, recipe, tmp_path / precision, 3000, precision)
        assert made.bytes / len(made) < share * per_row


def test_a_store_built_in_two_goes_has_the_same_rows(
    lm: LM, corpus: Corpus, recipe: Recipe, store: Store, tmp_path: Path
) -> None:
    fill(lm, corpus, recipe, tmp_path / "s", 2000)
    longer = fill(lm, corpus, recipe, tmp_path / "s", 6000)
    for name, x in longer.read(slice(0, 6000)).items():
        assert torch.equal(x, store.read(slice(0, 6000))[name])


def test_killed_and_started_again_it_is_bit_identical(tmp_path: Path) -> None:
    def start(name: str) -> Child:
        return Child(tmp_path / "log", "store_child", tmp_path / name)

    began = time.monotonic()
    start("whole").finish()
    took = time.monotonic() - began
    rng = random.Random(0)
    for _ in range(4):
        child = start("killed")
        child.wait_for_lines(1)
        time.sleep(rng.uniform(0, 0.5 * took))
        child.kill()
    start("killed").finish()
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert len(files(tmp_path / "whole")) > 5

    def manifest(folder: Path) -> dict:
        values = json.loads((folder / "manifest.json").read_text())
        return {k: v for k, v in values.items() if k not in ("seconds", "written")}

    assert manifest(tmp_path / "killed") == manifest(tmp_path / "whole")


def damage(folder: Path) -> None:
    first, second, third = sorted(folder.glob("shard-*"))[:3]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    content = bytearray(third.read_bytes())
    content[-1] ^= 1
    third.write_bytes(content)


def test_verify_names_damage_and_repair_mends_only_that(
    lm: LM, corpus: Corpus, recipe: Recipe, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    fill(lm, corpus, recipe, folder, 6000)
    whole = files(folder)
    assert all(isinstance(found, Shard) for found in verify(folder))
    damage(folder)
    kept = {p.name: p.stat().st_mtime_ns for p in sorted(folder.glob("shard-*"))[2:]}
    with pytest.raises(UserError, match=r"damaged.*missing"):
        Store(folder)
    found = [f for f in verify(folder) if isinstance(f, Damage)]
    assert [f.what.split()[0] for f in found] == ["is", "has", "is"]
    assert "missing" in found[0].what and "bytes" in found[1].what and "altered" in found[2].what
    said = list(repair(lm, corpus, folder, found))
    assert said == [f"shard-0000{i}.safetensors: made again" for i in range(3)]
    assert files(folder) == whole
    for name, written in list(kept.items())[1:]:
        assert (folder / name).stat().st_mtime_ns == written
    Store(folder)


def test_repair_refuses_text_that_has_changed(
    lm: LM, corpus: Corpus, recipe: Recipe, texts: list[str], tmp_path: Path
) -> None:
    fill(lm, corpus, recipe, tmp_path / "s", 3000)
    sorted((tmp_path / "s").glob("shard-*"))[-1].unlink()
    (found,) = [f for f in verify(tmp_path / "s") if isinstance(f, Damage)]
    other = open_corpus([text + "# more\n" * 3 for text in texts], held_out=0.25)
    with pytest.raises(UserError, match="has changed since"):
        list(repair(lm, other, tmp_path / "s", [found]))


def test_activations_of_something_else_are_refused(
    lm: LM, corpus: Corpus, recipe: Recipe, tmp_path: Path
) -> None:
    fill(lm, corpus, recipe, tmp_path / "s", 600)
    for other, why in (
        (replace(recipe, model="another"), "model"),
        (replace(recipe, seed=1), "seed 0 there, 1 asked for"),
        (replace(recipe, context=16), "context 32 there, 16 asked"),
        (replace(recipe, hookpoints=("embed",)), "hook points"),
    ):
        with pytest.raises(UserError, match=why):
            fill(lm, corpus, other, tmp_path / "s", 2000)
    other_text = open_corpus(["something else entirely, said at length " * 40], held_out=0.0)
    with pytest.raises(UserError, match="the text has changed"):
        fill(lm, other_text, recipe, tmp_path / "s", 2000)
    with pytest.raises(UserError, match="in fp32, asked for is bf16"):
        fill(lm, corpus, recipe, tmp_path / "s", 2000, "bf16")
    with pytest.raises(UserError, match=r"context 32 there, 16 asked"):
        train(lm, corpus, "layers.1", store=str(tmp_path / "s"), **{**SMALL, "context": 16})
    assert len(Store(tmp_path / "s")) < 1500


def test_a_second_writer_is_refused(lm: LM, corpus: Corpus, recipe: Recipe, tmp_path: Path) -> None:
    with (
        Harvest(lm, corpus, recipe, tmp_path / "s", tokens=600),
        pytest.raises(UserError, match="written by another process"),
    ):
        Harvest(lm, corpus, recipe, tmp_path / "s", tokens=600)


def test_a_full_disk_stops_cleanly_and_is_gone_on_from(
    lm: LM, corpus: Corpus, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fill(lm, corpus, recipe, tmp_path / "whole", 6000)
    real, calls = store_module.save_file, []

    def save(*args: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            args[1].write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(store_module, "save_file", save)
    with pytest.raises(UserError, match="No space left on device") as error:
        fill(lm, corpus, recipe, tmp_path / "s", 6000)
    assert "make room" in error.value.hint
    assert len(files(tmp_path / "s")) == 2
    assert not list((tmp_path / "s").glob(".*draft"))
    fill(lm, corpus, recipe, tmp_path / "s", 6000)
    assert files(tmp_path / "s") == files(whole.folder)


def test_what_the_disk_has_no_room_for_is_not_begun(
    lm: LM, corpus: Corpus, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"need .* GB on disk, .* GB is free") as error:
        Harvest(lm, corpus, recipe, tmp_path / "s", tokens=10**14)
    assert "choose at most" in error.value.hint
    assert not (tmp_path / "s").exists()


def test_a_folder_that_holds_something_else_is_left_alone(
    lm: LM, corpus: Corpus, recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(UserError, match=r"something else: thesis\.txt"):
        Harvest(lm, corpus, recipe, tmp_path, tokens=600)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_shard_name_cannot_lead_out_of_the_folder(
    lm: LM, corpus: Corpus, recipe: Recipe, tmp_path: Path
) -> None:
    fill(lm, corpus, recipe, tmp_path / "s", 600)
    path = tmp_path / "s" / "manifest.json"
    path.write_text(path.read_text().replace("shard-00000", "../shard-00000"))
    with pytest.raises(UserError, match="leads out of the folder"):
        Store(tmp_path / "s")


def test_batches_are_as_mixed_as_a_uniform_shuffle(lm: LM, corpus: Corpus, recipe: Recipe) -> None:
    feed = PoolFeed(lm, recipe.stream(lm, corpus, None), ["layers.1"], size=4096, batch=128, seed=0)
    batches = [next(feed).activations["layers.1"] for _ in range(30)]
    x = torch.cat(batches)
    x = x - x.mean(0)
    near = (x[1:] * x[:-1]).sum() / x.square().sum()
    order = torch.randperm(len(x))
    uniform = (x[order][1:] * x[order][:-1]).sum() / x.square().sum()
    assert abs(near - uniform) < 4 / len(x) ** 0.5
