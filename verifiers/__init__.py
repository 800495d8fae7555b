"""Verifiers: does this completion earn its reward? A library of its own, usable without a service.

    >>> from rewardsvc.verifiers import Countdown, MathVerifier
    >>> MathVerifier().verify(r"so the answer is \\boxed{0.5}", "1/2").reward
    1.0
    >>> Countdown().verify("(3 + 5) * 2", [2, 3, 5], 16).reward
    1.0

Every verifier gives a `Verdict` for any text whatever: it does not raise, hang, or return NaN. An
answer that could not be judged has no reward, which is neither 0 nor 1. Names are imported when
they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewardsvc.verifiers.base import Verifier as Verifier
    from rewardsvc.verifiers.code import AssertTests as AssertTests
    from rewardsvc.verifiers.code import Checker as Checker
    from rewardsvc.verifiers.code import CodeVerdict as CodeVerdict
    from rewardsvc.verifiers.code import CodeVerifier as CodeVerifier
    from rewardsvc.verifiers.code import FunctionTests as FunctionTests
    from rewardsvc.verifiers.code import InteractiveTests as InteractiveTests
    from rewardsvc.verifiers.code import StdioTests as StdioTests
    from rewardsvc.verifiers.code import TextComparison as TextComparison
    from rewardsvc.verifiers.code import ValueComparison as ValueComparison
    from rewardsvc.verifiers.code import parse_tests as parse_tests
    from rewardsvc.verifiers.cosine_length import CosineCurve as CosineCurve
    from rewardsvc.verifiers.cosine_length import cosine_length_reward as cosine_length_reward
    from rewardsvc.verifiers.countdown import Countdown as Countdown
    from rewardsvc.verifiers.exact import ExactMatch as ExactMatch
    from rewardsvc.verifiers.format import Format as Format
    from rewardsvc.verifiers.instructions import InstructionFollowing as InstructionFollowing
    from rewardsvc.verifiers.json_schema import JsonSchema as JsonSchema
    from rewardsvc.verifiers.language import LanguageConsistency as LanguageConsistency
    from rewardsvc.verifiers.length import length_penalty as length_penalty
    from rewardsvc.verifiers.math.verifier import MathVerifier as MathVerifier
    from rewardsvc.verifiers.multiple_choice import MultipleChoice as MultipleChoice
    from rewardsvc.verifiers.overlong import overlong_penalty as overlong_penalty
    from rewardsvc.verifiers.regex_match import RegexMatch as RegexMatch
    from rewardsvc.verifiers.registry import make_verifier as make_verifier
    from rewardsvc.verifiers.repetition import repetition_penalty as repetition_penalty
    from rewardsvc.verifiers.sandbox import Isolation as Isolation
    from rewardsvc.verifiers.sandbox import Limits as Limits
    from rewardsvc.verifiers.sandbox import RunResult as RunResult
    from rewardsvc.verifiers.sandbox import RunStatus as RunStatus
    from rewardsvc.verifiers.sandbox import Sandbox as Sandbox
    from rewardsvc.verifiers.types import ErrorKind as ErrorKind
    from rewardsvc.verifiers.types import Status as Status
    from rewardsvc.verifiers.types import Verdict as Verdict

_EXPORTS: dict[str, str] = {
    "AssertTests": "rewardsvc.verifiers.code",
    "Checker": "rewardsvc.verifiers.code",
    "CodeVerdict": "rewardsvc.verifiers.code",
    "CodeVerifier": "rewardsvc.verifiers.code",
    "CosineCurve": "rewardsvc.verifiers.cosine_length",
    "Countdown": "rewardsvc.verifiers.countdown",
    "ErrorKind": "rewardsvc.verifiers.types",
    "ExactMatch": "rewardsvc.verifiers.exact",
    "Format": "rewardsvc.verifiers.format",
    "FunctionTests": "rewardsvc.verifiers.code",
    "InstructionFollowing": "rewardsvc.verifiers.instructions",
    "InteractiveTests": "rewardsvc.verifiers.code",
    "Isolation": "rewardsvc.verifiers.sandbox",
    "JsonSchema": "rewardsvc.verifiers.json_schema",
    "LanguageConsistency": "rewardsvc.verifiers.language",
    "Limits": "rewardsvc.verifiers.sandbox",
    "MathVerifier": "rewardsvc.verifiers.math.verifier",
    "MultipleChoice": "rewardsvc.verifiers.multiple_choice",
    "RegexMatch": "rewardsvc.verifiers.regex_match",
    "RunResult": "rewardsvc.verifiers.sandbox",
    "RunStatus": "rewardsvc.verifiers.sandbox",
    "Sandbox": "rewardsvc.verifiers.sandbox",
    "Status": "rewardsvc.verifiers.types",
    "StdioTests": "rewardsvc.verifiers.code",
    "TextComparison": "rewardsvc.verifiers.code",
    "ValueComparison": "rewardsvc.verifiers.code",
    "Verdict": "rewardsvc.verifiers.types",
    "Verifier": "rewardsvc.verifiers.base",
    "cosine_length_reward": "rewardsvc.verifiers.cosine_length",
    "length_penalty": "rewardsvc.verifiers.length",
    "make_verifier": "rewardsvc.verifiers.registry",
    "overlong_penalty": "rewardsvc.verifiers.overlong",
    "parse_tests": "rewardsvc.verifiers.code",
    "repetition_penalty": "rewardsvc.verifiers.repetition",
}
"""Public name → the module that defines it. The imports above tell type checkers the same."""

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
