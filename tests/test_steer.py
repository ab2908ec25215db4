from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_llama, tiny_tokenizer

from monosemy.coders import Add, Change, Clamp, ProjectOut, Scale, SuppressAll, Swap
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.intervene import (
    FeatureEdit,
    Firing,
    Steered,
    parse_change,
    parse_positions,
    steer,
)
from monosemy.lm import LM
from monosemy.training import Run


def live(run: Run) -> int:
    return int(run.dictionary.strength.argmax())


def test_clamping_moves_along_one_direction_by_the_right_amount(run: Run) -> None:
    """The change is (target - z) times the direction, so what is not explained stays in."""
    d, feature = run.dictionary, live(run)
    x = run.lm.capture(run.lm.encode("def read_file(path):"), ["layers.1"])["layers.1"]
    z = d.encode(x)[..., feature]
    for scale in (-1.0, 0.0, 2.5):
        moved = d.steer(x, feature=feature, scale=scale) - x
        expected = (scale * d.strength[feature] - z)[..., None] * d.coder.W_dec[feature]
        torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-4)


def test_steering_equals_decoding_the_edited_code_plus_the_error(run: Run) -> None:
    d, feature = run.dictionary, live(run)
    x = torch.randn(2, 5, d.d_in)
    z = d.encode(x)
    edited = z.clone()
    edited[..., feature] = 3 * d.strength[feature]
    expected = d.decode(edited) + (x - d.decode(z))
    found = d.steer(x, feature=feature, scale=3.0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_only_the_positions_asked_for_change(run: Run) -> None:
    d, feature = run.dictionary, live(run)
    x = torch.randn(1, 4, d.d_in)
    positions = torch.tensor([[False, True, False, True]])
    moved = (d.steer(x, feature=feature, scale=2.0, positions=positions) != x).any(-1)
    assert torch.equal(moved, positions)


def test_ablating_a_feature_that_does_not_fire_changes_nothing(run: Run) -> None:
    d = run.dictionary
    x = run.lm.capture(run.lm.encode("x"), ["layers.1"])["layers.1"]
    silent = int((d.encode(x).amax((0, 1)) == 0).nonzero()[0])
    assert torch.equal(d.steer(x, feature=silent, scale=0.0), x)


def test_text_is_the_same_with_and_without_the_cache(run: Run) -> None:
    for feature in run.dictionary.strength.topk(3).indices.tolist():
        with run.lm.steer(run.dictionary, feature=feature, scale=2.0):
            with_cache = run.lm.generate("def read", max_new_tokens=20)
            without = run.lm.generate("def read", max_new_tokens=20, use_cache=False)
        assert with_cache == without


def test_the_feature_fires_at_the_clamped_strength_in_the_model(run: Run) -> None:
    d, feature = run.dictionary, live(run)
    tokens = run.lm.encode("def read_file(path):")
    clean = run.lm.logits(tokens)
    with run.lm.steer(d, feature=feature, scale=4.0):
        steered = run.lm.logits(tokens)
        inside = run.lm.capture(tokens, ["layers.1"])["layers.1"]
    assert not torch.equal(clean, steered)
    fired = d.encode(inside)[0, 1:, feature]
    assert (fired > 2 * d.strength[feature]).all()
    assert torch.equal(run.lm.logits(tokens), clean)


def test_bos_is_left_alone(run: Run) -> None:
    tokens = run.lm.encode("def read_file(path):")
    clean = run.lm.capture(tokens, ["layers.1"])["layers.1"]
    with run.lm.steer(run.dictionary, feature=live(run), scale=4.0):
        steered = run.lm.capture(tokens, ["layers.1"])["layers.1"]
    assert torch.equal(clean[:, 0], steered[:, 0])
    assert (clean[:, 1:] != steered[:, 1:]).any(-1).all()


def test_continuations_stand_beside_each_other_and_are_repeatable(run: Run) -> None:
    d, lm, feature = run.dictionary, run.lm, live(run)
    edits = [FeatureEdit(d, [Clamp({feature: scale})], "generated") for scale in (0.0, 3.0)]

    def texts() -> list[Steered]:
        return steer(lm, edits, "def größe", max_new_tokens=12)

    plain, through, off, up = texts()
    assert [plain, through, off, up] == texts()
    assert plain.text == lm.generate("def größe", max_new_tokens=12)
    with lm.edit(edits[1]):
        assert up.text == lm.generate("def größe", max_new_tokens=12)
    with lm.edit(FeatureEdit(d, [], error="drop")):
        assert through.text == lm.generate("def größe", max_new_tokens=12)
    for found in (off, up):
        assert "".join(found.tokens[: found.prompt]) == "def größe"
        assert found.touched == [n >= found.prompt for n in range(len(found.tokens))]
    assert not any(plain.touched) and through.touched == [False] + [True] * (
        len(through.tokens) - 1
    )


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("clamp 28=0.8,30=-0.5", Clamp({28: 0.8, 30: -0.5})),
        ("add 28=1", Add({28: 1.0})),
        ("scale 28=2", Scale({28: 2.0})),
        ("ablate 28,30", Clamp({28: 0.0, 30: 0.0})),
        ("suppress 0.5", SuppressAll(0.5)),
        ("swap 28,30", Swap(28, 30)),
        ("project-out 28", ProjectOut((28,))),
    ],
)
def test_edits_are_read_as_they_are_written(text: str, change: Change) -> None:
    assert parse_change(text) == change


@pytest.mark.parametrize(
    "text",
    [
        "",
        "clamp",
        "clamp 28",
        "clamp 28=",
        "clamp 1=2,1=3",
        "add 1=nan",
        "scale 1=1e999",
        "suppress inf",
        "swap 1",
        "double 28",
        "add x=1",
    ],
)
def test_any_other_text_is_no_edit(text: str) -> None:
    with pytest.raises(UserError, match="is no edit"):
        parse_change(text)


def test_positions_are_read_as_they_are_written() -> None:
    texts = ("all", "prompt", "generated", "3:10", "fires 28")
    assert [*map(parse_positions, texts)] == [
        "all",
        "prompt",
        "generated",
        range(3, 10),
        Firing(28),
    ]
    for text in ("", "some", "3", "10:", "fires"):
        with pytest.raises(UserError, match="no positions"):
            parse_positions(text)


def test_a_model_of_another_kind_is_refused(run: Run, corpus: Corpus) -> None:
    """The fingerprint says so, before anything is written."""
    other = LM(tiny_llama(seed=1), tiny_tokenizer())
    with pytest.raises(UserError, match="fit"):
        steer(other, [FeatureEdit(run.dictionary, [])], "def")


def test_feature_out_of_range_and_dead_feature(run: Run) -> None:
    with pytest.raises(UserError, match="no feature 96"):
        FeatureEdit(run.dictionary, [Clamp({96: 1.0})])
    dead = (run.dictionary.strength == 0).nonzero()
    if len(dead):
        with pytest.raises(UserError, match="never fired"):
            FeatureEdit(run.dictionary, [Clamp({int(dead[0]): 1.0})])
