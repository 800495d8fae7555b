"""Reward heads and preference log-probs on packed sequences."""

from __future__ import annotations

import pytest
import torch

from rewardsvc.kernels import (
    fused_linear_preference,
    last_token_head,
    row_head,
    step_token_head,
)

CU_SEQLENS = torch.tensor([0, 3, 10, 14, 20])


def test_last_token_is_found_by_position_and_not_by_pad_id():
    hidden, weight, bias = torch.randn(20, 8), torch.randn(2, 8), torch.randn(2)
    got = last_token_head(hidden, CU_SEQLENS.int(), weight, bias)
    want = hidden[[2, 9, 13, 19]] @ weight.T + bias
    torch.testing.assert_close(got, want)


def test_scores_are_float32_from_half_precision():
    hidden, weight = torch.randn(20, 64).bfloat16(), torch.randn(1, 64).bfloat16()
    got = last_token_head(hidden, CU_SEQLENS, weight)
    assert got.dtype == torch.float32
    want = hidden[[2, 9, 13, 19]].double() @ weight.double().T
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_a_score_does_not_depend_on_the_batch():
    hidden, weight = torch.randn(300, 123), torch.randn(3, 123)
    whole = last_token_head(hidden, torch.arange(301), weight)
    alone = last_token_head(hidden[100:101], torch.tensor([0, 1]), weight)
    assert torch.equal(whole[100:101], alone)


def test_head_gradients_reach_only_the_last_tokens():
    hidden = torch.randn(20, 8, requires_grad=True)
    weight = torch.randn(1, 8, requires_grad=True)
    last_token_head(hidden, CU_SEQLENS, weight).sum().backward()
    touched = hidden.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert touched == [2, 9, 13, 19]
    torch.testing.assert_close(weight.grad[0], hidden.detach()[[2, 9, 13, 19]].sum(0))


def test_step_scores_know_their_sequence():
    hidden, weight = torch.randn(20, 8), torch.randn(2, 8)
    input_ids = torch.zeros(20, dtype=torch.long)
    steps = [0, 2, 5, 19]
    input_ids[steps] = 7
    got = step_token_head(hidden, CU_SEQLENS, weight, input_ids=input_ids, step_token_id=7)
    assert got.positions.tolist() == steps
    assert got.cu_steps.tolist() == [0, 2, 3, 3, 4]
    torch.testing.assert_close(got.scores, hidden[steps] @ weight.T)


def test_no_steps_at_all():
    got = step_token_head(
        torch.randn(20, 8),
        CU_SEQLENS,
        torch.randn(2, 8),
        input_ids=torch.zeros(20, dtype=torch.long),
        step_token_id=7,
    )
    assert got.scores.shape == (0, 2)
    assert got.cu_steps.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        ([0, 3, 3, 20], r"cu_seqlens\[1:3\] is \[3, 3\]: sequence 1 is empty"),
        ([0, 3], "goes from 0 to 3; expected 0 to 20"),
        ([1, 20], "goes from 1 to 20"),
        ([0, 9, 4, 20], "sequence 1 is empty"),
        ([], "cu_seqlens has shape"),
    ],
)
def test_malformed_cu_seqlens_are_named(cu_seqlens, message):
    with pytest.raises(ValueError, match=message):
        last_token_head(
            torch.zeros(20, 8), torch.tensor(cu_seqlens, dtype=torch.int32), torch.zeros(1, 8)
        )


@pytest.mark.parametrize("average", [False, True])
def test_preference_logps_match_plain_torch(average):
    hidden = torch.randn(20, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    ids = torch.randint(0, 50, (20,))
    ids[[0, 4, 5, 14, 15, 16, 17, 18, 19]] = -100
    got = fused_linear_preference(hidden, weight, ids, CU_SEQLENS, average=average)
    log_p = torch.log_softmax(hidden @ weight.T, -1).gather(1, ids.clamp(min=0)[:, None])[:, 0]
    log_p = torch.where(ids >= 0, log_p, 0.0)
    counts = torch.tensor([2.0, 5.0, 4.0, 0.0])
    sums = torch.stack([part.sum() for part in log_p.split([3, 7, 4, 6])])
    want = sums / counts.clamp(min=1) if average else sums
    assert torch.cat((got.chosen_tokens, got.rejected_tokens)).tolist() == counts.tolist()
    torch.testing.assert_close(torch.cat((got.chosen, got.rejected)), want)
    loss = -torch.nn.functional.logsigmoid(got.chosen - got.rejected).sum()
    grads = torch.autograd.grad(loss, (hidden, weight))
    plain = -torch.nn.functional.logsigmoid(want[:2] - want[2:]).sum()
    for a, b in zip(grads, torch.autograd.grad(plain, (hidden, weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_an_odd_number_of_sequences_is_named():
    with pytest.raises(ValueError, match="3 sequences; expected chosen and rejected"):
        fused_linear_preference(
            torch.zeros(9, 4),
            torch.zeros(5, 4),
            torch.zeros(9, dtype=torch.long),
            torch.tensor([0, 3, 6, 9]),
        )


@pytest.mark.parametrize("num_rows", [0, 1, 64, 65])
def test_rows_that_were_gathered_already(num_rows):
    hidden, weight, bias = torch.randn(num_rows, 24).bfloat16(), torch.randn(3, 24), torch.randn(3)
    got = row_head(hidden, weight, bias)
    torch.testing.assert_close(got, hidden.float() @ weight.T + bias)
    if num_rows:
        assert torch.equal(row_head(hidden[-1:], weight, bias), got[-1:])


def test_a_head_of_another_width_is_named():
    with pytest.raises(ValueError, match=r"weight has shape \(1, 5\); expected \(1, 4\)"):
        row_head(torch.zeros(2, 4), torch.zeros(1, 5))
