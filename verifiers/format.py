"""Whether a completion has the right shape, whatever it says."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from rewardsvc.verifiers.json_format import json_problem
from rewardsvc.verifiers.math.boxes import find_boxes
from rewardsvc.verifiers.safe_regex import MAX_REGEX_CHARS, PatternTimeoutError, SafePattern
from rewardsvc.verifiers.text import THINK_CLOSE, THINK_OPEN, after_thinking
from rewardsvc.verifiers.types import ErrorKind, Verdict


class Preset(StrEnum):
    """The shapes that need no pattern. Each is checked in linear time.

    THINK: `<think>…</think>` and then an answer. Exactly one block, nothing but white space before
        it, and neither the thoughts nor the answer blank.
    BOXED: outside of its thinking, a `\\boxed{…}` that holds something, the last one being closed.
    JSON: outside of its thinking, one JSON object or array and nothing else.
    """

    THINK = "think"
    BOXED = "boxed"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Checks the shape of completions. Give one of `preset` and `pattern`.

    Attributes:
        preset: A shape that is known here.
        pattern: A regular expression that the whole completion must match; "." matches newlines.
            The pattern is trusted, the text is not: each search has a time limit, and text over
            `MAX_REGEX_CHARS` is not tried.
        think_opened_by_prompt: For THINK: the chat template ends the prompt with `<think>`, so the
            completion must not repeat it.

    Raises:
        ValueError: If not exactly one of the two is given, or `pattern` is malformed.
    """

    preset: Preset | None = None
    pattern: str | None = None
    think_opened_by_prompt: bool = False
    _compiled: SafePattern | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if (self.preset is None) == (self.pattern is None):
            raise ValueError(
                f"preset={self.preset!r}, pattern={self.pattern!r}: give one of the two"
            )
        if self.pattern is not None:
            object.__setattr__(self, "_compiled", SafePattern(self.pattern))

    def verify(self, completion: str) -> Verdict:
        """Whether the completion has the shape.

        Returns:
            ACCEPTED, or WRONG_ANSWER and what is amiss; VERIFIER_TIMEOUT without a reward if the
            pattern had to be stopped.
        """
        try:
            problem = self._problem(completion)
        except PatternTimeoutError as error:
            return Verdict.failed(ErrorKind.VERIFIER_TIMEOUT, str(error))
        return Verdict.rejected(problem) if problem else Verdict.accepted("the format is right")

    def _problem(self, completion: str) -> str:
        match self.preset:
            case Preset.THINK:
                return _think_problem(completion, opened=self.think_opened_by_prompt)
            case Preset.BOXED:
                return _boxed_problem(completion)
            case Preset.JSON:
                said = after_thinking(completion)
                return "it ends inside its thinking" if said is None else json_problem(said)
        assert self._compiled is not None
        if len(completion) > MAX_REGEX_CHARS:
            return f"{len(completion)} characters, at most {MAX_REGEX_CHARS}"
        return "" if self._compiled.fullmatch(completion) else "the pattern does not match"


def _think_problem(completion: str, *, opened: bool) -> str:
    num_open, num_close = completion.count(THINK_OPEN), completion.count(THINK_CLOSE)
    expected_open = 0 if opened else 1
    if num_open != expected_open or num_close != 1:
        found = f"{num_open} {THINK_OPEN} and {num_close} {THINK_CLOSE}"
        return f"{found}; should be {expected_open} and 1"
    thoughts, _, answer = completion.partition(THINK_CLOSE)
    if not opened:
        before, found, thoughts = thoughts.partition(THINK_OPEN)
        if not found:
            return f"{THINK_CLOSE} before {THINK_OPEN}"
        if before.strip():
            return f"text before {THINK_OPEN}"
    if not thoughts.strip():
        return "no thoughts"
    return "" if answer.strip() else f"no answer after {THINK_CLOSE}"


def _boxed_problem(completion: str) -> str:
    said = after_thinking(completion)
    if said is None:
        return "it ends inside its thinking"
    boxes = find_boxes(said)
    if boxes.unterminated:
        return "the last box is not closed"
    if not boxes.contents:
        return "no box"
    return "" if boxes.contents[-1].strip() else "the last box is empty"
