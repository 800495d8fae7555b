"""Process rewards: from one number per step of a completion to rewards and advantages of tokens.

A step's reward stands at the step's last token. From there two ways lead to advantages: as dense
rewards through GAE (`place_steps`, then `returns.gae`), or without a critic by normalising the
rewards of all steps of a group together (`step_group_normalised`).

Legend: N completions in groups of G, T completion tokens, S steps of a completion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rewardsvc.policy_client.algorithms.advantages import GROUP_STD_EPS
from rewardsvc.policy_client.algorithms.returns import rewards_to_go


def place_steps(
    steps: Sequence[Sequence[float] | None],
    ends: Sequence[Sequence[int]],
    mask_NT: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Step rewards at the last token of their steps.

    Args:
        steps: [N] lists of S rewards; None, or a reward that is not finite among them, for a
            completion without process rewards.
        ends: [N] lists of S token positions: the last token of each step.
        mask_NT: bool [N, T]; positions must be unmasked.
        dtype: Of the rewards.

    Returns:
        `(rewards_NT, is_step_NT)`: rewards, 0 elsewhere; and bool, where a step ends. Both are
        empty for a completion without process rewards.

    Raises:
        ValueError: If a completion has not as many ends as rewards, or an end is not a token of it.
    """
    rewards_NT = torch.zeros(mask_NT.shape, dtype=dtype)
    is_step_NT = torch.zeros(mask_NT.shape, dtype=torch.bool)
    for row, (row_steps, row_ends) in enumerate(zip(steps, ends, strict=True)):
        if row_steps is None:
            continue
        values = torch.tensor(list(row_steps), dtype=dtype)
        if len(row_ends) != len(values):
            raise ValueError(
                f"steps[{row}] has {len(values)} rewards, and the completion has {len(row_ends)} "
                "steps; split completions as the process reward model does"
            )
        if not len(values) or not bool(values.isfinite().all()):
            continue
        index = torch.tensor(list(row_ends))
        if not bool(mask_NT[row, index.to(mask_NT.device)].all()):
            raise ValueError(f"ends[{row}] is {list(row_ends)}: not all are tokens of it")
        # Two steps may end in one token, if they are shorter than it.
        rewards_NT[row].index_add_(0, index, values)
        is_step_NT[row, index] = True
    return rewards_NT.to(mask_NT.device), is_step_NT.to(mask_NT.device)


def step_group_normalised(
    step_rewards_NT: Tensor,
    is_step_NT: Tensor,
    mask_NT: Tensor,
    *,
    num_generations: int,
    eps: float = GROUP_STD_EPS,
) -> tuple[Tensor, Tensor]:
    """Advantages of tokens: the sum of the normalised rewards of this and all later steps.

    r~_j = (r_j - mean(R)) / (std(R) + eps) over the rewards R of all steps of all completions of
    the group;  A_t = sum of r~_j over the steps j that end at token t or later.

    Args:
        step_rewards_NT: float [N, T], from `place_steps`.
        is_step_NT: bool [N, T].
        mask_NT: bool [N, T].
        num_generations: G; completions of a prompt are next to each other.
        eps: Added to the standard deviation.

    Returns:
        `(advantages_NT, valid_N)`: float, 0 where masked or not valid; bool, completions with step
        rewards whose group has at least two steps. Steps that are all equal give exactly 0.

    Source: Shao et al. 2024, "DeepSeekMath", section 4.1.3, process supervision (arXiv:2402.03300).
    """
    shape = (-1, num_generations * mask_NT.shape[1])
    rewards_PS, is_step_PS = step_rewards_NT.reshape(shape), is_step_NT.reshape(shape)
    count_P1 = is_step_PS.sum(1, keepdim=True)
    clean_PS = torch.where(is_step_PS, rewards_PS, 0.0)
    mean_P1 = clean_PS.sum(1, keepdim=True) / count_P1.clamp(min=1)
    centred_PS = torch.where(is_step_PS, clean_PS - mean_P1, 0.0)
    var_P1 = (centred_PS * centred_PS).sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)
    infinity = float("inf")
    low_P1 = torch.where(is_step_PS, rewards_PS, infinity).amin(1, keepdim=True)
    high_P1 = torch.where(is_step_PS, rewards_PS, -infinity).amax(1, keepdim=True)
    normalised_PS = torch.where(low_P1 < high_P1, centred_PS / (var_P1.sqrt() + eps), 0.0)
    advantages_NT = rewards_to_go(normalised_PS.reshape(mask_NT.shape), mask_NT)
    enough_N = (count_P1 >= 2).expand(-1, num_generations).reshape(-1)
    valid_N = enough_N & is_step_NT.any(1)
    return torch.where(valid_N[:, None], advantages_NT, 0.0), valid_N
