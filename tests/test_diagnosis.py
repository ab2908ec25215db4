"""Findings on simulated runs, healthy and not, and on small real ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monosemy.coders import make_coder
from monosemy.training.control import HIGHEST, LOWEST, Controller
from monosemy.training.diagnosis import Finding, Watch
from monosemy.training.member import Member, StepFigures

TARGET = 32.0
BATCH = 1000


def member(steps: int, architecture: str = "topk", controlled: bool = False, **options) -> Member:
    weight = Controller(target=TARGET, steps=steps) if controlled else 0.0
    coder = make_coder(architecture, 8, 64, **options)
    return Member(coder, lr=1e-3, steps=steps, dead_after=steps * BATCH // 10, weight=weight)


class Simulated:
    """A run's figures as they would be, to be made worse: changed(step, figures)."""

    def __init__(self, member: Member, seed: int = 0, noise: float = 0.03) -> None:
        self.member, self.noise, self.random = member, noise, random.Random(seed)

    def around(self, value: float) -> float:
        return value * math.exp(self.random.gauss(0, self.noise))

    def figures(self, step: int) -> StepFigures:
        """A noisy decline; L0 a little behind what is asked for; dead features that come back."""
        share, controller = step / self.member.steps, self.member.controller
        fvu = self.around(0.1 + 0.9 * math.exp(-20 * share))
        l0 = 8.0
        if controller is not None:
            l0 = controller.asked() if controller.step_count else 4 * TARGET
            l0 = self.around(l0 * (1.05 if share < 0.9 else 1.0))
        since_counted = share - 0.1
        dead = 0.0 if since_counted < 0 else 0.25 * math.exp(-40 * since_counted)
        return StepFigures(
            loss=fvu + dead / 32,
            fvu=fvu,
            l0=l0,
            dead_share=dead,
            weight=controller.weight if controller else 0.0,
            gradient=self.around(0.5),
        )

    def run(self, changed: Callable[[int, StepFigures], StepFigures] | None = None) -> list:
        """All that is found, with its step."""
        return list(self.found(changed))

    def found(
        self, changed: Callable[[int, StepFigures], StepFigures] | None
    ) -> Iterator[tuple[int, Finding]]:
        watch = Watch(self.member, self.member.steps)
        for step in range(1, self.member.steps + 1):
            figures = self.figures(step)
            if changed is not None:
                figures = changed(step, figures)
            self.member.step_count = step
            if self.member.controller is not None:
                self.member.controller.update(figures.l0)
            for finding in watch.update(figures, step * BATCH):
                yield step, finding


def with_(figures: StepFigures, **values: float) -> StepFigures:
    names = ("loss", "fvu", "l0", "dead_share", "weight", "gradient")
    return StepFigures(**{**{name: getattr(figures, name) for name in names}, **values})


def is_told(finding: Finding, *parts: str) -> None:
    """The explanation holds these numbers, and there is advice."""
    for part in parts:
        assert part in finding.explanation, finding
    assert any(word in finding.advice for word in ("lr", "target_l0", "width", "bandwidth"))
    assert str(finding) == f"{finding.cause}: {finding.explanation}; {finding.advice}"


@given(
    steps=st.sampled_from([1, 5, 40, 200, 1500]),
    noise=st.floats(0, 0.12),
    seed=st.integers(0, 1000),
    controlled=st.booleans(),
)
@settings(max_examples=25)
def test_a_healthy_run_yields_nothing(
    steps: int, noise: float, seed: int, controlled: bool
) -> None:
    healthy = member(steps, "gated" if controlled else "topk", controlled)
    assert Simulated(healthy, seed, noise).run() == []


def test_thresholds_that_move_yield_nothing() -> None:
    simulated = Simulated(member(400, "jumprelu", controlled=True))

    def moving(step: int, figures: StepFigures) -> StepFigures:
        with torch.no_grad():
            simulated.member.coder.log_threshold[3] += 1e-4
        return with_(figures, l0=60.0 if step < 200 else figures.l0)

    assert simulated.run(moving) == []


@pytest.mark.parametrize("steps", [60, 400, 2000])
def test_a_loss_spike_is_said_once(steps: int) -> None:
    def spike(step: int, figures: StepFigures) -> StepFigures:
        times = 5.0 if steps // 2 <= step < steps // 2 + 3 else 1.0
        return with_(figures, loss=figures.loss * times, fvu=figures.fvu * times)

    ((step, finding),) = Simulated(member(steps)).run(spike)
    assert step == steps // 2
    assert finding.cause == "loss spike"
    assert not finding.stop
    is_told(finding, f"step {step:,}", f"{step * BATCH:,} tokens", "times its own")


def test_a_loss_that_only_gains_a_term_is_no_spike() -> None:
    def auxiliary(step: int, figures: StepFigures) -> StepFigures:
        small = with_(figures, fvu=figures.fvu / 20, loss=figures.loss / 20)
        return with_(small, loss=small.loss + (1 / 32 if step > 100 else 0))

    assert Simulated(member(400)).run(auxiliary) == []


def test_scattered_losses_are_no_spikes() -> None:
    """Three times the median now and then, where half the losses lie far from it."""

    def scattered(step: int, figures: StepFigures) -> StepFigures:
        times = (0.6, 1.4, 1.0, 3.2, 0.5, 1.6)[step % 6]
        return with_(figures, loss=figures.loss * times, fvu=figures.fvu * times)

    assert Simulated(member(400)).run(scattered) == []


@pytest.mark.parametrize("name", ["loss", "fvu", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_a_number_stops_the_run(name: str, value: float) -> None:
    def broken(step: int, figures: StepFigures) -> StepFigures:
        return with_(figures, **{name: value}) if step == 20 else figures

    ((step, finding),) = Simulated(member(40)).run(broken)
    assert (step, finding.cause, finding.stop) == (20, "NaN", True)
    is_told(finding, f"is {value}", "step 20")


@pytest.mark.parametrize("steps", [60, 400, 2000])
def test_dead_features_that_rise(steps: int) -> None:
    def dying(step: int, figures: StepFigures) -> StepFigures:
        return with_(figures, dead_share=min(0.8 * step / steps, 0.4))

    found = Simulated(member(steps)).run(dying)
    assert [finding.cause for _, finding in found] == ["dead features rising"]
    step, finding = found[0]
    assert step < steps // 4
    is_told(finding, "of 64 features", f"{steps * BATCH // 10:,} tokens")
    assert "a larger k" in finding.advice


def test_a_first_count_that_stays_is_a_rise_and_advice_knows_how_they_are_revived() -> None:
    dead = member(400)
    dead.revival = "none"

    def jump(step: int, figures: StepFigures) -> StepFigures:
        return with_(figures, dead_share=0.5 if step > 40 else 0.0)

    ((step, finding),) = Simulated(dead).run(jump)
    assert 45 <= step <= 60
    assert finding.cause == "dead features rising"
    assert finding.advice.startswith("revive them with auxk")


def test_a_cause_that_comes_back_is_said_again() -> None:
    def waves(step: int, figures: StepFigures) -> StepFigures:
        wave = {200: 0.3, 600: 0.3}.get(step // 100 * 100, 0.0)
        return with_(figures, dead_share=wave)

    found = Simulated(member(1000)).run(waves)
    assert [(f.cause, s // 100 * 100) for s, f in found] == [
        ("dead features rising", 200),
        ("dead features rising", 600),
    ]


@pytest.mark.parametrize("steps", [100, 400, 2000])
def test_thresholds_that_do_not_move_while_sparsity_asks(steps: int) -> None:
    def stuck(step: int, figures: StepFigures) -> StepFigures:
        return with_(figures, l0=130.0)

    found = Simulated(member(steps, "jumprelu", controlled=True)).run(stuck)
    causes = [finding.cause for _, finding in found]
    assert causes.count("threshold not moving") == 1
    step, finding = next(x for x in found if x[1].cause == "threshold not moving")
    assert step <= steps // 4
    is_told(finding, "L0 is 130.0", "asked for")
    assert "bandwidth, which is 0.5" in finding.advice


def test_thresholds_may_rest_where_nothing_is_asked() -> None:
    def on_target(step: int, figures: StepFigures) -> StepFigures:
        return with_(figures, l0=TARGET)

    assert Simulated(member(400, "jumprelu", controlled=True)).run(on_target) == []
    free = member(400, "jumprelu")
    assert Simulated(free).run() == []


def test_thresholds_under_a_held_weight_and_a_quadratic_penalty() -> None:
    def penalised(step: int, figures: StepFigures) -> StepFigures:
        return with_(figures, weight=0.5, l0=50.0)

    ((_, finding),) = Simulated(member(400, "jumprelu")).run(penalised)
    is_told(finding, "is penalised")
    quadratic = member(400, "jumprelu", sparsity="quadratic")
    quadratic.coder.target_l0 = 20.0
    ((_, finding),) = Simulated(quadratic).run(penalised)
    is_told(finding, "L0 is 50.0 and 20.0 is asked for")
    quadratic.coder.target_l0 = 48.0
    assert Simulated(quadratic).run(penalised) == []


@pytest.mark.parametrize(("weight", "word"), [(HIGHEST, "largest"), (LOWEST, "smallest")])
def test_a_saturated_coefficient(weight: float, word: str) -> None:
    wanted = member(200, "gated", controlled=True)
    figures = Simulated(wanted).figures(50)
    watch = Watch(wanted, wanted.steps)
    assert wanted.controller is not None
    wanted.controller.started_at = 4 * TARGET
    found = []
    for step in range(1, 80):
        wanted.step_count = wanted.controller.step_count = step
        wanted.controller.weight = weight if 20 <= step < 60 else 1.0
        found += [(step, finding) for finding in watch.update(figures, step * BATCH)]
    ((step, finding),) = found
    assert (step, finding.cause) == (20, "coefficient saturated")
    is_told(finding, word, f"{weight:g}", "asked for")
    assert "target_l0 than 32" in finding.advice


@pytest.mark.parametrize("steps", [100, 400, 2000])
def test_l0_that_falls_too_slowly(steps: int) -> None:
    def slow(step: int, figures: StepFigures) -> StepFigures:
        return with_(figures, l0=128 * math.exp(-0.9 * step / steps))

    found = Simulated(member(steps, "gated", controlled=True)).run(slow)
    (last,) = [x for x in found if x[1].cause != "coefficient saturated"]
    step, finding = last
    assert finding.cause == "L0 falling too slowly for the steps left"
    assert step <= 0.56 * steps
    said = float(finding.explanation.split("it will be ")[1].split()[0])
    assert said == pytest.approx(128 * math.exp(-0.9 * 0.8), rel=0.05)
    is_told(finding, "32 is asked for")


def test_l0_that_is_late_but_will_get_there_yields_nothing() -> None:
    """On target at 0.75 of the run, where the path was to be done at 0.3."""
    late = Simulated(member(1000, "gated", controlled=True))

    def slow(step: int, figures: StepFigures) -> StepFigures:
        share = min(step / 750, 1.0)
        return with_(figures, l0=late.around(128 ** (1 - share) * TARGET**share))

    assert late.run(slow) == []


def test_l0_that_swings_round_its_target_does_not_fall_too_slowly() -> None:
    def swings(step: int, figures: StepFigures) -> StepFigures:
        return with_(figures, l0=TARGET * 2 ** math.sin(step / 7))

    assert Simulated(member(400, "gated", controlled=True)).run(swings) == []


def test_seen_every_few_steps_findings_are_the_same() -> None:
    """A caller may look only at the steps that it logs."""
    slow = member(2000, "gated", controlled=True)
    watch = Watch(slow, slow.steps)
    found = []
    for step in range(10, 2001, 10):
        slow.step_count = step
        assert slow.controller is not None
        slow.controller.update(128.0)
        figures = StepFigures(loss=0.3, fvu=0.3, l0=128.0, dead_share=0.0, weight=1.0, gradient=0.1)
        found += watch.update(figures, step * BATCH)
    assert [f.cause for f in found] == ["L0 falling too slowly for the steps left"]


# Real steps.


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So small products are far slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def activations(n: int) -> torch.Tensor:
    """Sums of three of 24 directions, centred, of mean norm sqrt(d)."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
    chosen = torch.rand(n, 24).topk(3, dim=1).indices
    x = torch.zeros(n, 24).scatter(1, chosen, torch.rand(n, 3) + 0.5) @ directions
    x = x - x.mean(0)
    return x * (4 / x.norm(dim=1).mean())


def train(architecture: str, steps: int = 120, lr: float = 1e-2, **options) -> list[Finding]:
    controlled = architecture not in ("topk", "batch_topk")
    if not controlled:
        options["k"] = 3
    coder = make_coder(architecture, 16, 32, **options)
    coder.start(activations(512), 12)
    trained = Member(
        coder,
        lr=lr,
        steps=steps,
        dead_after=25 * 256,
        weight=Controller(target=3, steps=steps) if controlled else 0.0,
    )
    watch = Watch(trained, steps)
    found: list[Finding] = []
    for step in range(1, steps + 1):
        found += watch.update(trained.step(activations(256)), step * 256)
        if any(finding.stop for finding in found):
            break
    return found


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("architecture", ["topk", "batch_topk", "gated"])
def test_real_runs_that_go_well_yield_nothing(architecture: str) -> None:
    assert train(architecture) == []


@pytest.mark.usefixtures("one_thread")
def test_a_bandwidth_too_narrow_is_found_in_a_real_run() -> None:
    found = train("jumprelu", bandwidth=1e-7)
    assert "threshold not moving" in [finding.cause for finding in found]


@pytest.mark.usefixtures("one_thread")
def test_a_learning_rate_out_of_all_bounds_is_found_in_a_real_run() -> None:
    found = train("topk", lr=1e30)
    assert found[-1].cause == "NaN"
    assert "1e+30" in found[-1].advice
