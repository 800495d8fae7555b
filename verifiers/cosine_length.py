"""A reward for correctness that a cosine bends by length."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineCurve:
    """Rewards at both ends of the curves. The defaults are the paper's.

    Attributes:
        max_length: L_max, above 0, in the unit in which lengths are given.
        correct_at_zero: r_0^c, what a right answer earns that took no words.
        correct_at_max: r_L^c, what it earns just below the limit.
        wrong_at_zero: r_0^w, the same for wrong answers. Where it is below `wrong_at_max`, thinking
            longer about what one cannot yet do costs less.
        wrong_at_max: r_L^w.
        at_limit: r_e, what a completion earns that reached the limit, right or wrong; None goes
            on with the ends of the curves.

    Raises:
        ValueError: If a reward is not finite or `max_length` is below 1.
    """

    max_length: int
    correct_at_zero: float = 2.0
    correct_at_max: float = 1.0
    wrong_at_zero: float = -10.0
    wrong_at_max: float = 0.0
    at_limit: float | None = -10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{field.name} is {value}; give a finite number")
        if self.max_length < 1:
            raise ValueError(f"max_length is {self.max_length}; give 1 or more")


def cosine_length_reward(length: int, *, correct: bool, curve: CosineCurve) -> float:
    """`r_L + (r_0 - r_L) * (1 + cos(pi * length / L_max)) / 2`, with the ends for right or wrong.

    Args:
        length: Of the completion, 0 or more.
        correct: Whether its answer is right.
        curve: The ends.

    Returns:
        The reward: r_0 at length 0, towards r_L at the limit, and `at_limit` from there on.

    Raises:
        ValueError: If `length` is negative.

    Source: Yeo et al., "Demystifying Long Chain-of-Thought Reasoning in LLMs", arXiv:2502.03373,
        section 4.2 and appendix C.1. There a completion cannot exceed the limit; here one that does
        is treated as one that reached it, because the cosine would rise again.
    """
    if length < 0:
        raise ValueError(f"length is {length}; give 0 or more")
    if length >= curve.max_length and curve.at_limit is not None:
        return curve.at_limit
    if correct:
        start, end = curve.correct_at_zero, curve.correct_at_max
    else:
        start, end = curve.wrong_at_zero, curve.wrong_at_max
    progress = min(length, curve.max_length) / curve.max_length
    return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0
