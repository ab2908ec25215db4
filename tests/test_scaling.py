from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from monosemy.errors import UserError
from monosemy.evaluation import scaling
from monosemy.evaluation.scaling import Point, fit_scaling, fit_sweep
from monosemy.evaluation.sweep import SweepRow
from monosemy.metrics.table import MetricValue

WIDTHS = [512, 1024, 2048, 4096, 8192, 16384]
A, B, FLOOR = 0.5, -0.25, 0.1
# Of the size that Gao et al. 2024 found.
JOINT = {
    "alpha": -0.5,
    "beta_k": 0.26,
    "beta_n": -0.017,
    "gamma": -0.042,
    "zeta": -1.32,
    "eta": -0.085,
}


def power_law(x: float, floor: float = FLOOR) -> float:
    return math.exp(A + B * math.log(x)) + floor


def joint_law(n: float, k: float) -> float:
    p, log_n, log_k = JOINT, math.log(n), math.log(k)
    power = p["alpha"] + p["beta_k"] * log_k + p["beta_n"] * log_n + p["gamma"] * log_k * log_n
    return math.exp(power) + math.exp(p["zeta"] + p["eta"] * log_k)


def noisy(loss: float, noise: float, rng: np.random.Generator) -> float:
    return loss * math.exp(noise * rng.standard_normal())


def of_widths(widths, noise=0.0, floor=FLOOR, seed=0) -> list[Point]:
    rng = np.random.default_rng(seed)
    return [Point(n, 32, 1e6, noisy(power_law(n, floor), noise, rng)) for n in widths]


def holds(interval: MetricValue, truth: float) -> bool:
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize("against", ["width", "tokens"])
def test_an_exact_power_law_is_recovered(against: scaling.Against):
    points = of_widths(WIDTHS)
    if against == "tokens":
        points = [replace(p, tokens=p.width, width=64) for p in points]
    fit = fit_scaling(points, against)
    assert fit.exponent.value == pytest.approx(B, abs=1e-3)
    assert fit.floor is not None and fit.floor.value == pytest.approx(FLOOR, abs=1e-3)
    assert fit.parameters["a"].value == pytest.approx(A, abs=1e-2)
    assert fit.value(**{against: 65_536}) == pytest.approx(power_law(65_536), rel=1e-4)
    assert fit.predict(**{against: 65_536}).loss.value == pytest.approx(power_law(65_536), rel=1e-4)


def test_an_exact_joint_law_is_recovered():
    points = [Point(n, k, 1e6, joint_law(n, k)) for n in WIDTHS[::2] for k in (16, 32, 64, 128)]
    fit = fit_scaling(points, "width and k")
    for name, truth in JOINT.items():
        assert fit.parameters[name].value == pytest.approx(truth, abs=2e-2)
    assert fit.exponent.value == pytest.approx(JOINT["beta_n"] + JOINT["gamma"] * math.log(64), 0.1)
    assert fit.value(width=1e5, k=50) == pytest.approx(joint_law(1e5, 50), rel=1e-3)


def test_noisy_laws_lie_within_their_intervals():
    points = of_widths(WIDTHS * 2, noise=0.01)
    fit = fit_scaling(points, "width")
    assert holds(fit.exponent, B) and fit.floor is not None and holds(fit.floor, FLOOR)
    assert fit.noise == pytest.approx(0.01, rel=0.5)
    rng = np.random.default_rng(1)
    both = [
        Point(n, k, 1e6, noisy(joint_law(n, k), 0.005, rng))
        for n in WIDTHS[::2]
        for k in (16, 32, 64, 128)
    ]
    fit = fit_scaling(both, "width and k")
    assert all(holds(fit.parameters[name], truth) for name, truth in JOINT.items())
    assert holds(fit.exponent, JOINT["beta_n"] + JOINT["gamma"] * math.log(64))
    assert holds(fit.predict(width=65_536, k=64).loss, joint_law(65_536, 64))


def test_intervals_of_a_law_without_floor_are_the_textbook_ones():
    points = of_widths(WIDTHS[:4], noise=0.02, floor=0.0)
    fit = fit_scaling(points, "width")
    assert fit.floor is None
    x, y = np.log([p.width for p in points]), np.log([p.loss for p in points])
    line = stats.linregress(x, y)
    quantile = stats.t.ppf(0.975, len(x) - 2)
    assert fit.exponent.value == pytest.approx(line.slope, abs=1e-6)
    assert fit.exponent.high - line.slope == pytest.approx(quantile * line.stderr, rel=1e-2)
    assert line.slope - fit.exponent.low == pytest.approx(quantile * line.stderr, rel=1e-2)
    new = math.log(65_536)
    rest = y - line.intercept - line.slope * x
    spread = math.sqrt((rest @ rest) / (len(x) - 2))
    leverage = 1 + 1 / len(x) + (new - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
    loss = fit.predict(width=65_536).loss
    assert math.log(loss.value) == pytest.approx(line.intercept + line.slope * new, abs=1e-6)
    half = quantile * spread * math.sqrt(leverage)
    assert math.log(loss.high / loss.value) == pytest.approx(half, rel=1e-2)
    assert math.log(loss.value / loss.low) == pytest.approx(half, rel=1e-2)


@pytest.mark.parametrize(("sets", "widths", "floor"), [(40, WIDTHS[:4], 0.0), (12, WIDTHS, FLOOR)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(sets, widths, floor):
    held = np.zeros(2)
    for seed in range(sets):
        fit = fit_scaling(of_widths(widths, 0.01, floor, seed), "width")
        further = noisy(power_law(65_536, floor), 0.01, np.random.default_rng(1000 + seed))
        held += [holds(fit.exponent, B), holds(fit.predict(width=65_536).loss, further)]
    assert (held / sets > 0.8).all()


def test_the_unit_of_the_error_changes_nothing_but_the_level():
    points = of_widths(WIDTHS, noise=0.01)
    fit = fit_scaling(points, "width")
    scaled = fit_scaling([replace(p, loss=1000 * p.loss) for p in points], "width")
    assert scaled.exponent.value == pytest.approx(fit.exponent.value, rel=1e-3)
    assert scaled.floor and fit.floor
    assert scaled.floor.high == pytest.approx(1000 * fit.floor.high, rel=1e-2)


@pytest.mark.parametrize("against", list(scaling.LAWS))
def test_slopes_equal_finite_differences(against: scaling.Against):
    points = [Point(n, k, 1e5 * n, 0.3) for n in (500, 3000) for k in (8, 64)]
    for law in scaling.LAWS[against]:
        problem = scaling._problem(law, points)
        theta = np.linspace(-0.6, 0.1, len(law.parameters))
        found = problem.jacobian(theta)
        for number, step in enumerate(1e-6 * np.eye(len(theta))):
            slope = (problem.log_law(theta + step) - problem.log_law(theta - step)) / 2e-6
            np.testing.assert_allclose(found[:, number], slope, atol=1e-7)


@pytest.mark.parametrize(
    ("points", "against", "seen"),
    [
        (of_widths(WIDTHS[:2]), "width", "2 dictionaries of 2 widths"),
        (of_widths(WIDTHS[:2] * 3), "width", "6 dictionaries of 2 widths"),
        (of_widths(WIDTHS), "tokens", "6 dictionaries of 1 token budget"),
        (of_widths(WIDTHS), "width and k", "6 dictionaries of 6 widths"),
        ([], "width", "0 dictionaries"),
    ],
)
def test_too_few_points_are_refused_with_their_number(points, against, seen):
    with pytest.raises(UserError, match=seen) as refusal:
        fit_scaling(points, against)
    assert "at least" in refusal.value.hint and "parameters" in refusal.value.message


@pytest.mark.parametrize("loss", [0.0, -1.0, math.nan, math.inf])
def test_an_error_that_is_none_is_refused(loss):
    with pytest.raises(UserError, match="cannot lie"):
        fit_scaling([*of_widths(WIDTHS), Point(64, 32, 1e6, loss)], "width")


def test_a_place_off_the_law_is_refused():
    fit = fit_scaling(of_widths(WIDTHS), "width")
    with pytest.raises(UserError, match="did you mean `width`"):
        fit.predict(widht=4096)
    with pytest.raises(UserError, match="give width"):
        fit.predict()
    with pytest.raises(UserError, match="above 0"):
        fit.predict(width=-1)


def test_few_points_give_a_law_without_floor_that_says_so():
    fit = fit_scaling(of_widths(WIDTHS[:4]), "width")
    assert fit.floor is None and "do not tell a floor" in fit.sentence()
    assert "zeta" not in fit.parameters


def test_an_exponent_that_may_be_zero_is_called_so():
    rng = np.random.default_rng(0)
    flat = [Point(n, 32, 1e6, noisy(0.3, 0.05, rng)) for n in WIDTHS]
    fit = fit_scaling(flat, "width")
    assert holds(fit.exponent, 0.0) and fit.floor is None and math.isfinite(fit.larger().loss.high)
    assert "not distinguishable from zero" in fit.sentence()
    assert "not distinguishable" not in fit_scaling(of_widths(WIDTHS, 0.005), "width").sentence()


def test_laws_hold_the_l0_measured_not_the_one_asked_for():
    def missed(n: float, k: float) -> Point:
        l0 = k * (n / 512) ** 0.2  # the wider, the more fire
        return Point(n, k, 1e6, joint_law(n, l0), l0)

    fit = fit_scaling([missed(n, k) for n in WIDTHS for k in (8, 32, 128)], "width and k")
    assert fit.parameters["beta_n"].value == pytest.approx(JOINT["beta_n"], abs=2e-2)
    assert fit.levels[32] > 40 and f"at L0 {fit.middle_k:.3g}" in fit.sentence()
    alone = fit_scaling([missed(n, 32) for n in WIDTHS], "width")
    assert "Their L0 goes from 32 to 64" in alone.sentence()
    assert "Their L0" not in fit_scaling(of_widths(WIDTHS), "width").sentence()


def test_a_prediction_far_out_is_called_a_guess():
    fit = fit_scaling(of_widths(WIDTHS, noise=0.01), "width")
    assert fit.larger().at == {"width": 65_536} and "guess" not in fit.sentence()
    far = fit.predict(width=16 * 16_384)
    assert far.reach == 16 and "16 times beyond" in fit.sentence(far)
    near = fit.larger().loss
    assert far.loss.high - far.loss.low > near.high - near.low


def test_no_floor_in_sight_is_said():
    fit = fit_scaling(of_widths(WIDTHS * 2, noise=0.002, floor=0.0), "width")
    assert fit.floor is not None and fit.floor.low == 0
    said = fit.sentence()
    assert "no floor in sight" in said or "cannot be told from none" in said


def test_everything_is_json():
    for points in (of_widths(WIDTHS, 0.05), of_widths(WIDTHS[:3], 0.05)):
        values = json.loads(json.dumps(fit_scaling(points, "width").to_dict(), allow_nan=False))
        assert values["sentence"] and values["prediction"]["at"]["width"] == 4 * points[-1].width


def row(width: int, k: float | None, loss: float, **given) -> SweepRow:
    fields = {"tokens": 1_000_000, "seed": 0, "lr": None, "architecture": "topk"} | given
    figures = {"fvu": MetricValue(loss, loss, loss)}
    name = f"{fields['architecture']}-{width}-{k}-{given}"
    return SweepRow(
        name=name, hookpoint="layers.1", width=width, k_or_target=k, figures=figures, **fields
    )


def test_a_sweep_over_widths_has_a_law_at_each_k_or_one_for_all():
    at_one_k = [row(n, 32, power_law(n)) for n in WIDTHS]
    (fit,) = fit_sweep(at_one_k)
    assert fit.against == "width" and "topk" in fit.about and "k 32" in fit.about
    (fit,) = fit_sweep([row(n, k, joint_law(n, k)) for n in WIDTHS for k in (16, 64)])
    assert fit.against == "width and k" and fit.law.floor
    # One width too few at the second k for a joint law, which needs 2 of 3 widths at least.
    fits = fit_sweep([*at_one_k, row(4096, 16, 0.5)])
    assert [f.against for f in fits] in (["width"], ["width and k"])


def test_a_sweep_over_token_budgets_has_a_law_in_tokens():
    rows = [row(512, 32, power_law(t), tokens=t) for t in (10**5, 10**6, 10**7)]
    (fit,) = fit_sweep(rows)
    assert fit.against == "tokens" and fit.exponent.value < 0


def test_architectures_and_hook_points_have_laws_of_their_own():
    rows = [row(n, 32, power_law(n)) for n in WIDTHS[:3]]
    rows += [row(n, 32, power_law(n), architecture="jumprelu") for n in WIDTHS[:3]]
    rows += [replace(r, hookpoint="layers.2") for r in rows]
    assert len(fit_sweep(rows)) == 4


def test_of_learning_rates_the_best_counts_and_baselines_do_not():
    rows = [row(n, 32, power_law(n), lr=1e-3) for n in WIDTHS]
    rows += [row(n, 32, 2 * power_law(n), lr=1e-2) for n in WIDTHS]
    rows += [row(n, n, 0.9, architecture="pca") for n in (4, 8, 16)]
    rows += [row(n, None, 0.9, architecture="relu") for n in WIDTHS]
    (fit,) = fit_sweep(rows)
    assert len(fit.points) == len(WIDTHS) and fit.exponent.value == pytest.approx(B, abs=1e-3)


def test_a_sweep_without_a_law():
    assert fit_sweep([row(512, k, 0.3) for k in (8, 16, 32)]) == []
    assert fit_sweep([]) == []
    with pytest.raises(UserError, match="too few"):
        fit_sweep([row(n, 32, 0.3) for n in (512, 1024)])
