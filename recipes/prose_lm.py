"""Train a small GPT-2 on any text: a second model to try things on, unlike `builtin:stdlib`.

    python recipes/prose_lm.py --data FILE_OR_FOLDER [...] --out benchmarks/.cache/prose_lm

About five minutes on two CPU cores with bf16 matrix units; --minutes sets how long it trains. The
steps:

1. read the text; a tenth of the documents, the ones that monosemy holds out, is never trained on;
2. train a byte-level BPE tokenizer of 4,096 tokens on the rest;
3. train a GPT-2 (learned positions, LayerNorm, GELU; Muon for matrices, AdamW for the rest; a
   constant learning rate, then a linear decay over the last 40% of the time);
4. score it on the held-out documents in bits per byte, beside token n-grams;
5. write `model/`, the model with its tokenizer and figures, and `text.jsonl`, the text it was
   trained on and scored with, so that the folder is all that later work needs.

A few megabytes of text make a poor writer, but a model with features: what is wanted here.
Needs PyTorch 2.9 or newer (for its Muon) and a C++ compiler (for torch.compile).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from text_model import BOS, VOCABULARY, bits_per_byte, encode, train_bpe
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from monosemy import open_corpus
from monosemy.corpus import Document

CONTEXT = 256
BATCH = 16
WARM_UP_STEPS, DECAY = 50, 0.4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="text to train on")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/.cache/prose_lm"))
    parser.add_argument("--minutes", type=float, default=4.5, help="time to train")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    documents = [d for path in args.data for d in open_corpus(path).documents("all")]
    train = [d.text for d in documents if not d.is_held_out()]
    held_out = [d.text for d in documents if d.is_held_out()]
    tokenizer = train_tokenizer(train)
    model = GPT2LMHeadModel(model_config(args.dropout))
    steps = train_model(model, encode(tokenizer, train), args)

    save(model, tokenizer, args.out / "model")
    write_text(documents, args.out / "text.jsonl")
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_tokens": sum(map(len, encode(tokenizer, train))),
        "tokens_seen": steps * BATCH * CONTEXT,
        "held_out_documents": len(held_out),
        "bits_per_byte": bits_per_byte(model.eval(), tokenizer, held_out, CONTEXT),
        "baselines": baselines(tokenizer, train, held_out),
    }
    (args.out / "model" / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def model_config(dropout: float) -> GPT2Config:
    return GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=192,
        n_layer=4,
        n_head=4,
        activation_function="gelu",
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=0.0,
    )


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    train_bpe(tokenizer, texts)
    return tokenizer


# --- training -------------------------------------------------------------------------------


def train_model(model: GPT2LMHeadModel, documents: list[np.ndarray], args) -> int:
    """Train until the time is up; return the number of steps."""
    matrices = [p for n, p in model.named_parameters() if ".h." in n and p.ndim == 2]
    others = [p for n, p in model.named_parameters() if not (".h." in n and p.ndim == 2)]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    loss_of = torch.compile(lambda batch: next_token_loss(model, batch))
    loss_of(next(batches(documents, args.seed))).backward()  # compiles before the clock starts
    model.zero_grad()
    began, step = time.monotonic(), 0
    for step, batch in enumerate(batches(documents, args.seed)):
        spent = (time.monotonic() - began) / (60 * args.minutes)
        if spent >= 1:
            break
        loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * min((step + 1) / WARM_UP_STEPS, 1.0, (1 - spent) / DECAY)
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0:
            rate = (step + 1) * BATCH * CONTEXT / (time.monotonic() - began)
            print(f"{spent:4.0%}  loss {loss.item():.3f}  {rate:,.0f} tokens/s", flush=True)
    return step


def batches(documents: list[np.ndarray], seed: int) -> Iterator[Tensor]:
    """Rows of BOS and CONTEXT-1 tokens, for ever; each epoch shuffles and cuts anew."""
    body = CONTEXT - 1
    for epoch in range(10**6):
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(documents))
        stream = np.concatenate([np.append(documents[i], 0) for i in order])
        stream = stream[rng.integers(body) :]
        rows = stream[: len(stream) // body * body].reshape(-1, body)
        rows = rows[rng.permutation(len(rows))]
        for start in range(0, len(rows) - BATCH + 1, BATCH):
            batch = rows[start : start + BATCH]
            yield torch.from_numpy(np.pad(batch, ((0, 0), (1, 0))))


def next_token_loss(model: GPT2LMHeadModel, batch: Tensor) -> Tensor:
    """Mean cross-entropy in nats."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, VOCABULARY).float(), batch[:, 1:].reshape(-1))


# --- figures --------------------------------------------------------------------------------


def baselines(tokenizer: Tokenizer, train: list[str], held_out: list[str]) -> dict[str, float]:
    """Bits per byte of the same text under token n-grams, which need no network."""
    size = sum(len(text.encode()) for text in held_out)
    seen, asked = encode(tokenizer, train), encode(tokenizer, held_out)
    names = {1: "token unigram", 2: "token bigram", 3: "token trigram"}
    return {name: NGram(seen, n).bits(asked) / size for n, name in names.items()}


class NGram:
    """Token n-grams, each order smoothed with the one below it (Witten and Bell 1991).

    p(w | h) = (count(h w) + kinds(h) p(w | h')) / (count(h) + kinds(h)), where kinds(h) is the
    number of different tokens that followed h, and h' is h without its first token.
    """

    def __init__(self, documents: list[np.ndarray], order: int) -> None:
        self.order = order
        self.counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        self.totals: dict[tuple[int, ...], int] = defaultdict(int)
        for ids in documents:
            for place, history in self._places(ids.tolist()):
                for cut in range(len(history) + 1):
                    self.counts[history[cut:]][place] += 1
                    self.totals[history[cut:]] += 1

    def bits(self, documents: list[np.ndarray]) -> float:
        """Bits of all tokens of some documents."""
        places = (p for ids in documents for p in self._places(ids.tolist()))
        return sum(-math.log2(self._chance(token, history)) for token, history in places)

    def _places(self, ids: list[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
        for i, token in enumerate(ids):
            yield token, tuple(ids[max(i - self.order + 1, 0) : i])

    def _chance(self, token: int, history: tuple[int, ...]) -> float:
        shorter = self._chance(token, history[1:]) if history else 1 / VOCABULARY
        if history not in self.totals:
            return shorter
        kinds = len(self.counts[history])
        seen = self.counts[history][token]
        return (seen + kinds * shorter) / (self.totals[history] + kinds)


def save(model: GPT2LMHeadModel, tokenizer: Tokenizer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, model_max_length=CONTEXT
    ).save_pretrained(out)


def write_text(documents: list[Document], path: Path) -> None:
    """Write documents as JSON lines; the held-out ones stay so, a hash of the text decides."""
    lines = [json.dumps({"text": d.text}, ensure_ascii=False) for d in documents]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
