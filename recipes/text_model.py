"""What the recipes for small language models share: their tokens and their score."""

from __future__ import annotations

import math

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from torch.nn import functional as F
from transformers import PreTrainedModel

BOS = "<|endoftext|>"
VOCABULARY = 4096


def train_bpe(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Train a byte-level BPE tokenizer that has its model and pre-tokenizer; BOS is token 0."""
    tokenizer.decoder = ByteLevelDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Token ids of each text, without BOS."""
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [np.array(e.ids, dtype=np.int64) for e in encodings]


@torch.no_grad()
def bits_per_byte(
    model: PreTrainedModel, tokenizer: Tokenizer, texts: list[str], context: int
) -> float:
    """Bits the model needs for a byte of `texts`: every token scored once, nothing carried over.

    Each text is cut into pieces of context-1 tokens, each behind a BOS, so the first tokens of a
    piece are predicted with little context; a sliding window would give a lower figure.
    """
    bits, size = 0.0, sum(len(text.encode()) for text in texts)
    for ids in encode(tokenizer, texts):
        for piece in np.split(ids, range(context - 1, len(ids), context - 1)):
            row = torch.from_numpy(np.append(0, piece))[None]
            logits = model(input_ids=row, use_cache=False).logits[0, :-1]
            bits += F.cross_entropy(logits, row[0, 1:], reduction="sum").item() / math.log(2)
    return bits / size
