"""Rewards for verl, read by name from this file:

    custom_reward_function.path=examples/verl/my_reward.py
    custom_reward_function.name=compute_score

In place of the verifier, a scorer of the service:
`RewardClient("host:50051").reward_function("rlvr")`.
With the batch reward manager, name `compute_score_batch`.
"""

from rewardsvc.policy_client.adapters.verl import verl_compute_score, verl_compute_score_batch
from rewardsvc.verifiers import MathVerifier

compute_score = verl_compute_score(MathVerifier())
compute_score_batch = verl_compute_score_batch(MathVerifier(), on_missing="nan")
