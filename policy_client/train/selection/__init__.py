"""Trainers that learn from a selection of the policy's own completions: online DPO and RAFT.

result = run_selection("online_dpo", OnlineDpoConfig(model=…, train_data=…, reward=…, output_dir=…))
"""

from rewardsvc.policy_client.train.selection.config import (
    OnlineDpoConfig,
    RaftConfig,
    SelectionConfig,
)
from rewardsvc.policy_client.train.selection.run import SELECTION_TRAINERS, run_selection

__all__ = [
    "SELECTION_TRAINERS",
    "OnlineDpoConfig",
    "RaftConfig",
    "SelectionConfig",
    "run_selection",
]
