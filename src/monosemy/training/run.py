"""Train a dictionary, or a sweep of them, on a model's activations: text in, run folders out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monosemy.artefact import new_run_folder, write_text
from monosemy.coders import Dictionary, Provenance
from monosemy.coders.card import read_evaluation
from monosemy.corpus import Corpus, TokenPolicy, open_corpus
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.training.checkpoint import LATEST, PLATEAU, has_checkpoint
from monosemy.training.config import TrainConfig
from monosemy.training.grid import expand, names_of
from monosemy.training.member import decay_begins
from monosemy.training.plan import Plan, check_memory, make_plan
from monosemy.training.session import Measure, Sample, Session, Trained, write_config
from monosemy.training.tracking import Tracker, check_trackers, open_trackers

CONFIG, SWEEP = "config.json", "sweep-config.json"


@dataclass(slots=True)
class Run:
    """A trained dictionary, the model and text it came from, and how training went."""

    folder: Path | None
    lm: LM
    corpus: Corpus
    config: TrainConfig
    dictionary: Dictionary
    history: list[dict[str, float]]

    def push_to_hub(self, repo: str, *, private: bool = False) -> str:
        """Upload the dictionary with a model card; return its address.

        The card has the figures of the last evaluation, where one is in the run's folder.

        Raises:
            UserError: no right to write there, or no network.
        """
        evaluation = None if self.folder is None else read_evaluation(self.folder)
        return self.dictionary.push_to_hub(repo, private=private, evaluation=evaluation)

    def __repr__(self) -> str:
        place = f" in {self.folder}" if self.folder else ""
        return f"Run({self.dictionary!r}{place})"


def train(
    lm: LM | str,
    data: Any = "builtin:stdlib",
    hookpoint: str | None = None,
    *,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    policy: TokenPolicy | None = None,
    track: Sequence[str] = (),
    checkpoint_tokens: int | None = None,
    sample: Sample | None = None,
    measure: Measure | None = None,
    measure_tokens: int | None = None,
    profile: bool = False,
    **settings: Any,
) -> Run:
    """Train a dictionary.

    Args:
        lm: the model, or its name.
        data: a corpus, or anything `open_corpus` takes.
        hookpoint: where activations are taken; default the middle of the residual stream.
        config: settings; instead, or over them, settings of `TrainConfig` by name.
        out: folder of the run, which must not exist; None keeps the run in memory.
        policy: which tokens count; default all but special ones.
        track: beside JSON lines in the folder: `tensorboard`, `wandb`, `trackio`.
        checkpoint_tokens: tokens between checkpoints in the folder; default: five minutes.
        sample: makes a page of a half-trained dictionary, four times on the way, for the trackers.
        measure: takes figures of a half-trained dictionary, given it and the tokens so far; they
            are logged with the others.
        measure_tokens: tokens between measurements; default: a quarter of the run.
        profile: say in the end which share of the time text, model and training took.
        settings: fields of `TrainConfig`.

    Raises:
        UserError: a setting, hook point, model or text that cannot work, or too little memory.
    """
    check_trackers(track)
    lm = lm if isinstance(lm, LM) else LM(lm)
    corpus = open_corpus(data)
    (plan,) = make_plans(lm, corpus, [hookpoint], [settings_of(config, settings)], policy, out)
    return _train(
        lm,
        corpus,
        [plan],
        plan.folder,
        track,
        checkpoint_tokens,
        sample,
        measure=measure,
        measure_tokens=measure_tokens,
        profile=profile,
    )[0]


def sweep(
    lm: LM | str,
    data: Any = "builtin:stdlib",
    hookpoints: Sequence[str | None] = (None,),
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    policy: TokenPolicy | None = None,
    track: Sequence[str] = (),
    checkpoint_tokens: int | None = None,
    **settings: Any,
) -> list[Run]:
    """Train many dictionaries on one pass of the model.

    Args:
        lm: the model, or its name.
        data: a corpus, or anything `open_corpus` takes.
        hookpoints: where activations are taken.
        grid: settings that vary, each with its values, such as {"k": [16, 32], "seed": [0, 1]};
            every combination is trained, at every hook point. k is for the architectures that
            have it, target_l0 for the others.
        config: settings that do not vary; instead, or over them, by name.
        out: folder that gets a run folder for each dictionary; None keeps them in memory.
        policy: which tokens count; default all but special ones.
        track: as for `train`.
        checkpoint_tokens: as for `train`.
        settings: fields of `TrainConfig`.

    Raises:
        UserError: as `train`.
    """
    check_trackers(track)
    lm = lm if isinstance(lm, LM) else LM(lm)
    corpus = open_corpus(data)
    configs = expand(settings_of(config, settings), grid or {})
    plans = make_plans(lm, corpus, hookpoints, configs, policy, out, many=True)
    folder = Path(out) if out is not None else None
    return _train(lm, corpus, plans, folder, track, checkpoint_tokens)


def resume(
    folder: str | Path,
    lm: LM | None = None,
    data: Any = None,
    *,
    extend: int | None = None,
    disk_budget: str | int | None = None,
    track: Sequence[str] = (),
    checkpoint_tokens: int | None = None,
    sample: Sample | None = None,
) -> list[Run]:
    """Go on with a run or sweep that was interrupted, or train a finished one on more tokens.

    An interrupted run ends with the very dictionary it would have had. Extending goes back to
    where the learning rate began to fall, trains on at its peak, and lets it fall over the last
    fifth of the new total; warm-up, annealing and the path of target L0 stay where they were.

    Args:
        folder: of the run or sweep.
        lm: the model; default the one named in the folder.
        data: the text; default the one named in the folder.
        extend: tokens to train on in all.
        disk_budget: as for `open_corpus`; a run does not remember it, as the text is the same.
        track: as for `train`.
        checkpoint_tokens: as for `train`.
        sample: as for `train`.

    Raises:
        UserError: there is nothing to go on from, or the text or model is not to be had.
    """
    check_trackers(track)
    folder = Path(folder)
    plans = _read_plans(folder)
    first = plans[0].provenance
    lm = lm or LM(first.model, revision=first.revision)
    corpus = _corpus_again(first, data, disk_budget)
    if extend is not None:
        plans = [_extended(plan, extend) for plan in plans]
        if not has_checkpoint(folder, PLATEAU):
            raise UserError(
                f"`{folder}` cannot be extended: it has no checkpoint from before its learning "
                "rate fell",
                "it was not trained that far yet, or the checkpoint was removed",
            )
    elif not has_checkpoint(folder, LATEST):
        done = (plans[0].folder or folder) / "dictionary"
        raise UserError(
            f"`{folder}` has no checkpoint to go on from",
            f"it is finished: add tokens with --extend, more than {plans[0].config.tokens:,}"
            if done.is_dir()
            else "it was stopped before its first checkpoint: train it again",
        )
    return _train(lm, corpus, plans, folder, track, checkpoint_tokens, sample, extend is not None)


def open_lm(folder: str | Path) -> LM:
    """Load the model of a run or sweep, as far as training it needs.

    Raises:
        UserError: the folder is no run's, or its model is not to be had.
    """
    plans = _read_plans(Path(folder))
    origins = [plan.provenance for plan in plans]
    asks_all = any(plan.config.objective != "mse" for plan in plans)
    points = [name for origin in origins for name in (origin.hookpoint, origin.explains)]
    return LM(origins[0].model, revision=origins[0].revision, upto=None if asks_all else points)


def make_plans(
    lm: LM,
    corpus: Corpus,
    hookpoints: Sequence[str | None],
    configs: Sequence[TrainConfig],
    policy: TokenPolicy | None,
    out: str | Path | None,
    many: bool = False,
) -> list[Plan]:
    """Resolve everything that is to be trained, and check that it can be.

    Raises:
        UserError: something cannot work, or will not fit memory.
    """
    points = [lm.hookpoint(point or middle(lm)).name for point in hookpoints]
    pairs = [(point, config) for point in points for config in configs]
    names = names_of(pairs) if many else [""]
    plans = [
        make_plan(
            lm,
            corpus,
            point,
            config,
            policy or TokenPolicy(),
            name=name,
            folder=Path(out) / name if out is not None else None,
        )
        for (point, config), name in zip(pairs, names, strict=True)
    ]
    check_memory(plans, lm.device)
    return plans


def middle(lm: LM) -> str:
    """Return the hook point in the middle of the residual stream."""
    return f"layers.{lm.n_layers // 2}"


def settings_of(config: TrainConfig | None, settings: Mapping[str, Any]) -> TrainConfig:
    """Return a configuration with some settings replaced.

    Raises:
        UserError: an unknown setting, or values that cannot work.
    """
    base = config.to_dict() if config else {}
    return TrainConfig.from_dict({**base, **settings})


def _train(
    lm: LM,
    corpus: Corpus,
    plans: Sequence[Plan],
    folder: Path | None,
    track: Sequence[str],
    checkpoint_tokens: int | None,
    sample: Sample | None = None,
    extend: bool = False,
    measure: Measure | None = None,
    measure_tokens: int | None = None,
    profile: bool = False,
) -> list[Run]:
    corpus.check("train", "held_out")
    going_on = folder is not None and (has_checkpoint(folder) or extend)
    if folder is not None and not going_on:
        new_run_folder(folder)
    trackers: list[list[Tracker]] = []
    try:
        if folder is not None:
            _write_configs(folder, plans)
            if extend:
                _drop_measurements(plans)
            for plan in plans:
                assert plan.folder is not None
                config = plan.provenance.to_dict()
                name = plan.folder.resolve().name
                trackers.append(open_trackers(track, plan.folder, config, name))
        session = Session(
            lm,
            corpus,
            plans,
            folder=folder,
            trackers=trackers,
            checkpoint_tokens=checkpoint_tokens,
            extend=extend,
            sample=sample,
            measure=measure,
            measure_tokens=measure_tokens,
            profile=profile,
        )
        try:
            trained = session.run()
        finally:
            session.close()
    except BaseException:
        if folder is not None and not going_on and not has_checkpoint(folder):
            shutil.rmtree(folder)  # made above, and nothing in it to go on from
        raise
    finally:
        for tracker in (t for some in trackers for t in some):
            tracker.close()
    return [_run(one, lm, corpus) for one in trained]


def _run(trained: Trained, lm: LM, corpus: Corpus) -> Run:
    plan = trained.plan
    return Run(plan.folder, lm, corpus, plan.config, trained.dictionary, trained.history)


def _write_configs(folder: Path, plans: Sequence[Plan]) -> None:
    for plan in plans:
        write_config(plan)
    if plans[0].folder != folder:
        names = {"runs": [plan.name for plan in plans]}
        write_text(folder / SWEEP, json.dumps(names, indent=2) + "\n")


def _drop_measurements(plans: Sequence[Plan]) -> None:
    """Remove what was measured on dictionaries that are about to be replaced."""
    for folder in (plan.folder for plan in plans if plan.folder is not None):
        shutil.rmtree(folder / "features", ignore_errors=True)
        for pattern in ("metrics*.json", "evaluation*.html", "stability.json", "report.html"):
            for path in folder.glob(pattern):
                path.unlink()


def _read_plans(folder: Path) -> list[Plan]:
    names = [""]
    if (folder / SWEEP).is_file():
        names = json.loads((folder / SWEEP).read_text("utf-8"))["runs"]
    return [_read_plan(folder / name, name) for name in names]


def seeds_beside(folder: str | Path) -> list[Path]:
    """Return the finished runs of the same sweep that differ from this run in the seed alone.

    Raises:
        UserError: the sweep's folder cannot be read.
    """
    folder = Path(folder).resolve()
    if not (folder.parent / SWEEP).is_file():
        return []
    plans = {plan.name: plan for plan in _read_plans(folder.parent)}
    mine = plans.pop(folder.name, None)
    return [
        folder.parent / name
        for name, plan in plans.items()
        if mine is not None
        and plan.provenance.hookpoint == mine.provenance.hookpoint
        and replace(plan.config, seed=mine.config.seed) == mine.config
        and (folder.parent / name / "dictionary").is_dir()
    ]


def _read_plan(folder: Path, name: str) -> Plan:
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"`{folder}` is not a run's folder: it has no {CONFIG}", "check the path")
    try:
        values = json.loads(path.read_text("utf-8"))
        sizes = values.pop("sizes")
        provenance = Provenance.from_dict(values)
        config = TrainConfig.from_dict(provenance.training)
        return Plan(name, folder, config, provenance, sizes["d_in"], sizes["d_out"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"`{path}` cannot be read: {error}",
            "it was edited or made by a different version; train again",
        ) from error


def _corpus_again(provenance: Provenance, data: Any, disk_budget: str | int | None) -> Corpus:
    if data is not None:
        return open_corpus(data, disk_budget=disk_budget)
    if not provenance.corpus or provenance.corpus["source"].startswith("python:"):
        raise UserError(
            "this run was trained on text held in memory, which is gone", "give it with `data`"
        )
    return open_corpus(**provenance.corpus, disk_budget=disk_budget)


def _extended(plan: Plan, tokens: int) -> Plan:
    if tokens <= plan.config.tokens:
        raise UserError(
            f"extend is {tokens:,} tokens, but this run has {plan.config.tokens:,} already",
            "give the new total, a larger number",
        )
    config = replace(plan.config, tokens=tokens)
    provenance = replace(plan.provenance, training=config.to_dict())
    return replace(plan, config=config, provenance=provenance)


def describe_extension(folder: str | Path, tokens: int) -> str:
    """Say what extending a run does to its schedule.

    Raises:
        UserError: the folder is no run's, or already has so many tokens.
    """
    old = _read_plans(Path(folder))[0]
    new = _extended(old, tokens)
    start = decay_begins(old.config.steps) * old.config.batch
    fall = decay_begins(new.config.steps) * new.config.batch
    return (
        f"goes back to token {start:,}, where the learning rate was still at its peak; keeps it "
        f"there up to {fall:,} and lets it fall to zero at {tokens:,}. The old fall, and what was "
        "learned in it, is done anew."
    )
