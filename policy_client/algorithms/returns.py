"""Advantages of single tokens, from rewards that are spread over the tokens of a completion.

Legend: N sequences, T completion tokens. `mask_NT` is True for tokens that the policy sampled; gaps
(tokens of a tool, padding) are stepped over, as if they were not there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewardsvc import kernels


def gae(
    rewards_NT: Tensor,
    values_NT: Tensor,
    mask_NT: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, and the returns that a critic learns from.

    delta_t = r_t + gamma V_(t+1) - V_t;  A_t = delta_t + gamma lambda A_(t+1);  R_t = A_t + V_t.

    Args:
        rewards_NT: float [N, T], the reward that follows token t.
        values_NT: float [N, T], the critic's V of the state in which token t was sampled.
        mask_NT: bool [N, T].
        gamma: Discount, 0 to 1.
        lam: Lambda, 0 (one step) to 1 (Monte Carlo).
        last_values_N: float [N], V of the state after the last token. None stands for 0: the
            completion's end is the end of the episode. That is also the field's convention for a
            completion cut off at the length limit, whose reward is final: to bootstrap there would
            credit it with text that is never written.

    Returns:
        `(advantages_NT, returns_NT)`, float, 0 where masked.

    Source: Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation", equations 11 and 16 (arXiv:1506.02438).
    """
    if values_NT.is_cuda:
        # The same recurrence in one launch; the loop below is ten small ones for each of T tokens.
        return kernels.gae(
            rewards_NT, values_NT, mask=mask_NT, gamma=gamma, lam=lam, last_values=last_values_N
        )
    running_N = torch.zeros_like(values_NT[:, 0]) if values_NT.shape[1] else None
    advantages_NT = torch.zeros_like(values_NT)
    if running_N is None:
        return advantages_NT, advantages_NT.clone()
    next_N = torch.zeros_like(running_N) if last_values_N is None else last_values_N
    for t in reversed(range(values_NT.shape[1])):
        keep_N = mask_NT[:, t]
        value_N = torch.where(keep_N, values_NT[:, t], 0.0)
        delta_N = torch.where(keep_N, rewards_NT[:, t], 0.0) + gamma * next_N - value_N
        running_N = torch.where(keep_N, delta_N + gamma * lam * running_N, running_N)
        next_N = torch.where(keep_N, value_N, next_N)
        advantages_NT[:, t] = torch.where(keep_N, running_N, 0.0)
    returns_NT = torch.where(mask_NT, advantages_NT + values_NT, 0.0)
    return advantages_NT, returns_NT


def rewards_to_go(rewards_NT: Tensor, mask_NT: Tensor, *, gamma: float = 1.0) -> Tensor:
    """The discounted sum of this and all later rewards: float [N, T], 0 where masked.

    Args:
        rewards_NT: float [N, T], the reward that follows token t.
        mask_NT: bool [N, T].
        gamma: Discount per unmasked token, 0 to 1.

    Source: Hu et al. 2025, "REINFORCE++", equation 4 (arXiv:2501.03262).
    """
    zeros_NT = torch.zeros_like(rewards_NT)
    # With V = 0 and lambda = 1, GAE is the reward to go.
    return gae(rewards_NT, zeros_NT, mask_NT, gamma=gamma, lam=1.0)[0]


def spread_rewards(
    rewards_N: Tensor, mask_NT: Tensor, *, penalties_NT: Tensor | None = None
) -> Tensor:
    """Each completion's reward at its last sampled token, less a penalty at every token.

    Args:
        rewards_N: float [N], finite.
        mask_NT: bool [N, T]. A row without any True has nowhere to put its reward, and gets zeros.
        penalties_NT: float [N, T], such as beta times a KL estimate.

    Returns:
        float [N, T], 0 where masked.

    Source: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", equation 2
    (arXiv:1909.08593), with the penalty spread over tokens as in its code.
    """
    # True from the last sampled token on; with the mask that leaves the token itself.
    after_NT = mask_NT.flip(1).cumsum(1).flip(1) <= 1
    is_last_NT = mask_NT & after_NT
    spread_NT = torch.where(is_last_NT, rewards_N[:, None], 0.0)
    if penalties_NT is not None:
        spread_NT = spread_NT - torch.where(mask_NT, penalties_NT, 0.0)
    return spread_NT
