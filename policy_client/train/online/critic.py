"""The value function of PPO: a transformer of its own with a scalar head.

Legend: N sequences, T tokens of the longest completion, M completion tokens in all, H hidden.
"""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.lora import copy_of
from rewardsvc.policy_client.train.online.sequences import Sequences
from rewardsvc.policy_client.train.online.shared_prefix import completion_outputs
from rewardsvc.policy_client.train.sharding import gathered


class Critic(nn.Module):
    """Values of the states in which completion tokens are sampled.

    The head starts at zero: at first every value is 0, not noise that advantages would have to
    overcome. Weights are not shared with the policy, so the value loss cannot disturb it.
    """

    def __init__(self, trunk: PreTrainedModel, *, world: World | None = None) -> None:
        """Puts a scalar head on `trunk`, a model without a language-model head."""
        super().__init__()
        self._world = world or World()
        self.trunk = trunk
        self.head = nn.Linear(
            trunk.config.get_text_config().hidden_size,
            1,
            bias=False,
            dtype=trunk.dtype,
            device=trunk.device,
        )
        nn.init.zeros_(self.head.weight)

    @classmethod
    def from_policy(cls, policy: PreTrainedModel, *, world: World | None = None) -> Critic:
        """A critic that starts from a copy of the policy's trunk.

        If the policy has adapters, so has the critic, on the same frozen weights.
        """
        trunk = copy_of(policy.base_model)
        assert isinstance(trunk, PreTrainedModel)
        return cls(trunk, world=world)

    @classmethod
    def from_pretrained(
        cls, path: str, like: PreTrainedModel, *, world: World | None = None
    ) -> Critic:
        """A critic that starts from the trunk of a saved model, such as a reward model.

        Args:
            path: Folder or hub id; it must have the policy's tokenizer.
            like: The policy, whose dtype and device it takes.
            world: Of this process, for `in_batches`.
        """
        trunk = AutoModel.from_pretrained(path, dtype=like.dtype).to(like.device)
        return cls(trunk, world=world)

    def forward(self, sequences: Sequences) -> Tensor:
        """float32 [N, T]: V before each completion token; 0 where masked."""
        states_MH = completion_outputs(self.trunk, sequences, attrgetter("last_hidden_state"))
        values_M = self.head(states_MH).squeeze(-1)
        return sequences.scatter(values_M.float())

    @torch.no_grad()
    def in_batches(self, sequences: Sequences, max_tokens: int) -> Tensor:
        """The same without gradients, in batches of at most `max_tokens` padded tokens.

        Several processes share the batches; each gets all of the result.
        """
        whole = torch.zeros(sequences.completion_mask.shape, device=sequences.completion_ids.device)
        with gathered(self):
            for rows in sequences.dealt(max_tokens, self._world)[self._world.rank]:
                whole[rows] = self(sequences.select(rows))
        return self._world.sum(whole)
