"""The settings of a training run, and the values derived from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from monosemy.activations.precision import Precision, check_precision
from monosemy.coders.registry import architecture_named, coder_options
from monosemy.errors import UserError, nearest
from monosemy.training.dead import Revival, check_revival

Objective = Literal["mse", "kl", "ce"]
Init = Literal["random", "data"]
Centre = Literal["mean", "median"]

DEFAULT_L0 = 32
DEFAULT_LR, DEFAULT_LR_WIDTH = 8e-3, 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How one dictionary is trained. `None` means: derived, by the rule said there."""

    architecture: str = "batch_topk"
    """`batch_topk`, `topk`, `groupmax`, `matryoshka`, `jumprelu`, `gated`, `relu`, `p_anneal`,
    `relu_kl` or `nonnegative`."""
    width: int | None = None
    """Number of features; default 8 times the activation width."""
    k: int | None = None
    """Features that fire on a token (but for topk, on average), where k decides; default 32."""
    target_l0: float | None = None
    """Features that fire on a token, on average, where a penalty decides; default 32."""
    penalty: float | None = None
    """Weight of the sparsity penalty, held; default: a controller finds it for target_l0."""
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
    store: str | None = None
    """Folder of stored activations: they are read from there, and stored there as far as they are
    missing, so that the next run need not compute them."""
    autocast: bool | None = None
    """Compute the model's matrix products in bf16, on text that is trained on, never on text that
    is measured on; default: where the device is made for it."""
    precision: Precision | None = None
    """How a new store keeps activations: `bf16` (default), `fp32`, or `int8` with a scale for each
    token."""
    lr: float | None = None
    """Peak learning rate; default 8e-3 / sqrt(width / 2048)."""
    seed: int = 0
    """Decides everything random: initial weights, order of text, shuffling."""
    target: str | None = None
    """Hook point to explain instead of the input itself: a transcoder."""
    skip: bool = False
    """Add a linear path from input to output (transcoders)."""
    tied: bool = False
    """The encoder's rows are the decoder's."""
    unit_norm: bool = False
    """Hold directions at unit norm in training; else bring them there when it is over. Tied ones
    are always held."""
    freeze_decoder: bool = False
    """Leave directions as they began, of unit norm; only the rest is trained: a baseline."""
    init: Init = "random"
    """Start from random directions, or from tokens' activations (`data`)."""
    whiten: bool = False
    """Take correlations out of activations before training, so that directions in which they vary
    little weigh as much as the others; the dictionary takes the model's own activations again."""
    centre: Centre = "mean"
    """Start the decoder's bias at the mean, or at the geometric median."""
    revive: Revival = "auxk"
    """How dead features are brought back: `auxk`, `ghost`, `resample` or `none`."""
    ema: float = 0.0
    """Decay of an average of the weights that the dictionary takes, such as 0.999; 0: none."""
    objective: Objective = "mse"
    """What the reconstruction is judged by: itself, or what the model predicts with it in place:
    `kl` to its own predictions, `ce` of the next token (end-to-end training)."""
    clamp: dict[int, float] = field(default_factory=dict)
    """Features held at an activation on every token while the others train round them."""
    multi: bool | None = None
    """topk only: train codes of 4k features too."""
    sparsity: Literal["step", "tanh", "quadratic"] | None = None
    """jumprelu only: the penalty: `quadratic` (default) holds L0 at target_l0 by itself; `step`
    counts features that fire, for a penalty that is held; `tanh` counts them smoothly."""
    bandwidth: float | None = None
    """jumprelu only: width of the window in which thresholds feel gradients; default 0.5."""
    p_end: float | None = None
    """p_anneal only: the power that p falls to; default 0.2."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: a number out of range, an unknown name, options that contradict one another.
        """
        for name in ("tokens", "batch", "pool"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.context is not None and self.context < 2:
            raise UserError(f"context is {self.context}, it must be at least 2 tokens")
        for name in ("lr", "target_l0", "penalty"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} is {value}, it must be above 0", "leave it out")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema is {self.ema}", "allowed: 0 for none, up to below 1, as 0.999")
        for name, allowed in (("objective", Objective), ("init", Init), ("centre", Centre)):
            if getattr(self, name) not in get_args(allowed):
                raise UserError(
                    f"no {name} `{getattr(self, name)}`", f"allowed: {', '.join(get_args(allowed))}"
                )
        check_revival(self.revive)
        if self.precision is not None:
            check_precision(self.precision)
        if self.store is not None and self.objective != "mse":
            raise UserError(
                f"store is `{self.store}`, but objective `{self.objective}` asks the model",
                "drop store, or use objective `mse`",
            )
        self._check_sparsity()
        self._check_architecture()

    def _check_sparsity(self) -> None:
        kind, name = architecture_named(self.architecture), self.architecture
        if kind.has_k:
            for option in ("target_l0", "penalty"):
                if getattr(self, option) is not None:
                    raise UserError(
                        f"{option} is {getattr(self, option)}, but `{name}` has no penalty: "
                        f"k decides" + ("" if self.k is None else f", and is {self.k}"),
                        f"drop {option}" + (" and give k" if self.k is None else ""),
                    )
        elif self.k is not None:
            also = "" if self.target_l0 is None else f", and target_l0 is {self.target_l0}"
            raise UserError(
                f"k is {self.k}, but `{name}` has no k: its penalty decides what fires{also}",
                "drop k" + ("" if also else " and give target_l0, or choose `batch_topk`"),
            )
        elif self.sparsity == "step" and self.penalty is None:
            raise UserError(
                "sparsity `step` needs a penalty that is held: thresholds that have risen too far "
                "are not brought back by a smaller one",
                "give penalty, or drop sparsity to have target_l0 reached",
            )
        elif self.target_l0 is not None and self.penalty is not None and not self.held_by_itself:
            raise UserError(
                f"penalty {self.penalty} and target_l0 {self.target_l0} contradict one another",
                "drop penalty to have a controller reach target_l0, or drop target_l0",
            )

    def _check_architecture(self) -> None:
        known = coder_options(architecture_named(self.architecture))
        for option in _OWN_OPTIONS:
            if getattr(self, option) is not None and option not in known:
                raise UserError(
                    f"{option} is {getattr(self, option)}, but `{self.architecture}` has no such "
                    "option",
                    f"drop {option}",
                )
        if self.freeze_decoder and (self.tied or self.revive == "resample"):
            other = "tied" if self.tied else "revive `resample`"
            raise UserError(f"freeze_decoder is on, but {other} changes directions", "drop either")
        if self.whiten and self.architecture == "nonnegative":
            raise UserError(
                "whiten is on, but `nonnegative` directions would not stay so when it is undone",
                "drop whiten",
            )

    @property
    def has_k(self) -> bool:
        """Say whether k decides how many features fire."""
        return architecture_named(self.architecture).has_k

    @property
    def l0(self) -> float:
        """The L0 asked for, whatever decides it."""
        return float((self.k if self.has_k else self.target_l0) or DEFAULT_L0)

    @property
    def steps(self) -> int:
        """Training steps: tokens over batch, rounded up."""
        return -(-self.tokens // self.batch)

    @property
    def dead_after(self) -> int:
        """Tokens without firing after which a feature is dead: 10M, or a tenth of a short run."""
        return min(10_000_000, max(self.tokens // 10, 10 * self.batch))

    @property
    def held_by_itself(self) -> bool:
        """Say whether the penalty itself holds L0 at the target, without a controller."""
        wants_step = self.sparsity == "step" or (self.sparsity is None and self.penalty is not None)
        return self.architecture == "jumprelu" and self.sparsity != "tanh" and not wants_step

    def coder_options(self) -> dict[str, Any]:
        """Options of the architecture, and of all coders."""
        own = {name: getattr(self, name) for name in ("k", *_OWN_OPTIONS)}
        if self.held_by_itself:
            own["sparsity"] = "quadratic"
        unit_norm = self.unit_norm or self.tied or self.freeze_decoder
        shared = {"tied": self.tied, "skip": self.skip, "unit_norm": unit_norm}
        return {**shared, **{name: value for name, value in own.items() if value is not None}}

    def learning_rate(self, width: int) -> float:
        """Peak learning rate: the one given, or 8e-3 / sqrt(width / 2048).

        The inverse square root of the width is Gao et al.'s rule (arXiv 2406.04093, section 3).
        """
        if self.lr is not None:
            return self.lr
        return DEFAULT_LR / math.sqrt(width / DEFAULT_LR_WIDTH)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        values = asdict(self)
        return {**values, "clamp": {str(f): v for f, v in self.clamp.items()}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Read settings by name.

        Raises:
            UserError: there is no such setting, or its value cannot work.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(
                    f"no setting `{name}`",
                    f"{nearest(name, known)} allowed: {', '.join(known)}".strip(),
                )
        clamp = {int(f): float(v) for f, v in (values.get("clamp") or {}).items()}
        return cls(**{**values, "clamp": clamp})


_OWN_OPTIONS = ("multi", "sparsity", "bandwidth", "p_end")
