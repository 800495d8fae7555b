"""What to change in a row to get a paper's or a library's numbers.

The rows of `PRESETS` are our choice; where a paper, TRL, verl or OpenRLHF has another, the columns
that differ stand here. What no column can express is in docs/training.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from rewardsvc.policy_client.algorithms.aggregation import Aggregation
from rewardsvc.policy_client.algorithms.kl import KlClamps, KlEstimator
from rewardsvc.policy_client.algorithms.masking import Whitening
from rewardsvc.policy_client.algorithms.policy_loss import ClipRange, RatioLevel
from rewardsvc.policy_client.algorithms.presets import PRESETS
from rewardsvc.policy_client.algorithms.spec import AlgorithmSpec, KlPlace


class Compat(StrEnum):
    """Whose numbers a run should have."""

    PAPER = "paper"
    TRL = "trl"
    VERL = "verl"
    OPENRLHF = "openrlhf"


VERL_DUAL_CLIP = 3.0
"""verl clips twice unless told otherwise."""

EVERY_ROW: Mapping[Compat, Mapping[str, Any]] = MappingProxyType(
    {
        Compat.PAPER: {"kl_clamps": KlClamps.NONE, "std_eps": 0.0},
        Compat.TRL: {"kl_clamps": KlClamps.NONE, "std_eps": 1e-4, "kl_by_ratio": True},
        Compat.VERL: {"kl_clamps": KlClamps.VERL, "std_eps": 1e-6},
        Compat.OPENRLHF: {"kl_clamps": KlClamps.OPENRLHF, "std_eps": 1e-9},
    }
)
"""Columns that a library has the same way in all of its algorithms."""

_VERL_CLIP: Mapping[str, Any] = {"clip": ClipRange(dual=VERL_DUAL_CLIP)}
_OPENRLHF_RETURN: Mapping[str, Any] = {
    "kl_place": KlPlace.RETURN,
    "kl_estimator": KlEstimator.K1,
    "kl_coef": 0.01,
}

ROWS: Mapping[tuple[str, Compat], Mapping[str, Any]] = MappingProxyType(
    {
        ("ppo", Compat.PAPER): {"kl_coef": 0.02},
        ("ppo", Compat.VERL): {**_VERL_CLIP, "lam": 1.0, "kl_coef": 0.0},
        ("ppo", Compat.OPENRLHF): {
            "whitening": Whitening.POPULATION,
            "lam": 1.0,
            "kl_coef": 0.01,
        },
        ("grpo", Compat.PAPER): {
            "aggregation": Aggregation.SEQ_MEAN_TOKEN_MEAN,
            "kl_coef": 0.04,
            "num_generations": 64,
        },
        ("grpo", Compat.VERL): _VERL_CLIP,
        ("grpo", Compat.OPENRLHF): _OPENRLHF_RETURN,
        ("dr_grpo", Compat.VERL): _VERL_CLIP,
        ("dr_grpo", Compat.OPENRLHF): {
            **_OPENRLHF_RETURN,
            "aggregation": Aggregation.TOKEN_MEAN,
        },
        ("dapo", Compat.PAPER): {
            "aggregation": Aggregation.GROUP_MEAN_TOKEN_MEAN,
            "num_generations": 16,
            "num_minibatches": 16,
        },
        ("dapo", Compat.TRL): {"dynamic_sampling": False},
        ("dapo", Compat.VERL): {"clip": ClipRange(eps_low=0.2, eps_high=0.28, dual=VERL_DUAL_CLIP)},
        ("cispo", Compat.VERL): {"clip": ClipRange(eps_low=0.2, eps_high=0.2)},
        ("gspo", Compat.VERL): {"ratio": RatioLevel.SEQUENCE_MEAN_TOKEN},
        ("rloo", Compat.PAPER): {"kl_coef": 0.1},
        ("rloo", Compat.VERL): {
            **_VERL_CLIP,
            "ratio": RatioLevel.TOKEN,
            "aggregation": Aggregation.TOKEN_MEAN,
            "kl_coef": 0.0,
        },
        ("rloo", Compat.OPENRLHF): {
            **_OPENRLHF_RETURN,
            "ratio": RatioLevel.TOKEN,
            "aggregation": Aggregation.TOKEN_MEAN,
        },
        ("reinforce_pp", Compat.PAPER): {"whitening": Whitening.POPULATION},
        ("reinforce_pp", Compat.VERL): {**_VERL_CLIP, "kl_coef": 0.0},
        ("reinforce_pp", Compat.OPENRLHF): {"whitening": Whitening.POPULATION},
        ("reinforce_pp_baseline", Compat.PAPER): {"whitening": Whitening.POPULATION},
        ("reinforce_pp_baseline", Compat.VERL): {**_VERL_CLIP, "kl_coef": 0.0},
        ("reinforce_pp_baseline", Compat.OPENRLHF): {
            **_OPENRLHF_RETURN,
            "whitening": Whitening.POPULATION,
        },
    }
)
"""Columns that differ in one algorithm, beside those of `EVERY_ROW`."""


def preset(name: str, compat: Compat | None = None) -> AlgorithmSpec:
    """The row `name`, with what `compat` has otherwise.

    Args:
        name: A key of `PRESETS`.
        compat: Whose numbers; None for ours. An algorithm that a library does not have gets the
            library's general conventions.

    Raises:
        KeyError: If there is no such row.
    """
    row = PRESETS[name]
    if compat is None:
        return row
    return dataclasses.replace(row, **{**EVERY_ROW[compat], **ROWS.get((name, compat), {})})
