"""`rewardsvc train sft|rm|ppo|grpo|rloo --config FILE [field=value …]`."""

from __future__ import annotations


def add_train_commands(app: object) -> None:
    """Adds `train` and its algorithms to the command line."""
