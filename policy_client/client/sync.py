"""The blocking client."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rewardsvc.policy_client.client.base import ClientBase
from rewardsvc.policy_client.client.calls import InfoJob, LogProbsJob, ScoreJob
from rewardsvc.policy_client.client.connections import Connections
from rewardsvc.policy_client.client.encode import build_items
from rewardsvc.policy_client.client.errors import Cancelled, DeadlineExceeded
from rewardsvc.policy_client.client.logprobs import TokenLogProbs
from rewardsvc.policy_client.client.reward_function import OnError, RewardFunction
from rewardsvc.policy_client.client.scores import ItemScore, ScoreBatch
from rewardsvc.policy_client.client.server_info import ServerInfo, not_ready
from rewardsvc.policy_client.client.settings import ClientSettings
from rewardsvc.policy_client.client.stream import (
    DEFAULT_WINDOW,
    StreamState,
    check_window,
)
from rewardsvc.policy_client.client.sync_stream import run_stream
from rewardsvc.policy_client.client.types import ScoreItem, TextLike

_POLL_S = 0.2


class RewardClient(ClientBase):
    """Calls a reward service and waits for its answers.

    Thread-safe and picklable: the copy connects anew. Close it, or use it as a context manager.

    A child process that was forked connects anew too. gRPC itself must be told to expect that: set
    GRPC_ENABLE_FORK_SUPPORT=1 in the environment before the first import of grpc, which is the
    default of recent versions of grpcio. Without it the child's calls fail with
    `ServiceUnavailable`.

    Example:
        >>> client = RewardClient("localhost:50051")
        >>> batch = client.score("rlvr", ["1+1="], ["2"], answers=["2"])  # doctest: +SKIP
        >>> batch.values  # doctest: +SKIP
        array([1.], dtype=float32)
    """

    def score(
        self,
        scorer: str,
        prompts: Sequence[TextLike],
        completions: Sequence[TextLike],
        *,
        answers: Sequence[str | None] | None = None,
        tests: Sequence[Any] | None = None,
        rubrics: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        ids: Sequence[str] | None = None,
        timeout_s: float | None = None,
        priority: int | None = None,
    ) -> ScoreBatch:
        """Scores N samples with one scorer.

        A sample that cannot be sent or scored has NaN and an error in its row; the others are
        scored. Samples with a retryable error are sent again, `retry.max_item_attempts` times in
        all.

        Args:
            scorer: The scorer's name in the server's configuration.
            prompts: [N]; text, chat messages or token ids.
            completions: [N]; text, chat messages or token ids.
            answers: [N], the reference answers that verifiers check against.
            tests: [N], test cases of code verifiers: JSON documents, as text or as Python values.
            rubrics: [N], what a judge should look for.
            metadata: [N], anything else a scorer may want; JSON objects.
            ids: [N], echoed in the result; at most 256 bytes each.
            timeout_s: Seconds that the call may take, retries included; the client's if None.
            priority: Higher is served first, -100 to 100; the client's if None.

        Returns:
            Scores in the order of the samples.

        Raises:
            RewardClientError: If the call as a whole failed; see its subclasses.
            TypeError: If a field has the wrong type; names the field and the sample.
            ValueError: If lengths differ or a value is out of range; names the field.
        """
        live = self._live()
        columns = {
            "answers": answers,
            "tests": tests,
            "rubrics": rubrics,
            "metadata": metadata,
            "ids": ids,
        }
        items = build_items(prompts, completions, columns)
        job = ScoreJob(self._env(live.pool, timeout_s, priority), scorer, items)
        live.run(job)
        return job.result()

    def score_stream(
        self,
        scorer: str,
        samples: Iterable[ScoreItem | Mapping[str, Any]],
        *,
        window: int = DEFAULT_WINDOW,
        timeout_s: float | None = None,
        priority: int | None = None,
    ) -> Iterator[tuple[str, ItemScore]]:
        """Scores samples as they come, and yields answers as soon as they are ready, in any order.

        A stream that breaks is opened again, and samples without an answer are sent again; no
        answer comes twice. The iterable runs in a thread of its own. Failures of the service that
        last are raised; those of one sample are in its `ItemScore`.

        Args:
            scorer: The scorer's name in the server's configuration.
            samples: `ScoreItem`s, or mappings with their fields. Ids must be unique among the
                samples in flight; a sample without one gets its position as id.
            window: Most samples taken from the iterable whose answers were not yielded.
            timeout_s: Seconds that each sample may take, retries included; the client's if None.
            priority: Higher is served first, -100 to 100; the client's if None.

        Returns:
            An iterator of (id, score). Close it, or exhaust it.

        Raises:
            RewardClientError: If the service failed for longer than `timeout_s`.
            TypeError: If a field of a sample has the wrong type.
            ValueError: If an id is in flight already, or an argument is out of range.
        """
        live = self._live()
        state = StreamState(self._env(live.pool, timeout_s, priority), scorer)
        return run_stream(state, samples, check_window(window), live.open_stream)

    def token_logprobs(
        self,
        scorer: str,
        prompt_ids: Sequence[Any],
        completion_ids: Sequence[Any],
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        timeout_s: float | None = None,
        priority: int | None = None,
    ) -> TokenLogProbs:
        """Log-probs of given completion tokens under a hosted causal model.

        Args:
            scorer: Name of a causal language model in the server's configuration.
            prompt_ids: [N] token ids, at least one each: lists, arrays or tensors.
            completion_ids: [N] token ids.
            temperature: Logits are divided by it; finite and above 0.
            entropy: Whether to give entropies too.
            timeout_s: Seconds that the call may take, retries included; the client's if None.
            priority: Higher is served first, -100 to 100; the client's if None.

        Raises:
            RewardClientError: If the call as a whole failed.
            TypeError: If ids are not integers.
            ValueError: If lengths differ or a value is out of range.
        """
        live = self._live()
        env = self._env(live.pool, timeout_s, priority)
        sequences = (prompt_ids, completion_ids)
        job = LogProbsJob(env, scorer, sequences, temperature=temperature, entropy=entropy)
        live.run(job)
        return job.result()

    def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """What a server of the service can do: its scorers, their states, its limits.

        Raises:
            RewardClientError: If no server answered.
        """
        live = self._live()
        job = InfoJob(self._env(live.pool, timeout_s))
        live.run(job)
        return job.result()

    def wait_until_ready(
        self, timeout_s: float | None = None, *, scorers: Sequence[str] = ()
    ) -> ServerInfo:
        """Waits until a server answers and has its scorers loaded.

        Args:
            timeout_s: Seconds to wait at most; the client's if None.
            scorers: The scorers that are needed; all that the server has if empty.

        Raises:
            DeadlineExceeded: If they were still loading.
            ServiceUnavailable: If no server answered.
            ScorerUnusable: If one of them failed to load.
            UnknownScorer: If there is none of this name.
        """
        env = self._env(self._live().pool, timeout_s)
        deadline = env.started_at + env.timeout_s
        waiting = ""
        while (left := deadline - time.monotonic()) > 0:
            info = self.server_info(timeout_s=left)
            waiting = not_ready(info, scorers)
            if not waiting:
                return info
            time.sleep(min(_POLL_S, left))
        raise DeadlineExceeded(f"not ready within {env.timeout_s:g} s: {waiting}")

    def reward_function(
        self,
        scorer: str,
        *,
        answer_column: str | Sequence[str] | None = None,
        name: str | None = None,
        on_error: OnError = OnError.RAISE,
        timeout_s: float | None = None,
        priority: int | None = None,
    ) -> RewardFunction:
        """A picklable callable that gives rewards, in the manner of TRL and others.

        Args:
            scorer: The scorer's name in the server's configuration.
            answer_column: The data-set column with the reference answers, or several to look for
                in this order; the usual names if None.
            name: Under which trainers log it; the scorer's if None.
            on_error: What happens if the call as a whole fails.
            timeout_s: As for `score`.
            priority: As for `score`.
        """
        return RewardFunction(
            copy.copy(self),
            scorer,
            answer_column=answer_column,
            name=name,
            on_error=on_error,
            arguments={"timeout_s": timeout_s, "priority": priority},
        )

    def close(self) -> None:
        """Closes the connections; calls under way end with `Cancelled`."""
        self._closed = True
        if self._connections.pid == os.getpid():
            self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _init_from(self, settings: ClientSettings) -> None:
        super()._init_from(settings)
        self._connections = Connections(settings)

    def _live(self) -> Connections:
        """The connections of this process: gRPC's do not survive a fork, nor do locks."""
        if self._closed:
            raise Cancelled("the client is closed; make a new one")
        if self._connections.pid != os.getpid():
            self._connections = Connections(self._settings)
        return self._connections
