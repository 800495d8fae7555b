"""Shared prefixes of a batch, as a tree, and where every token lies in the packed sequence.

Theory of operation. The sequences are sorted by their token ids, so that those which share a prefix
are neighbours, and all that a sequence shares with any before it, it shares with the one right
before it. Going through them in this order, each adds the tokens that are new with it; a node is a
run of tokens that all sequences through it share, and is split where one of them leaves it.

The packed sequence is the tokens in the order in which they were added. That is the tree in
depth-first order, so a node's descendants follow it without a gap: a token may attend exactly the
tokens before it whose node's subtree it is in. Attention needs to know no more than three numbers
of each node.

A split costs a few more calls of attention in every layer, so a node is only split where that saves
`MIN_SPLIT` tokens.

Source: the idea of sorting and comparing neighbours is that of suffix arrays; sharing prompts'
keys among completions is Hydragen (https://arxiv.org/abs/2402.05099) and SGLang's radix tree
(https://arxiv.org/abs/2312.07104), here within one batch and without a cache.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewardsvc.engine.types import Encoded

MIN_SPLIT = 8
"""Tokens that a split must save: about what its calls of attention cost in a small model."""


@dataclass(slots=True, kw_only=True, eq=False)
class Node:
    """A run of tokens that follow each other in all sequences through it.

    Attributes:
        start: Its first row of the packed sequence.
        stop: The row behind its last; above `start`.
        subtree_stop: The row behind its last descendant's last; `stop` for a leaf.
        position: Place of its first token in the sequences.
        parent: What precedes it; None for the first tokens of sequences.
    """

    start: int
    stop: int
    subtree_stop: int
    position: int
    parent: Node | None

    @property
    def position_stop(self) -> int:
        """The position behind its last token."""
        return self.position + self.stop - self.start

    def path(self) -> list[Node]:
        """From the first tokens down to this node."""
        found = [self]
        while (parent := found[-1].parent) is not None:
            found.append(parent)
        return found[::-1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """Consecutive tokens of one sequence that are consecutive in the packed one as well."""

    position: int
    row: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixTree:
    """A batch's tokens without repetition.

    Attributes:
        nodes: In the order of their rows.
        runs: For each sequence of the batch, in the batch's order: its tokens' places.
        num_rows: Tokens of the packed sequence.
    """

    nodes: list[Node]
    runs: list[list[Run]]
    num_rows: int

    def rows_of(self, index: int, positions: NDArray[np.integer]) -> NDArray[np.int64]:
        """The packed rows of some positions of a sequence of the batch."""
        runs = self.runs[index]
        starts = np.asarray([run.position for run in runs])
        rows = np.asarray([run.row for run in runs])
        which = np.searchsorted(starts, positions, side="right") - 1
        found: NDArray[np.int64] = rows[which] + (positions - starts[which])
        return found


def common_length(one: Encoded, other: Encoded) -> int:
    """How many tokens two sequences begin with alike."""
    shorter = min(len(one), len(other))
    differ = one.token_ids[:shorter] != other.token_ids[:shorter]
    first = int(differ.argmax()) if shorter else 0
    return first if shorter and differ[first] else shorter


def prefix_tree(batch: Sequence[Encoded], *, share: bool = True) -> PrefixTree:
    """The tree of a batch; it has at least one sequence.

    Args:
        batch: The sequences.
        share: False gives each its own tokens, in the order of the batch.
    """
    builder = _Builder()
    order = (
        sorted(range(len(batch)), key=lambda i: batch[i].order_key)
        if share
        else [*range(len(batch))]
    )
    runs: list[list[Run]] = [[] for _ in batch]
    previous: Encoded | None = None
    for index in order:
        item = batch[index]
        common = common_length(previous, item) if share and previous is not None else 0
        runs[index] = builder.add(len(item), common)
        previous = item
    return builder.finish(runs)


class _Builder:
    """Adds sequences in sorted order; `path` is that of the last one."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.path: list[Node] = []
        self.num_rows = 0

    def add(self, length: int, common: int) -> list[Run]:
        """Adds a sequence that begins like the last one with `common` tokens."""
        self._leave(self._worthwhile(common))
        shared = self.path[-1].position_stop if self.path else 0
        runs = [Run(position=node.position, row=node.start) for node in self.path]
        if shared < length:
            parent = self.path[-1] if self.path else None
            stop = self.num_rows + length - shared
            node = Node(
                start=self.num_rows, stop=stop, subtree_stop=stop, position=shared, parent=parent
            )
            runs.append(Run(position=shared, row=self.num_rows))
            self.nodes.append(node)
            self.path.append(node)
            self.num_rows = stop
        return runs

    def _worthwhile(self, common: int) -> int:
        """How much of the common tokens is shared: all, or up to where nodes end already."""
        stops = [0, *(node.position_stop for node in self.path)]
        boundary = stops[bisect_right(stops, common) - 1]
        return common if common - boundary >= MIN_SPLIT else boundary

    def _leave(self, shared: int) -> None:
        """Cuts the path to its first `shared` tokens; splits the node that they end in."""
        while self.path and self.path[-1].position >= shared:
            self.path.pop().subtree_stop = self.num_rows
        if self.path and self.path[-1].position_stop > shared:
            upper = self.path[-1]
            row = upper.start + shared - upper.position
            lower = Node(
                start=row,
                stop=upper.stop,
                subtree_stop=self.num_rows,
                position=shared,
                parent=upper,
            )
            for node in self.nodes:
                if node.parent is upper:
                    node.parent = lower
            upper.stop = row
            self.nodes.append(lower)

    def finish(self, runs: list[list[Run]]) -> PrefixTree:
        """Closes what is open."""
        self._leave(0)
        self.nodes.sort(key=lambda node: node.start)
        return PrefixTree(nodes=self.nodes, runs=runs, num_rows=self.num_rows)
