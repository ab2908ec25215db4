"""The command `circuit`, its file, and the graph of one prompt for viewers elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from handmade import exact
from test_patching import PAIRS

from monosemy.cli.main import main
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.formats.attribution_graph import attribution_graph
from monosemy.intervene import ERROR, Patching, find_circuit
from monosemy.intervene.record import CircuitRecord
from monosemy.lm import LM

HOOKPOINTS = ["embed", "layers.0", "layers.1"]


@pytest.fixture(scope="module")
def runs(lm: LM, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over layers, and a file of pairs."""
    folder = tmp_path_factory.mktemp("circuit") / "sweep"
    for name in HOOKPOINTS:
        bare = replace(exact(lm, corpus, name), fingerprint=None)
        bare.save_pretrained(folder / name / "dictionary")
    rows = [
        {"clean": p.clean, "corrupted": p.corrupted, "answer": p.answer, "wrong": p.wrong}
        for p in PAIRS
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def written(runs: Path, checkpoint: Path) -> CircuitRecord:
    asked = ["--pairs", str(runs / "pairs.jsonl"), "--model", str(checkpoint), "--steps", "2"]
    main(["circuit", str(runs), *asked, "--nodes", "20", "--edges", "40"])
    return CircuitRecord.load(runs / "circuits/pairs.json")


def test_the_command_finds_tries_and_writes(
    written: CircuitRecord, runs: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [site.name for site in written.sites] == HOOKPOINTS
    assert (len(written.nodes), len(written.edges)) == (20, 40)
    assert (written.found_on, written.tried_on) == (2, 2)
    sizes = [abs(node.effect) for node in written.nodes]
    assert sizes == sorted(sizes, reverse=True)
    assert {edge.target for edge in written.edges} - {None}
    for carrying in (written.carried, written.neurons):
        assert carrying is not None
        assert [one.features + one.errors for one in carrying.circuits][:4] == [5, 10, 20, 50]
    assert [row.site for row in written.predicted] == HOOKPOINTS
    assert "<svg" in (runs / "circuits/pairs.html").read_text()
    again = runs / "again"
    asked = ["--pairs", str(runs / "pairs.jsonl"), "--model", str(checkpoint), "--steps", "2"]
    main(["circuit", str(runs / "layers.0"), *asked, "--no-neurons", "--out", str(again)])
    said = capsys.readouterr().out
    assert "faithfulness" in said and "of neurons" not in said and "on 2 other pairs" in said
    assert CircuitRecord.load(again / "pairs.json").neurons is None


def test_a_saved_circuit_comes_back_whole(written: CircuitRecord, tmp_path: Path) -> None:
    written.save(tmp_path / "copy.json")
    assert CircuitRecord.load(tmp_path / "copy.json") == written


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("{", "is no JSON"),
        ("[]", "no circuit of format 1"),
        ('{"format": 2}', "no circuit of format 1"),
        ('{"format": 1}', "no whole circuit"),
    ],
)
def test_what_is_no_circuit_is_refused(broken: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text(broken)
    with pytest.raises(UserError, match=told):
        CircuitRecord.load(tmp_path / "broken.json")
    with pytest.raises(UserError, match="there is no circuit"):
        CircuitRecord.load(tmp_path / "none.json")


def test_a_circuit_with_ends_that_are_not_there_is_refused(
    written: CircuitRecord, runs: Path, tmp_path: Path
) -> None:
    told = json.loads((runs / "circuits/pairs.json").read_text())
    for part, key, value in (
        ("edges", "source", 99),
        ("edges", "target", -1),
        ("nodes", "site", "x"),
    ):
        broken = json.loads(json.dumps(told))
        broken[part][0][key] = value
        (tmp_path / "broken.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match="no whole circuit"):
            CircuitRecord.load(tmp_path / "broken.json")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--pairs", "brackets"], "did you mean `bracket`"),
        (["--pairs", "PAIRS", "--most", "1"], "there is 1 pair"),
        (["--pairs", "PAIRS", "--nodes", "0"], "`nodes` is 0"),
        (["--pairs", "PAIRS", "--threshold", "1e9"], "no node has an effect"),
        (["--pairs", "PAIRS", "--name", "../x"], "is no name"),
    ],
)
def test_mistakes_are_told(
    asked: list[str], told: str, runs: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(runs / "pairs.jsonl") if word == "PAIRS" else word for word in asked]
    before = sorted(runs.rglob("*"))
    with pytest.raises(SystemExit):
        main(["circuit", str(runs / "layers.0"), "--model", str(checkpoint), *asked])
    assert told in capsys.readouterr().err
    assert sorted(runs.rglob("*")) == before


# --- the graph ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patching(lm: LM, corpus: Corpus) -> Patching:
    sites = [replace(exact(lm, corpus, name), fingerprint=None) for name in HOOKPOINTS]
    return Patching(lm, sites, PAIRS[1:2])


@pytest.fixture(scope="module")
def graph(patching: Patching) -> dict[str, Any]:
    circuit = find_circuit(patching, nodes=30, edges_kept=60, positions=True, steps=2)
    return attribution_graph(
        circuit,
        patching,
        name="My <graph>",
        names={"layers.0": {n: f"name {n}" for n in range(64)}},
    )


REQUIRED = {
    "metadata": {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str},
    "nodes": {
        "node_id": str,
        "feature": int,
        "layer": str,
        "ctx_idx": int,
        "feature_type": str,
        "jsNodeId": str,
        "clerp": str,
    },
    "links": {"source": str, "target": str, "weight": float},
}
"""Fields that Neuronpedia's schema and circuit-tracer's models both ask for."""


def test_the_graph_has_the_fields_that_viewers_ask_for(graph: dict[str, Any]) -> None:
    assert set(graph) == {"metadata", "qParams", "nodes", "links"}
    for part, fields in REQUIRED.items():
        rows = graph[part] if isinstance(graph[part], list) else [graph[part]]
        assert rows
        for row in rows:
            for field, kind in fields.items():
                assert type(row[field]) is kind, (part, field)
    assert set(graph["qParams"]) == {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}
    assert graph["metadata"]["slug"] == "my-graph"
    json.dumps(graph, allow_nan=False)


def test_its_nodes_are_the_circuits(graph: dict[str, Any], patching: Patching) -> None:
    circuit = find_circuit(patching, nodes=30, edges_kept=60, positions=True, steps=2)
    ids = [node["node_id"] for node in graph["nodes"]]
    assert len(ids) == len(set(ids))
    tokens = patching.prompts.clean[0]
    assert len(graph["metadata"]["prompt_tokens"]) == len(tokens)
    kinds = [node["feature_type"] for node in graph["nodes"]]
    assert kinds.count("embedding") == len(tokens) and kinds.count("logit") == 1
    assert len(ids) == len(tokens) + 30 + 1
    output = graph["nodes"][-1]
    assert output["is_target_logit"] and 0 < output["token_prob"] < 1
    for node in circuit.nodes.nodes:
        assert node.position is not None
        layer, place = HOOKPOINTS.index(node.site), len(tokens) + node.position
        (shown,) = (n for n in graph["nodes"] if n["node_id"] == f"{layer}_{node.feature}_{place}")
        assert (shown["feature"] == -1) == (node.feature == ERROR)
        if node.feature != ERROR and node.site == "layers.0":
            assert shown["clerp"] == f"name {node.feature}"
    for link in graph["links"]:
        assert link["source"] in ids and link["target"] in ids
    from_tokens = [link for link in graph["links"] if link["source"].startswith("E_")]
    embedded = [node for node in circuit.nodes.nodes if node.site == "embed"]
    assert len(from_tokens) == len(embedded) > 0
    assert len(graph["links"]) == 60 + len(embedded)


def test_activations_are_those_of_the_clean_prompt(graph: dict[str, Any], lm: LM) -> None:
    tokens = lm.encode(PAIRS[1].clean)
    x = lm.capture(tokens, ["layers.0"])["layers.0"][0]
    d = x.shape[1]
    mine = [n for n in graph["nodes"] if n["layer"] == "1" and n["feature"] >= 0]
    assert mine
    for node in mine:
        _, feature, place = (int(part) for part in node["node_id"].split("_"))
        value = x[place, feature % d] * (1 if feature < d else -1)
        assert node["activation"] == pytest.approx(max(float(value), 0.0), abs=1e-5)


def test_influence_is_the_share_of_stronger_nodes(graph: dict[str, Any]) -> None:
    shares = sorted(n["influence"] for n in graph["nodes"] if n["influence"] is not None)
    assert len(shares) == 30
    assert shares[-1] == pytest.approx(1) and shares[0] > 1 / 30


def test_a_graph_is_of_one_prompt_with_positions(lm: LM, corpus: Corpus) -> None:
    sites = [replace(exact(lm, corpus, "layers.0"), fingerprint=None)]
    several = Patching(lm, sites, PAIRS)
    with pytest.raises(UserError, match="one prompt, not of 4"):
        attribution_graph(find_circuit(several, nodes=3, steps=1), several, name="x")
    one = Patching(lm, sites, PAIRS[:1])
    with pytest.raises(UserError, match="at a token"):
        attribution_graph(find_circuit(one, nodes=3, steps=1), one, name="x")
