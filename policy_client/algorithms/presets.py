"""The table: one row an algorithm, one column a choice.

The trainer reads the row, and has no branch by an algorithm's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rewardsvc.policy_client.algorithms.aggregation import Aggregation
from rewardsvc.policy_client.algorithms.kl import KlEstimator
from rewardsvc.policy_client.algorithms.kl_control import KlRule
from rewardsvc.policy_client.algorithms.masking import Whitening
from rewardsvc.policy_client.algorithms.policy_loss import ClipRange, Objective, RatioLevel
from rewardsvc.policy_client.algorithms.spec import (
    AdvantageEstimator,
    AlgorithmSpec,
    KlAnchor,
    KlPlace,
)

__all__ = ["PRESETS", "AdvantageEstimator", "AlgorithmSpec", "KlAnchor", "KlPlace"]

_PPO: Mapping[str, Any] = {
    "advantage": AdvantageEstimator.GAE,
    "whitening": Whitening.BESSEL,
    "num_generations": 1,
    "num_epochs": 4,
}
_PPO_REWARD_KL: Mapping[str, Any] = {"kl_place": KlPlace.REWARD, "kl_estimator": KlEstimator.K1}
_GROUP: Mapping[str, Any] = {"advantage": AdvantageEstimator.GROUP_NORM, "num_generations": 8}

PRESETS: Mapping[str, AlgorithmSpec] = MappingProxyType(
    {
        "ppo": AlgorithmSpec(
            **_PPO,
            **_PPO_REWARD_KL,
            kl_coef=0.05,
            source="Ouyang et al. 2022 (arXiv:2203.02155); Huang et al. 2024 (arXiv:2403.17031)",
        ),
        "ppo_adaptive_kl": AlgorithmSpec(
            **_PPO,
            **_PPO_REWARD_KL,
            kl_coef=0.2,
            kl_target=6.0,
            source="Ziegler et al. 2019 (arXiv:1909.08593): beta follows a target of 6 nats",
        ),
        "ppo_penalty": AlgorithmSpec(
            **_PPO,
            objective=Objective.UNCLIPPED,
            kl_anchor=KlAnchor.OLD_POLICY,
            kl_coef=1.0,
            kl_target=0.01,
            kl_rule=KlRule.DOUBLING,
            source=(
                "Schulman et al. 2017, section 4 (arXiv:1707.06347): no clipping, but a KL to the "
                "old policy whose weight doubles and halves. k3 in place of the exact KL."
            ),
        ),
        "ppo_dual_clip": AlgorithmSpec(
            **_PPO,
            **_PPO_REWARD_KL,
            kl_coef=0.05,
            clip=ClipRange(dual=3.0),
            source="Ye et al. 2020 (arXiv:1912.09729)",
        ),
        "ppo_process": AlgorithmSpec(
            **_PPO,
            **_PPO_REWARD_KL,
            kl_coef=0.05,
            process_weight=1.0,
            source=(
                "Wang et al. 2024, Math-Shepherd, step-by-step PPO (arXiv:2312.08935): a process "
                "reward at the end of each step, through GAE"
            ),
        ),
        "grpo": AlgorithmSpec(
            **_GROUP,
            source=(
                "Shao et al. 2024 (arXiv:2402.03300). Token-mean and no KL are what libraries have "
                "as their defaults today; the paper's are compat: paper."
            ),
        ),
        "grpo_process": AlgorithmSpec(
            advantage=AdvantageEstimator.STEP_GROUP_NORM,
            outcome_weight=0.0,
            process_weight=1.0,
            num_generations=8,
            source="Shao et al. 2024, section 4.1.3, process supervision (arXiv:2402.03300)",
        ),
        "dr_grpo": AlgorithmSpec(
            advantage=AdvantageEstimator.GROUP_CENTRE,
            aggregation=Aggregation.SEQ_MEAN_TOKEN_SUM_NORM,
            num_generations=8,
            source="Liu et al. 2025 (arXiv:2503.20783)",
        ),
        "dapo": AlgorithmSpec(
            **_GROUP,
            clip=ClipRange(eps_low=0.2, eps_high=0.28),
            dynamic_sampling=True,
            overlong_share=0.2,
            num_minibatches=4,
            source=(
                "Yu et al. 2025 (arXiv:2503.14476). The paper takes 16 optimiser steps per rollout "
                "and groups of 16, and its equation the mean within each group."
            ),
        ),
        "cispo": AlgorithmSpec(
            **_GROUP,
            objective=Objective.CISPO,
            clip=ClipRange(eps_low=1.0, eps_high=4.0),
            num_minibatches=4,
            source=(
                "MiniMax 2025 (arXiv:2506.13585): no lower bound; an upper one of 5 as in ScaleRL "
                "(arXiv:2510.13786)."
            ),
        ),
        "gspo": AlgorithmSpec(
            **_GROUP,
            ratio=RatioLevel.SEQUENCE_MEAN,
            clip=ClipRange(eps_low=3e-4, eps_high=4e-4),
            aggregation=Aggregation.SEQ_MEAN_TOKEN_MEAN,
            num_minibatches=4,
            source="Zheng et al. 2025 (arXiv:2507.18071)",
        ),
        "gspo_token": AlgorithmSpec(
            **_GROUP,
            ratio=RatioLevel.SEQUENCE_MEAN_TOKEN,
            clip=ClipRange(eps_low=3e-4, eps_high=4e-4),
            aggregation=Aggregation.SEQ_MEAN_TOKEN_MEAN,
            num_minibatches=4,
            source="Zheng et al. 2025, section 4.3 (arXiv:2507.18071)",
        ),
        "rloo": AlgorithmSpec(
            advantage=AdvantageEstimator.LEAVE_ONE_OUT,
            ratio=RatioLevel.SEQUENCE,
            aggregation=Aggregation.SEQ_MEAN_TOKEN_MEAN,
            kl_place=KlPlace.REWARD,
            kl_estimator=KlEstimator.K1,
            kl_coef=0.05,
            num_generations=4,
            source=(
                "Ahmadian et al. 2024 (arXiv:2402.14740), with a clipped ratio per completion; as "
                "it is constant in one, seq-mean-token-mean is the mean over completions."
            ),
        ),
        "reinforce": AlgorithmSpec(
            advantage=AdvantageEstimator.MOVING_BASELINE,
            objective=Objective.UNCLIPPED,
            aggregation=Aggregation.SEQ_MEAN_TOKEN_SUM,
            kl_place=KlPlace.REWARD,
            kl_estimator=KlEstimator.K1,
            kl_coef=0.05,
            num_generations=1,
            source=(
                "Williams 1992 with a moving-average baseline, as in Ahmadian et al. 2024, "
                "section 3.1 (arXiv:2402.14740)"
            ),
        ),
        "reinforce_pp": AlgorithmSpec(
            advantage=AdvantageEstimator.RETURN,
            whitening=Whitening.BESSEL,
            kl_place=KlPlace.REWARD,
            kl_estimator=KlEstimator.K1,
            kl_coef=0.01,
            num_generations=1,
            source="Hu et al. 2025 (arXiv:2501.03262)",
        ),
        "reinforce_pp_baseline": AlgorithmSpec(
            advantage=AdvantageEstimator.GROUP_CENTRE,
            whitening=Whitening.BESSEL,
            kl_estimator=KlEstimator.K2,
            kl_coef=0.001,
            num_generations=8,
            source="Hu et al. 2025, REINFORCE++ with baseline (arXiv:2501.03262): k2 in the loss",
        ),
    }
)
"""The algorithms by name. Every column is really applied by the online trainer."""
