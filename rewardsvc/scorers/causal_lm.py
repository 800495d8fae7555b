"""`causal_lm`: log-probs of tokens under a hosted causal model, the reference policy of a KL term.

As a scorer it gives the completion's log-prob. An empty completion has log-prob 0: log 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rewardsvc.engine.types import Answer, Encoded, LogprobQuery
from rewardsvc.errors import (
    ConfigError,
    InvalidRequestError,
    ItemError,
    ItemErrorCode,
    ItemFailure,
)
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers._loading import check_same, load_model, logit_rule, probe_ids
from rewardsvc.scorers._model_config import ModelConfig
from rewardsvc.scorers._served import ModelScorer, padded_backend
from rewardsvc.scoring.tokens import TokenScorer, TokenScores, TokenSequence
from rewardsvc.scoring.types import Sample, Score

if TYPE_CHECKING:
    from rewardsvc.engine.torch_backend import Reading


class CausalLmConfig(ModelConfig):
    """Configuration of `causal_lm`."""

    type: Literal["causal_lm"] = "causal_lm"


class CausalLm(ModelScorer, TokenScorer):
    """See the module's text."""

    Config = CausalLmConfig

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """The summed log-prob of each completion's tokens in nats; their mean as `per_token`.

        In a chat, what the template puts after the completion's start (the end of the turn) counts.
        """
        return [_scored(answer) for answer in await self._submit(samples, self._encode_sample)]

    async def token_logprobs(
        self, sequences: Sequence[TokenSequence], *, temperature: float = 1.0, entropy: bool = False
    ) -> list[TokenScores]:
        """See `TokenScorer.token_logprobs`."""
        if not (math.isfinite(temperature) and temperature > 0):
            raise InvalidRequestError(f"temperature: {temperature} is not finite and above 0")
        query = LogprobQuery(temperature=temperature, entropy=entropy)
        answers = await self._submit(sequences, partial(self._encode_sequence, query=query))
        return [_token_scores(answer, entropy=entropy) for answer in answers]

    def _encode_sample(self, sample: Sample) -> Encoded:
        tokens = self.encoder.encode(sample)
        targets = np.flatnonzero(tokens.in_completion)
        if len(targets) and targets[0] == 0:
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                "the first token of the completion has nothing before it; send a prompt, or use a "
                "tokenizer with a BOS token",
            )
        return Encoded(
            token_ids=tokens.ids, positions=(targets - 1).astype(np.int32), query=LogprobQuery()
        )

    def _encode_sequence(self, sequence: TokenSequence, *, query: LogprobQuery) -> Encoded:
        num_prompt, num_completion = len(sequence.prompt_ids), len(sequence.completion_ids)
        if not num_prompt:
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                "prompt_ids is empty; the first completion token needs at least one before it",
            )
        ids = np.concatenate([sequence.prompt_ids, sequence.completion_ids]).astype(np.int32)
        self.encoder.check_ids(ids)
        if len(ids) > self._max_length:
            raise ItemFailure(
                ItemErrorCode.TOO_LONG,
                f"the sequence has {len(ids)} tokens and the model takes {self._max_length}; "
                "shorten it, or raise max_length",
            )
        positions = np.arange(num_prompt - 1, num_prompt + num_completion - 1, dtype=np.int32)
        return Encoded(token_ids=ids, positions=positions, query=query)

    def _load_reading(
        self, checkpoint: Checkpoint, tokenizer: Any, device: str
    ) -> tuple[Any, Reading]:
        import torch

        from rewardsvc.engine.torch_backend import HiddenStates, LogprobHead

        model = load_model("AutoModelForCausalLM", self._source, checkpoint, device)
        output = model.get_output_embeddings()
        if not isinstance(output, torch.nn.Linear):
            raise ConfigError(
                f"model: the output embedding is a {type(output).__name__}, not a linear layer"
            )
        head = LogprobHead(output.weight, output.bias, logit_rule(model))
        reading = HiddenStates(model.base_model, head)
        ids = probe_ids(model)
        probe = Encoded(
            token_ids=ids,
            positions=np.arange(len(ids) - 1, dtype=np.int32),
            query=LogprobQuery(entropy=True),
        )
        ids_T = torch.from_numpy(ids).long().to(device)
        with torch.inference_mode():
            logprobs_TV = model(input_ids=ids_T[None]).logits[0].float().log_softmax(-1)
        plain = logprobs_TV[:-1].gather(-1, ids_T[1:, None])
        check_same(padded_backend(model, reading, device).run([probe])[0][:, :1], plain, model)
        return model, reading


def _scored(answer: Answer) -> Score:
    if isinstance(answer, ItemError):
        return Score(error=answer)
    logprobs = answer[:, 0].tolist()
    total = math.fsum(logprobs)
    parts = {"per_token": total / len(logprobs)} if logprobs else {}
    return Score.of(total, components=parts)


def _token_scores(answer: Answer, *, entropy: bool) -> TokenScores:
    if isinstance(answer, ItemError):
        return TokenScores(error=answer)
    logprobs = np.ascontiguousarray(answer[:, 0])
    if not entropy:
        return TokenScores(logprobs=logprobs)
    return TokenScores(logprobs=logprobs, entropies=np.ascontiguousarray(answer[:, 1]))
