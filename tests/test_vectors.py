"""Steering vectors: what they are made of, that they add exactly that, and what they do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from monosemy.cli.main import main
from monosemy.corpus.choices import CAA, Choice
from monosemy.errors import UserError
from monosemy.evaluation.vector import measure_vector
from monosemy.intervene import Firing, PairSides, Positions, SteeringVector, TextSides
from monosemy.intervene.log_odds import plain_odds, steer_by
from monosemy.intervene.vectors import code_difference
from monosemy.lm import LM
from monosemy.training import Run

PROMPT = "def read_file(path):"
CHOICES = [
    Choice("Is it? (A) yes (B) no\n", "(A)", "(B)"),
    Choice("Open? (A) no (B) yes\n", "(B)", "(A)"),
    Choice("return ", "value", "path"),
    Choice("for x in ", "names:", "range:"),
]
POINTS = ["layers.0", "layers.1", "final_norm"]


@pytest.fixture(scope="module")
def vector(lm: LM) -> SteeringVector:
    return SteeringVector.from_pairs(lm, CHOICES, POINTS)


def at(lm: LM, text: str, hookpoint: str) -> tuple[list[str], Tensor]:
    """Tokens of a text as strings, and its activations."""
    tokens = lm.encode(text)
    assert lm.tokenizer is not None
    return [lm.tokenizer.decode([t]) for t in tokens[0]], lm.capture(tokens, [hookpoint])[
        hookpoint
    ][0]


def test_of_letters_the_difference_is_at_the_letter(lm: LM) -> None:
    found = SteeringVector.from_pairs(lm, CHOICES[:2], POINTS)
    for point in POINTS:
        differences = []
        for choice in CHOICES[:2]:
            letters = []
            for answer in (choice.wanted, choice.other):
                tokens, x = at(lm, choice.prompt + answer, point)
                assert tokens[-2] == answer[1] and tokens[-1] == ")"
                letters.append(x[-2])
            differences.append(letters[0] - letters[1])
        wanted = torch.stack(differences).mean(0)
        torch.testing.assert_close(found.vectors[point], wanted, atol=1e-5, rtol=1e-4)
    assert found.made["pairs"] == 2 and found.made["wanted"] == {"(A)": 1, "(B)": 1}
    assert found.made["tokens"] == {"wanted": 2, "other": 2}


@pytest.mark.parametrize(
    ("wanted", "other", "own"),
    [
        ("x = qz.", "x = kwvu.", (slice(-3, -1), slice(-5, -1))),  # of unlike lengths
        ("x = .", "x = cd.", (slice(-1, None), slice(-3, -1))),  # one only adds to the other
    ],
)
def test_longer_answers_count_by_their_mean(
    lm: LM, wanted: str, other: str, own: tuple[slice, slice]
) -> None:
    prompt = "x = "
    choice = Choice(prompt, wanted[len(prompt) :], other[len(prompt) :])
    found = SteeringVector.from_pairs(lm, [choice], ["layers.1"])
    means = []
    for text, where in zip((wanted, other), own, strict=True):
        tokens, x = at(lm, text, "layers.1")
        assert all(len(t) == 1 for t in tokens[where])
        means.append(x[where].mean(0))
    torch.testing.assert_close(found.vectors["layers.1"], means[0] - means[1], atol=1e-5, rtol=1e-4)


def test_of_texts_the_means_over_text_tokens_differ(lm: LM) -> None:
    sides = ["alpha beta", "gamma"], ["for x in y:", "pass", "return 1"]
    found = SteeringVector.from_texts(lm, *sides, POINTS)
    for point in POINTS:
        means = []
        for texts in sides:
            rows = torch.cat([at(lm, text, point)[1][1:] for text in texts])  # BOS is no text
            means.append(rows.mean(0))
        wanted = means[0] - means[1]
        torch.testing.assert_close(found.vectors[point], wanted, atol=1e-5, rtol=1e-4)
    counts = [sum(len(at(lm, t, "embed")[0]) - 1 for t in texts) for texts in sides]
    assert list(found.made["tokens"].values()) == counts


def test_the_norm_of_activations_is_known(lm: LM) -> None:
    found = SteeringVector.from_texts(lm, ["alpha"], ["beta"], ["layers.1"])
    rows = torch.cat([at(lm, text, "layers.1")[1][1:] for text in ("alpha", "beta")])
    assert found.norms["layers.1"] == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-5)
    size = float(found.vectors["layers.1"].norm()) / found.norms["layers.1"]
    assert found.size("layers.1", -2.0) == pytest.approx(2 * size)


def test_steering_adds_the_multiple_once_where_asked_and_nothing_elsewhere(
    run: Run, vector: SteeringVector
) -> None:
    lm, d = run.lm, run.dictionary
    rows = [lm.encode(text)[0] for text in (PROMPT, "return value + 1", "x")]
    longest = max(map(len, rows))
    tokens = torch.stack([torch.nn.functional.pad(r, (0, longest - len(r))) for r in rows])
    mask = torch.arange(longest) < torch.tensor([[len(r)] for r in rows])
    text = mask & ~torch.isin(tokens, torch.tensor(sorted(lm.special_ids)))
    x = lm.capture(tokens, ["layers.1"], attention_mask=mask)["layers.1"]
    feature = int(d.encode(x)[text].sum(0).argmax())
    index = torch.arange(longest).expand_as(text)
    starts = torch.tensor([4, 2, 1])
    cases: list[tuple[Positions, Tensor]] = [
        ("all", text),
        ("generated", text & (index >= starts[:, None])),
        ("prompt", text & (index < starts[:, None])),
        (range(2, 4), text & (index >= 2) & (index < 4)),
        (Firing(feature), text & (d.encode(x)[..., feature] > 0)),
    ]
    for positions, where in cases:
        edit = vector.at("layers.1", -1.5, positions=positions, dictionary=d)
        with lm.prompted(starts), lm.edit(edit):
            y = lm.capture(tokens, ["layers.1"], attention_mask=mask)["layers.1"]
        assert where.any()
        assert torch.equal(x[~where], y[~where]), positions
        moved = (y - x)[where]
        wanted = (-1.5 * vector.vectors["layers.1"]).expand_as(moved)
        torch.testing.assert_close(moved, wanted, atol=1e-5, rtol=1e-4)


def test_no_strength_is_exactly_none(lm: LM, vector: SteeringVector) -> None:
    tokens = lm.encode(PROMPT)
    plain = lm.logits(tokens)
    with lm.edit(vector.at("layers.0", 0.0)):
        assert torch.equal(plain, lm.logits(tokens))
    sides = PairSides(lm, CHOICES)
    (none,) = steer_by(vector, sides, hookpoints=["layers.1"], strengths=[0.0])
    assert none.odds.change.value == none.odds.change.low == none.odds.change.high == 0
    assert none.odds.log_odds == plain_odds(sides).log_odds and none.random is not None
    assert none.random.change.value == 0


@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
def test_with_and_without_a_cache_token_for_token(
    lm: LM, vector: SteeringVector, positions: Positions
) -> None:
    with lm.edit(vector.at("layers.1", 3.0, positions=positions)):
        texts = [lm.write(PROMPT, max_new_tokens=12, use_cache=c).tokens for c in (True, False)]
    assert torch.equal(*texts)


def test_log_odds_are_those_of_the_whole_texts(lm: LM) -> None:
    found = PairSides(lm, CHOICES).log_probabilities()
    for number, choice in enumerate(CHOICES):
        whole = []
        for answer in (choice.wanted, choice.other):
            tokens = lm.encode(choice.prompt + answer)
            each = lm.logits(tokens)[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])
            whole.append(float(each.double().sum()))
        odds = found.wanted[number] - found.other[number]
        assert odds == pytest.approx(whole[0] - whole[1], abs=1e-4)


def test_after_the_last_norm_the_change_is_the_vector_times_the_unembedding(lm: LM) -> None:
    choices = [Choice("x = ", "a", "b"), Choice("return ", "c", "d"), Choice("def ", "e", "f")]
    vector = SteeringVector.from_pairs(lm, choices, ["final_norm"])
    sides, rows = PairSides(lm, choices), lm.unembedding().weight
    for strength in (-1.0, 2.5):
        (found,) = steer_by(vector, sides, strengths=[strength], random=0)
        ids = [[int(lm.encode(c.prompt + a)[0, -1]) for a in (c.wanted, c.other)] for c in choices]
        moved = strength * (rows @ vector.vectors["final_norm"])
        wanted = sum(float(moved[a] - moved[b]) for a, b in ids) / len(ids)
        assert found.odds.change.value == pytest.approx(wanted, abs=1e-4)
        assert found.odds.change.low <= found.odds.change.value <= found.odds.change.high


def test_pairs_are_steered_from_the_last_token_of_the_prompt_on(
    lm: LM, vector: SteeringVector
) -> None:
    sides = PairSides(lm, CHOICES[2:3])
    with lm.edit(vector.at("layers.1", 2.0, positions="generated")):
        found = sides.log_probabilities()
    text = CHOICES[2].prompt + CHOICES[2].wanted
    prompt = lm.encode(CHOICES[2].prompt).shape[1]
    tokens = lm.encode(text)
    with lm.edit(vector.at("layers.1", 2.0, positions=range(prompt - 1, 99))):
        logits = lm.logits(tokens)[0, :-1].log_softmax(-1)
    each = logits.gather(1, tokens[0, 1:, None])[prompt - 1 :]
    assert found.wanted[0] == pytest.approx(float(each.sum()), abs=1e-4)


def test_log_probabilities_of_texts_are_means_a_token(lm: LM) -> None:
    texts = ["alpha beta", "gamma = 1"]
    found = TextSides(lm, *_corpora(texts, ["pass"])).log_probabilities()
    each = []
    for text in texts:
        tokens = lm.encode(text)
        logits = lm.logits(tokens)[0, 1:-1].log_softmax(-1)  # what BOS predicts is not scored
        each.append(float(logits.gather(1, tokens[0, 2:, None]).mean()))
    assert sorted(found.wanted) == pytest.approx(sorted(each), abs=1e-4)
    assert len(found.other) == 1 and not found.paired


def _corpora(*sides: list[str]) -> list:
    from monosemy.corpus import open_corpus

    return [open_corpus(texts, held_out=0.0) for texts in sides]


def test_random_directions_are_as_long_and_unlike(vector: SteeringVector) -> None:
    drawn = vector.random(1)
    for name, v in vector.vectors.items():
        assert float(drawn.vectors[name].norm()) == pytest.approx(float(v.norm()), rel=1e-5)
        assert abs(float(torch.cosine_similarity(drawn.vectors[name], v, 0))) < 0.7
    assert torch.equal(vector.random(1).vectors["layers.0"], drawn.vectors["layers.0"])


def test_what_is_saved_is_loaded_bit_for_bit(vector: SteeringVector, tmp_path: Path) -> None:
    folder = vector.save(tmp_path / "v")
    again = SteeringVector.load(folder)
    assert [*again.vectors] == [*vector.vectors] and again.made == vector.made
    assert again.model == vector.model and again.norms == vector.norms
    for name, v in vector.vectors.items():
        assert torch.equal(v, again.vectors[name]) and again.vectors[name].dtype == torch.float32
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for broken in ({"norms": {"layers.0": 1.0}}, {"norms": None}, {"made": 3}):
        path.write_text(json.dumps({**manifest, **broken}))
        with pytest.raises(UserError, match="not as its manifest says"):
            SteeringVector.load(folder)
    path.write_text(json.dumps({**manifest, "kind": "dictionary"}))
    with pytest.raises(UserError, match="of kind `dictionary`"):
        SteeringVector.load(folder)


def test_what_cannot_be_done_is_said(run: Run, vector: SteeringVector) -> None:
    lm = run.lm
    wide = "x" * 200
    for choices, told in {
        (): "no pairs",
        (Choice(wide, "a", "b"),): "tokens",
        (Choice("x = ", "", ""),): "one begins the other",
        (Choice("x = ", "a", "ab"),): "one begins the other",
    }.items():
        with pytest.raises(UserError, match=told):
            SteeringVector.from_pairs(lm, choices, ["layers.1"])
    with pytest.raises(UserError, match="no hook point"):
        SteeringVector.from_pairs(lm, CHOICES, [])
    with pytest.raises(UserError, match="unknown hook point"):
        SteeringVector.from_pairs(lm, CHOICES, ["layers.9"])
    with pytest.raises(UserError, match=r"no vector for `layers\.2`"):
        vector.at("layers.2")
    with pytest.raises(UserError, match="of which dictionary"):
        vector.at("layers.1", positions=Firing(1))
    with pytest.raises(UserError, match="feature 1000"):
        vector.at("layers.1", positions=Firing(1000), dictionary=run.dictionary)
    with pytest.raises(UserError, match=r"the edit at `layers\.0`"):
        vector.at("layers.0", dictionary=run.dictionary)
    narrow = SteeringVector({"layers.1": torch.ones(5)}, "m", {"layers.1": 1.0})
    with pytest.raises(UserError, match="5 numbers"), lm.edit(narrow.at("layers.1")):
        pass
    generated = vector.at("layers.1", positions="generated")
    with pytest.raises(UserError, match="outside generation"), lm.edit(generated):
        lm.logits(lm.encode(PROMPT))
    assert sum(len(m._forward_hooks) for m in lm.model.modules()) == 0


def test_one_letter_wanted_throughout_is_warned_of(lm: LM) -> None:
    def asked(letters: str) -> PairSides:
        both = {"A": ("(A)", "(B)"), "B": ("(B)", "(A)")}
        rows = [Choice(f"{i}?\n", *both[c], asks=True) for i, c in enumerate(letters)]
        return PairSides(lm, rows)

    assert asked("ABAB").describe()["warning"] == ""
    assert "(A) in 75%" in asked("AABA").describe()["warning"]


def test_the_code_difference_rebuilds_the_vector_as_far_as_the_dictionary_does(run: Run) -> None:
    sides = PairSides(run.lm, CHOICES)
    codes = code_difference(sides, run.dictionary)
    rows, made = [], []
    for activations, weights in sides.activations(["layers.1"]):
        x = activations["layers.1"]
        rows.append(weights @ x)
        made.append(weights @ run.dictionary.reconstruct(x))
    wanted = sum(made) / len(CHOICES)
    torch.testing.assert_close(codes @ run.dictionary.coder.W_dec, wanted, atol=1e-4, rtol=1e-3)


def test_the_command_prints_what_a_vector_does_and_what_it_is_made_of(
    run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run.dictionary.save_pretrained(folder / "dictionary")
    pairs = tmp_path / "pairs.json"
    rows = [(f"{i} is {i % 3}?", *("(A)", "(B)")[:: 1 if i % 2 else -1]) for i in range(12)]
    pairs.write_text(json.dumps([dict(zip(CAA, row, strict=True)) for row in rows]))
    out = tmp_path / "vector"
    model = ["--model", str(checkpoint), "--device", "cpu"]
    options = ["--hookpoints", "layers.0", "--strengths", "-1", "2", "--out", str(out)]
    main(["vector", str(folder), "--pairs", str(pairs), *options, *model])
    said = capsys.readouterr().out
    for part in ("layers.0", "layers.1, as features", "code difference", "log-odds", "as it is"):
        assert part in said
    written = json.loads((folder / "vector.json").read_text())
    assert {(s["hookpoint"], s["strength"]) for s in written["steered"]} == {
        (point, strength) for point in ("layers.0", "layers.1") for strength in (-1.0, 2.0)
    }
    assert written["decomposition"]["methods"]["signed"]["4"]["cosine"] > 0
    assert [*SteeringVector.load(out).vectors] == ["layers.0", "layers.1"]
    texts = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, word in zip(texts, ("alpha", "beta"), strict=True):
        path.write_text("".join(f'{{"text": "{word} {i}"}}\n' for i in range(12)))
    sides = ["--positive", str(texts[0]), "--negative", str(texts[1])]
    main(["vector", str(folder), *sides, "--strengths", "1", *model])
    assert "tokens" in capsys.readouterr().out
    for wrong in ([], ["--positive", str(texts[0])], ["--pairs", str(pairs), *sides]):
        with pytest.raises(SystemExit):
            main(["vector", str(folder), *wrong, *model])
        assert "either pairs or two sets" in capsys.readouterr().err


def test_features_are_steered_with_at_the_largest_strength(run: Run) -> None:
    sides = PairSides(run.lm, CHOICES)
    found = measure_vector(run.dictionary, sides, sides, hookpoints=["layers.0"], random=1)
    assert found.strength == 2.0 and found.whole.hookpoint == "layers.1"
    assert set(found.by_features) == set(found.decomposition.rebuilt)
    assert found.best in found.steered and found.best.hookpoint in found.verdict()
    with pytest.raises(UserError, match="above 0"):
        measure_vector(run.dictionary, sides, sides, strengths=[-1.0])
