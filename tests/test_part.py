"""A model loaded up to a hook point: what is there is the whole model's, the rest is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    LAYERS,
    TINY,
    WIDTH,
    inputs_for,
    tiny_gpt2,
    tiny_llama,
    tiny_model,
    tiny_qwen3_moe,
    tiny_tokenizer,
)
from transformers import PreTrainedModel

from monosemy.cli.main import main
from monosemy.coders import Dictionary
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.evaluation import evaluate
from monosemy.lm import LM, empty_model
from monosemy.training import train


@pytest.fixture(params=TINY, scope="module")
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[LM]:
    """A model of each family, and the same as far as its second block."""
    folder = saved(TINY[request.param](), tmp_path_factory.mktemp(request.param))
    return [LM(folder, tiny_tokenizer(), device="cpu", upto=upto) for upto in (None, "layers.1")]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny_llama(), tmp_path_factory.mktemp("llama"))


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path, upto: str | list[str] | None = None) -> LM:
    return LM(folder, tiny_tokenizer(), device="cpu", upto=upto)


# --- what is there --------------------------------------------------------------------------


def test_a_part_has_the_names_and_activations_of_the_whole(both: list[LM]) -> None:
    whole, part = both
    points = part.hookpoints(all=True)
    known = whole.hookpoints(all=True)
    assert set(points) < set(known)
    last = whole.hookpoint("layers.1")
    assert {p for p in known if p.name.startswith(("layers.0", "layers.1", "embed"))} <= {*points}
    assert part.hookpoints() == whole.hookpoints()[: whole.hookpoints().index(last) + 1]
    names = [name for point in points for name in (point.name, *point.aliases)]
    mine, theirs = (lm.capture(inputs_for(whole), names) for lm in (part, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in names)


def test_a_part_is_known_as_the_whole_is(both: list[LM]) -> None:
    whole, part = both
    for name in ("name", "revision", "n_layers", "is_causal", "context_limit", "special_ids"):
        assert getattr(part, name) == getattr(whole, name)
    assert part.config.to_dict() == whole.config.to_dict()
    assert (whole.upto, part.upto) == (None, "layers.1")
    assert "3 layers, loaded up to layers.1" in repr(part)


def test_padded_text_gives_the_same(both: list[LM]) -> None:
    if "pixel_values" in inputs_for(both[0]):
        return
    tokens = inputs_for(both[0])["input_ids"]
    mask = torch.arange(tokens.shape[1]).expand_as(tokens) >= 3
    mine, theirs = (lm.capture(tokens, ["layers.1"], attention_mask=mask) for lm in both)
    assert torch.equal(mine["layers.1"], theirs["layers.1"])


@pytest.mark.parametrize(
    ("build", "after"),
    [(tiny_gpt2, ("transformer.h.2.",)), (tiny_llama, ("model.layers.2.", "lm_head."))],
)
def test_a_part_holds_the_parameters_of_its_blocks_and_no_others(
    build: Callable[[], PreTrainedModel], after: tuple[str, ...], tmp_path: Path
) -> None:
    expected = {n: p for n, p in build().named_parameters() if not n.startswith(after)}
    folder = saved(build(), tmp_path)
    part = load(folder, "layers.1")
    held = dict(part.model.named_parameters())
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[name], expected[name]) for name in held)
    count = sum(p.numel() for p in expected.values())
    assert part.count_parameters() == load(folder).count_parameters("layers.1") == count
    assert LM(empty_model(folder)).count_parameters("layers.1") == count


@pytest.mark.parametrize(
    ("upto", "last"),
    [
        ("embed", "embed"),
        ("layers.0.attn", "layers.0"),
        ("blocks.0.hook_resid_post", "layers.0"),
        ("layers.1.mlp.up_proj", "layers.1"),
        (["layers.1.mlp", "embed", "layers.0"], "layers.1"),
        ("layers.2", "layers.2"),
        ("final_norm", None),
        (["layers.0", "lm_head"], None),
    ],
)
def test_the_last_of_the_hook_points_decides(
    llama: Path, upto: str | list[str], last: str | None
) -> None:
    lm = load(llama, upto)
    names = [upto] if isinstance(upto, str) else upto
    assert lm.upto == last
    found, expected = lm.capture(inputs_for(lm), names), load(llama).capture(inputs_for(lm), names)
    assert all(torch.equal(found[name], expected[name]) for name in names)


def test_what_depends_on_the_depth_of_the_model_stays(tmp_path: Path) -> None:
    # Here the last two blocks of six take keys and values from earlier ones.
    model = tiny_model(
        "Gemma3nTextConfig",
        "Gemma3nForCausalLM",
        0,
        vocab_size=300,
        vocab_size_per_layer_input=300,
        hidden_size=WIDTH,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        layer_types=["sliding_attention", "full_attention"] * 3,
        activation_sparsity_pattern=[0.0] * 6,
    )
    folder = saved(model, tmp_path)
    tokens = inputs_for(load(folder))["input_ids"]
    for upto in ("layers.3.attn", "layers.4.attn"):
        mine, theirs = (lm.capture(tokens, [upto])[upto] for lm in (load(folder, upto), LM(model)))
        assert torch.equal(mine, theirs)


def test_blocks_that_share_weights_can_be_left_out(tmp_path: Path) -> None:
    model = tiny_model(
        "Zamba2Config",
        "Zamba2ForCausalLM",
        0,
        vocab_size=300,
        hidden_size=WIDTH,
        num_hidden_layers=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        hybrid_layer_ids=[1, 3],
        num_attention_heads=4,
        attention_head_dim=16,
        mamba_d_state=8,
        mamba_headdim=8,
        n_mamba_heads=8,
        intermediate_size=64,
    )
    folder = saved(model, tmp_path)
    part = load(folder, "layers.2")
    assert part.count_parameters() == load(folder).count_parameters("layers.2")
    assert part.count_parameters() < load(folder).count_parameters()
    tokens = inputs_for(part)["input_ids"]
    mine, theirs = (lm.capture(tokens, ["layers.2"])["layers.2"] for lm in (part, LM(model)))
    assert torch.equal(mine, theirs)


def test_an_encoder_decoder_is_loaded_whole(tmp_path: Path) -> None:
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": LAYERS, "num_heads": 4}
    model = tiny_model("T5Config", "T5ForConditionalGeneration", 0, vocab_size=300, **sizes)
    lm = load(saved(model, tmp_path), "layers.0")
    assert lm.upto is None and lm.count_parameters() == LM(model).count_parameters()


# --- what is not ----------------------------------------------------------------------------


def test_what_takes_the_whole_model_is_refused(llama: Path) -> None:
    part = load(llama, "layers.1")
    tokens = inputs_for(part)["input_ids"]
    for call in (
        lambda: part.logits(tokens),
        lambda: part.generate("def"),
        lambda: part.unembedding(),
        lambda: part.model(tokens),  # around it
    ):
        with pytest.raises(UserError, match=r"loaded up to `layers.1` only\nload it whole"):
            call()


@pytest.mark.parametrize(
    "name",
    ["layers.2", "layers.2.mlp.up_proj", "blocks.2.hook_resid_post", "final_norm", "model.norm"],
)
def test_later_hook_points_are_refused(llama: Path, name: str) -> None:
    part = load(llama, "layers.1")
    said = f"no `{name}`: this model was loaded up to `layers.1` only"
    with pytest.raises(UserError, match=said):
        part.capture(inputs_for(part), [name])
    with pytest.raises(UserError, match=said), part.edit({name: lambda x, tokens: x}):
        pass


def test_a_head_that_shares_its_weights_is_refused_too(both: list[LM]) -> None:
    part = both[1]
    with pytest.raises(UserError, match="no logits: this model was loaded up to"):
        part.logits(inputs_for(part))
    with pytest.raises(UserError, match="no output: this model was loaded up to"):
        part.model(**inputs_for(part))


def test_a_name_that_is_nowhere_is_refused_before_weights_are_read(
    llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    with pytest.raises(
        UserError, match=r"(?s)unknown hook point `layers.3`.*layers\.0 to layers\.2"
    ):
        load(tmp_path, "layers.3")
    with pytest.raises(UserError, match=r"unknown hook point `layers\.3`"):
        load(llama, "layers.1").hookpoint("layers.3")


def test_a_model_object_cannot_be_cut() -> None:
    with pytest.raises(UserError, match="`upto` was given with a model object"):
        LM(tiny_llama(), upto="layers.0")


# --- weights --------------------------------------------------------------------------------


def test_weights_left_out_are_not_remarked_on_but_others_are(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(llama, "layers.0")
    assert "UNEXPECTED" not in caplog.text
    folder = saved(tiny_llama(), tmp_path)
    weights = load_file(folder / "model.safetensors")
    stray = {**weights, "model.stray": torch.zeros(2)}
    save_file(stray, folder / "model.safetensors", {"format": "pt"})
    load(folder, "layers.0")
    assert caplog.text.count("UNEXPECTED |") == 1 and "model.stray" in caplog.text


def test_weights_that_are_needed_and_missing_are_an_error(tmp_path: Path) -> None:
    folder = saved(tiny_llama(), tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights of a LlamaForCausalLM: .*layers\.1"):
        load(folder, "layers.1")
    assert load(folder, "layers.0").upto == "layers.0"


def test_a_checkpoint_saved_without_its_head_can_be_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tiny_gpt2().transformer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for architectures in (["GPT2LMHeadModel"], ["GPT2Model"], None):
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
        whole, part = load(tmp_path), load(tmp_path, "layers.1")
        assert "UNEXPECTED" not in caplog.text
        assert part.hookpoint("layers.1") == whole.hookpoint("layers.1")
        found = [lm.capture(inputs_for(lm), ["layers.1"])["layers.1"] for lm in (whole, part)]
        assert torch.equal(*found)


def test_a_model_without_weights_says_so(tmp_path: Path) -> None:
    empty = LM(empty_model(saved(tiny_qwen3_moe(), tmp_path)))
    assert empty.hookpoint("layers.1.mlp").width == WIDTH
    with pytest.raises(UserError, match="takes weights to be run"):
        empty.hookpoint("layers.1.mlp.gate")


# --- who uses it ----------------------------------------------------------------------------

SMALL = {"width": 64, "k": 6, "tokens": 2048, "batch": 512, "pool": 2048, "context": 32}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number, document in enumerate(texts):
        (folder / f"{number}.py").write_text(document)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, text: Path) -> Path:
    """A run of the command line, at the default hook point. Do not change it."""
    out = tmp_path_factory.mktemp("runs") / "part"
    options = [f"--{name}={value}" for name, value in SMALL.items()]
    where = [f"--model={checkpoint}", f"--data={text}", "--device=cpu", f"--out={out}"]
    main(["train", *where, *options])
    return out


def test_a_store_made_from_a_part_is_that_of_the_whole(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = ["--model", str(checkpoint), "--data", str(text), "--hookpoint", "layers.0", "layers.1"]
    build += ["--tokens", "2000", "--context", "32", "--device", "cpu"]
    main(["store", "build", str(tmp_path / "part"), *build])
    monkeypatch.setattr(
        "monosemy.cli.store.LM", lambda model, upto, **settings: LM(model, **settings)
    )
    main(["store", "build", str(tmp_path / "whole"), *build])
    manifests = []
    for folder in ("part", "whole"):
        manifest = json.loads((tmp_path / folder / "manifest.json").read_text())
        manifests.append({k: v for k, v in manifest.items() if k not in ("seconds", "written")})
    assert manifests[0] == manifests[1]  # the checksums of the shards among it


def test_a_dictionary_trained_on_a_part_is_that_of_the_whole(
    trained: Path, checkpoint: Path, text: Path
) -> None:
    whole = train(LM(checkpoint, device="cpu"), text, **SMALL).dictionary
    part = Dictionary.from_pretrained(trained)
    assert part.hookpoint == whole.hookpoint == "layers.1"
    ours, theirs = (d.provenance.to_dict() for d in (part, whole))
    assert {**ours, "training": {}} == {**theirs, "training": {}}
    for name, weight in whole.coder.state_dict().items():
        assert torch.equal(part.coder.state_dict()[name], weight), name
    mine, other = part.fingerprint, whole.fingerprint
    assert mine is not None and other is not None and mine.expected == other.expected
    assert torch.equal(mine.tokens, other.tokens)
    assert torch.equal(mine.strongest, other.strongest)


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (["stats", "MODEL", "--hookpoint", "layers.0", "--tokens", "500"], "up to layers.0"),
        (["stats", "MODEL", "--tokens", "500"], "up to layers.2"),
        (["train", "--model", "MODEL", "--dry-run"], "up to layers.1"),
        (["train", "--model", "MODEL", "--dry-run", "--target", "layers.2"], "up to layers.2"),
        (["train", "--model", "MODEL", "--dry-run", "--objective", "kl"], "3 layers, width"),
        (["train", "--model", "MODEL", "--dry-run", "--samples"], "3 layers, width"),
    ],
)
def test_commands_load_no_more_than_they_need(
    checkpoint: Path,
    text: Path,
    arguments: list[str],
    loaded: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(checkpoint) if word == "MODEL" else word for word in arguments]
    main([*words, "--data", str(text), "--context", "32", "--device", "cpu"])
    assert loaded in " ".join(capsys.readouterr().out.split())


def test_a_run_goes_on_with_as_much_of_the_model(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    seen: list[str | None] = []

    class Seen(LM):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            seen.append(self.upto)

    monkeypatch.setattr("monosemy.training.run.LM", Seen)
    main(["resume", str(tmp_path / "run"), "--extend", "3072"])
    assert seen == ["layers.1"]


def test_losses_of_the_model_take_all_of_it(
    trained: Path, checkpoint: Path, corpus: Corpus
) -> None:
    part = LM(checkpoint, device="cpu", upto="layers.1")
    with pytest.raises(UserError, match="objective is `kl`: this model was loaded up to"):
        train(part, corpus, "layers.1", objective="kl", **SMALL)
    with pytest.raises(UserError, match="the effect on the loss cannot be measured"):
        evaluate(Dictionary.from_pretrained(trained), part, corpus)
