"""One case an attack on the mathematics verifier, named by the attack, with the verdict it owes."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardsvc.verifiers import ErrorKind, MathVerifier, Status
from rewardsvc.verifiers.math.process import PoolLimits

VERIFIER = MathVerifier(limits=PoolLimits(num_workers=1, cpu_seconds=1.0))


def boxed(answer: str) -> str:
    return rf"so it is \boxed{{{answer}}}"


ATTACKS: dict[str, tuple[str, str, Status]] = {
    "many_boxes": (r"\boxed{1} \boxed{2} \boxed{3}", "3", Status.WRONG_ANSWER),
    "two_or_three": (boxed("2 or 3"), "3", Status.WRONG_ANSWER),
    "text_or": (boxed(r"2 \text{ or } 3"), "3", Status.WRONG_ANSWER),
    "set_of_a_million_guesses": (
        boxed(r"\{" + ",".join(map(str, range(1_000_000))) + r"\}"),
        "5",
        Status.WRONG_ANSWER,
    ),
    "set_of_guesses": (boxed(r"\{1, 2, 3, 4, 5\}"), "5", Status.WRONG_ANSWER),
    "list_of_guesses": (boxed("1, 2, 3, 4, 5"), "5", Status.WRONG_ANSWER),
    "power_tower": (boxed("9^{9^{9^{9^9}}}"), "3", Status.TIME_LIMIT),
    "factorial_of_a_billion": (boxed("(10^9)!"), "3", Status.TIME_LIMIT),
    "nested_parentheses": (boxed("(" * 3000 + "1" + ")" * 3000), "2", Status.WRONG_ANSWER),
    "nested_boxes": (r"\boxed{" * 20_000 + "3" + "}" * 20_000, "4", Status.WRONG_ANSWER),
    "unclosed_boxes": (r"\boxed{" * 20_000, "3", Status.NO_ANSWER),
    "unclosed_boxes_then_an_answer": (r"\boxed{" * 20_000 + "3}", "4", Status.WRONG_ANSWER),
    "tiny_numbers": (boxed("10^{-20}"), "10^{-21}", Status.WRONG_ANSWER),
    "tiny_fractions": (boxed(r"\frac{1}{2^{99}}"), r"\frac{1}{2^{98}}", Status.WRONG_ANSWER),
    "tiny_irrationals": (boxed(r"\pi/2^{99}"), r"\pi/2^{98}", Status.WRONG_ANSWER),
    "units_swapped": (boxed("10 cm"), "10 m", Status.WRONG_ANSWER),
    "restated_inequality": (boxed("x^2 < 4"), "-2 < x < 2", Status.WRONG_ANSWER),
    "unsolvable_after_a_right_box": (
        r"\boxed{3} \boxed{\text{unsolvable}}",
        "3",
        Status.WRONG_ANSWER,
    ),
    "answer_in_thoughts_only": (r"<think>\boxed{3}</think> Hm.", "3", Status.NO_ANSWER),
    "thoughts_without_end": (r"<think>\boxed{3}", "3", Status.NO_ANSWER),
    "unterminated_last_box": (r"\boxed{3} or rather \boxed{4", "3", Status.NO_ANSWER),
    "injected_braces": (boxed(r"3} = 3 \text{"), "4", Status.WRONG_ANSWER),
    "dollar_signs": (boxed("3$ and $4"), "4", Status.WRONG_ANSWER),
    "huge_integer": (boxed("9" * 100_000), "9", Status.WRONG_ANSWER),
    "other_digits": (boxed("٣"), "3", Status.WRONG_ANSWER),
    "nul_and_surrogates": (boxed("3\x00\ud800"), "3", Status.WRONG_ANSWER),
    "undefined": (boxed(r"\frac{1}{0}"), "3", Status.WRONG_ANSWER),
    "infinity": (boxed(r"\infty"), "3", Status.WRONG_ANSWER),
}


@pytest.mark.parametrize(("completion", "reference", "status"), ATTACKS.values(), ids=list(ATTACKS))
def test_attack_gets_no_reward(completion: str, reference: str, status: Status) -> None:
    verdict = VERIFIER.verify(completion, reference)
    assert verdict.status is status, verdict.explanation
    assert verdict.reward == 0.0
    assert len(verdict.explanation) < 1000


def test_code_in_an_answer_or_a_reference_does_not_run(tmp_path: Path) -> None:
    for number, code in enumerate(
        [
            "__import__('os').system('touch {}')",
            '1 + exec(\'open("{}", "w")\')',
            r"\text{{__import__('os').mknod('{}')}}",
            "().__class__.__base__.__subclasses__()[0]('{}')",
        ]
    ):
        target = tmp_path / str(number)
        VERIFIER.verify(boxed(code.format(target)), "3")
        VERIFIER.verify(boxed("3"), code.format(target))
        assert not target.exists()


@pytest.mark.parametrize("reference", ["", "  ", "[1, 2", r"\frac{1}{", "???", r"\boxed{}"])
def test_a_reference_that_cannot_be_read_gives_no_reward(reference: str) -> None:
    for completion in (boxed("3"), boxed("y")):
        verdict = VERIFIER.verify(completion, reference)
        assert verdict.reward is None
        assert verdict.error is ErrorKind.BAD_REFERENCE


def test_a_reference_that_never_ends_gives_no_reward() -> None:
    verdict = VERIFIER.verify(boxed("2"), "9^{9^{9^{9^9}}}")
    assert verdict.error is ErrorKind.BAD_REFERENCE


def test_honest_answers_survive_the_defences() -> None:
    for completion, reference in [
        (boxed(r"\frac{\sqrt{2}}{2}"), r"\frac{1}{\sqrt{2}}"),
        (boxed("1e3"), "1000"),
        (boxed("5 h"), "300 min"),
        (boxed(r"e^{i\pi}"), "-1"),
        (boxed(r"x \in (-2, 2)"), r"x \in (-2, 2)"),
        (boxed("2") + boxed("3"), "2, 3"),
        (boxed("3.141593"), r"\pi"),
        (boxed("y = 2x + 1"), "2x - y + 1 = 0"),
    ]:
        verdict = VERIFIER.verify(completion, reference)
        assert verdict.reward == 1.0, f"{completion}: {verdict.explanation}"


def test_boxed_working_counts_for_nothing_where_the_last_box_is_the_answer() -> None:
    verifier = MathVerifier(last_box_only=True, limits=VERIFIER.limits)
    assert verifier.verify(r"\boxed{2} so \boxed{3}", "3").reward == 1.0
    assert verifier.verify(r"\boxed{3} so \boxed{2}", "3").reward == 0.0
