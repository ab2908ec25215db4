from __future__ import annotations

import pytest
import torch

from monosemy.errors import UserError
from monosemy.intervene import compare
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


def test_compare_gives_both_and_is_repeatable(run: Run) -> None:
    def pair():
        return compare(
            run.lm, run.dictionary, feature=live(run), scale=3.0, prompt="def", max_new_tokens=12
        )

    assert pair() == pair()
    assert pair().original == run.lm.generate("def", max_new_tokens=12)


def test_feature_out_of_range_and_dead_feature(run: Run, lm: LM) -> None:
    with pytest.raises(UserError, match="no feature 96"):
        compare(lm, run.dictionary, feature=96, scale=1.0, prompt="def")
    dead = (run.dictionary.strength == 0).nonzero()
    if len(dead):
        with pytest.raises(UserError, match="never fired"):
            compare(lm, run.dictionary, feature=int(dead[0]), scale=1.0, prompt="def")
