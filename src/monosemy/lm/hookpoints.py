"""Where the hook points of a model are, whatever its family, and what other tools call them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from monosemy.errors import UserError, nearest
from monosemy.lm.hooks import INPUT, STREAM

# Below, names that `transformers` gives to the same part in different families, best first.
_ATTENTION = ("attention.output.dense", "self_attn", "attn", "attention", "self_attention")
_MLP = ("output.dense", "mlp", "block_sparse_moe", "moe", "feed_forward", "ffn")
# The whole of it, where the above is the last part.
_ATTENTION_READER = ("attention.self", *_ATTENTION[1:])
_MLP_READER = ("intermediate", *_MLP[1:])
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
# What reads attention's heads, or the MLP's neurons, and writes what the block adds.
_HEADS_PROJECTION = ("o_proj", "c_proj", "out_proj", "dense", "out_lin")
_NEURONS_PROJECTION = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "lin2")
# The norm that reads the residual stream between attention and MLP.
_MIDDLE_NORM = (
    *("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "norm_2"),
    *("layernorm_after", "attention.output.LayerNorm"),
)
_POSITION_EMBEDDING = ("wpe", "embed_positions", "position_embedding", "position_embeddings")


@dataclass(frozen=True, slots=True)
class HookPoint:
    """A named place where activations [batch, time, width] are read or written."""

    name: str
    """`embed`, `layers.8`, `layers.8.attn`, `layers.8.mlp`, `final_norm`, or a module path; of what
    a module reads, with `.input` behind it; `layers.8.mid` is the residual stream between attention
    and MLP."""
    path: str
    """The module whose output it is, as `model.get_submodule` takes it; with `.input` behind it
    where it is what the module reads, and `.stream` where an edit reaches, beside the module, what
    the block adds its output to."""
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
    is_parallel: bool
    """Attention and MLP read the same residual stream: nothing is between them."""
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
        module = self._module(name.removesuffix(INPUT)) if name.endswith(INPUT) else None
        if module is not None:
            return by_path.get(f"{module}{INPUT}", f"{module}{INPUT}")
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
        point = next((p for p in self.hookpoints if p.path == path.removesuffix(INPUT)), None)
        if point is None:
            return None
        return self.n_layers if point.name == "final_norm" else -1

    def _module(self, name: str) -> str | None:
        """Return the path of the module that a hook point's name or a path means, if any."""
        point = next((p for p in self.hookpoints if p.name == name), None)
        paths = [point.path] if point else self._paths(name)
        return next((path for path in paths if path in self.modules), None)

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
        is_parallel=getattr(config, "use_parallel_residual", False),
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
        # No name of TransformerLens: it reads norms before their gain.
        yield HookPoint("final_norm", norm, layout.width, _suffixes(layout, norm, "final_norm"))


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
    if not is_whole:
        first = f"{layout.blocks}.0{INPUT}"
        yield HookPoint(f"layers.0{INPUT}", first, layout.width, ("blocks.0.hook_resid_pre",))
    if tokens and entry != tokens and isinstance(layout.modules[tokens], nn.Embedding):
        yield HookPoint(tokens, tokens, layout.width, ("hook_embed",))


def _block_hookpoints(layout: Layout, index: int) -> Iterable[HookPoint]:
    path, name = f"{layout.blocks}.{index}", f"layers.{index}"
    norms = next((n for n in _WRITE_NORMS if f"{path}.{n[1]}" in layout.modules), ("", ""))
    yield from _attention_hookpoints(layout, index, norms[0])
    yield from _mlp_hookpoints(layout, index, norms[1])
    yield HookPoint(name, path, layout.width, _residual_aliases(layout, index))


def _attention_hookpoints(layout: Layout, index: int, norm: str) -> Iterable[HookPoint]:
    block = f"{layout.blocks}.{index}"
    reader, writer = _first(layout, block, _ATTENTION_READER), _writer(layout, block, _ATTENTION)
    if not writer:
        return
    yield _input(layout, f"layers.{index}.attn{INPUT}", reader, layout.width)
    yield from _projection(layout, writer, _HEADS_PROJECTION, f"blocks.{index}.attn.hook_z")
    yield from _written(layout, index, "attn", writer, norm)


def _mlp_hookpoints(layout: Layout, index: int, norm: str) -> Iterable[HookPoint]:
    block, name = f"{layout.blocks}.{index}", f"layers.{index}"
    reader, writer = _first(layout, block, _MLP_READER), _writer(layout, block, _MLP)
    if not writer:
        return
    middle = _middle(layout, block, reader)
    if middle:
        yield HookPoint(f"{name}.mid", middle, layout.width, (f"blocks.{index}.hook_resid_mid",))
    yield _input(layout, f"{name}.mlp{INPUT}", reader, layout.width)
    yield from _projection(layout, writer, _NEURONS_PROJECTION, f"blocks.{index}.mlp.hook_post")
    yield from _written(layout, index, "mlp", writer, norm)


def _written(layout: Layout, index: int, short: str, writer: str, norm: str) -> Iterable[HookPoint]:
    """Yield what attention or MLP gives, and what of it is added to the residual stream."""
    name = f"layers.{index}.{short}"
    # TransformerLens reads what is added to the residual stream: after the norm, if any.
    theirs = (f"blocks.{index}.hook_{short}_out",)
    own = _suffixes(layout, writer, name)
    yield HookPoint(name, writer, layout.width, own if norm else (*theirs, *own))
    if norm:
        path = f"{layout.blocks}.{index}.{norm}"
        yield HookPoint(f"layers.{index}.{norm}", path, layout.width, theirs)


def _input(
    layout: Layout, name: str, module: str, width: int, theirs: tuple[str, ...] = ()
) -> HookPoint:
    path = f"{module}{INPUT}"
    return HookPoint(name, path, width, (*theirs, *_suffixes(layout, path, name)))


def _projection(
    layout: Layout, writer: str, names: Iterable[str], theirs: str
) -> Iterable[HookPoint]:
    """Yield what a part's last projection reads, if the part has one (experts have many)."""
    path = _first(layout, writer, names) or writer
    width = _input_width(layout.modules[path])
    if width is not None:
        yield _input(layout, f"{layout.name_of(path)}{INPUT}", path, width, (theirs,))


def _input_width(module: nn.Module) -> int | None:
    """Return how wide the input of a linear map is; None of another module."""
    width = getattr(module, "in_features", None)
    return module.weight.shape[0] if isinstance(module, Conv1D) else width


def _middle(layout: Layout, block: str, reader: str) -> str:
    """Return where the residual stream between attention and MLP is read, or nothing."""
    if layout.is_parallel:
        return ""
    norms_before, norms_after = (
        f"{block}.{when}_feedforward_layernorm" in layout.modules for when in ("pre", "post")
    )
    if norms_after and not norms_before:
        return f"{reader}{STREAM}"  # nothing is between (OLMo 2)
    norm = _first(layout, block, _MIDDLE_NORM)
    return f"{norm}{STREAM}" if norm else ""


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
