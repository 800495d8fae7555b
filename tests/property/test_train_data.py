"""The sampler gives every row once an epoch and goes on exactly; losses equal plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardsvc.policy_client.algorithms.reward_losses import bradley_terry_loss
from rewardsvc.policy_client.train.data import PromptSampler

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**31), st.booleans())


def build(num: int, batch: int, seed: int, grouped: bool) -> PromptSampler:
    lengths = [(i * 7919) % 23 for i in range(num)] if grouped else None
    return PromptSampler(num, batch, seed, lengths=lengths)


@given(SIZES, st.integers(1, 4))
def test_every_row_comes_once_an_epoch(size: tuple[int, int, int, bool], epochs: int) -> None:
    num, batch_size, *_ = size
    sampler = build(*size)
    drawn: list[int] = []
    while len(drawn) < epochs * num:
        batch = sampler.next_batch()
        assert len(batch) == batch_size
        drawn.extend(batch)
        assert sampler.epoch == pytest.approx(len(drawn) / num)
    for epoch in range(epochs):
        assert sorted(drawn[epoch * num : (epoch + 1) * num]) == list(range(num))


@given(SIZES, st.integers(0, 20), st.integers(1, 10))
def test_restored_sampler_goes_on_as_if_nothing_had_happened(
    size: tuple[int, int, int, bool], before: int, after: int
) -> None:
    straight, restored = build(*size), build(*size)
    for _ in range(before):
        straight.next_batch()
    restored.load_state_dict(straight.state_dict())
    for _ in range(after):
        assert restored.next_batch() == straight.next_batch()


@given(st.integers(20, 60), st.integers(0, 1000))
def test_epochs_and_seeds_have_orders_of_their_own(num: int, seed: int) -> None:
    one, other = PromptSampler(num, num, seed), PromptSampler(num, num, seed + 1)
    first = one.next_batch()
    assert first != one.next_batch()
    assert first != other.next_batch()


def test_grouping_by_length_puts_like_lengths_together() -> None:
    lengths = [(i * 7919) % 997 for i in range(512)]

    def padding(sampler: PromptSampler) -> int:
        batches = [[lengths[row] for row in sampler.next_batch()] for _ in range(64)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    plain = padding(PromptSampler(512, 8, 0))
    grouped = padding(PromptSampler(512, 8, 0, lengths=lengths))
    assert grouped < plain / 5


@pytest.mark.parametrize(("field", "value"), [("num_examples", 6), ("seed", 1)])
def test_state_of_another_sampler_is_refused(field: str, value: int) -> None:
    sampler = PromptSampler(5, 2, 0)
    with pytest.raises(ValueError, match=field):
        sampler.load_state_dict({**sampler.state_dict(), field: value})


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="num_examples=0"):
        PromptSampler(0, 1, 0)
    with pytest.raises(ValueError, match="lengths has 1"):
        PromptSampler(2, 1, 0, lengths=[1])


def loop_bradley_terry(
    rows: Sequence[tuple[float, float, float]], smoothing: float, centering: float
) -> list[float]:
    losses = []
    for chosen, rejected, margin in rows:
        wins = 1.0 / (1.0 + math.exp(-(chosen - rejected - margin)))
        loss = -(1 - smoothing) * math.log(wins) - smoothing * math.log(1 - wins)
        losses.append(loss + centering * (chosen + rejected) ** 2)
    return losses


SCORE = st.floats(-8, 8)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(SCORE, SCORE, st.floats(0, 3)), min_size=1, max_size=6),
    st.floats(0, 0.49),
    st.floats(0, 1),
)
def test_bradley_terry_equals_a_plain_loop(
    rows: list[tuple[float, float, float]], smoothing: float, centering: float
) -> None:
    chosen_N, rejected_N, margin_N = torch.tensor(rows, dtype=torch.float64).unbind(dim=1)
    loss_N = bradley_terry_loss(
        chosen_N,
        rejected_N,
        margin_N=margin_N,
        label_smoothing=smoothing,
        center_coefficient=centering,
    )
    expected = loop_bradley_terry(rows, smoothing, centering)
    assert loss_N.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_bradley_terry_gradient_is_exact_and_finite_at_any_distance() -> None:
    chosen_N = torch.tensor([0.3, -1e4, 1e4], dtype=torch.float64, requires_grad=True)
    rejected_N = torch.zeros(3, dtype=torch.float64)
    bradley_terry_loss(chosen_N, rejected_N).sum().backward()
    expected = [-1 / (1 + math.exp(0.3)), -1.0, 0.0]
    assert chosen_N.grad.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"center_coefficient": -1.0}, "center_coefficient"),
        ({"margin_N": torch.zeros(1)}, "margin"),
    ],
)
def test_bradley_terry_checks_its_arguments(options: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        bradley_terry_loss(torch.zeros(2), torch.zeros(2), **options)
    with pytest.raises(ValueError, match="shape"):
        bradley_terry_loss(torch.zeros(2), torch.zeros(1))
