"""dictionary_learning's own side: dictionaries that it saves, and what it makes of ours.

save FOLDER    runs in FOLDER, each with what its dictionary gives for x
load FOLDER    what it gives for dictionaries in FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from dictionary_learning.dictionary import AutoEncoderNew
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gated_anneal import GatedAnnealTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.p_anneal import PAnnealTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.utils import get_nested_folders, load_dictionary
from safetensors.torch import load_file, save_file

D, WIDTH, K = 12, 40, 5
COMMON = {
    "steps": 10,
    "activation_dim": D,
    "dict_size": WIDTH,
    "layer": 3,
    "lm_name": "EleutherAI/pythia-70m",
    "device": "cpu",
}
SITE = {"submodule_name": "resid_post_layer_3"}
SHORT = {"warmup_steps": 1, "sparsity_warmup_steps": 1}
TRAINERS = {
    "standard": (StandardTrainer, {**SITE, **SHORT}),
    "april": (StandardTrainerAprilUpdate, {**SITE, **SHORT}),
    "new": (StandardTrainerAprilUpdate, {**SITE, **SHORT, "dict_class": AutoEncoderNew}),
    "p_anneal": (PAnnealTrainer, {**SITE, **SHORT, "anneal_start": 2}),
    "gated": (GatedSAETrainer, {**SITE, **SHORT}),
    "gated_anneal": (GatedAnnealTrainer, {**SHORT, "anneal_start": 2}),
    "jumprelu": (JumpReluTrainer, {"submodule_name": "mlp_out_layer_3", **SHORT}),
    "topk": (TopKTrainer, {**SITE, "k": K, "warmup_steps": 1}),
    "batch_topk": (BatchTopKTrainer, {**SITE, "k": K, "warmup_steps": 1}),
    "matryoshka": (
        MatryoshkaBatchTopKTrainer,
        {**SITE, "k": K, "warmup_steps": 1, "group_fractions": [0.25, 0.25, 0.5]},
    ),
}
BUFFER = {
    "d_submodule": D,
    "io": "out",
    "n_ctxs": 100,
    "ctx_len": 256,
    "refresh_batch_size": 8,
    "out_batch_size": 64,
    "device": "cpu",
}


@torch.no_grad()
def results(dictionary: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"x": x, "features": dictionary.encode(x), "out": dictionary(x)}


def save(folder: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, D) * 2 + 0.5
    for name, (trainer_class, options) in TRAINERS.items():
        trainer = trainer_class(**COMMON, **options)
        with torch.no_grad():
            for weights in trainer.ae.parameters():
                weights.normal_(std=0.5)
            if name == "standard":  # whose decoder is held at unit norm
                trainer.ae.decoder.weight /= trainer.ae.decoder.weight.norm(dim=0)
            if name in ("batch_topk", "matryoshka"):
                trainer.ae.threshold.fill_(0.7)
        home = folder / name / "trainer_0"
        (home / "checkpoints").mkdir(parents=True)
        # As `trainSAE` writes them.
        config = {"trainer": trainer.config, "buffer": BUFFER}
        if name == "new":  # its trainer names the usual class whatever it was given
            config["trainer"]["dict_class"] = "AutoEncoderNew"
        (home / "config.json").write_text(json.dumps(config, indent=4))
        state = {k: v.cpu() for k, v in trainer.ae.state_dict().items()}
        torch.save(state, home / "ae.pt")
        torch.save(state, home / "checkpoints" / "ae_5.pt")
        dictionary, _ = load_dictionary(str(home), device="cpu")
        save_file(results(dictionary, x), folder / f"{name}.safetensors")


def load(folder: Path) -> None:
    x = load_file(folder / "x.safetensors")["x"]
    for home in get_nested_folders(str(folder)):
        dictionary, config = load_dictionary(home, device="cpu")
        said = {name: str(config["trainer"][name]) for name in ("dict_class", "submodule_name")}
        save_file(results(dictionary, x), f"{home}.safetensors", metadata=said)


{"save": save, "load": load}[sys.argv[1]](Path(sys.argv[2]))
