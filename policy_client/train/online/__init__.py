"""Online reinforcement learning: PPO, GRPO, RLOO and their relatives through one loop.

result = run_online("grpo", OnlineConfig(model=…, train_data=…, reward=…, output_dir=…))
"""

from rewardsvc.policy_client.train.online.config import OnlineConfig
from rewardsvc.policy_client.train.online.loop import OnlineResult, run_online
from rewardsvc.policy_client.train.online.outage import OutageError
from rewardsvc.policy_client.train.online.preempt import PreemptedError
from rewardsvc.policy_client.train.online.reward_desk import MissingRewardsError
from rewardsvc.policy_client.train.online.rewards import (
    CallableReward,
    MalformedRewardsError,
    RewardRequest,
    Rewards,
    RewardSource,
    ServiceReward,
    VerifierReward,
)

__all__ = [
    "CallableReward",
    "MalformedRewardsError",
    "MissingRewardsError",
    "OnlineConfig",
    "OnlineResult",
    "OutageError",
    "PreemptedError",
    "RewardRequest",
    "RewardSource",
    "Rewards",
    "ServiceReward",
    "VerifierReward",
    "run_online",
]
