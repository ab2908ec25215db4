"""The settings of a training run, and the values derived from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from monosemy.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How one dictionary is trained. `None` means: derived, by the rule beside the property."""

    architecture: str = "batch_topk"
    """`batch_topk`, `topk` or `relu`."""
    width: int | None = None
    """Number of features; default 8 times the activation width."""
    k: int | None = None
    """Features that fire on a token (batch_topk: on average); default 32."""
    l1: float | None = None
    """Weight of the L1 penalty (relu only); default 5."""
    tokens: int = 2_000_000
    """Tokens to train on; text is repeated if there is less."""
    context: int | None = None
    """Tokens in a row of text; default 128, or what the model can read if that is less."""
    packed: bool = True
    """Join documents to fill rows; otherwise one document a row, cut or padded."""
    batch: int = 2048
    """Tokens in a training step."""
    pool: int = 65_536
    """Tokens in the pool that batches are drawn from at random."""
    lr: float | None = None
    """Peak learning rate."""
    seed: int = 0
    """Decides everything random: initial weights, order of text, shuffling."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: a number below 1, or an option of another architecture.
        """
        for name in ("tokens", "batch", "pool"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.context is not None and self.context < 2:
            raise UserError(f"context is {self.context}, it must be at least 2 tokens")
        if self.lr is not None and not self.lr > 0:
            raise UserError(f"lr is {self.lr}, it must be above 0", "leave it out to derive it")
        if self.architecture == "relu" and self.k is not None:
            raise UserError(
                f"k is {self.k}, but `relu` has no k: its penalty decides how many features fire",
                "drop k, or choose `topk` or `batch_topk`",
            )
        if self.architecture != "relu" and self.l1 is not None:
            raise UserError(
                f"l1 is {self.l1}, but `{self.architecture}` has no penalty: k decides",
                "drop l1, or choose `relu`",
            )

    @property
    def steps(self) -> int:
        """Training steps: tokens over batch, rounded up."""
        return -(-self.tokens // self.batch)

    @property
    def dead_after(self) -> int:
        """Tokens without firing after which a feature is dead: 10M, or a tenth of a short run."""
        return min(10_000_000, max(self.tokens // 10, 10 * self.batch))

    def coder_options(self) -> dict[str, Any]:
        """Options of the architecture that were given."""
        given = {"k": self.k, "l1": self.l1}
        return {name: value for name, value in given.items() if value is not None}

    def learning_rate(self, width: int) -> float:
        """Peak learning rate: the one given, or 4e-3 / sqrt(width / 2048).

        The inverse square root of the width is Gao et al.'s rule (arXiv 2406.04093, section 3).
        """
        return self.lr if self.lr is not None else 4e-3 / math.sqrt(width / 2048)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)
