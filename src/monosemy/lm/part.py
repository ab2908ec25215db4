"""Load no more of a model than a forward pass to some hook points needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from monosemy.errors import UserError
from monosemy.lm.hookpoints import HookPoint, Layout, find_layout
from monosemy.lm.load import empty_model, load_model


@dataclass(frozen=True, slots=True)
class Part:
    """A model as far as it was loaded."""

    model: PreTrainedModel
    layout: Layout
    """Of the whole model: names stay what they are there."""
    last: HookPoint | None
    """The block, or `embed`, after which nothing is held; None for a whole model."""


def load_part(
    name: str | Path,
    upto: str | Iterable[str] | None,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
) -> Part:
    """Load a model up to the last of some hook points, or all of it.

    Args:
        name: as for `load_model`, as are `revision`, `dtype` and `device`.
        upto: hook points; None for all of the model.
        revision: a Hub branch, tag or commit.
        dtype: of the weights.
        device: where to.

    Raises:
        UserError: unknown hook point; as `load_model`.
    """
    settings: dict[str, Any] = {"revision": revision, "dtype": dtype, "device": device}
    if upto is not None:
        sketch = empty_model(name, revision=revision)
        layout = find_layout(sketch, sketch)
        last = last_needed(upto, sketch, layout)
        if last is not None:
            kind = _without(type(sketch), modules_after(last, sketch, layout), last)
            model = load_model(name, kind=kind, **settings)
            return Part(model, layout, last)
    model = load_model(name, **settings)
    return Part(model, find_layout(model, model), None)


def last_needed(
    names: str | Iterable[str], core: PreTrainedModel, layout: Layout
) -> HookPoint | None:
    """Return the block, or `embed`, after which a forward pass that reads `names` may stop.

    None where that is not known: what is neither in a block nor an embedding of tokens may run at
    any time, and an encoder-decoder has two rows of blocks.

    Raises:
        UserError: unknown hook point.
    """
    found = [layout.resolve(name) for name in ([names] if isinstance(names, str) else names)]
    stages = [layout.stage_of(p if isinstance(p, str) else p.path) for p in found]
    last = max((layout.n_layers if stage is None else stage for stage in stages), default=-1)
    if getattr(core.config, "is_encoder_decoder", False):
        return None
    name = f"layers.{last}" if last >= 0 else "embed"
    return next((point for point in layout.hookpoints if point.name == name), None)


def modules_after(last: HookPoint, core: PreTrainedModel, layout: Layout) -> list[str]:
    """Return the paths of the later blocks, and of the head if it shares no weights.

    A head that does costs nothing. The final norm stays: it is small.
    """
    stage = layout.stage_of(last.path)
    assert stage is not None
    blocks = [f"{layout.blocks}.{i}" for i in range(stage + 1, layout.n_layers)]
    head = None if core.all_tied_weights_keys else core.get_output_embeddings()
    return [*blocks, *(path for path, module in layout.modules.items() if module is head)]


def loaded_in_part(what: str, last: str) -> UserError:
    """Return the error of asking a model for `what` it does not hold, loaded up to `last`."""
    return UserError(
        f"{what}: this model was loaded up to `{last}` only",
        "load it whole: LM(model), without `upto`",
    )


def _without(
    kind: type[PreTrainedModel], paths: Sequence[str], last: HookPoint
) -> type[PreTrainedModel]:
    """Return a class of models like `kind` that lack the modules at `paths`.

    These are taken out before weights are read, and the configuration stays the whole model's, so
    that what follows from its depth stays too. A forward pass that runs to its end is refused.
    """

    def build(self: Any, *args: Any, **settings: Any) -> None:
        kind.__init__(self, *args, **settings)
        for path in paths:
            parent, _, name = path.rpartition(".")
            around = self.get_submodule(parent)
            if isinstance(around, nn.ModuleList):
                delattr(around, name)
            else:
                setattr(around, name, nn.Identity())
        there = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        ties = self.all_tied_weights_keys.items()
        self.all_tied_weights_keys = {a: b for a, b in ties if a in there and b in there}
        self.register_forward_hook(refuse)

    def refuse(module: nn.Module, args: tuple, output: object) -> None:
        raise loaded_in_part("no output", last.name)

    # Checkpoints of a model without its head name weights without the prefix.
    prefix = kind.base_model_prefix
    bare = (re.escape(path.removeprefix(f"{prefix}.")) for path in paths)
    unread = [rf"^({re.escape(prefix)}\.)?{path}\." for path in bare]
    # `transformers` looks things up by the names of a class and its module.
    members = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    members["__init__"] = build
    members["_keys_to_ignore_on_load_unexpected"] = [
        *(kind._keys_to_ignore_on_load_unexpected or ()),
        *unread,
    ]
    return type(kind.__name__, (kind,), members)
