"""Keep a model's activations on disk, so that it need run only once; look at them, mend them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.activations import (
    Damage,
    Harvest,
    Recipe,
    Shard,
    Store,
    can_autocast,
    repair,
    verify,
)
from monosemy.activations.precision import Precision
from monosemy.cli.console import console
from monosemy.cli.text import Text
from monosemy.corpus import TokenPolicy, open_corpus
from monosemy.device import describe
from monosemy.errors import UserError
from monosemy.formats.raw import store_raw
from monosemy.lm import LM, empty_model
from monosemy.progress import Task
from monosemy.training import context_for, middle


@dataclass(frozen=True)
class Build:
    """Run a model over text and store its activations; given again, goes on where it stopped."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Folder of the store."""
    model: str = "builtin:stdlib"
    """`builtin:stdlib`, a folder, or a Hugging Face id."""
    text: Annotated[Text, tyro.conf.arg(name="")] = field(default_factory=Text)
    hookpoint: tuple[str, ...] = ()
    """Where activations are taken, any number; default the middle of the residual stream."""
    tokens: int = 2_000_000
    """Tokens to store; text is repeated if there is less."""
    context: int | None = None
    """Tokens in a row of text; default 128, or what the model can read if that is less."""
    packed: bool = True
    """Join documents to fill rows; otherwise one document a row, cut or padded."""
    seed: int = 0
    """Of the order of text; training asks for the store of its own seed."""
    precision: Precision | None = None
    """How activations are kept: `bf16` (default), `fp32`, or `int8` with a scale for each token."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Fill the store and say how to use it."""
        if self.tokens < 1:
            raise UserError(f"tokens is {self.tokens}, it must be at least 1")
        names = self.hookpoint or (middle(LM(empty_model(self.model))),)
        lm = LM(self.model, device=self.device, upto=names)
        corpus = self.text.open()
        corpus.check("train")
        console.print(f"{lm} on {describe(lm.device)}", style="dim")
        points = [lm.hookpoint(name).name for name in names]
        recipe = Recipe(
            model=lm.name,
            revision=lm.revision,
            hookpoints=tuple(dict.fromkeys(points)),
            context=context_for(lm, self.context),
            packed=self.packed,
            policy=TokenPolicy(),
            corpus=corpus.describe(),
            seed=self.seed,
            autocast=can_autocast(lm),
        )
        with (
            Harvest(
                lm, corpus, recipe, self.out, tokens=self.tokens, precision=self.precision
            ) as harvest,
            Task("store", self.tokens) as task,
        ):
            task.advance(len(harvest.store))
            harvest.grow(task=task)
        console.print(_line(harvest.store), markup=False, highlight=False)
        console.print(f"next: monosemy train --store {self.out}", markup=False)


@dataclass(frozen=True)
class Import:
    """Turn activations that another tool wrote into a store, to fit a dictionary to."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """SAELens's cache, chunks of Language-Model-SAEs, or a file or folder of `.npy`, `.pt` or
    `.safetensors`; hook points in folders of their own."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Folder of the store, new or empty."""
    hookpoint: str | None = None
    """Where activations were taken, where the files do not say."""
    precision: Precision = "bf16"
    """How activations are kept: `bf16`, `fp32`, or `int8` with a scale for each token."""

    def run(self) -> None:
        """Fill the store, say what is not kept and how to use it."""
        store, lost = store_raw(
            self.source, self.out, hookpoint=self.hookpoint, precision=self.precision
        )
        console.print(_line(store), markup=False, highlight=False)
        for what in lost:
            console.print(f"not in it: {what}", markup=False)
        console.print(f"next, in Python: monosemy.fit({str(self.out)!r})", markup=False)


@dataclass(frozen=True)
class Verify:
    """Hold every shard against its checksum; exit with status 1 if one is damaged."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Folder of the store."""
    repair: bool = False
    """Make damaged shards again, and only those."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Name what is damaged."""
        store = Store(self.folder, damaged=True)
        damages: list[Damage] = []
        with Task("verify", max(store.bytes, 1), "bytes") as task:
            for found in verify(self.folder):
                shard = found if isinstance(found, Shard) else found.shard
                task.advance(shard.bytes)
                if isinstance(found, Damage):
                    damages.append(found)
        for damage in damages:
            console.print(f"{damage.shard.name} {damage.what}", markup=False, highlight=False)
        if not damages:
            console.print(f"all {len(store.shards)} shards are whole")
        elif not self.repair:
            console.print(
                f"{len(damages)} of {len(store.shards)} shards are damaged; make them again with: "
                f"monosemy store verify {self.folder} --repair",
                markup=False,
                highlight=False,
            )
            sys.exit(1)
        else:
            self._repair(store, damages)

    def _repair(self, store: Store, damages: list[Damage]) -> None:
        recipe = store.recipe
        if recipe is None:
            raise UserError(
                f"`{self.folder}` was made from arrays, which are not there to mend it",
                "make the store again from the arrays",
            )
        lm = LM(recipe.model, revision=recipe.revision, device=self.device, upto=recipe.hookpoints)
        for said in repair(lm, open_corpus(**recipe.corpus), self.folder, damages):
            console.print(said, markup=False, highlight=False)


@dataclass(frozen=True)
class Show:
    """Say what a store holds."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Folder of the store."""

    def run(self) -> None:
        """Print it."""
        store = Store(self.folder)
        console.print(_line(store), markup=False, highlight=False)
        if store.recipe is not None:
            r = store.recipe
            console.print(
                f"{r.model}{f' at {r.revision}' if r.revision else ''}, on the {r.part} part of "
                f"{r.corpus.get('source')}, rows of {r.context} tokens, seed {r.seed}",
                markup=False,
                highlight=False,
            )


@dataclass(frozen=True)
class Command:
    """Options of `monosemy store`."""

    action: Annotated[
        Annotated[Build, tyro.conf.subcommand("build", prefix_name=False)]
        | Annotated[Import, tyro.conf.subcommand("import", prefix_name=False)]
        | Annotated[Verify, tyro.conf.subcommand("verify", prefix_name=False)]
        | Annotated[Show, tyro.conf.subcommand("show", prefix_name=False)],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Do what was asked."""
        self.action.run()


def _line(store: Store) -> str:
    points = ", ".join(f"{name} ({d})" for name, d in store.widths.items())
    return (
        f"{len(store):,} tokens of {points} as {store.precision}, {store.bytes / 1e9:.2f} GB in "
        f"{len(store.shards)} shards: {store.folder}"
    )
