"""Chunks cover every sample once, in order, within their bounds."""

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from rewardsvc.policy_client.client.chunks import plan_chunks, size_in_message
from rewardsvc.v1 import reward_pb2 as pb

sizes = st.lists(st.integers(0, 50), max_size=60)


@given(sizes, st.integers(1, 10), st.integers(0, 60))
def test_every_item_is_in_one_place_and_bounds_hold(
    sizes: list[int], max_items: int, max_bytes: int
) -> None:
    chunks, too_large = plan_chunks(sizes, max_items=max_items, max_bytes=max_bytes)
    assert all(1 <= len(chunk) <= max_items for chunk in chunks)
    assert all(sum(sizes[i] for i in chunk) <= max_bytes for chunk in chunks)
    in_chunks = [i for chunk in chunks for i in chunk]
    assert in_chunks == sorted(in_chunks)
    assert sorted(in_chunks + too_large) == list(range(len(sizes)))
    assert too_large == [i for i, size in enumerate(sizes) if size > max_bytes]


@given(sizes, st.integers(1, 10), st.integers(0, 60))
def test_no_two_neighbours_would_fit_into_one_chunk(
    sizes: list[int], max_items: int, max_bytes: int
) -> None:
    chunks, _ = plan_chunks(sizes, max_items=max_items, max_bytes=max_bytes)
    for left, right in pairwise(chunks):
        if left.stop == right.start:
            grown = sum(sizes[i] for i in left) + sizes[right.start]
            assert len(left) == max_items or grown > max_bytes


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=60), st.integers(1, 10))
def test_a_group_is_divided_only_if_it_fits_into_no_chunk(
    items: list[tuple[int, bool]], max_items: int
) -> None:
    max_bytes = 100
    sizes = [size for size, _ in items]
    groups = [*accumulate(int(begins) for _, begins in items)]
    chunks, too_large = plan_chunks(sizes, max_items=max_items, max_bytes=max_bytes, groups=groups)
    assert not too_large
    assert [i for chunk in chunks for i in chunk] == [*range(len(sizes))]
    assert all(1 <= len(chunk) <= max_items for chunk in chunks)
    assert all(sum(sizes[i] for i in chunk) <= max_bytes for chunk in chunks)
    for group in set(groups):
        members = [i for i, other in enumerate(groups) if other == group]
        fits = len(members) <= max_items and sum(sizes[i] for i in members) <= max_bytes
        touched = sum(any(i in chunk for i in members) for chunk in chunks)
        assert touched == 1 or not fits


@given(st.lists(st.text(max_size=300), max_size=8), st.text(max_size=5))
def test_sizes_add_up_to_the_message(texts: list[str], scorer: str) -> None:
    samples = [pb.Sample(completion_text=text) for text in texts]
    sizes = [size_in_message(sample.ByteSize()) for sample in samples]
    empty = pb.ScoreRequest(scorer=scorer).ByteSize()
    assert pb.ScoreRequest(scorer=scorer, samples=samples).ByteSize() == empty + sum(sizes)
