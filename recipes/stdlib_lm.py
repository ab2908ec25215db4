"""Train `builtin:stdlib`, the small language model that monosemy ships, from nothing.

    python recipes/stdlib_lm.py --out runs/stdlib_lm

About an hour and a quarter on two CPU cores with bf16 matrix units. The steps:

1. read the standard library of the running Python, its test-suite included; a tenth of the
   files, chosen by a hash of their path, is never trained on;
2. train a byte-level BPE tokenizer of 4,096 tokens on the rest;
3. train a Llama-style model (Muon for matrices, AdamW for the embedding and gains; constant
   learning rate, then a linear decay over the last part), saving checkpoints on the way; then a
   little more, at a quarter of the learning rate, on the library without its test-suite, which
   is two thirds of the text and would otherwise set the tone of what the model writes;
4. score it on the held-out files in bits per byte, beside a unigram model and xz;
5. write `model/`: the half-precision model, its tokenizer and the figures.

Stopped at any moment and started again with the same command, it goes on from its last
checkpoint. While the learning rate is still constant, `--tokens` may be changed between starts.
Needs PyTorch 2.9 or newer (for its Muon) and a C++ compiler (for torch.compile).
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from text_model import BOS, VOCABULARY, bits_per_byte, encode, train_bpe
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from monosemy.corpus.stdlib import stdlib_documents

CONTEXT = 512
BATCH = 32
# Words take the space, dot or underscore before them along; punctuation that ends a line takes
# the line break and the indentation. 3.81 bytes a token on held-out code; GPT-2's rule: 3.58.
WORDS = r"[ ._]?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+(?:\n(?:    )*(?! ))?|\s+(?!\S)|\s+"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/stdlib_lm"))
    parser.add_argument("--tokens", type=int, default=34_000_000, help="tokens to train on")
    parser.add_argument(
        "--decay", type=float, default=0.35, help="share of training spent decaying"
    )
    parser.add_argument("--finish", type=int, default=4_000_000, help="tokens without the tests")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    documents = list(stdlib_documents(tests=True))
    held_out_names = {d.id for d in stdlib_documents() if d.is_held_out()}
    train = [d.text for d in documents if not d.is_held_out()]
    held_out = [d.text for d in documents if d.id in held_out_names]
    held_out_tests = [d.text for d in documents if d.is_held_out() and d.id not in held_out_names]

    tokenizer = load_or_train_tokenizer(args.out / "tokenizer.json", train)
    model = LlamaForCausalLM(model_config())
    library = [d.text for d in stdlib_documents() if not d.is_held_out()]
    train_model(
        model,
        encode(tokenizer, train),
        Stage("all", args.tokens, args.lr, args.decay, args.seed),
        args.out,
        seen=0,
    )
    train_model(
        model,
        encode(tokenizer, library),
        Stage("library", args.finish, args.lr / 4, 1.0, args.seed + 1),
        args.out,
        seen=args.tokens,
    )

    save(model, tokenizer, args.out / "model")
    # The figures are those of the weights that ship.
    model = LlamaForCausalLM.from_pretrained(args.out / "model", dtype=torch.float32).eval()
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": args.tokens + args.finish,
        "held_out_files": len(held_out),
        "bits_per_byte": bits_per_byte(model, tokenizer, held_out, CONTEXT),
        "bits_per_byte_test_suite": bits_per_byte(model, tokenizer, held_out_tests, CONTEXT),
        "baselines": baselines(tokenizer, train, held_out),
    }
    (args.out / "model" / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    print(continue_text(model, tokenizer, "def read_file(path):"))


def model_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )


# --- tokenizer ------------------------------------------------------------------------------


def load_or_train_tokenizer(path: Path, texts: list[str]) -> Tokenizer:
    if path.exists():
        return Tokenizer.from_file(str(path))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    train_bpe(tokenizer, texts)
    tokenizer.save(str(path))
    return tokenizer


# --- training -------------------------------------------------------------------------------


def batches(documents: list[np.ndarray], seed: int, skip: int) -> Iterator[Tensor]:
    """Rows of BOS and CONTEXT-1 tokens; each epoch shuffles documents, cuts and rows anew."""
    step = 0
    for epoch in range(10**6):
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(documents))
        stream = np.concatenate([np.append(documents[i], 0) for i in order])
        stream = stream[rng.integers(CONTEXT) :]
        rows = stream[: len(stream) // (CONTEXT - 1) * (CONTEXT - 1)].reshape(-1, CONTEXT - 1)
        rows = rows[rng.permutation(len(rows))]
        for start in range(0, len(rows) - BATCH + 1, BATCH):
            step += 1
            if step > skip:
                batch = rows[start : start + BATCH]
                yield torch.from_numpy(np.pad(batch, ((0, 0), (1, 0))))


@dataclass(frozen=True)
class Stage:
    """A stretch of training with a learning rate schedule of its own."""

    name: str
    tokens: int
    lr: float
    decay: float
    """Share of the steps, the last ones, over which the learning rate falls to zero."""
    seed: int

    @property
    def steps(self) -> int:
        return self.tokens // (BATCH * CONTEXT)

    def learning_rate(self, step: int) -> float:
        left = max(self.steps - step, 1) / (self.steps * self.decay)
        return self.lr * min((step + 1) / 50, 1.0, left)


def train_model(
    model: LlamaForCausalLM, documents: list[np.ndarray], stage: Stage, out: Path, *, seen: int
) -> None:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=stage.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=stage.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    state = out / f"state_{stage.name}.pt"
    done = load_state(state, model, optimizers)
    loss_of = torch.compile(lambda batch: next_token_loss(model, batch))
    saves = checkpoint_steps(stage.steps)
    began = time.time()
    log = (out / "log.jsonl").open("a")
    for step, batch in enumerate(batches(documents, stage.seed, done), start=done):
        if step >= stage.steps:
            break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate(step)
        loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 10 == 0:
            rate = (step + 1 - done) * BATCH * CONTEXT / (time.time() - began)
            left = (stage.steps - step) * BATCH * CONTEXT / rate / 60
            line = {"stage": stage.name, "step": step, "of": stage.steps, "loss": loss.item()}
            print(line, f"{rate:,.0f} tokens/s, {left:.0f} min left", flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
        if step + 1 in saves:
            save_checkpoint(
                model,
                out / "checkpoints" / f"{stage.name}_{step + 1}",
                seen + (step + 1) * BATCH * CONTEXT,
            )
        if (step + 1) % 50 == 0 or step + 1 == stage.steps:
            save_state(state, model, optimizers, step + 1)


def next_token_loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Mean cross-entropy in nats; logits are made a slice at a time, which is faster on CPU."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch, use_cache=False).last_hidden_state[:, :-1]
        hidden, targets = hidden.reshape(-1, hidden.shape[-1]), batch[:, 1:].reshape(-1)
        total = torch.zeros(())
        for h, y in zip(hidden.split(2048), targets.split(2048), strict=True):
            total = total + F.cross_entropy(model.lm_head(h).float(), y, reduction="sum")
    return total / targets.numel()


def checkpoint_steps(steps: int) -> set[int]:
    """Powers of two, and sixteen equal parts."""
    powers = {2**i for i in range(int(math.log2(steps)) + 1)}
    return powers | {steps * i // 16 for i in range(1, 17)}


def save_checkpoint(model: LlamaForCausalLM, folder: Path, tokens: int) -> None:
    """Keep a model, and note beside it how many tokens it was trained on in all."""
    model.save_pretrained(folder)
    notes = folder.parent / "checkpoints.json"
    known = json.loads(notes.read_text()) if notes.exists() else {}
    notes.write_text(json.dumps({**known, folder.name: tokens}, indent=2) + "\n")


def save_state(path: Path, model: nn.Module, optimizers: list, step: int) -> None:
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    draft = path.with_suffix(".tmp")
    torch.save(state, draft)
    draft.replace(path)


def load_state(path: Path, model: nn.Module, optimizers: list) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]


# --- figures --------------------------------------------------------------------------------


def baselines(tokenizer: Tokenizer, train: list[str], held_out: list[str]) -> dict[str, float]:
    """Bits per byte of the same held-out bytes under models that need no network."""
    size = sum(len(text.encode()) for text in held_out)
    counts = Counter(np.concatenate(encode(tokenizer, train)).tolist())
    total = sum(counts.values()) + VOCABULARY
    ids = np.concatenate(encode(tokenizer, held_out)).tolist()
    unigram = sum(-math.log2((counts[i] + 1) / total) for i in ids)
    before, after = "".join(train).encode(), "".join(held_out).encode()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 2**26}]
    packed = [len(lzma.compress(b, filters=filters)) for b in (after, before, before + after)]
    return {
        "token unigram": unigram / size,
        "xz, held-out files alone": packed[0] * 8 / size,
        "xz, after reading the training files": (packed[2] - packed[1]) * 8 / size,
    }


@torch.no_grad()
def continue_text(model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str) -> str:
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False
    )
    return tokenizer.decode(out[0].tolist())


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, model_max_length=CONTEXT
    ).save_pretrained(out)


if __name__ == "__main__":
    main()
