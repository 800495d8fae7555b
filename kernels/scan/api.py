"""`discounted_scan` and `gae`: recurrences over time that step over what is masked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rewardsvc.kernels.autograd import apply
from rewardsvc.kernels.checks import check_shape
from rewardsvc.kernels.dispatch import Backend, choose_backend
from rewardsvc.kernels.scan import torch_rows

# B sequences, T tokens.


def discounted_scan(
    x: Tensor,
    *,
    discount: float,
    mask: Tensor | None = None,
    initial: Tensor | None = None,
    reverse: bool = True,
    backend: str | None = None,
) -> Tensor:
    """y_t = x_t + discount * y_(t+1), from the end; differentiable in `x` and `initial`.

    Masked positions are stepped over: y passes by them unchanged, they get 0, and what they hold
    has no influence. With discount 1 and rewards this is the reward to go.

    Args:
        x: float [B, T].
        discount: Any number; 0 to 1 makes sense.
        mask: bool [B, T], True for what counts; None for all.
        initial: float [B], y after the last position; None for 0.
        reverse: False runs forwards: y_t = x_t + discount * y_(t-1).
        backend: Forces "triton" or "eager".

    Returns:
        float32 [B, T]; float64 for float64.

    Raises:
        ValueError: If a shape is off.
    """
    x, mask, initial = _inputs("x", x, mask, initial)
    chosen = choose_backend(x, 0, backend)
    out: Tensor = apply(_DiscountedScan, x, mask, initial, (discount, reverse, chosen))
    return out


def gae(
    rewards: Tensor,
    values: Tensor,
    *,
    mask: Tensor | None = None,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, and the returns that a critic learns from.

    delta_t = r_t + gamma V_(t+1) - V_t;  A_t = delta_t + gamma lambda A_(t+1);  R_t = A_t + V_t.
    Masked positions (tokens of a tool, padding) are stepped over, as if they were not there.

    Args:
        rewards: float [B, T], the reward that follows token t.
        values: float [B, T], V of the state in which token t was sampled.
        mask: bool [B, T]; None for all.
        gamma: Discount, 0 to 1.
        lam: Lambda, 0 (one step) to 1 (Monte Carlo).
        last_values: float [B], V after the last token; None for 0, an episode that ends there.
        backend: Forces "triton" or "eager".

    Returns:
        Advantages and returns, float32 [B, T] (float64 for float64), 0 where masked. Differentiable
        in rewards and values; with neither in a graph, one kernel computes both.

    Raises:
        ValueError: If a shape is off.

    Source: Schulman et al. 2016, equations 11 and 16 (arXiv:1506.02438).
    """
    check_shape("rewards", rewards, tuple(values.shape))
    values, mask, last_values = _inputs("values", values, mask, last_values)
    rewards = rewards.to(values.dtype)
    chosen = choose_backend(values, 0, backend)
    in_graph = torch.is_grad_enabled() and (
        rewards.requires_grad or values.requires_grad or last_values.requires_grad
    )
    if chosen is Backend.TRITON and not in_graph:
        from rewardsvc.kernels.scan import triton_rows

        return triton_rows.gae_rows(rewards, values, mask, last_values, gamma=gamma, lam=lam)
    if not in_graph:
        return torch_rows.gae_rows(rewards, values, mask, last_values, gamma=gamma, lam=lam)
    # The same in differentiable parts; masked positions leave the graph first, NaN and all.
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    delta = rewards + gamma * torch_rows.next_values(values, mask, last_values) - values
    advantages = discounted_scan(delta, discount=gamma * lam, mask=mask, backend=backend)
    return advantages, advantages + values


def _inputs(
    name: str, x: Tensor, mask: Tensor | None, last: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments in full, checked, and in the dtype of the result."""
    if x.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected [B, T]")
    if x.dtype != torch.float64:
        x = x.to(torch.float32)
    if mask is None:
        mask = torch.ones_like(x, dtype=torch.bool)
    check_shape("mask", mask, tuple(x.shape))
    last = x.new_zeros(len(x)) if last is None else last.to(x.dtype)
    check_shape("initial" if name == "x" else "last_values", last, (len(x),))
    return x, mask.to(torch.bool), last


class _DiscountedScan(torch.autograd.Function):
    """A linear map whose transpose is the same scan the other way round."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BT: Tensor,
        mask_BT: Tensor,
        initial_B: Tensor,
        call: tuple[float, bool, Backend],
    ) -> Tensor:
        ctx.save_for_backward(mask_BT)
        ctx.call = call
        return _scan(x_BT, mask_BT, initial_B, call)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_BT: Tensor) -> tuple[Tensor | None, ...]:
        (mask_BT,) = ctx.saved_tensors
        discount, reverse, backend = ctx.call
        zeros_B = d_out_BT.new_zeros(len(d_out_BT))
        d_x_BT = _scan(d_out_BT, mask_BT, zeros_B, (discount, not reverse, backend))
        d_initial_B = zeros_B
        if ctx.needs_input_grad[2]:
            # The initial value enters at the first kept position that the scan meets.
            order_BT = mask_BT.flip(1) if reverse else mask_BT
            first_BT = order_BT & (order_BT.cumsum(1) == 1)
            met_BT = first_BT.flip(1) if reverse else first_BT
            d_initial_B = discount * torch.where(met_BT, d_x_BT, 0.0).sum(1)
        return d_x_BT, None, d_initial_B, None


def _scan(
    x_BT: Tensor, mask_BT: Tensor, initial_B: Tensor, call: tuple[float, bool, Backend]
) -> Tensor:
    discount, reverse, backend = call
    rows = torch_rows.discounted_scan_rows
    if backend is Backend.TRITON:
        from rewardsvc.kernels.scan import triton_rows

        rows = triton_rows.discounted_scan_rows
    return rows(x_BT, mask_BT, initial_B, discount=discount, reverse=reverse)
