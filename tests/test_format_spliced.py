"""A spliced model is a model of `transformers`: saved, loaded, generated from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from handmade import make_transcoder
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError
from tiny_models import TINY_CAUSAL, tiny_bert
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import monosemy
from monosemy.coders import BatchTopK, Clamp, Dictionary, Provenance
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.evaluation.splice import spliced
from monosemy.formats.spliced import SplicedConfig, SplicedForCausalLM
from monosemy.intervene import FeatureEdit
from monosemy.lm import LM
from monosemy.training import Run

TOKENS = torch.tensor([[0, 5, 17, 40, 3, 99], [0, 8, 8, 61, 2, 7]])


@pytest.fixture(scope="module")
def dictionary(run: Run) -> Dictionary:
    return run.dictionary


@pytest.fixture
def model(lm: LM, dictionary: Dictionary) -> SplicedForCausalLM:
    return monosemy.splice(lm, dictionary)


def through(lm: LM, dictionary: Dictionary, tokens: Tensor = TOKENS) -> Tensor:
    """Logits with the dictionary's reconstruction in its place, as suites measure them."""
    with spliced(lm, dictionary, dictionary.coder.reconstruct):
        return lm.logits(tokens)


def test_logits_are_those_of_the_dictionary_in_its_place(
    model: SplicedForCausalLM, lm: LM, dictionary: Dictionary
) -> None:
    torch.testing.assert_close(model(TOKENS).logits, through(lm, dictionary))
    assert not torch.allclose(model(TOKENS).logits, lm.logits(TOKENS), atol=1e-3)


def test_the_base_model_stays_as_it_was(model: SplicedForCausalLM, lm: LM) -> None:
    before = lm.logits(TOKENS)
    model(TOKENS)
    assert torch.equal(lm.logits(TOKENS), before)


def test_with_the_error_kept_nothing_changes(lm: LM, dictionary: Dictionary) -> None:
    model = monosemy.splice(lm, dictionary, error="keep")
    assert torch.equal(model(TOKENS).logits, lm.logits(TOKENS))


def test_clamped_features_are_those_of_an_edit(lm: LM, dictionary: Dictionary) -> None:
    feature = int(dictionary.strength.argmax())
    model = monosemy.splice(lm, dictionary, clamp={feature: 2.0}, error="keep")
    with lm.edit(FeatureEdit(dictionary, [Clamp({feature: 2.0})])):
        expected = lm.logits(TOKENS)
    text = ~torch.isin(TOKENS, torch.tensor(sorted(lm.special_ids)))
    torch.testing.assert_close(model(TOKENS).logits[text], expected[text])


def test_saved_and_loaded_it_is_the_same(model: SplicedForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    assert AutoConfig.from_pretrained(tmp_path / "m").model_type == "monosemy-spliced"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert isinstance(again, SplicedForCausalLM)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    assert isinstance(again.coder, BatchTopK)
    assert again.coder.threshold == model.coder.threshold
    assert again.config.dictionary == model.config.dictionary
    again.save_pretrained(tmp_path / "again")
    twice = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(twice(TOKENS).logits, model(TOKENS).logits)


def test_what_is_pushed_loads_again(
    model: SplicedForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's part is played by a folder."""

    def create_repo(api: HfApi, repo_id: str, **kwargs: object) -> SimpleNamespace:
        return SimpleNamespace(repo_id=repo_id)

    def create_commit(
        api: HfApi, repo_id: str, operations: list[CommitOperationAdd], **kwargs: object
    ) -> None:
        for operation in operations:
            shutil.copy(str(operation.path_or_fileobj), tmp_path / operation.path_in_repo)

    def no_card(*args: object, **kwargs: object) -> None:
        raise EntryNotFoundError("no card")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(ModelCard, "load", no_card)
    model.push_to_hub("somebody/spliced")
    card = (tmp_path / "README.md").read_text()
    assert "monosemy" in card and "sparse-autoencoder" in card
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_it_loads_in_a_fresh_process(model: SplicedForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    code = (
        "import sys, torch\n"
        "from monosemy import SplicedForCausalLM\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "logits = model(torch.tensor([[0, 5, 17]])).logits.detach()\n"
        "print(type(model).__name__, float(logits.sum()))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, total = done.stdout.split()
    assert name == "SplicedForCausalLM"
    assert float(total) == pytest.approx(
        float(model(torch.tensor([[0, 5, 17]])).logits.detach().sum())
    )


def test_it_writes_the_same_with_and_without_a_cache(
    model: SplicedForCausalLM, lm: LM, dictionary: Dictionary
) -> None:
    given = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(TOKENS, use_cache=True, **given)
    assert torch.equal(cached, model.generate(TOKENS, use_cache=False, **given))
    with spliced(lm, dictionary, dictionary.coder.reconstruct):
        expected = lm.model.generate(TOKENS, **given)
    assert torch.equal(cached, expected)
    assert cached.shape[1] > TOKENS.shape[1]


def test_a_transcoder_writes_at_its_target(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    transcoder = make_transcoder(lm, corpus)
    model = monosemy.splice(lm, transcoder)
    torch.testing.assert_close(model(TOKENS).logits, through(lm, transcoder))
    model.save_pretrained(tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_gradients_reach_base_and_coder(model: SplicedForCausalLM) -> None:
    model.train()
    model.coder.requires_grad_(True)
    try:
        model(TOKENS, labels=TOKENS).loss.backward()
        embedding = model.get_input_embeddings().weight
        assert embedding.grad is not None and embedding.grad.abs().sum() > 0
        assert model.coder.W_dec.grad is not None and model.coder.W_dec.grad.abs().sum() > 0
        assert model.coder.W_enc.grad is not None and model.coder.W_enc.grad.abs().sum() > 0
    finally:
        model.zero_grad()
        model.eval()


def test_in_half_precision_the_dictionary_keeps_its_own(
    model: SplicedForCausalLM, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "m")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    assert half.base.dtype == torch.bfloat16
    assert half.coder.W_enc.dtype == torch.float32
    assert half(TOKENS).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("family", sorted(set(TINY_CAUSAL) - {"llama"}))
def test_every_family(family: str, tmp_path: Path) -> None:
    """Tied embeddings, other names, other caches: saved and loaded, the same logits."""
    lm = LM(TINY_CAUSAL[family]())
    width = lm.hookpoint("layers.1").width
    coder = BatchTopK(width, 2 * width, k=8).requires_grad_(False)
    provenance = Provenance(model=family, hookpoint="layers.1", context=16)
    dictionary = Dictionary(coder, provenance, torch.ones(2 * width), torch.zeros(width), 1.0, None)
    model = monosemy.splice(lm, dictionary)
    torch.testing.assert_close(model(TOKENS).logits, through(lm, dictionary))
    model.save_pretrained(tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    assert isinstance(again.base, PreTrainedModel)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied


def test_a_model_that_does_not_write_is_refused(dictionary: Dictionary) -> None:
    with pytest.raises(UserError, match="no causal language model"):
        monosemy.splice(LM(tiny_bert()), dictionary)


def test_an_unknown_feature_is_refused(lm: LM, dictionary: Dictionary) -> None:
    with pytest.raises(UserError, match="no feature 4096"):
        monosemy.splice(lm, dictionary, clamp={4096: 1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("coder"), "has no `coder`"),
        (lambda c: c.pop("reads_at"), "has no `reads_at`"),
        (lambda c: c["coder"].pop("width"), "`coder` of the configuration"),
        (lambda c: c["base_config"].update(model_type="martian"), "`martian`, which is not known"),
        (lambda c: c["coder"].update(architecture="magic"), "no architecture `magic`"),
        (lambda c: c.update(error="half"), "error is `half`"),
    ],
)
def test_a_broken_configuration_is_one_clear_error(
    model: SplicedForCausalLM, tmp_path: Path, change: object, message: str
) -> None:
    model.save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    change(config)  # type: ignore[operator]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path / "m")


def test_the_configuration_alone(tmp_path: Path) -> None:
    """Tools make configurations without arguments, to see what is usual."""
    SplicedConfig().save_pretrained(tmp_path)
    assert SplicedConfig.from_pretrained(tmp_path).coder is None
