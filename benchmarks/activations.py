"""Files of activations that everybody trains and is measured on.

    python benchmarks/activations.py [--model NAME] [--tokens N] [--held-out N]

A file holds one tensor "x" [n, d_in], fp32: activations of one hook point, centred and scaled to
mean norm sqrt(d_in) by statistics of the training part, in the order in which they are trained on.
Training and held-out tokens come from different documents; text is repeated where it is short of
training tokens. Files are made once, under benchmarks/.cache.
"""

import argparse
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from monosemy import LM, open_corpus
from monosemy.activations import LiveActivations, ShufflePool, Statistics
from monosemy.activations.synthetic import SyntheticFeatures
from monosemy.corpus import TokenStream
from monosemy.errors import UserError
from monosemy.lm.load import locate

CACHE = Path(__file__).parent / ".cache"
CONTEXT, ROWS = 128, 32
POOL = 65_536
STATISTICS_TOKENS = 32_768
BATCH = 2048


@dataclass(frozen=True)
class Source:
    """A model, its text and where in it activations are taken."""

    model: str
    corpus: str
    hookpoint: str
    described: str


SOURCES = {
    "stdlib": Source(
        "builtin:stdlib", "builtin:stdlib", "layers.2", "embedded model (Llama, Python code)"
    ),
    "prose": Source(
        str(CACHE / "prose_lm" / "model"),
        str(CACHE / "prose_lm" / "text.jsonl"),
        "layers.2",
        "GPT-2 of `recipes/prose_lm.py` (English)",
    ),
}
SYNTHETIC = SyntheticFeatures(
    d_in=64, n_features=512, l0=6, zipf=0.5, correlation=0.3, hierarchy=0.2, seed=0
)


@dataclass(frozen=True)
class Files:
    """Where training and held-out activations lie."""

    name: str
    train: Path
    held_out: Path

    def load(self):
        """Return both in memory."""
        return load_file(self.train)["x"], load_file(self.held_out)["x"]


def model_activations(name, tokens, held_out):
    """Return the files of a model in `SOURCES`, made if they are not there.

    Raises:
        UserError: the model has not been trained yet.
    """
    source = SOURCES[name]
    if not source.model.startswith("builtin:") and not Path(source.model).exists():
        raise UserError(
            f"there is no model `{name}` in {source.model}",
            "train it, in about five minutes: python recipes/prose_lm.py --data FILE_OR_FOLDER",
        )
    # Trained again, a model is another one: its weights are part of the name.
    weights = Path(locate(source.model)) / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    files = _files(f"{name}-{digest}-{source.hookpoint}", tokens, held_out)
    if files.train.exists() and files.held_out.exists():
        return files
    lm, corpus = LM(source.model, device="cpu"), open_corpus(source.corpus)
    x, statistics = _train(lm, corpus, source.hookpoint, tokens)
    _save(x, files.train)
    _save(_held_out(lm, corpus, source.hookpoint, held_out, statistics), files.held_out)
    return files


def synthetic_activations(tokens, held_out):
    """Return the files of sums of known directions; what is true of them is in `SYNTHETIC`."""
    files = _files("synthetic", tokens, held_out)
    if not files.train.exists() or not files.held_out.exists():
        x, _ = SYNTHETIC.sample(tokens, seed=1)
        statistics = Statistics.of([x])
        _save(statistics.apply(x), files.train)
        _save(statistics.apply(SYNTHETIC.sample(held_out, seed=2)[0]), files.held_out)
    return files


def _files(name, tokens, held_out):
    folder = CACHE / "activations"
    train = folder / f"{name}-train-{tokens}.safetensors"
    return Files(name, train, folder / f"{name}-held-out-{held_out}-of-{tokens}.safetensors")


@torch.no_grad()
def _train(lm, corpus, hookpoint, tokens):
    """Return the first `tokens` rows that a shuffled pool serves, normal, and their statistics."""
    live = LiveActivations(lm, _stream(lm, corpus, "train", epochs=None), [hookpoint])
    pool = ShufflePool(live, size=min(POOL, tokens), batch_size=BATCH)
    pool.fill()
    statistics = Statistics.of([pool.rows[hookpoint][:STATISTICS_TOKENS]])
    x = torch.cat([statistics.apply(next(pool)[hookpoint]) for _ in range(-(-tokens // BATCH))])
    return x[:tokens], statistics


@torch.no_grad()
def _held_out(lm, corpus, hookpoint, tokens, statistics):
    """Return the first `tokens` rows of held-out text; in any order."""
    pieces, count = [], 0
    for batch in LiveActivations(lm, _stream(lm, corpus, "held_out"), [hookpoint]):
        pieces.append(statistics.apply(batch[hookpoint]))
        count += len(pieces[-1])
        if count >= tokens:
            break
    return torch.cat(pieces)[:tokens]


def _stream(lm, corpus, part, epochs=1):
    return TokenStream(corpus, lm.tokenizer, part=part, context=CONTEXT, rows=ROWS, epochs=epochs)


def _save(x, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    save_file({"x": x.contiguous()}, draft)
    shutil.move(draft, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[*SOURCES, "synthetic"], default="stdlib")
    parser.add_argument("--tokens", type=int, default=1_048_576, help="to train on")
    parser.add_argument("--held-out", type=int, default=65_536, help="to measure on")
    args = parser.parse_args()
    if args.model == "synthetic":
        files = synthetic_activations(args.tokens, args.held_out)
    else:
        files = model_activations(args.model, args.tokens, args.held_out)
    for path in (files.train, files.held_out):
        x = load_file(path)["x"]
        print(f"{path}: {list(x.shape)}, mean norm {x.norm(dim=1).mean():.3f}")


if __name__ == "__main__":
    main()
