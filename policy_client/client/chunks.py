"""Cutting a long list of samples into messages of bounded size."""

from __future__ import annotations

from collections.abc import Sequence


def plan_chunks(
    sizes: Sequence[int], *, max_items: int, max_bytes: int
) -> tuple[list[range], list[int]]:
    """Consecutive runs of items that fit into one message each.

    Args:
        sizes: Bytes that each item takes in a message.
        max_items: Most items in one chunk; at least 1.
        max_bytes: Most bytes in one chunk.

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
            cut(position)
            start, used = position, size
        else:
            used += size
    cut(len(sizes))
    return chunks, too_large


def size_in_message(num_bytes: int) -> int:
    """Bytes that a sub-message of `num_bytes` takes in a repeated field with a one-byte tag."""
    length_bytes = 1
    while num_bytes >> (7 * length_bytes):
        length_bytes += 1
    return 1 + length_bytes + num_bytes
