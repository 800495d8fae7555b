"""`Format`: shapes of completions."""

from __future__ import annotations

import pytest

from rewardsvc.verifiers import Format
from rewardsvc.verifiers.format import Preset
from rewardsvc.verifiers.safe_regex import MAX_REGEX_CHARS


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("<think>a</think>b", 1.0),
        ("\n<think>a\nb</think>\n\nb\n", 1.0),
        ("<think>a</think>", 0.0),
        ("<think>a</think>  \n", 0.0),
        ("<think> </think>b", 0.0),
        ("so <think>a</think>b", 0.0),
        ("<think>a", 0.0),
        ("a</think>b", 0.0),
        ("</think>a<think>b", 0.0),
        ("<think>a</think><think>b</think>c", 0.0),
        ("<think><think>a</think>b", 0.0),
        ("b", 0.0),
        ("", 0.0),
    ],
)
def test_think_wants_one_block_and_then_an_answer(completion: str, reward: float) -> None:
    assert Format(preset=Preset.THINK).verify(completion).reward == reward


def test_think_that_the_prompt_opened_must_not_be_opened_again() -> None:
    verifier = Format(preset=Preset.THINK, think_opened_by_prompt=True)
    assert verifier.verify("a</think>b").reward == 1.0
    assert verifier.verify("<think>a</think>b").reward == 0.0


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (r"so \boxed{3}", 1.0),
        (r"\boxed{\frac{1}{2}} \boxed{\{1\}}", 1.0),
        (r"\boxed{3} and \boxed{4", 0.0),
        (r"\boxed{}", 0.0),
        (r"\boxed{ }", 0.0),
        (r"<think>\boxed{3}</think>3", 0.0),
        ("3", 0.0),
    ],
)
def test_boxed_wants_a_closed_box_outside_the_thinking(completion: str, reward: float) -> None:
    assert Format(preset=Preset.BOXED).verify(completion).reward == reward


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ('{"a": [1, 2.5, null]}', 1.0),
        ("<think>hm</think> [1]", 1.0),
        ('"text"', 0.0),
        ("3", 0.0),
        ('{"a": NaN}', 0.0),
        ('{"a": 1} and more', 0.0),
        ("{'a': 1}", 0.0),
        ("[" * 100_000, 0.0),
        ("[" + "9" * 500_000 + "]", 1.0),
        ("", 0.0),
    ],
)
def test_json_wants_one_object_or_array(completion: str, reward: float) -> None:
    assert Format(preset=Preset.JSON).verify(completion).reward == reward


def test_a_pattern_must_match_all_of_the_completion() -> None:
    verifier = Format(pattern=r"Answer: .+")
    assert verifier.verify("Answer: 3\nor so").reward == 1.0
    assert verifier.verify("The Answer: 3").reward == 0.0


def test_a_pattern_is_not_tried_on_text_beyond_the_limit() -> None:
    assert Format(pattern="a*").verify("a" * MAX_REGEX_CHARS).reward == 1.0
    assert Format(pattern="a*").verify("a" * (MAX_REGEX_CHARS + 1)).reward == 0.0


def test_exactly_one_of_preset_and_pattern_is_wanted() -> None:
    with pytest.raises(ValueError, match="one of the two"):
        Format()
    with pytest.raises(ValueError, match="one of the two"):
        Format(preset=Preset.JSON, pattern="a")
    with pytest.raises(ValueError, match="not a regular expression"):
        Format(pattern="(")
