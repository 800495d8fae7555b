"""Log-probs in chunks, against log_softmax of all logits."""

from __future__ import annotations

import pytest
import torch

from rewardsvc.engine import logprobs
from rewardsvc.engine.logprobs import linear_logprobs


@pytest.mark.parametrize("num_rows", [0, 1, 7, 8, 9, 23])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_logprobs_equal_log_softmax_of_all_logits(
    num_rows: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ROWS", 8)
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
