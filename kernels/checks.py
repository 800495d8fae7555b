"""Checks of what callers pass, which name the field, the value and the fix.

Whether ids are in range is known on the device. On the CPU the answer is read at once. On a GPU it
takes one reduction and one read by the host a call: the read is started before the kernels and
waited for after they were launched, so that the device never idles for it. While a graph is being
captured, nothing may be read; a bad id's log-prob is then NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_float(name: str, value: Tensor) -> None:
    """Raises ValueError unless `value` is a floating-point tensor that the kernels take."""
    if value.dtype not in FLOAT_DTYPES:
        raise ValueError(f"{name} has dtype {value.dtype}; pass float16, bfloat16 or float32")


def check_same(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """Raises ValueError unless the two tensors share device and dtype."""
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device} and {like_name} on {like.device}; move one")
    if value.dtype != like.dtype:
        raise ValueError(f"{name} is {value.dtype} and {like_name} {like.dtype}; cast one of them")


def check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless `value` has exactly this shape."""
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {shape}")


def check_topk(topk: int, vocab_size: int, limit: int) -> None:
    """Raises ValueError unless `topk` is between 0 and the smaller of `limit` and `vocab_size`."""
    if not 0 <= topk <= min(limit, vocab_size):
        raise ValueError(f"topk is {topk}; it must be in [0, {min(limit, vocab_size)}]")


def capturing(tensor: Tensor) -> bool:
    """Whether a graph is being captured, during which the host can read nothing."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True, slots=True, eq=False)
class IdCheck:
    """A check of token ids that is under way; `finish` waits for it.

    Attributes:
        ids: [N], the ids, for the message.
        bad: bool [N], which ids are out of range.
        facts: bool [2] on the host: any bad id, all rows active. None while capturing.
        ready: Recorded when `facts` has arrived; None on the CPU.
        vocab_size: V.
    """

    ids: Tensor
    bad: Tensor
    facts: Tensor | None
    ready: torch.cuda.Event | None
    vocab_size: int

    @property
    def unread(self) -> bool:
        """Whether the answer cannot be read, as a graph is being captured."""
        return self.facts is None

    def mark(self, logp_N: Tensor) -> Tensor:
        """Log-probs, NaN at bad ids if those could not be reported."""
        return logp_N.masked_fill(self.bad, torch.nan) if self.unread else logp_N

    def finish(self) -> bool:
        """Whether all rows are active; False if unknown.

        Raises:
            ValueError: If an active row's id is out of range; names the first and its position.
        """
        if self.facts is None:
            return False
        if self.ready is not None:
            self.ready.synchronize()
        any_bad, all_active = self.facts.tolist()
        if any_bad:
            at = int(self.bad.nonzero()[0])
            raise ValueError(
                f"ids[{at}] (flattened) is {int(self.ids[at])}, outside of [0, {self.vocab_size})"
                " for a vocabulary of that size; mask the row or mend the id"
            )
        return bool(all_active)


def start_id_check(ids_N: Tensor, active_N: Tensor, vocab_size: int) -> IdCheck:
    """Starts to check that each active row's id is in [0, vocab_size).

    Args:
        ids_N: int32 or int64.
        active_N: bool, the rows that count.
        vocab_size: V.

    Raises:
        ValueError: If the ids are not integers.
    """
    if ids_N.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"ids has dtype {ids_N.dtype}; pass int32 or int64")
    bad_N = active_N & ((ids_N < 0) | (ids_N >= vocab_size))
    if capturing(ids_N):
        return IdCheck(ids_N, bad_N, None, None, vocab_size)
    facts = torch.stack((bad_N.any(), active_N.all()))
    if not facts.is_cuda:
        return IdCheck(ids_N, bad_N, facts, None, vocab_size)
    on_host = torch.empty(2, dtype=torch.bool, pin_memory=True)
    on_host.copy_(facts, non_blocking=True)
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    ready.record()
    return IdCheck(ids_N, bad_N, on_host, ready, vocab_size)
