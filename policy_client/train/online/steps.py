"""Where the steps of a completion end: the seam between process reward models, which see text, and
advantages, which belong to tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def step_spans(text: str, separator: str) -> list[int]:
    """Character positions right behind each step of `text`, its separator included.

    Steps are what `text.split(separator)` gives, less the blank ones: the same rule as that of the
    service's `prm` scorer with `step_separator`.
    """
    ends: list[int] = []
    position = 0
    for part in text.split(separator):
        position = min(position + len(part) + len(separator), len(text))
        if part.strip():
            ends.append(position)
    return ends


def step_token_ends(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], separator: str
) -> list[int]:
    """Positions in `ids` of the last token of each step.

    The last step reaches to the completion's end, so that its end-of-sequence token is part of it.

    Args:
        tokenizer: Of the policy.
        ids: A completion's tokens, without padding.
        separator: Text between steps.

    Returns:
        Not decreasing; equal where two steps end in one token.
    """
    ids = list(ids)

    def text_of(count: int) -> str:
        return str(tokenizer.decode(ids[:count], skip_special_tokens=True))

    ends = step_spans(text_of(len(ids)), separator)
    result: list[int] = []
    first = 1
    for end in ends[:-1]:
        # The fewest tokens whose text reaches the step's end: what is written grows with tokens.
        low, high = first, len(ids)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(text_of(middle)) >= end else (middle + 1, high)
        result.append(low - 1)
        first = low
    if ends:
        result.append(len(ids) - 1)
    return result
