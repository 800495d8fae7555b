"""Log-probs from hidden states in training: equal to those of logits, without the logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rewardsvc.policy_client.train.online.forward import logprobs_from_hidden, logprobs_from_logits

NUM_TOKENS, HIDDEN_SIZE, VOCAB_SIZE = 512, 16, 32_768


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
        return out


def make_case(num_tokens: int, vocab_size: int, *, bias: bool) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    states = torch.randn(num_tokens, HIDDEN_SIZE)
    return (
        states,
        nn.Linear(HIDDEN_SIZE, vocab_size, bias=bias),
        torch.randint(vocab_size, (num_tokens,)),
    )


def plain(states: Tensor, head: nn.Linear, tokens: Tensor, temperature: float) -> Any:
    logprobs = (head(states).float() / temperature).log_softmax(-1)
    chosen = logprobs.gather(1, tokens[:, None]).squeeze(1)
    return chosen, -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("from_logits", [False, True])
def test_values_and_gradients_are_those_of_log_softmax(
    bias: bool, entropy_gradient: bool, from_logits: bool
) -> None:
    states, head, tokens = make_case(37, 101, bias=bias)
    leaves = (states.requires_grad_(), *head.parameters())
    if from_logits:
        found, entropy = logprobs_from_logits(head(states), tokens, 0.7, entropy_gradient)
    else:
        found, entropy = logprobs_from_hidden(states, head, tokens, 0.7, entropy_gradient)
    expected, expected_entropy = plain(states, head, tokens, 0.7)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    assert entropy.requires_grad == entropy_gradient
    weights = torch.randn(37)
    loss, expected_loss = (found * weights).sum(), (expected * weights).sum()
    if entropy_gradient:
        loss, expected_loss = loss + entropy.sum(), expected_loss + expected_entropy.sum()
    grads = torch.autograd.grad(loss, leaves)
    for grad, want in zip(grads, torch.autograd.grad(expected_loss, leaves), strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-5)


def test_no_tensor_of_all_tokens_by_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    # The compiler does not work below a dispatch mode.
    monkeypatch.setenv("REWARDSVC_KERNELS_BACKEND", "eager")
    states, head, tokens = make_case(NUM_TOKENS, VOCAB_SIZE, bias=False)
    with LargestTensor() as seen:
        logprobs, _ = logprobs_from_hidden(states, head, tokens, 1.0, False)
        logprobs.sum().backward()
    assert head.weight.grad is not None
    assert 0 < seen.largest <= NUM_TOKENS * VOCAB_SIZE // 4


def test_under_autocast_products_are_those_of_the_head() -> None:
    states, head, tokens = make_case(37, 101, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = logprobs_from_hidden(states, head, tokens, 1.0, False)
        logits = head(states)
    assert logits.dtype == torch.bfloat16
    expected, _ = logprobs_from_logits(logits, tokens, 1.0, False)
    assert found.dtype == torch.float32
    # The head adds its bias before it rounds to bfloat16.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)
    found.sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.dtype == torch.float32


class Doubled(nn.Linear):
    """A head that is more than its weight, as a quantised or adapted one is."""

    def forward(self, states: Tensor) -> Tensor:
        return 2 * super().forward(states)


def test_a_head_that_is_more_than_its_weight_is_called() -> None:
    states, head, tokens = make_case(37, 101, bias=True)
    doubled = Doubled(HIDDEN_SIZE, 101)
    doubled.load_state_dict(head.state_dict())
    found, _ = logprobs_from_hidden(states, doubled, tokens, 1.0, False)
    expected, _ = logprobs_from_logits(2 * head(states), tokens, 1.0, False)
    torch.testing.assert_close(found, expected)


def test_a_head_with_a_hook_is_called() -> None:
    states, head, tokens = make_case(5, 11, bias=False)
    calls: list[int] = []
    head.register_forward_pre_hook(lambda *_: calls.append(1))
    logprobs_from_hidden(states, head, tokens, 1.0, False)
    assert calls
