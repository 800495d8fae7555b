"""pass@k: the chance that at least one of k samples is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SUCCESS = 0.5
"""A sample with a reward above it is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassAtK:
    """pass@k over problems.

    Attributes:
        value: Mean over the problems that could be judged, in [0, 1]; NaN if there are none.
        standard_error: Of the mean, over problems; NaN for fewer than two.
        num_problems: How many were judged.
        num_skipped: How many have fewer than k samples with a verdict.
    """

    value: float
    standard_error: float
    num_problems: int
    num_skipped: int


def pass_at_k(rewards: Sequence[Sequence[float]], k: int) -> PassAtK:
    """The unbiased estimate from N samples of each problem.

    1 − C(n − c, k) / C(n, k) for c right ones among n: the chance that k drawn without replacement
    are not all wrong. Estimating it as 1 − (1 − c/n)^k is biased downwards.

    Args:
        rewards: [P][N] verdicts, above 1/2 is right; NaN where there is none. N may differ.
        k: At least 1.

    Raises:
        ValueError: If k is less than 1.

    Source:
        Chen et al. 2021, "Evaluating large language models trained on code", arXiv:2107.03374,
        equation 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    chances = []
    for problem in rewards:
        known = [value for value in problem if not math.isnan(value)]
        if len(known) < k:
            continue
        num_right = sum(value > SUCCESS for value in known)
        chances.append(1.0 - math.comb(len(known) - num_right, k) / math.comb(len(known), k))
    spread = float(np.std(chances, ddof=1)) if len(chances) > 1 else math.nan
    return PassAtK(
        value=float(np.mean(chances)) if chances else math.nan,
        standard_error=spread / math.sqrt(len(chances)) if chances else math.nan,
        num_problems=len(chances),
        num_skipped=len(rewards) - len(chances),
    )
