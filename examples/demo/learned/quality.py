"""The true quality of an answer to the sorting task: what the reward model is only a proxy for.

`rewardsvc serve` loads `true_quality` as a scorer of type `python`.
"""

from __future__ import annotations

from typing import Any


def share_in_place(completion: str, answer: str) -> float:
    """Share of positions with the right digit, 0.0 to 1.0; missing and surplus digits are wrong."""
    length = max(len(completion), len(answer))
    hits = sum(a == b for a, b in zip(completion, answer, strict=False))
    return hits / length if length else 1.0


def true_quality(sample: Any) -> float | None:
    """`share_in_place` of a sample; None, no reward, where there is no reference answer."""
    if sample.answer is None:
        return None
    return share_in_place(sample.completion_text, sample.answer)
