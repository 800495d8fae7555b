"""PyTriton, as NeMo-Aligner serves reward models: an inference function behind a dynamic batcher.

Source: https://triton-inference-server.github.io/pytriton/latest/
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from peer_model import Model
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main() -> None:
    """Serves until it is killed."""
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--batch", type=int, help="without it, PyTriton's defaults")
    options.add_argument("--wait-ms", type=float, default=0.0)
    given = options.parse_args()
    model = Model()

    @batch
    def infer(text: Any) -> dict[str, Any]:
        scores = model.score([row[0].decode() for row in text])
        return {"score": np.asarray(scores, np.float32)[:, None]}

    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=given.port,
        grpc_port=given.port + 1,
        metrics_port=given.port + 2,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="reward",
            infer_func=infer,
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="score", dtype=np.float32, shape=(1,))],
            config=_model_config(given.batch, given.wait_ms),
        )
        triton.serve()


def _model_config(batch_size: int | None, wait_ms: float) -> ModelConfig:
    if batch_size is None:
        return ModelConfig()
    batcher = DynamicBatcher(max_queue_delay_microseconds=int(1000 * wait_ms))
    return ModelConfig(max_batch_size=batch_size, batcher=batcher)


if __name__ == "__main__":
    main()
