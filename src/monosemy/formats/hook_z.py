"""Attention-output dictionaries of GPT-2 small (Kissane et al. 2024, arXiv 2406.17759).

`NAME.pt` and `NAME_cfg.json`: ReLU, the decoder's bias subtracted first; what is encoded is the
heads' outputs side by side, before the projection.
"""

from __future__ import annotations

from pathlib import Path

from monosemy.formats.files import needed, needed_count, pt_shapes, read_json, read_pt, tensors_of
from monosemy.formats.format import Content, Format, Given, coder_from, subtract_first
from monosemy.formats.names import hub_model, our_hookpoint

MODEL, CONTEXT = "openai-community/gpt2", 128
"""Where the configuration does not say."""
_NAMES = {"W_enc", "W_dec", "b_enc", "b_dec"}


def recognises(path: Path) -> bool:
    """Say whether a file has weights and its configuration beside it."""
    if path.suffix != ".pt" or not path.is_file() or not _settings(path).is_file():
        return False
    shapes = pt_shapes(path)
    return shapes.keys() == _NAMES and shapes["W_enc"][1:] == shapes["b_enc"]


def read(path: Path, given: Given) -> Content:
    """Read a dictionary.

    Raises:
        UserError: a tensor or field is missing, or they contradict each other.
    """
    settings = read_json(_settings(path))
    d = needed_count(settings, "act_size", _settings(path))
    width = needed_count(settings, "dict_size", _settings(path))
    file = tensors_of(read_pt(path), path)
    tensors = {
        "W_enc": file.take("W_enc", (d, width)).T,
        "b_enc": file.take("b_enc", (width,)),
        "W_dec": file.take("W_dec", (width, d)),
        "b_dec": file.take("b_dec", (d,)),
    }
    file.done()
    subtract_first(tensors, tensors["b_dec"])
    name = settings.get("model_name")
    return Content(
        coder=coder_from("relu", tensors, given.scale),
        model=hub_model(name) if isinstance(name, str) and name else MODEL,
        hookpoint=our_hookpoint(str(needed(settings, "act_name", _settings(path)))),
        context=CONTEXT,
        settings=settings,
    )


def _settings(path: Path) -> Path:
    return path.with_name(f"{path.stem}_cfg.json")


FORMAT = Format(
    name="hook_z", title="Attention-output SAEs of GPT-2", recognises=recognises, read=read
)
