"""`policy_loss`: PPO, GRPO, DAPO, CISPO, GSPO and their relatives, by one description."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rewardsvc.kernels.autograd import apply
from rewardsvc.kernels.checks import check_shape
from rewardsvc.kernels.dispatch import Backend, choose_backend
from rewardsvc.kernels.policy.spec import PolicyLoss, PolicyLossSpec, aggregation_weights
from rewardsvc.kernels.policy.torch_rows import (
    HIGH,
    KL,
    KL_TERM,
    LOW,
    OLD_KL,
    POLICY,
    RATIO,
    policy_rows,
)

# B sequences, T tokens.


def policy_loss(
    logp: Tensor,
    old_logp: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    spec: PolicyLossSpec | None = None,
    ref_logp: Tensor | None = None,
    weights: Tensor | None = None,
    backend: str | None = None,
) -> PolicyLoss:
    """The policy-gradient loss of a batch, loss and gradient in one pass over [B, T].

    Only `logp` gets a gradient; everything else is taken as constant. Log ratios are clamped to
    +-20 before they are exponentiated. What is masked has no influence, whatever it holds.

    Args:
        logp: float [B, T], log-probs of the sampled tokens under the policy.
        old_logp: Likewise under the policy that sampled them; None takes `logp` itself.
        advantages: float [B, T].
        mask: bool [B, T], True for tokens that count.
        spec: Which loss; None for PPO's.
        ref_logp: float [B, T], under the reference. Needed if `spec.kl_coef` is not 0.
        weights: float [B, T], the weight of each token, for example cut out of
            `aggregation_weights` of a larger batch; None takes those of this batch, which needs
            no groups.
        backend: Forces "triton" or "eager".

    Raises:
        ValueError: If a shape is off, or a KL term has no reference.

    Source: Schulman et al. 2017, equation 7 (arXiv:1707.06347); Shao et al. 2024, equation 3
    (arXiv:2402.03300); Yu et al. 2025, equation 10 (arXiv:2503.14476); dual clip: Ye et al. 2020,
    equation 5 (arXiv:1912.09729); CISPO: MiniMax 2025, equation 4 (arXiv:2506.13585); GSPO: Zheng
    et al. 2025, equation 7 (arXiv:2507.18071), whose gradient we take as it is, also where
    advantages differ within a sequence.
    """
    spec = spec or PolicyLossSpec()
    if logp.dim() != 2:
        raise ValueError(f"logp has shape {tuple(logp.shape)}; expected [B, T]")
    old = logp.detach() if old_logp is None else old_logp
    named = {"old_logp": old, "advantages": advantages, "mask": mask}
    named |= {"ref_logp": ref_logp} if ref_logp is not None else {}
    named |= {"weights": weights} if weights is not None else {}
    for name, value in named.items():
        check_shape(name, value, tuple(logp.shape))
    if spec.kl_coef != 0 and ref_logp is None:
        raise ValueError(f"kl_coef is {spec.kl_coef} and ref_logp is None; pass the reference's")
    mask = mask.to(torch.bool)
    if weights is None:
        weights = aggregation_weights(mask, spec.aggregation, norm_length=spec.norm_length)
    chosen = choose_backend(logp, 0, backend)
    loss, sums_7 = apply(
        _PolicyLossFunction, logp, (old, advantages, mask, weights, ref_logp), spec, chosen
    )
    num_tokens = mask.sum().clamp(min=1)
    return PolicyLoss(
        loss=loss,
        policy=sums_7[POLICY],
        kl=sums_7[KL] / num_tokens,
        ratio=sums_7[RATIO] / num_tokens,
        clipped_low=sums_7[LOW] / num_tokens,
        clipped_high=sums_7[HIGH] / num_tokens,
        old_kl=sums_7[OLD_KL] / num_tokens,
    )


class _PolicyLossFunction(torch.autograd.Function):
    """The loss, and the sums over all rows; the gradient is computed with the loss and kept."""

    @staticmethod
    def forward(
        ctx: Any,
        logp_BT: Tensor,
        constants: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
        spec: PolicyLossSpec,
        backend: Backend,
    ) -> tuple[Tensor, Tensor]:
        rows = policy_rows
        if backend is Backend.TRITON:
            from rewardsvc.kernels.policy import triton_rows

            rows = triton_rows.policy_rows
        old_BT, advantages_BT, mask_BT, weights_BT, ref_BT = constants
        grad_BT, sums_B7 = rows(
            logp_BT,
            old_BT,
            advantages_BT,
            mask_BT,
            weights_BT=weights_BT,
            ref_BT=ref_BT,
            spec=spec,
        )
        sums_7 = sums_B7.sum(0)
        ctx.save_for_backward(grad_BT)
        ctx.dtype = logp_BT.dtype
        ctx.mark_non_differentiable(sums_7)
        return sums_7[POLICY] + spec.kl_coef * sums_7[KL_TERM], sums_7

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (grad_BT,) = ctx.saved_tensors
        return (d_loss * grad_BT).to(ctx.dtype), None, None, None
