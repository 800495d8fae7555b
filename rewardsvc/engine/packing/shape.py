"""How packed batches are put together: what shares a prefix together, around the most urgent item.

Sorted by their tokens, the items of a window fall into families: runs of neighbours that begin
alike. The most urgent item's family comes first, nearest relatives before distant ones; then, in
the order of urgency, others that the budget has room for. A family that would have to be split
waits for the next batch: both would have to compute its prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rewardsvc.engine.packing.prefixes import MIN_SPLIT, common_length, prefix_tree
from rewardsvc.engine.types import Encoded

SPLIT_SHARE = 8
"""A family may be split to fill a batch up if its prefix is at most this part of what is filled."""

MAX_MISSES = 16
"""Families that are looked at and do not fit, before a batch is taken as full."""


class PackedShape:
    """Sequences one behind another; a batch costs its tokens, those of a shared prefix once.

    Args:
        share: Whether prefixes are shared.
        max_together: Sequences longer than this run alone; None is no limit. For models that
            compute all sequences of a batch in another way if one of them is longer.
    """

    def __init__(self, *, share: bool, max_together: int | None = None) -> None:
        self._share = share
        self._max_together = max_together

    def cost(self, item: Encoded) -> int:
        """The item's length."""
        return len(item)

    def num_computed_tokens(self, batch: Sequence[Encoded]) -> int:
        """Distinct tokens, but for prefixes too short to be worth sharing."""
        return prefix_tree(batch, share=self._share).num_rows if batch else 0

    def select(self, window: Sequence[Encoded], budget: int) -> list[int]:
        """See the module's text."""
        if len(window[0]) > budget or self._is_too_long(window[0]):
            return [0]
        if not self._share:
            return self._first_fit(window, budget)
        families = _Families(window)
        chosen: list[int] = []
        taken: set[int] = set()
        waiting: set[int] = set()
        room, num_misses = budget, 0
        for index, item in enumerate(window):
            if num_misses == MAX_MISSES:
                break
            settled = index in taken or index in waiting
            if settled or len(item) > room or self._is_too_long(item):
                continue
            family = self._family(families, index, room, taken)
            is_split = family.is_split or not waiting.isdisjoint(family.members)
            if chosen and is_split and family.prefix * SPLIT_SHARE > room:
                waiting.update(family.members)
                num_misses += 1
                continue
            chosen += family.members
            taken.update(family.members)
            room -= family.cost
        return self._within(window, chosen, budget)

    def _is_too_long(self, item: Encoded) -> bool:
        return self._max_together is not None and len(item) > self._max_together

    def _first_fit(self, window: Sequence[Encoded], budget: int) -> list[int]:
        chosen = []
        for index, item in enumerate(window):
            if len(item) <= budget and not self._is_too_long(item):
                chosen.append(index)
                budget -= len(item)
        return chosen

    def _family(self, families: _Families, index: int, room: int, taken: set[int]) -> _Family:
        """The item and as many of its relatives as there is room for, less those taken already."""
        found = _Family(members=[index], cost=len(families.window[index]))
        for relative, common in families.relatives(index):
            item = families.window[relative]
            if relative in taken or self._is_too_long(item):
                continue
            found.prefix = max(found.prefix, common)
            if found.cost + len(item) - common > room:
                found.is_split = True
                break
            found.members.append(relative)
            found.cost += len(item) - common
        return found

    def _within(self, window: Sequence[Encoded], chosen: list[int], budget: int) -> list[int]:
        """Without the last few, should the tree share less than neighbours have in common."""
        while len(chosen) > 1 and self.num_computed_tokens([window[i] for i in chosen]) > budget:
            chosen = chosen[:-1]
        return chosen


@dataclass(slots=True, kw_only=True)
class _Family:
    """Items of a window that begin alike.

    Attributes:
        members: Their indices.
        cost: Their tokens, common ones once.
        prefix: Most tokens that two of them have in common.
        is_split: Whether there are more than there was room for.
    """

    members: list[int]
    cost: int
    prefix: int = 0
    is_split: bool = False


class _Families:
    """The items of a window in the order of their tokens, compared when asked for."""

    def __init__(self, window: Sequence[Encoded]) -> None:
        self.window = window
        self._order = sorted(range(len(window)), key=lambda i: window[i].order_key)
        self._place = {index: place for place, index in enumerate(self._order)}

    def relatives(self, index: int) -> Iterator[tuple[int, int]]:
        """Items that begin like this one or a relative before, and how many tokens are common."""
        low = high = self._place[index]
        below, above = self._common(low - 1), self._common(high)
        while max(below, above) >= MIN_SPLIT:
            if below >= above:
                low -= 1
                yield self._order[low], below
                below = self._common(low - 1)
            else:
                high += 1
                yield self._order[high], above
                above = self._common(high)

    def _common(self, place: int) -> int:
        """Tokens that the items at a place and behind it have in common."""
        if not 0 <= place < len(self._order) - 1:
            return 0
        one, other = (self.window[self._order[place + i]] for i in (0, 1))
        return common_length(one, other)
