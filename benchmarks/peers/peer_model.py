"""The model as a peer would hold it: plain transformers, padded batches, whole seconds of care.

Runs in the peers' own environments: nothing of rewardsvc is imported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence


class Model:
    """A sequence classifier. `PEER_MODEL` names its folder, `PEER_THREADS` torch's threads."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.set_num_threads(int(os.environ["PEER_THREADS"]))
        folder = os.environ["PEER_MODEL"]
        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def score(self, texts: Sequence[str]) -> list[float]:
        """The logit of label 1 for each text; the longest text's length sets the others'."""
        with self._torch.inference_mode():
            inputs = self._tokenizer(
                list(texts),
                padding=len(texts) > 1,
                return_tensors="pt",
                return_token_type_ids=False,
            )
            return self._model(**inputs).logits[:, 1].tolist()
