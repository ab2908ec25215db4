"""What work will take: counted exactly where it can be, and held against what it took."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MixtralConfig, MixtralForCausalLM

from monosemy.cli.main import main
from monosemy.coders import make_coder
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.lm import LM, empty_model
from monosemy.training.costs import (
    Job,
    Rates,
    largest_width,
    model_size,
    phases,
    probe,
    remedies,
)
from monosemy.training.machine import machine_named, this_machine
from monosemy.training.member import Member

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
JOB = Job(width=16_000_000, k=64, tokens=10**9, context=128, batch=2048, pool=65_536)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(LLAMA_70B))
    return path


@pytest.fixture(scope="module")
def large(config_file: Path) -> LM:
    return LM(empty_model(config_file))


def test_a_model_is_counted_without_its_weights(large: LM) -> None:
    size = model_size(large, large.hookpoint("layers.40"), 2)
    assert size.parameters == 70_553_706_496
    assert size.bytes == 2 * size.parameters
    assert (size.layers, size.all_layers, size.d) == (41, 80, 8192)
    # All but the embedding, which is looked up, works on every token.
    assert size.all_parameters == pytest.approx(size.parameters - 128256 * 8192, rel=1e-6)
    assert size.block_parameters == pytest.approx(41 / 80 * 68_452_876_288, rel=1e-3)


def test_memory_is_that_of_what_is_held(large: LM) -> None:
    size = model_size(large, large.hookpoint("layers.40"), 2)
    block, head = 855_654_400, 128256 * 8192
    # Harvesting holds 41 of 80 blocks and no head; what is measured in nats takes all.
    held = size.parameters - 39 * block - head
    harvest, _, evaluation, features = phases(size, machine_named("h100x8"), JOB)
    assert harvest.parts["model"] == 2 * held
    assert evaluation.parts["model"] == features.parts["model"] == 2 * size.parameters


def test_of_experts_those_that_are_chosen_count() -> None:
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        vocab_size=100,
    )
    lm = LM(MixtralForCausalLM(config).eval())
    size = model_size(lm, lm.hookpoint("layers.1"))
    experts = 2 * 8 * 3 * 32 * 64
    assert size.parameters - 2 * 100 * 32 - 32 - size.block_parameters == experts * 6 // 8


def test_sixteen_million_features_on_70b_have_an_answer(large: LM) -> None:
    size, machine = model_size(large, large.hookpoint("layers.40"), 2), machine_named("h100x8")
    harvest, training, *_ = phases(size, machine, JOB)
    assert training.parts["weights, gradients, Adam"] == 16 * 2 * 8192 * 16_000_000
    assert harvest.disk == 10**9 * (8192 * 2 + 4)
    assert harvest.flops == pytest.approx(10**9 * 2 * 41 / 80 * 68.45e9, rel=0.02)
    said = remedies([training], size, machine, JOB)
    assert len(said) == 1 and "a width up to 2,4" in said[0]


@settings(max_examples=30)
@given(
    name=st.sampled_from(["t4", "l4", "h100", "h100x8"]),
    k=st.integers(1, 512),
    pool=st.integers(2048, 10**6),
)
def test_the_largest_width_fits_and_the_next_does_not(
    large: LM, name: str, k: int, pool: int
) -> None:
    size, machine = model_size(large, large.hookpoint("layers.40"), 2), machine_named(name)
    job = replace(JOB, k=k, pool=pool)
    width = largest_width(machine, size, job)

    def fits(width: int) -> bool:
        return phases(size, machine, replace(job, width=width))[1].device <= machine.device_memory

    assert width == 0 or fits(width)
    assert not fits(width + 100)


def test_what_a_member_holds_is_what_is_said(lm: LM) -> None:
    coder = make_coder("topk", 64, 2048, k=8)
    member = Member(coder, lr=1e-3, steps=10, dead_after=10**6)
    member.step(torch.randn(256, 64))
    held = sum(
        2 * p.numel() * 4 + sum(s.numel() * 4 for s in member.optimizer.state[p].values())
        for p in coder.parameters()
    )
    job = Job(width=2048, k=8, tokens=10**6, context=32, batch=256, pool=4096)
    size = replace(model_size(lm, lm.hookpoint("layers.1")), d=64)
    parts = phases(size, machine_named("l4"), job)[1].parts
    assert parts["weights, gradients, Adam"] == pytest.approx(held, rel=0.02)


def test_a_probe_measures_this_machine(
    lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("monosemy.training.costs.PROBE_SECONDS", 0.2)
    job = Job(width=64, k=4, tokens=10**6, context=32, batch=256, pool=4096)
    rates = probe(lm, corpus, "layers.1", job)
    machine = this_machine(lm.device, tmp_path / "not" / "there")
    assert rates.harvest and rates.training and machine.flops > 1e8 and machine.bandwidth > 1e7
    harvest, training, *_ = phases(model_size(lm, lm.hookpoint("layers.1")), machine, job, rates)
    assert harvest.seconds == pytest.approx(10**6 / rates.harvest)
    assert training.seconds == pytest.approx(10**6 / rates.training)
    assert (
        remedies([harvest, training], model_size(lm, lm.hookpoint("layers.1")), machine, job) == []
    )


def test_a_store_larger_than_the_disk_is_said(lm: LM, tmp_path: Path) -> None:
    size = model_size(lm, lm.hookpoint("layers.1"))
    machine = replace(this_machine(lm.device, tmp_path), disk=1e6)
    job = Job(width=64, k=4, tokens=10**6, context=32, batch=256, pool=4096)
    (said,) = remedies(phases(size, machine, job, Rates(1.0, 1.0)), size, machine, job)
    assert "of disk" in said and "at most 14,705 tokens" in said


def test_the_command_prints_and_writes(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "--model-config", str(config_file), "--hardware", "h100x8"]
    main([*arguments, "--width", "16000000", "--price", "20", "--json", str(tmp_path / "p.json")])
    printed = capsys.readouterr().out
    for word in ("harvest", "training", "evaluation", "features", "cost", "a width up to"):
        assert word in printed
    written = json.loads((tmp_path / "p.json").read_text())
    assert [phase["name"] for phase in written["phases"]][:2] == ["harvest", "training"]
    assert len(written["does_not_fit"]) == 3


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--hardware", "h101"], "no hardware `h101`"),
        (["--hardware", "h100x0"], "no hardware `h100x0`"),
        (["--model-config", "nowhere.json", "--hardware", "h100"], "no file `nowhere.json`"),
        (["--model-config", "nowhere.json"], "has no weights to run here"),
        (["--hardware", "h100", "--width", "0"], "width is 0"),
        (["--hardware", "h100", "--price", "-1"], "price is -1"),
        (["--hardware", "h100", "--width", "8", "--k", "9"], "k is 9, but the dictionary has 8"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["plan", *arguments])
    assert what in capsys.readouterr().err


def test_a_config_that_makes_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(UserError, match="makes no model"):
        empty_model(tmp_path / "c.json")
