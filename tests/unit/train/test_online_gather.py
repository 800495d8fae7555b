"""Dynamic sampling: which groups are kept, and what happens when there are none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from tiny_policies import PAD, rollout_of

from rewardsvc.policy_client.train.online.gather import Gathered, gather_informative
from rewardsvc.policy_client.train.online.rewards import Rewards

NAN = math.nan
MIXED, EASY, HARD = [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]


class Sampler:
    """Gives groups of two with the rewards it was told, and remembers what it was asked for."""

    def __init__(self, groups: Sequence[Sequence[float]], accuracy: str | None = None) -> None:
        self.asked: list[int] = []
        self._groups = iter(enumerate(groups))
        self._accuracy = accuracy

    def __call__(self, num_prompts: int) -> Gathered:
        self.asked.append(num_prompts)
        found = [next(self._groups) for _ in range(num_prompts)]
        numbers = [number for number, _ in found for _ in range(2)]
        accuracy = np.array([r for _, group in found for r in group], np.float32)
        values, components = accuracy, {}
        if self._accuracy is not None:
            # What is learned from has a penalty on top that differs within every group.
            values = accuracy - np.array([0.0, 0.5] * num_prompts, np.float32)
            components = {self._accuracy: accuracy}
        rewards = Rewards(values=values, components=components)
        return Gathered(
            rollout=rollout_of([[number + 5] for number in numbers], [[9]] * len(numbers)),
            rewards=lambda: rewards,
            all_rewards=lambda: rewards,
            num_completions=len(numbers),
            num_tokens=2 * len(numbers),
        )


def gathered(sampler: Sampler, wanted: int, max_rounds: int, name: str | None = None) -> Gathered:
    return gather_informative(
        sampler, wanted, num_generations=2, accuracy=name, max_rounds=max_rounds, pad_id=PAD
    )


def prompts(found: Gathered) -> list[int]:
    return [ids[0] - 5 for ids in found.rollout.prompt_ids]


def test_groups_that_teach_nothing_are_replaced_until_there_are_enough() -> None:
    sampler = Sampler([MIXED, EASY, HARD, HARD, MIXED, MIXED])
    found = gathered(sampler, 3, 10)
    assert sampler.asked == [3, 2, 1]
    assert prompts(found) == [0, 0, 4, 4, 5, 5]
    assert found.rewards().values.tolist() == MIXED * 3
    assert found.metrics == {"dynamic_sampling/rounds": 3.0, "dynamic_sampling/kept_share": 0.5}


def test_all_that_was_sampled_counts_not_only_what_was_kept() -> None:
    found = gathered(Sampler([MIXED, EASY, HARD, MIXED]), 2, 10)
    assert found.num_completions == len(found.all_rewards().values) == 8
    assert found.num_tokens == 16


def test_when_the_rounds_run_out_the_step_goes_on_with_what_there_is() -> None:
    found = gathered(Sampler([MIXED, EASY, EASY, EASY]), 3, 1)
    assert prompts(found) == [0, 0]


def test_without_any_informative_group_the_last_round_is_kept() -> None:
    sampler = Sampler([EASY] * 9)
    found = gathered(sampler, 3, 3)
    assert sampler.asked == [3, 3, 3]
    assert prompts(found) == [6, 6, 7, 7, 8, 8]
    assert found.metrics["dynamic_sampling/kept_share"] == 0


@pytest.mark.parametrize(("name", "kept"), [("acc", [2, 2]), (None, [0, 0])])
def test_the_filter_reads_accuracy_and_not_the_shaped_reward(
    name: str | None, kept: list[int]
) -> None:
    # On the shaped reward every group of failures looks informative.
    found = gathered(Sampler([HARD, HARD, MIXED], accuracy="acc"), 1, 3, name)
    assert prompts(found) == kept


def test_groups_with_missing_rewards_count_by_what_is_there() -> None:
    groups = [[NAN, NAN], [NAN, 1.0], MIXED]
    assert prompts(gathered(Sampler(groups), 1, 3)) == [2, 2]
