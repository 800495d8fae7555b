"""Win rates that length does not explain.

Judges like long answers. What is left of a win rate if both were equally long is read off a fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewardsvc.policy_client.evaluation.win_rate import (
    check_confidence,
    group_numbers,
    wilson_interval,
)

PRIOR_DEVIATION = 5.0
"""Of both coefficients, in logits: nothing to hundreds of comparisons, and what keeps the fit
finite where one side wins all, or the longer answer always does."""

MAX_NEWTON_STEPS = 50
CONVERGED = 1e-20
"""Of what a step promises, in nats."""
SHORTEST_STEP = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthControlled:
    """A win rate at equal lengths.

    Attributes:
        value: The chance to win if both completions were equally long; NaN without comparisons.
        low: Lower end of its interval.
        high: Upper end.
        length_effect: Logits that an answer gains by being longer by far; 0 if length does not
            count.
    """

    value: float
    low: float
    high: float
    length_effect: float


def length_controlled_win_rate(
    points: Sequence[float],
    length_differences: Sequence[float],
    *,
    groups: Sequence[object] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> LengthControlled:
    """Fits how length sways the judge, and takes it out.

    With d the difference of lengths and s its standard deviation,
    P(win) = sigmoid(a + b tanh(d / s)), and the result is sigmoid(a). Ties are half a win. The
    interval is a bootstrap over groups, each with a fit of its own.

    Args:
        points: [N] 1 for a win, 1/2 for a tie, 0 for a loss; NaN where there is no verdict.
        length_differences: [N] ours less theirs, in any unit.
        groups: [N] the prompt of each comparison, where prompts have several. Each is its own if
            None.
        confidence: Of the interval, in (0, 1).
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: If lengths differ or the confidence is out of range.

    Source:
        Dubois et al. 2024, "Length-controlled AlpacaEval", arXiv:2404.04475, equation 2. Theirs has
        a third term for how hard each prompt is, estimated from many models; with two there is
        nothing to estimate it from. A normal prior of deviation 5 stands for their regularisation.
    """
    if len(points) != len(length_differences):
        raise ValueError(
            f"{len(points)} points and {len(length_differences)} differences; "
            "give one of each a comparison"
        )
    if groups is not None and len(groups) != len(points):
        raise ValueError(f"{len(points)} points and {len(groups)} groups; give one for each")
    check_confidence(confidence)
    y_N = np.asarray(points, np.float64)
    known = ~np.isnan(y_N)
    y_N = y_N[known]
    if not len(y_N):
        return LengthControlled(value=math.nan, low=math.nan, high=math.nan, length_effect=math.nan)
    difference_N = np.asarray(length_differences, np.float64)[known]
    # Standardised once, so that the coefficient means the same in every resample.
    spread = float(difference_N.std())
    x_N = np.tanh(difference_N / spread) if spread else np.zeros_like(difference_N)
    group_N = np.arange(len(y_N)) if groups is None else group_numbers(groups, known)
    num_groups = int(group_N.max()) + 1
    at_equal_length, effect = _fit(y_N, x_N, np.ones_like(y_N))
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(num_resamples):
        drawn = generator.integers(0, num_groups, num_groups)
        times_N = np.bincount(drawn, minlength=num_groups)[group_N].astype(np.float64)
        found.append(_sigmoid(_fit(y_N, x_N, times_N)[0]))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(found, [tail, 1.0 - tail])
    if y_N.min() == y_N.max() and y_N[0] in (0.0, 1.0):
        # Every draw is the same then, however few there are.
        low, high = wilson_interval(y_N[0] * num_groups, num_groups, confidence=confidence)
    return LengthControlled(
        value=float(_sigmoid(at_equal_length)),
        low=float(low),
        high=float(high),
        length_effect=float(effect),
    )


def _fit(y_N: np.ndarray, x_N: np.ndarray, weight_N: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of a logistic regression with the prior, by Newton's method.

    The objective is strictly concave; steps that overshoot are halved until it rises.
    """
    precision = 1.0 / PRIOR_DEVIATION**2
    design_N2 = np.stack([np.ones_like(x_N), x_N], axis=1)
    theta_2 = np.zeros(2)
    value = _objective(theta_2, design_N2, y_N, weight_N)
    for _ in range(MAX_NEWTON_STEPS):
        p_N = _sigmoid(design_N2 @ theta_2)
        gradient_2 = design_N2.T @ (weight_N * (y_N - p_N)) - precision * theta_2
        curvature_22 = (design_N2.T * (weight_N * p_N * (1.0 - p_N))) @ design_N2
        step_2 = np.linalg.solve(curvature_22 + precision * np.eye(2), gradient_2)
        if float(gradient_2 @ step_2) < CONVERGED:
            break
        size = 1.0
        while (
            new := _objective(theta_2 + size * step_2, design_N2, y_N, weight_N)
        ) < value and size > SHORTEST_STEP:
            size /= 2.0
        theta_2, value = theta_2 + size * step_2, new
    return float(theta_2[0]), float(theta_2[1])


def _objective(
    theta_2: np.ndarray, design_N2: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray
) -> float:
    """Log-likelihood with the prior."""
    z_N = design_N2 @ theta_2
    likelihood = weight_N @ (y_N * z_N - np.logaddexp(0.0, z_N))
    return float(likelihood - theta_2 @ theta_2 / (2.0 * PRIOR_DEVIATION**2))


def _sigmoid(z: np.ndarray | float) -> np.ndarray:
    # Through tanh, which does not overflow.
    return np.asarray(0.5 * (1.0 + np.tanh(np.multiply(z, 0.5))))
