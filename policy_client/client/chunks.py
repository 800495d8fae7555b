"""Cutting a long list of samples into messages of bounded size."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def plan_chunks(
    sizes: Sequence[int],
    *,
    max_items: int,
    max_bytes: int,
    groups: Sequence[Hashable] | None = None,
) -> tuple[list[range], list[int]]:
    """Consecutive runs of items that fit into one message each.

    Args:
        sizes: Bytes that each item takes in a message.
        max_items: Most items in one chunk; at least 1.
        max_bytes: Most bytes in one chunk.
        groups: Neighbours that are alike here stay together, unless they fit into no message.

    Returns:
        The chunks, as ranges of positions in order, and the positions of items that fit into no
        message. Every position is in exactly one of the two.
    """
    chunks: list[range] = []
    too_large: list[int] = []
    start, used = 0, 0

    def cut(stop: int) -> None:
        if stop > start:
            chunks.append(range(start, stop))

    for position, size in enumerate(sizes):
        if size > max_bytes:
            cut(position)
            too_large.append(position)
            start, used = position + 1, 0
        elif position - start == max_items or used + size > max_bytes:
            border = position if groups is None else border_before(groups, start, position)
            used = sum(sizes[border:position]) + size
            if used > max_bytes:  # the group is larger than a message
                border, used = position, size
            cut(border)
            start = border
        else:
            used += size
    cut(len(sizes))
    return chunks, too_large


def border_before(groups: Sequence[Hashable], start: int, stop: int) -> int:
    """Where the group begins that item `stop` is in; `stop`, if it began at `start` or before."""
    border = stop
    while border > start and groups[border - 1] == groups[stop]:
        border -= 1
    return stop if border == start else border


def size_in_message(num_bytes: int) -> int:
    """Bytes that a sub-message of `num_bytes` takes in a repeated field with a one-byte tag."""
    length_bytes = 1
    while num_bytes >> (7 * length_bytes):
        length_bytes += 1
    return 1 + length_bytes + num_bytes
