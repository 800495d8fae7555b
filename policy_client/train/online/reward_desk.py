"""Rewards in the background: asked for as completions are finished, collected when needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rewardsvc.policy_client.train.online.outage import Patience
from rewardsvc.policy_client.train.online.rewards import (
    RewardRequest,
    Rewards,
    RewardSource,
    concat_rewards,
)


class MissingRewardsError(RuntimeError):
    """Too many completions had no reward for the run to mean anything."""


class RewardDesk:
    """Scores requests in threads; an outage of the source is waited out in there."""

    def __init__(self, source: RewardSource, patience: Patience, *, num_threads: int) -> None:
        """Starts no thread before the first request.

        Args:
            source: Called from `num_threads` threads at once.
            patience: How long an outage may last.
            num_threads: Requests in flight, at least 1.
        """
        self._source = source
        self._patience = patience
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="reward")

    def submit(self, request: RewardRequest) -> Future[Rewards]:
        """Rewards to come. The future raises `OutageError` or whatever the source raises."""
        return self._threads.submit(
            self._patience.call, lambda: self._source.score(request), "the reward source"
        )

    def close(self) -> None:
        """Ends waits and drops requests that have not begun."""
        self._patience.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def collect(futures: Sequence[Future[Rewards]]) -> Rewards:
    """All rewards, in the order of the futures; waits for the last."""
    return concat_rewards([future.result() for future in futures])


class MissingRewardWatch:
    """Stops a run in which too large a share of completions has no reward."""

    def __init__(self, max_share: float, window: int) -> None:
        """Sets the limit.

        Args:
            max_share: Allowed share over the window, 0 to 1; 1 never stops.
            window: Steps to look back; nothing is stopped before so many have passed.
        """
        self._max_share = max_share
        self._steps: deque[tuple[int, int]] = deque(maxlen=window)

    def record(self, num_missing: int, num_completions: int) -> None:
        """Notes a step.

        Raises:
            MissingRewardsError: If the share over the last `window` steps is above the limit.
        """
        self._steps.append((num_missing, num_completions))
        missing = sum(step[0] for step in self._steps)
        total = sum(step[1] for step in self._steps)
        if len(self._steps) == self._steps.maxlen and missing > self._max_share * total:
            raise MissingRewardsError(
                f"{missing} of {total} completions of the last {len(self._steps)} steps have no "
                f"reward; max_missing_reward_share is {self._max_share:g}. The scorer's errors say "
                "why; correct it, or raise the limit"
            )

    def state_dict(self) -> list[list[int]]:
        """The window; JSON values."""
        return [list(step) for step in self._steps]

    def load_state_dict(self, state: Sequence[Sequence[int]]) -> None:
        """Goes on with a saved window."""
        self._steps.clear()
        self._steps.extend((missing, total) for missing, total in state)
