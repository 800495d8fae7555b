"""DAPO's soft overlong punishment."""

from __future__ import annotations


def overlong_penalty(length: int, *, max_length: int, cache_length: int) -> float:
    """0 up to `max_length - cache_length`, then linear down to -1 at `max_length`, then -1.

    Args:
        length: Of the completion, 0 or more.
        max_length: L_max, above 0, in the unit of `length`.
        cache_length: L_cache, 0 to `max_length`: the width of the linear part. At 0 there is none.

    Returns:
        The penalty, -1.0 to 0.0; to be added to the reward.

    Raises:
        ValueError: If a length is out of range.

    Source: Yu et al., "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
        arXiv:2503.14476, equation 13.
    """
    if length < 0:
        raise ValueError(f"length is {length}; give 0 or more")
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; give 1 or more")
    if not 0 <= cache_length <= max_length:
        raise ValueError(f"cache_length is {cache_length}; give 0 to max_length = {max_length}")
    safe_length = max_length - cache_length
    if length <= safe_length:
        return 0.0
    if length > max_length:
        return -1.0
    return (safe_length - length) / cache_length
