"""Results as SAEBench writes them, so that its tables and plots can hold ours beside others'.

SAEBench (Karvonen et al. 2025, arXiv 2503.09532; version 0.6.0) has one JSON file for each kind of
evaluation and dictionary. What is measured here by its definition goes under its name; what is not
measured, or is another figure, is left out. `eval_config` says how it was measured.
"""

from __future__ import annotations

import json
import statistics
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from monosemy.artefact import write_text
from monosemy.coders import Dictionary
from monosemy.evaluation.result import Evaluation, SuiteResult
from monosemy.evaluation.suites import probing, ravel
from monosemy.interpret.explain.ask import OWN

VERSION = "0.6.0"
"""Of SAEBench, whose layout this is."""

Metrics = dict[str, dict[str, Any]]


def write_saebench(
    evaluation: Evaluation, dictionary: Dictionary, folder: str | Path, name: str = "monosemy"
) -> list[Path]:
    """Write what SAEBench has a place for, as FOLDER/KIND/NAME_HOOKPOINT_eval_results.json.

    Suites that did not run, or that have no such figure, give no file.

    Args:
        evaluation: its results.
        dictionary: what was measured.
        folder: where to; `eval_results` in SAEBench.
        name: what SAEBench calls a release, the first part of the file's name.

    Returns:
        The files.

    Raises:
        UserError: the disk refuses.
    """
    written = []
    for result in evaluation.suites:
        if result.suite not in _KINDS or result.skipped:
            continue
        kind, metrics_of = _KINDS[result.suite]
        metrics, details = metrics_of(result)
        if not metrics:
            continue
        output = {
            "eval_type_id": _TYPES.get(kind, kind),
            "eval_config": _config(evaluation, result),
            "eval_result_metrics": metrics,
            "eval_result_details": details,
            "sae_bench_commit_hash": f"monosemy {evaluation.context['environment']['monosemy']}",
            "sae_cfg_dict": _sae_config(evaluation.context["model"], dictionary),
        }
        written.append(_write(output, dictionary, Path(folder) / kind, name))
    return written


def write_autointerp(
    explanations: Mapping[int, Mapping[str, Any]],
    dictionary: Dictionary,
    folder: str | Path,
    name: str = "monosemy",
) -> list[Path]:
    """Write how well explanations predict where their features fire, as SAEBench's autointerp.

    Args:
        explanations: feature -> its row of an index; those without a score by detection do not
            count.
        dictionary: whose features they are.
        folder: as for `write_saebench`.
        name: as for `write_saebench`.

    Returns:
        The file; none where there are no scores.

    Raises:
        UserError: the disk refuses.
    """
    details: dict[str, dict[str, Any]] = {}
    for feature, row in explanations.items():
        found = row.get("scores", {}).get("detection", {}).get(OWN, {})
        figure = found.get("figures", {}).get("balanced accuracy")
        if figure is not None:
            text, score = row["explanation"], figure["value"]
            details[str(feature)] = {"latent": feature, "explanation": text, "score": score}
    if not details:
        return []
    scores = [found["score"] for found in details.values()]
    output = {
        "eval_type_id": "autointerp",
        "eval_config": {
            "measured_by": "monosemy",
            "layout": f"SAEBench {VERSION}",
            "model_name": dictionary.provenance.model,
            "n_latents": len(scores),
            "override_latents": [int(feature) for feature in details],
            "judges": sorted({row.get("model", "") for row in explanations.values()}),
            "definitions": {
                "autointerp_score": "balanced accuracy of detection, by other prompts and contexts "
                "than SAEBench's own, which is accuracy"
            },
        },
        "eval_result_metrics": {
            "autointerp": {
                "autointerp_score": statistics.fmean(scores),
                "autointerp_std_dev": statistics.stdev(scores) if len(scores) > 1 else 0.0,
            }
        },
        "eval_result_details": [],
        "sae_bench_commit_hash": f"monosemy {version('monosemy')}",
        "sae_cfg_dict": _sae_config(dictionary.provenance.model, dictionary),
        "eval_result_unstructured": details,
    }
    return [_write(output, dictionary, Path(folder) / "autointerp", name)]


def _write(output: dict[str, Any], dictionary: Dictionary, folder: Path, name: str) -> Path:
    """Add what each file has, and write it."""
    release, identity = name.replace("/", "_"), dictionary.hookpoint.replace("/", "_")
    path = folder / f"{release}_{identity}_eval_results.json"
    about = {
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        "sae_lens_id": identity,
        "sae_lens_release_id": release,
        "sae_lens_version": None,
        "eval_result_unstructured": None,
    }
    write_text(path, json.dumps(about | output, indent=2) + "\n")
    return path


_DIFFERENT = {
    "reconstruction": {
        "explained_variance": "1 - FVU, pooled over tokens; SAEBench's own squares the mean of "
        "squares, and is another figure"
    },
    "tpp": {"accuracy": "balanced, of logistic probes, each text scored by probes it is not in"},
    "scr": {"accuracy": "of logistic probes, each text scored by probes it is not in"},
    "absorption": {"projection": "of activations less b_dec; words at the end of the prompt"},
    "probing": {
        "test_accuracy": "balanced, of each token or text scored by probes it is not in; features "
        "by standardised mean difference; llm: raw neurons, and the dense probe"
    },
    "unlearning": {
        "unlearning_score": "of one setting, chosen by the loss on text; features at multiples of "
        "their largest activation"
    },
    "ravel": {
        "cause_score": "without the error term, as there; answers by their first token, and means "
        "over attributes"
    },
}
"""Figures that go by SAEBench's name though they are not quite its own."""

_TYPES = {"absorption": "absorption_first_letter"}


def _config(evaluation: Evaluation, result: SuiteResult) -> dict[str, Any]:
    """Return how it was measured: what differs from SAEBench's own settings is here."""
    shared = ("model", "corpus", "tier", "seed", "formulas")
    return {
        "measured_by": "monosemy",
        "layout": f"SAEBench {VERSION}",
        "model_name": evaluation.context["model"],
        "random_seed": evaluation.context["seed"],
        **{name: evaluation.context[name] for name in shared},
        "definitions": _DIFFERENT.get(result.suite, {}),
        "settings": result.context,
    }


def _sae_config(model: str, dictionary: Dictionary) -> dict[str, Any]:
    training = dictionary.provenance.training
    found = {
        "architecture": dictionary.coder.architecture,
        "model_name": model,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.width,
        "hook_name": dictionary.hookpoint,
        "context_size": dictionary.provenance.context,
        "dtype": "float32",
    }
    return found | ({"training_tokens": training["tokens"]} if training.get("tokens") else {})


def _given(
    result: SuiteResult, names: Mapping[str, str], column: str = "dictionary"
) -> dict[str, float]:
    """Return the figures of one column that a table has, by SAEBench's names."""
    found = {}
    for theirs, mine in names.items():
        try:
            found[theirs] = result.value(mine, column)
        except KeyError:  # such as the loss of a model that predicts nothing
            continue
    return found


def _core(result: SuiteResult) -> tuple[Metrics, list]:
    ce = result.context["ce"]
    performance = _given(
        result, {"ce_loss_score": "loss recovered (zero)", "ce_loss_with_sae": "CE"}
    )
    if ce:
        performance |= {"ce_loss_without_sae": ce["original"], "ce_loss_with_ablation": ce["zero"]}
    quality = _given(result, {"explained_variance": "FVU", "cossim": "cosine"})
    quality["explained_variance"] = 1 - quality["explained_variance"]
    metrics = {
        "model_behavior_preservation": _given(result, {"kl_div_with_sae": "KL"}),
        "model_performance_preservation": performance,
        "reconstruction_quality": quality,
        "shrinkage": _given(
            result, {"l2_ratio": "L2 ratio", "relative_reconstruction_bias": "relative bias"}
        ),
        "sparsity": _given(result, {"l0": "L0"}),
        "misc_metrics": {"frac_alive": 1 - result.value("dead share")},
        "token_stats": {
            "total_tokens_eval_reconstruction": result.context["loss_tokens"],
            "total_tokens_eval_sparsity_variance": result.context["tokens"],
        },
    }
    return {name: values for name, values in metrics.items() if values}, []


def _tpp(result: SuiteResult) -> tuple[Metrics, list]:
    found: dict[str, Any] = {}
    own, others = (result.series[side]["dictionary"] for side in ("own", "others"))
    for count, mine, theirs in zip(result.series["counts"], own, others, strict=True):
        found[f"tpp_threshold_{count}_total_metric"] = mine - theirs
        found[f"tpp_threshold_{count}_intended_diff_only"] = mine
        found[f"tpp_threshold_{count}_unintended_diff_only"] = theirs
    return {"tpp_metrics": found}, []


def _scr(result: SuiteResult) -> tuple[Metrics, list]:
    """Features at zero; the direction that counts is chosen for each pair."""
    found: dict[str, Any] = {}
    counts = result.series["counts"]
    for i, count in enumerate(counts):
        for way, scores in enumerate(result.series["directions"], start=1):
            found[f"scr_dir{way}_threshold_{count}"] = scores[i]
        found[f"scr_metric_threshold_{count}"] = result.value(f"SCR, {count} features")
    details = [
        {"dataset_name": pair}
        | {
            f"scr_metric_threshold_{count}": score
            for count, score in zip(counts, said["zeroed"], strict=True)
        }
        for pair, said in result.context["pairs"].items()
    ]
    return {"scr_metrics": found}, details


def _absorption(result: SuiteResult) -> tuple[Metrics, list]:
    letters = result.series["letters"]
    mean: dict[str, Any] = {
        "mean_absorption_fraction_score": result.value("absorption fraction"),
        "mean_full_absorption_score": result.value("full absorption"),
        "mean_num_split_features": sum(o["num_split_features"] for o in letters) / len(letters),
    }
    return {"mean": mean}, letters


def _sparse_probing(result: SuiteResult) -> tuple[Metrics, list]:
    def best(of: str, column: str) -> dict[str, float]:
        names = {f"{of}_top_{k}_test_accuracy": f"balanced accuracy, k={k}" for k in (1, 2, 5)}
        return _given(result, names, column)

    dense = _given(result, {"llm_test_accuracy": "balanced accuracy"}, probing.DENSE)
    return {"llm": dense | best("llm", probing.NEURONS), "sae": best("sae", "dictionary")}, []


def _unlearning(result: SuiteResult) -> tuple[Metrics, list]:
    score = _given(result, {"unlearning_score": "unlearning score"})
    return ({"unlearning": score} if score else {}), []


def _ravel(result: SuiteResult) -> tuple[Metrics, list]:
    names = {f"{name}_score": name for name in ("disentanglement", "cause", "isolation")}
    return {"ravel": _given(result, names, ravel.NO_ERROR)}, []


_KINDS: dict[str, tuple[str, Callable[[SuiteResult], tuple[Metrics, list]]]] = {
    "reconstruction": ("core", _core),
    "tpp": ("tpp", _tpp),
    "scr": ("scr", _scr),
    "absorption": ("absorption", _absorption),
    "probing": ("sparse_probing", _sparse_probing),
    "unlearning": ("unlearning", _unlearning),
    "ravel": ("ravel", _ravel),
}
"""Suite -> SAEBench's folder, and how its metrics are made."""
