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
    from rewardsvc.verifiers.countdown import Countdown as Countdown
    from rewardsvc.verifiers.exact import ExactMatch as ExactMatch
    from rewardsvc.verifiers.format import Format as Format
    from rewardsvc.verifiers.length import length_penalty as length_penalty
    from rewardsvc.verifiers.math.verifier import MathVerifier as MathVerifier
    from rewardsvc.verifiers.overlong import overlong_penalty as overlong_penalty
    from rewardsvc.verifiers.repetition import repetition_penalty as repetition_penalty
    from rewardsvc.verifiers.types import ErrorKind as ErrorKind
    from rewardsvc.verifiers.types import Status as Status
    from rewardsvc.verifiers.types import Verdict as Verdict

_EXPORTS: dict[str, str] = {
    "Countdown": "rewardsvc.verifiers.countdown",
    "ErrorKind": "rewardsvc.verifiers.types",
    "ExactMatch": "rewardsvc.verifiers.exact",
    "Format": "rewardsvc.verifiers.format",
    "MathVerifier": "rewardsvc.verifiers.math.verifier",
    "Status": "rewardsvc.verifiers.types",
    "Verdict": "rewardsvc.verifiers.types",
    "length_penalty": "rewardsvc.verifiers.length",
    "overlong_penalty": "rewardsvc.verifiers.overlong",
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
