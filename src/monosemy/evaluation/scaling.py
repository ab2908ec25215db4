"""Scaling laws: how the error on held-out text falls with width, k and training tokens.

The form is that of Gao et al. 2024 (arXiv 2406.04093, section 3). With n features, k of them
firing on a token, and L the error (FVU or MSE):

    L(n, k) = exp(alpha + beta_k log k + beta_n log n + gamma log k log n) + exp(zeta + eta log k)

the first term can be trained away, the second, the floor, cannot. Where k is one number this is
L(n) = exp(a + b log n) + floor, and the same form is fitted against training tokens.

Laws are fitted by least squares on log L. Intervals come from refits: a value of a parameter, or
the error predicted for a further dictionary, lies in the 95% interval unless holding the law to
it raises the sum of squares by more than the F distribution allows (profile likelihood, Bates and
Watts 1988, chapter 6). For a law that is linear in its parameters these are the textbook t
intervals; for a floor that the data hardly show they are lopsided or without end, as they must be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np

from monosemy.errors import UserError, nearest
from monosemy.evaluation.sweep import SweepRow
from monosemy.metrics.table import MetricValue

Against = Literal["width", "tokens", "width and k"]

FAR = 4.0
"""A prediction for more than this many times what was measured is called a guess."""

LEAST_VALUES = 3
"""Different widths, or token budgets, below which two points would decide the law alone."""

_LEVEL = 0.95
_SAME_L0 = 1.1
"""Ratio of L0 from which dictionaries are no longer alike in it."""
_SMALLEST_VARIANCE = 1e-10
"""Of log L: no error is measured more exactly than to one part in 100,000."""
_REACH = 50.0
"""How far from its estimate a parameter is followed before its interval is called endless."""

_PULL = 1e-6
"""Of parameters to 0: too weak to matter, but for those that the data leave free."""

_Terms = Mapping[str, tuple[str, ...]]
"""Parameter -> the quantities the product of whose logarithms it multiplies."""


@dataclass(frozen=True, slots=True)
class Point:
    """One dictionary: its width, k (or the L0 asked for), training tokens, and error."""

    width: float
    k: float
    tokens: float
    loss: float
    l0: float | None = None
    """Features that fire on a token, which is what laws hold as k; None: as many as asked for."""

    @property
    def fires(self) -> float:
        """Features that fire on a token."""
        return self.k if self.l0 is None else self.l0

    def at(self, quantity: str) -> float:
        """Return a quantity as laws hold it."""
        return float(self.fires if quantity == "k" else getattr(self, quantity))


@dataclass(frozen=True, slots=True)
class Law:
    """log L = log(exp(reducible) + exp(floor)), both linear in their parameters."""

    formula: str
    reducible: _Terms
    floor: _Terms

    @property
    def parameters(self) -> list[str]:
        """Names, in the order in which they are fitted."""
        return [*self.reducible, *self.floor]


def _power_law(quantity: str) -> tuple[Law, Law]:
    """Return the law in one quantity, with a floor and without."""
    terms: _Terms = {"a": (), "b": (quantity,)}
    power = f"exp(a + b log {quantity})"
    return Law(f"{power} + exp(zeta)", terms, {"zeta": ()}), Law(power, terms, {})


def _joint_law() -> tuple[Law, Law]:
    terms: _Terms = {"alpha": (), "beta_k": ("k",), "beta_n": ("width",), "gamma": ("k", "width")}
    power = "exp(alpha + beta_k log k + beta_n log width + gamma log k log width)"
    floor: _Terms = {"zeta": (), "eta": ("k",)}
    return Law(f"{power} + exp(zeta + eta log k)", terms, floor), Law(power, terms, {})


LAWS: dict[Against, tuple[Law, Law]] = {
    "width": _power_law("width"),
    "tokens": _power_law("tokens"),
    "width and k": _joint_law(),
}
"""What error is held against -> the law with a floor, and the one without."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The error expected of one further dictionary, training noise included."""

    at: dict[str, float]
    loss: MetricValue
    reach: float
    """How many times the largest (or smallest) measured the farthest quantity is; 1 inside."""


@dataclass(frozen=True, slots=True)
class ScalingFit:
    """A fitted law, with 95% intervals, and what it predicts."""

    against: Against
    law: Law
    points: list[Point]
    metric: str
    about: str
    """Which dictionaries these are, and what they have in common."""
    parameters: dict[str, MetricValue]
    exponent: MetricValue
    """Of the reducible error in width or tokens; where k varies, at the middle k."""
    floor: MetricValue | None
    """The error that no width or tokens remove, at the middle k; None where none was fitted."""
    noise: float
    """Standard deviation of log L about the law."""

    @property
    def quantities(self) -> list[str]:
        """What the law is a function of, the one that is scaled first."""
        return ["width", "k"] if self.against == "width and k" else [self.against]

    @property
    def levels(self) -> dict[float, float]:
        """Each k that was asked for -> the mean L0 of those dictionaries."""
        return _levels(self.points)

    @property
    def middle_k(self) -> float:
        """L0 at the middle one of the k there are."""
        return _middle_k(self.points)

    def value(self, **at: float) -> float:
        """Return the error the law gives, such as `fit.value(width=65_536)`.

        Raises:
            UserError: a quantity that the law does not have, or one left out.
        """
        theta = np.array([p.value for p in self.parameters.values()])
        return float(np.exp(_Problem(self.law, self._at(at), np.zeros(1)).log_law(theta))[0])

    def predict(self, **at: float) -> Prediction:
        """Return what to expect of a further dictionary, such as `fit.predict(width=65_536)`.

        Raises:
            UserError: a quantity that the law does not have, or one left out.
        """
        loss = _exp(_Fit(_problem(self.law, self.points)).further(self._at(at)))
        reach = max(
            max(at[name] / max(seen), min(seen) / at[name], 1.0)
            for name in self.quantities
            if (seen := [p.at(name) for p in self.points])
        )
        return Prediction(dict(at), loss, reach)

    def larger(self) -> Prediction:
        """Return the prediction for four times the largest, at the middle k where k varies."""
        scaled = self.quantities[0]
        at = {scaled: FAR * max(getattr(p, scaled) for p in self.points)}
        return self.predict(**(at | ({"k": self.middle_k} if "k" in self.quantities else {})))

    def sentence(self, prediction: Prediction | None = None) -> str:
        """Say in words what the law is, how sure, and what it predicts (default: `larger()`)."""
        prediction = prediction or self.larger()
        return " ".join([self._law_in_words(), *self._doubts(), _say_prediction(self, prediction)])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values; ends of endless intervals are null."""
        larger = self.larger()
        values = {
            "against": self.against,
            "formula": self.law.formula,
            "metric": self.metric,
            "about": self.about,
            "parameters": {name: asdict(p) for name, p in self.parameters.items()},
            "exponent": asdict(self.exponent),
            "floor": asdict(self.floor) if self.floor else None,
            "noise": self.noise,
            "points": [asdict(p) for p in self.points],
            "prediction": asdict(larger),
            "sentence": self.sentence(larger),
        }
        return _finite(values)

    def _at(self, at: Mapping[str, float]) -> dict[str, np.ndarray]:
        for name in at:
            if name not in self.quantities:
                raise UserError(
                    f"this law has no `{name}`",
                    f"{nearest(name, self.quantities)} it is a function of "
                    f"{' and '.join(self.quantities)}".strip(),
                )
        missing = [name for name in self.quantities if name not in at]
        if missing or any(not 0 < value < math.inf for value in at.values()):
            raise UserError(
                f"a place on this law was given as {dict(at)}",
                f"give {' and '.join(self.quantities)}, each above 0",
            )
        return {name: np.array([float(value)]) for name, value in at.items()}

    def _law_in_words(self) -> str:
        values = len({getattr(p, self.quantities[0]) for p in self.points})
        kind = "widths" if self.quantities[0] == "width" else "token budgets"
        at_k = f" at L0 {self.middle_k:.3g}" if "k" in self.quantities else ""
        verb = "falls" if self.exponent.value < 0 else "rises"
        said = (
            f"{self.metric.upper()} of {self.about} {verb}{at_k} as {self.quantities[0]} to the "
            f"power {_say(self.exponent)}"
        )
        if self.floor and self.floor.value:
            said += f", towards a floor of {_say(self.floor)}"
        elif self.floor:
            said += f", with no floor in sight (95%: at most {self.floor.high:.2g})"
        return f"{said}; {len(self.points)} dictionaries, {values} {kind}."

    def _doubts(self) -> list[str]:
        doubts = []
        if self.exponent.low <= 0 <= self.exponent.high:
            doubts.append(
                "The exponent is not distinguishable from zero: these dictionaries do not show "
                f"that {self.quantities[0]} helps."
            )
        elif not math.isfinite(self.exponent.low):
            doubts.append("How steep it is cannot be told: the error may have reached its floor.")
        fires = [p.fires for p in self.points]
        if "k" not in self.quantities and max(fires) > _SAME_L0 * min(fires):
            doubts.append(
                f"Their L0 goes from {min(fires):.3g} to {max(fires):.3g}: part of what differs is "
                "owed to that."
            )
        if self.floor and self.floor.value and not self.floor.low:
            doubts.append("A floor cannot be told from none.")
        if not self.law.floor:
            doubts.append(
                "These dictionaries do not tell a floor, and none was fitted: far out the law "
                "promises too much."
            )
        return doubts


def fit_scaling(
    points: Sequence[Point], against: Against, *, metric: str = "fvu", about: str = "dictionaries"
) -> ScalingFit:
    """Fit the law that these points can identify.

    With a floor where there are two points more than parameters, and the rest falls beyond doubt
    (else it could as well be the floor); otherwise without. Points may repeat a place (seeds);
    what differs between them beside the quantities of the law is taken as noise.

    Args:
        points: dictionaries, alike in what the law does not hold.
        against: what the error is held against.
        metric: what `loss` is, for the words.
        about: which dictionaries these are, for the words.

    Raises:
        UserError: too few points, or too few different ones; an error that is not above 0.
    """
    if against not in LAWS:
        raise UserError(f"no law against `{against}`", f"allowed: {', '.join(LAWS)}")
    for p in points:
        if not all(0 < v < math.inf for v in (p.width, p.k, p.tokens, p.loss, p.fires)):
            raise UserError(f"{p} cannot lie on a scaling law", "each must be finite, above 0")
    with_floor, without = _identified(points, against, about)
    if with_floor is not None:
        fit = _fit_law(with_floor, points, against, metric, about)
        if fit.exponent.high < 0:
            return fit
    return _fit_law(without, points, against, metric, about)


def _fit_law(
    law: Law, points: Sequence[Point], against: Against, metric: str, about: str
) -> ScalingFit:
    fit = _Fit(_problem(law, points))
    log_k = math.log(_middle_k(points))

    @cache  # a power law's exponent and floor are parameters of it
    def total(**weights: float) -> MetricValue:
        return fit.combination(np.array([weights.get(name, 0.0) for name in law.parameters]))

    floor = {"zeta": 1.0} | ({"eta": log_k} if "eta" in law.parameters else {})
    return ScalingFit(
        against=against,
        law=law,
        points=list(points),
        metric=metric,
        about=about,
        parameters={name: total(**{name: 1.0}) for name in law.parameters},
        exponent=total(beta_n=1.0, gamma=log_k) if "gamma" in law.parameters else total(b=1.0),
        floor=_floor(total(**floor), points) if law.floor else None,
        noise=math.sqrt(fit.variance),
    )


def fit_sweep(rows: Sequence[SweepRow], metric: str = "fvu") -> list[ScalingFit]:
    """Fit every law that a sweep can identify; none where no width or token budget varies.

    Dictionaries are taken together that have hook point and architecture in common. Where widths
    and k vary, one law holds both; else width is followed at each k and token budget, and tokens
    at each k and width. Of dictionaries that differ in other settings only, such as the learning
    rate, the best counts.

    Raises:
        UserError: widths or token budgets vary, but too few for any law.
    """
    fits: list[ScalingFit] = []
    refusals: list[tuple[int, UserError]] = []

    def attempt(points: list[Point], against: Against, about: str) -> bool:
        try:
            fits.append(fit_scaling(points, against, metric=metric, about=about))
        except UserError as error:
            refusals.append((len(points), error))
            return False
        return True

    for about, points in _alike(rows, metric).items():
        for tokens, at_tokens in _split(points, "tokens").items():
            said = f"{tokens:,.0f} training tokens"
            if not _varies(at_tokens, "width"):
                continue
            if _varies(at_tokens, "k") and attempt(at_tokens, "width and k", f"{about} ({said})"):
                continue
            for k, at_k in _split(at_tokens, "k").items():
                if _varies(at_k, "width"):
                    attempt(at_k, "width", f"{about} ({said}, k {k:g})")
        for width, at_width in _split(points, "width").items():
            for k, at_k in _split(at_width, "k").items():
                if _varies(at_k, "tokens"):
                    attempt(at_k, "tokens", f"{about} (width {width:,.0f}, k {k:g})")
    if refusals and not fits:
        raise max(refusals, key=lambda entry: entry[0])[1]
    return fits


def _identified(points: Sequence[Point], against: Against, about: str) -> tuple[Law | None, Law]:
    """Return the law with a floor, if there are enough points for it, and the law without.

    Raises:
        UserError: there are not even enough for the one without.
    """
    with_floor, without = LAWS[against]
    scaled = "tokens" if against == "tokens" else "width"
    values = len({getattr(p, scaled) for p in points})
    least = len(without.parameters) + 1
    design = _design(without.reducible, _columns(points))
    enough = len(points) >= least and values >= LEAST_VALUES
    if not enough or np.linalg.matrix_rank(design) < len(without.parameters):
        kind = "token budget" if scaled == "tokens" else "width"
        also = " and 2 k" if against == "width and k" else ""
        raise UserError(
            f"a scaling law in {against} has {len(without.parameters)} parameters, "
            f"{len(with_floor.parameters)} with a floor; {len(points)} dictionaries of {values} "
            f"{kind}{'' if values == 1 else 's'} are too few for it ({about})",
            f"train at least {least} with {LEAST_VALUES} different {kind}s{also}; for a floor too, "
            f"{len(with_floor.parameters) + 2}",
        )
    return with_floor if len(points) >= len(with_floor.parameters) + 2 else None, without


class _Solution(NamedTuple):
    theta: np.ndarray
    squares: float


class _Problem:
    """Least squares on log L, for one law and some points."""

    def __init__(self, law: Law, at: Mapping[str, np.ndarray], log_loss: np.ndarray) -> None:
        self.law, self.at, self.log_loss = law, at, log_loss
        self.A, self.B = _design(law.reducible, at), _design(law.floor, at)

    def log_law(self, theta: np.ndarray) -> np.ndarray:
        """Return log L at the points: [points]."""
        reducible, floor = self._terms(theta)
        return np.logaddexp(reducible, floor) if self.B.size else reducible

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """Return the derivative of log L: [points, parameters]."""
        share = np.exp(self._terms(theta)[0] - self.log_law(theta))[:, None]
        return np.hstack([share * self.A, (1 - share) * self.B])

    def _terms(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logarithms of both terms, within what can be added: a try may go far out."""
        reducible, floor = np.split(theta, [self.A.shape[1]])
        return np.clip(self.A @ reducible, -700, 700), np.clip(self.B @ floor, -700, 700)

    def starts(self) -> list[np.ndarray]:
        """Return the best laws for some guesses of the floor, as shares of the least error."""
        if not self.B.size:
            return [np.linalg.lstsq(self.A, self.log_loss, rcond=None)[0]]
        found = []
        for share in (0.05, 0.7):
            level = self.log_loss.min() + math.log(share)
            rest = np.log(np.exp(self.log_loss) - np.exp(level))
            reducible = np.linalg.lstsq(self.A, rest, rcond=None)[0]
            floor = np.zeros(self.B.shape[1])
            floor[0] = level
            found.append(np.concatenate([reducible, floor]))
        return found

    def solve(
        self,
        starts: Sequence[np.ndarray],
        basis: np.ndarray | None = None,
        origin: np.ndarray | float = 0.0,
    ) -> _Solution:
        """Return the least squares over theta = origin + basis @ free, from the best start."""
        from scipy.optimize import leastsq

        size = len(self.law.parameters)
        basis = np.eye(size) if basis is None else basis
        back = np.linalg.pinv(basis)

        def residuals(free: np.ndarray) -> np.ndarray:
            theta = origin + basis @ free
            return np.concatenate([self.log_law(theta) - self.log_loss, _PULL * theta])

        def slopes(free: np.ndarray) -> np.ndarray:
            theta = origin + basis @ free
            return np.vstack([self.jacobian(theta), _PULL * np.eye(size)]) @ basis

        found = []
        for start in starts:
            free, _, details, *_ = leastsq(
                residuals, back @ (start - origin), Dfun=slopes, full_output=True
            )
            squares = float(details["fvec"] @ details["fvec"])
            found.append(_Solution(origin + basis @ free, squares))
        return min(found, key=lambda solution: solution.squares)


class _Fit:
    """The least squares of a problem, and how far its results can be moved."""

    def __init__(self, problem: _Problem) -> None:
        from scipy.special import stdtrit

        self.problem = problem
        self.theta, self.squares = problem.solve(problem.starts())
        freedom = len(problem.log_loss) - len(self.theta)
        self.variance = max(self.squares / freedom, _SMALLEST_VARIANCE)
        self.quantile = float(stdtrit(freedom, (1 + _LEVEL) / 2))
        jacobian = problem.jacobian(self.theta)
        self.covariance = self.variance * np.linalg.pinv(jacobian.T @ jacobian)

    def combination(self, direction: np.ndarray) -> MetricValue:
        """Return the sum direction @ theta and its interval."""
        value = float(direction @ self.theta)
        unit = direction / (direction @ direction)
        basis = np.linalg.svd(direction[None])[2][1:].T  # whatever leaves the sum as it is
        trail = [self.theta]

        def squares(held: float) -> float:
            starts = [self.theta, trail[-1], *self.problem.starts()]
            found = self.problem.solve(starts, basis, held * unit)
            trail.append(found.theta)
            return found.squares

        spread = math.sqrt(float(direction @ self.covariance @ direction))
        return self._interval(value, squares, spread)

    def further(self, at: Mapping[str, np.ndarray]) -> MetricValue:
        """Return log L of a further point and its interval."""
        value = float(_Problem(self.problem.law, at, np.zeros(1)).log_law(self.theta)[0])
        joined = {
            n: np.concatenate([seen, at[n]]) for n, seen in self.problem.at.items() if n in at
        }
        trail = [self.theta]

        def squares(held: float) -> float:
            log_loss = np.append(self.problem.log_loss, held)
            problem = _Problem(self.problem.law, joined, log_loss)
            found = problem.solve([self.theta, trail[-1], *self.problem.starts()])
            trail.append(found.theta)
            return found.squares

        return self._interval(value, squares, 2 * math.sqrt(self.variance))

    def _interval(
        self, value: float, squares: Callable[[float], float], spread: float
    ) -> MetricValue:
        """Return the value with the ends beyond which the squares grow too large."""
        from scipy.optimize import brentq

        @cache  # a refit begins where the last one ended: asked twice, it may answer twice
        def excess(held: float) -> float:
            grown = max(squares(held) - self.squares, 0.0) / self.variance
            return math.sqrt(grown) - self.quantile

        ends = []
        step = min(max(self.quantile * spread, 1e-6), _REACH / 4)
        for sign in (-1, 1):
            inner, outer = value, value + sign * step
            while excess(outer) < 0 and abs(outer - value) < _REACH:
                inner, outer = outer, value + 2 * (outer - value)
            if abs(outer - value) >= _REACH:
                ends.append(sign * math.inf)
            else:
                ends.append(brentq(excess, inner, outer, xtol=1e-3 * step, rtol=1e-9))
        return MetricValue(value, *ends)


def _problem(law: Law, points: Sequence[Point]) -> _Problem:
    return _Problem(law, _columns(points), np.log([p.loss for p in points]))


def _columns(points: Sequence[Point]) -> dict[str, np.ndarray]:
    return {n: np.array([p.at(n) for p in points]) for n in ("width", "k", "tokens")}


def _design(terms: _Terms, at: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the product of logarithms that each parameter multiplies: [points, parameters]."""
    size = len(next(iter(at.values())))
    columns = [np.prod([np.log(at[name]) for name in names], axis=0) for names in terms.values()]
    columns = [np.broadcast_to(column, size) for column in columns]
    return np.stack(columns, 1) if columns else np.zeros((size, 0))


def _alike(rows: Sequence[SweepRow], metric: str) -> dict[str, list[Point]]:
    """Return points by what the dictionaries have in common: hook point and architecture."""
    best: dict[tuple, tuple[float, float]] = {}
    for row in rows:
        if row.is_baseline or row.k_or_target is None or metric not in row.figures:
            continue
        about = f"{row.architecture.replace('_', ' ')} dictionaries at {row.place}"
        key = (about, row.width, float(row.k_or_target), row.tokens, row.seed)
        best[key] = min((row.value(metric), row.value("l0")), best.get(key, (math.inf, 0.0)))
    alike: dict[str, list[Point]] = {}
    for (about, width, k, tokens, _), (loss, l0) in best.items():
        point = Point(width, k, tokens, loss, l0 if l0 > 0 else None)
        alike.setdefault(about, []).append(point)
    return alike


def _split(points: Sequence[Point], quantity: str) -> dict[float, list[Point]]:
    parts: dict[float, list[Point]] = {}
    for point in sorted(points, key=lambda p: getattr(p, quantity)):
        parts.setdefault(getattr(point, quantity), []).append(point)
    return parts


def _varies(points: Sequence[Point], quantity: str) -> bool:
    return len({getattr(p, quantity) for p in points}) > 1


def _levels(points: Sequence[Point]) -> dict[float, float]:
    return {k: fmean(p.fires for p in group) for k, group in _split(points, "k").items()}


def _middle_k(points: Sequence[Point]) -> float:
    levels = list(_levels(points).values())
    return levels[len(levels) // 2]


def _exp(logarithm: MetricValue) -> MetricValue:
    ends = (logarithm.value, logarithm.low, logarithm.high)
    return MetricValue(*(math.exp(end) if end < 700 else math.inf for end in ends))


def _floor(logarithm: MetricValue, points: Sequence[Point]) -> MetricValue:
    """Return a floor; what is far below every error measured is none."""
    found, least = _exp(logarithm), 1e-4 * min(p.loss for p in points)
    return MetricValue(*(0.0 if v < least else v for v in (found.value, found.low, found.high)))


def _say(value: MetricValue) -> str:
    def shown(end: float) -> str:
        return f"{end:.2g}" if math.isfinite(end) else ("anything" if end > 0 else "minus anything")

    return f"{value.value:.2g} (95%: {shown(value.low)} to {shown(value.high)})"


def _say_prediction(fit: ScalingFit, prediction: Prediction) -> str:
    at = " and ".join(
        f"L0 {value:.3g}" if name == "k" else f"{name} {value:,.0f}"
        for name, value in prediction.at.items()
    )
    loss = prediction.loss
    said = f"At {at} it predicts {loss.value:.3g} (95%: {loss.low:.3g} to {loss.high:.3g})"
    if prediction.reach > FAR:
        said += (
            f"; that is {prediction.reach:.2g} times beyond what was measured, and a law may bend "
            "there: take it as a guess"
        )
    return f"{said}."


def _finite(values: Any) -> Any:
    """Return the same with null for what JSON cannot hold."""
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
