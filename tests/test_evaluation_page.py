"""The page of an evaluation: everything is there, nothing in it runs."""

from __future__ import annotations

from pathlib import Path

from monosemy.evaluation import Evaluation, Judgement, Plot, SuiteResult, Table
from monosemy.metrics.table import MetricRow, MetricValue
from monosemy.report.evaluation import evaluation_html, write_evaluation

EVIL = "<script>alert(1)</script>"


def example() -> Evaluation:
    row = MetricRow("FVU", "", "lower", f"share {EVIL}", [MetricValue(0.2, 0.1, 0.3), None])
    line = [(1.0, 0.2, 0.1, 0.3), (2.0, 0.4, 0.3, 0.5)]
    measured = SuiteResult(
        "one",
        f"First {EVIL}",
        [Table(["dictionary", f"rival {EVIL}"], [row], "held-out text")],
        "It wins.",
        [Judgement("FVU", "rival", "wins against")],
        plots=[Plot("FVU by place", "place", "FVU", {f"dictionary {EVIL}": line})],
    )
    skipped = SuiteResult("two", "Second", skipped=f"the model has no head {EVIL}")
    context = {
        "model": f"m{EVIL}",
        "hookpoint": "layers.1",
        "architecture": "batch_topk",
        "width": 64,
        "corpus": {"source": EVIL},
        "tier": "quick",
    }
    return Evaluation([measured, skipped], context)


def test_every_suite_table_plot_and_reason_is_on_the_page(tmp_path: Path) -> None:
    page = write_evaluation(example(), tmp_path / "evaluation.html").read_text("utf-8")
    for text in ("Verdict: better than its baselines", "It wins.", "the model has no head", "0.20"):
        assert text in page
    assert page.count("<section id=") == 2
    assert 'aria-label="FVU against place' in page


def test_nothing_on_the_page_can_run() -> None:
    page = evaluation_html(example())
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6
