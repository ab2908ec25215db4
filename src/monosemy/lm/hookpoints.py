"""Where the hook points of a model are, whatever its family, and what other tools call them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from monosemy.errors import UserError, nearest

# Below, names that `transformers` gives to the same part in different families, best first.
_ATTENTION = ("attention.output.dense", "self_attn", "attn", "attention", "self_attention")
_MLP = ("output.dense", "mlp", "block_sparse_moe", "moe", "feed_forward", "ffn")
_EMBEDDING_SUM = ("drop", "emb_drop", "emb_dropout", "word_embeddings_layernorm", "embeddings")
_FINAL_NORM = (
    *("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "layernorm", "layer_norm"),
    *("ln_out", "out_norm"),
)
# Pairs of norms through which attention and MLP write to the residual stream (Gemma 2, GLM 4).
_WRITE_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
_OUTPUT_PROJECTION = ("dense", "dense_4h_to_h", "out_proj", "down_proj")
_POSITION_EMBEDDING = ("wpe", "embed_positions", "position_embedding", "position_embeddings")


@dataclass(frozen=True, slots=True)
class HookPoint:
    """A named place where activations [batch, time, width] are read or written."""

    name: str
    """`embed`, `layers.8`, `layers.8.attn`, `layers.8.mlp`, `final_norm`, or a module path."""
    path: str
    """The module whose output it is, as `model.get_submodule` takes it."""
    width: int
    aliases: tuple[str, ...] = ()
    """What TransformerLens, sparsify and `transformers` call the same place."""


@dataclass(slots=True)
class Layout:
    """Where a model keeps its parts."""

    modules: dict[str, nn.Module]
    blocks: str
    """Path of the list of blocks; empty when the model has none."""
    n_layers: int
    token_embedding: str
    """Path of the module that looks token ids up (for images: that embeds patches), or empty."""
    bare_prefix: str
    """What the family puts before paths when a head is on top (`transformer.`, `model.`)."""
    width: int
    hookpoints: list[HookPoint] = field(default_factory=list)

    def resolve(self, name: str) -> HookPoint | str:
        """Return the standard hook point called `name`, or the path of the module called so.

        Raises:
            UserError: nothing in the model is called so.
        """
        by_name = {p.name: p for p in self.hookpoints}
        if name in by_name:
            return by_name[name]
        by_alias = {alias: p for p in self.hookpoints for alias in p.aliases}
        if name in by_alias:
            return by_alias[name]
        by_path = {p.path: p for p in self.hookpoints}
        for path in self._paths(name):
            if path in by_path:
                return by_path[path]
            if path in self.modules:
                return path
        known = [*by_name, *by_alias, *(self.name_of(path) for path in self.modules)]
        hint = nearest(name, known)
        blocks = f"the blocks are layers.0 to layers.{self.n_layers - 1}; " if self.n_layers else ""
        listed = f"{blocks}`monosemy hookpoints MODEL` or lm.hookpoints() lists all hook points"
        raise UserError(f"unknown hook point `{name}`", f"{hint}\n{listed}" if hint else listed)

    def name_of(self, path: str) -> str:
        """Return the short name of a module: `layers.8.mlp.down_proj` for one within a block."""
        inside = self.blocks and path.startswith(f"{self.blocks}.")
        return f"layers.{path.removeprefix(f'{self.blocks}.')}" if inside else path

    def stage_of(self, path: str) -> int | None:
        """Return the number of the block that a module is, or is in.

        -1 for the embeddings of tokens, `n_layers` for the final norm; None for other modules
        outside the blocks, which may run at any time.
        """
        if self.blocks and path.startswith(f"{self.blocks}."):
            return int(path.removeprefix(f"{self.blocks}.").split(".")[0])
        point = next((p for p in self.hookpoints if p.path == path), None)
        if point is None:
            return None
        return self.n_layers if point.name == "final_norm" else -1

    def _paths(self, name: str) -> Iterable[str]:
        """Yield the module paths that `name` may mean, the likeliest first."""
        if self.blocks and name.startswith("layers."):
            yield f"{self.blocks}.{name.removeprefix('layers.')}"
        yield name
        parts = self.blocks.split(".")[:-1]
        for count in range(len(parts), 0, -1):
            yield ".".join([*parts[:count], name])
        if name.startswith(self.bare_prefix):
            yield name.removeprefix(self.bare_prefix)


def find_layout(model: nn.Module, core: PreTrainedModel) -> Layout:
    """Find the parts of a model by their place and name; no forward pass is made.

    `core` is the `transformers` model in `model`, or `model` itself. The blocks are the list of
    `num_hidden_layers` modules nearest to the token embedding, so that the text part of a model
    with several towers is the one found.
    """
    modules = {path: module for path, module in model.named_modules() if path}
    config = core.config.get_text_config()
    token_embedding = _token_embedding_path(core, modules)
    blocks = _block_list_path(modules, token_embedding, getattr(config, "num_hidden_layers", None))
    layout = Layout(
        modules=modules,
        blocks=blocks,
        n_layers=len(modules[blocks]) if blocks else 0,
        token_embedding=token_embedding,
        bare_prefix=f"{core.base_model_prefix}.",
        width=getattr(config, "hidden_size", 0),
    )
    layout.hookpoints = list(_standard_hookpoints(layout))
    return layout


def _token_embedding_path(core: PreTrainedModel, modules: dict[str, nn.Module]) -> str:
    try:
        embedding = core.get_input_embeddings()
    except NotImplementedError:
        return ""
    return next((path for path, module in modules.items() if module is embedding), "")


def _block_list_path(modules: dict[str, nn.Module], near: str, count: int | None) -> str:
    lists = {p: m for p, m in modules.items() if isinstance(m, nn.ModuleList) and len(m) > 0}
    outer = [p for p in lists if not any(p.startswith(f"{other}.") for other in lists)]
    if count is not None:
        outer = [path for path in outer if len(lists[path]) == count]
    return max(outer, key=lambda path: (_shared(path, near), len(lists[path])), default="")


def _shared(path: str, other: str) -> int:
    """Count the leading parts two paths have in common."""
    pairs = zip(path.split("."), other.split("."), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), 10**6)


def _standard_hookpoints(layout: Layout) -> Iterable[HookPoint]:
    if not layout.blocks:
        return
    yield from _embedding_hookpoints(layout)
    for index in range(layout.n_layers):
        yield from _block_hookpoints(layout, index)
    norm = _first_child(layout, _FINAL_NORM)
    if norm:
        # TransformerLens reads an RMSNorm before its gain, a LayerNorm after: only this agrees.
        same = "layernorm" in type(layout.modules[norm]).__name__.lower()
        theirs = ("ln_final.hook_normalized",) if same else ()
        yield HookPoint(
            "final_norm", norm, layout.width, (*theirs, *_suffixes(layout, norm, "final_norm"))
        )


def _embedding_hookpoints(layout: Layout) -> Iterable[HookPoint]:
    tokens = layout.token_embedding
    entry = _first_child(layout, _EMBEDDING_SUM) or tokens
    if not entry:
        return
    siblings = _children_of_ancestors(layout, _POSITION_EMBEDDING)
    # Some families (OPT) add positions in no module: the token embedding is not all that enters.
    is_whole = entry != tokens or not siblings
    aliases = ("blocks.0.hook_resid_pre",) if is_whole else ()
    if entry == tokens:
        aliases = ("hook_embed", *aliases)
    yield HookPoint("embed", entry, layout.width, (*aliases, *_suffixes(layout, entry, "embed")))
    if tokens and entry != tokens and isinstance(layout.modules[tokens], nn.Embedding):
        yield HookPoint(tokens, tokens, layout.width, ("hook_embed",))


def _block_hookpoints(layout: Layout, index: int) -> Iterable[HookPoint]:
    path, name = f"{layout.blocks}.{index}", f"layers.{index}"
    attention = _writer(layout, path, _ATTENTION)
    mlp = _writer(layout, path, _MLP)
    norms = next((n for n in _WRITE_NORMS if f"{path}.{n[1]}" in layout.modules), ("", ""))
    for short, part, norm in (("attn", attention, norms[0]), ("mlp", mlp, norms[1])):
        if not part:
            continue
        # TransformerLens reads what is added to the residual stream: after the norm, if any.
        theirs = (f"blocks.{index}.hook_{short}_out",)
        own = _suffixes(layout, part, f"{name}.{short}")
        aliases = own if norm else (*theirs, *own)
        yield HookPoint(f"{name}.{short}", part, layout.width, aliases)
        if norm:
            yield HookPoint(f"{name}.{norm}", f"{path}.{norm}", layout.width, theirs)
    yield HookPoint(name, path, layout.width, _residual_aliases(layout, index))


def _residual_aliases(layout: Layout, index: int) -> tuple[str, ...]:
    path = f"{layout.blocks}.{index}"
    # In BERT a block ends in a norm, and TransformerLens calls the sum before it `resid_post`.
    ends_in_norm = _first(layout, path, ("output.LayerNorm", "output_layer_norm"))
    post = "hook_normalized_resid_post" if ends_in_norm else "hook_resid_post"
    aliases = [f"blocks.{index}.{post}"]
    if index + 1 < layout.n_layers:
        aliases.append(f"blocks.{index + 1}.hook_resid_pre")
    return (*aliases, *_suffixes(layout, path, f"layers.{index}"))


def _suffixes(layout: Layout, path: str, name: str) -> tuple[str, ...]:
    """Return the path and its shorter forms, `transformer.h.8` and `h.8`, other than `name`."""
    parts = path.split(".")
    at_most = max(len(layout.blocks.split(".")), 1)
    forms = [".".join(parts[i:]) for i in range(min(at_most, len(parts)))]
    return tuple(form for form in forms if form != name)


def _writer(layout: Layout, block: str, names: Iterable[str]) -> str:
    """Return the path of the module in a block whose output is added to the residual stream."""
    path = _first(layout, block, names)
    if path and "residual" in inspect.signature(layout.modules[path].forward).parameters:
        # Here (BLOOM, MPT) the module itself adds: its last projection gives what is added.
        return _first(layout, path, _OUTPUT_PROJECTION)
    return path


def _first(layout: Layout, parent: str, names: Iterable[str]) -> str:
    paths = (f"{parent}.{name}" if parent else name for name in names)
    return next((path for path in paths if path in layout.modules), "")


def _ancestors(layout: Layout) -> list[str]:
    """Return the module that holds the block list, and the one around it."""
    parts = layout.blocks.split(".")[:-1]
    return [".".join(parts[:count]) for count in range(len(parts), max(len(parts) - 2, -1), -1)]


def _first_child(layout: Layout, names: Iterable[str]) -> str:
    return next((p for a in _ancestors(layout) if (p := _first(layout, a, names))), "")


def _children_of_ancestors(layout: Layout, names: Iterable[str]) -> list[str]:
    return [p for a in _ancestors(layout) if (p := _first(layout, a, names))]
