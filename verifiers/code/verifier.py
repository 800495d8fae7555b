"""`CodeVerifier`: is the program in this completion right?

verifier = CodeVerifier("python", time_limit_ms=2000, memory_mib=256)
verdict = verifier.verify(completion, FunctionTests("add", [((1, 2), 3)]))
verdict.reward        # 1.0, 0.0, or None if it could not be judged
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, TypeAlias

from rewardsvc.verifiers.code.cache import VerdictCache
from rewardsvc.verifiers.code.document import suite_of
from rewardsvc.verifiers.code.extract import extract_program
from rewardsvc.verifiers.code.suite import Bench, Tests
from rewardsvc.verifiers.code.verdict import (
    CodeVerdict,
    CompileFailedError,
    JudgingError,
    TestResult,
)
from rewardsvc.verifiers.sandbox.languages import language as find_language
from rewardsvc.verifiers.sandbox.sandbox import Sandbox, default_sandbox
from rewardsvc.verifiers.sandbox.types import Limits
from rewardsvc.verifiers.types import ErrorKind, Status

TestsLike: TypeAlias = Tests | str | Mapping[str, Any] | Sequence[Any]
"""A suite, or what its JSON document says."""

log = logging.getLogger(__name__)

_JUDGE_LIMITS = Limits(cpu_ms=10_000, memory_mib=1024)
_DEFAULT_CACHE_ENTRIES = 4096


class Credit(StrEnum):
    """What a program earns that is right on some tests.

    ALL_OR_NOTHING: nothing. FRACTION: the weighted share of the tests that it is right on.
    """

    ALL_OR_NOTHING = "all-or-nothing"
    FRACTION = "fraction"


class CodeVerifier:
    """Extracts programs and judges them. Thread-safe, as its sandbox is."""

    def __init__(
        self,
        language: str = "python",
        *,
        time_limit_ms: int = 2000,
        wall_limit_ms: int | None = None,
        memory_mib: int = 256,
        credit: Credit | str = Credit.ALL_OR_NOTHING,
        stop_early: bool | None = None,
        bare_code: bool = False,
        sandbox: Sandbox | None = None,
        judge_limits: Limits = _JUDGE_LIMITS,
        cache_entries: int = _DEFAULT_CACHE_ENTRIES,
    ) -> None:
        """Runs nothing yet.

        Args:
            language: Name or alias of a language in the sandbox's table.
            time_limit_ms: CPU time of one test.
            wall_limit_ms: Elapsed time of one test; None for a generous multiple of the CPU time.
            memory_mib: Memory of one test.
            credit: What a program earns that is right on some tests.
            stop_early: Whether the first test that fails ends it; None for yes with ALL_OR_NOTHING.
            bare_code: Whether a completion without any code fence is itself the program.
            sandbox: Where to run programs; None for one that the process shares.
            judge_limits: Of checkers, interactors and opaque test code.
            cache_entries: How many verdicts to remember.

        Raises:
            UnknownLanguageError: If the language is unknown, or its tools are not installed.
            ValueError: If a limit is out of range, or partial credit is to stop early.
        """
        self._settings: dict[str, Any] = {
            "time_limit_ms": time_limit_ms,
            "wall_limit_ms": wall_limit_ms,
            "memory_mib": memory_mib,
            "credit": credit,
            "stop_early": stop_early,
            "bare_code": bare_code,
            "judge_limits": judge_limits,
            "cache_entries": cache_entries,
        }
        row = find_language(language)
        self.language = row.name
        self._names = frozenset((row.name, *row.aliases))
        self.credit = Credit(credit)
        all_or_nothing = self.credit is Credit.ALL_OR_NOTHING
        self.stop_early = all_or_nothing if stop_early is None else stop_early
        if self.stop_early and not all_or_nothing:
            raise ValueError("stop_early=True leaves tests out that credit='fraction' must count")
        self.limits = Limits(cpu_ms=time_limit_ms, wall_ms=wall_limit_ms, memory_mib=memory_mib)
        self._judge_limits = judge_limits
        self._bare_code = bare_code
        self._sandbox = sandbox
        self._cache = VerdictCache(cache_entries)

    @property
    def sandbox(self) -> Sandbox:
        """Where programs run."""
        if self._sandbox is None:
            self._sandbox = default_sandbox()
        return self._sandbox

    def __reduce__(self) -> tuple[Callable[..., CodeVerifier], tuple[Any, ...]]:
        """A copy has the same settings, no verdicts, and the sandbox that its process shares."""
        return partial(CodeVerifier, **self._settings), (self.language,)

    def verify(self, completion: str, tests: TestsLike) -> CodeVerdict:
        """Judges the program in a completion; see `extract` for which one that is.

        Args:
            completion: Any text.
            tests: What the program has to do: a suite, or its JSON document as in a data set,
                as text or decoded; see `document`.

        Returns:
            A verdict, always. It has no reward if the tests or the sandbox are at fault.
        """
        if not isinstance(tests, Tests):
            try:
                tests = suite_of(tests)
            except ValueError as error:
                return CodeVerdict(
                    status=Status.ERROR,
                    reward=None,
                    error=ErrorKind.BAD_REFERENCE,
                    explanation=str(error),
                )
        program = extract_program(completion, self._names, bare_code=self._bare_code)
        if program is None:
            return CodeVerdict(
                status=Status.NO_ANSWER,
                reward=0.0,
                explanation=f"the completion has no closed {self.language} code fence",
                num_tests=_count(tests),
            )
        return self.verify_program(program, tests)

    def verify_program(self, program: str, tests: Tests) -> CodeVerdict:
        """Judges a program; see `verify`."""
        try:
            num_tests = len(tests)
            if not num_tests:
                raise JudgingError(
                    ErrorKind.BAD_REFERENCE, "the suite has no tests: nothing can be right or wrong"
                )
            settings = (
                self.language,
                self.credit,
                self.stop_early,
                self.limits,
                self._judge_limits,
            )
            key = self._cache.key(program, tests.fingerprint(), repr(settings))
            verdict = self._cache.get(key)
            if verdict is None:
                results = tests.judge(self._bench(program))
                verdict = self._verdict(results, num_tests, program)
                self._cache.put(key, verdict)
            return verdict
        except CompileFailedError as error:
            return CodeVerdict(
                status=Status.COMPILE_ERROR,
                reward=0.0,
                explanation=f"the program does not compile: {error}",
                num_tests=num_tests,
                program=program,
            )
        except JudgingError as error:
            return CodeVerdict(
                status=Status.ERROR,
                reward=None,
                error=error.kind,
                explanation=str(error),
                program=program,
            )
        except Exception as error:
            # No descriptors or threads left, a bug of ours: whatever it is, the program is not to
            # blame, and its neighbours must be judged.
            log.exception("a program could not be judged")
            return CodeVerdict(
                status=Status.ERROR,
                reward=None,
                error=ErrorKind.SANDBOX_FAILURE,
                explanation=f"it could not be judged: {type(error).__name__}: {error}",
                program=program,
            )

    def _bench(self, program: str) -> Bench:
        return Bench(
            sandbox=self.sandbox,
            language=self.language,
            code=program,
            limits=self.limits,
            judge_limits=self._judge_limits,
            stop_early=self.stop_early,
        )

    def _verdict(self, results: Sequence[TestResult], num_tests: int, program: str) -> CodeVerdict:
        num_passed = sum(result.passed for result in results)
        if num_passed == num_tests:
            return CodeVerdict(
                status=Status.ACCEPTED,
                reward=1.0,
                explanation=f"all {num_tests} tests passed",
                tests=tuple(results),
                num_tests=num_tests,
                program=program,
            )
        first = next(result for result in results if not result.passed)
        reward, status = 0.0, first.status
        if self.credit is Credit.FRACTION:
            total = sum(result.weight for result in results)
            reward = sum(result.weight * result.score for result in results) / total
            status = Status.PARTIAL if reward > 0 else first.status
        elif status is Status.PARTIAL:
            status = Status.WRONG_ANSWER
        return CodeVerdict(
            status=status,
            reward=reward,
            explanation=f"{num_passed} of {num_tests} tests passed; test {first.index}: "
            f"{first.status}: {first.message}",
            tests=tuple(results),
            num_tests=num_tests,
            program=program,
        )


def _count(tests: Tests) -> int:
    """Number of tests, 0 if they cannot be read."""
    try:
        return len(tests)
    except JudgingError:
        return 0
