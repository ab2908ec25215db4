"""Have a language model explain features and be tested on what it said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from monosemy.errors import UserError
from monosemy.interpret.explain.client import BudgetSpent, Client, Unanswered, about_tokens
from monosemy.interpret.explain.contexts import Contexts
from monosemy.interpret.explain.prompts import (
    EXPLAIN_AGAIN,
    Message,
    Question,
    explaining,
    read_explanation,
    without_thoughts,
)
from monosemy.interpret.explain.scorers import DRAWS, SCORERS, Answers, Score, Scorer
from monosemy.progress import Task

OWN, ANOTHER, UNTRAINED, CHANCE = (
    "dictionary",
    "another's explanation",
    "untrained dictionary",
    "chance",
)
COLUMNS = [OWN, ANOTHER, UNTRAINED, CHANCE]
"""What explanations are compared with, side by side."""

_TOGETHER = 32
"""Features that are explained before they are scored, so that each can lend its explanation."""
_SAMPLED = 8
"""Features from whose contexts it is estimated what all will take."""
_TOKENS_AN_EXPLANATION, _TOKENS_AN_ANSWER = 40, 5
_PLACEHOLDER = "(the explanation of the feature, about this long: one line of up to 25 words)"

T = TypeVar("T")
Cut = Callable[[int], Contexts]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a model says a feature fires on, and how well that predicts where it does."""

    feature: int
    text: str = ""
    failed: str = ""
    """Why there is no text."""
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    """Scorer -> whose explanation was given (`OWN`, `ANOTHER`) -> score."""

    def is_whole(self, scorers: Sequence[str]) -> bool:
        """Say whether there is a text, and all of these scores."""
        return bool(self.text) and all(OWN in self.scores.get(name, {}) for name in scorers)

    def row(self, model: str) -> dict[str, Any]:
        """Return JSON values."""
        scores = {
            name: {whose: score.to_dict() for whose, score in found.items()}
            for name, found in self.scores.items()
        }
        return {
            "feature": self.feature,
            "explanation": self.text,
            "failed": self.failed,
            "model": model,
            "scores": scores,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """One scorer's figure, averaged over features, beside its controls."""

    scorer: str
    figure: str
    features: int
    points: dict[str, float]
    """Column -> mean."""
    draws: dict[str, np.ndarray]
    """Column -> [draws] of the bootstrap over features and, within each, over what was asked.

    The two add up, so an interval is rather too wide; with one feature the second is all there is.
    """
    answered: int
    unanswered: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """About what it will take."""

    requests: int
    prompt_tokens: int
    completion_tokens: int


def choose_scorers(names: Sequence[str]) -> list[Scorer]:
    """Return scorers by name.

    Raises:
        UserError: there is none of a name.
    """
    for name in names:
        if name not in SCORERS:
            raise UserError(f"no scorer `{name}`", f"allowed: {', '.join(SCORERS)}")
    return [SCORERS[name] for name in dict.fromkeys(names)]


def ask_explanations(
    client: Client,
    features: Sequence[int],
    cut: Cut,
    *,
    scorers: Sequence[str] = ("detection", "fuzzing"),
    control: bool = True,
    seed: int = 0,
    keep: Callable[[list[Explanation]], None] = lambda found: None,
) -> list[Explanation]:
    """Have every feature explained, and the explanations scored.

    Where the client's budget ends, what was finished is returned: some features then lack scores,
    or are not there. Asked again, with a client that keeps replies, it goes on from there.

    Args:
        client: the model to ask.
        features: which.
        cut: gives a feature's contexts, such as `Cutter.cut`.
        scorers: names of them.
        control: whether each is scored with another one's explanation too.
        seed: of what is asked.
        keep: called with each part that is finished, to store it.

    Raises:
        UserError: no such scorer, or the server cannot be asked.
    """
    chosen = choose_scorers(scorers)
    size = estimate(len(features), [cut(f) for f in features[:_SAMPLED]], scorers, control=control)
    with Task("explanations", max(size.requests, 1), "requests") as task:
        run = _Run(client, chosen, control, seed, task)
        return _wait_for(run.explain(features, cut, keep))


class _Run:
    """Asks a client about features, all in the same way."""

    def __init__(
        self, client: Client, scorers: list[Scorer], control: bool, seed: int, task: Task
    ) -> None:
        self.client, self.scorers, self.control, self.seed = client, scorers, control, seed
        self.task = task

    async def explain(
        self, features: Sequence[int], cut: Cut, keep: Callable[[list[Explanation]], None]
    ) -> list[Explanation]:
        found: list[Explanation] = []
        async with self.client:
            for part in _parts(features):
                made = await self._part([cut(feature) for feature in part])
                keep(made)
                found += made
                if self.client.spent:
                    break
        return found

    async def _part(self, contexts: list[Contexts]) -> list[Explanation]:
        """Explain some features, then score each with its own explanation and with the next's."""
        said = await asyncio.gather(*(self._explanation(c) for c in contexts))
        made = [one for one in said if one is not None]
        told = [one for one in made if one.text]
        by_feature = {c.feature: c for c in contexts}
        jobs = []
        for one, other in zip(told, told[1:] + told[:1], strict=True):
            another = other.text if self.control and other is not one else ""
            jobs.append(self._score(by_feature[one.feature], one, another))
        await asyncio.gather(*jobs)
        return made

    async def _explanation(self, contexts: Contexts) -> Explanation | None:
        """Return what is said; None if the budget ends before."""
        if contexts.lacking:
            return Explanation(contexts.feature, failed=contexts.lacking)
        messages = explaining(contexts)
        try:
            reply = await self._ask(messages)
            text = read_explanation(reply)
            if not text:
                text = read_explanation(
                    await self._ask(_asked_again(messages, reply, EXPLAIN_AGAIN))
                )
        except BudgetSpent:
            return None
        except Unanswered as error:
            return Explanation(contexts.feature, failed=str(error))
        finally:
            self._advance()
        failed = "the model gave no explanation in the form asked for"
        return Explanation(contexts.feature, text, "" if text else failed)

    async def _score(self, contexts: Contexts, own: Explanation, another: str) -> None:
        """Add scores to an explanation; those the budget does not suffice for are left out."""
        jobs = [(scorer, OWN, own.text) for scorer in self.scorers]
        if another:
            jobs += [(s, ANOTHER, another) for s in self.scorers if s.reads_explanation]
        found = await asyncio.gather(*(self._scored(s, contexts, text) for s, _, text in jobs))
        for (scorer, whose, _), score in zip(jobs, found, strict=True):
            if score is not None:
                own.scores.setdefault(scorer.name, {})[whose] = score

    async def _scored(self, scorer: Scorer, contexts: Contexts, text: str) -> Score | None:
        questions = questions_of(scorer, contexts, text, self.seed)
        said = await asyncio.gather(*(self._answer(question) for question in questions))
        if any(one is None for one in said):
            return None
        answers: Answers = [
            (question.truth, one or []) for question, one in zip(questions, said, strict=True)
        ]
        return scorer.score(contexts, answers)

    async def _answer(self, question: Question) -> list[float | None] | None:
        """Return what is said of everything asked; None if the budget ends before."""
        said: list[float | None] = [None] * len(question.truth)
        try:
            reply = await self._ask(question.messages)
            said = question.read(reply)
            if None in said:
                messages = _asked_again(question.messages, reply, question.again)
                second = question.read(await self._ask(messages))
                said = [b if a is None else a for a, b in zip(said, second, strict=True)]
        except BudgetSpent:
            return None
        except Unanswered:
            pass
        finally:
            self._advance()
        return said

    async def _ask(self, messages: list[Message]) -> str:
        """Return what a model says; nothing if it was cut short."""
        reply = await self.client.ask(messages)
        return reply.text if reply.whole else ""

    def _advance(self) -> None:
        used, cost = self.client.usage, self.client.cost
        spent = f"{used.tokens:,} tokens" + ("" if cost is None else f", cost {cost:.4g}")
        self.task.advance(1, spent)


def questions_of(scorer: Scorer, contexts: Contexts, text: str, seed: int = 0) -> list[Question]:
    """Return what a scorer asks about a feature: the same whatever the explanation, but for it."""
    kind = list(SCORERS).index(scorer.name)
    return scorer.ask(text, contexts, np.random.default_rng([seed, contexts.feature, kind]))


def estimate(
    features: int, contexts: Sequence[Contexts], scorers: Sequence[str], *, control: bool = True
) -> Estimate:
    """Return about what `ask_explanations` will take, from the contexts of some of the features.

    Answers are taken to be as short as asked for: a model that thinks first takes many more.
    """
    requests = prompt = completion = 0
    for one in contexts:
        if one.lacking:
            continue
        asked = [explaining(one)]
        completion += _TOKENS_AN_EXPLANATION
        for scorer in choose_scorers(scorers):
            questions = questions_of(scorer, one, _PLACEHOLDER)
            times = 2 if control and scorer.reads_explanation else 1
            asked += [question.messages for question in questions] * times
            completion += times * _TOKENS_AN_ANSWER * sum(len(q.truth) for q in questions)
        requests += len(asked)
        prompt += about_tokens(m["content"] for messages in asked for m in messages)
    scale = features / max(len(contexts), 1)
    return Estimate(*(round(scale * n) for n in (requests, prompt, completion)))


def compare(
    explanations: Sequence[Explanation], untrained: Sequence[Explanation] = ()
) -> list[Comparison]:
    """Average every scorer's figure over features, beside its controls.

    Features that were scored with another one's explanation are compared with that, pair by pair;
    those of an untrained dictionary are as many as there are. Chance is what a judge gets who
    knows nothing.
    """
    found = []
    for scorer in SCORERS.values():
        own = _figures(explanations, scorer, OWN)
        another = _figures(explanations, scorer, ANOTHER)
        both = [f for f in own if f in another] or list(own)
        columns = {
            OWN: [own[f] for f in both],
            ANOTHER: [another[f] for f in both if f in another],
            UNTRAINED: list(_figures(untrained, scorer, OWN).values()),
        }
        if not both:
            continue
        columns = {name: figures for name, figures in columns.items() if figures}
        scores = [score for e in explanations for score in e.scores.get(scorer.name, {}).values()]
        found.append(
            Comparison(
                scorer.name,
                scorer.figure,
                len(both),
                {n: float(np.mean([v for v, _ in c])) for n, c in columns.items()}
                | {CHANCE: scorer.chance},
                {n: _redrawn([draws for _, draws in c]) for n, c in columns.items()}
                | {CHANCE: np.full(DRAWS, scorer.chance)},
                sum(score.answered for score in scores),
                sum(score.unanswered for score in scores),
            )
        )
    return found


def _figures(
    explanations: Iterable[Explanation], scorer: Scorer, whose: str
) -> dict[int, tuple[float, np.ndarray]]:
    """Return by feature a scorer's figure and its draws, where there is one."""
    scores = {
        e.feature: e.scores[scorer.name][whose]
        for e in explanations
        if whose in e.scores.get(scorer.name, {})
    }
    return {
        feature: (score.values[scorer.figure], score.draws[scorer.figure])
        for feature, score in scores.items()
        if np.isfinite(score.values[scorer.figure])
    }


def _redrawn(draws: list[np.ndarray]) -> np.ndarray:
    """Return the mean over features drawn with replacement, of the same draw of each: [draws]."""
    table = np.array(draws)
    drawn = np.random.default_rng(0).integers(len(table), size=(DRAWS, len(table)))
    return np.array([table[rows, i].mean() for i, rows in enumerate(drawn)])


def _parts(features: Sequence[int]) -> list[list[int]]:
    """Return the features in parts, as even as can be."""
    count = -(-len(features) // _TOGETHER)
    return [part.tolist() for part in np.array_split(features, count)] if count else []


def _asked_again(messages: list[Message], reply: str, again: str) -> list[Message]:
    said = without_thoughts(reply).strip() or "(no answer)"
    return [
        *messages,
        {"role": "assistant", "content": said},
        {"role": "user", "content": again},
    ]


def _wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, in a thread of its own where a loop runs, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
