"""Results in SAEBench's layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from monosemy.evaluation import Evaluation, SuiteResult, Table, evaluate, write_saebench
from monosemy.evaluation.suites import probing, ravel
from monosemy.evaluation.suites.perturbation import COUNTS
from monosemy.metrics.table import MetricRow, MetricValue
from monosemy.training import Run

FIELDS = {
    "eval_type_id",
    "eval_config",
    "eval_id",
    "datetime_epoch_millis",
    "eval_result_metrics",
    "eval_result_details",
    "sae_bench_commit_hash",
    "sae_lens_id",
    "sae_lens_release_id",
    "sae_lens_version",
    "sae_cfg_dict",
    "eval_result_unstructured",
}


@pytest.fixture(scope="module")
def evaluation(run: Run) -> Evaluation:
    return evaluate(run, suites=["reconstruction"], draws=20, tokens=2000, loss_tokens=500)


def written(evaluation: Evaluation, run: Run, folder: Path, *more: SuiteResult) -> dict[str, dict]:
    evaluation = replace(evaluation, suites=[*evaluation.suites, *more])
    files = write_saebench(evaluation, run.dictionary, folder, "a/run")
    assert all(file.name == "a_run_layers.1_eval_results.json" for file in files)
    found = {file.parent.name: json.loads(file.read_text()) for file in files}
    for output in found.values():
        assert set(output) == FIELDS
        for metrics in output["eval_result_metrics"].values():
            assert not any(isinstance(value, dict) for value in metrics.values())  # flat, there
    return found


def test_core_holds_what_has_the_same_definition(
    evaluation: Evaluation, run: Run, tmp_path: Path
) -> None:
    core = written(evaluation, run, tmp_path)["core"]
    mine, metrics = evaluation["reconstruction"], core["eval_result_metrics"]
    quality = metrics["reconstruction_quality"]
    assert quality["explained_variance"] == 1 - mine.value("FVU")
    assert "mse" not in quality and "explained_variance_legacy" not in quality
    loss = metrics["model_performance_preservation"]
    score = (loss["ce_loss_with_ablation"] - loss["ce_loss_with_sae"]) / (
        loss["ce_loss_with_ablation"] - loss["ce_loss_without_sae"]
    )
    assert loss["ce_loss_score"] == pytest.approx(score)
    assert core["sae_cfg_dict"]["d_sae"] == run.dictionary.width


def test_suites_without_a_figure_give_no_file(
    evaluation: Evaluation, run: Run, tmp_path: Path
) -> None:
    skipped = SuiteResult("absorption", "Feature absorption", skipped="the model does not spell")
    strange = SuiteResult("causal", "Causal sparsity")
    assert set(written(evaluation, run, tmp_path, skipped, strange)) == {"core"}
    assert {path.name for path in tmp_path.iterdir()} == {"core"}


def test_tpp_has_what_each_side_lost(evaluation: Evaluation, run: Run, tmp_path: Path) -> None:
    drops = [0.1 * i for i in range(len(COUNTS))]
    tpp = SuiteResult(
        "tpp",
        "Targeted probe perturbation",
        series={
            "counts": list(COUNTS),
            "own": {"dictionary": drops},
            "others": {"dictionary": [0.05] * len(COUNTS)},
        },
    )
    found = written(evaluation, run, tmp_path, tpp)["tpp"]["eval_result_metrics"]["tpp_metrics"]
    assert found["tpp_threshold_20_total_metric"] == pytest.approx(0.25)
    assert len(found) == 3 * len(COUNTS)


def test_figures_of_tables_go_by_their_names(
    evaluation: Evaluation, run: Run, tmp_path: Path
) -> None:
    def figures(columns: list[str], **values: float) -> Table:
        return Table(
            columns,
            [
                MetricRow(name, "", "higher", "", [MetricValue(v + i, v, v) for i in range(2)])
                for name, v in values.items()
            ],
        )

    swapped = {"cause": 0.5, "isolation": 0.25, "disentanglement": 0.375}
    sparse = {f"balanced accuracy, k={k}": k / 100 for k in (1, 2, 5, 16)}
    dense = {"balanced accuracy": 0.5}
    scored = figures(["dictionary", "untrained dictionary"], **{"unlearning score": 0.75})
    found = written(
        evaluation,
        run,
        tmp_path,
        SuiteResult("ravel", "", [figures(["dictionary", ravel.NO_ERROR], **swapped)]),
        SuiteResult(
            "probing",
            "",
            [
                figures(["dictionary", probing.NEURONS], **sparse),
                figures([probing.DENSE, "position"], **dense),
            ],
        ),
        SuiteResult("unlearning", "", [scored]),
    )
    metrics = {kind: output["eval_result_metrics"] for kind, output in found.items()}
    assert metrics["ravel"]["ravel"] == {f"{name}_score": v + 1 for name, v in swapped.items()}
    assert metrics["unlearning"]["unlearning"] == {"unlearning_score": 0.75}
    probes = metrics["sparse_probing"]
    assert probes["sae"] == {f"sae_top_{k}_test_accuracy": k / 100 for k in (1, 2, 5)}
    assert probes["llm"]["llm_test_accuracy"] == 0.5
    assert probes["llm"]["llm_top_2_test_accuracy"] == 1.02
    # Without questions there is no score, and no file.
    (tmp_path / "more").mkdir()
    plain = SuiteResult("unlearning", "", [figures(["dictionary"], loss=0.1)])
    assert "unlearning" not in written(evaluation, run, tmp_path / "more", plain)
