"""Which letter a completion chooses, and what is a hedge."""

from __future__ import annotations

import pytest

from rewardsvc.verifiers import ErrorKind, MultipleChoice, Status

RIGHT = [
    "B", "(b)", "b.", "**B.**", "B) Paris", "Option B", "so\n\nB", "The answer is B.",
    "the answer is: **B**", "Answer: B because it is nearest", "#### B", r"\boxed{B}",
    r"$\boxed{\text{B}}$", r"\boxed{B} and again \boxed{(B)}", "<answer> B </answer>",
    "The answer is A. No, wait: the answer is B", "<think>A or C</think>B",
    r"It may be A or C. \boxed{B}",
]  # fmt: skip
WRONG = [
    "A", "The answer is C", "The answer is A because B is too small", "Answer: B or C", "A, B",
    "Answer: B and C", "the answer is B, not A", r"\boxed{A} \boxed{B}", r"\boxed{B, C}",
    "The answer is B/C", "<answer>B or D</answer>", "<think>B</think>C",
]  # fmt: skip
NO_ANSWER = [
    "", "B or C", "none of them", "A cat sat down.", "a dog", "Paris", "<think>B", r"\boxed{B", "E",
    "The answer is clear", r"\boxed{}", "BB", "<think>B</think>", "\x00\ud800",
]  # fmt: skip


@pytest.mark.parametrize("completion", RIGHT)
def test_the_right_letter_is_accepted(completion: str) -> None:
    assert MultipleChoice().verify(completion, "B").status is Status.ACCEPTED


@pytest.mark.parametrize("completion", WRONG)
def test_another_letter_and_a_hedge_are_wrong(completion: str) -> None:
    assert MultipleChoice().verify(completion, "B").status is Status.WRONG_ANSWER


@pytest.mark.parametrize("completion", NO_ANSWER)
def test_what_chooses_nothing_is_no_answer(completion: str) -> None:
    assert MultipleChoice().verify(completion, "B").status is Status.NO_ANSWER


def test_the_pronoun_is_no_choice_but_the_ninth_letter_is() -> None:
    verifier = MultipleChoice(num_choices=10)
    assert verifier.verify("The answer is B, I think", "B").reward == 1.0
    assert verifier.verify("The answer is I", "I").reward == 1.0
    assert verifier.verify("I think so", "I").reward == 0.0
    assert verifier.verify("The answer is B or I think", "B").reward == 0.0


@pytest.mark.parametrize("answer", ["", "E", "AB", "1", "Paris"])
def test_an_answer_that_is_no_letter_is_no_reward(answer: str) -> None:
    assert MultipleChoice().verify("A", answer).error is ErrorKind.BAD_REFERENCE


@pytest.mark.parametrize("answer", ["B", "b", "(B)", " B. "])
def test_the_reference_may_be_decorated(answer: str) -> None:
    assert MultipleChoice().verify("B", answer).reward == 1.0


@pytest.mark.parametrize("num_choices", [1, 27])
def test_the_number_of_choices_has_bounds(num_choices: int) -> None:
    with pytest.raises(ValueError, match="num_choices"):
        MultipleChoice(num_choices=num_choices)
