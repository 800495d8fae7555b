"""`Sample`: one thing to score. `Score`: what came of it.

Example:
    >>> sample = Sample(prompt="1+1=", completion="2", answer="2")
    >>> Score(value=1.0, verdict=Verdict.ACCEPTED).ok
    True
    >>> Score.failed(ItemErrorCode.TOO_LONG, "9000 tokens, at most 4096").value is None
    True
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from rewardsvc.errors import ItemError, ItemErrorCode, ItemFailure
from rewardsvc.verdict import Verdict

__all__ = ["JsonValue", "Message", "Sample", "Score", "Text", "Verdict", "as_text"]

JsonValue: TypeAlias = (
    "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        content: The text of the turn.
    """

    role: str
    content: str


Text: TypeAlias = "str | tuple[Message, ...] | tuple[int, ...]"
"""Text, chat messages, or token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One thing to score.

    Attributes:
        prompt: Text, chat messages or token ids. Empty where there is none.
        completion: Text, chat messages or token ids.
        answer: The reference answer that a verifier checks against.
        tests_json: Test cases for a code verifier, as a JSON document.
        rubric: What a judge should look for.
        id: Echoed in answers; free text.
        metadata: Anything else a scorer may want.
    """

    prompt: Text = ""
    completion: Text
    answer: str | None = None
    tests_json: str | None = None
    rubric: str | None = None
    id: str = ""
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def completion_text(self) -> str:
        """The completion as text, for verifiers.

        Raises:
            ItemFailure: INVALID_SAMPLE, if the completion is token ids, which only a scorer with a
                tokenizer can read.
        """
        return as_text(self.completion, "completion")

    @property
    def prompt_text(self) -> str:
        """The prompt as text; see `completion_text`."""
        return as_text(self.prompt, "prompt")


def as_text(value: Text, name: str) -> str:
    """The text of a prompt or completion; messages are joined by newlines.

    Raises:
        ItemFailure: INVALID_SAMPLE, if `value` is token ids.
    """
    if isinstance(value, str):
        return value
    if not value:
        return ""
    if isinstance(value[0], Message):
        return "\n".join(m.content for m in value if isinstance(m, Message))
    raise ItemFailure(
        ItemErrorCode.INVALID_SAMPLE,
        f"{name} is {len(value)} token ids, and this scorer reads text: send {name}_text",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What came of one sample: a finite value, or an error, never both, never neither.

    Attributes:
        value: The reward, or None where there is none. Never NaN or infinite.
        components: The named parts that the value was made of.
        steps: A process reward for each step; empty for outcome rewards.
        verdict: How a verifier judged it; None for learned rewards.
        explanation: How the verdict was reached, for people.
        error: Why there is no reward. Set if and only if `value` is None.

    Raises:
        ValueError: If `value` is not finite, or not exactly one of `value` and `error` is set.
    """

    value: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[float, ...] = ()
    verdict: Verdict | None = None
    explanation: str = ""
    error: ItemError | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.error is None):
            raise ValueError(
                f"a Score has a value or an error: value={self.value}, error={self.error}"
            )
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"Score.value is {self.value}; use Score.of for unchecked numbers")

    @property
    def ok(self) -> bool:
        """Whether there is a reward."""
        return self.error is None

    @classmethod
    def of(cls, value: float, **parts: object) -> Score:
        """A score of a number that may be NaN or infinite, which becomes a NON_FINITE error."""
        if math.isfinite(value):
            return cls(value=float(value), **parts)  # type: ignore[arg-type]
        return cls.failed(ItemErrorCode.NON_FINITE, f"the score is {value}, which is no reward")

    @classmethod
    def failed(cls, code: ItemErrorCode, message: str, *, retryable: bool = False) -> Score:
        """A score without a reward."""
        return cls(error=ItemError(code, message, retryable))
