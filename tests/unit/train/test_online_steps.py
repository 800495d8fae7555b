"""Steps of text on tokens, and process rewards on their way to advantages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardsvc.policy_client.algorithms.presets import PRESETS
from rewardsvc.policy_client.algorithms.process_rewards import place_steps
from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.online.judge import Outcome, judge
from rewardsvc.policy_client.train.online.steps import step_spans, step_token_ends

TOKENIZER = character_tokenizer("ab;\n ")
EOS = TOKENIZER.eos_token_id


def test_each_step_ends_with_its_separator_and_the_last_with_the_completion() -> None:
    ids = [*TOKENIZER("a;bb;a")["input_ids"], EOS]
    assert step_token_ends(TOKENIZER, ids, ";") == [1, 4, 6]


def test_blank_steps_are_none() -> None:
    ids = TOKENIZER("a;;\n;b;")["input_ids"]
    assert step_token_ends(TOKENIZER, ids, ";") == [1, 6]
    assert step_token_ends(TOKENIZER, TOKENIZER(";")["input_ids"], ";") == []
    assert step_token_ends(TOKENIZER, [], ";") == []


@settings(deadline=None)
@given(text=st.text("ab;\n ", max_size=20))
def test_there_is_an_end_for_every_step_that_a_process_reward_model_scores(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    ends = step_token_ends(TOKENIZER, ids, ";")
    steps = [part for part in text.split(";") if part.strip()]
    assert len(ends) == len(step_spans(text, ";")) == len(steps)
    assert ends == sorted(set(ends)), "a character a token: no two steps share one"
    for part, end in zip(steps[:-1], ends, strict=False):
        written = TOKENIZER.decode(ids[: end + 1])
        assert written.endswith((f"{part};", part))


def test_as_many_rewards_as_steps_or_an_error() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="2 rewards, and the completion has 1 steps"):
        place_steps([[1.0, 0.0]], [[3]], mask)
    with pytest.raises(ValueError, match="not all are tokens"):
        place_steps([[1.0]], [[3]], torch.tensor([[True, True, True, False]]))


def outcome_of(steps: list[list[float] | None], ends: list[list[int]]) -> Outcome:
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    rewards, is_step = place_steps(steps, ends, mask)
    return Outcome(
        rewards=torch.tensor([[1.0, 0.0]]),
        usable=torch.ones(2, dtype=torch.bool),
        completion_mask=mask,
        values=torch.zeros(2, 4),
        step_rewards=rewards,
        is_step=is_step,
    )


def test_dense_rewards_go_through_gae_beside_the_outcome() -> None:
    spec = replace(PRESETS["ppo_process"], lam=1.0, process_weight=2.0, outcome_weight=10.0)
    judged = judge(outcome_of([[0.5, 0.25], [0.0]], [[1, 3], [2]]), spec, kl_coef=0.0)
    assert judged.returns is not None
    assert judged.returns.tolist() == [[11.5, 11.5, 10.5, 10.5], [0.0, 0.0, 0.0, 0.0]]


def test_a_completion_without_steps_is_not_learned_from() -> None:
    for name in ("ppo_process", "grpo_process"):
        judged = judge(outcome_of([[0.5, 0.25], None], [[1, 3], []]), PRESETS[name], kl_coef=0.0)
        assert judged.mask.any(1).tolist() == [True, False]
        broken = outcome_of([[0.5, float("nan")], [1.0]], [[1, 3], [2]])
        assert judge(broken, PRESETS[name], kl_coef=0.0).mask.any(1).tolist()[0] is False


def test_the_outcome_can_be_added_to_step_wise_advantages() -> None:
    outcome = outcome_of([[1.0, 0.0], [0.0]], [[1, 3], [2]])
    alone = judge(outcome, PRESETS["grpo_process"], kl_coef=0.0).advantages
    both = judge(outcome, replace(PRESETS["grpo_process"], outcome_weight=1.0), kl_coef=0.0)
    expected = torch.tensor([[1.0], [-1.0]]) / (2**0.5 * (1 + 1e-4 * 2**0.5))
    torch.testing.assert_close(
        both.advantages, alone + torch.where(both.mask, expected, 0.0), rtol=1e-4, atol=1e-4
    )
