"""Training's forward passes against one plain, unpadded pass per completion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_policies import PAD, plain_logprobs, rollout_of, tiny_policy
from transformers import AutoModelForCausalLM, Gemma2Config

from rewardsvc.policy_client.train.online.critic import Critic
from rewardsvc.policy_client.train.online.forward import PolicyForward
from rewardsvc.policy_client.train.online.outage import Patience
from rewardsvc.policy_client.train.online.reference import LocalReference, RemoteReference
from rewardsvc.policy_client.train.online.rewards import MalformedRewardsError
from rewardsvc.policy_client.train.online.sequences import Sequences

PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9], [10], [11, 12]]
COMPLETIONS = [[13, 14, 15], [16], [17, 18, 19, 20, 21], [22, 23]]
ROLLOUT = rollout_of(PROMPTS, COMPLETIONS)
SEQUENCES = Sequences.of(ROLLOUT, pad_id=PAD)


def gemma2() -> Any:
    """Caps its logits after the output layer."""
    config = Gemma2Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=1.0,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_()
    return model


def expected_logprobs(model: Any, temperature: float) -> torch.Tensor:
    result = torch.zeros(SEQUENCES.completion_mask.shape)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        logprobs = plain_logprobs(model, prompt, completion, temperature)
        result[row, : len(completion)] = logprobs.detach()
    return result


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("max_tokens", [1, 12, 1000])
def test_logprobs_equal_a_plain_forward(family: str, temperature: float, max_tokens: int) -> None:
    model = gemma2() if family == "gemma2" else tiny_policy(family)
    forward = PolicyForward(model, temperature=temperature)
    found = forward.in_batches(SEQUENCES, max_tokens).logprobs
    torch.testing.assert_close(found, expected_logprobs(model, temperature), rtol=0, atol=1e-4)


def test_entropy_is_that_of_each_tokens_distribution() -> None:
    model = tiny_policy()
    entropy = PolicyForward(model)(SEQUENCES).entropy
    logits = model(input_ids=torch.tensor([[*PROMPTS[1], *COMPLETIONS[1]]])).logits[0, -2]
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy[1, 0], expected)
    assert (entropy[~SEQUENCES.completion_mask] == 0).all()
    assert not entropy.requires_grad
    assert PolicyForward(model, entropy_gradient=True)(SEQUENCES).entropy.requires_grad


def test_gradients_of_micro_batches_add_up() -> None:
    model = tiny_policy()
    forward = PolicyForward(model)
    forward(SEQUENCES).logprobs.sum().backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for rows in ([0, 3], [2], [1]):
        forward(SEQUENCES.select(rows)).logprobs.sum().backward()
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-4)


def test_the_critic_judges_the_state_before_each_token() -> None:
    policy = tiny_policy()
    critic = Critic.from_policy(policy)
    assert (critic.in_batches(SEQUENCES, 12) == 0).all(), "a new critic knows nothing"
    torch.nn.init.normal_(critic.head.weight)
    values = critic.in_batches(SEQUENCES, 12)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        states = policy.model(input_ids=torch.tensor([[*prompt, *completion]])).last_hidden_state
        expected = critic.head(states[0, len(prompt) - 1 : -1]).squeeze(-1)
        torch.testing.assert_close(values[row, : len(completion)], expected, rtol=1e-4, atol=1e-4)
    assert (values[~SEQUENCES.completion_mask] == 0).all()


def test_the_critic_shares_no_weight_with_the_policy() -> None:
    policy = tiny_policy()
    critic = Critic.from_policy(policy)
    assert not {id(p) for p in policy.parameters()} & {id(p) for p in critic.parameters()}
    assert all(parameter.requires_grad for parameter in critic.parameters())


def test_a_reference_stays_as_the_policy_was() -> None:
    policy = tiny_policy()
    reference = LocalReference(policy, temperature=1.0, max_tokens=100)
    before = expected_logprobs(policy, 1.0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    found = reference.logprobs(ROLLOUT, SEQUENCES)
    torch.testing.assert_close(found, before, rtol=0, atol=1e-4)


class HostedReference:
    """A client whose service gives the same log-prob for every token; it is away at first."""

    def __init__(self, *, missing_tokens: int = 0) -> None:
        self.logprobs: Any = None
        self._missing = missing_tokens
        self._away = True

    def token_logprobs(
        self, scorer: str, prompts: Any, completions: Any, *, temperature: float
    ) -> Any:
        if self._away:
            self._away = False
            raise ConnectionError("restarting")
        assert (scorer, temperature) == ("ref", 0.5)
        self.logprobs = [
            [-float(len(p))] * (len(c) - self._missing)
            for p, c in zip(prompts, completions, strict=True)
        ]
        return self


def test_a_hosted_reference_is_asked_by_ids_and_waited_for() -> None:
    reference = RemoteReference(
        HostedReference(), "ref", temperature=0.5, patience=Patience(60, first_delay_s=0.01)
    )
    found = reference.logprobs(ROLLOUT, SEQUENCES)
    assert found[0].tolist() == [-5.0, -5.0, -5.0, 0.0, 0.0]
    assert found[2].tolist() == [-1.0] * 5


def test_a_hosted_reference_with_too_few_logprobs_is_refused() -> None:
    reference = RemoteReference(
        HostedReference(missing_tokens=1),
        "ref",
        temperature=0.5,
        patience=Patience(60, first_delay_s=0.01),
    )
    with pytest.raises(MalformedRewardsError, match="ref"):
        reference.logprobs(ROLLOUT, SEQUENCES)


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 50)), min_size=1, max_size=30),
    max_tokens=st.integers(1, 200),
)
def test_micro_batches_keep_the_budget_and_lose_no_row(
    rows: list[tuple[int, int]], max_tokens: int
) -> None:
    prompts = [[5], [6, 7], [7, 6], [8] * 10, [9] * 30]
    rollout = rollout_of([prompts[p] for p, _ in rows], [[3] * length for _, length in rows])
    sequences = Sequences.of(rollout, pad_id=PAD)
    batches = sequences.micro_batches(max_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(rows)))
    for batch in batches:
        different = {rows[row][0] for row in batch}
        prompt_tokens = len(different) * max(len(prompts[p]) for p in different)
        cost = prompt_tokens + len(batch) * max(rows[row][1] for row in batch)
        assert cost == sequences.cost(batch)
        assert cost <= max_tokens or len(batch) == 1


def test_a_prompt_is_computed_once_for_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    model, widths = tiny_policy(), []
    original = model.model.forward

    def spy(**inputs: Any) -> Any:
        widths.append(tuple(inputs["input_ids"].shape))
        return original(**inputs)

    forward = PolicyForward(model)
    monkeypatch.setattr(model.model, "forward", spy)
    group = Sequences.of(rollout_of([[5, 6, 7]] * 4, COMPLETIONS), pad_id=PAD)
    forward.in_batches(group, 1000)
    # Three tokens of one prompt, and of each completion all tokens but the last.
    assert widths == [(1, 3), (4, 4)]
