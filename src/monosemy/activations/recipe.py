"""What decides activations, and the order in which they come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from monosemy.corpus import Corpus, Part, TokenPolicy, TokenStream
from monosemy.errors import UserError
from monosemy.lm import LM

TOKENS_AT_ONCE = 4096
"""Tokens that go through the model together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Model, hook points and text: the same recipe gives the same activations in the same order."""

    model: str
    revision: str | None = None
    hookpoints: tuple[str, ...]
    context: int
    packed: bool = True
    policy: TokenPolicy = field(default_factory=TokenPolicy)
    corpus: dict[str, Any] = field(default_factory=dict)
    """The corpus's own description of itself."""
    part: Part = "train"
    seed: int | None = 0
    """Of the order of text."""
    tokens_at_once: int = TOKENS_AT_ONCE
    autocast: bool = False
    """The model's matrix products are computed in bf16."""

    def stream(
        self, lm: LM, corpus: Corpus, epochs: int | None = 1, *, shuffled_rows: bool = True
    ) -> TokenStream:
        """Return the text, cut into rows and counted, about `tokens_at_once` in a batch.

        Raises:
            UserError: the model has no tokenizer.
        """
        return TokenStream(
            corpus,
            lm.tokenizer,
            part=self.part,
            context=self.context,
            rows=max(self.tokens_at_once // self.context, 1),
            packed=self.packed,
            policy=self.policy,
            seed=self.seed,
            shuffled_rows=shuffled_rows,
            epochs=epochs,
        )

    def require(self, asked: Recipe, where: str) -> None:
        """Refuse a recipe that gives other activations; fewer hook points are no difference.

        Raises:
            UserError: names every field that differs, there and as asked.
        """
        mine, theirs = self.to_dict(), asked.to_dict()
        different = [
            f"{name} {mine[name]!r} there, {theirs[name]!r} asked for"
            for name in mine
            if name != "hookpoints" and mine[name] != theirs[name]
        ]
        missing = [name for name in asked.hookpoints if name not in self.hookpoints]
        if missing:
            different.append(f"hook points {list(self.hookpoints)} there, {missing} asked for")
        if different:
            raise UserError(
                f"`{where}` holds other activations: " + "; ".join(different),
                "ask for what it holds, or choose another folder",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        points = list(self.hookpoints)
        return {**values, "hookpoints": points, "policy": self.policy.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Read what `to_dict` wrote.

        Raises:
            TypeError, KeyError: a field is missing or unknown.
        """
        points, policy = tuple(values["hookpoints"]), TokenPolicy.from_dict(values["policy"])
        return cls(**{**values, "hookpoints": points, "policy": policy})
