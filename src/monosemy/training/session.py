"""One pass over text that trains any number of dictionaries, and can be gone on with."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monosemy.activations import (
    Harvest,
    LiveActivations,
    Recipe,
    Statistics,
    Store,
    check_text,
    require_precision,
)
from monosemy.artefact import MANIFEST, write_text
from monosemy.coders import BatchTopK, Dictionary, Fingerprint, SparseCoder
from monosemy.coders.select import Scorer
from monosemy.corpus import Corpus
from monosemy.device import fix_threads
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.metrics import Activity
from monosemy.progress import Stages, Task
from monosemy.training.checkpoint import (
    LATEST,
    PLATEAU,
    drop_checkpoint,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from monosemy.training.control import Controller
from monosemy.training.diagnosis import Watch
from monosemy.training.feed import Batch, Feed, ModelJudge, PoolFeed, StoreFeed, TextFeed
from monosemy.training.geometry import geometric_median, start_from_data
from monosemy.training.member import Member, StepFigures, decay_begins
from monosemy.training.plan import Plan
from monosemy.training.tracking import Tracker

STATISTICS_TOKENS = 32_768
HELD_OUT_TOKENS = 65_536
"""Held-out tokens on which each feature's strength, and L0, are measured: no more than were trained
on, or a short run would end with a long wait."""
CHECKPOINT_SECONDS = 300.0
"""Between checkpoints, where no number of tokens is given."""
THRESHOLD_BATCHES = 8
START_ABOVE = 2.0
"""Times its target L0 that training starts at where a controller brings it down."""
QUADRATIC_WEIGHT = 1.0
"""Of JumpReLU's quadratic penalty, beside a loss of mean squared error over d."""

Sample = Callable[[Dictionary, int], str]
"""A page about a half-trained dictionary, and tokens so far."""
Measure = Callable[[Dictionary, int], Mapping[str, float]]
"""Figures of a half-trained dictionary, and tokens so far."""


@dataclass(slots=True)
class Trained:
    """What training one plan gave."""

    plan: Plan
    dictionary: Dictionary
    history: list[dict[str, float]]


class Session:
    """Trains the coders of several plans on one stream of activations.

    Args:
        lm: the model.
        corpus: the text.
        plans: what to train; text, batch and pool are the first one's.
        folder: of checkpoints; None keeps everything in memory.
        trackers: for each plan, where its figures go.
        checkpoint_tokens: tokens between checkpoints; None: five minutes.
        extend: go on from where the learning rate began to fall, to this many tokens.
        sample: makes a page of a half-trained dictionary.
        measure: takes figures of a half-trained dictionary, which are logged with the others.
        measure_tokens: tokens between measurements; None: a quarter of the run.
        profile: say in the end what took the time.
    """

    def __init__(
        self,
        lm: LM,
        corpus: Corpus,
        plans: Sequence[Plan],
        *,
        folder: Path | None = None,
        trackers: Sequence[Sequence[Tracker]] = (),
        checkpoint_tokens: int | None = None,
        extend: bool = False,
        sample: Sample | None = None,
        measure: Measure | None = None,
        measure_tokens: int | None = None,
        profile: bool = False,
    ) -> None:
        fix_threads()
        waits = profile and lm.device.type == "cuda"
        self.stages = Stages(partial(torch.cuda.synchronize, lm.device) if waits else None)
        self.profile = profile
        self.lm, self.corpus, self.plans, self.folder = lm, corpus, list(plans), folder
        self.trackers = [list(t) for t in trackers] or [[] for _ in plans]
        self.checkpoint_tokens, self.sample = checkpoint_tokens, sample
        self.measure, self.measure_tokens = measure, measure_tokens
        self.config = self.plans[0].config
        state = None
        self._harvest: Harvest | None = None
        if folder is not None:
            state = load_checkpoint(folder, PLATEAU if extend else LATEST)
        self.began, self.spent = time.monotonic(), state["seconds"] if state else 0.0
        self.tokens: int = state["tokens"] if state else 0
        self.feed = self._feed(state["feed"] if state else None)
        self.statistics = self._statistics(state)
        self.members = self._members(state)
        self.histories: list[list[dict[str, float]]] = (
            state["histories"] if state else [[] for _ in self.plans]
        )
        self.watches = [
            Watch(member, plan.config.steps)
            for member, plan in zip(self.members, self.plans, strict=True)
        ]
        self._saved_at, self._saved_tokens = time.monotonic(), self.tokens
        self._rewind()

    def run(self) -> list[Trained]:
        """Take every step that is left, then finish the dictionaries.

        Raises:
            UserError: training cannot go on; Stopped: it was asked to stop, and saved.
        """
        total = max(plan.config.steps for plan in self.plans) * self.config.batch
        with Task("train", total) as task, stop_requests(self.folder is not None) as stop:
            task.advance(self.tokens)
            while any(member.step_count < member.end for member in self.members):
                self._keep(stop)
                before = self.tokens
                batch = next(self.feed)
                with self.stages("training"):
                    self._step(batch, task)
                task.advance(self.tokens - before, self._note())
            if self.profile:
                task.say(self.stages.told())
        return self._finish()

    # --- setting up ---------------------------------------------------------------------------

    def _feed(self, state: Mapping[str, Any] | None) -> Feed:
        plan = self.plans[0]
        points = list(
            dict.fromkeys(
                name
                for p in self.plans
                for name in (p.provenance.hookpoint, p.provenance.target)
                if name is not None
            )
        )
        c = self.config
        recipe = replace(
            plan.provenance.recipe(seed=c.seed),
            hookpoints=tuple(points),
            autocast=bool(c.autocast),
        )
        if c.objective != "mse":
            text = replace(recipe, tokens_at_once=c.batch).stream(self.lm, self.corpus, None)
            return TextFeed(self.lm, text, points, state=state)
        if c.store is not None:
            store, grow = self._store(Path(c.store), recipe)
            return StoreFeed(
                store,
                grow,
                points,
                device=self.lm.device,
                size=c.pool,
                batch=c.batch,
                seed=c.seed,
                stages=self.stages,
                state=state,
            )
        text = recipe.stream(self.lm, self.corpus, None)
        return PoolFeed(
            self.lm,
            text,
            points,
            size=c.pool,
            batch=c.batch,
            seed=c.seed,
            autocast=recipe.autocast,
            stages=self.stages,
            state=state,
        )

    def _store(self, folder: Path, recipe: Recipe) -> tuple[Store, Callable[[int], None] | None]:
        """Open stored activations, to be added to only where they do not suffice."""
        steps = max(plan.config.steps for plan in self.plans)
        tokens = self.config.pool + (steps + THRESHOLD_BATCHES) * self.config.batch
        if (folder / MANIFEST).is_file():
            store = Store(folder)
            if store.recipe is not None and len(store) >= tokens:
                store.recipe.require(recipe, str(folder))
                check_text(store, self.lm, self.corpus)
                require_precision(store, self.config.precision)
                return store, None
        self._harvest = Harvest(
            self.lm, self.corpus, recipe, folder, tokens=tokens, precision=self.config.precision
        )
        return self._harvest.store, self._harvest.grow

    def close(self) -> None:
        """Let go of the store, so that others can write there."""
        if self._harvest is not None:
            self._harvest.close()

    def _statistics(self, state: Mapping[str, Any] | None) -> dict[str, Statistics]:
        if state:
            return {name: Statistics(**values) for name, values in state["statistics"].items()}
        sample = self.feed.sample(STATISTICS_TOKENS)
        return {name: Statistics.of([x], whiten=self.config.whiten) for name, x in sample.items()}

    def _members(self, state: Mapping[str, Any] | None) -> list[Member]:
        scorer = Scorer(self.lm.device)
        sample = {} if state else self._normal(self.feed.sample(STATISTICS_TOKENS))
        members = []
        for number, plan in enumerate(self.plans):
            coder = plan.make_coder().to(self.lm.device)
            coder.target_l0 = plan.config.l0
            if not state:
                start_coder(coder, plan, sample)
            colour = self.statistics[plan.provenance.explains].colour
            member = make_member(coder, plan, scorer, colour)
            if state:
                member.load_state_dict(state["members"][number])
                member.end = plan.config.steps
            members.append(member)
        return members

    def _normal(self, activations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return activations centred and scaled."""
        return {name: self.statistics[name].apply(x) for name, x in activations.items()}

    def _rewind(self) -> None:
        """Drop what was logged after the checkpoint that training goes on from."""
        for trackers in self.trackers:
            for tracker in trackers:
                tracker.rewind(self.tokens)

    # --- steps --------------------------------------------------------------------------------

    def _step(self, batch: Batch, task: Task) -> None:
        normal = self._normal(batch.activations)
        n_tokens = len(next(iter(normal.values())))
        self.tokens += n_tokens
        for number, (member, plan) in enumerate(zip(self.members, self.plans, strict=True)):
            if member.step_count >= member.end:
                continue
            x = normal[plan.provenance.hookpoint]
            y = normal[plan.provenance.target] if plan.provenance.target else None
            figures = member.step(x, y, self._judge(plan, batch))
            self._log(number, figures, task)

    def _judge(self, plan: Plan, batch: Batch) -> Callable[[Tensor], Tensor] | None:
        if plan.config.objective == "mse" or batch.text is None:
            return None
        name = plan.provenance.explains
        statistics = self.statistics[name]
        judge = ModelJudge(self.lm, name, plan.config.objective, batch.text)
        return lambda output: judge(statistics.undo(output))

    def _log(self, number: int, figures: StepFigures, task: Task) -> None:
        member = self.members[number]
        for finding in self.watches[number].update(figures, self.tokens):
            where = f"{self.plans[number].name}: " if self.plans[number].name else ""
            task.say(f"{where}{finding.cause}: {finding.explanation}; {finding.advice}")
            if finding.stop:
                raise UserError(f"{where}{finding.explanation}", f"{finding.advice}{self._kept()}")
        every = max(member.end // 200, 1)
        measured = self._measured(number)
        if member.step_count % every == 0 or member.step_count == member.end or measured:
            line = {"tokens": self.tokens, "step": member.step_count, **asdict(figures), **measured}
            self.histories[number].append(line)
            for tracker in self.trackers[number]:
                tracker.log(line, self.tokens)
        if self.sample and member.step_count % max(member.end // 4, 1) == 0:
            page = self.sample(self._snapshot(number), self.tokens)
            for tracker in self.trackers[number]:
                tracker.html("features", page, self.tokens)

    def _measured(self, number: int) -> Mapping[str, float]:
        """Return a half-trained dictionary's own figures, where they are due."""
        member = self.members[number]
        every = member.end // 4
        if self.measure_tokens is not None:
            every = self.measure_tokens // self.config.batch
        if self.measure is None or member.step_count % max(every, 1):
            return {}
        return self.measure(self._snapshot(number), self.tokens)

    def _note(self) -> str:
        last = [history[-1] for history in self.histories if history]
        if not last:
            return ""
        if len(self.plans) > 1:
            fvus = [line["fvu"] for line in last]
            return f"{len(self.plans)} coders, FVU {min(fvus):.3f} to {max(fvus):.3f}"
        line = last[0]
        return (
            f"loss {line['loss']:.3f}  FVU {line['fvu']:.3f}  L0 {line['l0']:.0f}  "
            f"dead {line['dead_share']:.1%}"
        )

    # --- checkpoints --------------------------------------------------------------------------

    def _keep(self, stop: Callable[[], str | None]) -> None:
        """Save the state where that is due; leave if asked to."""
        if self.folder is None:
            return
        asked = stop()
        if self.checkpoint_tokens is not None:
            due = self.tokens - self._saved_tokens >= self.checkpoint_tokens
        else:
            due = time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS
        if due or asked:
            self._save(LATEST)
        if all(member.step_count == decay_begins(member.end) for member in self.members):
            self._save(PLATEAU)
        if asked:
            raise Stopped(
                f"stopped by {asked} after {self.tokens:,} tokens; everything is saved",
                f"go on with: monosemy resume {self.folder}",
            )

    def _save(self, name: str) -> None:
        assert self.folder is not None
        save_checkpoint(self.folder, name, self.state_dict())
        self._saved_at, self._saved_tokens = time.monotonic(), self.tokens

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes as training goes on."""
        return {
            "tokens": self.tokens,
            "seconds": self._seconds(),
            "feed": self.feed.state_dict(),
            "statistics": {name: asdict(s) for name, s in self.statistics.items()},
            "members": [member.state_dict() for member in self.members],
            "histories": self.histories,
        }

    def _seconds(self) -> float:
        return self.spent + time.monotonic() - self.began

    def _kept(self) -> str:
        if self.folder is not None and has_checkpoint(self.folder):
            return f"; the last checkpoint stays, go on from it with: monosemy resume {self.folder}"
        return ""

    # --- the end ------------------------------------------------------------------------------

    def _finish(self) -> list[Trained]:
        seconds = self._seconds()
        batches = [self._normal(next(self.feed).activations) for _ in range(THRESHOLD_BATCHES)]
        coders = []
        for plan, member in zip(self.plans, self.members, strict=True):
            member.finish()
            sample = [batch[plan.provenance.hookpoint] for batch in batches]
            coders.append(self._finished(member.coder, plan, sample))
        activities = self._held_out(coders, tokens=min(HELD_OUT_TOKENS, self.tokens))
        trained = [
            self._dictionary(plan, coder, history, activity, seconds)
            for plan, coder, history, activity in zip(
                self.plans, coders, self.histories, activities, strict=True
            )
        ]
        for one in trained:
            if one.plan.folder is not None:
                one.dictionary.save_pretrained(one.plan.folder / "dictionary")
        if self.folder is not None:
            drop_checkpoint(self.folder, LATEST)
        return trained

    def _finished(self, coder: SparseCoder, plan: Plan, sample: Sequence[Tensor]) -> SparseCoder:
        """Set what inference needs, then fold norms, centre and scale in."""
        origin = self.statistics[plan.provenance.hookpoint]
        target = self.statistics[plan.provenance.explains]
        finish_coder(coder, sample, origin, target)
        return coder

    def _snapshot(self, number: int) -> Dictionary:
        """Return a half-trained coder as a dictionary of its own, without strengths."""
        plan = self.plans[number]
        coder = plan.make_coder().to(self.lm.device)
        coder.load_state_dict(self.members[number].coder.state_dict())
        sample = self._normal(self.feed.sample(4 * self.config.batch))
        rows = sample[plan.provenance.hookpoint].split(self.config.batch)
        coder = self._finished(coder, plan, rows)
        activity = self._held_out([coder], [plan], self.config.batch * 8)[0]
        return self._dictionary(plan, coder, [], activity, self._seconds()).dictionary

    def _held_out(
        self,
        coders: Sequence[SparseCoder],
        plans: Sequence[Plan] | None = None,
        tokens: int = HELD_OUT_TOKENS,
    ) -> list[Activity]:
        """Return how often, and how strongly, features fire on held-out text: one pass for all."""
        plans = plans or self.plans
        points = list(dict.fromkeys(plan.provenance.hookpoint for plan in plans))
        stream = plans[0].provenance.stream(self.lm, self.corpus, "held_out")
        activities = [Activity(coder.width) for coder in coders]
        with Task("held out", tokens) as task, torch.no_grad():
            for values in LiveActivations(self.lm, stream, points):
                for coder, plan, activity in zip(coders, plans, activities, strict=True):
                    x = values[plan.provenance.hookpoint]
                    code = coder.encode_sparse(x)
                    activity.update(code.values, code.indices, len(x))
                task.advance(len(values[points[0]]))
                if activities[0].n_tokens >= tokens:
                    break
        return activities

    def _dictionary(
        self,
        plan: Plan,
        coder: SparseCoder,
        history: list[dict[str, float]],
        activity: Activity,
        seconds: float,
    ) -> Trained:
        origin = self.statistics[plan.provenance.hookpoint]
        target = self.statistics[plan.provenance.target] if plan.provenance.target else None
        figures = {
            "seconds": round(seconds, 1),
            "final": history[-1] if history else {},
            "offset": origin.offset,
            "held_out": {
                "tokens": activity.n_tokens,
                "l0": activity.l0,
                "dead_share": activity.dead_share,
            },
        }
        provenance = replace(plan.provenance, training=plan.provenance.training | figures)
        dictionary = Dictionary(
            coder,
            provenance,
            activity.max,
            origin.mean,
            origin.scale,
            Fingerprint.record(self.lm, coder, provenance, self.corpus),
            target_mean=target.mean if target else None,
            target_scale=target.scale if target else None,
        )
        return Trained(plan, dictionary, history)


class Stopped(UserError):
    """Training was asked to stop, and saved what it had."""


def make_member(
    coder: SparseCoder, plan: Plan, scorer: Scorer, colour: Tensor | None = None
) -> Member:
    """Return a coder ready to take steps as a plan says; `colour` as for `Member`."""
    config = plan.config
    weight: float | Controller = 0.0
    if config.held_by_itself:
        weight = (config.penalty or QUADRATIC_WEIGHT) * coder.d_out
    elif config.penalty is not None:
        weight = config.penalty
    elif not config.has_k:
        weight = Controller(target=config.l0, steps=config.steps)
    return Member(
        coder,
        lr=config.learning_rate(plan.width),
        steps=config.steps,
        dead_after=config.dead_after,
        weight=weight,
        revival=config.revive,
        ema=config.ema,
        clamp=config.clamp,
        colour=colour,
        scorer=scorer,
    )


def start_coder(
    coder: SparseCoder, plan: Plan, sample: Mapping[str, Tensor], above: float | None = None
) -> None:
    """Set a coder's first weights as far as they come from data.

    Args:
        coder: set in place.
        plan: what it was made for.
        sample: centred and scaled activations by hook point.
        above: times its L0 that it starts with, where a penalty decides.
    """
    x, y = sample[plan.provenance.hookpoint], sample[plan.provenance.explains]
    if plan.config.init == "data":
        start_from_data(coder, x, y, plan.config.l0, plan.config.seed)
    if plan.config.centre == "median":
        with torch.no_grad():
            coder.b_dec.copy_(geometric_median(y))
    if above is None:
        above = 1.0 if plan.config.held_by_itself else START_ABOVE
    coder.start(x, min(above * plan.config.l0, coder.width / 2))
    coder.constrain()


def finish_coder(
    coder: SparseCoder, sample: Iterable[Tensor], origin: Statistics, target: Statistics
) -> None:
    """Set what inference needs: unit norms, BatchTopK's threshold, the model's own scale.

    Args:
        coder: set in place.
        sample: batches of inputs, centred and scaled.
        origin: what inputs were centred and scaled by.
        target: the same of what is explained.
    """
    if not coder.unit_norm:
        coder.fold_norms()
    if isinstance(coder, BatchTopK):
        coder.set_threshold(sample)
    if origin.whiten is None or target.colour is None:
        coder.fold(origin.mean, origin.scale, target.mean, target.scale)
    else:
        coder.unwhiten(origin.whiten, target.colour)
        coder.fold(origin.mean, 1.0, target.mean, 1.0)
    coder.eval().requires_grad_(False)


@contextmanager
def stop_requests(enabled: bool) -> Iterator[Callable[[], str | None]]:
    """Turn SIGTERM and SIGINT into a request that is looked at between steps."""
    asked: list[str] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def ask(number: int, frame: object) -> None:
        if asked and number == signal.SIGINT:  # a second Ctrl-C will not wait
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked[0] if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_config(plan: Plan) -> None:
    """Write a plan's resolved configuration into its run folder."""
    assert plan.folder is not None
    sizes = {"d_in": plan.d_in, "d_out": plan.d_out}
    text = json.dumps({**plan.provenance.to_dict(), "sizes": sizes}, indent=2) + "\n"
    write_text(plan.folder / "config.json", text)
