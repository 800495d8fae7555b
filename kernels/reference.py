"""What the kernels compute, in the plainest torch: the definition that tests hold them to.

Keeps every [tokens, vocab] tensor and lets autograd go backward. In float64, it is the truth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewardsvc.kernels.transform import LogitTransform
from rewardsvc.kernels.types import TokenStats, TopK


def reference_stats(
    logits: Tensor,
    ids: Tensor,
    transform: LogitTransform,
    *,
    mask: Tensor | None = None,
    topk: int = 0,
) -> TokenStats:
    """The statistics of `selective_logprob` and `linear_logprob`, in the dtype of the logits.

    Args:
        logits: [..., V], raw, bias included.
        ids: [...]; where masked, any.
        transform: Scale, soft-cap, temperature.
        mask: bool [...]; the others get zeros.
        topk: How many of the most likely tokens; ties in the order of `sort(stable=True)`.
    """
    if transform.softcap is None:
        final = logits * transform.logit_scale
    else:
        final = transform.softcap * torch.tanh(logits * transform.logit_scale / transform.softcap)
    final = final / transform.temperature
    if mask is None:
        mask = torch.ones_like(ids, dtype=torch.bool)
    log_p = torch.log_softmax(final, -1)
    at = torch.where(mask, ids, 0).long()[..., None]
    # 0 * -inf is NaN, in the value and in the gradient; such a token adds nothing.
    weighted = log_p.exp() * torch.where(log_p == -torch.inf, 0.0, log_p)
    best = torch.sort(log_p.detach(), stable=True, dim=-1, descending=True)
    best_logp = torch.where(mask[..., None], best.values[..., :topk], 0.0)
    best_ids = torch.where(mask[..., None], best.indices[..., :topk], 0)
    return TokenStats(
        logp=torch.where(mask, log_p.gather(-1, at)[..., 0], 0.0),
        entropy=torch.where(mask, -weighted.sum(-1), 0.0),
        lse=torch.where(mask, final.logsumexp(-1), 0.0),
        topk=TopK(logp=best_logp, ids=best_ids) if topk else None,
    )
