"""The two sides of a contrast as a model reads them: activations, and how likely each side is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosemy.activations import counted_activations
from monosemy.corpus import Choice, Corpus, Part, TokenBatch, TokenStream
from monosemy.corpus.choices import shared_start
from monosemy.errors import UserError
from monosemy.intervene.positions import Positions
from monosemy.lm import LM, padded_right

Sided = tuple[Mapping[str, Tensor], Tensor]
"""Activations of tokens at hook points, name -> [tokens, d], fp32; and a weight for each token,
[tokens]: above 0 on the wanted side, below 0 on the other."""

_Text = TypeVar("_Text", bound=Sequence[int])

_TOKENS_AT_ONCE = 1024
"""Few, so that texts of one pass are of like length and little is padded."""
_LOGITS_AT_ONCE = 2**26
_FEW_ANSWERS, _LOPSIDED = 6, 0.6
"""Different answers of a multiple-choice set at most, and the share of one that unbalances it."""


@dataclass(frozen=True, slots=True, eq=False)
class LogProbabilities:
    """How likely the texts of both sides are, nats; and the group each is of, one numbering."""

    wanted: Float[np.ndarray, " n"]
    other: Float[np.ndarray, " m"]
    wanted_group: Int[np.ndarray, " n"]
    other_group: Int[np.ndarray, " m"]
    paired: bool
    """Texts of the same place belong together."""


@runtime_checkable
class Sides(Protocol):
    """What vectors are made of and tested on."""

    @property
    def lm(self) -> LM: ...

    @property
    def positions(self) -> Positions:
        """Where to steer while it is read, if nothing else is asked for."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what it is, fit for JSON."""
        ...

    def activations(self, hookpoints: Sequence[str]) -> Iterator[Sided]:
        """Yield activations that a difference is taken of; one pass serves all hook points."""
        ...

    def log_probabilities(self) -> LogProbabilities:
        """Return how likely the model finds either side, under the edits that are in force."""
        ...


@dataclass(frozen=True, slots=True)
class _Answer:
    """A prompt with one of its answers, as the model reads it."""

    ids: list[int]
    prompt: int
    """Tokens of the prompt, the last left out: that one already says what the answer will be."""
    start: int
    """The first token that the other answer does not share."""
    end: int
    """The token after the last such one."""
    side: float


class PairSides:
    """Prompts with two answers.

    A pair's difference is taken at the tokens in which its answers differ: those after what both
    texts begin with and before what both end with, the mean where they are several. Of answers
    such as `(A)` and `(B)` that is the letter (Rimsky et al. 2024, arXiv 2312.06681). An answer
    that the other only adds to has none of its own; the token that follows the addition counts.
    """

    positions: Positions = "generated"
    """From the prompt's last token on."""

    def __init__(self, lm: LM, choices: Sequence[Choice]) -> None:
        """Tokenise pairs; a question goes into the model's chat template where there is one.

        Raises:
            UserError: no pairs, no tokenizer, a pair that is too long, or one whose texts are the
                same tokens.
        """
        if not choices:
            raise UserError("no pairs", "give at least one prompt with two answers")
        self.lm, self.choices = lm, list(choices)
        self._answers: list[_Answer] = []
        for number, choice in enumerate(choices):
            self._answers += self._read(number, choice)
        names = {choice.group or f"\0{i}": None for i, choice in enumerate(choices)}
        known = {name: i for i, name in enumerate(names)}
        self._groups = np.array([known[c.group or f"\0{i}"] for i, c in enumerate(choices)])

    def describe(self) -> dict[str, Any]:
        """Return counts, and the wanted answers that are most frequent."""
        wanted = Counter(choice.wanted for choice in self.choices)
        return {
            "kind": "pairs",
            "pairs": len(self.choices),
            "groups": int(self._groups.max()) + 1,
            "wanted": dict(wanted.most_common(5)),
            "warning": self._warning(),
        }

    def _warning(self) -> str:
        """Say if the wanted answers are mostly one of a few: the difference is then of letters."""
        wanted = Counter(choice.wanted for choice in self.choices)
        other = {choice.other for choice in self.choices}
        (answer, times), *_ = wanted.most_common(1)
        share = times / len(self.choices)
        asks = all(choice.asks for choice in self.choices)
        if not asks or len({*wanted} | other) > _FEW_ANSWERS or share <= _LOPSIDED:
            return ""
        return (
            f"the wanted answer is {answer} in {share:.0%} of the pairs: the vector is of that "
            "answer as well; swap the answers of some questions"
        )

    def activations(self, hookpoints: Sequence[str]) -> Iterator[Sided]:
        """Yield activations where answers differ; each answer weighs 1."""
        answers = {id(answer.ids): answer for answer in self._answers}
        for texts in _batches([answer.ids for answer in self._answers], _TOKENS_AT_ONCE):
            rows = [answers[id(ids)] for ids in texts]
            tokens, mask = padded_right(list(map(torch.tensor, texts)))
            ends = torch.tensor([(row.start, row.end) for row in rows])
            at = torch.arange(tokens.shape[1])
            own = (at >= ends[:, :1]) & (at < ends[:, 1:])
            weights = own * torch.tensor([[row.side / (row.end - row.start)] for row in rows])
            found = self.lm.capture(tokens, hookpoints, attention_mask=mask)
            yield (
                {name: x[own.to(x.device)].float() for name, x in found.items()},
                weights[own],
            )

    @torch.no_grad()
    def log_probabilities(self) -> LogProbabilities:
        """Return log P(all that follows what a pair's texts share), of the wanted and the other.

        Their difference is the log-odds of the two texts. Edits of what is `generated` begin at
        the prompt's last token.
        """
        # All but the last token predict an answer: answers of one token share them.
        read: dict[tuple[int, ...], list[int]] = {}
        for number, answer in enumerate(self._answers):
            read.setdefault(tuple(answer.ids[:-1]), []).append(number)
        vocabulary = self.lm.config.get_text_config().vocab_size
        every = np.zeros(len(self._answers))
        for texts in _batches([*read], min(_LOGITS_AT_ONCE // vocabulary, _TOKENS_AT_ONCE)):
            tokens, mask = padded_right(list(map(torch.tensor, texts)))
            prompts = [self._answers[read[text][0]].prompt for text in texts]
            with self.lm.prompted(torch.tensor(prompts)):
                logits = self.lm.logits(tokens, attention_mask=mask)
            for row, text in zip(logits, texts, strict=True):
                for number in read[text]:
                    start, ids = self._answers[number].start, self._answers[number].ids
                    scored = row[start - 1 : len(text)]
                    every[number] = float(_log_softmax_at(scored, torch.tensor(ids[start:])).sum())
        return LogProbabilities(every[::2], every[1::2], self._groups, self._groups, True)

    def _read(self, number: int, choice: Choice) -> list[_Answer]:
        prompt = _as_asked(choice.prompt, self.lm) if choice.asks else choice.prompt
        shown = choice.prompt[-40:]
        wanted, other, asked = (
            self.lm.encode(prompt + answer)[0].tolist()
            for answer in (choice.wanted, choice.other, "")
        )
        limit = self.lm.context_limit
        if limit is not None and max(len(wanted), len(other)) > limit:
            raise UserError(
                f"pair {number} (`...{shown}`) has {max(len(wanted), len(other))} tokens",
                f"`{self.lm.name}` takes {limit} at most; take the pair out",
            )
        start = shared_start(wanted, other)
        if start == min(len(wanted), len(other)):
            raise UserError(
                f"pair {number} (`...{shown}`): of its texts, as tokens, one begins the other",
                "both need an answer of their own where they part",
            )
        if start == 0:
            raise UserError(
                f"pair {number} has no token before its answers, `{choice.wanted[:20]}`",
                "give a prompt: without one nothing says how likely an answer is",
            )
        tail = shared_start(wanted[start:][::-1], other[start:][::-1])
        begun = max(min(shared_start(asked, wanted), start) - 1, 0)
        return [
            _Answer(ids, begun, start, max(len(ids) - tail, start + 1), side)
            for ids, side in ((wanted, 1.0), (other, -1.0))
        ]


class TextSides:
    """Two sets of texts, each text in a row of its own, of which the first tokens are read."""

    positions: Positions = "all"

    def __init__(
        self,
        lm: LM,
        positive: Corpus,
        negative: Corpus,
        *,
        part: Part = "all",
        tokens: int = 50_000,
        context: int = 128,
    ) -> None:
        """Read two corpora; nothing is read until it is needed.

        Args:
            lm: the model.
            positive: texts that are wanted.
            negative: the others.
            part: of both.
            tokens: counted on either side, as far as there are so many.
            context: tokens of a text that are read.

        Raises:
            UserError: no fast tokenizer, or a context that is out of range.
        """
        self.lm, self.tokens, self.part = lm, tokens, part
        limit = lm.context_limit
        self.context = context if limit is None else min(context, limit)
        self._streams = [
            TokenStream(
                corpus,
                lm.tokenizer,
                part=part,
                context=self.context,
                rows=max(_TOKENS_AT_ONCE // self.context, 1),
                packed=False,
                seed=0,
            )
            for corpus in (positive, negative)
        ]

    def describe(self) -> dict[str, Any]:
        """Return where the texts come from."""
        return {
            "kind": "texts",
            "positive": self._streams[0].corpus.describe(),
            "negative": self._streams[1].corpus.describe(),
            "part": self.part,
            "context": self.context,
        }

    def activations(self, hookpoints: Sequence[str]) -> Iterator[Sided]:
        """Yield activations of counted tokens; each token weighs 1."""
        for side, batch in self._batches():
            found = counted_activations(self.lm, batch, hookpoints)
            yield found, torch.full((int(batch.counted.sum()),), side)

    @torch.no_grad()
    def log_probabilities(self) -> LogProbabilities:
        """Return the mean log-probability of each text's counted tokens, nats a token."""
        found: dict[float, list[float]] = {1.0: [], -1.0: []}
        for side, batch in self._batches():
            logits = self.lm.logits(batch.tokens, attention_mask=batch.attention_mask)
            after, scored = batch.next_tokens()
            each = _log_softmax_at(logits[scored.to(logits.device)], after[scored])
            sums, counts = torch.zeros(len(scored), dtype=torch.float64), scored.sum(1)
            sums.index_add_(0, scored.nonzero()[:, 0], each)
            found[side] += (sums / counts)[counts > 0].tolist()
        wanted, other = np.array(found[1.0]), np.array(found[-1.0])
        groups = np.arange(len(wanted) + len(other))
        return LogProbabilities(wanted, other, groups[: len(wanted)], groups[len(wanted) :], False)

    def _batches(self) -> Iterator[tuple[float, TokenBatch]]:
        for stream, side in zip(self._streams, (1.0, -1.0), strict=True):
            count = 0
            for batch in stream:
                yield side, batch
                count += int(batch.counted.sum())
                if count >= self.tokens:
                    break


def _as_asked(question: str, lm: LM) -> str:
    """Return a question as a model is asked: in its chat template, else as CAA asks base models."""
    tokenizer: Any = lm.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        return f"Input: {question}\nResponse: "
    text = str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
    )
    return text.removeprefix(tokenizer.bos_token or "")


def _batches(texts: Sequence[_Text], tokens: int) -> Iterator[list[_Text]]:
    """Yield texts of like length together, so that little is padded."""
    batch: list[_Text] = []
    for text in sorted(texts, key=len):
        if batch and (len(batch) + 1) * len(text) > tokens:
            yield batch
            batch = []
        batch.append(text)
    yield batch


def _log_softmax_at(
    logits: Float[Tensor, "n vocab"], tokens: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return the log-probability of one token each, in double precision on the CPU."""
    each = logits.float().log_softmax(-1).gather(1, tokens.to(logits.device)[:, None])
    return each[:, 0].double().cpu()
