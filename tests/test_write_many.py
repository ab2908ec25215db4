"""Many prompts at once: each is continued as if it were alone."""

from __future__ import annotations

import pytest
import torch
from tiny_models import (
    tiny_gemma2,
    tiny_gpt2,
    tiny_gpt_neox,
    tiny_llama,
    tiny_qwen2,
    tiny_tokenizer,
)

from monosemy.coders import Add, Clamp
from monosemy.errors import UserError
from monosemy.intervene import FeatureEdit, Firing, Positions
from monosemy.lm import LM
from monosemy.training import Run

PROMPTS = ["def read_file(path):", "x", "for index, name in", "return value + 1"]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_gpt_neox, tiny_qwen2, tiny_gemma2])
def test_each_is_written_as_if_alone(build, temperature: float) -> None:
    lm = LM(build(), tiny_tokenizer())
    seeds = [3, 4, 5, 3]
    many = lm.write_many(PROMPTS, max_new_tokens=10, temperature=temperature, seeds=seeds)
    for prompt, seed, found in zip(PROMPTS, seeds, many, strict=True):
        alone = lm.write(prompt, max_new_tokens=10, temperature=temperature, seed=seed)
        assert torch.equal(found.tokens, alone.tokens)
        assert (found.start, found.text) == (alone.start, alone.text)


def test_batches_and_the_cache_make_no_difference(lm: LM) -> None:
    settings = {"max_new_tokens": 8, "temperature": 1.0, "seeds": [1, 2, 3, 4]}
    first = lm.write_many(PROMPTS, **settings)
    for other in ({"rows": 1}, {"rows": 3}, {"use_cache": False}):
        again = lm.write_many(PROMPTS, **settings, **other)
        assert [w.text for w in again] == [w.text for w in first], other
    state = torch.random.get_rng_state()
    same = lm.write_many(["def"] * 3, temperature=1.0, seeds=7, max_new_tokens=8)
    assert len({w.text for w in same}) == 1
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "positions", ["all", "prompt", "generated", range(2, 9), "firing"], ids=str
)
def test_edits_touch_the_same_places_as_in_one_text(run: Run, positions: Positions) -> None:
    first, second = run.dictionary.strength.topk(2).indices.tolist()
    if positions == "firing":
        positions = Firing(second)
    edit = FeatureEdit(run.dictionary, [Clamp({first: 2.0}), Add({second: 1.0})], positions)
    plain = run.lm.write_many(PROMPTS, max_new_tokens=10)
    with run.lm.edit(edit):
        many = run.lm.write_many(PROMPTS, max_new_tokens=10)
        alone = [run.lm.write(prompt, max_new_tokens=10) for prompt in PROMPTS]
    assert [w.tokens.tolist() for w in many] == [w.tokens.tolist() for w in alone]
    assert [w.text for w in many] != [w.text for w in plain]


def test_each_ends_at_its_own_end_of_text() -> None:
    lm = LM(tiny_llama(), tiny_tokenizer())
    written = lm.write(PROMPTS[0], max_new_tokens=8)
    lm.model.generation_config.eos_token_id = int(written.tokens[written.start + 3])
    many = lm.write_many(PROMPTS, max_new_tokens=8)
    alone = [lm.write(prompt, max_new_tokens=8) for prompt in PROMPTS]
    assert [w.tokens.tolist() for w in many] == [w.tokens.tolist() for w in alone]
    assert len({len(w.tokens) - w.start for w in many}) > 1


def test_what_cannot_be_written_is_refused_before_anything_is(lm: LM) -> None:
    with pytest.raises(UserError, match="2 seeds for 4 prompts"):
        lm.write_many(PROMPTS, seeds=[1, 2])
    with pytest.raises(UserError, match="takes fewer than 64"):
        lm.write_many(["def", "def " * 100])
    bare = LM(tiny_llama(), tiny_tokenizer(bos=False))
    with pytest.raises(UserError, match="the prompt is empty"):
        bare.write_many(["def", ""])
    assert lm.write_many([]) == []
