"""Best-of-n: how right the sample is that a reward model likes best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfNCurve:
    """Quality against the number of samples to choose from, means over problems.

    Attributes:
        ns: Numbers of samples.
        chosen: Quality of the sample with the best score.
        oracle: Quality of the best sample, the most that any score could reach.
        random: Quality of a random sample; the same at every n.
        num_problems: Problems with enough scored samples, at each n.
    """

    ns: tuple[int, ...]
    chosen: tuple[float, ...]
    oracle: tuple[float, ...]
    random: float
    num_problems: tuple[int, ...]


def best_of_n(scores: Sequence[float], quality: Sequence[float], n: int) -> float:
    """Expected quality of the best-scored of n samples drawn without replacement from N.

    Exact, with no resampling: sorted by score, the sample of rank i (from 0, the best) is the best
    of the draw with probability C(N − 1 − i, n − 1) / C(N, n). Samples of equal score share their
    places evenly. The curve that one gets from the first n samples has far more noise.

    Args:
        scores: [N] of a reward model; NaN where there is none.
        quality: [N] of a verifier or a better judge; NaN where there is none. Samples that lack
            either are left out.
        n: At least 1.

    Returns:
        NaN if fewer than n samples have both.

    Raises:
        ValueError: If lengths differ or n is less than 1.

    Source:
        Nakano et al. 2021, "WebGPT", arXiv:2112.09332, appendix I.
    """
    if len(scores) != len(quality):
        raise ValueError(f"{len(scores)} scores and {len(quality)} qualities; give one of each")
    if n < 1:
        raise ValueError(f"n is {n}; it must be at least 1")
    both = [
        (score, value)
        for score, value in zip(scores, quality, strict=True)
        if not (math.isnan(score) or math.isnan(value))
    ]
    total = len(both)
    if total < n:
        return math.nan
    both.sort(key=lambda pair: -pair[0])
    of_score: dict[float, list[float]] = {}
    for score, value in both:
        of_score.setdefault(score, []).append(value)
    expected, rank = 0.0, 0
    ways = math.comb(total, n)
    for values in of_score.values():
        # The draw's best is among these unless all n come from below, or one from above.
        below = total - rank - len(values)
        chance = (math.comb(total - rank, n) - math.comb(below, n)) / ways
        expected += chance * sum(values) / len(values)
        rank += len(values)
    return expected


def best_of_n_curve(
    scores: Sequence[Sequence[float]], quality: Sequence[Sequence[float]], ns: Sequence[int]
) -> BestOfNCurve:
    """The curve over problems.

    Args:
        scores: [P][N] of a reward model, outcome or process.
        quality: [P][N] of a verifier.
        ns: Numbers of samples to choose from.

    Raises:
        ValueError: If lengths differ or an n is less than 1.
    """
    if len(scores) != len(quality):
        raise ValueError(f"{len(scores)} and {len(quality)} problems; give both for each")
    chosen, oracle, counts = [], [], []
    for n in ns:
        found = np.array([best_of_n(s, q, n) for s, q in zip(scores, quality, strict=True)])
        most = np.array(
            [best_of_n(_where_scored(s, q), q, n) for s, q in zip(scores, quality, strict=True)]
        )
        counts.append(int((~np.isnan(found)).sum()))
        chosen.append(float(np.nanmean(found)) if counts[-1] else math.nan)
        oracle.append(float(np.nanmean(most)) if counts[-1] else math.nan)
    single = np.array([best_of_n(s, q, 1) for s, q in zip(scores, quality, strict=True)])
    return BestOfNCurve(
        ns=tuple(ns),
        chosen=tuple(chosen),
        oracle=tuple(oracle),
        random=float(np.nanmean(single)) if not np.isnan(single).all() else math.nan,
        num_problems=tuple(counts),
    )


def _where_scored(scores: Sequence[float], quality: Sequence[float]) -> list[float]:
    """The quality as a score, of the same samples that the score could choose from."""
    return [
        math.nan if math.isnan(score) else value
        for score, value in zip(scores, quality, strict=True)
    ]
