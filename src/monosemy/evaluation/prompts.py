"""What a model knows of entities, and its answers with other activations where it reads of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from monosemy.corpus import Fact
from monosemy.lm import LM

BATCH = 16
"""Prompts in one pass."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """Prompts about entities, padded at the end, and what the model answers."""

    lm: LM
    hookpoint: str
    facts: list[Fact]
    tokens: Int[Tensor, "n time"]
    place: Int[Tensor, " n"]
    """Position of the entity's last token."""
    last: Int[Tensor, " n"]
    """Position of the last token, which the answer follows."""
    answer: Int[Tensor, " n"]
    """The likeliest next token."""
    x: Float[Tensor, "n d"]
    """Activations at `place`."""

    @classmethod
    def ask(cls, lm: LM, hookpoint: str, facts: Sequence[Fact]) -> Prompts:
        """Let the model answer."""
        ids = [lm.encode(fact.prompt)[0].cpu() for fact in facts]
        ends = [f.prompt[: f.prompt.rindex(f.entity) + len(f.entity)] for f in facts]
        place = torch.tensor([lm.encode(text).shape[1] - 1 for text in ends])
        last = torch.tensor([len(row) - 1 for row in ids])
        tokens = pad_sequence(ids, batch_first=True)
        none = torch.zeros(len(ids), lm.hookpoint(hookpoint).width)
        asked = cls(lm, hookpoint, list(facts), tokens, place, last, torch.zeros_like(last), none)
        batches = torch.arange(len(ids)).split(BATCH)
        answers = torch.cat([asked.logits(rows).argmax(-1).cpu() for rows in batches])
        x = torch.cat([asked.activations(rows) for rows in batches])
        return replace(asked, answer=answers, x=x)

    def known(self) -> Prompts:
        """Return those that are answered rightly, as far as the answer's first token says."""
        right = [
            answer in self._beginnings(fact)
            for fact, answer in zip(self.facts, self.answer.tolist(), strict=True)
        ]
        facts = [fact for fact, one in zip(self.facts, right, strict=True) if one]
        rows = torch.tensor(right)
        parts = (self.tokens, self.place, self.last, self.answer, self.x)
        return Prompts(self.lm, self.hookpoint, facts, *(part[rows] for part in parts))

    def numbers(self, field: str) -> tuple[list[str], Int[Tensor, " n"]]:
        """Return the names in a field of the facts, and each fact's number among them."""
        names = [getattr(fact, field) for fact in self.facts]
        unique, number = np.unique(names, return_inverse=True)
        return unique.tolist(), torch.from_numpy(number)

    def activations(self, rows: Int[Tensor, " rows"]) -> Float[Tensor, "rows d"]:
        """Return activations where entities end."""
        tokens, mask = self._text(rows)
        found = self.lm.capture(tokens, [self.hookpoint], attention_mask=mask)
        return found[self.hookpoint][torch.arange(len(rows)), self.place[rows]].float()

    def logits(
        self, rows: Int[Tensor, " rows"], put: Float[Tensor, "rows d"] | None = None
    ) -> Float[Tensor, "rows vocab"]:
        """Return the logits of answers; `put` is in place of the activations where entities end.

        Gradients reach it if it asks for them.
        """
        each = torch.arange(len(rows))

        def edit(x: Tensor, tokens: Tensor | None) -> Tensor:
            if put is None:
                return x
            x = x.clone()
            x[each, self.place[rows]] = put.to(x)
            return x

        tokens, mask = self._text(rows)
        gradients = put is not None and put.requires_grad
        with self.lm.edit({self.hookpoint: edit}):
            logits = self.lm.logits(tokens, attention_mask=mask, gradients=gradients)
        return logits[each, self.last[rows]].float()

    def _text(
        self, rows: Int[Tensor, " rows"]
    ) -> tuple[Int[Tensor, "rows time"], Bool[Tensor, "rows time"]]:
        """Return tokens, as many as the longest has, and which are no padding."""
        last = self.last[rows, None]
        at = torch.arange(int(last.max()) + 1)
        return self.tokens[rows][:, at], at <= last

    def _beginnings(self, fact: Fact) -> set[int]:
        """Return the tokens that an answer may begin with: as it stands, and after a space."""
        assert self.lm.tokenizer is not None
        texts = (fact.answer, f" {fact.answer.strip()}")
        found = [self.lm.tokenizer(t, add_special_tokens=False)["input_ids"][:1] for t in texts]
        return {token for tokens in found for token in tokens}
