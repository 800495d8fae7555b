"""How padded batches are put together: rows of similar length, around the most urgent item."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from rewardsvc.engine.types import Encoded


class PaddedShape:
    """Rows padded to the longest; a batch costs rows times its longest row.

    Args:
        min_fill: Smallest share of real tokens among computed ones that a batch may have; more
            padding than that costs more than a second forward pass. In (0, 1].
    """

    def __init__(self, min_fill: float = 0.75) -> None:
        self._min_fill = min_fill

    def cost(self, item: Encoded) -> int:
        """The item's length."""
        return len(item)

    def num_computed_tokens(self, batch: Sequence[Encoded]) -> int:
        """Rows times the longest row."""
        return len(batch) * max(map(len, batch), default=0)

    def select(self, window: Sequence[Encoded], budget: int) -> list[int]:
        """The run of neighbours in length, with item 0 among them, that holds most real tokens.

        For each possible longest row, the budget gives the first row that it can go with, and
        bisection the first that does not need too much padding: without its shortest row, a run is
        always better filled.
        """
        order = sorted(range(len(window)), key=lambda i: len(window[i]))
        lengths = [len(window[i]) for i in order]
        sums = [0, *accumulate(lengths)]
        head = order.index(0)

        best, best_tokens = (head, head), lengths[head]
        for last in range(head, len(order)):
            longest = lengths[last]
            if longest > budget:
                break
            first = max(0, last + 1 - budget // longest)
            if sums[last + 1] - sums[first] <= best_tokens:
                continue
            first = self._first_well_filled(sums, longest, first, last)
            tokens = sums[last + 1] - sums[first]
            if first <= head and tokens > best_tokens:
                best, best_tokens = (first, last), tokens
        return order[best[0] : best[1] + 1]

    def _first_well_filled(self, sums: list[int], longest: int, first: int, last: int) -> int:
        """The least start at or after `first` of a run up to `last` without too much padding."""
        low, high = first, last
        probe = first  # mostly the answer: lengths in a window are alike
        while low < high:
            real, computed = sums[last + 1] - sums[probe], (last + 1 - probe) * longest
            if real >= self._min_fill * computed:
                high = probe
            else:
                low = probe + 1
            probe = (low + high) // 2
        return low


class AloneShape:
    """One sequence a batch."""

    def cost(self, item: Encoded) -> int:
        """The item's length."""
        return len(item)

    def num_computed_tokens(self, batch: Sequence[Encoded]) -> int:
        """The tokens of all."""
        return sum(map(len, batch))

    def select(self, window: Sequence[Encoded], budget: int) -> list[int]:
        """The most urgent one."""
        return [0]
