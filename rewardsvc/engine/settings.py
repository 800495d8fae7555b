"""The `engine:` section of the configuration file."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

BATCH_TOKENS = {"cpu": 3_072, "cuda": 16_384}
"""Tokens of a batch, by kind of device. A CPU is fastest from 1000 to 4000, before activations
leave its cache; a GPU needs more for all of its cores to have work."""


class EngineSettings(BaseModel):
    """Sizes and limits of the engine; all models of the process share them.

    Attributes:
        device: Where models run that do not say so themselves: "auto" (the first CUDA device, else
            the CPU), "cpu", "cuda", "cuda:1", …
        max_batch_tokens: A batch is at most this many tokens, padding included and shared prefixes
            once. One sequence longer than that runs alone. None: `BATCH_TOKENS` of the device.
        max_queue_tokens: Tokens that wait in one model's queue at most; a call that comes when they
            are reached is refused.
        max_queue_items: Unanswered samples of one model; a call that would exceed them is refused.
            One call counts as at most half of this, so that a call of any size can be served. A
            client below its fair part is let in beyond it, up to twice as many in all.
        tokenizer_threads: Threads that tokenise, for all models together.
        num_torch_threads: Threads of one forward pass on the CPU; 0 leaves torch's own choice.
        patience_s: A sample without an earlier deadline is treated as due this many seconds after
            it came, so that samples with deadlines cannot overtake it for ever.
        client_weights: Client → its weight; between clients of one priority that want more than the
            device can give, tokens are shared in proportion. 1 for clients that are not named.
        drain_s: How long closing a model waits for work in flight, in seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = "auto"
    max_batch_tokens: int | None = Field(default=None, ge=1)
    max_queue_tokens: int = Field(default=4_194_304, ge=1)
    max_queue_items: int = Field(default=32_768, ge=2)
    tokenizer_threads: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), ge=1)
    num_torch_threads: int = Field(default=0, ge=0)
    patience_s: float = Field(default=60.0, gt=0)
    client_weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    drain_s: float = Field(default=30.0, ge=0)

    def batch_tokens(self, device: str) -> int:
        """The budget of a batch on a device, named "cpu" or "cuda:<index>"."""
        if self.max_batch_tokens is not None:
            return self.max_batch_tokens
        return BATCH_TOKENS[device.partition(":")[0]]
