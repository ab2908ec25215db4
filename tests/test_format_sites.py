"""What a run shows of its features, in other tools' files and requests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mock_hub import serving
from safetensors.numpy import load_file, save_file

from monosemy.cli.main import main
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.evaluation import evaluate
from monosemy.formats import delphi, neuronpedia
from monosemy.formats.sites import INTERVALS, Showing, SiteOptions, finite
from monosemy.formats.writers import export_run
from monosemy.index import Index
from monosemy.interpret import build_features
from monosemy.lm import LM
from monosemy.training import Run

NAME = SiteOptions(name="tiny-res", creator="me")
FEW = SiteOptions(name="tiny-res", creator="me", features=(0, 1, 2, 3))


@pytest.fixture(scope="module")
def folder(run: Run, lm: LM, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "run"
    run.dictionary.save_pretrained(folder / "dictionary")
    features = build_features(run.dictionary, lm, corpus, folder / "index", tokens=1000)
    feature = features.live[0]
    row = {"feature": feature, "explanation": "a\0 word " + "x" * 600, "model": "judge"}
    features.index.write_table("explanations", [row])
    return folder


@pytest.fixture(scope="module")
def index(folder: Path) -> Index:
    return Index.open(folder)


def rows(path: Path) -> list[dict[str, Any]]:
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def only_finite(name: str) -> float:
    raise AssertionError(f"{name} is no JSON number")


# --- Neuronpedia's bulk import ---------------------------------------------------------------


@pytest.fixture(scope="module")
def bulk(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bulk") / "exports"
    export_run(folder, "neuronpedia", out, NAME)
    (model,) = out.iterdir()
    (source,) = model.iterdir()
    assert source.name == "1-tiny-res"
    return source


def test_every_line_of_a_file_has_the_same_keys_and_no_nul(bulk: Path) -> None:
    files = [p for p in bulk.rglob("*") if p.is_file()]
    assert {p.name for p in files if p.parent == bulk} == {
        f"{name}.jsonl" for name in ("release", "model", "sourceset", "source")
    }
    for path in files:
        found = rows(path)
        assert found and all(list(row) == list(found[0]) for row in found)
        raw = path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
        assert b"\\u0000" not in raw and b"NaN" not in raw and b"\0" not in raw


def test_features_carry_the_figures_of_the_index(bulk: Path, index: Index) -> None:
    features = rows(bulk / "features" / "batch-0.jsonl.gz")
    assert [int(row["index"]) for row in features] == sorted(index.live)
    for row in features:
        f = int(row["index"])
        assert row["frac_nonzero"] == pytest.approx(index.counts[f] / index.n_tokens)
        assert row["maxActApprox"] == pytest.approx(float(index.max[f]))
        assert sum(row["freq_hist_data_bar_heights"]) == index.counts[f]
        assert len(row["pos_str"]) == len(row["pos_values"]) == 10
        assert row["pos_values"][0] >= row["pos_values"][-1] > row["neg_values"][-1]
        assert row["neg_values"][0] <= row["neg_values"][-1]


def test_activations_name_their_peak_and_have_ids_of_their_own(bulk: Path, index: Index) -> None:
    found = rows(bulk / "activations" / "batch-0.jsonl.gz")
    assert len({row["id"] for row in found}) == len(found)
    assert all(len(row["id"]) == 25 for row in found)
    for row in found:
        assert len(row["tokens"]) == len(row["values"])
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"] == max(row["values"])
        if row["binMin"] >= 0:
            assert row["binMin"] <= row["values"][row["qualifyingTokenIndex"]] <= row["binMax"]
        else:
            assert row["binMin"] == row["binContains"] == -1
            assert row["binMax"] == pytest.approx(float(index.max[int(row["index"])]))


def test_explanations_are_carried(bulk: Path, index: Index) -> None:
    (row,) = rows(bulk / "explanations" / "batch-0.jsonl.gz")
    assert int(row["index"]) == index.live[0]
    assert row["description"].startswith("a word x") and row["explanationModelName"] == "judge"


def test_shares_of_intervals_add_up_to_all_tokens(folder: Path) -> None:
    showing = Showing(folder, NAME)
    for feature in showing.shown[:20]:
        intervals = showing.groups(feature)[1:]
        assert len(intervals) == INTERVALS
        assert sum(group.share for group in intervals) == pytest.approx(1, abs=1e-2)


def test_numbers_that_are_not_finite_become_0() -> None:
    values = {"a": [float("nan"), float("inf"), 0.123456789], "b": "x\0y", "c": "\ud800"}
    assert finite(values, 5) == {"a": [0.0, 0.0, 0.12346], "b": "xy", "c": "?"}


# --- SAEDashboard ----------------------------------------------------------------------------


def test_saedashboard_has_its_files_and_rounds_to_5_places(
    folder: Path, index: Index, tmp_path: Path
) -> None:
    export_run(folder, "saedashboard", tmp_path / "o", NAME)
    batch = json.loads((tmp_path / "o" / "batch-0.json").read_text(), parse_constant=only_finite)
    assert (batch["layer"], batch["sae_set"]) == (1, "tiny-res")
    shown = [feature["feature_index"] for feature in batch["features"]]
    skipped = json.loads((tmp_path / "o" / "skipped_indexes.json").read_text())["skipped_indexes"]
    assert sorted(shown + skipped) == list(range(index.width))
    settings = json.loads((tmp_path / "o" / "run_settings.json").read_text())
    assert settings["n_tokens_in_prompt"] == index.text.context
    for feature in batch["features"]:
        groups = [(row["bin_min"], row["bin_max"]) for row in feature["activations"]]
        assert groups[0][0] == -1 and groups[0][1] == max(high for _, high in groups)
        assert all(round(v, 5) == v for v in feature["vector"])


# --- Neuronpedia's requests ------------------------------------------------------------------


class Site:
    """Accepts uploads; meets some with a fault first."""

    def __init__(self) -> None:
        self.faults: list[int] = []
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str] = []
        self.url = ""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    found = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.keys.append(self.headers["X-Api-Key"])
            status = found.faults.pop(0) if found.faults else 200
            if status == 200:
                found.bodies.append((self.path, body))
            content = f"key was {self.headers['X-Api-Key']}".encode()
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    monkeypatch.setenv(neuronpedia.KEY, "secret-key")
    with serving(Handler) as url:
        found.url = url
        yield found


def test_requests_keep_to_the_limits(folder: Path, index: Index) -> None:
    (_, new), *uploads = list(neuronpedia.requests(folder, NAME))
    assert new["name"] == "tiny-res"
    sent = [feature for _, body in uploads for feature in body["features"]]
    assert [feature["index"] for feature in sent] == sorted(index.live)
    assert all(1 <= len(body["features"]) <= 128 for _, body in uploads)
    for feature in sent:
        assert 0 < feature["density"] <= 1
        assert len(feature["topLogits"]) <= 20 and len(feature["bottomLogits"]) <= 20
        for context in feature["activations"]:
            assert 1 <= len(context["tokens"]) == len(context["values"]) <= 1024
    (explained,) = [feature for feature in sent if "explanations" in feature]
    assert 1 <= len(explained["explanations"][0]["text"]) <= 512


def test_a_name_that_the_site_refuses_is_refused_here() -> None:
    with pytest.raises(UserError, match="no name for a set"):
        SiteOptions(name="Tiny Set")


def test_nothing_is_sent_unless_asked(
    folder: Path, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", str(folder), "--to", "neuronpedia-api", "--url", site.url])
    assert not site.keys and "nothing was sent" in capsys.readouterr().out


def test_upload_repeats_what_the_site_is_too_busy_for(
    folder: Path, site: Site, tmp_path: Path
) -> None:
    site.faults = [429, 503]
    said: list[str] = []
    sent = neuronpedia.upload(
        folder, NAME, tmp_path / "done", url=site.url, say=said.append, pause=0.01
    )
    assert sent == len(site.bodies) == 2 and len(site.keys) == 4
    assert {"secret-key"} == set(site.keys) and "secret" not in "".join(said)
    assert [path for path, _ in site.bodies] == [
        "/api/source-set/new",
        "/api/feature/upload-batch",
    ]


def test_upload_goes_on_after_what_was_accepted(folder: Path, site: Site, tmp_path: Path) -> None:
    done = tmp_path / "done"
    site.faults = [200, 400]
    with pytest.raises(UserError, match=r"answers 400: key was \*\*\*"):
        neuronpedia.upload(folder, FEW, done, url=site.url)
    assert neuronpedia.upload(folder, FEW, done, url=site.url) == 1
    assert neuronpedia.upload(folder, FEW, done, url=site.url) == 0
    assert [path for path, _ in site.bodies] == [
        "/api/source-set/new",
        "/api/feature/upload-batch",
    ]


def test_the_key_does_not_follow_a_redirect(folder: Path, site: Site, tmp_path: Path) -> None:
    site.faults = [302]
    with pytest.raises(UserError, match="answers 302"):
        neuronpedia.upload(folder, NAME, tmp_path / "done", url=site.url)
    assert len(site.keys) == 1


def test_upload_without_a_key_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(neuronpedia.KEY, raising=False)
    with pytest.raises(UserError, match="is not set"):
        neuronpedia.upload(folder, NAME, tmp_path / "done", url="http://127.0.0.1:1")


# --- delphi ----------------------------------------------------------------------------------


@pytest.fixture
def cache(folder: Path, tmp_path: Path) -> Path:
    export_run(folder, "delphi", tmp_path / "delphi", NAME)
    return tmp_path / "delphi" / "latents" / "layers.1"


def test_the_latent_cache_comes_back_as_it_was(cache: Path, index: Index) -> None:
    found = delphi.read_cache(cache)
    assert np.array_equal(found.offsets, index.offsets)
    assert np.array_equal(found.places, index.places)
    assert np.allclose(found.values, index.values, rtol=1e-3)
    assert np.array_equal(found.tokens.reshape(-1), index.text.ids)
    files = [load_file(path) for path in cache.glob("*.safetensors")]
    assert all(f["locations"].dtype == np.uint16 for f in files)
    assert all(f["activations"].dtype == np.float16 for f in files)


def test_explanations_go_both_ways(cache: Path, index: Index, folder: Path) -> None:
    explanations = cache.parent.parent / "explanations"
    found = delphi.read_explanations(explanations)
    assert found == {index.live[0]: index.table("explanations")[index.live[0]]["explanation"]}
    other = index.live[1]
    (explanations / f"layers.1_latent{other}.txt").write_text('"from delphi"')
    before = (folder / "index" / "explanations.jsonl").read_bytes()
    try:
        assert delphi.add_explanations(index, explanations) == 1
        assert "from delphi" in index.names[other]
    finally:
        (folder / "index" / "explanations.jsonl").write_bytes(before)


def damage_missing(cache: Path) -> None:
    sorted(cache.glob("*.safetensors"), key=lambda p: int(p.stem.split("_")[0]))[1].unlink()


def damage_truncated(cache: Path) -> None:
    path = next(cache.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-50])


def damage_location(cache: Path) -> None:
    path = next(cache.glob("0_*.safetensors"))
    arrays = load_file(path)
    arrays["locations"][0, 1] = 999
    save_file(arrays, path)


def damage_tensor(cache: Path) -> None:
    path = next(cache.glob("0_*.safetensors"))
    save_file({"tokens": np.zeros((1, 2))}, path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_missing, "begins at feature"),
        (damage_truncated, "cannot be read"),
        (damage_location, "location"),
        (damage_tensor, "holds tokens"),
    ],
)
def test_a_damaged_latent_cache_is_refused(cache: Path, damage: Any, said: str) -> None:
    damage(cache)
    with pytest.raises(UserError, match=said):
        delphi.read_cache(cache)


# --- circuit-tracer's viewer -----------------------------------------------------------------


def test_feature_details_are_as_the_viewer_reads_them(
    folder: Path, index: Index, tmp_path: Path
) -> None:
    shown = SiteOptions(features=tuple(index.live[:2]))
    export_run(folder, "feature-details", tmp_path / "o", shown)
    files = list((tmp_path / "o" / "features").iterdir())
    assert len(files) == 2
    for path in files:
        details = json.loads(path.read_text("utf-8"), parse_constant=only_finite)
        feature = details["index"]
        assert int(path.stem) == (1 + feature) * (2 + feature) // 2 + feature  # of layer 1
        strongest = details["examples_quantiles"][0]["examples"][0]
        peak = strongest["tokens_acts_list"][strongest["train_token_ind"]]
        assert peak == details["act_max"] == pytest.approx(float(index.max[feature]))
        assert len(strongest["tokens"]) == len(strongest["tokens_acts_list"])
        assert all(isinstance(t, str) for t in details["top_logits"] + details["bottom_logits"])


# --- SAEBench --------------------------------------------------------------------------------

REQUIRED = {
    "eval_config",
    "eval_id",
    "datetime_epoch_millis",
    "eval_result_metrics",
    "sae_bench_commit_hash",
    "sae_lens_id",
    "sae_lens_release_id",
    "sae_lens_version",
    "sae_cfg_dict",
}
"""Of every result, in SAEBench's JSON schemas."""


def test_saebench_has_evaluations_and_scored_explanations(
    folder: Path, run: Run, index: Index, tmp_path: Path
) -> None:
    evaluation = evaluate(
        run, suites=["reconstruction"], draws=20, tokens=1000, loss_tokens=300
    ).to_dict()
    (folder / "metrics.json").write_text(json.dumps(evaluation))
    path = folder / "index" / "explanations.jsonl"
    before = path.read_bytes()
    scored = [
        {"feature": f, "explanation": "x", "model": "judge", "scores": scores(value)}
        for f, value in zip(index.live, (0.5, 0.9), strict=False)
    ]
    try:
        index.write_table("explanations", scored)
        lost = export_run(folder, "saebench", tmp_path / "o", NAME)
    finally:
        path.write_bytes(before)
        (folder / "metrics.json").unlink()
    files = {p.parent.name: p for p in (tmp_path / "o").rglob("*.json")}
    assert set(files) == {"core", "autointerp"}
    assert {p.name for p in files.values()} == {"tiny-res_layers.1_eval_results.json"}
    found = {kind: json.loads(p.read_text()) for kind, p in files.items()}
    assert all(set(values) >= REQUIRED for values in found.values())
    judged = found["autointerp"]["eval_result_metrics"]["autointerp"]
    assert judged["autointerp_score"] == pytest.approx(0.7)
    assert judged["autointerp_std_dev"] == pytest.approx(0.4 / 2**0.5)  # of a sample, as there
    assert not any("autointerp" in what for what in lost) and any("scr" in w for w in lost)


def scores(value: float) -> dict[str, Any]:
    figure = {"value": value, "low": value, "high": value}
    return {"detection": {"dictionary": {"figures": {"balanced accuracy": figure}}}}


# --- the command -----------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["neuronpedia", "saedashboard", "delphi"])
def test_a_run_without_an_index_is_refused_and_nothing_is_written(
    run: Run, tmp_path: Path, to: str
) -> None:
    run.dictionary.save_pretrained(tmp_path / "r" / "dictionary")
    with pytest.raises(UserError, match="has no index"):
        export_run(tmp_path / "r", to, tmp_path / "o")
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_a_run_without_an_evaluation_has_no_saebench(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no evaluation"):
        export_run(folder, "saebench", tmp_path / "o")


def test_an_unknown_format_names_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", str(folder), "--to", "neuronpdia", "--out", "x"])
    said = capsys.readouterr().err
    assert "neuronpedia" in said and "sparsify" in said and "delphi" in said
