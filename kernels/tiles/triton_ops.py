"""Tile operations by Triton: launches of `triton_kernels.py`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from rewardsvc.kernels.tiles.triton_kernels import finish_kernel, grad_kernel, row_stats_kernel
from rewardsvc.kernels.transform import LogitTransform
from rewardsvc.kernels.triton_math import launch

MAX_LANES = 1024
"""16 bytes a thread at 4 warps of 32 threads and 2-byte logits."""
MAX_DEPTH = 8
TOPK_DEPTH = 2
"""Less depth with top-k, whose keys take two registers an element."""
GRAD_BLOCK = 4096
NUM_WARPS = 4
FINISH_BLOCK = 256


def tile_shape(num_columns: int, topk: int) -> tuple[int, int]:
    """DEPTH and LANES of `row_stats_kernel`: from the columns alone, never from the rows."""
    lanes = min(MAX_LANES, max(32, triton.next_power_of_2(num_columns)))
    depth = min(TOPK_DEPTH if topk else MAX_DEPTH, triton.next_power_of_2(-(-num_columns // lanes)))
    return depth, lanes


def grad_grid(num_rows: int, num_columns: int) -> tuple[int, int]:
    """Rows go on the first axis, which holds 2^31 - 1; the others hold 65,535."""
    return num_rows, -(-num_columns // GRAD_BLOCK)


def _scale_over_cap(transform: LogitTransform) -> float:
    return transform.logit_scale / transform.softcap if transform.softcap is not None else 0.0


class TritonTiles:
    """`TileOps` by Triton, for CUDA, ROCm and the interpreter; not for float64."""

    row_tile = 1

    def accumulate(
        self,
        z_RW: Tensor,
        ids_R: Tensor,
        stats_R4: Tensor,
        transform: LogitTransform,
        *,
        bias_W: Tensor | None,
        keys_RK: Tensor | None,
        active_R: Tensor,
        start: int,
    ) -> None:
        """See `TileOps.accumulate`."""
        num_rows, num_columns = z_RW.shape
        topk = 0 if keys_RK is None else keys_RK.shape[1]
        depth, lanes = tile_shape(num_columns, topk)
        launch(
            row_stats_kernel,
            (num_rows,),
            z_RW,
            bias_W,
            ids_R,
            active_R,
            stats_R4,
            keys_RK,
            num_columns,
            start,
            z_RW.stride(0),
            z_RW.stride(1),
            transform.gain,
            transform.softcap or 0.0,
            _scale_over_cap(transform),
            DEPTH=depth,
            LANES=lanes,
            HAS_BIAS=bias_W is not None,
            SOFTCAP=transform.softcap is not None,
            TOPK=topk,
            TOPK_LANES=triton.next_power_of_2(max(topk, 1)),
            num_warps=NUM_WARPS,
        )

    def finish(self, stats_N4: Tensor, gain: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `TileOps.finish`."""
        num_rows = len(stats_N4)
        out_4N = torch.empty(4, num_rows, dtype=torch.float32, device=stats_N4.device)
        grid = (-(-num_rows // FINISH_BLOCK),)
        launch(finish_kernel, grid, stats_N4, out_4N, num_rows, gain, BLOCK=FINISH_BLOCK)
        logp_N, entropy_N, lse_N, log_s_N = out_4N.unbind(0)
        return logp_N, entropy_N, lse_N, log_s_N

    def grad(
        self,
        z_RW: Tensor,
        ids_R: Tensor,
        grads_R6: Tensor,
        transform: LogitTransform,
        *,
        bias_W: Tensor | None,
        active_R: Tensor,
        start: int,
        out_RW: Tensor | None,
    ) -> None:
        """See `TileOps.grad`."""
        out_RW = z_RW if out_RW is None else out_RW
        num_rows, num_columns = z_RW.shape
        launch(
            grad_kernel,
            grad_grid(num_rows, num_columns),
            z_RW,
            bias_W,
            ids_R,
            active_R,
            grads_R6,
            out_RW,
            num_columns,
            start,
            z_RW.stride(0),
            z_RW.stride(1),
            out_RW.stride(0),
            transform.gain,
            transform.softcap or 0.0,
            _scale_over_cap(transform),
            BLOCK=GRAD_BLOCK,
            HAS_BIAS=bias_W is not None,
            SOFTCAP=transform.softcap is not None,
            num_warps=NUM_WARPS,
        )
