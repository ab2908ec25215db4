"""`monosemy explain`, from a run and a server to a table, rows and a verdict."""

from __future__ import annotations

import json
from pathlib import Path

import planted
import pytest
from mock_llm import MockLLM, careless, perfect

from monosemy.cli.explain import Command
from monosemy.cli.explain import explain as explain_run
from monosemy.corpus import open_corpus
from monosemy.errors import UserError
from monosemy.index import Index
from monosemy.interpret.explain import Cutter
from monosemy.lm import LM
from monosemy.training import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """A run on text whose windows are all different."""
    data = tmp_path_factory.mktemp("words")
    for name, text in zip(planted.text()[0].names, planted.text()[0].texts, strict=True):
        (data / f"{name}.txt").write_text(text[:500])
    corpus = open_corpus(str(data), held_out=0.5)
    out = tmp_path_factory.mktemp("runs") / "words"
    sizes = {"width": 64, "k": 4, "tokens": 4096, "batch": 512, "pool": 2048, "context": 64}
    train(LM(str(checkpoint)), corpus, "layers.1", out=out, **sizes)
    return out


def command(folder: Path, server: MockLLM | None = None, **options: object) -> Command:
    url = server.url if server else "http://127.0.0.1:9/v1"
    chosen = {"base_url": url, "model": "scripted", "count": 3, "tokens": 8000, **options}
    return Command(folder, **chosen)  # type: ignore[arg-type]


def table(folder: Path) -> dict[int, dict]:
    lines = (folder / "index" / "explanations.jsonl").read_text().splitlines()
    return {row["feature"]: row for row in map(json.loads, lines)}


def test_from_a_run_to_a_verdict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MockLLM(perfect).serve() as server:
        command(folder, server, price_in=1.0, price_out=2.0).run()
        said = capsys.readouterr().out
        asked = len(server.asked)
        command(folder, server, untrained=False).run()
        assert len(server.asked) == asked  # the same again is answered from disk
    for words in ("about", "untrained dictionary", "another's explanation", "Verdict: on ", "cost"):
        assert words in said, words
    rows = table(folder)
    assert len(rows) == 3 and list(rows) == sorted(rows)
    for row in rows.values():
        assert row["explanation"].startswith("the word") and row["model"] == "scripted"
        figure = row["scores"]["detection"]["dictionary"]["figures"]["balanced accuracy"]
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert row["explanation"] in said.replace("\n", " ") or "…" in said


def test_rows_of_other_features_stay(folder: Path) -> None:
    with MockLLM(careless).serve() as server:
        before = table(folder)
        other = next(f for f in Index.open(folder).live if f not in before)
        command(folder, server, features=(other,), untrained=False).run()
    assert {k: v for k, v in table(folder).items() if k != other} == before
    assert other in table(folder)


def test_an_unfinished_row_replaces_nothing(folder: Path) -> None:
    index, known = Index.open(folder), table(folder)
    before, written = dict(known), []
    with MockLLM(careless).serve() as server:
        few = command(
            folder,
            server,
            features=tuple(known),
            budget_tokens=5000,
            max_tokens=100,
            untrained=False,
        )
        explain_run(few, index, known, lambda rows: written.append(list(rows)))
    assert written and written[-1] == [before[f] for f in sorted(before)]


def test_a_budget_says_how_to_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MockLLM(perfect).serve() as server:
        command(folder, server, budget_tokens=3000, max_tokens=100, seed=1).run()
    assert "the budget ended it" in capsys.readouterr().out


def test_a_dry_run_sends_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scorers = ("detection", "fuzzing", "simulation", "intruder")
    Command(folder, dry_run=True, scorers=scorers, price_in=3.0, price_out=15.0).run()
    said = capsys.readouterr().out
    for words in ("<active:", "<active>", "[system]", *scorers, "50 features, about", "cost"):
        assert words in said, words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None}, "which model"),
        ({"price_in": 1.0}, "one price alone"),
        ({"budget_money": 1.0}, "no prices"),
        ({"features": (64,)}, "there is no feature 64"),
        ({"features": (-1,)}, "there is no feature -1"),
        ({"count": 0}, "--count is 0"),
        ({"scorers": ("accuracy",)}, "no scorer `accuracy`"),
        ({"base_url": "localhost:8000"}, "no address"),
        ({}, "cannot reach"),
    ],
)
def test_mistakes(folder: Path, options: dict, message: str) -> None:
    kept = table(folder)
    with pytest.raises(UserError, match=message):
        command(folder, **{"seed": 5, **options}).run()
    assert table(folder) == kept


def test_a_damaged_table_is_said_to_be(folder: Path) -> None:
    path = folder / "index" / "explanations.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    with pytest.raises(UserError, match="is not as it was written"):
        command(folder).run()
    path.write_text(whole)


def test_contexts_of_a_run_are_the_runs_text(folder: Path) -> None:
    features = Index.open(folder)
    texts = dict(zip(features.text.names, features.text.texts, strict=True))
    cutter = Cutter(features.text, features.entries, window=16)
    feature = features.live[0]
    contexts = cutter.cut(feature)
    assert contexts.explain and contexts.test
    assert contexts.top == pytest.approx(features[feature].max)
    for e in [*contexts.explain, *contexts.test, *contexts.negatives]:
        assert "".join(e.tokens) in texts[e.document]
