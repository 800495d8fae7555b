"""LitServe, as its documentation batches: `max_batch_size`, `batch_timeout`, a padded forward pass.

Source: https://lightning.ai/docs/litserve/features/batching
"""

from __future__ import annotations

import argparse
from typing import Any

import litserve
from peer_model import Model


class RewardApi(litserve.LitAPI):
    """One model in each worker process."""

    def setup(self, device: str) -> None:
        """Loads the model."""
        self.model = Model()

    def decode_request(self, request) -> str:  # type: ignore[no-untyped-def]
        """The text of a request. LitServe looks at the annotation, and takes a dict without one."""
        return request["text"]

    def predict(self, texts: Any) -> Any:
        """A list of texts where batches are formed, else one text."""
        if isinstance(texts, str):
            return self.model.score([texts])[0]
        return self.model.score(texts)

    def encode_response(self, score: float) -> dict[str, float]:
        """The reply."""
        return {"score": float(score)}


def main() -> None:
    """Serves until it is killed."""
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--batch", type=int, help="without it, LitServe's defaults")
    options.add_argument("--wait-ms", type=float, default=0.0)
    given = options.parse_args()
    batching = {"max_batch_size": given.batch, "batch_timeout": given.wait_ms / 1000}
    api = RewardApi(**(batching if given.batch else {}))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=given.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
