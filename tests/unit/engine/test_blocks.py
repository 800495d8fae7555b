"""Rows at once only where that has the bits of blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rewardsvc.engine.packing import blocks
from rewardsvc.engine.packing.blocks import by_blocks

ROWS = 4


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_comes_to_the_same", {})
    monkeypatch.setattr(blocks, "_num_seen", {})


class Counted:
    """A function of rows, and the numbers of rows that it was called with."""

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        self._compute = compute
        self.calls: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self._compute(x)


def ask(compute: Counted, x: Tensor) -> Tensor:
    compute.calls.clear()
    return by_blocks(compute, x, ROWS, "test")


def test_one_call_once_it_is_known_to_come_to_the_same():
    x = torch.arange(32.0).view(16, 2)
    compute = Counted(lambda rows: rows * 3)
    assert torch.equal(ask(compute, x), x * 3)
    assert compute.calls == [16, 4, 4, 4, 4, 16]  # tried with other numbers first
    assert torch.equal(ask(compute, x), x * 3)
    assert compute.calls == [16]
    ask(compute, x[:8])
    assert compute.calls == [8, 4, 4, 8]  # another number of rows is another question


def test_blocks_are_put_together_by_powers_of_two():
    x = torch.arange(44.0).view(44, 1)
    compute = Counted(lambda rows: rows * 3)
    for _ in range(2):
        assert torch.equal(ask(compute, x), x * 3)
    assert compute.calls == [32, 8, 4]
    ask(compute, torch.ones(3 * blocks.MOST_BLOCKS * ROWS + 4, 1))
    assert compute.calls[-4:] == [64, 64, 64, 4]


def test_number_of_rows_that_keeps_coming_back_is_one_call_too():
    x = torch.arange(24.0).view(12, 2)
    compute = Counted(lambda rows: rows * 3)
    for _ in range(blocks.TRIED_AFTER):
        ask(compute, x)
    assert compute.calls == [8, 4]
    assert torch.equal(ask(compute, x), x * 3)
    assert compute.calls == [12, 4, 4, 4, 12]
    assert torch.equal(ask(compute, x), x * 3)
    assert compute.calls == [12]


def test_number_of_rows_that_does_not_come_to_the_same_stays_in_parts():
    x = torch.ones(12, 2)
    compute = Counted(lambda rows: rows + (len(rows) == 12) * 2.0**-20)
    for _ in range(blocks.TRIED_AFTER + 2):
        assert torch.equal(ask(compute, x), x)
    assert compute.calls == [8, 4]


def test_always_blocks_where_the_number_of_rows_shows():
    x = torch.ones(12, 2)
    compute = Counted(lambda rows: rows + len(rows) * 2.0**-20)
    for _ in range(3):
        assert torch.equal(ask(compute, x), x + ROWS * 2.0**-20)
    assert compute.calls == [4, 4, 4]


def test_it_is_tried_with_every_row_whatever_comes_first():
    compute = Counted(lambda rows: torch.cat([rows[:-1], rows[-1:] * (1 + len(rows) * 2.0**-20)]))
    ask(compute, torch.zeros(8, 3))  # with these one could not tell
    x = torch.ones(8, 3)
    found = ask(compute, x)
    assert compute.calls == [4, 4]
    assert torch.equal(found[:4], found[4:])


def test_zeros_of_either_sign_differ():
    compute = Counted(lambda rows: rows * (0.0 if len(rows) == ROWS else -0.0))
    for _ in range(2):
        assert not torch.signbit(ask(compute, torch.ones(8, 1))).any()


def test_what_is_no_number_harms_no_later_rows():
    compute = Counted(lambda rows: rows * 2)
    ask(compute, torch.full((8, 1), float("nan")))
    ask(compute, torch.ones(8, 1))
    assert compute.calls == [8]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks, "MAX_KNOWN", 3)
    for what in range(10):
        by_blocks(lambda rows: rows, torch.ones(8, 1), ROWS, what)
        by_blocks(lambda rows: rows, torch.ones(12, 1), ROWS, what)
        assert len(blocks._comes_to_the_same) <= 3
        assert len(blocks._num_seen) <= 3


def test_a_single_block_is_one_call():
    compute = Counted(lambda rows: rows)
    ask(compute, torch.ones(4, 1))
    assert compute.calls == [4]


def test_other_numbers_of_threads_are_other_questions():
    compute = Counted(lambda rows: rows)
    num_threads = torch.get_num_threads()
    ask(compute, torch.ones(8, 1))
    try:
        torch.set_num_threads(num_threads + 1)
        ask(compute, torch.ones(8, 1))
        assert compute.calls == [8, 4, 4, 8]
    finally:
        torch.set_num_threads(num_threads)
