"""Trainers that learn a policy from preferences on a fixed data set.

result = run_preference("dpo", DpoConfig(model=…, train_data=…, output_dir=…))
"""

from rewardsvc.policy_client.train.preference.config import (
    DpoConfig,
    IpoConfig,
    KtoConfig,
    OrpoConfig,
    PreferenceConfig,
    RrhfConfig,
    SimpoConfig,
    SlicConfig,
    SpinConfig,
    SppoConfig,
)
from rewardsvc.policy_client.train.preference.run import PREFERENCE_TRAINERS, run_preference

__all__ = [
    "PREFERENCE_TRAINERS",
    "DpoConfig",
    "IpoConfig",
    "KtoConfig",
    "OrpoConfig",
    "PreferenceConfig",
    "RrhfConfig",
    "SimpoConfig",
    "SlicConfig",
    "SpinConfig",
    "SppoConfig",
    "run_preference",
]
