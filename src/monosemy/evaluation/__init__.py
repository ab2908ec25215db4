"""Evaluation on held-out text, beside baselines, with a verdict in words."""

from monosemy.evaluation.evaluate import (
    evaluate,
    gather,
    make_subject,
    open_dictionary_corpus,
)
from monosemy.evaluation.result import Evaluation, Judgement, Plot, SuiteResult, Table
from monosemy.evaluation.saebench import write_autointerp, write_saebench
from monosemy.evaluation.spread import measure_spread
from monosemy.evaluation.subject import NotMeaningful, Subject, Suite
from monosemy.evaluation.suites import SUITES, choose_suites, run_suites
from monosemy.evaluation.suites.benchmarks import score_tasks
from monosemy.evaluation.sweep import SweepRow, compare_on_held_out
from monosemy.evaluation.tasks import Tasks

__all__ = [
    "SUITES",
    "Evaluation",
    "Judgement",
    "NotMeaningful",
    "Plot",
    "Subject",
    "Suite",
    "SuiteResult",
    "SweepRow",
    "Table",
    "Tasks",
    "choose_suites",
    "compare_on_held_out",
    "evaluate",
    "gather",
    "make_subject",
    "measure_spread",
    "open_dictionary_corpus",
    "run_suites",
    "score_tasks",
    "write_autointerp",
    "write_saebench",
]
