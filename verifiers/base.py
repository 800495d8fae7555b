"""The base class of verifiers, and how anything that judges finds its arguments by name.

A verifier of one's own is a class with a `verify`, whose parameters are named for what it needs:

    @dataclass(frozen=True, slots=True, kw_only=True)
    class EndsWith(Verifier):
        ignore_case: bool = False

        def verify(self, completion: str, suffix: str) -> Verdict:
            text = completion.lower() if self.ignore_case else completion
            if text.endswith(suffix):
                return Verdict.accepted("it ends as it should")
            return Verdict.rejected("it ends otherwise")

`suffix` is then read from the data-set column, or the metadata field, of that name. A package that
names the class in the entry-point group `rewardsvc.verifiers` makes it a scorer of the service; see
`rewardsvc.verifiers.registry`.
"""

from __future__ import annotations

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rewardsvc.verifiers.types import ErrorKind, Status, Verdict


class Verifier(ABC):
    """Base of verifiers: hold the settings as fields, and judge one completion in `verify`.

    `verify` answers for any text whatever: it does not raise, hang or give NaN. It must be safe to
    call from several threads, and the object must be picklable; a frozen dataclass is both.
    """

    __slots__ = ()

    @abstractmethod
    def verify(self, completion: str, *args: Any, **kwargs: Any) -> Verdict:
        """Judges one completion.

        Args:
            completion: Any text.
            args: A verifier replaces these two by parameters with names of their own, which say
                what it needs: `answer`, `numbers`, `prompt`, any column of a data set.
            kwargs: See `args`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A verifier, or a plain function, that is given its arguments by name.

    A function returns a `Verdict`, a number, or None where there is no reward.

    Attributes:
        function: What is called.
        name: Of the verifier's class or of the function, in snake case.
        required: Names of parameters without a default.
        optional: Names of parameters with one.
    """

    function: Callable[..., Verdict | float | None]
    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]

    @classmethod
    def of(cls, verifier: Any) -> Judge:
        """The judge that calls `verifier.verify`, or `verifier` itself if it is a function.

        Raises:
            TypeError: If it is neither, or its arguments cannot be given by name.
        """
        function = getattr(verifier, "verify", verifier)
        if isinstance(verifier, type) or not callable(function):
            raise TypeError(
                f"{verifier!r} does not judge; give an object with a `verify`, or a function"
            )
        required: list[str] = []
        optional: list[str] = []
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise TypeError(f"{verifier!r}: parameter {name!r} cannot be given by name")
            (required if parameter.default is parameter.empty else optional).append(name)
        named = verifier if function is verifier else type(verifier)
        return cls(
            function=function,
            name=_snake_case(_name_of(named)),
            required=tuple(required),
            optional=tuple(optional),
        )

    @property
    def parameters(self) -> tuple[str, ...]:
        """All names, those that must be given first."""
        return (*self.required, *self.optional)

    def __call__(self, values: Mapping[str, Any]) -> Verdict:
        """Judges with those of `values` that are asked for.

        Args:
            values: Arguments by name; None counts as missing.

        Returns:
            What the verifier says. BAD_REFERENCE without a reward where a required argument is
            missing.

        Raises:
            TypeError: If the function returns something else than it should.
        """
        given = {n: values[n] for n in self.parameters if values.get(n) is not None}
        missing = [name for name in self.required if name not in given]
        if missing:
            return Verdict.failed(
                ErrorKind.BAD_REFERENCE, f"{missing[0]} is missing; {self.name} needs it"
            )
        return _verdict_of(self.function(**given), self.name)


def _verdict_of(result: object, name: str) -> Verdict:
    if isinstance(result, Verdict):
        return result
    if result is None:
        return Verdict.failed(ErrorKind.BAD_REFERENCE, f"{name} gave no reward")
    if isinstance(result, str | bytes) or not hasattr(result, "__float__"):
        raise TypeError(f"{name} returned {result!r}; return a Verdict, a number or None")
    reward = float(result)
    if not math.isfinite(reward):
        return Verdict.failed(ErrorKind.INVALID_SAMPLE, f"{name} gave {reward}, which is no reward")
    return Verdict(status=_status_of(reward), reward=reward)


def _status_of(reward: float) -> Status:
    if reward == 1.0:
        return Status.ACCEPTED
    return Status.WRONG_ANSWER if reward == 0.0 else Status.PARTIAL


def _name_of(named: Any) -> str:
    while isinstance(named, functools.partial):
        named = named.func
    return getattr(named, "__name__", type(named).__name__)


def _snake_case(name: str) -> str:
    letters = []
    for before, letter in zip(f"_{name}", name, strict=False):
        if letter.isupper() and before.islower():
            letters.append("_")
        letters.append(letter.lower())
    return "".join(letters)
