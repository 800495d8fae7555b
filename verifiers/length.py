"""A penalty that grows with what is written beyond a target."""

from __future__ import annotations


def length_penalty(length: int, *, target: int, weight: float = 1.0) -> float:
    """`-weight * max(0, length - target) / target`.

    Args:
        length: Of the completion, 0 or more.
        target: What is free, above 0, in the unit of `length`.
        weight: The penalty at twice the target; 0 or more.

    Returns:
        The penalty, 0.0 or below; to be added to the reward.

    Raises:
        ValueError: If `length` or `target` is out of range.
    """
    if length < 0:
        raise ValueError(f"length is {length}; give 0 or more")
    if target < 1:
        raise ValueError(f"target is {target}; give 1 or more")
    excess = max(0, length - target)
    return -weight * excess / target if excess else 0.0
