"""The `engine:` section of the configuration file."""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict, Field


class EngineSettings(BaseModel):
    """Sizes and limits of the engine; all models of the process share them.

    Attributes:
        device: Where models run that do not say so themselves: "auto" (the first CUDA device, else
            the CPU), "cpu", "cuda", "cuda:1", …
        max_batch_tokens: A batch is at most this many tokens, padding included. One sequence longer
            than that runs alone.
        max_queue_tokens: Tokens that wait in one model's queue at most; a call that comes when they
            are reached is refused.
        max_queue_items: Unanswered samples of one model at most; a call that would exceed them is
            refused. One call counts as at most half of this, so that a call of any size
            can be served.
        tokenizer_threads: Threads that tokenise, for all models together.
        num_torch_threads: Threads of one forward pass on the CPU; 0 leaves torch's own choice.
        patience_s: A sample without an earlier deadline is treated as due this many seconds after
            it came, so that samples with deadlines cannot overtake it for ever.
        drain_s: How long closing a model waits for work in flight, in seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = "auto"
    max_batch_tokens: int = Field(default=16_384, ge=1)
    max_queue_tokens: int = Field(default=4_194_304, ge=1)
    max_queue_items: int = Field(default=32_768, ge=2)
    tokenizer_threads: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), ge=1)
    num_torch_threads: int = Field(default=0, ge=0)
    patience_s: float = Field(default=60.0, gt=0)
    drain_s: float = Field(default=30.0, ge=0)
