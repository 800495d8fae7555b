"""Whether probabilities mean what they say: of what is given 80%, do 80% come true?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A reliability diagram and its summaries.

    Attributes:
        edges: [B + 1] of the bins, equally wide over [0, 1].
        predicted: [B] mean probability in each bin; NaN in an empty one.
        observed: [B] share that came true; NaN in an empty one.
        counts: [B].
        ece: Expected calibration error: mean distance of the two, weighted by counts.
        brier: Mean squared distance of probability and outcome.
        auroc: Chance that a true one is given more than a false one, ties half; NaN if all
            outcomes are alike.
        num_missing: Samples without a probability or an outcome.
    """

    edges: tuple[float, ...]
    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    counts: tuple[int, ...]
    ece: float
    brier: float
    auroc: float
    num_missing: int


def calibration(
    probabilities: Sequence[float], outcomes: Sequence[float], *, num_bins: int = 10
) -> Calibration:
    """Compares probabilities with what happened.

    Args:
        probabilities: [N] in [0, 1], such as a process reward model's; NaN where there is none.
        outcomes: [N], above 1/2 is true; NaN where nobody knows.
        num_bins: B, at least 1.

    Raises:
        ValueError: If lengths differ, or a probability is out of range.

    Source:
        Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599, equation 3.
    """
    if len(probabilities) != len(outcomes):
        raise ValueError(f"{len(probabilities)} probabilities, {len(outcomes)} outcomes")
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}; it must be at least 1")
    p_N, y_N = np.asarray(probabilities, np.float64), np.asarray(outcomes, np.float64)
    known_N = ~(np.isnan(p_N) | np.isnan(y_N))
    p_N, y_N = p_N[known_N], (y_N[known_N] > 0.5).astype(np.float64)
    if ((p_N < 0.0) | (p_N > 1.0)).any():
        bad = p_N[(p_N < 0.0) | (p_N > 1.0)][0]
        raise ValueError(f"a probability is {bad}; squash logits with a sigmoid first")
    bin_N = np.minimum((p_N * num_bins).astype(np.int64), num_bins - 1)
    counts_B = np.bincount(bin_N, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        predicted_B = np.bincount(bin_N, weights=p_N, minlength=num_bins) / counts_B
        observed_B = np.bincount(bin_N, weights=y_N, minlength=num_bins) / counts_B
    num = len(p_N)
    filled_B = counts_B > 0
    distance_B = np.abs(predicted_B - observed_B)[filled_B]
    return Calibration(
        edges=tuple(np.linspace(0.0, 1.0, num_bins + 1).tolist()),
        predicted=tuple(predicted_B.tolist()),
        observed=tuple(observed_B.tolist()),
        counts=tuple(counts_B.tolist()),
        ece=float((distance_B * counts_B[filled_B]).sum() / num) if num else math.nan,
        brier=float(np.square(p_N - y_N).mean()) if num else math.nan,
        auroc=_auroc(p_N, y_N > 0.5),
        num_missing=int((~known_N).sum()),
    )


def _auroc(p_N: np.ndarray, true_N: np.ndarray) -> float:
    """From ranks, which counts every pair without looking at each (Mann and Whitney)."""
    num_true, num_false = int(true_N.sum()), int((~true_N).sum())
    if not num_true or not num_false:
        return math.nan
    _, inverse, counts = np.unique(p_N, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    rank_N = (last_rank - (counts - 1) / 2.0)[inverse]  # ties share their mean rank, from 1
    return float((rank_N[true_N].sum() - num_true * (num_true + 1) / 2.0) / (num_true * num_false))
