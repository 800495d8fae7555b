"""Log-probs from hidden states, against log_softmax of all logits."""

from __future__ import annotations

import pytest
import torch

from rewardsvc.engine.logprobs import LogitRule, linear_logprobs


@pytest.mark.parametrize("num_rows", [0, 1, 8, 255, 256, 257])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_logprobs_equal_log_softmax_of_all_logits(num_rows: int, with_bias: bool) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(num_rows, 6), torch.randn(11, 6)
    bias = torch.randn(11) if with_bias else None
    targets = torch.randint(11, (num_rows,))

    found, entropies = linear_logprobs(
        hidden, weight, targets, bias_V=bias, temperature=0.5, entropy=True
    )

    reference = torch.nn.functional.linear(hidden, weight, bias).div(0.5).log_softmax(-1)
    torch.testing.assert_close(found, reference[torch.arange(num_rows), targets])
    torch.testing.assert_close(entropies, -(reference.exp() * reference).sum(-1))


def test_entropy_of_a_distribution_with_impossible_tokens_is_finite() -> None:
    bias = torch.tensor([0.0, 0.0, float("-inf")])
    hidden, weight = torch.zeros(1, 2), torch.zeros(3, 2)
    _, entropies = linear_logprobs(hidden, weight, torch.tensor([0]), bias_V=bias, entropy=True)
    assert entropies is not None
    torch.testing.assert_close(entropies, torch.tensor([2.0]).log())


def test_entropies_are_left_out_unless_asked_for() -> None:
    _, entropies = linear_logprobs(torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 1]))
    assert entropies is None


@pytest.mark.parametrize("rule", [LogitRule(scale=0.25), LogitRule(scale=3.0, softcap=2.0)])
def test_a_models_rule_comes_before_the_temperature(rule: LogitRule) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 6), torch.randn(11, 6)
    targets = torch.randint(11, (5,))
    found, entropies = linear_logprobs(
        hidden, weight, targets, rule=rule, temperature=0.5, entropy=True
    )
    reference = rule.apply(hidden @ weight.T).div(0.5).log_softmax(-1)
    torch.testing.assert_close(found, reference[torch.arange(5), targets])
    torch.testing.assert_close(entropies, -(reference.exp() * reference).sum(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_log_prob_does_not_depend_on_the_other_positions(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 16).to(dtype), torch.randn(101, 16).to(dtype)
    targets = torch.randint(101, (300,))
    whole, _ = linear_logprobs(hidden, weight, targets)
    for rows in (slice(17, 18), slice(40, 299)):
        part, _ = linear_logprobs(hidden[rows], weight, targets[rows])
        assert torch.equal(part, whole[rows])


def test_a_target_outside_of_the_vocabulary_is_named() -> None:
    with pytest.raises(ValueError, match=r"ids\[1\].* is 4, outside of \[0, 4\)"):
        linear_logprobs(torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 4]))
