"""The three kinds of unary calls, as jobs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from rewardsvc.errors import ItemError
from rewardsvc.policy_client.client.decode import decode_items, decode_logprobs
from rewardsvc.policy_client.client.encode import encode_samples, encode_sequences
from rewardsvc.policy_client.client.jobs import Job, JobEnv
from rewardsvc.policy_client.client.logprobs import TokenLogProbs
from rewardsvc.policy_client.client.scores import ItemScore, ScoreBatch, batch_of
from rewardsvc.policy_client.client.server_info import ServerInfo, decode_server_info
from rewardsvc.policy_client.client.types import ScoreItem
from rewardsvc.v1 import reward_pb2 as pb


class ScoreJob(Job):
    """Scores of N samples."""

    method = "Score"

    def __init__(self, env: JobEnv, scorer: str, items: Sequence[ScoreItem]) -> None:
        """Encodes the samples.

        Raises:
            TypeError: If a field of a sample has the wrong type.
            ValueError: If an id is too long.
        """
        super().__init__(env, f"Score with {scorer!r}")
        self._scorer = scorer
        self._samples, errors = encode_samples(items)
        self._answers = [
            ItemScore(id=item.id or str(row), error=errors.get(row))
            for row, item in enumerate(items)
        ]
        rows = [row for row in range(len(items)) if row not in errors]
        self._add_rows(rows, [self._samples[row] for row in rows])

    def result(self) -> ScoreBatch:
        """The scores, once the job is done."""
        return batch_of(self._answers)

    def _request(self, rows: Sequence[int]) -> Message:
        return pb.ScoreRequest(
            scorer=self._scorer,
            samples=[self._samples[row] for row in rows],
            priority=self._env.priority,
            client_id=self._env.settings.client_id,
        )

    def _accept(self, rows: Sequence[int], response: Message) -> list[int]:
        assert isinstance(response, pb.ScoreResponse)
        items = decode_items(response.batch, [self._answers[row].id for row in rows])
        for row, item in zip(rows, items, strict=True):
            self._answers[row] = item
        return [row for row in rows if is_retryable(self._answers[row].error)]

    def _group(self, row: int) -> Hashable:
        """Completions of one prompt."""
        sample = self._samples[row]
        kind = sample.WhichOneof("prompt")
        if kind is None:
            return row
        prompt = getattr(sample, kind)
        return prompt if kind == "prompt_text" else (kind, prompt.SerializeToString())

    def _reject(self, row: int, error: ItemError) -> bool:
        self._answers[row] = ItemScore(id=self._answers[row].id, error=error)
        return True


class LogProbsJob(Job):
    """Log-probs of N token sequences."""

    method = "TokenLogProbs"

    def __init__(
        self,
        env: JobEnv,
        scorer: str,
        sequences: tuple[Sequence[Any], Sequence[Any]],
        *,
        temperature: float,
        entropy: bool,
    ) -> None:
        """Encodes the sequences.

        Args:
            env: The surroundings.
            scorer: Name of a causal language model.
            sequences: Prompt ids [N] and completion ids [N].
            temperature: Finite and above 0.
            entropy: Whether to ask for entropies.

        Raises:
            TypeError: If ids are not integers.
            ValueError: If lengths differ or the temperature is out of range.
        """
        super().__init__(env, f"TokenLogProbs with {scorer!r}")
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature is {temperature}; it must be finite and above 0")
        self._scorer, self._temperature, self._entropy = scorer, temperature, entropy
        self._messages, self._counts, errors = encode_sequences(*sequences)
        num_sequences = len(self._messages)
        self._errors = [errors.get(row) for row in range(num_sequences)]
        self._logprobs = [self._no_values(row) for row in range(num_sequences)]
        self._entropies = [self._no_values(row) for row in range(num_sequences)]
        self._versions = [""] * num_sequences
        rows = [row for row in range(num_sequences) if row not in errors]
        self._add_rows(rows, [self._messages[row] for row in rows])

    def result(self) -> TokenLogProbs:
        """The log-probs, once the job is done."""
        return TokenLogProbs(
            logprobs=self._logprobs,
            entropies=self._entropies if self._entropy else None,
            errors=self._errors,
            versions=self._versions,
        )

    def _no_values(self, row: int) -> NDArray[np.float32]:
        return np.full(self._counts[row], np.nan, np.float32)

    def _request(self, rows: Sequence[int]) -> Message:
        return pb.TokenLogProbsRequest(
            scorer=self._scorer,
            sequences=[self._messages[row] for row in rows],
            temperature=self._temperature,
            entropy=self._entropy,
            priority=self._env.priority,
            client_id=self._env.settings.client_id,
        )

    def _accept(self, rows: Sequence[int], response: Message) -> list[int]:
        assert isinstance(response, pb.TokenLogProbsResponse)
        logprobs, entropies, errors = decode_logprobs(
            response, [self._counts[row] for row in rows], entropy=self._entropy
        )
        for position, row in enumerate(rows):
            error = errors.get(position)
            self._errors[row] = error
            self._versions[row] = response.version
            self._logprobs[row] = self._no_values(row) if error else logprobs[position]
            if self._entropy:
                self._entropies[row] = self._no_values(row) if error else entropies[position]
        return [row for row in rows if is_retryable(self._errors[row])]

    def _reject(self, row: int, error: ItemError) -> bool:
        self._errors[row] = error
        return True


class InfoJob(Job):
    """What a server says about itself."""

    method = "GetServerInfo"

    def __init__(self, env: JobEnv) -> None:
        super().__init__(env, "GetServerInfo")
        self._info: ServerInfo | None = None
        self._add_rows([0], [pb.GetServerInfoRequest()])

    def result(self) -> ServerInfo:
        """The answer, once the job is done."""
        assert self._info is not None
        return self._info

    def _request(self, rows: Sequence[int]) -> Message:
        return pb.GetServerInfoRequest()

    def _accept(self, rows: Sequence[int], response: Message) -> list[int]:
        assert isinstance(response, pb.GetServerInfoResponse)
        self._info = decode_server_info(response)
        return []


def is_retryable(error: ItemError | None) -> bool:
    """Whether the same sample may succeed if it is sent again."""
    return error is not None and error.retryable
