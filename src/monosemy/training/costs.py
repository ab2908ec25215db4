"""What work will take, before it is begun: memory, disk, operations, time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from monosemy.activations import Recipe, can_autocast, counted_activations
from monosemy.activations.precision import TOKEN_BYTES, Precision, bytes_per_row
from monosemy.activations.recipe import TOKENS_AT_ONCE
from monosemy.coders import make_coder
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.lm import LM, HookPoint
from monosemy.training.machine import Machine
from monosemy.training.member import Member
from monosemy.training.plan import COPIES, FP32, step_memory

EVALUATION_TOKENS, LOSS_TOKENS, LOSS_PASSES = 98_304, 16_384, 7
"""Of `evaluate`: tokens up to the hook point, those that go through the whole model, and how
often: as it is, two ablations, the dictionary, three baselines."""
INDEX_TOKENS = 100_000
_TOUCHED = 36
"""Bytes of memory traffic a trained number costs a step: Adam, gradients, the bf16 copy."""
_SPARSE_PASSES = 6
"""Passes over the directions of active features: choosing, decoding, four gradients."""
PROBE_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What counts of a language model."""

    name: str
    d: int
    """Width at the hook point."""
    parameters: int
    block_parameters: int
    """That work on each token, up to the hook point."""
    all_parameters: int
    """That work on each token in a whole pass, the unembedding included."""
    layers: int
    """Up to the hook point."""
    all_layers: int
    vocabulary: int
    bytes: int
    """Of its weights, as they would be loaded."""
    bytes_upto: int
    """Of those that are held where nothing after the hook point is asked for."""

    def forward_flops(self, context: int, *, whole: bool = False) -> float:
        """Return operations for a token: two a parameter, and attention over half the context."""
        layers = self.all_layers if whole else self.layers
        return 2.0 * (self.all_parameters if whole else self.block_parameters) + (
            2.0 * layers * context * self.d
        )


def model_size(lm: LM, point: HookPoint, bytes_per_parameter: float | None = None) -> ModelSize:
    """Count what works in a whole model up to a hook point; one without weights will do.

    Of experts only those that are chosen for a token are counted as working.
    """
    blocks = [lm.hookpoint(f"layers.{i}") for i in range(lm.n_layers)]
    modules = dict(lm.model.named_modules())
    sizes = [_working(modules[block.path], lm) for block in blocks]
    last = next(
        (i for i, b in enumerate(blocks) if point.path.startswith(b.path + ".") or b == point),
        None,
    )
    layers = lm.n_layers if last is None else last + 1
    if point.name == "embed":
        layers = 0
    parameters = lm.count_parameters()
    config = lm.config.get_text_config()
    vocabulary = int(getattr(config, "vocab_size", 0))
    each = bytes_per_parameter or next(lm.model.parameters()).element_size()
    return ModelSize(
        name=lm.name,
        d=point.width,
        parameters=parameters,
        block_parameters=sum(sizes[:layers]),
        all_parameters=sum(sizes) + vocabulary * int(getattr(config, "hidden_size", 0)),
        layers=layers,
        all_layers=lm.n_layers,
        vocabulary=vocabulary,
        bytes=round(parameters * each),
        bytes_upto=round(lm.count_parameters(point.path) * each),
    )


def _working(block: nn.Module, lm: LM) -> int:
    config = lm.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None)
    of = next(
        (
            value
            for name in ("num_local_experts", "num_experts", "n_routed_experts")
            if (value := getattr(config, name, None))
        ),
        None,
    )
    total = 0.0
    for name, parameter in block.named_parameters():
        share = chosen / of if chosen and of and ".experts." in f".{name}" else 1.0
        total += share * parameter.numel()
    return round(total)


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done."""

    width: int
    k: int
    tokens: int
    context: int
    batch: int
    pool: int
    precision: Precision = "bf16"


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens a second that a probe measured; None where it could not."""

    harvest: float | None = None
    training: float | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of work."""

    name: str
    flops: float
    seconds: float
    device: float
    """Bytes of the device's memory."""
    disk: float
    parts: dict[str, float]
    """What the device's memory is made of."""


def phases(size: ModelSize, machine: Machine, job: Job, rates: Rates = Rates()) -> list[Phase]:
    """Return what harvesting, training, evaluating and indexing take, one after another."""
    d, width = size.d, job.width
    forward, whole = size.forward_flops(job.context), size.forward_flops(job.context, whole=True)
    encode = 2.0 * d * width
    logits = TOKENS_AT_ONCE * size.vocabulary * FP32
    pass_bytes = TOKENS_AT_ONCE * 12 * d * FP32
    batch = {"a batch of text": float(pass_bytes)}
    part, model = {"model": float(size.bytes_upto)} | batch, {"model": float(size.bytes)} | batch
    coder = 2.0 * d * width * FP32

    def seconds(flops: float) -> float:
        return flops / machine.flops

    model_second = 1 / rates.harvest if rates.harvest else seconds(forward)
    harvest = Phase(
        "harvest",
        job.tokens * forward,
        job.tokens * model_second,
        sum(part.values()),
        float(job.tokens * (bytes_per_row({"x": d}, job.precision) + TOKEN_BYTES)),
        part,
    )
    step_flops = encode + 2.0 * _SPARSE_PASSES * job.k * d
    traffic = 2 * d * width * _TOUCHED / job.batch + _SPARSE_PASSES * job.k * d * FP32
    step_second = seconds(encode) + traffic / machine.bandwidth
    state = {
        "weights, gradients, Adam": 2.0 * d * width * COPIES * FP32,
        "pool": float(job.pool * d * FP32),
        "a step": float(step_memory(job.batch, d, job.k)),
    }
    training = Phase(
        "training",
        job.tokens * step_flops,
        job.tokens * (1 / rates.training if rates.training else step_second),
        sum(state.values()),
        3 * 2.0 * d * width * FP32,
        state,
    )
    evaluation_flops = EVALUATION_TOKENS * (forward + encode) + LOSS_TOKENS * (
        LOSS_PASSES * whole + encode
    )
    own = {**model, "dictionary": coder, "logits": float(logits)}
    slower = model_second / seconds(forward) if forward else 1.0
    evaluation = Phase(
        "evaluation",
        evaluation_flops,
        seconds(evaluation_flops) * slower,
        sum(own.values()),
        0.0,
        own,
    )
    index_flops = INDEX_TOKENS * (forward + encode)
    index = Phase(
        "features",
        index_flops,
        seconds(index_flops) * slower,
        sum(model.values()) + coder,
        INDEX_TOKENS * job.k * 8.0,
        {**model, "dictionary": coder},
    )
    return [harvest, training, evaluation, index]


def remedies(found: Sequence[Phase], size: ModelSize, machine: Machine, job: Job) -> list[str]:
    """Return what does not fit, and the nearest settings that do; nothing where all does."""
    said = []
    for phase in found:
        if phase.device <= machine.device_memory:
            continue
        largest = max(phase.parts, key=lambda part: phase.parts[part])
        line = (
            f"{phase.name} needs {gb(phase.device)} of memory, {gb(machine.device_memory)} is "
            f"there; {largest} alone is {gb(phase.parts[largest])}: "
        )
        if phase.name == "training":
            width = largest_width(machine, size, job)
            line += f"a width up to {width:,} fits" if width else "nothing of this batch and pool"
            line += ", or a smaller pool" if phase.parts["pool"] > 0.2 * phase.device else ""
        elif phase.parts["model"] > machine.device_memory:
            line += "load it in fewer bits, or on more devices"
        else:
            line += "a smaller width or batch"
        said.append(line)
    disk = found[0].disk
    if machine.disk is not None and disk > machine.disk:
        tokens = int(job.tokens * machine.disk / disk)
        said.append(
            f"a store of {job.tokens:,} tokens needs {gb(disk)} of disk, {gb(machine.disk)} is "
            f"free: at most {tokens:,} tokens, --precision int8, or no store (training live needs "
            "none)"
        )
    return said


def largest_width(machine: Machine, size: ModelSize, job: Job) -> int:
    """Return the largest width whose training fits memory, in whole hundreds; 0 if none does."""
    step = step_memory(job.batch, size.d, job.k)
    left = machine.device_memory - job.pool * size.d * FP32 - step
    return max(int(left / (2 * size.d * COPIES * FP32)) // 100 * 100, 0)


def probe(lm: LM, corpus: Corpus, hookpoint: str, job: Job) -> Rates:
    """Run the model and a step of training for a few seconds on this machine."""
    point = lm.hookpoint(hookpoint)
    recipe = Recipe(
        model=lm.name,
        hookpoints=(point.name,),
        context=job.context,
        corpus=corpus.describe(),
        autocast=can_autocast(lm),
    )
    text = iter(recipe.stream(lm, corpus, None))
    first = next(text)
    counted_activations(lm, first, recipe.hookpoints, recipe.autocast)
    n, began = 0, time.perf_counter()
    while time.perf_counter() - began < PROBE_SECONDS / 2:
        batch = next(text)
        counted_activations(lm, batch, recipe.hookpoints, recipe.autocast)
        n += int(batch.counted.sum())
    harvest = n / (time.perf_counter() - began)
    return Rates(harvest, _training_rate(lm.device, point.width, job))


def _training_rate(device: torch.device, d: int, job: Job) -> float | None:
    """Return tokens/s of a step, at a width that a probe can afford; None where it cannot."""
    if 2 * d * job.width * COPIES * FP32 > 2e9:
        return None
    try:
        coder = make_coder("batch_topk", d, job.width, k=job.k, unit_norm=False).to(device)
    except UserError:
        return None
    member = Member(coder, lr=1e-4, steps=10**6, dead_after=10**9)
    x = torch.randn(job.batch, d, device=device)
    member.step(x)
    n, began = 0, time.perf_counter()
    while n < 3 or time.perf_counter() - began < PROBE_SECONDS / 2:
        member.step(x)
        n += 1
    return n * job.batch / (time.perf_counter() - began)


def gb(size: float) -> str:
    """Return bytes as people read them."""
    return f"{size / 1e9:.2f} GB" if size < 1e12 else f"{size / 1e12:,.2f} TB"
