"""Loss and gradient equal those of TRL's own code on the same float64 tensors.

TRL's `_compute_loss` is called with a stand-in for its trainer that has the attributes it reads, so
that what is compared with is what TRL runs, not a copy of it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rewardsvc.policy_client.algorithms.aggregation import Aggregation, token_weights, weighted_sum
from rewardsvc.policy_client.algorithms.compat import Compat, preset
from rewardsvc.policy_client.algorithms.importance import (
    IsCorrection,
    IsMode,
    mismatch_ratio,
    mismatch_weights,
)
from rewardsvc.policy_client.algorithms.kl import kl_estimate
from rewardsvc.policy_client.algorithms.policy_loss import (
    ClipRange,
    Objective,
    RatioLevel,
    importance_ratio,
    policy_loss,
)
from rewardsvc.policy_client.algorithms.spec import AlgorithmSpec

pytest.importorskip("trl")

TOLERANCE = 1e-8
MAX_LENGTH = 9


@dataclass
class Batch:
    """Right-padded rows of 1 to 6 tokens; what is masked holds zeros, as in TRL."""

    logprobs: Tensor
    old: Tensor
    ref: Tensor
    sampler: Tensor
    advantages: Tensor
    mask: Tensor


def batch_of(seed: int, spread: float = 0.4) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([6, 1, 4, 3])
    mask = torch.arange(6)[None] < lengths[:, None]

    def noise() -> Tensor:
        return spread * torch.randn(4, 6, generator=generator, dtype=torch.float64)

    base = -1.5 + noise()
    made = [torch.where(mask, base + noise(), 0.0) for _ in range(4)]
    advantages = torch.randn(4, generator=generator, dtype=torch.float64)
    return Batch(made[0].requires_grad_(), *made[1:], advantages, mask)


def trl_loss(batch: Batch, **fields: Any) -> Tensor:
    from trl.trainer.grpo_trainer import GRPOTrainer

    arguments = {
        "delta": fields.pop("delta", None),
        "use_bias_correction_kl": fields.pop("kl_by_ratio", True),
        "steps_per_generation": 1,
    }
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        args=SimpleNamespace(**arguments),
        current_gradient_accumulation_steps=1,
        max_completion_length=MAX_LENGTH,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=fields.pop("use_vllm", False),
        vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            batch.logprobs,
            torch.zeros_like(batch.old),
            None,
        ),
        **{
            "importance_sampling_level": "token",
            "beta": 0.0,
            "epsilon_low": 0.2,
            "epsilon_high": 0.2,
            **fields,
        },
    )
    mask = batch.mask.long()
    inputs = {
        "prompt_ids": torch.zeros(4, 1, dtype=torch.long),
        "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old,
        "ref_per_token_logps": batch.ref,
        "num_items_in_batch": mask.sum(),
    }
    if trainer.use_vllm:
        inputs["importance_sampling_ratio"] = trainer.weights
    return GRPOTrainer._compute_loss(trainer, None, inputs)


def our_loss(batch: Batch, spec: AlgorithmSpec) -> Tensor:
    mask = batch.mask
    ratio = importance_ratio(batch.logprobs, batch.old, mask, spec.ratio)
    advantages = batch.advantages[:, None].expand_as(ratio)
    tokens = policy_loss(
        batch.logprobs, ratio, advantages, mask, objective=spec.objective, clip=spec.clip
    ).loss
    mismatch = mismatch_ratio(batch.old, batch.sampler, mask, spec.importance.mode)
    tokens = tokens * mismatch_weights(mismatch, spec.importance)
    weights = token_weights(mask, spec.aggregation, norm_length=MAX_LENGTH, dtype=torch.float64)
    kl = kl_estimate(batch.logprobs, batch.ref, mask, spec.kl_estimator, clamps=spec.kl_clamps)
    kl = kl * ratio if spec.kl_by_ratio else kl
    return weighted_sum(tokens, weights) + spec.kl_coef * weighted_sum(kl, weights)


def assert_equal(batch: Batch, ours: Tensor, theirs: Tensor) -> None:
    grads = [torch.autograd.grad(loss, batch.logprobs)[0] for loss in (ours, theirs)]
    assert ours.item() == pytest.approx(theirs.item(), abs=TOLERANCE)
    torch.testing.assert_close(*grads, rtol=0, atol=TOLERANCE)
    assert grads[0].abs().max() > 1e-3


BASE = preset("grpo", Compat.TRL)
CASES: dict[str, tuple[AlgorithmSpec, dict[str, Any]]] = {
    "dapo": (BASE, {"loss_type": "dapo"}),
    "grpo": (replace(BASE, aggregation=Aggregation.SEQ_MEAN_TOKEN_MEAN), {"loss_type": "grpo"}),
    "dr_grpo": (preset("dr_grpo", Compat.TRL), {"loss_type": "dr_grpo"}),
    "luspo": (replace(BASE, aggregation=Aggregation.SEQ_MEAN_TOKEN_SUM), {"loss_type": "luspo"}),
    "clip_higher": (
        preset("dapo", Compat.TRL),
        {"loss_type": "dapo", "epsilon_high": 0.28},
    ),
    "two_sided": (
        replace(BASE, clip=ClipRange(dual=1.5)),
        {"loss_type": "dapo", "delta": 1.5},
    ),
    "gspo": (
        replace(preset("gspo", Compat.TRL), clip=ClipRange(), aggregation=Aggregation.TOKEN_MEAN),
        {"loss_type": "dapo", "importance_sampling_level": "sequence"},
    ),
    "cispo": (preset("cispo", Compat.TRL), {"loss_type": "cispo", "epsilon_high": 5.0}),
    "cispo_tight": (
        replace(
            preset("cispo", Compat.TRL),
            clip=ClipRange(eps_low=1.0, eps_high=0.1),
        ),
        {"loss_type": "cispo", "epsilon_high": 1.1},
    ),
    "kl_by_ratio": (replace(BASE, kl_coef=0.3), {"loss_type": "dapo", "beta": 0.3}),
    "kl_plain": (
        replace(BASE, kl_coef=0.3, kl_by_ratio=False),
        {"loss_type": "dapo", "beta": 0.3, "kl_by_ratio": False},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_are_those_of_trl(case: str, seed: int) -> None:
    spec, fields = CASES[case]
    batch = batch_of(seed)
    assert_equal(batch, our_loss(batch, spec), trl_loss(batch, **dict(fields)))


@pytest.mark.parametrize(
    ("mode", "bounded"),
    [
        (IsMode.TOKEN_TRUNCATE, lambda r: r.clamp(0.5, 1.5)),
        (IsMode.TOKEN_MASK, lambda r: r.masked_fill((r < 0.5) | (r > 1.5), 0.0)),
        (IsMode.SEQUENCE_TRUNCATE, lambda r: r.clamp(0.5, 1.5)),
        (IsMode.SEQUENCE_MASK, lambda r: r.masked_fill((r < 0.5) | (r > 1.5), 0.0)),
    ],
)
def test_importance_correction_is_that_of_trl(mode: IsMode, bounded: Any) -> None:
    # TRL takes the ratio where it prepares a batch; its four modes in its own order of operations.
    batch = batch_of(3)
    difference = (batch.old - batch.sampler) * batch.mask
    if mode.startswith("sequence"):
        difference = difference.sum(-1, keepdim=True)
    weights = bounded(torch.exp(difference))
    spec = replace(BASE, importance=IsCorrection(mode=mode, low=0.5, high=1.5))
    theirs = trl_loss(batch, loss_type="dapo", use_vllm=True, weights=weights)
    assert_equal(batch, our_loss(batch, spec), theirs)


def test_rloo_is_that_of_trl() -> None:
    from trl.trainer.rloo_trainer import RLOOTrainer

    batch = batch_of(4)
    mask = batch.mask.long()
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
        aux_loss_enabled=False,
        epsilon_low=0.2,
        epsilon_high=0.2,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            batch.logprobs,
            torch.zeros_like(batch.old),
            None,
        ),
    )
    inputs = {
        "prompt_ids": torch.zeros(4, 1, dtype=torch.long),
        "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": batch.advantages,
        "old_logps": batch.old.sum(1),
    }
    spec = replace(preset("rloo", Compat.TRL), kl_coef=0.0)
    assert spec.ratio is RatioLevel.SEQUENCE
    assert spec.objective is Objective.CLIP
    assert_equal(batch, our_loss(batch, spec), RLOOTrainer._compute_loss(trainer, None, inputs))
