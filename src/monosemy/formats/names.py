"""What other tools call models and hook points, and what they are called here; both ways.

TransformerLens names places by what is read there (`blocks.5.hook_resid_post`), others by module
(`model.layers.5`, `h.5`). Names that need the model to be told apart are left as they are:
`LM.hookpoint` understands them, and they are translated when the dictionary is first attached.
"""

from __future__ import annotations

import re
from pathlib import Path

MODELS = {
    "gpt2-small": "openai-community/gpt2",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distillgpt2": "distilbert/distilgpt2",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "gelu-1l": "NeelNanda/GELU_1L512W_C4_Code",
    "gelu-2l": "NeelNanda/GELU_2L512W_C4_Code",
}
"""Names of TransformerLens and Neuronpedia that are no Hub ids -> Hub ids."""
_OWNERS = {
    "pythia-": "EleutherAI",
    "gpt-neo-": "EleutherAI",
    "gemma-": "google",
    "Llama-3": "meta-llama",
    "Meta-Llama-3": "meta-llama",
    "Qwen": "Qwen",
    "opt-": "facebook",
}
"""How a bare name begins -> whose it is on the Hub."""

_BLOCK = re.compile(
    r"(?:base_model\.|text_model\.|language_model\.|model\.|transformer\.|gpt_neox\.|decoder\.)*"
    r"(?:layers|h|blocks)\.(\d+)(\.[\w.]+)?$"
)
_LENS = re.compile(r"blocks\.(\d+)\.(?:attn\.|mlp\.)?(hook_\w+)$")
_PARTS = {"self_attn": "attn", "attention": "attn", "attn": "attn", "mlp": "mlp"}
_WRITE_NORMS = {
    "hook_attn_out": "post_attention_layernorm",
    "hook_mlp_out": "post_feedforward_layernorm",
}
"""Where Gemma 2 and 3 have what TransformerLens reads: after the norm."""


def hub_model(name: str) -> str:
    """Return the Hub id of a model that another tool names; a name that is not known stays."""
    if name in MODELS:
        return MODELS[name]
    owner = next((o for start, o in _OWNERS.items() if name.startswith(start)), None)
    return name if owner is None or "/" in name else f"{owner}/{name}"


def lens_model(hub_id: str) -> str:
    """Return what TransformerLens and Neuronpedia call a model of the Hub."""
    for short, full in MODELS.items():
        if hub_id in (full, full.rpartition("/")[2]):
            return short
    return hub_id.rpartition("/")[2] if hub_id.count("/") == 1 else hub_id


def our_hookpoint(name: str, model: str = "") -> str:
    """Return what a hook point is called here.

    Args:
        name: of TransformerLens, sparsify, `transformers` or ours.
        model: Hub id: where Gemma reads what a block adds depends on it.
    """
    lens = _LENS.fullmatch(name)
    if lens:
        return _from_lens(int(lens[1]), lens[2], name, model)
    if ".hook_" in name:  # another place of TransformerLens, such as within a norm
        return name
    block = _BLOCK.fullmatch(name)
    if block is None:
        # Not `wte` and `hook_embed`: some models add positions after them.
        return "embed" if name in ("embed_tokens", "embed_in", "drop") else name
    inside = (block[2] or "").removeprefix(".")
    inside = _PARTS.get(inside, inside)
    return f"layers.{block[1]}" + (f".{inside}" if inside else "")


def _from_lens(layer: int, hook: str, name: str, model: str) -> str:
    if hook == "hook_resid_post":
        return f"layers.{layer}"
    if hook == "hook_resid_pre":
        return f"layers.{layer - 1}" if layer else "embed"
    if hook == "hook_resid_mid":
        return f"layers.{layer}.mid"
    if hook in _WRITE_NORMS and _norms_before_adding(model):
        return f"layers.{layer}.{_WRITE_NORMS[hook]}"
    if hook in ("hook_attn_out", "hook_mlp_out"):
        return f"layers.{layer}.{hook.removeprefix('hook_').removesuffix('_out')}"
    return name


def lens_hookpoint(name: str, model: str = "") -> str | None:
    """Return what TransformerLens calls a hook point of ours; None where it has no name for it."""
    if name == "embed":
        return "blocks.0.hook_resid_pre"
    found = re.fullmatch(r"layers\.(\d+)(?:\.(\w+))?", name)
    if found is None:
        return name if _LENS.fullmatch(name) else None
    layer, inside = found[1], found[2]
    if inside is None:
        return f"blocks.{layer}.hook_resid_post"
    if inside == "mid":
        return f"blocks.{layer}.hook_resid_mid"
    theirs = {norm: hook for hook, norm in _WRITE_NORMS.items()}
    if inside in theirs and _norms_before_adding(model):
        return f"blocks.{layer}.{theirs[inside]}"
    if inside in ("attn", "mlp") and not _norms_before_adding(model):
        return f"blocks.{layer}.hook_{inside}_out"
    return None


def _norms_before_adding(model: str) -> bool:
    name = model.rpartition("/")[2].lower()
    return name.startswith(("gemma-2-", "gemma-3-"))


_FAMILIES = {
    r"(distil)?gpt-?2|gpt-j|gpt-neo-": ("h", "attn", "drop"),
    r"pythia|gpt-neox": ("layers", "attention", "embed_in"),
    r"falcon": ("h", "self_attention", "word_embeddings"),
    r"opt-": ("decoder.layers", "self_attn", "decoder.embed_tokens"),
}
"""How a model's name begins -> its list of blocks, their attention, and the embedding, below the
base model."""
_USUAL = ("layers", "self_attn", "embed_tokens")


def module_path(name: str, model: str) -> str:
    """Return what `transformers` calls a hook point of ours, below a model's base.

    Args:
        name: of a module's output.
        model: Hub id; families that are not known are taken to be like Llama.
    """
    short = model.rpartition("/")[2].lower()
    family = next((parts for start, parts in _FAMILIES.items() if re.match(start, short)), _USUAL)
    blocks, attention, embedding = family
    if name == "embed":
        return embedding
    found = re.fullmatch(r"layers\.(\d+)(\.attn)?(\..+)?", name)
    if found is None:
        return name
    inside = f".{attention}" if found[2] else ""
    return f"{blocks}.{found[1]}{inside}{found[3] or ''}"


def spelled_path(path: Path) -> str:
    """Return a path as text, with what the Hub's cache calls a repository spelled as its id.

    Published suites say in the names of repositories and folders what their files leave out.
    """
    return path.absolute().as_posix().replace("models--", "").replace("--", "/")


def is_hookpoint(name: str) -> bool:
    """Say whether a name is one of a hook point, in a form that `our_hookpoint` understands."""
    known = _LENS.fullmatch(name) or _BLOCK.fullmatch(name)
    others = ("embed", "wte", "hook_embed", "final_norm")
    return known is not None or our_hookpoint(name) in others
