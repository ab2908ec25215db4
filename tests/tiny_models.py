"""Tiny models with random weights, one of each family, and a tiny tokenizer: no download."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from monosemy.lm import LM

VOCABULARY = 300
WIDTH = 32
LAYERS = 3
BATCH, TIME = 2, 7
BOS = "<|endoftext|>"

_TEXT = [
    "def read_file(path):\n    with open(path) as file:\n        return file.read()\n",
    "for index, name in enumerate(names):\n    print(index, name)\n",
    "The quick brown fox jumps over the lazy dog. Ünïcödé 東京 🦊.",
]


def tiny_tokenizer(vocab: int = VOCABULARY, *, bos: bool = True) -> PreTrainedTokenizerFast:
    """A trained byte-level BPE tokenizer; with `bos`, BOS and EOS have id 0 and BOS is prepended.

    `vocab` is an upper limit (256 bytes, the special token, and merges that the text gives).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS] if bos else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    if not bos:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS)


def tiny_llama(*, seed: int = 0, layers: int = LAYERS, vocab: int = VOCABULARY) -> PreTrainedModel:
    return _causal("Llama", seed, **decoder_settings(layers, vocab))


def tiny_gpt2(*, seed: int = 0, layers: int = LAYERS, vocab: int = VOCABULARY) -> PreTrainedModel:
    config = {"n_embd": WIDTH, "n_layer": layers, "n_head": 4, "n_positions": 64}
    config |= {"vocab_size": vocab, **_TOKEN_IDS}
    return tiny_model("GPT2Config", "GPT2LMHeadModel", seed, **config)


def tiny_gpt_neox(*, seed: int = 0, layers: int = LAYERS) -> PreTrainedModel:
    return _causal("GPTNeoX", seed, **decoder_settings(layers))


def tiny_qwen2(*, seed: int = 0, layers: int = LAYERS) -> PreTrainedModel:
    return _causal("Qwen2", seed, **decoder_settings(layers))


def tiny_qwen3_moe(*, seed: int = 0, layers: int = LAYERS) -> PreTrainedModel:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return _causal("Qwen3Moe", seed, **decoder_settings(layers), **experts, head_dim=8)


def tiny_gemma2(*, seed: int = 0, layers: int = LAYERS) -> PreTrainedModel:
    return _causal("Gemma2", seed, **decoder_settings(layers), head_dim=8, sliding_window=8)


def tiny_olmo(*, seed: int = 0, layers: int = LAYERS) -> PreTrainedModel:
    return _causal("Olmo", seed, **decoder_settings(layers))


def tiny_mamba(*, seed: int = 0, layers: int = LAYERS) -> PreTrainedModel:
    config = {"hidden_size": WIDTH, "num_hidden_layers": layers, "state_size": 4}
    return _causal("Mamba", seed, vocab_size=VOCABULARY, **config, **_TOKEN_IDS)


def tiny_bert(*, seed: int = 0, layers: int = LAYERS) -> PreTrainedModel:
    return tiny_model("BertConfig", "BertForMaskedLM", seed, **decoder_settings(layers))


def tiny_vit(*, seed: int = 0, layers: int = LAYERS) -> PreTrainedModel:
    config = decoder_settings(layers) | {"image_size": 16, "patch_size": 8}
    return tiny_model("ViTConfig", "ViTForImageClassification", seed, **config)


TINY_CAUSAL: dict[str, Callable[..., PreTrainedModel]] = {
    "gpt2": tiny_gpt2,
    "gpt_neox": tiny_gpt_neox,
    "llama": tiny_llama,
    "qwen2": tiny_qwen2,
    "qwen3_moe": tiny_qwen3_moe,
    "gemma2": tiny_gemma2,
    "olmo": tiny_olmo,
    "mamba": tiny_mamba,
}
"""Builders of the causal language models, by family."""

TINY: dict[str, Callable[..., PreTrainedModel]] = {
    **TINY_CAUSAL,
    "bert": tiny_bert,
    "vit": tiny_vit,
}
"""Builders of every family."""

_TOKEN_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}


def decoder_settings(layers: int = LAYERS, vocab: int = VOCABULARY) -> dict:
    """The settings that most configurations share."""
    return {
        "vocab_size": vocab,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        **_TOKEN_IDS,
    }


def _causal(family: str, seed: int, **config: object) -> PreTrainedModel:
    return tiny_model(f"{family}Config", f"{family}ForCausalLM", seed, **config)


def tiny_model(config_name: str, model_name: str, seed: int, **config: object) -> PreTrainedModel:
    """A model of any class in `transformers`, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # A wide initialisation, so that the logits of a model this small are far from uniform.
        settings = getattr(transformers, config_name)(**config, initializer_range=0.2)
        return getattr(transformers, model_name)(settings).eval()


def inputs_for(lm: LM, seed: int = 0) -> dict[str, Tensor]:
    """What a tiny model reads: token ids, or images."""
    generator = torch.Generator().manual_seed(seed)
    if lm.config.model_type == "vit":
        return {"pixel_values": torch.randn(BATCH, 3, 16, 16, generator=generator)}
    return {"input_ids": torch.randint(1, VOCABULARY, (BATCH, TIME), generator=generator)}
