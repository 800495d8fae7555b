"""The completion's answer matches a pattern of the operator's."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from rewardsvc.verifiers.base import Verifier
from rewardsvc.verifiers.safe_regex import (
    DEFAULT_TIME_LIMIT_MS,
    MAX_REGEX_CHARS,
    PatternTimeoutError,
    SafePattern,
)
from rewardsvc.verifiers.text import Extract, extract_answer
from rewardsvc.verifiers.types import ErrorKind, Status, Verdict


class Match(StrEnum):
    """How much of the answer a pattern must cover.

    SEARCH: some part of it.
    FULL: all of it.
    """

    SEARCH = "search"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegexMatch(Verifier):
    """Matches answers against one pattern, with a time limit on each search.

    Attributes:
        pattern: A regular expression in the syntax of the `regex` package, which is that of `re`
            and more; "." matches newlines.
        match: Whether the pattern must cover the whole answer.
        ignore_case: Whether "paris" matches "Paris".
        extract: Where the answer stands, outside of `<think>…</think>`.
        time_limit_ms: Limit of one search, in processor time of the whole process.

    Raises:
        ValueError: If `pattern` is malformed or empty, or another value is unknown.
    """

    pattern: str
    match: Match = Match.SEARCH
    ignore_case: bool = False
    extract: Extract = Extract.WHOLE
    time_limit_ms: int = DEFAULT_TIME_LIMIT_MS
    _compiled: SafePattern = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.pattern:
            raise ValueError("pattern is empty, and would match every answer")
        # Options of a configuration are plain text.
        object.__setattr__(self, "match", Match(self.match))
        object.__setattr__(self, "extract", Extract(self.extract))
        compiled = SafePattern(self.pattern, self.ignore_case, self.time_limit_ms)
        object.__setattr__(self, "_compiled", compiled)

    def verify(self, completion: str) -> Verdict:
        """Whether the answer matches.

        Returns:
            ACCEPTED, NO_ANSWER or WRONG_ANSWER; VERIFIER_TIMEOUT without a reward if the search
            had to be stopped.
        """
        answer = extract_answer(completion, self.extract)
        if answer is None:
            return Verdict.rejected(f"no answer ({self.extract})", status=Status.NO_ANSWER)
        if len(answer) > MAX_REGEX_CHARS:
            return Verdict.rejected(f"{len(answer)} characters, at most {MAX_REGEX_CHARS}")
        try:
            matches = (
                self._compiled.fullmatch(answer)
                if self.match is Match.FULL
                else self._compiled.search(answer)
            )
        except PatternTimeoutError as error:
            return Verdict.failed(ErrorKind.VERIFIER_TIMEOUT, str(error))
        if matches:
            return Verdict.accepted("the pattern matches")
        return Verdict.rejected("the pattern does not match")
