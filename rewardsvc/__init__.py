"""The reward oracle of RL post-training as a service.

`rewardsvc.policy_client` calls it, `rewardsvc.verifiers` and `rewardsvc.kernels` work without it.
Importing this package imports none of them.
"""

__version__ = "0.1.0"
