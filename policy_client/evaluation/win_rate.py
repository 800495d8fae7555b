"""Win rates with intervals that hold near 0 and 1, and for few comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """How often one policy beats another.

    Attributes:
        value: Wins and half the ties, of all comparisons; NaN if there are none.
        low: Lower end of the interval.
        high: Upper end.
        wins: Comparisons won.
        ties: Equal rewards.
        losses: Comparisons lost.
        num_missing: Comparisons in which one side has no reward.
    """

    value: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    num_missing: int


def win_rate(
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    groups: Sequence[object] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> WinRate:
    """Compares rewards of two policies on the same prompts.

    Args:
        ours: [N], NaN where there is no reward.
        theirs: [N], of the other policy for the same prompts.
        groups: [N] the prompt of each comparison, where prompts have several: comparisons of one
            prompt are not independent, so the interval is then a bootstrap over prompts. Without,
            it is Wilson's.
        confidence: Of the interval, in (0, 1).
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: If lengths differ or the confidence is out of range.
    """
    if len(ours) != len(theirs) or (groups is not None and len(groups) != len(ours)):
        raise ValueError(
            f"{len(ours)} rewards against {len(theirs)}, "
            f"{'no' if groups is None else len(groups)} groups; give one of each a comparison"
        )
    check_confidence(confidence)
    mine, other = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    known = ~(np.isnan(mine) | np.isnan(other))
    points = np.where(mine > other, 1.0, np.where(mine == other, 0.5, 0.0))[known]
    num = len(points)
    if num == 0:
        value = low = high = math.nan
    elif groups is None:
        value = float(points.mean())
        low, high = wilson_interval(float(points.sum()), num, confidence=confidence)
    else:
        value = float(points.mean())
        generator = np.random.default_rng(seed)
        numbers = group_numbers(groups, known)
        low, high = _bootstrap(points, numbers, confidence, generator, num_resamples)
    return WinRate(
        value=value,
        low=low,
        high=high,
        wins=int((points == 1.0).sum()),
        ties=int((points == 0.5).sum()),
        losses=int((points == 0.0).sum()),
        num_missing=int((~known).sum()),
    )


def wilson_interval(
    successes: float, trials: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's interval of a proportion.

    Args:
        successes: In [0, trials]; ties may count half, which makes the interval a little too wide.
        trials: At least 1.
        confidence: In (0, 1).

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    check_confidence(confidence)
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials; need 0 <= successes <= trials")
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    share = successes / trials
    center = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def _bootstrap(
    points: np.ndarray,
    group: np.ndarray,
    confidence: float,
    generator: np.random.Generator,
    num_resamples: int,
) -> tuple[float, float]:
    """Percentile interval from drawing whole groups with replacement.

    Where one side has won all, every draw says so; what few groups leave open is then Wilson's.
    """
    sums = np.bincount(group, weights=points)
    counts = np.bincount(group)
    if points.min() == points.max() and points[0] in (0.0, 1.0):
        return wilson_interval(float(points[0]) * len(counts), len(counts), confidence=confidence)
    drawn = generator.integers(0, len(counts), (num_resamples, len(counts)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def group_numbers(groups: Sequence[object], known: np.ndarray) -> np.ndarray:
    """The groups of what is known as numbers from 0, without a gap.

    Args:
        groups: [N] of any names.
        known: bool [N].

    Returns:
        int64, one for each that is known.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    numbers = np.array([names[name] for name in groups], np.int64)[known]
    return np.unique(numbers, return_inverse=True)[1]


def check_confidence(confidence: float) -> None:
    """Refuses a confidence that is none.

    Raises:
        ValueError: If it is not in (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; it must be between 0 and 1")
