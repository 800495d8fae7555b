"""Log-probs, policy losses and reward heads, in Triton on GPUs and in plain torch elsewhere.

Plain functions with plain-torch meaning; autograd throughout; the same bits in every run, and for a
row whatever its neighbours. Imports torch and, where there is a GPU, triton.
"""

from rewardsvc.kernels.dispatch import Backend
from rewardsvc.kernels.heads import StepScores, last_token_head, row_head, step_token_head
from rewardsvc.kernels.linear.api import linear_logprob
from rewardsvc.kernels.policy.api import policy_loss
from rewardsvc.kernels.policy.spec import (
    Aggregation,
    Objective,
    PolicyLoss,
    PolicyLossSpec,
    RatioLevel,
    aggregation_weights,
)
from rewardsvc.kernels.preference import PreferenceLogps, fused_linear_preference
from rewardsvc.kernels.scan.api import discounted_scan, gae
from rewardsvc.kernels.selective import selective_logprob
from rewardsvc.kernels.token_kl import KlClamps, KlEstimator, token_kl
from rewardsvc.kernels.types import TokenStats, TopK

__all__ = [
    "Aggregation",
    "Backend",
    "KlClamps",
    "KlEstimator",
    "Objective",
    "PolicyLoss",
    "PolicyLossSpec",
    "PreferenceLogps",
    "RatioLevel",
    "StepScores",
    "TokenStats",
    "TopK",
    "aggregation_weights",
    "discounted_scan",
    "fused_linear_preference",
    "gae",
    "last_token_head",
    "linear_logprob",
    "policy_loss",
    "row_head",
    "selective_logprob",
    "step_token_head",
    "token_kl",
]
