"""Speed and quality of other libraries' sparse autoencoders, on activations from a file.

Runs in the environment that `benchmarks/setup_peers.sh` makes, and imports nothing of monosemy:

    benchmarks/.peers/bin/python benchmarks/peers.py speed --pairs saelens:topk,sparsify:topk \
        --activations x.safetensors --width 8192 --k 32
    benchmarks/.peers/bin/python benchmarks/peers.py train --pair saelens:topk \
        --train train.safetensors --held-out held.safetensors --width 8192 --k 32 --steps 1000

A file holds one tensor "x" [n, d_in]: activations centred and scaled to mean norm sqrt(d_in). The
last line on stdout is one JSON object; all else goes to stderr.

A pair is LIBRARY:ARCHITECTURE. Each library trains as it does by itself: its own step, and its own
defaults where it has them. What its documentation sets differently, or what could not stay, is
said beside the line that sets it.
"""

import argparse
import contextlib
import gc
import importlib
import importlib.metadata
import itertools
import json
import os
import sys
import tempfile
import time

import torch
from safetensors import safe_open
from safetensors.torch import save_file

# Sizes of the nested groups of a Matryoshka coder, as shares of its width: the same for everyone.
# They are dictionary_learning's; the last group takes what rounding leaves.
MATRYOSHKA = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32]

# Architectures whose code no k bounds: a speed is to be read beside the L0 that it was reached at.
WITHOUT_K = {"jumprelu", "gated", "relu", "p_anneal"}

# Architectures of which training tracks one threshold for inference.
WITH_THRESHOLD = {"batch_topk", "matryoshka"}

# Held-out tokens of which --codes writes who fires.
CODE_ROWS = 16_384


class Peer:
    """One library's sparse autoencoder with its trainer.

    Args:
        architecture: a name in `architectures`.
        d_in: activation width.
        width: number of features.
        k: features per token; the target L0 of a JumpReLU; not used by gated, relu and p_anneal.
        lr: learning rate; None for the library's own rule.
        steps: training steps to come, for schedules.
        seed: of the initial weights.
        batch: tokens a step.
        sparsity: coefficient of the sparsity penalty, where there is one; None for the default.
        decay: share of the steps, the last ones, over which the learning rate falls.
    """

    package = ""
    architectures: tuple[str, ...] = ()
    matmul_precision = "highest"

    def __init__(
        self, architecture, d_in, width, k, lr, steps, seed, batch, sparsity=None, decay=0.0
    ):
        self.architecture, self.d_in, self.width, self.k = architecture, d_in, width, k
        self.lr, self.steps, self.seed, self.batch = lr, steps, seed, batch
        self.sparsity, self.decay = sparsity, decay
        torch.set_float32_matmul_precision(self.matmul_precision)
        torch.manual_seed(seed)
        self.setup()

    def setup(self):
        """Make the coder, its optimiser and what else its trainer keeps."""
        raise NotImplementedError

    def step(self, x):
        """One complete training step on `x` [tokens, d_in]."""
        raise NotImplementedError

    def encode(self, x):
        """The code [tokens, width] of `x` at inference, dense."""
        raise NotImplementedError

    def forward(self, x):
        """The reconstruction of `x` at inference, in the units of `x`."""
        raise NotImplementedError

    def decoder(self):
        """The decoder [width, d_in], a feature a row."""
        raise NotImplementedError

    def set_threshold(self, bar):
        """Let features fire at inference where they exceed `bar`, the same for all."""
        raise NotImplementedError


class SAELens(Peer):
    """SAELens: its `SAETrainer`, its inference model.

    It recommends inputs of mean norm sqrt(d_in) ("expected_average_only_in"): ours as they are.
    """

    package = "sae-lens"
    classes = {
        "topk": "TopK",
        "batch_topk": "BatchTopK",
        "matryoshka": "MatryoshkaBatchTopK",
        "jumprelu": "JumpReLU",
        "gated": "Gated",
        "relu": "Standard",
    }
    penalties = {"jumprelu": "l0_coefficient", "gated": "l1_coefficient", "relu": "l1_coefficient"}
    architectures = tuple(classes)

    def setup(self):
        import sae_lens
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        name = self.classes[self.architecture] + "TrainingSAE"
        config = getattr(sae_lens, name + "Config")(
            d_in=self.d_in, d_sae=self.width, **self.options()
        )
        self.sae = getattr(sae_lens, name)(config)
        training = SAETrainerConfig(
            total_training_samples=self.steps * self.batch,
            train_batch_size_samples=self.batch,
            lr_decay_steps=int(self.decay * self.steps),
            **({} if self.lr is None else {"lr": self.lr}),
        )
        # The runner fills this in: where a decay ends.
        training.lr_end = training.lr / 10
        # The trainer is stepped from outside, so it never asks for data.
        self.trainer = SAETrainer(training, self.sae, data_provider=iter(()))
        self.inference = None

    def options(self):
        """What the coder's configuration needs beside the sizes."""
        options = {}
        if self.architecture not in WITHOUT_K:
            options["k"] = self.k
        elif self.sparsity is not None:
            options[self.penalties[self.architecture]] = self.sparsity
        if self.architecture == "jumprelu":
            # Of its three losses the one that aims at an L0.
            options |= {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(self.k)}
        if self.architecture == "matryoshka":
            sizes = matryoshka_sizes(self.width)
            options["matryoshka_widths"] = list(itertools.accumulate(sizes))
        # use_sparse_activations of TopK stays off, as by default: its backward fails in this torch.
        return options

    def step(self, x):
        # The body of SAETrainer.fit, without logging.
        self.inference = None
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def inference_sae(self):
        """The coder as the library saves it for use: a JumpReLU for BatchTopK, norms folded."""
        if self.inference is None:
            from sae_lens import SAE

            with tempfile.TemporaryDirectory() as folder:
                self.sae.save_inference_model(folder)
                self.inference = SAE.load_from_disk(folder)
        return self.inference

    def encode(self, x):
        return self.inference_sae().encode(x)

    def forward(self, x):
        return self.inference_sae()(x)

    def decoder(self):
        return self.inference_sae().W_dec

    def set_threshold(self, bar):
        self.inference_sae().threshold.data.fill_(bar)


class DictionaryLearning(Peer):
    """dictionary_learning: its trainers' own `update`.

    It recommends inputs of mean square norm 1. The factor is taken from the first batch.
    """

    package = "dictionary-learning"
    classes = {
        "topk": ("top_k", "TopKTrainer"),
        "batch_topk": ("batch_top_k", "BatchTopKTrainer"),
        "matryoshka": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer"),
        "jumprelu": ("jumprelu", "JumpReluTrainer"),
        "gated": ("gdm", "GatedSAETrainer"),
        "relu": ("standard", "StandardTrainer"),
        "p_anneal": ("p_anneal", "PAnnealTrainer"),
    }
    penalties = {
        "jumprelu": "sparsity_penalty",
        "gated": "l1_penalty",
        "relu": "l1_penalty",
        "p_anneal": "initial_sparsity_penalty",
    }
    architectures = tuple(classes)

    def setup(self):
        module, name = self.classes[self.architecture]
        module = importlib.import_module("dictionary_learning.trainers." + module)
        options = self.options()
        if self.lr is not None:
            options["lr"] = self.lr
        self.trainer = getattr(module, name)(
            steps=self.steps,
            activation_dim=self.d_in,
            dict_size=self.width,
            seed=self.seed,
            device="cpu",
            # Where the activations are from: written down, not used.
            layer=0,
            lm_name="",
            **options,
        )
        self.scale = None
        self.done = 0

    def options(self):
        """The trainer's options that are not as they are by default."""
        options = {"warmup_steps": self.early(1000)}
        if self.decay:
            options["decay_start"] = int((1 - self.decay) * self.steps)
        if self.architecture in ("topk", "batch_topk", "matryoshka"):
            options |= {"k": self.k, "threshold_start_step": self.early(1000)}
        else:
            options |= {"sparsity_warmup_steps": self.early(2000)}
        if self.architecture == "matryoshka":
            options["group_fractions"] = MATRYOSHKA
        if self.architecture == "jumprelu":
            options["target_l0"] = float(self.k)
        if self.architecture == "p_anneal":
            # The default, L_p with p falling to 0, ends in a division by zero. These two are from
            # the library's demo.
            options |= {"sparsity_function": "Lp^p", "p_end": 0.2}
            options["anneal_start"] = self.early(15000)
        if self.sparsity is not None and self.architecture in self.penalties:
            options[self.penalties[self.architecture]] = self.sparsity
        return options

    def early(self, default):
        """A step by which something starts: the default, but within a run's first tenth.

        The trainers refuse a warm-up longer than the run, and a threshold that is not tracked
        before step 1000 would leave a shorter run without one.
        """
        return min(default, self.steps // 10)

    def step(self, x):
        if self.scale is None:
            self.scale = 1 / x.pow(2).sum(-1).mean().sqrt()
        self.trainer.update(self.done, x * self.scale)
        self.done += 1

    def encode(self, x):
        return self.trainer.ae.encode(x * self.scale)

    def forward(self, x):
        return self.trainer.ae(x * self.scale) / self.scale

    def decoder(self):
        ae = self.trainer.ae
        return ae.W_dec if hasattr(ae, "W_dec") else ae.decoder.weight.T

    def set_threshold(self, bar):
        self.trainer.ae.threshold.fill_(bar)


class Sparsify(Peer):
    """Sparsify: its `SparseCoder` in the inner part of its `Trainer.fit`.

    That loop reads from a model's hooks, so its lines for one coder are repeated here, in its
    order, without its masking of tokens. AuxK, off by default, is on.
    """

    package = "eai-sparsify"
    architectures = ("topk",)
    # Trainer.fit sets it.
    matmul_precision = "high"
    auxk_alpha = 1 / 32
    dead_after = 10_000_000

    def setup(self):
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
        from schedulefree import ScheduleFreeWrapper
        from sparsify import SparseCoder, SparseCoderConfig
        from sparsify.sign_sgd import SignSGD

        config = SparseCoderConfig(num_latents=self.width, k=self.k)
        self.coder = SparseCoder(self.d_in, config, dtype=torch.float32)
        lr = self.lr or 5e-3 / (self.width / 2**14) ** 0.5
        groups = [{"params": self.coder.parameters(), "lr": lr}]
        self.optimizer = ScheduleFreeWrapper(SignSGD(groups), momentum=0.95)
        self.since_fired = torch.zeros(self.width, dtype=torch.long)
        self.did_fire = torch.zeros(self.width, dtype=torch.bool)
        self.first = True

    def step(self, x):
        coder = self.coder
        self.optimizer.train()
        if self.first:
            coder.b_dec.data = x.mean(0)
            self.first = False
        coder.set_decoder_norm_to_unit_norm()
        total_variance = (x - x.mean(0)).pow(2).sum()
        out = coder(
            x=x,
            y=x,
            dead_mask=self.since_fired > self.dead_after,
            total_variance=total_variance,
        )
        self.did_fire[out.latent_indices.flatten()] = True
        # The loop keeps both for its log, whether or not there is one.
        float(out.fvu.detach()), float(out.auxk_loss.detach())
        (out.fvu + self.auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.since_fired += len(x)
        self.since_fired[self.did_fire] = 0
        self.did_fire.zero_()

    def inference_coder(self):
        """The coder with the weights that the library saves: their average over the steps."""
        self.optimizer.eval()
        return self.coder

    def encode(self, x):
        out = self.inference_coder().encode(x)
        return torch.zeros_like(out.pre_acts).scatter_(-1, out.top_indices, out.top_acts)

    def forward(self, x):
        return self.inference_coder()(x).sae_out

    def decoder(self):
        return self.inference_coder().W_dec


LIBRARIES = {"saelens": SAELens, "dictionary_learning": DictionaryLearning, "sparsify": Sparsify}
PAIRS = [f"{library}:{name}" for library, peer in LIBRARIES.items() for name in peer.architectures]


def matryoshka_sizes(width):
    """Sizes of the nested groups: rounded down, the rest in the last, as dictionary_learning."""
    sizes = [int(share * width) for share in MATRYOSHKA[:-1]]
    return [*sizes, width - sum(sizes)]


class Activations:
    """Rows of the tensor "x" of a safetensors file, read from the mapped file as they are needed.

    Args:
        path: the file.
        rows: use only so many, from the first; None for all.
    """

    def __init__(self, path, rows=None):
        self.x = safe_open(path, framework="pt").get_slice("x")
        length, self.d_in = self.x.get_shape()
        self.n = min(length, rows or length)

    def batch(self, i, size):
        """The i-th batch [size, d_in] of consecutive rows; after the last row comes the first."""
        start = i * size % self.n
        parts = [self.x[start : min(start + size, self.n)]]
        while (missing := size - sum(map(len, parts))) > 0:
            parts.append(self.x[: min(missing, self.n)])
        return torch.cat(parts).float()

    def chunks(self, size):
        """All rows once, in chunks of at most `size`."""
        for start in range(0, self.n, size):
            yield self.x[start : min(start + size, self.n)].float()


def speed(args):
    """Seconds of each timed step, for each pair."""
    data = Activations(args.activations, args.rows)
    return {pair: speed_of(pair, data, args) for pair in args.pairs}


def speed_of(pair, data, args):
    print(pair, file=sys.stderr, flush=True)
    peer = make_peer(pair, data.d_in, args, steps=args.warmup + args.steps)
    for i in range(args.warmup):
        peer.step(data.batch(i, args.warmup_batch or args.batch))
    seconds = [timed_step(peer, data.batch(args.warmup + i, args.batch)) for i in range(args.steps)]
    result = {"seconds": seconds, "tokens": args.batch, "version": version(peer)}
    if peer.architecture in WITHOUT_K:
        result["l0"] = l0(peer, data.batch(0, min(args.batch, 1024)))
    del peer
    gc.collect()
    return result


def train(args):
    """Train one pair; its figures on the held-out activations."""
    data = Activations(args.train, args.rows)
    peer = make_peer(args.pair, data.d_in, args, steps=args.steps)
    seconds = sum(timed_step(peer, data.batch(i, args.batch)) for i in range(args.steps))
    if args.calibrate and peer.architecture in WITH_THRESHOLD:
        calibrate(peer, [data.batch(args.steps - 1 - i, args.batch) for i in range(8)])
    result = held_out(peer, Activations(args.held_out), args.batch)
    if args.save:
        directions = torch.nn.functional.normalize(peer.decoder().detach(), dim=-1)
        save_file({"W_dec": directions.contiguous()}, args.save)
    if args.codes:
        save_file({"fired": fired(peer, Activations(args.held_out, CODE_ROWS))}, args.codes)
    return {**result, "seconds": seconds, "version": version(peer)}


@torch.no_grad()
def calibrate(peer, batches):
    """Set the threshold at which k features a token fire, a mean over batches."""
    peer.set_threshold(0.0)
    bars = [peer.encode(x).flatten().topk(len(x) * peer.k).values[-1] for x in batches]
    peer.set_threshold(torch.stack(bars).mean().item())


@torch.no_grad()
def fired(peer, data):
    """Which features fire on which tokens [rows, width], at inference."""
    return torch.cat([peer.encode(x) > 0 for x in data.chunks(4096)])


@torch.no_grad()
def held_out(peer, data, size):
    """FVU over all tokens, mean L0 and the share of features that never fire."""
    mean = sum(x.sum(0, dtype=torch.float64) for x in data.chunks(size)) / data.n
    error = deviation = fires = 0
    for x in data.chunks(size):
        error += (x - peer.forward(x)).double().pow(2).sum()
        deviation += (x - mean).pow(2).sum()
        fires += (peer.encode(x) > 0).sum(0)
    return {
        "fvu": (error / deviation).item(),
        "l0": fires.sum().item() / data.n,
        "dead_share": (fires == 0).float().mean().item(),
    }


@torch.no_grad()
def l0(peer, x):
    return (peer.encode(x) > 0).sum(-1).float().mean().item()


def timed_step(peer, x):
    start = time.perf_counter()
    peer.step(x)
    return time.perf_counter() - start


def make_peer(pair, d_in, args, steps):
    library, architecture = pair.split(":")
    return LIBRARIES[library](
        architecture,
        d_in,
        width=args.width,
        k=args.k,
        lr=args.lr,
        steps=steps,
        seed=args.seed,
        batch=args.batch,
        sparsity=args.sparsity,
        decay=getattr(args, "decay", 0.0),
    )


def version(peer):
    return importlib.metadata.version(peer.package)


def known_pair(text):
    if text not in PAIRS:
        raise argparse.ArgumentTypeError(f"{text}: not one of {', '.join(PAIRS)}")
    return text


def known_pairs(text):
    return PAIRS if text == "all" else [known_pair(pair) for pair in text.split(",")]


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("speed", help="seconds of a training step")
    one.add_argument(
        "--pairs", type=known_pairs, default="all", help="LIBRARY:ARCHITECTURE,... or all"
    )
    one.add_argument("--activations", required=True, help="safetensors file with x [n, d_in]")
    one.add_argument("--steps", type=int, default=3, help="timed steps")
    one.add_argument("--warmup", type=int, default=1, help="steps before them")
    one.add_argument("--warmup-batch", type=int, help="tokens of those; as --batch by default")

    other = commands.add_parser("train", help="train, then measure on held-out activations")
    other.add_argument("--pair", type=known_pair, required=True, help="LIBRARY:ARCHITECTURE")
    other.add_argument("--train", required=True, help="safetensors file with x [n, d_in]")
    other.add_argument("--held-out", required=True, help="safetensors file with x [n, d_in]")
    other.add_argument("--steps", type=int, required=True)
    other.add_argument(
        "--decay", type=float, default=0.0, help="share of the steps in which the rate falls"
    )
    other.add_argument(
        "--calibrate", action="store_true", help="set BatchTopK's threshold anew for this k"
    )
    other.add_argument("--save", help="write the decoder directions W_dec [width, d_in] here")
    other.add_argument("--codes", help="write fired [rows, width] of held-out tokens here")

    for command in (one, other):
        command.add_argument("--rows", type=int, help="use only so many rows, from the first")
        command.add_argument("--width", type=int, required=True, help="features")
        command.add_argument("--k", type=int, required=True, help="features a token, or target L0")
        command.add_argument("--batch", type=int, default=4096, help="tokens a step")
        command.add_argument("--lr", type=float, help="learning rate; the library's by default")
        command.add_argument("--sparsity", type=float, help="penalty; the library's by default")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    # The libraries print what they please.
    with contextlib.redirect_stdout(sys.stderr):
        result = speed(args) if args.command == "speed" else train(args)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
