"""Log-probs of completions under a causal model, with gradients where they are wanted.

Legend: N sequences, T tokens of the longest completion, M completion tokens in all, H hidden, V
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewardsvc.kernels import TokenStats, linear_logprob, selective_logprob
from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.online.sequences import Sequences
from rewardsvc.policy_client.train.online.shared_prefix import completion_outputs
from rewardsvc.policy_client.train.sharding import gathered


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """What a policy says of completions.

    Attributes:
        logprobs: float32 [N, T], log p(token | all before it), in nats; 0 where masked.
        entropy: float32 [N, T], of the distribution of each token, in nats; 0 where masked.
    """

    logprobs: Tensor
    entropy: Tensor


class PolicyForward:
    """Computes log-probs with a transformers causal model at one temperature."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
        world: World | None = None,
    ) -> None:
        """Wraps a model.

        Args:
            model: A causal language model.
            temperature: Logits are divided by it, as when completions were sampled.
            entropy_gradient: Whether a loss will use the entropy; without, it costs less memory.
            world: Of this process, for `in_batches`.
        """
        self.model = model
        self._world = world or World()
        self._temperature = temperature
        self._entropy_gradient = entropy_gradient
        self._head = _plain_head(model)

    def __call__(self, sequences: Sequences) -> TokenLogprobs:
        """Log-probs of all completion tokens in one pass, differentiable if gradients are on."""
        tokens_M = sequences.completion_tokens()
        if self._head is not None:
            trunk = self.model.base_model
            states_MH = completion_outputs(trunk, sequences, attrgetter("last_hidden_state"))
            logprobs_M, entropy_M = logprobs_from_hidden(
                states_MH, self._head, tokens_M, self._temperature, self._entropy_gradient
            )
        else:
            logits_MV = completion_outputs(self.model, sequences, attrgetter("logits"))
            logprobs_M, entropy_M = logprobs_from_logits(
                logits_MV, tokens_M, self._temperature, self._entropy_gradient
            )
        return TokenLogprobs(
            logprobs=sequences.scatter(logprobs_M), entropy=sequences.scatter(entropy_M)
        )

    @torch.no_grad()
    def in_batches(self, sequences: Sequences, max_tokens: int) -> TokenLogprobs:
        """The same without gradients, in batches of at most `max_tokens` padded tokens.

        Several processes share the batches; each gets all of the result.
        """
        shape, device = sequences.completion_mask.shape, sequences.completion_ids.device
        logprobs_NT = torch.zeros(shape, device=device)
        entropy_NT = torch.zeros(shape, device=device)
        with gathered(self.model):
            for rows in sequences.dealt(max_tokens, self._world)[self._world.rank]:
                part = self(sequences.select(rows))
                logprobs_NT[rows] = part.logprobs
                entropy_NT[rows] = part.entropy
        return TokenLogprobs(
            logprobs=self._world.sum(logprobs_NT), entropy=self._world.sum(entropy_NT)
        )


def logprobs_from_hidden(
    states_MH: Tensor,
    head: nn.Linear,
    tokens_M: Tensor,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of tokens from the hidden states that predict them.

    Never holds the [M, V] logits, forward or backward, unless the head is more than its weight.

    Returns:
        `(logprobs_M, entropy_M)`, float32, in nats.
    """
    if not _is_its_weight(head):
        return logprobs_from_logits(head(states_MH), tokens_M, temperature, entropy_gradient)
    weight_VH: Tensor = head.weight
    bias_V: Tensor | None = head.bias
    kind = states_MH.device.type
    if torch.is_autocast_enabled(kind):
        # What the head's own product would be cast to.
        dtype = torch.get_autocast_dtype(kind)
        states_MH, weight_VH = states_MH.to(dtype), weight_VH.to(dtype)
        bias_V = None if bias_V is None else bias_V.to(dtype)
    stats = linear_logprob(
        states_MH, weight_VH, tokens_M, bias=bias_V, temperature=temperature, entropy=True
    )
    return _with_entropy(stats, entropy_gradient)


def logprobs_from_logits(
    logits_MV: Tensor, tokens_M: Tensor, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of tokens from raw logits, which are read once and not copied.

    Returns:
        `(logprobs_M, entropy_M)`, float32, in nats.
    """
    stats = selective_logprob(logits_MV, tokens_M, temperature=temperature, entropy=True)
    return _with_entropy(stats, entropy_gradient)


def _with_entropy(stats: TokenStats, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
    assert stats.entropy is not None, "entropy was asked for"
    entropy_M = stats.entropy if entropy_gradient else stats.entropy.detach()
    return stats.logp, entropy_M


def _is_its_weight(head: nn.Linear) -> bool:
    """Whether calling the head is nothing but the product with its weight.

    Quantised, adapted and sharded layers are subclasses, or gather their weight in hooks.
    """
    hooks = (head._forward_pre_hooks, head._forward_hooks, head._backward_hooks)
    return type(head) is nn.Linear and not any(hooks) and type(head.weight) is nn.Parameter


@torch.no_grad()
def _plain_head(model: PreTrainedModel) -> nn.Linear | None:
    """The output layer, if logits are nothing but its value of the last hidden state.

    Some architectures scale or cap logits after it. Asking the model itself about one token tells,
    where a list of their names would grow old.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Linear) or model.base_model is model:
        return None
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    probe = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    states = model.base_model(input_ids=probe, use_cache=False).last_hidden_state
    logits = model(input_ids=probe, use_cache=False).logits
    model.train(was_training)
    return head if torch.allclose(head(states).float(), logits.float(), atol=1e-3) else None
