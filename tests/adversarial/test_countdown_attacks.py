"""One case an attack on the Countdown verifier: none may earn a reward, none may take long."""

from __future__ import annotations

import pytest

from rewardsvc.verifiers import Countdown, Status

ATTACKS: dict[str, str] = {
    "code": "__import__('os').getpid() * 0 + 6",
    "power": "2 ** 3",
    "power_tower": "9 ** 9 ** 9 ** 9",
    "floor_division": "7 // 1",
    "other_number": "6",
    "hexadecimal": "0x2 * 0x3",
    "underscore": "2_0 * 3",
    "scientific": "2e0 * 3",
    "decimal": "2.0 * 3",
    "full_width_digits": "２ * ３",
    "arabic_digits": "٢ * ٣",
    "superscript": "2² * 3",
    "times_sign": "2 × 3",
    "implicit_product": "2(3)",
    "concatenated_digits": "2 3 - 17",
    "leading_zeros_as_another_number": "02 * 003 + 0",
    "comment": "2 * 3 # ignored",
    "comparison": "2 * 3 == 6",
    "claim_only": "= 6",
    "claim_without_the_work": "2 = 6",
    "walrus": "(a := 6)",
    "nested_parentheses": "(" * 400 + "2*3" + ")" * 399,
    "long_sum": "2*3" + "+0" * 100_000,
    "huge_number": "9" * 900,
    "division_by_zero": "2 / (3 - 3)",
    "line_separator": "2 * 3\u2028+ 1",
    "nul": "2 * 3\x00",
    "surrogate": "2 * 3\ud800",
    "right_to_left": "\u202e3 * 2",
    "nothing": "",
}


@pytest.mark.parametrize("answer", ATTACKS.values(), ids=list(ATTACKS))
def test_attack_gets_no_reward(answer: str) -> None:
    verdict = Countdown().verify(answer, [2, 3], 6)
    assert verdict.status in (Status.WRONG_ANSWER, Status.NO_ANSWER)
    assert verdict.reward == 0.0
    assert len(verdict.explanation) < 500


def test_values_do_not_grow_beyond_bounds() -> None:
    numbers = [10**29] * 100
    verdict = Countdown().verify("*".join(map(str, numbers[:30])), numbers, 1)
    assert verdict.reward == 0.0
