"""More compute at inference: the best of n completions, and beam search over steps.

Both take any `RolloutEngine` and any `RewardSource`: a scorer of a service, a verifier in this
process, a function.
"""

from rewardsvc.policy_client.inference.beam import (
    BeamResult,
    BeamSearch,
    BeamSettings,
    SearchEnd,
    step_end_ids,
)
from rewardsvc.policy_client.inference.best_of_n import BestOfN, BestOfNResult, BestOfNSettings
from rewardsvc.policy_client.inference.candidates import Candidate, ScoreBy, weighted_best

__all__ = [
    "BeamResult",
    "BeamSearch",
    "BeamSettings",
    "BestOfN",
    "BestOfNResult",
    "BestOfNSettings",
    "Candidate",
    "ScoreBy",
    "SearchEnd",
    "step_end_ids",
    "weighted_best",
]
