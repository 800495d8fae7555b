"""`linear_logprob`: log-probs from hidden states, without the logits of more than a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from rewardsvc.kernels.autograd import apply
from rewardsvc.kernels.checks import (
    check_float,
    check_same,
    check_shape,
    check_topk,
    start_id_check,
)
from rewardsvc.kernels.dispatch import Backend, choose_backend, tile_ops
from rewardsvc.kernels.linear.backward import linear_grads
from rewardsvc.kernels.linear.forward import accumulate_linear
from rewardsvc.kernels.linear.parallel import Shard, find_shard, merge_over, sum_over
from rewardsvc.kernels.linear.plan import Plan, make_plan
from rewardsvc.kernels.tiles.rows import RowRecords, backward_records, token_stats
from rewardsvc.kernels.tiles.topk import MAX_TOPK
from rewardsvc.kernels.transform import LogitTransform
from rewardsvc.kernels.types import TokenStats

# N rows (tokens), A rows that count, H hidden, V vocabulary.


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    entropy: bool = False,
    topk: int = 0,
    workspace_mib: int | None = None,
    tp_group: ProcessGroup | None = None,
    backend: str | None = None,
) -> TokenStats:
    """Log-probs of given tokens from hidden states; no [tokens, V] tensor, forward or backward.

    `softmax(softcap * tanh(logit_scale * (hidden @ weight.T + bias) / softcap) / temperature)`.
    A token's result, and its gradient in `hidden`, depend on no other token, bit for bit.

    Logits are rounded to the dtype of `hidden`, as a head in that dtype rounds them; all that
    follows is float32. With `workspace_mib=0` and Triton the forward pass keeps them in float32.

    Args:
        hidden: [..., H], float16, bfloat16, float32 or float64.
        weight: [V, H], of the same dtype.
        ids: [...], int32 or int64, in [0, V) or `ignore_index`. `ids[i]` is the token that
            `hidden[i]` predicts: shift before the call.
        bias: [V], of the same dtype.
        temperature: Finite and above 0.
        softcap: Finite and above 0; None for none.
        logit_scale: Finite and above 0.
        ignore_index: Rows with this id get zeros and no gradient, and cost nothing.
        entropy: Whether to return entropies.
        topk: How many of the most likely tokens to return, at most 64.
        workspace_mib: Bound of the memory for logits; None for 128 on the CPU and 512 on a GPU.
            With 0, Triton's forward pass needs none, except for top-k; all others take the smallest
            block. On the CPU, as many blocks as fit are kept for the backward pass, which then
            need not compute them again; the bits are the same.
        tp_group: Processes that share the vocabulary: `weight` and `bias` are this one's rows, in
            the order of ranks; `hidden` and `ids` are the same everywhere, and ids are global. All
            processes of the group must call, and go backward, in the same order.
        backend: Forces "triton", "compiled" or "eager".

    Returns:
        The statistics; `logp`, `entropy` and `lse` are differentiable in hidden, weight and bias.

    Raises:
        ValueError: If an argument is malformed; an id out of range is named with its position.
    """
    _check_tensors(hidden, weight, bias)
    shape = hidden.shape[:-1]
    check_shape("ids", ids, tuple(shape))
    transform = LogitTransform(temperature=temperature, softcap=softcap, logit_scale=logit_scale)
    chosen = choose_backend(hidden, len(weight), backend)
    plan = make_plan(hidden.device, hidden.dtype, len(weight), workspace_mib)
    shard = find_shard(weight, tp_group)
    check_topk(topk, min(shard.vocab_size, len(weight)), MAX_TOPK)
    call = _Call(
        transform=transform,
        backend=chosen,
        topk=topk,
        plan=plan,
        shard=shard,
        fused=chosen is Backend.TRITON and workspace_mib == 0 and topk == 0,
        keep=torch.is_grad_enabled()
        and any(x is not None and x.requires_grad for x in (hidden, weight, bias)),
    )
    ids_N = ids.reshape(-1)
    active_N = ids_N != ignore_index
    check = start_id_check(ids_N, active_N, shard.vocab_size)
    hidden_NH = hidden.reshape(-1, hidden.shape[-1])
    if check.finish():
        outputs = apply(_LinearLogprob, hidden_NH, weight, bias, ids_N.long(), call)
    elif check.unread:
        hidden_NH = hidden_NH.where(active_N[:, None], 0.0)
        outputs = apply(_LinearLogprob, hidden_NH, weight, bias, ids_N.long(), call)
        logp_N, *others = (_where_active(active_N, out) for out in outputs)
        outputs = (check.mark(logp_N), *others)
    else:
        # Rows that do not count leave before the products, which are all the cost there is.
        rows_A = active_N.nonzero()[:, 0]
        hidden_AH = hidden_NH.index_select(0, rows_A)
        outputs_A = apply(_LinearLogprob, hidden_AH, weight, bias, ids_N[rows_A].long(), call)
        outputs = tuple(
            out.new_zeros(len(ids_N), *out.shape[1:]).index_copy(0, rows_A, out)
            for out in outputs_A
        )
    return token_stats(outputs, shape, entropy=entropy, topk=topk)


def _where_active(active_N: Tensor, out: Tensor) -> Tensor:
    """`out`, [N] or [N, K], with zeros in rows that do not count."""
    return out.where(active_N if out.dim() == 1 else active_N[:, None], 0)


def _check_tensors(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_float("hidden", hidden)
    if hidden.dim() == 0 or weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}; expected"
            " [..., H] and [V, H] with V and H above 0"
        )
    check_shape("hidden", hidden, (*hidden.shape[:-1], weight.shape[1]))
    check_same("weight", weight, "hidden", hidden)
    if bias is not None:
        check_shape("bias", bias, (len(weight),))
        check_same("bias", bias, "hidden", hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """What a call is made of, tensors aside.

    Attributes:
        fused: Whether the forward pass runs in one kernel, without a workspace.
        keep: Whether there may be a backward pass.
    """

    transform: LogitTransform
    backend: Backend
    topk: int
    plan: Plan
    shard: Shard
    fused: bool
    keep: bool


class _LinearLogprob(torch.autograd.Function):
    """logp, entropy, lse, top-k log-probs and ids of rows that all count."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        ids_N: Tensor,
        call: _Call,
    ) -> tuple[Tensor, ...]:
        # torch.autocast would cast the products, and with them what the tolerances rest on.
        with torch.autocast(hidden_NH.device.type, enabled=False):
            return _LinearLogprob._forward(ctx, hidden_NH, weight_VH, bias_V, ids_N, call)

    @staticmethod
    def _forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        ids_N: Tensor,
        call: _Call,
    ) -> tuple[Tensor, ...]:
        ops = tile_ops(call.backend, wide=True)
        kept: list[Tensor] = []
        every_N = torch.ones_like(ids_N, dtype=torch.bool)
        records = RowRecords(ids_N, every_N, hidden_NH, topk=call.topk, multiple=call.plan.rows)
        if call.fused:
            from rewardsvc.kernels.linear.fused import accumulate_fused

            accumulate_fused(
                records, hidden_NH, weight_VH, call.transform, bias_V=bias_V, start=call.shard.start
            )
        else:
            kept = accumulate_linear(
                records,
                hidden_NH,
                weight_VH,
                call.transform,
                bias_V=bias_V,
                start=call.shard.start,
                ops=ops,
                plan=call.plan,
                keep=call.keep,
            )
        merge_over(call.shard, records, call.transform.gain)
        finished = records.finish(ops, call.transform.gain)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, ids_N, finished.saved, *kept)
        ctx.call = call
        ctx.mark_non_differentiable(*finished.outputs[3:])
        ctx.set_materialize_grads(False)
        return finished.outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, ids_N, saved_3N, *kept = ctx.saved_tensors
        call: _Call = ctx.call
        with torch.autocast(hidden_NH.device.type, enabled=False):
            result = linear_grads(
                hidden_NH,
                weight_VH,
                bias_V,
                call.transform,
                ids_N=ids_N,
                grads_N6=backward_records(saved_3N, grads[:3]),
                wanted=ctx.needs_input_grad[:3],
                start=call.shard.start,
                ops=tile_ops(call.backend, wide=True),
                plan=call.plan,
                kept=kept,
                exact=call.fused,
            )
        d_hidden_NH = result.hidden
        if d_hidden_NH is not None:
            d_hidden_NH = sum_over(call.shard, d_hidden_NH).to(hidden_NH.dtype)
        return d_hidden_NH, result.weight, result.bias, None, None
