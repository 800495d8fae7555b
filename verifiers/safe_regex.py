"""Regular expressions of the operator on text of anybody, with a time limit on every search.

The standard library's `re` cannot be stopped once it backtracks, so patterns run on the `regex`
package, whose searches take a time limit and let other threads run. It understands what `re` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DEFAULT_TIME_LIMIT_MS = 1000
"""An ordinary pattern reads a hundred thousand characters in a few milliseconds; but `regex` counts
the processor time of all threads of the process, and in a service a model may be running on them.
"""


MAX_REGEX_CHARS = 100_000
"""A longer completion does not match any pattern of the operator's."""


class PatternTimeoutError(Exception):
    """The search was stopped, by its limit or for lack of memory; nothing is known of the text."""


@dataclass(frozen=True, slots=True)
class SafePattern:
    """A compiled pattern; "." matches newlines. Picklable.

    Attributes:
        pattern: The regular expression. It is trusted, the text is not.
        ignore_case: Whether "a" matches "A".
        time_limit_ms: Limit of one search, in processor time of the whole process.

    Raises:
        ValueError: If the pattern is malformed or the limit is not positive.
        ImportError: If the `regex` package is missing.
    """

    pattern: str
    ignore_case: bool = False
    time_limit_ms: int = DEFAULT_TIME_LIMIT_MS
    _compiled: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.time_limit_ms < 1:
            raise ValueError(f"time_limit_ms is {self.time_limit_ms}; give 1 or more")
        try:
            import regex  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError(
                "patterns need the regex package, whose searches can be stopped: pip install regex"
            ) from error
        flags = regex.DOTALL | (regex.IGNORECASE if self.ignore_case else 0)
        try:
            compiled = regex.compile(self.pattern, flags)
        except (regex.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"pattern is {self.pattern!r}, not a regular expression: {error}"
            ) from error
        object.__setattr__(self, "_compiled", compiled)

    def search(self, text: str) -> bool:
        """Whether the pattern matches somewhere in `text`.

        Raises:
            PatternTimeoutError: If the time limit passed.
        """
        return self._run(self._compiled.search, text)

    def fullmatch(self, text: str) -> bool:
        """Whether the pattern matches all of `text`; raises as `search` does."""
        return self._run(self._compiled.fullmatch, text)

    def _run(self, method: Any, text: str) -> bool:
        try:
            return method(text, timeout=self.time_limit_ms / 1000) is not None
        except (TimeoutError, MemoryError) as error:
            spent = "memory" if isinstance(error, MemoryError) else f"{self.time_limit_ms} ms"
            raise PatternTimeoutError(
                f"the pattern took more than {spent} on {len(text)} characters; write one that "
                "does not backtrack"
            ) from error
