from __future__ import annotations

import pytest
import torch
from tiny_models import TINY_CAUSAL, inputs_for, tiny_llama, tiny_tokenizer
from torch import Tensor

from monosemy.coders import Dictionary
from monosemy.corpus import Corpus
from monosemy.evaluation import reader
from monosemy.evaluation.reader import Reader
from monosemy.lm import LM, Replay
from monosemy.training import Run


def turned(x: Tensor, tokens: Tensor | None) -> Tensor:
    return x.flip(-1) * 1.5


@pytest.mark.parametrize("family", TINY_CAUSAL)
def test_a_replay_gives_what_a_whole_pass_gives(family: str) -> None:
    lm = LM(TINY_CAUSAL[family](), tiny_tokenizer())
    tokens = inputs_for(lm)["input_ids"]
    names = ["embed", "layers.0", "layers.1.mlp", "layers.1", "layers.2", "final_norm"]
    points = {point.name for point in lm.hookpoints()}
    for name in [name for name in names if name in points]:
        replay = Replay(lm, name)
        before = replay.record(tokens)
        assert torch.equal(before, lm.logits(tokens))
        with lm.edit({name: turned}):
            edited, whole = replay.again(), lm.logits(tokens)
        assert torch.equal(edited, whole) and not torch.equal(edited, before)
        assert torch.equal(replay.again(), before)
        assert torch.equal(lm.logits(tokens), before), "something was left behind"


def test_blocks_before_the_hook_point_run_once(lm: LM) -> None:
    ran: list[int] = []
    blocks = lm.model.model.layers
    handles = [
        block.self_attn.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, block in enumerate(blocks)
    ]
    tokens = inputs_for(lm)["input_ids"]
    replay = Replay(lm, "layers.1")
    replay.record(tokens)
    ran.clear()
    replay.again()
    assert ran == [2]
    replay = Replay(lm, "layers.1.mlp")
    replay.record(tokens)
    ran.clear()
    replay.again()
    assert ran == [1, 2]
    for handle in handles:
        handle.remove()


def test_a_model_that_reads_its_first_blocks_again_runs_whole() -> None:
    """The last block gets what the first one gave, by another way than the stream."""
    model = tiny_llama()
    first, last = model.model.layers[0], model.model.layers[2]
    first.self_attn.register_forward_hook(lambda m, args, out: setattr(m, "aside", out[0]))
    last.register_forward_pre_hook(lambda m, args: (args[0] + first.self_attn.aside, *args[1:]))
    last.register_forward_hook(lambda *_: setattr(first.self_attn, "aside", 0.0))
    lm = LM(model, tiny_tokenizer())
    tokens = inputs_for(lm)["input_ids"]
    replay = Replay(lm, "layers.1")
    before = replay.record(tokens)
    assert torch.equal(replay.again(), before)
    with lm.edit({"layers.1": turned}):
        assert torch.equal(replay.again(), lm.logits(tokens))


def test_after_an_error_blocks_are_themselves_again(lm: LM) -> None:
    tokens = inputs_for(lm)["input_ids"]
    before = lm.logits(tokens)
    replay = Replay(lm, "layers.1")
    replay.record(tokens)
    with pytest.raises(ZeroDivisionError), lm.edit({"layers.1": lambda x, t: x * (1 // 0)}):
        replay.again()
    assert torch.equal(lm.logits(tokens), before)


def test_text_is_read_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary, passes = run.dictionary, []
    capture = LM.capture

    def counting(self: LM, tokens: Tensor, *args: object, **kwargs: object) -> dict[str, Tensor]:
        passes.append(len(tokens))
        return capture(self, tokens, *args, **kwargs)

    monkeypatch.setattr(LM, "capture", counting)
    ours = Reader(dictionary, run.lm, run.corpus)
    first = [ours.activations(batch)["layers.1"] for batch in ours.stream("held_out")]
    read = len(passes)
    second = [ours.activations(batch)["layers.1"] for batch in ours.stream("held_out")]
    assert len(passes) == read == len(first) > 1
    assert all(a is b for a, b in zip(first, second, strict=True))
    plain = list(dictionary.provenance.stream(run.lm, run.corpus, "held_out"))
    assert all(
        torch.equal(mine.tokens, theirs.tokens)
        for mine, theirs in zip(ours.stream("held_out"), plain, strict=True)
    )


def test_activations_past_the_limit_are_computed_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "KEPT_BYTES", 0)
    ours = Reader(run.dictionary, run.lm, run.corpus)
    batch = next(iter(ours.stream("train")))
    once, twice = ours.activations(batch), ours.activations(batch)
    assert torch.equal(once["layers.1"], twice["layers.1"])
    assert once["layers.1"] is not twice["layers.1"]


def test_the_sample_is_the_first_training_tokens(run: Run, corpus: Corpus) -> None:
    dictionary: Dictionary = run.dictionary
    x, y = Reader(dictionary, run.lm, corpus).sample(700)
    assert len(x) == 700 and x is y
    batch = next(iter(dictionary.provenance.stream(run.lm, corpus, "train")))
    first = run.lm.capture(batch.tokens, ["layers.1"])["layers.1"][batch.counted][:100]
    torch.testing.assert_close(x[:100], first)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_are_replayed_as_often_as_they_are_named(family: str) -> None:
    lm = LM(TINY_CAUSAL[family](), tiny_tokenizer())
    tokens = inputs_for(lm)["input_ids"]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, :2] = False
    rows = torch.tensor([1, 0, 1])
    for name in ("embed", "layers.1", "layers.1.mlp"):
        replay = Replay(lm, name)
        before = replay.record(tokens, mask, last=1)
        torch.testing.assert_close(before, lm.logits(tokens, attention_mask=mask)[:, -1:])
        put: list[Tensor] = []

        def edit(x: Tensor, tokens: Tensor | None, put: list[Tensor] = put) -> Tensor:
            put.append(turned(x, tokens).detach().requires_grad_())
            return put[0].clone()

        with lm.edit({name: edit}):
            found = replay.again(rows, gradients=True, last=1)
        with lm.edit({name: turned}):
            whole = lm.logits(tokens, attention_mask=mask)[rows, -1:]
        torch.testing.assert_close(found, whole)
        (gradient,) = torch.autograd.grad(found.sum(), put[0])
        assert gradient.shape == (3, *tokens.shape[1:], 32) and gradient.abs().sum() > 0
