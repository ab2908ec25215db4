"""A language model with a dictionary in its forward pass, as a model of `transformers`.

It is saved, loaded, generated from and pushed as any other; nothing of it needs code from its
folder. Importing this module makes `AutoModelForCausalLM` know it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)

from monosemy.coders import Clamp, Dictionary, SparseCoder, attach_once, changed, make_coder
from monosemy.coders.card import TAGS
from monosemy.coders.changes import ErrorTerm
from monosemy.errors import UserError, reason
from monosemy.lm import LM
from monosemy.lm.hooks import hook_at

_NEEDED = ("base_config", "coder", "reads_at", "writes_at")


class SplicedConfig(PreTrainedConfig):
    """What a spliced model is made of.

    Args:
        base_config: the language model's own configuration.
        coder: `architecture`, `d_in`, `width` and `options` of the dictionary.
        reads_at: place in the model whose activations are encoded, as `hook_at` takes it.
        writes_at: place whose activations are explained; the same, but of a transcoder.
        clamp: feature -> activation that it is held at.
        error: `drop` puts the reconstruction in place of activations; `keep` adds to it what the
            dictionary does not explain, so that only clamped features make a difference.
        special_ids: tokens that are left as they are.
        dictionary: model, hook points and training of the dictionary, for people to read.
        rest: what every configuration has.
    """

    model_type = "monosemy-spliced"
    sub_configs = {"base_config": AutoConfig}
    has_no_defaults_at_init = True

    def __init__(
        self,
        base_config: PreTrainedConfig | Mapping[str, Any] | None = None,
        coder: Mapping[str, Any] | None = None,
        reads_at: str | None = None,
        writes_at: str | None = None,
        clamp: Mapping[str, float] | None = None,
        error: str = "drop",
        special_ids: list[int] | None = None,
        dictionary: Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        if isinstance(base_config, Mapping):
            base_config = _base_config(base_config)
        self.base_config = base_config
        self.coder = dict(coder) if coder is not None else None
        self.reads_at, self.writes_at = reads_at, writes_at
        self.clamp = {str(feature): float(value) for feature, value in (clamp or {}).items()}
        self.error = error
        self.special_ids = list(special_ids or [])
        self.dictionary = dict(dictionary or {})
        super().__init__(**rest)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """Return what the base model says of itself: layers, heads, what its cache is like."""
        if isinstance(self.base_config, PreTrainedConfig):
            return self.base_config.get_text_config(*args, **kwargs)
        return self


class SplicedForCausalLM(PreTrainedModel, GenerationMixin):
    """A language model that a dictionary's reconstruction runs through.

    Args:
        config: what it is made of.
        base: the language model; default a new one, its weights yet to be loaded.

    Raises:
        UserError: the configuration lacks something, or says what cannot be.
    """

    config_class = SplicedConfig
    base_model_prefix = "base"
    base: Any
    coder: SparseCoder
    _keep_in_fp32_modules_strict = ["coder"]  # thresholds and choices do not survive less
    _supports_sdpa = True
    _supports_flash_attn = True
    supports_gradient_checkpointing = True

    def __init__(self, config: SplicedConfig, base: PreTrainedModel | None = None) -> None:
        _check(config)
        super().__init__(config)
        self.base = AutoModelForCausalLM.from_config(config.base_config) if base is None else base
        given: Mapping[str, Any] = config.coder or {}
        try:
            self.coder = make_coder(
                given["architecture"], given["d_in"], given["width"], **given["options"]
            )
        except (KeyError, TypeError) as error:
            raise UserError(
                f"`coder` of the configuration is not as it should be: {reason(error)}",
                "save the spliced model again",
            ) from error
        self.post_init()
        self.add_model_tags(list(TAGS))
        if self.base.generation_config is not None:
            self.generation_config = self.base.generation_config

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Return what the base model returns, with the dictionary in its place."""
        with self._spliced():
            return self.base(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the base model's `generate` writes, with the dictionary in its place."""
        kwargs.setdefault("generation_config", self.generation_config)
        with self._spliced():
            return self.base.generate(*args, **kwargs)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> torch.nn.Module | None:
        return self.base.get_output_embeddings()

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.base.prepare_inputs_for_generation(*args, **kwargs)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave weights: base and coder each make their own."""

    @contextmanager
    def _spliced(self) -> Iterator[None]:
        """Put the dictionary in every forward pass of the base model while the block runs."""
        config, given, made = self.config, {}, {}
        special = torch.tensor(config.special_ids, dtype=torch.long)

        def see(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            given["ids"] = kwargs.get("input_ids", args[0] if args else None)

        def read(x: Tensor | None) -> None:
            made["x"] = x

        def write(y: Tensor | None) -> Tensor | None:
            x = y if config.reads_at == config.writes_at else made.pop("x", None)
            if x is None or y is None:
                raise UserError(
                    f"nothing was at `{config.reads_at}` before `{config.writes_at}` was reached",
                    "a transcoder's input comes before what it explains",
                )
            out = self._explained(x, y)
            ids = given.get("ids")
            if ids is None or not len(special):
                return out
            is_special = torch.isin(ids.to(y.device), special.to(y.device))
            return torch.where(is_special[..., None], y, out)

        with ExitStack() as stack:
            stack.callback(self.base.register_forward_pre_hook(see, with_kwargs=True).remove)
            if config.reads_at != config.writes_at:
                stack.callback(hook_at(self.base, config.reads_at, read).remove)
            stack.callback(hook_at(self.base, config.writes_at, write, first=True).remove)
            yield

    def _explained(self, x: Tensor, y: Tensor) -> Tensor:
        """Return [batch, time, d_out] in place of y."""
        amounts = {int(feature): value for feature, value in self.config.clamp.items()}
        changes = [Clamp(amounts)] if amounts else []
        weights = self.coder.W_dec
        rows, explained = (t.flatten(0, 1).to(weights) for t in (x, y))
        out = changed(
            self.coder, rows, explained, changes, dict.fromkeys(amounts, 1.0), self.config.error
        )
        return out.to(y.dtype).view(y.shape)


def splice(
    lm: LM,
    dictionary: Dictionary,
    *,
    clamp: Mapping[int, float] | None = None,
    error: ErrorTerm = "drop",
) -> SplicedForCausalLM:
    """Return a model of `transformers` with a dictionary in its forward pass.

    The base model's weights are shared with `lm`, the dictionary's are copied; `lm` itself works
    as before.

    Args:
        lm: a causal language model.
        dictionary: one that fits it.
        clamp: features held at multiples of their strengths.
        error: `drop` or `keep` what the dictionary does not explain.

    Raises:
        UserError: they do not fit, no such feature, or the model writes no text.
    """
    if not isinstance(lm.model, PreTrainedModel) or not lm.is_causal:
        raise UserError(
            f"`{lm.name}` is no causal language model of transformers",
            "adapters have to be merged into it first",
        )
    attach_once(dictionary, lm)
    dictionary.check_scales(clamp or {})
    coder = copy.deepcopy(dictionary.coder)
    coder.untie()
    provenance = dictionary.provenance
    config = SplicedConfig(
        base_config=copy.deepcopy(lm.model.config),  # `transformers` will change it
        coder={
            "architecture": coder.architecture,
            "d_in": coder.d_in,
            "width": coder.width,
            "options": coder.options(),
        },
        reads_at=lm.hookpoint(dictionary.hookpoint).path,
        writes_at=lm.hookpoint(dictionary.explains).path,
        clamp={str(f): a * float(dictionary.strength[f]) for f, a in (clamp or {}).items()},
        error=error,
        special_ids=sorted(lm.special_ids),
        dictionary={
            "model": provenance.model,
            "hookpoint": dictionary.hookpoint,
            "explains": dictionary.explains,
            "identity": dictionary.identity(),
        },
        dtype=lm.model.dtype,
    )
    made = SplicedForCausalLM(config, lm.model)
    made.coder = coder.to(lm.device)
    return made.eval()


def _base_config(values: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the base model's configuration from what was saved.

    Raises:
        UserError: it is of no model that is known here.
    """
    rest = {name: value for name, value in values.items() if name != "model_type"}
    try:
        return AutoConfig.for_model(str(values.get("model_type")), **rest)
    except ValueError as error:
        raise UserError(
            f"the base model is of type `{values.get('model_type')}`, which is not known here",
            "a newer transformers may know it",
        ) from error


def _check(config: SplicedConfig) -> None:
    missing = [name for name in _NEEDED if getattr(config, name) is None]
    if missing:
        raise UserError(
            f"the configuration of a spliced model has no `{missing[0]}`",
            f"it needs {', '.join(_NEEDED)}; make one with monosemy.splice(lm, dictionary)",
        )
    if config.error not in get_args(ErrorTerm):
        raise UserError(f"error is `{config.error}`", f"allowed: {', '.join(get_args(ErrorTerm))}")


AutoConfig.register(SplicedConfig.model_type, SplicedConfig)
AutoModelForCausalLM.register(SplicedConfig, SplicedForCausalLM)
