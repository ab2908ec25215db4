"""Work done ahead in a thread is the same work; where time goes adds up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monosemy.activations import LiveActivations, Recipe, counted_activations
from monosemy.activations.ahead import Ahead
from monosemy.corpus import Corpus, Place, TokenStream
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.progress import Stages


@settings(max_examples=30)
@given(items=st.lists(st.integers(), max_size=30), depth=st.integers(1, 5))
def test_items_come_in_order(items: list[int], depth: int) -> None:
    ahead = Ahead(items, depth)
    assert list(ahead) == items
    assert list(ahead) == []


def test_an_error_comes_where_it_happened() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise UserError("the third file cannot be read")

    ahead = Ahead(source())
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(UserError, match="the third file"):
            next(ahead)


def test_source_and_consumer_work_at_the_same_time() -> None:
    """Twenty items of 10 ms each side take some 200 ms together, not 400."""
    both = threading.Event()
    inside = [0]

    def source() -> Iterator[int]:
        for number in range(20):
            inside[0] += 1
            time.sleep(0.01)
            inside[0] -= 1
            yield number

    for _ in Ahead(source()):
        for _ in range(10):
            if inside[0]:
                both.set()
            time.sleep(0.001)
    assert both.is_set()


def test_nobody_works_for_one_who_left() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(10**9):
            made.append(number)
            yield number

    ahead = Ahead(source(), depth=2)
    next(ahead)
    thread = ahead._thread
    ahead.close()
    thread.join(5)
    assert not thread.is_alive() and len(made) < 10


def test_text_read_ahead_gives_the_same_activations(
    lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(model=lm.name, hookpoints=("layers.1",), context=32, corpus=corpus.describe())
    stream = recipe.stream(lm, corpus)
    first = next(iter(stream)).place

    def given() -> list[tuple[torch.Tensor, Place]]:
        source = LiveActivations(lm, stream, ["layers.1"], place=first)
        found = [(x["layers.1"], source.place) for x in source]
        assert len(list(source)) == len(found)  # each iteration begins at the same place
        return found

    plain = given()
    read = stream.read
    monkeypatch.setattr(stream, "read", lambda place: Ahead(read(place)))
    ahead = given()
    assert len(plain) == len(ahead) > 1
    for (one, place), (other, same_place) in zip(plain, ahead, strict=True):
        assert torch.equal(one, other)
        assert place == same_place
    assert len({place for _, place in ahead}) == len(ahead)


def test_stages_add_up_and_inner_ones_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("monosemy.progress.time.perf_counter", lambda: now[0])
    stages = Stages()
    with stages("training"):
        now[0] += 1
        with stages("model"):
            now[0] += 5
        now[0] += 2
    with stages("text"):
        now[0] += 2
    assert stages.seconds == {"model": 5, "training": 3, "text": 2}
    assert stages.told() == (
        "10.0 s: model 50%, training 30%, text 20%; most of the time the others wait for: model"
    )


@pytest.mark.parametrize("room", [1, 3, 100])
def test_passes_shrink_to_what_the_memory_holds(
    room: int, lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = TokenStream(corpus, lm.tokenizer, context=32, rows=16)
    batch = next(iter(stream))
    whole = counted_activations(lm, batch, ["layers.0", "layers.1"])
    capture, sizes = lm.capture, []

    def small(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        sizes.append(len(tokens))
        if len(tokens) > room:
            raise torch.OutOfMemoryError("no room")
        return capture(tokens, *args, **kwargs)

    monkeypatch.setattr(lm, "capture", small)
    monkeypatch.setattr(lm, "rows_at_once", None)
    for _ in range(2):
        found = counted_activations(lm, batch, ["layers.0", "layers.1"])
        for name, x in whole.items():
            torch.testing.assert_close(found[name], x)
    refused = sum(size > room for size in sizes)
    assert refused == {1: 4, 3: 3, 100: 0}[room]  # 16, 8, 4, 2 rows: never tried again


def test_no_room_for_one_row_is_said(
    lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(lm, "capture", none)
    monkeypatch.setattr(lm, "rows_at_once", None)
    batch = next(iter(TokenStream(corpus, lm.tokenizer, context=32, rows=4)))
    with pytest.raises(UserError, match="too little memory for one row of 32 tokens"):
        counted_activations(lm, batch, ["layers.1"])
