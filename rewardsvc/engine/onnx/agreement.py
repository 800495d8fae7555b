"""How the ranks that two models give agree: what matters of a reward that is quantised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rewardsvc.engine.onnx.folder import Agreement

Scores = NDArray[np.float64]


def rank_agreement(exact: Scores, approximate: Scores) -> Agreement:
    """Compares two models' scores of the same samples; float [N], at least two.

    Raises:
        ValueError: If the lengths differ, or there are fewer than two.
    """
    if exact.shape != approximate.shape or exact.ndim != 1 or len(exact) < 2:
        raise ValueError(
            f"scores: {exact.shape} against {approximate.shape}; both must be [N >= 2]"
        )
    above, below = np.triu_indices(len(exact), k=1)
    by_exact = np.sign(exact[above] - exact[below])
    by_other = np.sign(approximate[above] - approximate[below])
    unequal = by_exact != 0
    num_unequal, num_other = int(unequal.sum()), int((by_other != 0).sum())
    # tau-b: pairs that one model cannot tell apart count in the other's favour, not against.
    ties = np.sqrt(float(num_unequal) * num_other)
    return Agreement(
        num_samples=len(exact),
        spearman=_correlation(_ranks(exact), _ranks(approximate)),
        kendall=float((by_exact * by_other).sum() / ties) if ties else float("nan"),
        pairwise=float((by_exact == by_other)[unequal].mean()) if num_unequal else float("nan"),
        max_difference=float(np.abs(exact - approximate).max()),
        deviation=float(exact.std()),
    )


def _ranks(values: Scores) -> Scores:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    means: Scores = last - (counts - 1) / 2
    return means[inverse]


def _correlation(a: Scores, b: Scores) -> float:
    if a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
