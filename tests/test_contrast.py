"""Contrast of paired texts: what is pooled, what is found where it was planted, and where not."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monosemy.cli.contrast import Command
from monosemy.corpus import Document, Pair
from monosemy.errors import UserError
from monosemy.evaluation import SuiteResult
from monosemy.evaluation.contrast import ACCURACY, AGAINST, contrast
from monosemy.interpret.contrast import (
    ALL,
    Contrast,
    contrast_features,
    prepare_pairs,
)
from monosemy.interpret.pooled import POOLINGS, REGIONS, cut_pair
from monosemy.training import Run

IDS = st.lists(st.integers(0, 3), max_size=30)


@settings(max_examples=200)
@given(IDS, IDS, st.integers(2, 20))
def test_regions_part_what_is_read(before: list[int], after: list[int], most: int) -> None:
    found = cut_pair(before, after, most)
    assert (found is None) == (before == after)
    if found is None:
        return
    changed, unchanged, whole = (REGIONS.index(name) for name in ("changed", "unchanged", "whole"))
    same = [cut.ids[cut.regions[unchanged]].tolist() for cut in found]
    assert same[0] == same[1]
    assert any(cut.regions[changed].any() for cut in found)
    for cut, text in zip(found, (before, after), strict=True):
        assert len(cut.ids) <= most and cut.regions[whole].all()
        assert not (cut.regions[changed] & cut.regions[unchanged]).any()
        kept = cut.ids.tolist()
        assert kept in [text[i : i + len(kept)] for i in range(len(text) - len(kept) + 1)]


def test_a_removed_token_leaves_nothing_changed_after() -> None:
    found = cut_pair([1, 2, 3, 4, 5], [1, 2, 4, 5], 10)
    assert found is not None
    names = ("changed", "unchanged")
    before, after = ({n: c.ids[c.regions[REGIONS.index(n)]].tolist() for n in names} for c in found)
    assert before == {"changed": [3], "unchanged": [4, 5]}
    assert after == {"changed": [], "unchanged": [4, 5]}


def test_long_texts_are_read_around_the_change() -> None:
    before = list(range(100))
    after = [*before[:60], 7, *before[60:]]
    found = cut_pair(before, after, 20)
    assert found is not None
    assert found[0].ids.tolist() == list(range(50, 70))
    assert found[1].ids.tolist() == [*range(50, 60), 7, *range(60, 69)]
    # The last token before has no partner that is read, so it is not compared, nor is it a change.
    assert found[0].regions[REGIONS.index("unchanged")].tolist() == [False] * 10 + [True] * 9 + [
        False
    ]
    assert not found[0].regions[REGIONS.index("changed")].any()


# Planted: what comes before ends in a string, what comes after does not.


def planted(n: int = 60, *, swapped: bool = False, at_random: bool = False) -> list[Pair]:
    rng = random.Random(0)
    pairs = []
    for i in range(n):
        text = f"def function_{i}(value):\n    return value + {i}\n"
        other = text.replace("return value", "'''Größe 東京'''\n    return value")
        turned = rng.random() < 0.5 if at_random else swapped
        texts = (text, other) if turned else (other, text)
        pairs.append(pair(texts, i, "CWE-1 planted"))
        pairs.append(pair((text, text.replace(f"+ {i}", f"+ {i + 1}")), i, "control"))
    return pairs


def pair(texts: tuple[str, str], number: int, label: str) -> Pair:
    before, after = (Document(f"{label}:{number}/{i}", t) for i, t in enumerate(texts))
    return Pair(before, after, {}, label, f"group {number // 3}")


def found_in(run: Run, pairs: list[Pair], **more: int) -> Contrast:
    made = prepare_pairs(run.dictionary, run.lm, pairs, most=100, **more)
    return contrast_features(made, run.dictionary, run.lm)


@pytest.fixture(scope="module")
def found(run: Run) -> Contrast:
    return found_in(run, planted())


def test_pooled_activations_are_those_of_each_text_by_itself(run: Run, found: Contrast) -> None:
    pooled = found.set.pooled
    bos = run.lm.tokenizer.bos_token_id  # type: ignore[union-attr]
    for text in (0, 1, 7, 50):
        cut = pooled.cuts[text]
        head = [] if bos is None else [bos]
        tokens = torch.tensor([[*head, *cut.ids.tolist()]])
        x = run.lm.capture(tokens, ["layers.1"])["layers.1"][0, len(head) :].float()
        z = run.dictionary.encode(x).numpy()
        for region, pool in POOLINGS:
            inside = cut.regions[REGIONS.index(region)]
            for mine, theirs in ((z, pooled.codes), (x.numpy(), pooled.raw)):
                row = theirs[region, pool][[text]]
                row = (row if isinstance(row, np.ndarray) else row.toarray())[0]
                some = mine[inside] if inside.any() else np.zeros((1, len(row)))
                want = some.max(0) if pool == "max" else some.mean(0)
                assert row == pytest.approx(want, abs=2e-4)


def test_halves_share_no_group_and_means_are_of_the_first(run: Run, found: Contrast) -> None:
    made = found.set
    assert not {*made.group[made.first]} & {*made.group[~made.first]}
    texts = [
        c for c, first in zip(made.pooled.cuts, np.repeat(made.first, 2), strict=True) if first
    ]
    seen = np.unique(np.concatenate([cut.ids for cut in texts]))
    assert {*made.pooled.token_means.nonzero()[0].tolist()} <= {*seen.tolist()}


def test_a_planted_difference_is_found_on_the_other_half(found: Contrast) -> None:
    best = found.best["CWE-1 planted"]
    assert best.accuracy == 1 and best.effect == 1 and best.q < 0.01 and best.p_max_t < 0.05
    assert best.accuracy_low == 1 and best.pairs == 30
    assert found.found["CWE-1 planted"] > 3
    assert found.discoveries > 5 * found.by_chance
    assert best.exemplar is not None and best.exemplar.activations[best.exemplar.peak] > 0
    assert f"/{0 if best.before else 1}" in best.exemplar.document
    assert all(f.q <= 0.05 for f in found.features)


def test_swapping_the_texts_of_every_pair_swaps_the_directions(run: Run, found: Contrast) -> None:
    other = found_in(run, planted(swapped=True))
    mine = {(f.label, f.feature, f.region, f.pool): f for f in found.features}
    theirs = {(f.label, f.feature, f.region, f.pool): f for f in other.features}
    both = mine.keys() & theirs.keys()
    assert len(both) > 3
    for key in both:
        if key[0] == "CWE-1 planted":
            assert mine[key].before != theirs[key].before
            assert mine[key].p == pytest.approx(theirs[key].p)
            assert mine[key].effect == pytest.approx(theirs[key].effect, abs=1e-6)


def test_where_the_order_is_random_little_is_found(run: Run) -> None:
    found = found_in(run, planted(at_random=True))
    assert found.discoveries <= 0.05 * found.tests
    assert found.best[ALL].accuracy_low < 0.5 < found.best[ALL].accuracy_high


def test_pairs_are_chosen_as_said(run: Run) -> None:
    pairs = planted(30)
    same = pair(("x", "x"), 1, "CWE-1 planted")
    made = prepare_pairs(run.dictionary, run.lm, [*pairs, pairs[0], same], most=20)
    assert made.dropped == {"copies": 1, "same tokens": 1, "above 20 of a class": 10}
    assert made.label.count("CWE-1 planted") == 20 and made.label.count("control") == 30
    again = prepare_pairs(run.dictionary, run.lm, [*pairs, pairs[0], same], most=20)
    assert [p.before.id for p in made.pairs] == [p.before.id for p in again.pairs]


def test_too_few_pairs_are_refused(run: Run) -> None:
    with pytest.raises(UserError, match="too few to compare"):
        prepare_pairs(run.dictionary, run.lm, planted(3))
    with pytest.raises(UserError, match="too few to compare"):
        prepare_pairs(run.dictionary, run.lm, [replace(p, group="one") for p in planted()])
    with pytest.raises(UserError, match="too few to compare"):
        prepare_pairs(run.dictionary, run.lm, [])
    with pytest.raises(UserError, match="no class has enough pairs: control"):
        found_in(run, [p for p in planted() if p.label == "control"])


@pytest.fixture(scope="module")
def result(run: Run) -> SuiteResult:
    return contrast(run.dictionary, run.lm, planted(), most=100)


def test_baselines_that_see_the_difference_tie_and_are_said_to(result: SuiteResult) -> None:
    for column in ("dictionary", "best neuron", "linear probe", "bag of tokens", "length"):
        assert result.value(ACCURACY, column) == 1
        assert result.value(AGAINST, column) > 0.9
    outcomes = {j.outcome for j in result.judgements if j.figure == ACCURACY}
    assert outcomes == {"ties with"}
    assert "ties with best neuron, linear probe, bag of tokens and length" in result.verdict
    json.dumps(result.series)


def test_a_difference_of_order_alone_is_no_matter_for_tokens_and_length(run: Run) -> None:
    pairs = []
    for i in range(60):
        a, b = f"value + {i}", f"function_{i} return"
        pairs.append(pair((f"{a} {b} {a}", f"{b} {a} {a}"), i, "CWE-2 order"))
    result = contrast(run.dictionary, run.lm, pairs, most=100)
    assert result.value(ACCURACY, "length") == 0.5
    assert result.value(ACCURACY, "linear probe") > 0.9
    assert {r.name for r in result.table.rows} >= {ACCURACY}
    assert AGAINST not in {r.name for r in result.table.rows}


def test_the_command_writes_what_it_found(
    run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run.dictionary.save_pretrained(folder)
    rows = [
        {"bad": p.before.text, "good": p.after.text, "kind": p.label, "from": p.group}
        for p in planted()
    ]
    table = tmp_path / "pairs.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Command(
        folder,
        pairs=str(table),
        columns="bad,good",
        label="kind",
        group="from",
        model=str(checkpoint),
        device="cpu",
    ).run()
    said = capsys.readouterr().out
    assert "CWE-1 planted" in said and "pairwise accuracy" in said
    written = json.loads((folder / "contrast.json").read_text())
    assert written["pairs"] == str(table) and written["judgements"]
    assert {f["label"] for f in written["series"]["best"]} == {"all", "CWE-1 planted"}
    with pytest.raises(UserError, match="pairs have two"):
        Command(folder, pairs=str(table), columns="bad").run()
    with pytest.raises(UserError, match="no column `before`"):
        Command(folder, pairs=str(table)).run()
