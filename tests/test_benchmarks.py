"""Tasks of lm-eval through the dictionary: offline, from a folder of YAML."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import exact

from monosemy.cli.main import main
from monosemy.coders import Dictionary
from monosemy.corpus import Corpus, open_corpus
from monosemy.errors import UserError
from monosemy.evaluation import Evaluation, Tasks, evaluate, score_tasks
from monosemy.evaluation.suites.benchmarks import each
from monosemy.lm import LM
from monosemy.training import train

pytest.importorskip("lm_eval")

CHOICE = """
task: returns
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/returns.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""
GENERATION = """
task: closes
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/closes.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
target_delimiter: ""
generation_kwargs: {{until: ["\\n"], max_gen_toks: 6, do_sample: false}}
metric_list:
  - metric: exact_match
    ignore_punctuation: false
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    names = ["value", "path", "data", "name", "key", "result"]
    pairs = [(a, b) for a in names for b in names if a != b]
    returns = [
        {"question": f"def read({a}):\n    return ", "choices": [a, b][:: 1 - 2 * (i % 2)]}
        | {"answer": i % 2}
        for i, (a, b) in enumerate(pairs)
    ]
    closes = [{"question": f"import os\n\n{a} = os.path.join({b}, ", "answer": a} for a, b in pairs]
    for name, rows in (("returns", returns), ("closes", closes)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (made / f"{name}.jsonl").write_text(text)
    (made / "returns.yaml").write_text(CHOICE.format(folder=made))
    (made / "closes.yaml").write_text(GENERATION.format(folder=made))
    return made


@pytest.fixture(scope="module")
def stdlib() -> LM:
    return LM("builtin:stdlib", device="cpu")


@pytest.fixture(scope="module")
def text() -> Corpus:
    return open_corpus("builtin:stdlib")


@pytest.fixture(scope="module")
def identity(stdlib: LM, text: Corpus) -> Dictionary:
    return exact(stdlib, text, "layers.4")


def run(dictionary: Dictionary, lm: LM, text: Corpus, tasks: Tasks) -> Evaluation:
    return evaluate(dictionary, lm, text, suites=["benchmarks"], tasks=tasks, fit_tokens=500)


@pytest.fixture(scope="module")
def found(identity: Dictionary, stdlib: LM, text: Corpus, folder: Path) -> Evaluation:
    return run(identity, stdlib, text, Tasks(("returns", "closes"), folder, samples=10))


def test_a_perfect_reconstruction_scores_as_the_model(found: Evaluation) -> None:
    table = found["benchmarks"].table
    assert [row.name for row in table.rows] == ["returns acc", "closes exact_match"]
    for row in table.rows:
        assert table.value(row.name, "dictionary") == table.value(row.name, "the model itself")
    assert table.value("returns acc", "the model itself") > 0.8
    assert table.value("returns acc", "mean ablation") < 0.8
    assert found["benchmarks"].context["samples"] == {"returns acc": 10, "closes exact_match": 10}
    assert {j.baseline for j in found.judgements} == {"untrained dictionary", "mean ablation"}


def test_any_edit_can_be_scored_and_nothing_stays(stdlib: LM, folder: Path) -> None:
    tasks = Tasks(("returns",), folder)
    own = score_tasks(stdlib, tasks)["returns acc"]
    with stdlib.edit({"layers.4": lambda x, tokens: torch.zeros_like(x)}):
        zeroed = score_tasks(stdlib, tasks)["returns acc"]
    again = score_tasks(stdlib, tasks)["returns acc"]
    assert zeroed.value < own.value
    assert own.samples is not None and again.samples is not None
    assert np.array_equal(own.samples, again.samples)
    assert own.value == own.samples.mean()


def test_without_a_task_there_is_no_number(identity: Dictionary, stdlib: LM, text: Corpus) -> None:
    found = evaluate(identity, stdlib, text, suites=["benchmarks"])
    assert "no task was named" in found["benchmarks"].skipped
    assert not found["benchmarks"].tables
    assert "nothing was compared" in found.verdict


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (Tasks(("return",), Path("FOLDER")), "no task `return`"),
        (Tasks(("returns",), Path("/nowhere/at/all")), "no folder"),
        (Tasks(("lost",), Path("FOLDER")), "cannot be run"),
    ],
)
def test_tasks_that_cannot_be_run_are_refused(
    tasks: Tasks, message: str, stdlib: LM, folder: Path
) -> None:
    lost = CHOICE.format(folder="/nowhere").replace("task: returns", "task: lost")
    (folder / "lost.yaml").write_text(lost)
    if tasks.folder == Path("FOLDER"):
        tasks = Tasks(tasks.names, folder)
    with pytest.raises(UserError, match=message):
        score_tasks(stdlib, tasks)


def test_scores_are_logged_while_training(
    stdlib: LM, text: Corpus, folder: Path, tmp_path: Path
) -> None:
    measure = each(Tasks(("returns",), folder, samples=6), stdlib)
    made = train(
        stdlib,
        text,
        "layers.4",
        width=64,
        k=8,
        tokens=3072,
        batch=512,
        pool=2048,
        out=tmp_path / "run",
        measure=measure,
        measure_tokens=1024,
    )
    scored = [line["tokens"] for line in made.history if "returns acc" in line]
    assert scored == [1024, 2048, 3072]
    lines = [json.loads(line) for line in (tmp_path / "run/train.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in lines if "returns acc" in line] == scored


def test_on_the_command_line(
    identity: Dictionary, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    identity.save_pretrained(tmp_path / "dictionary")
    asked = f"--suite benchmarks --task returns --task-folder {folder} --samples 6 --device cpu"
    main(["evaluate", str(tmp_path / "dictionary"), *asked.split()])
    out = capsys.readouterr().out
    assert "returns acc" in out and "mean ablation" in out and "Verdict" in out
