"""Make a steering vector from pairs or two sets of texts, test it, and find its features."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table
from rich.text import Text as Line
from torch import Tensor

from monosemy.artefact import write_text
from monosemy.cli.console import console, open_dictionary
from monosemy.corpus import open_corpus, read_choices, split_choices
from monosemy.corpus.pairs import two_columns
from monosemy.errors import UserError
from monosemy.evaluation.vector import STEERED_SIZES, VectorResult, measure_vector
from monosemy.interpret import logit_lens
from monosemy.interpret.decompose import CODES
from monosemy.interpret.logit_lens import in_stream
from monosemy.intervene.log_odds import STRENGTHS
from monosemy.intervene.sides import PairSides, Sides, TextSides
from monosemy.lm import LM
from monosemy.metrics.table import MetricValue
from monosemy.report.numbers import MISSING, percent
from monosemy.report.tokens import visible

_FILE = "vector.json"
_SHOWN, _TOKENS = 8, 5


@dataclass(frozen=True)
class Command:
    """Options of `monosemy vector`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run or a dictionary."""
    pairs: str | None = None
    """Prompts with two answers: CAA's JSON, a table of two texts (`positive`, `negative`), or
    `builtin:docstring`. Half of them make the vector, the others test it."""
    columns: str | None = None
    """Columns of the wanted text and the other, as WANTED,OTHER."""
    positive: str | None = None
    """Instead of pairs: texts that are wanted; a file, folder or data set."""
    negative: str | None = None
    """And texts that are not."""
    hookpoints: tuple[str, ...] = ()
    """Where, any number; default after every block. The run's own comes with them."""
    strengths: tuple[float, ...] = STRENGTHS
    """Multiples of the vector."""
    out: Path | None = None
    """Save the vector in this folder."""
    model: str | None = None
    """Another model than the one it was trained on."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print what the vector does, what it is made of, and the verdict; write them down."""
        if (self.pairs is None) == (self.positive is None or self.negative is None):
            raise UserError(
                "give either pairs or two sets of texts",
                "--pairs FILE (or `builtin:docstring`), or --positive FILE --negative FILE",
            )
        dictionary, lm = open_dictionary(self.run_folder, self.model, self.device)
        discovery, held_out = self._sides(lm)
        result = measure_vector(
            dictionary,
            discovery,
            held_out,
            hookpoints=self.hookpoints,
            strengths=self.strengths,
        )
        _print(result, held_out, lm, dictionary.coder.W_dec)
        path = self.run_folder / _FILE
        write_text(path, json.dumps(result.to_dict(), indent=2) + "\n")
        console.print(f"written: {path}", style="dim")
        if self.out is not None:
            console.print(f"vector: {result.vector.save(self.out)}", style="dim")

    def _sides(self, lm: LM) -> tuple[Sides, Sides]:
        """Read the texts: those that make the vector, and those that test it."""
        if self.pairs is not None:
            columns = None if self.columns is None else two_columns(self.columns)
            made, tested = split_choices(list(read_choices(self.pairs, columns)))
            return PairSides(lm, made), PairSides(lm, tested)
        assert self.positive is not None and self.negative is not None
        corpora = [open_corpus(name, held_out=0.5) for name in (self.positive, self.negative)]
        return (
            TextSides(lm, *corpora, part="train"),
            TextSides(lm, *corpora, part="held_out"),
        )


def _print(result: VectorResult, held_out: Sides, lm: LM, directions: Tensor) -> None:
    made, tested = result.vector.made, held_out.describe()
    if made["kind"] == "pairs":
        console.print(
            f"made from {made['pairs']} pairs, tested on {tested['pairs']} of other groups",
            style="dim",
        )
    else:
        count = made["tokens"]
        console.print(f"made from {count['wanted']:,} and {count['other']:,} tokens", style="dim")
    if made.get("warning"):
        console.print(f"careful: {made['warning']}", style="yellow", markup=False)
    console.print(_steered(result))
    console.print()
    console.print(_decomposed(result))
    console.print()
    console.print(_features(result, lm, directions))
    console.print()
    parts = result.decomposition
    console.print(
        f"The encoder fires {parts.at_zero} features on a vector of zeros; {parts.biased:.0%} of "
        "the weights it gives the vector are on those. "
        f"{parts.negative:.0%} of the code difference is below 0, which no code can be.",
        markup=False,
    )
    console.print(result.verdict(), markup=False)


def _table(title: str, *right: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(title, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _steered(result: VectorResult) -> Table:
    """One line for each hook point and strength; the model as it is comes first."""
    table = _table(
        "held out", "times", "of |x|", "log-odds", "change", "random", "wanted", "other", "right"
    )
    plain = result.plain
    first = ["as it is", "0", "0", f"{plain.log_odds.value:.2f}", *[MISSING] * 4]
    table.add_row(*first, _right(plain.right), style="dim")
    name = ""
    for s in result.steered:
        table.add_row(
            s.hookpoint if s.hookpoint != name else "",
            f"{s.strength:g}",
            f"{s.size:.2f}",
            f"{s.odds.log_odds.value:.2f}",
            _between(s.odds.change),
            MISSING if s.random is None else f"{s.random.change.value:+.2f}",
            f"{s.odds.wanted:+.2f}",
            f"{s.odds.other:+.2f}",
            _right(s.odds.right),
        )
        name = s.hookpoint
    return table


def _decomposed(result: VectorResult) -> Table:
    """One line a method: how much of the vector its features are, and what they do."""
    sizes = STEERED_SIZES
    table = _table(
        f"{result.hookpoint}, as features",
        *(f"cosine {size}" for size in sizes),
        f"unexplained {sizes[-1]}",
        *(f"change {size}" for size in sizes),
    )
    for method, rebuilt in result.decomposition.rebuilt.items():
        odds = result.by_features[method]
        table.add_row(
            Line(method, "bold" if method == CODES else ""),
            *(f"{rebuilt[size].cosine:.2f}" for size in sizes),
            percent(rebuilt[sizes[-1]].fvu),
            *(f"{odds[size].change.value:+.2f}" for size in sizes),
        )
    whole = f"{result.whole.odds.change.value:+.2f}"
    table.add_row("the vector itself", *["1.00"] * 3, "0%", *[whole] * 3, style="dim")
    return table


def _features(result: VectorResult, lm: LM, directions: Tensor) -> Table:
    """The strongest features of the code difference, and the tokens they speak of."""
    found = result.decomposition.rebuilt[CODES][STEERED_SIZES[-1]].features
    chosen, weights = found.chosen[:_SHOWN], found.weights[:_SHOWN]
    tokens = None
    if lm.has_head and in_stream(lm, result.hookpoint):
        tokens = logit_lens(lm, directions[chosen].float(), _TOKENS)[1]
    table = _table("feature", "weight")
    table.add_column("promotes")
    for row, (feature, weight) in enumerate(zip(chosen.tolist(), weights.tolist(), strict=True)):
        promoted = [] if tokens is None else tokens[row, :_TOKENS].tolist()
        said = [visible(_decoded(lm, token)) for token in promoted]
        table.add_row(str(feature), f"{weight:+.3f}", Line("  ".join(said)))
    return table


def _decoded(lm: LM, token: int) -> str:
    assert lm.tokenizer is not None
    return str(lm.tokenizer.decode([token]))


def _between(value: MetricValue) -> str:
    return f"{value.value:+.2f} ({value.low:+.2f} to {value.high:+.2f})"


def _right(share: float | None) -> str:
    return MISSING if share is None else percent(share)
