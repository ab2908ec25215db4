"""OpenAI's autoencoders of GPT-2 small: a `.pt` file, named after its layer.

    z = activation(W (x - pre_bias) + latent_bias),  yhat = W_dec z + pre_bias

TopK ones, and no others, centre each token's activations and divide them by their spread first
(Gao et al. 2024, arXiv 2406.04093). What was encoded is said by the names of the folders above.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from monosemy.coders import SparseCoder
from monosemy.errors import UserError
from monosemy.formats.files import needed, needed_count, pt_shapes, read_pt, tensors_of
from monosemy.formats.format import Content, Format, Given, coder_from, subtract_first
from monosemy.formats.names import our_hookpoint

MODEL, CONTEXT = "openai-community/gpt2", 64
_LOCATIONS = {
    "resid_delta_attn": "blocks.{}.hook_attn_out",
    "resid_delta_mlp": "blocks.{}.hook_mlp_out",
    "resid_post_attn": "blocks.{}.hook_resid_mid",
    "resid_post_mlp": "blocks.{}.hook_resid_post",
    "mlp_post_act": "blocks.{}.mlp.hook_post",
}
"""A name in the path -> what TransformerLens calls the place."""


def recognises(path: Path) -> bool:
    """Say whether a file has both of OpenAI's biases."""
    if path.suffix != ".pt" or not path.is_file():
        return False
    return {"pre_bias", "latent_bias"} <= pt_shapes(path).keys()


def read(path: Path, given: Given) -> Content:
    """Read an autoencoder.

    Raises:
        UserError: a tensor is missing or misshapen, or the activation is none of theirs.
    """
    values = read_pt(path)
    file = tensors_of(values, path)
    width, d_in = file.size("encoder.weight", 0), file.size("encoder.weight", 1)
    tensors = {
        "W_enc": file.take("encoder.weight", (width, d_in)),
        "b_enc": file.take("latent_bias", (width,)),
        "b_dec": file.take("pre_bias", (d_in,)),
    }
    if "decoder.linear.weight" in file:  # tied: the encoder itself, not transposed
        tensors["W_dec"] = file.take("decoder.linear.weight", (width, d_in))
    else:
        tensors["W_dec"] = file.take("decoder.weight", (d_in, width)).T
    file.ignore("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
    file.done()
    subtract_first(tensors, tensors["b_dec"])
    hookpoint = _hookpoint(path)
    return Content(
        coder=_coder(values, tensors, path, given),
        model=MODEL,
        hookpoint=hookpoint,
        context=CONTEXT,
        settings={"activation": values.get("activation", "ReLU")},
        notes=[]
        if hookpoint
        else ["the hook point is not known: no folder above is named after it"],
    )


def _coder(
    values: dict[str, Any], tensors: dict[str, Tensor], path: Path, given: Given
) -> SparseCoder:
    activation = values.get("activation", "ReLU")
    if activation == "ReLU":
        return coder_from("relu", tensors, given.scale)
    if activation != "TopK":
        raise UserError(f"`{path}` has activation `{activation}`", "allowed: ReLU, TopK")
    state = needed(values, "activation_state_dict", path)
    if not isinstance(state, dict):
        raise UserError(f"`activation_state_dict` of `{path}` is {state!r}", "fields were expected")
    after = state.get("postact_fn", "ReLU")
    if after != "ReLU":
        raise UserError(
            f"`{path}` keeps the largest and applies `{after}` to them",
            "allowed: ReLU: features fire above 0",
        )
    k = given.k or needed_count(state, "k", path)
    return coder_from("topk", tensors, given.scale, k=k, normalise="layer_norm")


def _hookpoint(path: Path) -> str | None:
    """Return where activations are from, as `.../resid_post_mlp_v5_32k/autoencoders/8.pt` says."""
    layer = re.fullmatch(r"\d+", path.stem)
    parts = path.absolute().parent.parts
    places = [
        place for part in parts for name, place in _LOCATIONS.items() if part.startswith(name)
    ]
    return our_hookpoint(places[-1].format(layer[0]), MODEL) if layer and places else None


FORMAT = Format(
    name="openai", title="OpenAI's sparse autoencoders", recognises=recognises, read=read
)
