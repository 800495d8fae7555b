"""OpenRLHF's `reward_func(queries, prompts, labels)`, for its `.py` form of a remote reward model.

    # reward_func.py, given as --remote_rm_url reward_func.py
    from rewardsvc.policy_client.adapters.openrlhf import openrlhf_reward
    from rewardsvc.verifiers import MathVerifier

    reward_func = openrlhf_reward(MathVerifier())

A query is the decoded prompt and response, special tokens included. A missing reward raises by
default: the executor logs it and leaves the reward of that sample None.

Source: `SingleTurnAgentExecutor` in `openrlhf/utils/agent.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewardsvc.policy_client.adapters.local import as_reward_function
from rewardsvc.policy_client.adapters.missing import (
    OnMissing,
    check_on_missing,
    fill_missing,
    rewards_and_reasons,
)

END_TOKENS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "</s>",
)
"""Taken off the end of responses, any number of times."""


class OpenRlhfReward:
    """The function that OpenRLHF loads from a file. Picklable.

    Attributes:
        __name__: Of the source.
    """

    def __init__(self, source: Any, on_missing: OnMissing, end_tokens: Sequence[str]) -> None:
        self._function = as_reward_function(source)
        self._on_missing = check_on_missing(on_missing)
        self._end_tokens = tuple(end_tokens)
        self.__name__ = self._function.__name__

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_unused: Any
    ) -> dict[str, Any]:
        """Rewards of the responses in `queries`.

        Args:
            queries: [N], prompt and response.
            prompts: [N].
            labels: [N], the reference answers.

        Returns:
            `rewards` and `scores`, both float32 [N] and the same; `extra_logs` with the rewards
            under the source's name.

        Raises:
            NoRewardError: If a reward is missing and `on_missing` says so.
            ValueError: If a query does not contain its prompt.
        """
        import torch

        responses = [
            self._response(query, prompt) for query, prompt in zip(queries, prompts, strict=True)
        ]
        rewards, reasons = rewards_and_reasons(
            self._function, prompts, responses, {"answer": list(labels)}
        )
        filled = fill_missing(self.__name__, rewards, reasons, self._on_missing)
        values = torch.tensor(filled, dtype=torch.float32)
        return {"rewards": values, "scores": values, "extra_logs": {self.__name__: values}}

    def _response(self, query: str, prompt: str) -> str:
        _, found, response = query.partition(prompt)
        if not found:
            raise ValueError(
                f"a query of {len(query)} characters does not contain its prompt, so its response "
                "is not known; was the prompt truncated?"
            )
        response = response.rstrip()
        while response.endswith(self._end_tokens):
            token = next(token for token in self._end_tokens if response.endswith(token))
            response = response.removesuffix(token).rstrip()
        return response


def openrlhf_reward(
    source: Any, *, on_missing: OnMissing = "raise", end_tokens: Sequence[str] = END_TOKENS
) -> OpenRlhfReward:
    """`reward_func(queries, prompts, labels)` for OpenRLHF.

    Args:
        source: A verifier, a function that judges one completion, or a reward function of the
            client. Besides the prompt it gets `labels` as `answer`, and nothing else.
        on_missing: What takes the place of a missing reward.
        end_tokens: Special tokens to take off the end of responses; none of them empty.

    Raises:
        TypeError: If `source` gives no rewards.
        ValueError: If `on_missing` is malformed or an end token is empty.
    """
    if not all(end_tokens):
        raise ValueError("end_tokens has an empty one, which every response ends with")
    return OpenRlhfReward(source, on_missing, end_tokens)
