"""Dictionaries of the Hugging Face hub: from a cache without a network, and from a hub here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from mock_hub import COMMIT, TOKEN, MockHub
from safetensors.torch import save

import monosemy
from monosemy import Dictionary
from monosemy.cli.main import main
from monosemy.errors import UserError
from monosemy.formats import hub as names
from monosemy.formats.releases import Release
from monosemy.hub import Place, choose, dictionaries_in, files_of, hub_place
from monosemy.training import Run

D_IN, WIDTH = 8, 16


def sparsify_files(folder: str) -> dict[str, bytes]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "encoder.weight": torch.randn(WIDTH, D_IN, generator=generator),
        "encoder.bias": torch.zeros(WIDTH),
        "W_dec": torch.randn(WIDTH, D_IN, generator=generator),
        "b_dec": torch.zeros(D_IN),
    }
    settings = {"d_in": D_IN, "num_latents": WIDTH, "k": 4, "activation": "topk"}
    return {
        f"{folder}/cfg.json": json.dumps(settings).encode(),
        f"{folder}/sae.safetensors": save(tensors),
    }


MANY = {
    **sparsify_files("layers.3"),
    **sparsify_files("layers.5.mlp"),
    "config.json": json.dumps({"sae": {}, "model": "org/model", "ctx_len": 64}).encode(),
    "layers.3/optimizer_0.pt": b"large",
    "README.md": b"about",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return folder


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MockHub]:
    hub = MockHub()
    with hub.serve():
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        url = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        yield hub
        huggingface_hub.close_session()


def cached(cache: Path, repo: str, files: dict[str, bytes], commit: str = COMMIT) -> None:
    """Lay a repository out as the hub's cache does: blobs, and snapshots that link to them."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    for number, (name, content) in enumerate(files.items()):
        blob = folder / "blobs" / f"{number:040x}"
        blob.write_bytes(content)
        path = folder / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(blob)


def own_files(dictionary: Dictionary, tmp_path: Path) -> dict[str, bytes]:
    folder = dictionary.save_for_hub(tmp_path / "own", "org/own")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- without a network ------------------------------------------------------------------------


def test_from_the_cache(offline: Path) -> None:
    cached(offline, "org/saes", MANY)
    dictionary = monosemy.load("org/saes/layers.3")
    assert (dictionary.width, dictionary.d_in) == (WIDTH, D_IN)
    assert (dictionary.provenance.model, dictionary.hookpoint) == ("org/model", "layers.3")
    imported = dictionary.provenance.training["imported"]
    assert (imported["repo"], imported["commit"]) == ("org/saes", COMMIT)
    assert imported["source"] == "org/saes/layers.3"
    again = monosemy.load(f"org/saes/layers.3@{COMMIT}")
    assert again.identity() == dictionary.identity()


def test_one_dictionary_in_a_repository_needs_no_folder(offline: Path) -> None:
    cached(offline, "org/one", sparsify_files("layers.3"))
    assert monosemy.load("org/one").hookpoint == "layers.3"


def test_several_are_listed(offline: Path) -> None:
    cached(offline, "org/saes", MANY)
    with pytest.raises(UserError, match="holds 2 dictionaries") as caught:
        monosemy.load("org/saes")
    assert "org/saes/layers.3, org/saes/layers.5.mlp" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("org/none", "HF_HUB_OFFLINE is set"),
        ("org/saes/layers.4", "did you mean `layers.3`"),
        (f"org/saes/layers.3@{'a' * 40}", "HF_HUB_OFFLINE is set"),
        ("nothing-here", "nothing is at `nothing-here`"),
        ("./org/saes", "nothing is at `./org/saes`"),
        ("gpt2-small-res-jb", "which of the 13 dictionaries"),
        ("gpt2-small-res-jb/blocks.99", "no dictionary `blocks.99`"),
        ("gpt2-small-res-jb/blocks.5.hook_resid_pre", "jbloom/GPT2-Small-SAEs-Reformatted"),
    ],
)
def test_what_is_not_there(offline: Path, source: str, match: str) -> None:
    cached(offline, "org/saes", MANY)
    with pytest.raises(UserError) as caught:
        monosemy.load(source)
    assert match in str(caught.value)


def test_a_release_gives_what_files_do_not_say(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Release(
        name="made",
        repo="org/saes",
        format="sparsify",
        model="org/other",
        widths=(),
        k=None,
        centred=True,
        normalise=None,
        groups=({"ids": "l{3,5}", "path": "layers.{0}", "hookpoint": "layers.{0}"},),
    )
    monkeypatch.setattr(names, "releases", lambda: {"made": made})
    cached(offline, "org/saes", MANY)
    for source in ("made/l3", "org/saes/layers.3"):
        dictionary = monosemy.load(source)
        assert dictionary.provenance.model == "org/other"
        assert dictionary.coder.normalise == "centre"
    said = monosemy.load("made/l3", given=monosemy.formats.Given(model="mine", centred=False))
    assert said.provenance.model == "mine" and not said.coder.normalise


def test_ours(offline: Path, run: Run, tmp_path: Path) -> None:
    cached(offline, "org/own", own_files(run.dictionary, tmp_path))
    for loaded in (monosemy.load("org/own"), Dictionary.from_pretrained("org/own")):
        assert loaded.identity() == run.dictionary.identity()
        assert loaded.fingerprint is not None


# --- with a hub -------------------------------------------------------------------------------


def test_only_what_is_needed_is_fetched(hub: MockHub) -> None:
    hub.model("org/saes", MANY)
    monosemy.load("org/saes/layers.3")
    wanted = ["config.json", "layers.3/cfg.json", "layers.3/sae.safetensors"]
    assert sorted(hub.downloaded) == wanted
    monosemy.load("org/saes/layers.3")
    assert sorted(hub.downloaded) == wanted
    with pytest.raises(UserError, match="holds 2 dictionaries"):
        monosemy.load("org/saes")
    assert sorted(hub.downloaded) == wanted


def test_the_cache_serves_when_the_hub_is_gone(
    hub: MockHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model("org/saes", MANY)
    monosemy.load("org/saes/layers.3")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert monosemy.load("org/saes/layers.3").width == WIDTH
    with pytest.raises(UserError, match="the hub cannot be reached"):
        monosemy.load("org/another")


def test_gated(hub: MockHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.model("org/saes", MANY, gated=True)
    with pytest.raises(UserError, match="is gated") as caught:
        monosemy.load("org/saes/layers.3")
    assert "HF_TOKEN" in caught.value.hint and "huggingface.co/org/saes" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert monosemy.load("org/saes/layers.3").width == WIDTH


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("org/none", "no repository `org/none` on the hub"),
        ("org/saes/layers.3@nope", "no revision `nope`"),
    ],
)
def test_what_the_hub_has_not_got(hub: MockHub, source: str, match: str) -> None:
    hub.model("org/saes", MANY)
    with pytest.raises(UserError, match=re.escape(match)):
        monosemy.load(source)


# --- which files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("a/b", Place("a/b")),
        ("a/b/c/d.pt@v1", Place("a/b", "c/d.pt", "v1")),
        ("a/b/", Place("a/b")),
        ("a", None),
        ("/a/b", None),
        ("./a/b", None),
        ("~/a/b", None),
        ("../a", None),
    ],
)
def test_places(source: str, place: Place | None) -> None:
    assert hub_place(source) == place


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["manifest.json", "coder.safetensors", "fingerprint.safetensors"], [""]),
        (["a/cfg.json", "a/sae_weights.safetensors", "a/sparsity.safetensors"], ["a"]),
        (["layer0.sae.pt", "layer1.sae.pt"], ["layer0.sae.pt", "layer1.sae.pt"]),
        (["layer_3.safetensors", "config.yaml"], ["layer_3.safetensors"]),
        (["L0/hyperparams.json", "L0/checkpoints/final.safetensors"], ["L0"]),
        (["W_enc_0.safetensors", "W_dec_0.safetensors", "config.yaml"], [""]),
        (["t0/ae.pt", "t0/config.json", "t0/optimizer_0.pt"], ["t0"]),
        (["layer_1/width_16k/average_l0_10/params.npz"], ["layer_1/width_16k/average_l0_10"]),
        (["README.md"], []),
    ],
)
def test_dictionaries_by_the_names_of_files(files: list[str], found: list[str]) -> None:
    assert dictionaries_in(files) == found


def test_settings_above_come_along() -> None:
    files = ["config.yaml", "wandb-config.yaml", "layer_0.safetensors", "layer_1.safetensors"]
    assert files_of(files, "layer_1.safetensors") == [*files[:2], "layer_1.safetensors"]
    files = ["L0/hyperparams.json", "L0/checkpoints/final.safetensors", "L1/hyperparams.json"]
    assert files_of(files, "L0") == files[:2]


def test_a_folder_with_checkpoints_in_it_is_itself() -> None:
    files = ["t0/ae.pt", "t0/checkpoints/ae_1.pt"]
    assert choose(files, Place("a/b", "t0")) == "t0"


# --- uploading --------------------------------------------------------------------------------


@pytest.fixture
def evaluation() -> dict[str, object]:
    row = {"name": "FVU", "values": [{"value": 0.15}, {"value": 0.55}]}
    table = {"columns": ["dictionary", "PCA-8"], "rows": [row]}
    suites = [{"suite": "reconstruction", "tables": [table]}]
    return {"verdict": "Verdict: better than its baselines.", "suites": suites}


def test_card(run: Run, evaluation: dict[str, object], tmp_path: Path) -> None:
    folder = run.dictionary.save_for_hub(tmp_path / "out", "me/mine", evaluation=evaluation)
    card = (folder / "README.md").read_text()
    front = card.split("---")[1]
    assert "library_name: monosemy" in front and "- sparse-autoencoder" in front
    assert "license" not in front and "pipeline" not in front
    assert 'monosemy.load("me/mine")' in card and "`layers.1`" in card
    assert "| FVU | 0.15 | 0.55 |" in card and "better than its baselines" in card
    assert run.dictionary.fingerprint is not None
    assert f"{run.dictionary.fingerprint.expected.fvu:.4f}" in card
    assert Dictionary.from_pretrained(folder).identity() == run.dictionary.identity()


def test_card_of_an_imported_dictionary(offline: Path, tmp_path: Path) -> None:
    cached(offline, "org/saes", MANY)
    dictionary = monosemy.load("org/saes/layers.3")
    card = (dictionary.save_for_hub(tmp_path / "out", "me/mine") / "README.md").read_text()
    assert "base_model: org/model" in card and "`org/saes/layers.3` (sparsify)" in card
    assert "nan" not in card and "None" not in card


class Api:
    """Takes what is uploaded."""

    def __init__(self, refuse: Exception | None = None) -> None:
        self.refuse, self.private, self.files = refuse, False, dict[str, bytes]()

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> huggingface_hub.RepoUrl:
        if self.refuse is not None:
            raise self.refuse
        self.private = private
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo}")

    def upload_folder(self, repo_id: str, folder_path: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder_path.iterdir()}


def api_is(monkeypatch: pytest.MonkeyPatch, api: Api) -> Api:
    monkeypatch.setattr("monosemy.hub.hub_api", lambda: api)
    return api


@pytest.mark.parametrize("push", [lambda run: run, lambda run: run.dictionary])
def test_push(run: Run, push: Callable[[Run], Run], monkeypatch: pytest.MonkeyPatch) -> None:
    api = api_is(monkeypatch, Api())
    assert push(run).push_to_hub("me/mine", private=True) == "https://huggingface.co/me/mine"
    assert api.private and {"README.md", "manifest.json", "coder.safetensors"} <= set(api.files)


def test_push_without_a_network(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    api_is(monkeypatch, Api(ConnectionError("no route")))
    with pytest.raises(UserError, match="was not uploaded: no route"):
        run.push_to_hub("me/mine")


def test_push_without_the_right(run: Run, hub: MockHub) -> None:
    with pytest.raises(UserError, match="me/mine"):
        run.dictionary.push_to_hub("me/mine")


def test_push_command(
    run: Run,
    evaluation: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = api_is(monkeypatch, Api())
    run.dictionary.save_pretrained(tmp_path / "run" / "dictionary")
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(evaluation))
    main(["push", str(tmp_path / "run"), "me/mine", "--out", str(tmp_path / "dry")])
    assert not api.files and "| FVU | 0.15 | 0.55 |" in (tmp_path / "dry/README.md").read_text()
    main(["push", str(tmp_path / "run"), "me/mine"])
    assert api.files["README.md"] == (tmp_path / "dry" / "README.md").read_bytes()


def test_requests_say_which_library_makes_them() -> None:
    from monosemy.hub import hub_api

    assert hub_api().library_name == "monosemy"
