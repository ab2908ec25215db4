"""Have a language model say what features fire on, and test what it says.

Any server that speaks OpenAI's protocol will do; a key is read from OPENAI_API_KEY alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.table import Table
from rich.text import Text

from monosemy.cli.console import console, open_dictionary
from monosemy.cli.features import Command as Look
from monosemy.corpus import open_corpus
from monosemy.errors import UserError
from monosemy.evaluation import Subject
from monosemy.evaluation import Table as Figures
from monosemy.evaluation.result import judge, told
from monosemy.evaluation.suites.explanations import of_nearest_density
from monosemy.index import Index
from monosemy.interpret import Firings, collect_firings
from monosemy.interpret.explain import (
    Client,
    Comparison,
    Contexts,
    Cutter,
    Explanation,
    Prices,
    ask_explanations,
    choose_scorers,
    compare,
    estimate,
    explaining,
    questions_of,
)
from monosemy.interpret.explain.ask import ANOTHER, COLUMNS, OWN
from monosemy.metrics import interval
from monosemy.metrics.table import MetricRow, MetricValue
from monosemy.report.terminal import figures_table

Rows = dict[int, dict[str, Any]]
"""What is known of explained features, by their number."""

TABLE = "explanations"
_SAMPLED = 20
"""Features whose contexts are cut to estimate what all will take."""


@dataclass(frozen=True)
class Command:
    """Options of `monosemy explain`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run or a dictionary."""
    base_url: str = "http://localhost:8000/v1"
    """Address of the server: vLLM's by default; http://localhost:11434/v1 is Ollama's."""
    model: str | None = None
    """Name of the model that explains and judges, as the server knows it."""
    features: tuple[int, ...] = ()
    """These features; default: drawn at random from those that fire."""
    count: int = 50
    """How many to draw; as many untrained ones stand beside them."""
    scorers: tuple[str, ...] = ("detection", "fuzzing")
    """Of `detection`, `fuzzing`, `simulation`, `intruder`."""
    untrained: bool = True
    """Explain features of an untrained dictionary too, to compare with."""
    budget_tokens: int | None = None
    """Stop before more tokens than this are used, in and out."""
    price_in: float | None = None
    """Money for a million tokens read; the cost is shown where both prices are given."""
    price_out: float | None = None
    """Money for a million tokens written."""
    budget_money: float | None = None
    """Stop before more than this is spent, by these prices."""
    concurrency: int = 8
    """Requests under way at a time."""
    timeout: float = 120.0
    """Seconds for one request."""
    max_tokens: int = 1000
    """Of one answer; a model that thinks first needs more."""
    tokens: int = 100_000
    """Held-out tokens to look at, where no earlier look is in the run."""
    seed: int = 0
    """Of what is drawn."""
    dry_run: bool = False
    """Print what would be asked about one feature and about what all would take; send nothing."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Explain, score, and print a table; rows go to `explanations.jsonl` in the index."""
        index = Look(self.run_folder, tokens=self.tokens, device=self.device).look().index
        known = index.table(TABLE)
        explain(self, index, dict(known), lambda rows: index.write_table(TABLE, rows))

    def client(self) -> Client:
        """Return the model to ask.

        Raises:
            UserError: it has no name, or a setting that cannot be meant.
        """
        if self.model is None:
            raise UserError("which model is to explain?", "give its name there with --model")
        if (self.price_in is None) != (self.price_out is None):
            raise UserError("one price alone", "give both --price-in and --price-out, or neither")
        prices = None
        if self.price_in is not None and self.price_out is not None:
            prices = Prices(self.price_in, self.price_out)
        return Client(
            self.base_url,
            self.model,
            cache=self.run_folder / "explain" / "replies.jsonl",
            concurrency=self.concurrency,
            timeout=self.timeout,
            max_tokens=self.max_tokens,
            budget_tokens=self.budget_tokens,
            budget_money=self.budget_money,
            prices=prices,
        )


def explain(
    asked: Command,
    index: Index,
    known: Rows,
    write: Callable[[Iterable[dict[str, Any]]], None],
) -> None:
    """Explain features and print what came of it.

    Args:
        asked: the options.
        index: who fires where.
        known: rows of earlier runs; those of other features are kept.
        write: is given all rows, ordered by feature, after every part.
    """
    choose_scorers(asked.scorers)
    chosen = _chosen(asked, index)
    cutter = Cutter(index.text, index.entries, seed=asked.seed)
    sample = [cutter.cut(f) for f in chosen[:_SAMPLED]]
    if asked.dry_run:
        _print_prompts(asked, sample)
        _print_estimate(asked, len(chosen), sample)
        return
    client = asked.client()
    _print_estimate(asked, len(chosen), sample)

    def keep(found: list[Explanation]) -> None:
        for one in found:  # an unfinished one replaces nothing
            if one.feature not in known or one.is_whole(asked.scorers):
                known[one.feature] = one.row(client.model)
        write([known[feature] for feature in sorted(known)])

    explained = ask_explanations(
        client, chosen, cutter.cut, scorers=asked.scorers, seed=asked.seed, keep=keep
    )
    untrained: list[Explanation] = []
    if asked.untrained and asked.scorers and not client.spent:
        firings = _untrained(asked, index)
        others = Cutter(cutter.text, firings.of, seed=asked.seed)
        untrained = ask_explanations(
            client,
            _alike(index, firings, chosen),
            others.cut,
            scorers=asked.scorers,
            control=False,
            seed=asked.seed,
        )
    _print_found(asked, client, explained, compare(explained, untrained), len(chosen))


def _chosen(asked: Command, index: Index) -> list[int]:
    """Return the features asked for, or some drawn from those that fire often enough."""
    for feature in asked.features:
        index.check_feature(feature)
    if asked.features:
        return list(dict.fromkeys(asked.features))
    if asked.count < 1:
        raise UserError(f"--count is {asked.count}", "give 1 or more")
    often = np.flatnonzero(index.counts >= 20)
    if not len(often):
        raise UserError(
            f"no feature fires on 20 or more of the {index.n_tokens:,} tokens looked at",
            "look at more: monosemy index RUN --tokens",
        )
    drawn = np.random.default_rng(asked.seed).permutation(often)[: asked.count]
    return [int(feature) for feature in drawn]


def _untrained(asked: Command, index: Index) -> Firings:
    """Return where features of an untrained dictionary fire in the same text."""
    dictionary, lm = open_dictionary(asked.run_folder, None, asked.device)
    text = dict(index.manifest["text"])
    part = text.pop("part")
    if text["source"].startswith("python:"):
        raise UserError(
            f"the index in `{index.folder}` is of text held in memory, which is gone",
            "leave the untrained dictionary out: --no-untrained",
        )
    corpus = open_corpus(**text)
    subject = Subject(dictionary, lm, corpus, seed=asked.seed)
    stream = dictionary.provenance.stream(lm, corpus, part, shuffled_rows=False)
    point, tokens = dictionary.hookpoint, index.n_tokens
    rows, (firings,) = collect_firings(lm, stream, point, [subject.untrained], tokens)
    if rows.tokens.size != len(index.text):
        raise UserError(
            f"the text of the index in `{index.folder}` has changed",
            "make it again with `monosemy index`, or leave the untrained out: --no-untrained",
        )
    return firings


def _alike(index: Index, firings: Firings, chosen: list[int]) -> list[int]:
    """Return for each feature an untrained one that fires about as often."""
    often = np.flatnonzero(firings.counts >= 20)
    wanted = index.counts[chosen[: len(often)]].clip(min=1)
    return of_nearest_density(firings.counts, often, wanted).tolist()


def _print_prompts(asked: Command, sample: list[Contexts]) -> None:
    enough = [contexts for contexts in sample if not contexts.lacking]
    if not enough:
        raise UserError(f"feature {sample[0].feature}: {sample[0].lacking}", "take another one")
    first = enough[0]
    prompts = {"explanation": explaining(first)}
    for scorer in choose_scorers(asked.scorers):
        if questions := questions_of(scorer, first, "(the explanation)", asked.seed):
            prompts[f"{scorer.name}, 1 of {len(questions)}"] = questions[0].messages
    for what, messages in prompts.items():
        console.print(f"--- feature {first.feature}, {what}", style="bold")
        for message in messages:
            console.print(f"[{message['role']}]", style="dim", markup=False)
            console.print(message["content"], markup=False, soft_wrap=True)


def _print_estimate(asked: Command, count: int, sample: list[Contexts]) -> None:
    size = estimate(count, sample, asked.scorers)
    beside = estimate(count, sample, asked.scorers, control=False)
    both = asked.untrained and bool(asked.scorers)
    requests, prompt, completion = (
        getattr(size, name) + both * getattr(beside, name)
        for name in ("requests", "prompt_tokens", "completion_tokens")
    )
    cost = ""
    if asked.price_in is not None and asked.price_out is not None:
        cost = f", cost {Prices(asked.price_in, asked.price_out).of(prompt, completion):.4g}"
    console.print(
        f"{count} features, about {requests:,} requests, {prompt:,} tokens in, {completion:,} "
        f"tokens out if answers are as short as asked for{cost}; what was asked before is not "
        "asked again",
        style="dim",
    )


def _print_found(
    asked: Command,
    client: Client,
    explained: list[Explanation],
    comparisons: list[Comparison],
    count: int,
) -> None:
    console.print(_features_table(explained, asked.scorers))
    if comparisons:
        console.print(figures_table(Figures(COLUMNS, [_row(c) for c in comparisons], "mean")))
        console.print(_verdict(comparisons), style="bold")
    used = client.usage
    about = "about " if used.estimated else ""
    cost = "" if client.cost is None else f", cost {client.cost:.4g}"
    failed = sum(1 for e in explained if e.failed)
    console.print(
        f"{len(explained) - failed} of {count} features explained, {failed} failed; "
        f"{used.requests:,} requests, {used.retries} repeated, {used.cached:,} answered from disk; "
        f"{about}{used.prompt_tokens:,} tokens in, {used.completion_tokens:,} out{cost}",
        style="dim",
    )
    if used.cut:
        console.print(
            f"{used.cut:,} answers were cut at {client.max_tokens:,} tokens and could not be used: "
            "give more with --max-tokens"
        )
    if client.spent:
        console.print(
            "the budget ended it; give the same command with a larger one: nothing is asked twice"
        )


def _features_table(explained: list[Explanation], scorers: tuple[str, ...]) -> Table:
    """One line a feature: what it is said to fire on, and how well that predicts it."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("feature", justify="right")
    for scorer in choose_scorers(scorers):
        table.add_column(f"{scorer.name}\n{scorer.figure}", no_wrap=True)
    table.add_column("explanation")
    for one in explained:
        cells = []
        for scorer in choose_scorers(scorers):
            score = one.scores.get(scorer.name, {}).get(OWN)
            cells.append("" if score is None else _cell(score.figure(scorer.figure)))
        said = Text(one.text) if one.text else Text(one.failed, "dim")
        table.add_row(str(one.feature), *cells, said)
    return table


def _cell(value: MetricValue | None) -> str:
    return "" if value is None else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _row(found: Comparison) -> MetricRow:
    ends = interval(found.draws)
    return MetricRow(
        f"{found.scorer}: {found.figure}",
        "",
        "higher",
        f"mean over {found.features} features",
        [
            MetricValue(found.points[name], *ends[name]) if name in ends else None
            for name in COLUMNS
        ],
    )


def _verdict(comparisons: list[Comparison]) -> str:
    """Say against which controls the explanations win, and what is missing from the figures."""
    judgements = [
        judgement
        for c in comparisons
        for judgement in judge(c.scorer, c.draws, better="higher", of=OWN)
    ]
    unanswered = sum(c.unanswered for c in comparisons)
    asked = unanswered + sum(c.answered for c in comparisons)
    missing = f"; {unanswered:,} of {asked:,} things asked were not answered" if unanswered else ""
    alone = all(ANOTHER not in c.draws for c in comparisons if c.scorer != "intruder")
    few = "; one feature has no other's explanation to compare with" if alone else ""
    return f"Verdict: {told(judgements)}{missing}{few}."
