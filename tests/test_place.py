"""From any place text goes on as it would have, and what came before is not tokenised again."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import BOS, tiny_tokenizer

from monosemy.activations import Damage, Harvest, Recipe, Store, check_text, repair, verify
from monosemy.corpus import Corpus, Document, Place, TokenBatch, TokenPolicy, TokenStream
from monosemy.corpus import open_corpus as open_texts
from monosemy.corpus import tokens as tokens_module
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.training.feed import PoolFeed, TextFeed

TOKENIZER, WITHOUT_BOS = tiny_tokenizer(), tiny_tokenizer(bos=False)
TENSORS = ("tokens", "attention_mask", "counted", "document", "start", "end")


@contextmanager
def sizes(block: int, group: int) -> Iterator[None]:
    """Make blocks of rows and groups of documents small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_module, "_SHUFFLED", block)
        patch.setattr(tokens_module, "_GROUP", group)
        patch.setattr(tokens_module, "_BEGINNING", group)
        yield


@contextmanager
def tokenised() -> Iterator[list[str]]:
    """Collect the texts that the tokenizer is given."""
    given: list[str] = []
    real = TokenStream._tokenise

    def tokenise(self: TokenStream, documents: list[Document]) -> Iterator[Any]:
        given.extend(document.text for document in documents)
        return real(self, documents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenStream, "_tokenise", tokenise)
        yield given


def assert_same(found: TokenBatch, expected: TokenBatch) -> None:
    for name in TENSORS:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.documents == expected.documents
    assert found.place == expected.place


# --- the stream -------------------------------------------------------------------------------


TEXT = st.one_of(
    st.text("ab é東\n", max_size=12),
    st.text("abcdef ", min_size=30, max_size=90),
    st.just(BOS),
)


@settings(max_examples=100)
@given(data=st.data())
def test_from_any_place_a_stream_goes_on_with_the_same_batches(data: st.DataObject) -> None:
    texts = data.draw(st.lists(TEXT, min_size=1, max_size=12))
    spans = data.draw(st.sampled_from([None, ((0, 3), (5, 9))]))
    documents = [Document(str(i), text + "x", spans) for i, text in enumerate(texts)]
    documents.insert(data.draw(st.integers(0, len(texts))), Document("empty", " "))
    stream = TokenStream(
        open_texts(documents),
        data.draw(st.sampled_from([TOKENIZER, WITHOUT_BOS])),
        part="all",
        context=data.draw(st.integers(2, 9)),
        rows=data.draw(st.integers(1, 4)),
        packed=data.draw(st.booleans()),
        policy=data.draw(st.sampled_from([TokenPolicy(), TokenPolicy(choose="random", first=3)])),
        seed=data.draw(st.sampled_from([None, 0, 7])),
        epochs=data.draw(st.integers(1, 3)),
    )
    with sizes(data.draw(st.integers(1, 9)), data.draw(st.integers(1, 60))):
        whole = list(stream)
        stop = data.draw(st.integers(0, len(whole) - 1))
        saved = json.loads(json.dumps(whole[stop].place.to_dict()))
        rest = list(stream.read(Place.from_dict(saved)))
        assert len(rest) == len(whole) - stop - 1
        for found, expected in zip(rest, whole[stop + 1 :], strict=True):
            assert_same(found, expected)
        assert stream.place_after(stop + 1) == whole[stop].place


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("seed", [None, 3])
def test_documents_without_a_token_do_not_shift_a_place(packed: bool, seed: int | None) -> None:
    backend = tiny_tokenizer(bos=False)
    tokenise = TokenStream._tokenise

    def dropping(self: TokenStream, documents: list[Document]) -> Iterator[Any]:
        for document, table in zip(documents, tokenise(self, documents), strict=True):
            yield table[:, :0] if "drop" in document.text else table

    texts = ["drop it"] * 3 + [f"drop {i}" if i % 3 else f"line {i} of them" for i in range(30)]
    with pytest.MonkeyPatch.context() as patch, sizes(6, 20):
        patch.setattr(TokenStream, "_tokenise", dropping)
        stream = TokenStream(
            open_texts(texts),
            backend,
            part="all",
            context=5,
            rows=2,
            packed=packed,
            seed=seed,
            epochs=2,
        )
        whole = list(stream)
        assert len(whole) > 8
        for stop, batch in enumerate(whole):
            rest = list(stream.read(batch.place))
            assert len(rest) == len(whole) - stop - 1
            for found, expected in zip(rest, whole[stop + 1 :], strict=True):
                assert_same(found, expected)


def long_stream(epochs: int | None = None, **options: Any) -> TokenStream:
    texts = [f"def function_{i}(value):\n    return value + {i}\n" * (i % 5) for i in range(2000)]
    options = {"part": "all", "context": 32, "rows": 8, "seed": 0, **options}
    return TokenStream(open_texts(texts), TOKENIZER, epochs=epochs, **options)


@pytest.mark.parametrize("packed", [True, False])
def test_going_on_tokenises_one_block_and_not_what_came_before(packed: bool) -> None:
    stream = long_stream(packed=packed)
    longest, group, block = 200, 1000, 64
    with sizes(block, group):
        batches = list(itertools.islice(stream, 401))
        with tokenised() as before:
            next(itertools.islice(stream, 400, None))
        of_block = 4 * 32 * block if packed else longest * block  # characters, 4 a token at most
        for stop in (399, 397, 42):  # a block's end, amid one, amid an earlier one
            with tokenised() as given:
                assert_same(next(stream.read(batches[stop].place)), batches[stop + 1])
            assert sum(map(len, given)) <= of_block + group + 2 * longest
        assert sum(map(len, before)) > 10 * (of_block + group)


def test_a_place_in_another_epoch_is_found_there() -> None:
    stream = long_stream()
    with sizes(64, 1000):
        batches = itertools.islice(stream, 2000)
        last = next(batch for batch in batches if batch.place.epoch == 1 and batch.place.batch)
        with tokenised() as given:
            next(stream.read(last.place))
        assert 0 < sum(map(len, given)) < 20_000


def test_text_that_changed_at_a_place_is_noticed() -> None:
    def lines(texts: list[str]) -> TokenStream:
        corpus = open_texts(texts)
        return TokenStream(corpus, TOKENIZER, part="all", context=8, rows=4, seed=None)

    with sizes(16, 100):
        texts = [f"line {i} of text" for i in range(100)]
        *_, batch = itertools.islice(lines(texts), 20)
        number = batch.place.document
        assert batch.place.block and 0 < number < 99
        edited = [*texts[:number], texts[number] + "!", *texts[number + 1 :]]
        for changed in (edited, texts[:5], texts[:number], texts[1:]):
            with pytest.raises(UserError, match="has changed since"):
                next(lines(changed).read(batch.place))
        next(lines(texts[: number + 50]).read(batch.place))


def test_a_place_of_another_epoch_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be gone on with"):
        next(long_stream(1).read(Place(epoch=1, block=1)))


GOOD = Place(1, 2, 3, 4, 5, 6).to_dict()


@pytest.mark.parametrize(
    "values",
    [
        {**GOOD, "token": -1},
        {**GOOD, "token": 1.5},
        {**GOOD, "token": "1"},
        {**GOOD, "other": 1},
        {k: v for k, v in GOOD.items() if k != "block"},
        {},
    ],
)
def test_what_is_no_place_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="is no place in a text"):
        Place.from_dict(values)


def test_a_checksum_changes_with_text_and_its_order() -> None:
    texts = ["one line of text", "another line"]
    first = TokenStream(open_texts(texts), TOKENIZER, part="all", seed=None)
    other = TokenStream(open_texts(texts[::-1]), TOKENIZER, part="all", seed=None)
    edited = TokenStream(open_texts([texts[0], "another lime"]), TOKENIZER, part="all", seed=None)
    assert (
        first.checksum() == TokenStream(first.corpus, TOKENIZER, part="all", seed=None).checksum()
    )
    assert len({stream.checksum() for stream in (first, other, edited)}) == 3


# --- training ---------------------------------------------------------------------------------


@pytest.fixture
def recipe(lm: LM, corpus: Corpus) -> Recipe:
    return Recipe(
        model=lm.name,
        hookpoints=("layers.1",),
        context=32,
        corpus=corpus.describe(),
        tokens_at_once=256,
    )


@pytest.mark.parametrize("kind", [PoolFeed, TextFeed])
def test_a_feed_goes_on_at_its_place_and_one_of_before_by_counting(
    kind: Any, lm: LM, corpus: Corpus, recipe: Recipe
) -> None:
    options = {"size": 512, "batch": 128, "seed": 0} if kind is PoolFeed else {}

    def feed(state: dict[str, Any] | None = None) -> Any:
        state = copy.deepcopy(state)  # a pool goes on in the state's own tensors
        return kind(lm, recipe.stream(lm, corpus, None), ["layers.1"], state=state, **options)

    with sizes(32, 100):
        whole = feed()
        for _ in range(30):
            next(whole)
        state = copy.deepcopy(whole.state_dict())
        before = {"taken": 30, **{k: v for k, v in state.items() if k != "place"}}
        expected = [next(whole).activations["layers.1"] for _ in range(6)]
        with tokenised() as given:
            next(feed(state))
        text = sum(len(document.text) for document in corpus.documents("train"))
        assert state["place"]["epoch"] == 0 and sum(map(len, given)) < text / 2
        for source in (feed(state), feed(before)):
            for x in expected:
                assert torch.equal(next(source).activations["layers.1"], x)


# --- stores -----------------------------------------------------------------------------------


def fill(
    lm: LM, corpus: Corpus, recipe: Recipe, folder: Path, rows: int = 4096, tokens: int = 4096
) -> Store:
    with Harvest(lm, corpus, recipe, folder, tokens=tokens, shard_bytes=2**15) as harvest:
        harvest.grow(rows)
    return Store(folder)


def manifest(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / "manifest.json").read_text())
    return {k: v for k, v in values.items() if k not in ("seconds", "written")}


def forget_places(folder: Path) -> None:
    """Make a store as it was before there were places."""
    values = json.loads((folder / "manifest.json").read_text())
    del values["text"]
    for shard in values["shards"]:
        del shard["place"]
    (folder / "manifest.json").write_text(json.dumps(values))


def test_a_store_grows_from_its_last_shards_place(
    lm: LM, corpus: Corpus, recipe: Recipe, tmp_path: Path
) -> None:
    text = sum(len(document.text) for document in corpus.documents("train"))
    with sizes(32, 100):
        whole = fill(lm, corpus, recipe, tmp_path / "whole")
        for name in ("s", "older"):
            fill(lm, corpus, recipe, tmp_path / name, 3000)
        forget_places(tmp_path / "older")
        with tokenised() as given:
            fill(lm, corpus, recipe, tmp_path / "s")
        assert 0 < sum(map(len, given)) < 0.7 * text
        older = fill(lm, corpus, recipe, tmp_path / "older")
    assert manifest(tmp_path / "s") == manifest(tmp_path / "whole")
    assert [s.sha256 for s in older.shards] == [s.sha256 for s in whole.shards]
    assert older.shards[0].place is None
    assert older.shards[-1].place == whole.shards[-1].place


def test_a_shard_is_mended_from_the_place_before_it(
    lm: LM, corpus: Corpus, recipe: Recipe, tmp_path: Path
) -> None:
    with sizes(32, 100):
        whole = fill(lm, corpus, recipe, tmp_path / "s")
        before = manifest(whole.folder)
        for forget in (False, True):
            if forget:
                forget_places(whole.folder)
            (whole.folder / whole.shards[3].name).unlink()
            damages = [found for found in verify(whole.folder) if isinstance(found, Damage)]
            with tokenised() as given:
                assert list(repair(lm, corpus, whole.folder, damages)) == [
                    f"{whole.shards[3].name}: made again"
                ]
            if not forget:
                assert manifest(whole.folder) == before
                little = sum(map(len, given))
    assert 2 * little < sum(map(len, given))
    assert Store(whole.folder).shards[3] == whole.shards[3]


def test_looking_whether_text_is_the_stores_tokenises_little_of_it(
    lm: LM, corpus: Corpus, recipe: Recipe, texts: list[str], tmp_path: Path
) -> None:
    store = fill(lm, corpus, recipe, tmp_path / "s", 1024)
    other = open_texts([*texts[:-1], "another"], held_out=0.25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_module, "_BEGINNING", 1000)
        store.text = store.recipe.stream(lm, corpus).checksum() if store.recipe else None
        with tokenised() as given:
            check_text(store, lm, corpus)
    assert 1000 <= sum(map(len, given)) < 1500
    for text in (Store(store.folder).text, None):
        store.text = text
        with pytest.raises(UserError, match="the text has changed"):
            check_text(store, lm, other)


def test_a_store_with_a_place_that_is_none_is_refused(
    lm: LM, corpus: Corpus, recipe: Recipe, tmp_path: Path
) -> None:
    fill(lm, corpus, recipe, tmp_path / "s", 600)
    values = json.loads((tmp_path / "s" / "manifest.json").read_text())
    values["shards"][0]["place"]["block"] = -1
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="is no place in a text"):
        Store(tmp_path / "s")
