"""Say what work will take before it is begun: memory, disk, operations, time, cost."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from monosemy.activations.precision import Precision
from monosemy.artefact import write_text
from monosemy.cli.console import console
from monosemy.cli.text import Text
from monosemy.errors import UserError
from monosemy.lm import LM, empty_model
from monosemy.training import TrainConfig, context_for, middle
from monosemy.training.costs import Job, Phase, Rates, gb, model_size, phases, probe, remedies
from monosemy.training.machine import Machine, machine_named, this_machine


@dataclass(frozen=True)
class Command:
    """Options of `monosemy plan`."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = "builtin:stdlib"
    """`builtin:stdlib`, a folder, or a Hugging Face id."""
    text: Annotated[Text, tyro.conf.arg(name="")] = field(default_factory=Text)
    hookpoint: str | None = None
    """Where activations are taken; default the middle of the residual stream."""
    width: int | None = None
    """Number of features; default 8 times the activation width."""
    k: int = 32
    """Features that fire on a token."""
    tokens: int = 2_000_000
    """Tokens to train on."""
    context: int | None = None
    """Tokens in a row of text; default 128, or what the model can read if that is less."""
    batch: int = TrainConfig().batch
    """Tokens in a training step."""
    pool: int = TrainConfig().pool
    """Tokens in the pool that batches are drawn from."""
    precision: Precision = "bf16"
    """Of a store."""
    model_config: Path | None = None
    """A model that is not here: its config.json; needs --hardware."""
    hardware: str | None = None
    """A machine that is not here: `h100`, `h100x8`, `a100`, `l4`, `rtx4090` and so on."""
    price: float | None = None
    """Of an hour of the machine, in any currency."""
    json: Path | None = None
    """Write the figures here too."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print a line for each stretch of work, what does not fit, and what would."""
        for name in ("width", "k", "tokens", "batch", "pool"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}", "allowed: 1 and above")
        if self.price is not None and not self.price > 0:
            raise UserError(f"price is {self.price}", "allowed: above 0")
        if self.model_config is not None and self.hardware is None:
            raise UserError(
                "a model given by its config.json has no weights to run here",
                "add --hardware, such as h100x8",
            )
        machine = machine_named(self.hardware) if self.hardware else None
        source = self.model_config or self.model
        sketch = lm = LM(empty_model(source))
        name = self.hookpoint or middle(sketch)
        bytes_each = 2.0
        if machine is None:
            lm = LM(self.model, device=self.device, upto=name)
            held = sum(p.nbytes for p in lm.model.parameters())
            bytes_each = held / sketch.count_parameters(name)
        point = lm.hookpoint(name)
        size = replace(model_size(sketch, point, bytes_each), name=str(source))
        job = Job(
            width=self.width or 8 * size.d,
            k=self.k,
            tokens=self.tokens,
            context=context_for(lm, self.context),
            batch=self.batch,
            pool=self.pool,
            precision=self.precision,
        )
        if job.k > job.width:
            raise UserError(
                f"k is {job.k}, but the dictionary has {job.width} features",
                f"choose k up to {job.width}, or a larger width",
            )
        rates = Rates()
        if machine is None:
            console.print("measuring this machine for some seconds", style="dim")
            machine = this_machine(lm.device, Path.cwd())
            rates = probe(lm, self.text.open(), point.name, job)
        found = phases(size, machine, job, rates)
        self._print(size.name, point.name, found)
        self._tell(machine, rates)
        said = remedies(found, size, machine, job)
        for line in said:
            console.print(line, markup=False)
        if not said:
            console.print("all of it fits")
        if self.json is not None:
            values = {
                "job": asdict(job),
                "machine": asdict(machine),
                "model": asdict(size),
                "phases": [asdict(phase) for phase in found],
                "does_not_fit": said,
            }
            write_text(self.json, json.dumps(values, indent=2) + "\n")

    def _print(self, model: str, point: str, found: list[Phase]) -> None:
        table = Table(box=None, pad_edge=False, header_style="dim", title_justify="left")
        titles = [f"{model}, {point}", "operations", "time", "memory", "disk"]
        titles += ["cost"] if self.price else []
        for number, title in enumerate(titles):
            table.add_column(title, justify="right" if number else "left", no_wrap=number > 0)
        for phase in found:
            table.add_row(*self._cells(phase.name, phase.flops, phase.seconds, phase))
        table.add_row(
            *self._cells("all", sum(p.flops for p in found), sum(p.seconds for p in found), None)
        )
        console.print(table)

    def _cells(self, name: str, flops: float, seconds: float, phase: Phase | None) -> list[str]:
        cells = [name, f"{flops:.1e}", _time(seconds)]
        cells += [gb(phase.device), gb(phase.disk) if phase.disk else "-"] if phase else ["", ""]
        return cells + ([f"{seconds / 3600 * self.price:,.2f}"] if self.price else [])

    def _tell(self, machine: Machine, rates: Rates) -> None:
        memory = f"{gb(machine.device_memory)} of memory"
        if rates.harvest:
            training = f", training {rates.training:,.0f}" if rates.training else ""
            console.print(
                f"{machine.name}: {memory} free; measured here: the model reads "
                f"{rates.harvest:,.0f} tokens/s{training}",
                style="dim",
            )
            return
        spread = f", the work spread evenly over its {machine.count} devices" * (machine.count > 1)
        console.print(
            f"{machine.name}: {memory}, products at 40% of the data sheet's peak{spread}; an "
            "estimate, right to a factor of two",
            style="dim",
        )


def _time(seconds: float) -> str:
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
