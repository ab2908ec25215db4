from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_llama, tiny_tokenizer

from monosemy.corpus import Corpus, TokenPolicy
from monosemy.errors import UserError
from monosemy.interpret import (
    Firings,
    Graph,
    Matcher,
    Pattern,
    TokenRows,
    activate_in,
    collect_firings,
    explain_features,
    graph,
    n2g,
)
from monosemy.interpret.graph import START, WILDCARD
from monosemy.lm import LM
from monosemy.training import Run

LETTERS = "abcdefgh"
A, B, C, D, E = range(5)

Rule = Callable[[Sequence[int]], float]
"""Tokens up to one, to the activation there."""


# --- learning from features that are known ----------------------------------------------------


def text_of(words: Sequence[str], filler: int = 300) -> TokenRows:
    """Words, each a row of its own; then rows of d alone, so that what is drawn is mostly d."""
    rows = [*words, *["d" * 8] * filler]
    width = max(map(len, rows))
    ids = [[START] * (width - len(w)) + [LETTERS.index(c) for c in w] for w in rows]
    tokens = np.array(ids, dtype=np.int32)
    document = np.repeat(np.arange(len(rows), dtype=np.int32)[:, None], width, 1)
    return TokenRows(tokens, tokens != START, document)


def fired(rows: TokenRows, rules: Sequence[Rule]) -> Firings:
    features, places, values = [], [], []
    for feature, rule in enumerate(rules):
        for row, tokens in enumerate(rows.tokens.tolist()):
            for time in range(len(tokens)):
                read = [t for t in tokens[: time + 1] if t != START]
                value = rule(read) if tokens[time] != START else 0.0
                if value > 0:
                    features.append(feature)
                    places.append(row * len(tokens) + time)
                    values.append(value)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(features, minlength=len(rules)))])
    return Firings(offsets, np.array(places), np.array(values))


def learn(
    words: Sequence[str], *rules: Rule, features: Sequence[int] | None = None, **options: Any
) -> list[Graph]:
    rows = text_of(words)

    def activate(probes: np.ndarray, which: np.ndarray) -> np.ndarray:
        pairs = zip(probes.tolist(), which.tolist(), strict=True)
        return np.array([rules[feature](tokens) for tokens, feature in pairs])

    chosen = range(len(rules)) if features is None else features
    return explain_features(rows, fired(rows, rules), list(chosen), activate, **options)


def patterns(found: Graph) -> set[tuple[int, ...]]:
    return {pattern.tokens for pattern in found.patterns}


def is_c(tokens: Sequence[int]) -> float:
    return float(tokens[-1] == C)


def c_after_a(tokens: Sequence[int]) -> float:
    """c, with an a anywhere before it."""
    return float(tokens[-1] == C and A in tokens[:-1])


def first_c(tokens: Sequence[int]) -> float:
    return float(list(tokens) == [C])


def after_a(tokens: Sequence[int]) -> float:
    return float(len(tokens) > 1 and tokens[-2] == A)


def test_a_feature_of_one_token_is_that_token() -> None:
    (found,) = learn(["abc", "bac", "aca"], is_c)
    assert patterns(found) == {(C,)}
    assert found.patterns[0] == Pattern((C,), 1.0, 3)
    assert found.predict([B, C]).tolist() == [0, 1]
    assert found.predict([A, A, A]).tolist() == [0, 0, 0]


def test_a_token_after_another_is_found_with_a_wildcard_between() -> None:
    """The known answers of the reference implementation: one gap was seen, two were not."""
    (found,) = learn(["abc", "bac", "ac"], c_after_a)
    assert patterns(found) == {(A, WILDCARD, C), (A, C)}
    assert found.predict([A, C]).tolist() == [0, 1]
    assert found.predict([B, C]).tolist() == [0, 0]
    assert found.predict([A, B, C]).tolist() == [0, 0, 1]
    assert found.predict([A, B, B, C]).tolist() == [0, 0, 0, 0]


def test_a_feature_of_the_start_of_text_asks_for_it() -> None:
    (found,) = learn(["ca", "cb", "ac"], first_c)
    assert patterns(found) == {(START, C)}
    (as_wide_as_rows,) = learn(["cbbbbbbb"], first_c)
    assert patterns(as_wide_as_rows) == {(START, C)}
    assert found.predict([C, C]).tolist() == [1, 0]
    begun = Graph(found.patterns, bos=7)
    assert begun.predict([7, C, C]).tolist() == [0, 1, 0]


def test_the_last_token_may_be_the_wildcard() -> None:
    (found,) = learn(["ab", "bac", "bba", "aab", "bae"], after_a)
    assert patterns(found) == {(A, WILDCARD)}
    assert found.predict([B, A, E]).tolist() == [0, 0, 1]


def test_tokens_beyond_reach_give_no_pattern() -> None:
    (found,) = learn(["abbbbc"], c_after_a, reach=3)
    assert found.patterns == ()
    assert found.predict([A, C]).tolist() == [0, 0]
    (found,) = learn(["abbbbc"], c_after_a, reach=6)
    assert patterns(found) == {(A, *[WILDCARD] * 4, C)}


def test_wildcards_in_front_are_left_out_and_alike_patterns_are_one() -> None:
    def weaker_alone(tokens: Sequence[int]) -> float:
        return 4.0 if tokens[-2:] == [B, C] else 1.0 if tokens[-1] == C and len(tokens) > 3 else 0.0

    (found,) = learn(["aabc", "dbbc", "eabc"], weaker_alone)
    assert found.patterns == (Pattern((B, C), 4.0, 3),)


def share(found: Graph, *wanted: tuple[int, ...]) -> float:
    counts = {p.tokens: p.count for p in found.patterns}
    return sum(counts.get(tokens, 0) for tokens in wanted) / sum(counts.values())


def test_one_token_drawn_that_matters_decides_nothing() -> None:
    """A tenth of the text is c, e or a, which the majority of three draws is in 3 of 100."""

    def on_two(tokens: Sequence[int]) -> float:
        return {C: 10.0, E: 1.0}.get(tokens[-1], 0.0)

    (found,) = learn(["de"] * 100 + ["c" * 8] * 35, on_two, exemplars=400)
    assert share(found, (C,), (E,)) > 0.95

    def unless_e(tokens: Sequence[int]) -> float:
        return float(tokens[-1] == C and tokens[-3:-2] == [A] and tokens[-2] != E)

    (found,) = learn(["abc"] * 100 + ["e" * 8] * 35, unless_e, exemplars=100)
    assert share(found, (A, WILDCARD, C)) > 0.9

    (found,) = learn(["abc"] * 100 + ["a" * 8] * 20, c_after_a, exemplars=100)
    assert share(found, (A, WILDCARD, C)) > 0.9


def test_contexts_are_drawn_evenly_and_no_more_than_asked_for() -> None:
    (found,) = learn([c + "c" for c in "abeg"] * 20, is_c, exemplars=12)
    assert sum(pattern.count for pattern in found.patterns) == 12
    (rare,) = learn(["bc"], is_c, exemplars=12)
    assert sum(pattern.count for pattern in rare.patterns) == 1


def test_a_feature_that_never_fires_has_no_pattern() -> None:
    found = learn(["abc"], is_c, lambda tokens: 0.0)
    assert [len(g.patterns) for g in found] == [1, 0]


def test_features_are_explained_alike_alone_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    words, rules = ["abc", "bac", "ac", "eab", "ca", "gac", "habbc"], (is_c, c_after_a, after_a)
    together = learn(words, *rules, seed=3)
    assert together == learn(words, *rules, seed=3)
    assert [learn(words, *rules, features=[f], seed=3)[0] for f in range(3)] == together
    monkeypatch.setattr(n2g, "_FEATURES_AT_ONCE", 1)
    assert learn(words, *rules, seed=3) == together


# --- matching ---------------------------------------------------------------------------------


def test_an_exact_token_does_not_hide_a_wildcard_beside_it() -> None:
    found = Graph((Pattern((E, B, C), 2.0), Pattern((A, WILDCARD, C), 1.0)))
    assert found.predict([A, B, C]).tolist() == [0, 0, 1]
    assert found.predict([E, B, C]).tolist() == [0, 0, 2]


def test_the_longest_match_decides_then_the_most_exact_then_the_strongest() -> None:
    short, wild = Pattern((C,), 9.0), Pattern((A, WILDCARD, C), 5.0)
    exact, same = Pattern((WILDCARD, B, C), 7.0), Pattern((A, WILDCARD, C), 6.0)
    assert Graph((short, wild)).predict([A, B, C])[2] == 5
    assert Graph((short, wild)).predict([B, B, C])[2] == 9
    assert Graph((Pattern((B, C), 8.0), wild)).predict([A, B, C])[2] == 5
    longer = Pattern((WILDCARD, WILDCARD, C), 3.0)
    assert Graph((Pattern((B, C), 8.0), longer)).predict([A, B, C])[2] == 3
    assert Graph((wild, exact)).predict([A, B, C])[2] == 7
    assert Graph((wild, Pattern((A, B, C), 1.0))).predict([A, B, C])[2] == 1
    assert Graph((wild, same)).predict([A, B, C])[2] == 6


def test_a_wildcard_is_a_token_and_not_the_start_of_text() -> None:
    found = Graph((Pattern((WILDCARD, C), 1.0),), bos=7)
    assert found.predict([7, C, C, 7, C]).tolist() == [0, 0, 1, 0, 0]
    assert Graph((Pattern((WILDCARD,), 2.0),)).predict([[A, B]]).tolist() == [[2, 2]]


def test_nothing_predicts_nothing() -> None:
    assert Graph(()).predict([A, B]).tolist() == [0, 0]
    assert Graph((Pattern((A,), 1.0),)).predict([]).tolist() == []


token_ids = st.integers(0, 3)
pattern_tokens = st.tuples(
    st.sampled_from([(), (START,)]), st.lists(token_ids | st.just(WILDCARD), min_size=1, max_size=4)
).map(lambda parts: (*parts[0], *parts[1]))
graphs = st.lists(
    st.tuples(pattern_tokens, st.sampled_from([0.5, 1.0, 2.0]), st.integers(1, 9)), max_size=6
)


def made(written: Sequence[tuple[Any, ...]], bos: int | None = None) -> Graph:
    return Graph(tuple(Pattern(*pattern) for pattern in written), bos)


def slowly(found: Graph, tokens: Sequence[int]) -> list[float]:
    """Try every pattern at every position."""
    read = [START, *tokens]
    predicted = []
    for end in range(1, len(read)):
        matches = []
        for pattern in found.patterns:
            seen = read[max(end + 1 - len(pattern.tokens), 0) : end + 1]
            if len(seen) == len(pattern.tokens) and all(
                wanted == token or (wanted == WILDCARD and token != START)
                for wanted, token in zip(pattern.tokens, seen, strict=True)
            ):
                exact = sum(token != WILDCARD for token in pattern.tokens)
                matches.append((len(pattern.tokens), exact, pattern.activation))
        predicted.append(max(matches)[2] if matches and tokens[end - 1] != START else 0.0)
    return predicted


@settings(max_examples=100)
@given(
    st.lists(graphs, min_size=1, max_size=4),
    st.integers(1, 9).flatmap(
        lambda n: st.lists(
            st.lists(token_ids | st.just(START), min_size=n, max_size=n), min_size=1, max_size=4
        )
    ),
    st.integers(1, 40),
)
def test_matching_equals_trying_everything(
    written: list[list], rows: list[list[int]], at_once: int
) -> None:
    found = [made(patterns) for patterns in written]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "_AT_ONCE", at_once)
        number, place, value = Matcher(found).match(np.array(rows))
    matched = np.zeros((len(found), np.size(rows)))
    matched[number, place] = value
    assert len(set(zip(number.tolist(), place.tolist(), strict=True))) == len(number)
    assert (np.diff(number * np.size(rows) + place) > 0).all()
    for graph_found, predicted in zip(found, matched, strict=True):
        expected = [slowly(graph_found, tokens) for tokens in rows]
        assert predicted.tolist() == np.ravel(expected).tolist()


# --- writing and reading ----------------------------------------------------------------------


@given(graphs, st.none() | st.integers(0, 9))
def test_a_graph_survives_json(written: list, bos: int | None) -> None:
    found = made(written, bos)
    assert Graph.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({}, "no graph of patterns"),
        ({"bos": 0, "patterns": [{"tokens": [1]}]}, "no graph of patterns"),
        ({"bos": 0, "patterns": 3}, "no graph of patterns"),
        ({"bos": None, "patterns": [{"tokens": [], "activation": 1, "count": 1}]}, "no pattern"),
        ({"bos": None, "patterns": [{"tokens": [-3], "activation": 1, "count": 1}]}, "no pattern"),
        (
            {"bos": None, "patterns": [{"tokens": [4, -1], "activation": 1, "count": 1}]},
            r"\[4, -1\] is no pattern",
        ),
    ],
)
def test_what_is_no_graph_is_refused(written: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Graph.from_dict(written)


def test_ngrams_are_readable() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("def read\n", add_special_tokens=False)["input_ids"]
    tokens = (START, ids[0], WILDCARD, *ids[1:])
    assert Graph((Pattern(tokens, 1.0),)).ngrams(tokenizer) == [
        "[start]" + tokenizer.decode(ids[:1]) + "[any]" + tokenizer.decode(ids[1:-1]) + "↵"
    ]


# --- in a model -------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [True, False])
def test_rows_are_run_as_the_model_reads_them(
    bos: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LM(tiny_llama(), tiny_tokenizer(bos=bos))
    coder, start = run.dictionary.coder, lm.tokenizer.bos_token_id
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 200, size=(12, 5))[rng.integers(12, size=40)]
    features = rng.integers(coder.width, size=40)
    expected = []
    for row, feature in zip(rows.tolist(), features, strict=True):
        tokens = row if start is None else [start, *row]
        x = lm.capture(torch.tensor([tokens]), ["layers.1"])["layers.1"][0, -1:]
        expected.append(float(coder.encode(x)[0, feature]))
    assert sum(value > 0 for value in expected) >= 2
    found = activate_in(lm, "layers.1", coder, bos=start)(rows, features)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    monkeypatch.setattr(n2g, "_TOKENS_AT_ONCE", 20)
    again = activate_in(lm, "layers.1", coder, bos=start)(rows, features)
    np.testing.assert_allclose(again, expected, atol=1e-4)


def test_rows_that_are_alike_are_run_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    capture = LM.capture

    def counting(lm: LM, tokens: Any, *args: Any, **options: Any) -> Any:
        seen.append(len(tokens))
        return capture(lm, tokens, *args, **options)

    monkeypatch.setattr(LM, "capture", counting)
    rows = np.array([[1, 2], [3, 4], [1, 2], [1, 2]])
    activate_in(run.lm, "layers.1", run.dictionary.coder, bos=0)(rows, np.arange(4))
    assert seen == [2]


def test_firings_are_those_of_the_whole_code(run: Run, lm: LM, corpus: Corpus) -> None:
    d = run.dictionary
    stream = d.provenance.stream(lm, corpus, "train")
    rows, (found, again) = collect_firings(lm, stream, "layers.1", [d.coder, d.coder], 6000)
    assert rows.n_tokens >= 6000
    assert found.places.tolist() == again.places.tolist()
    batches = []
    for batch in stream:
        batches.append(batch)
        if sum(int(b.counted.sum()) for b in batches) >= 6000:
            break
    assert len(batches) > 1
    code = np.zeros((rows.tokens.size, d.width))
    x = [lm.capture(b.tokens, ["layers.1"])["layers.1"][b.counted] for b in batches]
    counted = np.concatenate([b.counted.numpy() for b in batches])
    code[counted.reshape(-1)] = np.concatenate([d.encode(part).numpy() for part in x])
    for feature in range(d.width):
        places, values = found.of(feature)
        assert places.tolist() == np.flatnonzero(code[:, feature] > 0).tolist()
        np.testing.assert_allclose(values, code[places, feature], rtol=1e-4)
    index, places, values = found.of_all([5, 2])
    assert places.tolist() == [*found.of(5)[0], *found.of(2)[0]]
    assert (np.bincount(index, minlength=2) == found.counts[[5, 2]]).all()
    tokens = np.concatenate([b.tokens.numpy() for b in batches])
    assert (rows.tokens == np.where(tokens == 0, START, tokens)).all()
    ids = [d.id for b in batches for d in b.documents]
    names = list(dict.fromkeys(ids))
    last = batches[-1]
    expected = [names.index(last.documents[i].id) for i in last.document[-1].tolist() if i >= 0]
    assert [n for n in rows.document[-1].tolist() if n >= 0] == expected


def test_bos_is_no_token_even_where_it_is_counted(run: Run, lm: LM, corpus: Corpus) -> None:
    d = run.dictionary
    counted = replace(d.provenance, policy=TokenPolicy(special=True))
    found = [
        collect_firings(lm, p.stream(lm, corpus, "train"), "layers.1", [d.coder], 500)
        for p in (d.provenance, counted)
    ]
    assert (found[0][0].counted == found[1][0].counted).all()
    assert found[0][1][0].places.tolist() == found[1][1][0].places.tolist()
