"""A penalty on text that repeats itself."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def repetition_penalty(
    words: Sequence[Hashable], *, ngram_size: int = 3, max_penalty: float = 1.0
) -> float:
    """`-max_penalty` times the share of n-grams that occurred before.

    Args:
        words: The text in order, as words or token ids.
        ngram_size: n, 1 or more.
        max_penalty: What a text pays that repeats one n-gram for ever; 0 or more.

    Returns:
        `-max_penalty * (1 - distinct n-grams / n-grams)`; 0.0 for a text shorter than n.

    Raises:
        ValueError: If `ngram_size` is below 1.

    Source: Yeo et al., "Demystifying Long Chain-of-Thought Reasoning in LLMs", arXiv:2502.03373;
        there each repeated token is punished, here the completion as a whole.
    """
    if ngram_size < 1:
        raise ValueError(f"ngram_size is {ngram_size}; give 1 or more")
    num_ngrams = len(words) - ngram_size + 1
    if num_ngrams < 1:
        return 0.0
    num_distinct = len({tuple(words[i : i + ngram_size]) for i in range(num_ngrams)})
    if num_distinct == num_ngrams:
        return 0.0
    return -max_penalty * (1.0 - num_distinct / num_ngrams)
