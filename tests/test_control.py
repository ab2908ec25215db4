"""The controller on a simulated run, and the average of weights."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from small_coders import build

from monosemy.training.control import HIGHEST, LOWEST, Controller
from monosemy.training.member import WeightAverage

TARGET, START = 32.0, 128.0


@dataclass
class Plant:
    """How L0 follows the weight: late, with noise, and at most so fast, as Adam moves biases.

    In the end L0 is TARGET * weight^-response; right is a weight of 1.
    """

    response: float
    lag: float
    fastest: float = 0.01
    delay: int = 10
    noise: float = 0.05

    def run(self, controller: Controller) -> list[float]:
        """The true L0 of every step over the target."""
        log_l0, chance = math.log(START), random.Random(0)
        weights = [controller.weight] * (self.delay + 1)
        history = []
        for _ in range(controller.steps):
            seen = log_l0 + chance.gauss(0, self.noise)
            weights.append(controller.update(math.exp(seen)))
            goal = math.log(TARGET) - self.response * math.log(weights.pop(0))
            speed = (goal - log_l0) / self.lag
            log_l0 += min(max(speed, -self.fastest), self.fastest)
            history.append(math.exp(log_l0) / TARGET)
        return history


@pytest.mark.parametrize("off", [0.01, 0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("lag", [40.0, 150.0])
@pytest.mark.parametrize("response", [0.5, 1.0, 2.0])
def test_the_target_is_reached_without_going_far_below(
    response: float, lag: float, off: float
) -> None:
    controller = Controller(target=TARGET, steps=3000, weight=off)
    history = Plant(response, lag).run(controller)
    last = history[-150:]
    assert sum(last) / len(last) == pytest.approx(1, rel=0.05)
    assert max(last) / min(last) < 1.2
    assert min(history) > 1 / 1.5
    assert not controller.saturated


@pytest.mark.parametrize("steps", [600, 1500, 10_000])
@pytest.mark.parametrize("off", [0.1, 1.0, 10.0])
def test_short_and_long_runs_reach_it_too(steps: int, off: float) -> None:
    history = Plant(1.0, 30.0, fastest=0.03).run(Controller(TARGET, steps, weight=off))
    last = history[-steps // 20 :]
    assert sum(last) / len(last) == pytest.approx(1, rel=0.05)
    assert min(history) > 1 / 1.5


def test_the_path_falls_geometrically_to_the_target() -> None:
    controller = Controller(target=32, steps=1000)
    controller.update(128)
    for step, asked in ((0, 128), (150, 64), (300, 32), (900, 32)):
        controller.step_count = step
        assert controller.asked() == pytest.approx(asked)


def test_where_nothing_answers_the_weight_stops_at_its_limits_and_says_so() -> None:
    light, heavy = Controller(target=10, steps=10_000), Controller(target=10, steps=10_000)
    for _ in range(10_000):
        light.update(0.0)
        heavy.update(1000.0)
    assert light.weight >= LOWEST
    assert heavy.weight <= HIGHEST
    assert light.saturated
    assert heavy.saturated


def test_it_goes_on_from_a_saved_state_bit_for_bit() -> None:
    whole, resumed = (Controller(target=8, steps=100) for _ in range(2))
    for step in range(40):
        whole.update(50 - step)
    resumed.update(3)
    resumed.load_state_dict(whole.state_dict())
    for step in range(40):
        assert whole.update(30 - 0.5 * step) == resumed.update(30 - 0.5 * step)
    assert whole == resumed


def test_an_average_of_weights_has_its_bias_taken_out() -> None:
    """Three steps at weight 2 and decay 0.999: 0.005994 as summed, 2 as it should be."""
    coder = build("topk")
    average = WeightAverage(coder, 0.999)
    with torch.no_grad():
        coder.b_dec.fill_(2.0)
    for _ in range(3):
        average.update(coder)
    assert average.average["b_dec"][0].item() == pytest.approx(0.005994, rel=1e-4)
    before = coder.W_enc.detach().clone()
    average.copy_to(coder)
    torch.testing.assert_close(coder.b_dec.detach(), torch.full((12,), 2.0))
    torch.testing.assert_close(coder.W_enc.detach(), before)


def test_an_average_of_weights_that_change() -> None:
    coder = build("topk")
    average = WeightAverage(coder, 0.5)
    for value in (1.0, 2.0, 4.0):
        with torch.no_grad():
            coder.b_dec.fill_(value)
        average.update(coder)
    average.copy_to(coder)
    expected = (0.125 * 1 + 0.25 * 2 + 0.5 * 4) / 0.875
    torch.testing.assert_close(coder.b_dec.detach(), torch.full((12,), expected))
