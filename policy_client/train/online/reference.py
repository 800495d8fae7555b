"""The policy that the KL penalty holds on to: a frozen copy, the policy without its adapters, or
one that a service hosts.

Legend: N completions, T tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.lora import adapters_off, copy_of, has_adapters
from rewardsvc.policy_client.train.online.forward import PolicyForward
from rewardsvc.policy_client.train.online.outage import OutageError, Patience, UnavailableError
from rewardsvc.policy_client.train.online.rewards import AWAY, MalformedRewardsError
from rewardsvc.policy_client.train.online.rollout import Rollout
from rewardsvc.policy_client.train.online.sequences import Sequences


class ReferencePolicy(Protocol):
    """Gives log-probs that do not change while the policy learns."""

    def logprobs(self, rollout: Rollout, sequences: Sequences) -> Tensor:
        """float32 [N, T], in nats, at the temperature of sampling; NaN where there is none."""
        ...


class LocalReference:
    """A frozen copy of a policy, on its device; of one with adapters, itself without them."""

    def __init__(
        self,
        policy: PreTrainedModel,
        *,
        temperature: float,
        max_tokens: int,
        world: World | None = None,
    ) -> None:
        """Copies `policy` as it is now, unless adapters alone tell it from its reference.

        Args:
            policy: The policy before training.
            temperature: That of sampling.
            max_tokens: Padded tokens per forward pass.
            world: Of this process.
        """
        frozen = policy if has_adapters(policy) else copy_of(policy).requires_grad_(False)
        self._forward = PolicyForward(frozen, temperature=temperature, world=world)
        self._max_tokens = max_tokens

    @property
    def model(self) -> PreTrainedModel:
        """What gives the log-probs: the policy itself where that has adapters."""
        return self._forward.model

    def logprobs(self, rollout: Rollout, sequences: Sequences) -> Tensor:
        """See `ReferencePolicy.logprobs`."""
        with adapters_off(self._forward.model):
            return self._forward.in_batches(sequences, self._max_tokens).logprobs


class LogProbsClient(Protocol):
    """What a `RewardClient` can do, as far as it is needed here."""

    def token_logprobs(
        self,
        scorer: str,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        temperature: float = 1.0,
    ) -> Any:
        """Log-probs of completion ids given prompt ids."""
        ...


class RemoteReference:
    """A reference that a service hosts as a scorer of type `causal_lm`."""

    def __init__(
        self,
        client: LogProbsClient,
        scorer: str,
        *,
        temperature: float,
        patience: Patience,
        world: World | None = None,
    ) -> None:
        """Takes a `RewardClient`, or anything with its `token_logprobs`."""
        self._world = world or World()
        self._client = client
        self._scorer = scorer
        self._temperature = temperature
        self._patience = patience

    def logprobs(self, rollout: Rollout, sequences: Sequences) -> Tensor:
        """See `ReferencePolicy.logprobs`.

        Raises:
            MalformedRewardsError: If the service gives another number of log-probs than tokens.
            OutageError: If the service stays away for too long.
        """
        share = self._world.share(rollout.num_completions)
        ids = sequences.completion_ids
        found_NT = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)

        def ask() -> None:
            if share:
                part = self._asked(rollout.select(share), sequences.select(share))
                found_NT[share.start : share.stop] = part

        self._world.settled(ask, OutageError, MalformedRewardsError)
        return self._world.sum(found_NT)

    def _asked(self, rollout: Rollout, sequences: Sequences) -> Tensor:
        completions = rollout.completion_lists()
        rows = self._patience.call(lambda: self._ask(rollout, completions), "the reference")
        lengths = [len(row) for row in rows]
        if lengths != [len(ids) for ids in completions]:
            raise MalformedRewardsError(
                f"reference {self._scorer!r} gave {sum(lengths)} log-probs in {len(lengths)} rows "
                f"for {sum(map(len, completions))} tokens in {len(completions)}"
            )
        flat = torch.tensor(
            [float(number) for row in rows for number in row],
            dtype=torch.float32,
            device=sequences.completion_ids.device,
        )
        return sequences.scatter(flat)

    def _ask(self, rollout: Rollout, completions: list[list[int]]) -> Sequence[Sequence[float]]:
        try:
            reply = self._client.token_logprobs(
                self._scorer,
                [list(ids) for ids in rollout.prompt_ids],
                completions,
                temperature=self._temperature,
            )
        except AWAY as error:
            raise UnavailableError(str(error)) from error
        rows: Sequence[Sequence[float]] = reply.logprobs
        return rows
