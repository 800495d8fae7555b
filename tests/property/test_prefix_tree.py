"""The tree of shared prefixes and the choice of batches, for any sequences."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rewardsvc.engine.packing.prefixes import MIN_SPLIT, common_length, prefix_tree
from rewardsvc.engine.packing.shape import PackedShape
from rewardsvc.engine.types import Encoded

runs = st.tuples(st.integers(1, 3), st.sampled_from((1, 2, MIN_SPLIT - 1, MIN_SPLIT, 20)))
sequences = st.lists(runs, min_size=1, max_size=5).map(
    lambda some: [token for token, length in some for _ in range(length)]
)
batches = st.lists(sequences, min_size=1, max_size=12)


def items_of(batch: list[list[int]]) -> list[Encoded]:
    return [
        Encoded(token_ids=np.asarray(ids, np.int32), positions=np.zeros(1, np.int32))
        for ids in batch
    ]


@given(batch=batches, share=st.booleans())
def test_every_token_has_a_row_and_every_row_one_token(batch: list[list[int]], share: bool) -> None:
    items = items_of(batch)
    tree = prefix_tree(items, share=share)
    tokens: dict[int, tuple[int, ...]] = {}
    for index, item in enumerate(items):
        rows = tree.rows_of(index, np.arange(len(item)))
        for position, row in enumerate(rows.tolist()):
            # A row stands for a token after all that is before it: sequences that share it agree.
            before = tuple(batch[index][: position + 1])
            assert tokens.setdefault(row, before) == before
    assert sorted(tokens) == list(range(tree.num_rows))
    assert share or tree.num_rows == sum(map(len, items))


@given(batch=batches, share=st.booleans())
def test_a_token_sees_its_own_sequence_and_nothing_else(
    batch: list[list[int]], share: bool
) -> None:
    items = items_of(batch)
    tree = prefix_tree(items, share=share)
    sees = {
        row: {
            other
            for seen in tree.nodes
            if seen.start <= row < seen.subtree_stop
            for other in range(seen.start, min(seen.stop, row + 1))
        }
        for node in tree.nodes
        for row in range(node.start, node.stop)
    }
    for index, item in enumerate(items):
        rows = tree.rows_of(index, np.arange(len(item))).tolist()
        for position, row in enumerate(rows):
            assert sees[row] == set(rows[: position + 1])


@given(batch=batches)
def test_nodes_cover_the_rows_and_know_their_parents(batch: list[list[int]]) -> None:
    tree = prefix_tree(items_of(batch))
    assert [node.start for node in tree.nodes] == [0, *(node.stop for node in tree.nodes[:-1])]
    assert tree.nodes[-1].stop == tree.num_rows
    for node in tree.nodes:
        assert node.position == (node.parent.position_stop if node.parent else 0)
        assert node.stop <= node.subtree_stop <= tree.num_rows


@given(batch=batches, order=st.randoms())
def test_order_of_the_batch_does_not_change_what_is_shared(
    batch: list[list[int]], order: object
) -> None:
    shuffled = list(batch)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert prefix_tree(items_of(batch)).num_rows == prefix_tree(items_of(shuffled)).num_rows


@given(one=sequences, other=sequences)
def test_common_length_is_that_of_the_longest_common_prefix(
    one: list[int], other: list[int]
) -> None:
    length = common_length(*items_of([one, other]))
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]


def test_group_costs_its_prompt_once() -> None:
    prompt = [1] * 100
    group = items_of([[*prompt, 2 + i, *[9] * 20] for i in range(16)])
    assert prefix_tree(group).num_rows == 100 + 16 * 21


def test_turns_of_a_conversation_cost_the_last_one() -> None:
    turns = [[*range(20 * n)] for n in range(1, 6)]
    assert prefix_tree(items_of(turns)).num_rows == 100


def test_few_common_tokens_are_not_worth_a_split() -> None:
    short, long = [5] * (MIN_SPLIT - 1), [5] * MIN_SPLIT
    assert prefix_tree(items_of([[*short, 1], [*short, 2]])).num_rows == 2 * MIN_SPLIT
    assert prefix_tree(items_of([[*long, 1], [*long, 2]])).num_rows == MIN_SPLIT + 2


@given(
    batch=batches,
    budget=st.integers(1, 120),
    share=st.booleans(),
    limit=st.none() | st.integers(1, 60),
)
def test_choice_holds_the_most_urgent_and_keeps_the_budget(
    batch: list[list[int]], budget: int, share: bool, limit: int | None
) -> None:
    shape = PackedShape(share=share, max_together=limit)
    items = items_of(batch)
    chosen = shape.select(items, budget)
    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen)
    cost = shape.num_computed_tokens([items[i] for i in chosen])
    assert cost <= budget or chosen == [0]
    if limit is not None and len(chosen) > 1:
        assert all(len(items[i]) <= limit for i in chosen)


def test_scattered_group_is_chosen_together() -> None:
    prompts = [[p] * 40 for p in range(1, 9)]
    window = items_of([[*prompts[i % 8], 100 + i, *[99] * 5] for i in range(64)])
    chosen = PackedShape(share=True).select(window, 40 + 8 * 6)
    assert sorted(chosen) == [0, 8, 16, 24, 32, 40, 48, 56]


def test_group_that_does_not_fit_waits_for_the_next_batch() -> None:
    groups = [[[p] * 40 + [100 + i, *[99] * 5] for i in range(4)] for p in (1, 2)]
    window = items_of(groups[0] + groups[1])
    budget = 40 + 4 * 6 + 50  # the first group, and one sequence of the second
    assert sorted(PackedShape(share=True).select(window, budget)) == [0, 1, 2, 3]


def test_room_beside_a_group_is_filled_with_what_shares_nothing() -> None:
    group = [[1] * 40 + [100 + i, *[99] * 5] for i in range(4)]
    window = items_of([*group, [7] * 30, [8] * 30])
    assert sorted(PackedShape(share=True).select(window, 40 + 4 * 6 + 30)) == [0, 1, 2, 3, 4]


def test_sequence_over_the_budget_runs_alone() -> None:
    window = items_of([[1] * 50, [1] * 50, [2] * 5])
    assert PackedShape(share=True).select(window, 40) == [0]
