"""What a dictionary was trained on, and text cut and counted in the same way."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from monosemy.activations import Recipe
from monosemy.corpus import Corpus, Part, TokenPolicy, TokenStream
from monosemy.errors import UserError
from monosemy.lm import LM

TOKENS_AT_ONCE = 1024
"""Tokens in a batch that is measured on a CPU: few enough for activations to stay in its cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a dictionary was trained on: everything needed to attach it rightly."""

    model: str
    """Hub id, path or `builtin:` name of the language model."""
    revision: str | None = None
    hookpoint: str
    """Where the activations that are encoded live."""
    target: str | None = None
    """Where those live that are explained (a transcoder); None: the same place."""
    context: int
    """Tokens in a row of text, special tokens included."""
    packed: bool = True
    policy: TokenPolicy = field(default_factory=TokenPolicy)
    corpus: dict[str, Any] = field(default_factory=dict)
    """The corpus's own description of itself; how to open it again is in its `source`."""
    training: dict[str, Any] = field(default_factory=dict)
    """Settings and final figures of the training run."""

    @property
    def explains(self) -> str:
        """The hook point whose activations are explained: the target, or the input itself."""
        return self.target or self.hookpoint

    def recipe(self, part: Part = "train", *, seed: int = 0) -> Recipe:
        """Return what decides the activations it needs, and their order."""
        return Recipe(
            model=self.model,
            revision=self.revision,
            hookpoints=tuple(dict.fromkeys([self.hookpoint, self.explains])),
            context=self.context,
            packed=self.packed,
            policy=self.policy,
            corpus=self.corpus,
            part=part,
            seed=seed,
        )

    def stream(
        self, lm: LM, corpus: Corpus, part: Part, *, shuffled_rows: bool = True
    ) -> TokenStream:
        """Return text cut into rows, and counted, as in training.

        Without `shuffled_rows`, rows of a document follow each other; documents are shuffled.

        Raises:
            UserError: the model has no tokenizer.
        """
        recipe = self.recipe(part)
        if lm.device.type == "cpu":
            recipe = replace(recipe, tokens_at_once=TOKENS_AT_ONCE)
        return recipe.stream(lm, corpus, shuffled_rows=shuffled_rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; `target` only where there is one."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.target is None:
            del values["target"]
        return {**values, "policy": self.policy.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Provenance:
        """Read what `to_dict` wrote.

        Raises:
            UserError: a field is missing or unknown.
        """
        known = {f.name for f in fields(cls)}
        unknown, required = set(values) - known, {"model", "hookpoint", "context"}
        if unknown or not required <= set(values):
            raise UserError(
                f"the manifest's provenance has fields {sorted(values)}",
                f"allowed: {sorted(known)}; needed: {sorted(required)}",
            )
        policy = TokenPolicy.from_dict(values.get("policy", {}))
        return cls(**{**values, "policy": policy})
