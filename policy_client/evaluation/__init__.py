"""How good a policy or a reward model is, with the uncertainty of saying so. numpy alone.

Legend: P problems, N samples of a problem, k samples that somebody may use. No verdict is NaN, and
is left out; it is never a failure.
"""

from rewardsvc.policy_client.evaluation.best_of_n import BestOfNCurve, best_of_n, best_of_n_curve
from rewardsvc.policy_client.evaluation.calibration import Calibration, calibration
from rewardsvc.policy_client.evaluation.length_control import (
    LengthControlled,
    length_controlled_win_rate,
)
from rewardsvc.policy_client.evaluation.majority import majority_vote
from rewardsvc.policy_client.evaluation.pairs import (
    PairReport,
    PairResult,
    pair_report,
    rewardbench_report,
)
from rewardsvc.policy_client.evaluation.pass_at_k import PassAtK, pass_at_k
from rewardsvc.policy_client.evaluation.win_rate import WinRate, wilson_interval, win_rate

__all__ = [
    "BestOfNCurve",
    "Calibration",
    "LengthControlled",
    "PairReport",
    "PairResult",
    "PassAtK",
    "WinRate",
    "best_of_n",
    "best_of_n_curve",
    "calibration",
    "length_controlled_win_rate",
    "majority_vote",
    "pair_report",
    "pass_at_k",
    "rewardbench_report",
    "wilson_interval",
    "win_rate",
]
