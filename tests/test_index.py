"""The index on disk: whole, the same however it was made, and every question answered from it."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from children import Child
from hypothesis import given, settings
from hypothesis import strategies as st
from index_parts import CONTEXT, synthetic_parts

from monosemy.artefact import MANIFEST, map_tensors, new_artefact, new_tensors
from monosemy.coders import Dictionary
from monosemy.corpus import Document, ShardSource, open_corpus
from monosemy.errors import UserError
from monosemy.index import (
    Index,
    Name,
    add_name,
    build,
    build_index,
    join_index,
    look,
    merge_names,
    read_names,
)
from monosemy.index.examples import QUANTILES, Rows, _peaks
from monosemy.index.join import join_parts
from monosemy.index.part import Entries, Misses, Part
from monosemy.lm import LM
from monosemy.training import Run

TOKENS = 3000


@pytest.fixture(scope="module")
def index(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("index") / "index"
    return build_index(run.dictionary, run.lm, run.corpus, folder, tokens=TOKENS)


@pytest.fixture(scope="module")
def dense(run: Run, index: Index) -> np.ndarray:
    """[width, places] computed the plain way, row by row of the index's own token table."""
    rows = torch.from_numpy(np.array(index.text.ids)).long().view(-1, index.text.context)
    x = run.lm.capture(rows, ["layers.1"])["layers.1"]
    z = run.dictionary.encode(x.reshape(-1, x.shape[-1]))
    z[torch.from_numpy(~np.array(index.text.counted))] = 0
    return z.T.numpy()


def same(a: Index, b: Index) -> None:
    """Say that two indexes hold the same, byte for byte."""
    for name, checksum in a.manifest["files"].items():
        assert b.manifest["files"][name] == checksum, name


# --- what it holds ----------------------------------------------------------------------------


def test_every_entry_is_there_at_its_place(index: Index, dense: np.ndarray) -> None:
    np.testing.assert_allclose(index.to_scipy().toarray(), dense, rtol=1e-3, atol=1e-4)
    assert index.n_tokens == int(index.text.counted.sum()) >= TOKENS


def test_places_lead_back_to_the_text(run: Run, index: Index) -> None:
    texts = {d.id: d.text for d in run.corpus.documents("held_out")}
    table = index.text
    inside = np.flatnonzero(table.document >= 0)
    for place in inside[:: len(inside) // 200].tolist():
        name = table.names[table.document[place]]
        assert table.text(int(table.document[place])) == texts[name]
        shown = texts[name][table.start[place] : table.end[place]]
        word = table.vocabulary[table.ids[place]]
        assert shown == word or "\ufffd" in word  # bytes of a character


def test_rows_of_a_document_follow_each_other(index: Index) -> None:
    table = index.text
    for document in range(len(table.names)):
        places = table.places_of(document)
        assert (np.diff(table.start[places]) >= 0).all()
        between = table.document[places[0] : places[-1] + 1]
        assert set(between.tolist()) <= {document, -1}  # nothing but BOS of rows between


def test_figures_of_activations(index: Index) -> None:
    for feature in index.live[:20]:
        _, values = index.entries(feature)
        view = index[feature]
        assert view.max == values.max() and sum(view.histogram[1]) == len(values)
        assert view.mean_active == pytest.approx(float(values.mean()), rel=1e-5)
        counts, _ = np.histogram(values, bins=len(view.histogram[1]), range=(0, view.max))
        assert np.abs(counts - view.histogram[1]).sum() <= 2  # an edge may round either way
        expected = np.quantile(values, QUANTILES)
        np.testing.assert_allclose(list(view.quantiles.values()), expected, rtol=1e-5)


def test_examples_are_of_their_kind(index: Index) -> None:
    for feature in index.live[:40]:
        view = index[feature]
        places, values = index.entries(feature)
        peaks = [e.activations[e.peak] for e in view.exemplars]
        assert peaks and peaks[0] == pytest.approx(float(values.max()))
        strongest = [max((e.activations[e.peak] for e in g), default=0) for g in view.groups]
        weakest = [min((e.activations[e.peak] for e in g), default=9e9) for g in view.groups]
        for above, below in zip(weakest, strongest[1:], strict=False):
            assert above >= below
        assert all(e.activations[e.peak] > 0 for e in view.random)
        for exemplar, score in view.near_misses:
            assert exemplar.place not in set(places.tolist()) and np.isfinite(score)
            assert exemplar.activations[exemplar.peak] == 0


def test_near_misses_are_the_nearest(run: Run, index: Index) -> None:
    """In the first batch, which is looked at, none that did not fire is nearer than the kept."""
    stream = run.dictionary.provenance.stream(run.lm, run.corpus, "held_out", shuffled_rows=False)
    batch = next(iter(stream))
    x = run.lm.capture(batch.tokens, ["layers.1"])["layers.1"][batch.counted]
    pre = run.dictionary.coder.pre_activations(x)
    pre[run.dictionary.encode(x) > 0] = -torch.inf
    best = pre.max(0).values
    for feature in range(index.width):
        misses = index[feature].near_misses
        if best[feature] > -torch.inf:
            assert misses[0][1] >= float(best[feature]) - 1e-3
        scores = [score for _, score in misses]
        assert scores == sorted(scores, reverse=True)


def test_no_text_is_shown_twice(lm: LM, run: Run, tmp_path: Path) -> None:
    """Twenty copies of a document under other names are one context, not twenty."""
    text = "def f(a):\n    return a + 1\n\n\nclass B:\n    x = 'some words here'\n" * 5
    corpus = open_corpus([Document(f"copy {i}", text) for i in range(20)], held_out=0.0)
    index = build_index(run.dictionary, lm, corpus, tmp_path / "i", part="all")
    for feature in index.live[:20]:
        shown = [
            "".join(e.tokens[max(e.peak - 5, 0) : e.peak + 1]) for e in index[feature].exemplars
        ]
        assert len(shown) == len(set(shown))


@given(
    places=st.lists(st.integers(0, 400), min_size=1, unique=True).map(sorted),
    context=st.integers(1, 70),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_peaks_by_brute_force(places: list[int], context: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(1, 5, len(places)).astype(np.float32)
    found, strongest = _peaks(np.array(places), values, context)
    windows: dict[tuple[int, int], tuple[float, int]] = {}
    for place, value in zip(places, values.tolist(), strict=True):
        key = place // context, place % context // 32
        if value > windows.get(key, (0, 0))[0]:
            windows[key] = value, place
    assert list(zip(strongest.tolist(), found.tolist(), strict=True)) == list(windows.values())


def test_different_puts_other_documents_first() -> None:
    ids = np.arange(40) % 7
    ids[20:26] = ids[:6]  # the text before place 25 is that before place 5
    rows = Rows(40, ids, np.repeat([0, 1], 20))
    peaks = np.array([5, 25, 7, 30])
    assert rows.different(peaks, 3).tolist() == [5, 30, 7]
    assert rows.different(peaks, 2).tolist() == [5, 30]


# --- how it is made ---------------------------------------------------------------------------


def test_parts_change_nothing(
    run: Run, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_PART_ENTRIES", 500)
    monkeypatch.setattr("monosemy.index.join._BLOCK", 300)
    many = build_index(run.dictionary, run.lm, run.corpus, tmp_path / "index", tokens=TOKENS)
    # Where nearly fires is looked for in every eighth batch of a part, so these may differ.
    for name in ("entries", "tokens", "text", "vocabulary"):
        name += ".safetensors"
        assert many.manifest["files"][name] == index.manifest["files"][name]
    for feature in index.live:
        assert replace(many[feature], near_misses=[]) == replace(index[feature], near_misses=[])
    assert not list(tmp_path.glob(".*"))  # parts are gone


def test_interrupted_it_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_PART_ENTRIES", 500)
    monkeypatch.setattr("monosemy.coders.provenance.TOKENS_AT_ONCE", 128)
    whole = build_index(run.dictionary, run.lm, run.corpus, tmp_path / "a" / "index", tokens=TOKENS)
    looked: list[int] = []
    activations = build.counted_activations

    def failing(*args: object) -> object:
        looked.append(1)
        if len(looked) == 6:
            raise KeyboardInterrupt
        return activations(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "counted_activations", failing)
    args = (run.dictionary, run.lm, run.corpus, tmp_path / "b" / "index")
    with pytest.raises(KeyboardInterrupt):
        build_index(*args, tokens=TOKENS)
    assert not (tmp_path / "b" / "index").exists()
    first = len(looked)
    same(whole, build_index(*args, tokens=TOKENS))
    total = len(looked)
    assert total - first < first + 60  # it did not begin anew
    looked[:] = [1] * 10
    build_index(*args, tokens=TOKENS)
    assert len(looked) - 10 > total - first  # a finished one is made anew when asked for


def test_another_recipe_does_not_take_up_the_parts(
    run: Run, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(run.dictionary, run.lm, run.corpus, tmp_path / "index", tokens=500)
    other = build_index(run.dictionary, run.lm, run.corpus, tmp_path / "index", tokens=TOKENS)
    same(index, other)


def test_killed_at_any_moment_it_ends_the_same(tmp_path: Path) -> None:
    def start(name: str) -> Child:
        return Child(tmp_path / "log", "index_child", tmp_path / name)

    start("a").finish()
    for batches in (0, 4, 9):
        child = start("b")
        child.wait_for_lines(batches)
        child.kill()
    start("b").finish()
    same(Index.open(tmp_path / "a" / "index"), Index.open(tmp_path / "b" / "index"))


def test_shards_hold_what_the_whole_holds(run: Run, tmp_path: Path) -> None:
    """One document a row: then a row does not depend on which documents are beside it."""
    dictionary = replace(
        run.dictionary, provenance=replace(run.dictionary.provenance, packed=False)
    )
    lm, corpus = run.lm, run.corpus
    whole = build_index(dictionary, lm, corpus, tmp_path / "whole", tokens=10**6)
    for number in (1, 2, 3):
        look(dictionary, lm, corpus, tmp_path / "index", tokens=10**6, shard=(number, 3))
        if number < 3:
            with pytest.raises(UserError, match="3-of-3 missing"):
                join_index(lm, tmp_path / "index")
    joined = join_index(lm, tmp_path / "index")
    assert sorted(joined.text.names) == sorted(whole.text.names)
    assert joined.n_tokens == whole.n_tokens
    np.testing.assert_array_equal(joined.counts, whole.counts)
    for feature in whole.live[:20]:
        a, b = (np.sort(i.entries(feature)[1]) for i in (joined, whole))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_shards_are_a_partition() -> None:
    source = open_corpus([f"text {i}" for i in range(50)], held_out=0.0).source
    names = [[d.id for d in ShardSource(source, i, 4).read(None)] for i in (1, 2, 3, 4)]
    assert sorted(name for of in names for name in of) == sorted(d.id for d in source.read(None))
    with pytest.raises(UserError, match="no shard 5/4"):
        ShardSource(source, 5, 4)


def test_what_people_said_outlives_the_index(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index = build_index(run.dictionary, run.lm, run.corpus, folder, tokens=200)
    add_name(folder, Name(3, "three", "me", "2026-01-01T00:00:00"))
    index.write_table("concepts", [{"feature": 4, "name": "loop"}])
    again = build_index(run.dictionary, run.lm, run.corpus, folder, tokens=400)
    assert again.names == {3: ["three"]}  # concepts were of the other text
    again.verify()


def test_joining_holds_a_block_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory does not grow with the entries: four times as many, mapped, not held."""
    monkeypatch.setattr("monosemy.index.join._BLOCK", 2**13)
    peaks = []
    for number in (4, 16):
        parts = synthetic_parts(tmp_path / f"parts-{number}", parts=number)
        tracemalloc.start()
        join_parts(parts, tmp_path / f"index-{number}", {"context": CONTEXT}, ["x"])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


def test_parts_joined_by_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monosemy.index.join._BLOCK", 1000)
    folders = synthetic_parts(tmp_path / "parts", parts=3, rows=8)
    join_parts(folders, tmp_path / "index", {"context": CONTEXT}, ["x"])
    index, size = Index.open(tmp_path / "index"), 8 * CONTEXT
    parts = [Part.open(folder) for folder in folders]
    for feature in range(index.width):
        own = [slice(*p.entries.offsets[feature : feature + 2]) for p in parts]
        places = [
            p.entries.places[s] + i * size for i, (p, s) in enumerate(zip(parts, own, strict=True))
        ]
        values = [p.entries.values[s] for p, s in zip(parts, own, strict=True)]
        np.testing.assert_array_equal(index.entries(feature)[0], np.concatenate(places))
        np.testing.assert_array_equal(index.entries(feature)[1], np.concatenate(values))


# --- questions --------------------------------------------------------------------------------


def test_where_by_brute_force(index: Index, dense: np.ndarray) -> None:
    place = int(np.flatnonzero(index.text.counted)[len(index.text) // 2])
    token = index.text.vocabulary[index.text.ids[place]]
    here = (np.array(index.text.ids) == index.text.ids[place]) & np.array(index.text.counted)
    fires = dense > 0
    for match in index.where(token=token, fewest=1):
        both = int((fires[match.feature] & here).sum())
        assert match.both == both
        assert match.precision == pytest.approx(both / fires[match.feature].sum(), abs=0.02)
        assert match.recall == pytest.approx(both / here.sum())
        assert match.lift == pytest.approx(match.precision / (here.sum() / index.n_tokens))
    f1 = [match.f1 for match in index.where(token=token, fewest=1)]
    assert f1 == sorted(f1, reverse=True)


def test_tokens_of_a_match_by_brute_force(index: Index) -> None:
    for expression in (r"[a-z]+\w", r"\s+", r"[^a-z]", r"a?"):
        found = index.tokens_where(text=expression)
        table, expected = index.text, []
        for place in np.flatnonzero(table.counted).tolist():
            text = table.text(int(table.document[place]))
            spans = [m.span() for m in re.finditer(expression, text) if m.group()]
            start, end = int(table.start[place]), int(table.end[place])
            if any(start < last and first < end for first, last in spans):
                expected.append(place)
        assert found.tolist() == expected


def test_coactivation(index: Index, dense: np.ndarray) -> None:
    fires = (index.to_scipy().toarray() > 0).astype(int)
    chosen = index.live[:5]
    found = index.coactivation(chosen)
    np.testing.assert_array_equal(found.joint, fires[chosen] @ fires.T)
    assert [found.jaccard[i, f] for i, f in enumerate(chosen)] == [1.0] * 5
    either = (fires[chosen][:, None] | fires[None]).sum(2)
    np.testing.assert_allclose(found.jaccard, found.joint / np.maximum(either, 1))


def test_slices_agree(index: Index) -> None:
    chosen = index.live[3:6]
    places = np.flatnonzero(index.text.counted)[5:200:3]
    some = index.to_scipy(chosen).toarray()
    np.testing.assert_array_equal(some, index.to_scipy().toarray()[chosen])
    np.testing.assert_array_equal(index.to_numpy(chosen, places), some[:, places])
    table = index.to_arrow(chosen)
    assert table.num_rows == int(index.counts[chosen].sum())
    row = table.slice(7, 1).to_pylist()[0]
    assert some[chosen.index(row["feature"]), row["place"]] == np.float32(row["activation"])
    assert index.text.vocabulary[index.text.ids[row["place"]]] == row["token"]


def test_a_text_fires_what_it_fires_in_the_index(run: Run, index: Index, dense: np.ndarray) -> None:
    """The beginning of a row typed in again: the same features, as strongly."""
    table = index.text
    first = next(
        row
        for row in range(0, len(table), table.context)
        if table.document[row] < 0 and len(set(table.document[row + 1 : row + 9].tolist())) == 1
    )
    places = np.arange(first + 1, first + 9)
    text = "".join(table.words(places))
    found = index.top(text, run.dictionary, run.lm)
    assert "".join(found.tokens) == text
    if found.tokens == table.words(places):  # unless other tokens make up the same text
        for number, place in enumerate(places.tolist()):
            expected = {f: dense[f, place] for f in np.flatnonzero(dense[:, place]).tolist()}
            assert dict(found.by_token[number]) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    for feature in found.overall:
        assert max(found.activations(feature.feature)) == feature.max
        assert found.activations(feature.feature)[feature.token] == feature.max


def test_a_long_text_is_cut_as_in_training(run: Run, index: Index) -> None:
    text = "def a(b):\n    return b\n" * 40
    found = index.top(text, run.dictionary, run.lm)
    assert "".join(found.tokens) == text
    body = run.dictionary.provenance.context - 1
    again = index.top("".join(found.tokens[body : 2 * body]), run.dictionary, run.lm)
    if again.tokens == found.tokens[body : 2 * body]:
        for a, b in zip(again.by_token, found.by_token[body : 2 * body], strict=True):
            assert dict(a) == pytest.approx(dict(b), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("text", ["", "  \n", "x" * 30_000])
def test_a_text_that_cannot_be_looked_at(run: Run, index: Index, text: str) -> None:
    with pytest.raises(UserError, match=r"empty|characters"):
        index.top(text, run.dictionary, run.lm)


def test_search(index: Index, tmp_path: Path) -> None:
    strongest = {f: index[f].exemplars[0] for f in index.live}
    peaks = {f: e.tokens[e.peak].strip() for f, e in strongest.items()}
    feature, word = next((f, word) for f, word in peaks.items() if word.isalpha())
    found = index.search(word, count=index.width)
    assert feature in [hit.feature for hit in found]
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    assert index.search("no such words anywhere") == [] == index.search("  ")
    copy = Index.open(shutil.copytree(index.folder, tmp_path / "index"))
    dead = int(np.flatnonzero(copy.counts == copy.counts.min())[0])
    add_name(copy.folder, Name(dead, "Zebra stripes", "me", "2026-01-01"))
    assert [hit.feature for hit in copy.search("stripes zebra")] == [dead]


# --- names ------------------------------------------------------------------------------------


def test_names_are_the_latest_of_each(tmp_path: Path) -> None:
    for at, by, name in [(1, "a", "x"), (3, "a", "z"), (2, "a", "y"), (4, "b", "w"), (5, "c", "v")]:
        add_name(tmp_path, Name(7, name, by, f"2026-01-0{at}"))
    assert [n.name for n in read_names(tmp_path)[7]] == ["z", "w", "v"]
    add_name(tmp_path, Name(7, "", "b", "2026-01-06"))
    assert [n.name for n in read_names(tmp_path)[7]] == ["z", "v"]


def test_merging_names(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.mkdir()
    theirs.mkdir()
    add_name(mine, Name(1, "one", "a", "1"))
    add_name(theirs, Name(1, "one", "a", "1"))
    add_name(theirs, Name(2, "two\n</script>", "b", "2"))
    assert merge_names(mine, theirs / "human.jsonl", width=10) == 1
    assert merge_names(mine, theirs / "human.jsonl", width=10) == 0
    assert read_names(mine)[2][0].name == "two\n</script>"
    with pytest.raises(UserError, match="names feature 2"):
        merge_names(mine, theirs / "human.jsonl", width=2)
    with pytest.raises(UserError, match="no file"):
        merge_names(mine, theirs / "other.jsonl", width=2)
    (theirs / "human.jsonl").write_text('{"feature": 1}\nnonsense\n')
    with pytest.raises(UserError, match="line 2"):
        merge_names(mine, theirs / "human.jsonl", width=2)


# --- bad input --------------------------------------------------------------------------------


def test_an_index_of_another_dictionary_is_refused(run: Run, index: Index, tmp_path: Path) -> None:
    other = Dictionary.from_pretrained(run.dictionary.save_pretrained(tmp_path / "dictionary"))
    shutil.copytree(index.folder, tmp_path / "index")
    assert len(Index.open(tmp_path)) == 96
    other.coder.b_enc[5] += 1e-3
    other.save_pretrained(tmp_path / "dictionary")
    with pytest.raises(UserError, match="another dictionary") as caught:
        Index.open(tmp_path)
    assert "monosemy index" in caught.value.hint


@pytest.mark.parametrize("name", ["entries", "tokens", "text", "examples", "vocabulary"])
def test_damaged_files(index: Index, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(index.folder, tmp_path / "index")
    path = folder / f"{name}.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="damaged"):
        Index.open(folder)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="checksum differs"):
        Index.open(folder).verify()
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        Index.open(folder)


def test_questions_that_cannot_be_answered(index: Index) -> None:
    with pytest.raises(UserError, match="no feature 96"):
        index[96]
    with pytest.raises(UserError, match="no feature -1"):
        index.exemplars(-1)
    with pytest.raises(UserError, match="nothing in the index's text"):
        index.where(token="no such token")
    with pytest.raises(UserError, match="no regular expression"):
        index.where(text="((")
    for both in ({}, {"token": "a", "text": "b"}):
        with pytest.raises(UserError, match="say which tokens"):
            index.where(**both)


def test_the_way_is_clear_before_the_model_runs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="has no manifest"):
        build_index(run.dictionary, run.lm, run.corpus, tmp_path / "index")
    with pytest.raises(UserError, match="tokens is 0"):
        build_index(run.dictionary, run.lm, run.corpus, tmp_path / "new", tokens=0)
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_a_full_disk_leaves_the_old_index(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = (run.dictionary, run.lm, run.corpus, tmp_path / "index")
    old = build_index(*args, tokens=200)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match="No space left"):
        build_index(*args, tokens=400)
    monkeypatch.undo()
    same(old, Index.open(tmp_path / "index"))


# --- mapped files -----------------------------------------------------------------------------


def test_mapped_tensors_are_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    manifest: dict[str, object] = {}
    with new_artefact(tmp_path / "a", "thing", manifest) as draft:
        shapes = {"a": ("int64", 3), "b": ("bool", 5), "c": ("float32", 0), "d": ("uint8", 7)}
        arrays = new_tensors(draft / "x.safetensors", shapes)
        arrays["a"][:] = [1, -2, 3]
        arrays["b"][:] = [True, False, True, True, False]
        arrays["d"][:] = range(7)
    read = load_file(tmp_path / "a" / "x.safetensors")
    mapped = map_tensors(
        tmp_path / "a", "x.safetensors", json.loads((tmp_path / "a" / MANIFEST).read_text())
    )
    for name, (kind, size) in shapes.items():
        assert read[name].dtype == mapped[name].dtype == kind and len(read[name]) == size
        np.testing.assert_array_equal(read[name], mapped[name])
    assert read["a"].tolist() == [1, -2, 3]


def test_words_shared_and_alone(tmp_path: Path) -> None:
    """Feature 0 fires on every colour, 1 to 3 on one each, 4 on anything."""
    words = ["red", "green", "blue", "other"]
    rng = np.random.default_rng(0)
    kinds = rng.integers(4, size=(60, CONTEXT))
    pieces = [[f" {words[k]}" for k in row] for row in kinds]
    edges = [np.cumsum([0, *map(len, row)]) for row in pieces]
    fires = [kinds.ravel() < 3, *(kinds.ravel() == k for k in range(3)), kinds.ravel() >= 0]
    places = [np.flatnonzero(f).astype(np.int32) for f in fires]
    columns = {
        "ids": kinds.ravel().astype(np.int32),
        "document": np.repeat(np.arange(60, dtype=np.int32), CONTEXT),
        "start": np.concatenate([e[:-1] for e in edges]).astype(np.int32),
        "end": np.concatenate([e[1:] for e in edges]).astype(np.int32),
        "counted": np.ones(kinds.size, bool),
    }
    offsets = np.cumsum([0, *map(len, places)])
    entries = Entries(offsets, np.concatenate(places), np.ones(offsets[-1], np.float32))
    names, texts = [str(i) for i in range(60)], ["".join(row) for row in pieces]
    part = Part(entries, Misses.none(5), columns, names, texts)
    part.save(tmp_path / "part", {"n_tokens": kinds.size})
    vocabulary = [f" {word}" for word in words]
    join_parts([tmp_path / "part"], tmp_path / "index", {"context": CONTEXT}, vocabulary)
    found = Index.open(tmp_path / "index").shared(words[:3])
    assert [match.feature for match in found.all] == [0, 4]
    assert (found.all[0].precision, found.all[0].recall) == (1.0, 1.0)
    assert {w: [m.feature for m in own] for w, own in found.own.items()} == {
        "red": [1],
        "green": [2],
        "blue": [3],
    }
    with pytest.raises(UserError, match="no set"):
        Index.open(tmp_path / "index").shared(["red", "red"])
    with pytest.raises(UserError, match="matches"):
        Index.open(tmp_path / "index").shared(["red", "purple"])
