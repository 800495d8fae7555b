"""Several rewards become one, and what adapts over the run survives a checkpoint."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.online.objectives import Objectives
from rewardsvc.policy_client.train.online.objectives_config import ObjectivesConfig
from rewardsvc.policy_client.train.online.rewards import Rewards

NAN = math.nan


def rewards_of(**components: list[float]) -> Rewards:
    columns = {name: np.array(column, np.float32) for name, column in components.items()}
    return Rewards(values=next(iter(columns.values())), components=columns)


def objectives(num_generations: int = 2, **fields: Any) -> Objectives:
    config = ObjectivesConfig.model_validate(fields)
    return Objectives(config, num_generations=num_generations)


def combined(made: Objectives, rewards: Rewards, lengths: list[float] | None = None) -> list[float]:
    counts = np.array(lengths or [1.0] * len(rewards.values), np.float32)
    return made.combine(rewards, counts)[0].values.tolist()


def test_a_weighted_sum_of_components_length_and_the_reward_itself() -> None:
    parts = {"safe": {"weight": 2.0}, "length": {"weight": -0.5}, "reward": {}}
    made = objectives(rewards=parts)
    found = combined(made, rewards_of(math=[1.0, 0.0], safe=[0.5, 1.0]), [4.0, 2.0])
    assert found == [2 * 0.5 - 2 + 1, 2 * 1 - 1 + 0]


def test_a_missing_part_is_never_a_zero() -> None:
    rewards = rewards_of(math=[1.0, 0.0], safe=[NAN, 1.0])
    parts = {"math": {}, "safe": {}}
    assert math.isnan(combined(objectives(rewards=parts), rewards)[0])
    assert combined(objectives(rewards=parts, missing="skip"), rewards) == [1.0, 1.0]


def test_each_reward_is_normalised_on_its_own_within_its_group() -> None:
    # One reward is a thousand times the other; after normalising they weigh the same.
    parts = {"small": {"normalise": "group"}, "large": {"normalise": "group"}}
    rewards = rewards_of(small=[0.0, 1.0, 5.0, 5.0], large=[1000.0, 0.0, 0.0, 3000.0])
    found = combined(objectives(rewards=parts), rewards)
    assert found[:2] == pytest.approx([0.0, 0.0], abs=1e-3)
    assert found[2:] == pytest.approx([-0.7071, 0.7071], abs=1e-3)


def test_chebyshev_rewards_what_lags_behind() -> None:
    parts = {"a": {"ideal": 1.0}, "b": {"ideal": 1.0}}
    made = objectives(rewards=parts, scalarise="chebyshev")
    balanced, lopsided = combined(made, rewards_of(a=[0.5, 1.0], b=[0.5, 0.0]))
    assert balanced > lopsided


def test_without_an_ideal_the_best_so_far_is_one() -> None:
    made = objectives(rewards={"a": {}}, scalarise="chebyshev")
    assert combined(made, rewards_of(a=[3.0, 1.0]))[0] == pytest.approx(0.03)
    assert combined(made, rewards_of(a=[2.0, 1.0]))[0] == pytest.approx(-0.98)


def test_a_multiplier_grows_while_the_bound_is_broken_and_shrinks_to_zero_after() -> None:
    bound = {"length": {"at_most": 10.0, "learning_rate": 0.1}}
    made = objectives(rewards={"math": {}}, constraints=bound)
    rewards = rewards_of(math=[1.0, 0.0])
    first, metrics = made.combine(rewards, np.array([20.0, 14.0], np.float32))
    assert first.values.tolist() == [1.0, 0.0], "a batch meets the multiplier of before it"
    assert metrics["constraints/length/multiplier"] == 0.0
    assert metrics["constraints/length/violation"] == 7.0
    second, metrics = made.combine(rewards, np.array([20.0, 10.0], np.float32))
    assert metrics["constraints/length/multiplier"] == pytest.approx(0.7)
    assert second.values.tolist() == pytest.approx([(1 - 7.0) / 1.7, 0.0])
    for _ in range(9):
        _, metrics = made.combine(rewards, np.array([2.0, 2.0], np.float32))
    assert metrics["constraints/length/multiplier"] == 0.0


def test_a_lower_bound_pushes_the_other_way() -> None:
    bound = {"safe": {"at_least": 0.9, "learning_rate": 1.0}}
    made = objectives(rewards={"math": {}}, constraints=bound)
    rewards = rewards_of(math=[0.0, 0.0], safe=[0.0, 1.0])
    combined(made, rewards)
    unsafe, safe = combined(made, rewards)
    assert safe > unsafe


def test_all_that_adapts_is_in_the_checkpoint() -> None:
    fields = {
        "rewards": {"a": {"normalise": "running"}, "b": {}},
        "scalarise": "chebyshev",
        "constraints": {"length": {"at_most": 1.0}},
    }
    one, other = objectives(**fields), objectives(**fields)
    combined(one, rewards_of(a=[1.0, 7.0], b=[2.0, 3.0]), [3.0, 2.0])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    rewards = rewards_of(a=[2.0, 0.5], b=[0.0, 1.0])
    assert combined(one, rewards, [5.0, 1.0]) == combined(other, rewards, [5.0, 1.0])


def test_a_component_that_nobody_gives_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no completion has a component 'mth'; .* math"):
        combined(objectives(rewards={"mth": {}}), rewards_of(math=[1.0, 0.0]))


def test_a_batch_without_any_reward_is_no_mistake_of_the_configuration() -> None:
    nothing = Rewards(values=np.full(2, np.nan, np.float32))
    assert all(math.isnan(value) for value in combined(objectives(rewards={"math": {}}), nothing))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rewards": {}}, "rewards"),
        ({"rewards": {"a": {"weight": -1}}, "scalarise": "chebyshev"}, "must be positive"),
        ({"rewards": {"a": {}}, "constraints": {"length": {}}}, "exactly one"),
        ({"rewards": {"a": {}}, "missing": "skip", "scalarise": "chebyshev"}, "needs them all"),
    ],
)
def test_contradictions_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ObjectivesConfig.model_validate(fields)
