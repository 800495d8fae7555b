"""Numbers that need more than one step: is the proxy rising while the truth falls?"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ProxyGap:
    """How far a proxy reward has run away from the truth, in standard errors.

    Over a sliding window, both series get a straight line by least squares. If the proxy's slope is
    up and the truth's is down, the gap is the smaller of the two slopes' t-statistics (both taken
    as positive); otherwise it is 0. Noise gives values below 2; a policy that exploits its reward
    gives large ones within a window. A truth that falls together with its proxy is not hacking but
    a bad run, and other rules see that.

    Source: the pattern is Gao et al. 2022, "Scaling laws for reward model overoptimization",
        arXiv:2210.10760, figure 1; the statistic is ours.
    """

    def __init__(self, window: int) -> None:
        """An empty window.

        Args:
            window: Steps that it holds; at least 4, since a line through 2 has no error.
        """
        if window < 4:
            raise ValueError(f"window is {window}; it must be at least 4")
        self._points: deque[tuple[float, float]] = deque(maxlen=window)

    def update(self, proxy: float | None, truth: float | None) -> float:
        """Takes one step, unless it lacks either; NaN until the window is half full."""
        if proxy is not None and truth is not None and all(map(math.isfinite, (proxy, truth))):
            self._points.append((proxy, truth))
        assert self._points.maxlen is not None
        if len(self._points) < max(4, self._points.maxlen // 2):
            return math.nan
        proxies, truths = np.array(self._points, np.float64).T
        up, down = slope_t(proxies), -slope_t(truths)
        return max(0.0, min(up, down))

    def clear(self) -> None:
        """Forgets all points, as after a roll-back."""
        self._points.clear()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; JSON."""
        return {"points": [list(point) for point in self._points]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self._points.clear()
        self._points.extend((float(proxy), float(truth)) for proxy, truth in state["points"])


def slope_t(series: NDArray[np.float64]) -> float:
    """The t-statistic of a least-squares slope over equally spaced points; 0 for a constant."""
    num = len(series)
    x = np.arange(num, dtype=np.float64) - (num - 1) / 2.0
    sum_xx = float((x * x).sum())
    slope = float((x * series).sum()) / sum_xx
    rest = series - series.mean() - slope * x
    variance = float((rest * rest).sum()) / (num - 2)
    scale = float(np.abs(series).max()) or 1.0
    if abs(slope) * num < 1e-12 * scale:
        return 0.0
    # A line without any noise is as certain as numbers can say.
    error = max(math.sqrt(variance / sum_xx), 1e-9 * abs(slope))
    return slope / error


def bimodality(values: Sequence[float]) -> float:
    """Sarle's coefficient of a reward distribution, in (0, 1]; NaN for fewer than 4 finite values.

    (skewness^2 + 1) / (excess kurtosis + 3 (n − 1)^2 / ((n − 2)(n − 3))), with sample-corrected
    moments: 5/9 for a uniform distribution, about 1/3 for a normal one, and near 1 for two separate
    heaps, such as a reward that some completions have found a trick for.

    Source: SAS Institute 1990; Pfister et al. 2013, doi:10.3389/fpsyg.2013.00700, equation 1.
    """
    found = np.array([value for value in values if math.isfinite(value)], np.float64)
    num = len(found)
    if num < 4:
        return math.nan
    deviation = found - found.mean()
    variance = float((deviation**2).mean())
    if variance <= 1e-24 * max(1.0, float(np.abs(found).max()) ** 2):
        return math.nan
    skew = float((deviation**3).mean()) / variance**1.5
    excess = float((deviation**4).mean()) / variance**2 - 3.0
    skew *= math.sqrt(num * (num - 1)) / (num - 2)
    excess = (num - 1) / ((num - 2) * (num - 3)) * ((num + 1) * excess + 6.0)
    heaps = (skew**2 + 1.0) / (excess + 3.0 * (num - 1) ** 2 / ((num - 2) * (num - 3)))
    return float(heaps)
