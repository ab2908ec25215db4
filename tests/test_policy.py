from __future__ import annotations

import json

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monosemy.corpus import TokenPolicy
from monosemy.errors import UserError

BOS, EOS = 0, 1  # ids that are false in a condition must still work
SPECIAL = {BOS, EOS}
TOKENS = torch.tensor([[BOS, 5, 6, EOS, 7, 8], [EOS, EOS, BOS, 5, 6, EOS]])
ATTENTION = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]).bool()  # right, left padding


@pytest.fixture
def wrong_types_allowed(monkeypatch):
    """Let a wrong type reach the code under test when shapes and types are checked at run time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def counted(policy: TokenPolicy) -> list[list[int]]:
    """The positions that count, row by row."""
    mask = policy.mask(TOKENS, ATTENTION, SPECIAL)
    assert mask.dtype == torch.bool and mask.shape == TOKENS.shape
    return [row.nonzero().flatten().tolist() for row in mask]


def test_by_default_special_tokens_and_padding_do_not_count():
    assert counted(TokenPolicy()) == [[1, 2, 4], [3, 4]]


def test_special_tokens_count_when_asked_for_even_where_padding_has_their_id():
    assert counted(TokenPolicy(special=True)) == [[0, 1, 2, 3, 4], [2, 3, 4, 5]]


def test_everything_counts_everything():
    assert counted(TokenPolicy.everything()) == [list(range(6))] * 2


def test_padding_that_has_a_special_id_is_padding_and_not_a_special_token():
    assert counted(TokenPolicy(padding=True)) == [[1, 2, 4, 5], [0, 1, 3, 4]]


def test_positions_are_counted_from_the_first_token_that_is_not_padding():
    assert counted(TokenPolicy(special=True, first=2)) == [[0, 1], [2, 3]]
    assert counted(TokenPolicy(special=True, start=1, first=2)) == [[1, 2], [3, 4]]
    assert counted(TokenPolicy(special=True, start=3)) == [[3, 4], [5]]
    assert counted(TokenPolicy(start=2, first=100)) == [[2, 4], [4]]


def test_last_is_the_last_of_those_that_remain():
    assert counted(TokenPolicy(choose="last")) == [[4], [4]]
    assert counted(TokenPolicy(choose="last", special=True)) == [[4], [5]]
    assert counted(TokenPolicy(choose="last", first=3)) == [[2], [4]]


def test_a_row_where_nothing_remains_stays_empty():
    for choose in ("all", "last", "random"):
        assert counted(TokenPolicy(choose=choose, start=5)) == [[], []]
    nothing = torch.zeros(1, 6, dtype=torch.bool)
    assert not TokenPolicy(choose="last").mask(TOKENS[:1], nothing, SPECIAL).any()


def test_no_special_tokens_at_all_is_allowed():
    assert TokenPolicy().mask(TOKENS, ATTENTION, ()).equal(ATTENTION)


def test_random_takes_one_of_those_that_remain_and_the_same_one_again():
    allowed = TokenPolicy(first=4)
    policy = TokenPolicy(first=4, choose="random")
    chosen = policy.mask(TOKENS, ATTENTION, SPECIAL)
    assert chosen.sum(1).tolist() == [1, 1]
    assert not (chosen & ~allowed.mask(TOKENS, ATTENTION, SPECIAL)).any()
    assert chosen.equal(policy.mask(TOKENS, ATTENTION, SPECIAL))


def test_random_is_even_over_positions_and_differs_by_seed():
    tokens = torch.arange(4000 * 8).reshape(4000, 8)
    attention = torch.ones_like(tokens).bool()
    first, second = (
        TokenPolicy(choose="random", seed=seed).mask(tokens, attention, ()) for seed in (0, 1)
    )
    for chosen in (first, second):
        assert chosen.sum(0).min() > 400 and chosen.sum(0).max() < 600  # 500, deviation 21
    assert 300 < (first & second).sum() < 700  # one in eight by chance


@given(
    row=st.lists(st.integers(0, 50_000), min_size=1, max_size=12),
    before=st.integers(0, 5),
    after=st.integers(0, 5),
    choose=st.sampled_from(["all", "last", "random"]),
    start=st.integers(0, 3),
    first=st.none() | st.integers(1, 5),
    special=st.booleans(),
)
def test_padding_on_either_side_changes_nothing(row, before, after, choose, start, first, special):
    policy = TokenPolicy(choose=choose, start=start, first=first, special=special)
    bare = torch.tensor([row])
    padded = torch.nn.functional.pad(bare, (before, after), value=EOS)
    attention = torch.nn.functional.pad(torch.ones_like(bare), (before, after)).bool()
    expected = policy.mask(bare, torch.ones_like(bare).bool(), SPECIAL)
    mask = policy.mask(padded, attention, SPECIAL)
    assert mask[:, before : before + len(row)].equal(expected)
    assert mask.sum() == expected.sum()


def test_the_arguments_are_left_as_they_were():
    tokens, attention = TOKENS.clone(), ATTENTION.clone()
    TokenPolicy(start=1, first=2, choose="random").mask(tokens, attention, SPECIAL)
    assert tokens.equal(TOKENS) and attention.equal(ATTENTION)


def test_a_policy_survives_json():
    for policy in (
        TokenPolicy(),
        TokenPolicy.everything(),
        TokenPolicy(special=True, first=3, start=2, choose="random", seed=7),
    ):
        assert TokenPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_keys_left_out_take_their_defaults():
    assert TokenPolicy.from_dict({"choose": "last"}) == TokenPolicy(choose="last")


def test_an_unknown_key_is_refused_and_the_nearest_named():
    with pytest.raises(UserError, match=r"specials.*\n.*did you mean `special`"):
        TokenPolicy.from_dict({"specials": True})
    with pytest.raises(UserError, match="known: special"):
        TokenPolicy.from_dict({"zzzzzz": True})


@pytest.mark.parametrize("wrong", [{"start": -1}, {"first": 0}, {"first": -3}, {"choose": "first"}])
def test_values_out_of_range_are_refused(wrong, wrong_types_allowed):
    with pytest.raises(UserError, match=next(iter(wrong))):
        TokenPolicy.from_dict(wrong)
