"""The vocabulary over several processes: each holds some rows of the head's weight.

Hidden states, ids and the loss are the same everywhere. Forward: statistics are merged by one
maximum and one sum of three numbers a row. Backward: each process has the gradient of its own rows;
the gradient of the hidden states is the sum of all parts, and comes out whole on every process.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from rewardsvc.kernels.tiles.base import M, S, T, U, rescale
from rewardsvc.kernels.tiles.rows import RowRecords
from rewardsvc.kernels.tiles.topk import largest_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """This process's part of the vocabulary.

    Attributes:
        start: Id of its first row.
        vocab_size: V over all processes.
        group: The processes; None if there is but one.
    """

    start: int
    vocab_size: int
    group: dist.ProcessGroup | None


def find_shard(weight_VH: Tensor, group: dist.ProcessGroup | None) -> Shard:
    """Where this process's rows lie, parts being in the order of ranks and of any size."""
    size = len(weight_VH)
    if group is None:
        return Shard(start=0, vocab_size=size, group=None)
    sizes = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=weight_VH.device)
    rank = dist.get_rank(group)
    sizes[rank] = size
    dist.all_reduce(sizes, group=group)
    every = sizes.tolist()
    return Shard(start=sum(every[:rank]), vocab_size=sum(every), group=group)


def merge_over(shard: Shard, records: RowRecords, gain: float) -> None:
    """Makes the records those of the whole vocabulary, in place."""
    if shard.group is None:
        return
    stats_P4 = records.stats_P4
    m_P = stats_P4[:, M].clone()
    dist.all_reduce(m_P, op=dist.ReduceOp.MAX, group=shard.group)
    s_P, u_P = rescale(stats_P4[:, M], stats_P4[:, S], stats_P4[:, U], m_P, gain=gain)
    sums_3P = torch.stack((s_P, u_P, stats_P4[:, T]))
    dist.all_reduce(sums_3P, group=shard.group)
    stats_P4.copy_(torch.stack((m_P, *sums_3P.unbind(0)), 1))
    if records.keys_PK is not None:
        parts = [torch.empty_like(records.keys_PK) for _ in range(dist.get_world_size(shard.group))]
        dist.all_gather(parts, records.keys_PK, group=shard.group)
        records.keys_PK = largest_keys(torch.cat(parts, 1), records.keys_PK.shape[1])


def sum_over(shard: Shard, d_hidden_NH: Tensor) -> Tensor:
    """The sum of all processes' parts, in place."""
    if shard.group is not None:
        dist.all_reduce(d_hidden_NH, group=shard.group)
    return d_hidden_NH
