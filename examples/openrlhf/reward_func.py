"""Rewards for OpenRLHF: `--remote_rm_url examples/openrlhf/reward_func.py`.

In place of the verifier, a scorer of the service:
`RewardClient("host:50051").reward_function("rlvr")`.
"""

from rewardsvc.policy_client.adapters.openrlhf import openrlhf_reward
from rewardsvc.verifiers import MathVerifier

reward_func = openrlhf_reward(MathVerifier())
