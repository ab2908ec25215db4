"""SAELens's own readers of published suites, given files in place of the Hub's.

Arguments: a folder with `cases.json` and `x.safetensors`; what each reads of it is written there.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors.torch import load_file, save_file

warnings.simplefilter("ignore")
folder = Path(sys.argv[1])
x = load_file(folder / "x.safetensors")["x"]


def stored(case):
    root = Path(case["root"])

    def download(repo_id, filename, subfolder=None, **_):
        path = root / subfolder / filename if subfolder else root / filename
        if not path.is_file():
            raise loaders.EntryNotFoundError(filename)
        return str(path)

    return download


def shapes(case):
    def of(repo_id, filename):
        return {n: list(v.shape) for n, v in load_file(Path(case["root"]) / filename).items()}

    return of


for case in json.loads((folder / "cases.json").read_text()):
    loaders.hf_hub_download = stored(case)
    loaders.get_safetensors_tensor_shapes = shapes(case)
    overrides = {"dtype": "float32", "device": "cpu", **case["overrides"]}
    reader = loaders.NAMED_PRETRAINED_SAE_LOADERS[case["reader"]]
    settings, state, _ = reader(
        repo_id=case["repo"],
        folder_name=case["folder"],
        device="cpu",
        force_download=False,
        cfg_overrides=overrides,
    )
    settings = loaders.handle_config_defaulting(settings)
    kind = SAE.get_sae_class_for_architecture(settings["architecture"])
    config = SAE.get_sae_config_class_for_architecture(settings["architecture"])
    sae = kind(config.from_dict(settings))
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict(state)
    if case["scale"] is not None:
        sae.fold_activation_norm_scaling_factor(case["scale"])
    with torch.no_grad():
        # Heads side by side are already what these activations are.
        sae.turn_off_forward_pass_hook_z_reshaping()
        z = sae.encode(x)
        # A linear path is no part of `decode`: `forward` adds it, given its input.
        y = sae(x) if hasattr(sae, "W_skip") else sae.decode(z)
    save_file({"z": z.contiguous(), "y": y.contiguous()}, folder / f"{case['name']}.safetensors")
