"""One rule: a number, a line, patience, and what then."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Action(StrEnum):
    """What an alarm does.

    WARN: Says so in the log, the metrics and the report.
    RAISE_KL: The same, and the KL coefficient is multiplied.
    ROLL_BACK: Back to the last checkpoint from before the trouble, with a higher KL coefficient.
    STOP: The run ends, with the reason.
    """

    WARN = "warn"
    RAISE_KL = "raise_kl"
    ROLL_BACK = "roll_back"
    STOP = "stop"


class Versus(StrEnum):
    """What a threshold is compared with.

    VALUE: The number itself.
    BASELINE: The number divided by its mean over the run's first steps.
    """

    VALUE = "value"
    BASELINE = "baseline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When a metric is out of bounds, what that means, and what to do.

    Attributes:
        name: Under which it is configured and reported.
        metric: Of the trainer or of the texts.
        above: Out of bounds from here on upwards; or None.
        below: Out of bounds from here on downwards; or None. One of the two is given.
        clear: The metric must be back behind it for the rule to be quiet again.
        versus: What the thresholds are of.
        patience: Steps out of bounds in a row before it trips.
        action: What then happens.
        meaning: What it means, for people.
        advice: What to try, for people.
    """

    name: str
    metric: str
    above: float | None = None
    below: float | None = None
    clear: float
    versus: Versus = Versus.VALUE
    patience: int = 3
    action: Action = Action.WARN
    meaning: str
    advice: str

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise ValueError(f"rule {self.name}: give either `above` or `below`")
        if self.above is not None and self.clear > self.above:
            raise ValueError(f"rule {self.name}: clear is {self.clear}, above {self.above}")
        if self.below is not None and self.clear < self.below:
            raise ValueError(f"rule {self.name}: clear is {self.clear}, below {self.below}")
        if self.patience < 1:
            raise ValueError(f"rule {self.name}: patience is {self.patience}; at least 1")

    def is_out(self, number: float) -> bool:
        """Whether a number is out of bounds."""
        if self.above is not None:
            return number >= self.above
        assert self.below is not None  # checked above
        return number <= self.below

    def is_clear(self, number: float) -> bool:
        """Whether a number is well within them."""
        return number <= self.clear if self.above is not None else number >= self.clear


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A rule has tripped.

    Attributes:
        step: At which step.
        since: The first step of the streak that tripped it.
        rule: Which.
        number: The metric, or its ratio to the baseline.
    """

    step: int
    since: int
    rule: Rule
    number: float

    @property
    def text(self) -> str:
        """One line for logs and reports: what it means, what to try, and what was seen."""
        times = " times its baseline" if self.rule.versus is Versus.BASELINE else ""
        return (
            f"{self.rule.meaning} {self.rule.advice} "
            f"({self.rule.name}: {self.rule.metric} is {self.number:.3g}{times}, out of bounds "
            f"since step {self.since})"
        )


class RuleState:
    """A rule at work: the baseline, the streak, and whether it has tripped."""

    def __init__(self, rule: Rule, *, baseline_steps: int) -> None:
        """A rule that has seen nothing yet.

        Args:
            rule: The rule.
            baseline_steps: Finite values whose mean is the baseline. Until then a rule against the
                baseline is silent.
        """
        self.rule = rule
        self._baseline_steps = baseline_steps
        self._sum = 0.0
        self._count = 0
        self._since: int | None = None
        self._streak = 0
        self.tripped = False

    def update(self, step: int, value: float | None) -> Alarm | None:
        """Takes one step's value; None or NaN is a step without one, and changes nothing.

        Returns:
            An alarm if the rule trips now; None while it is quiet or has tripped before.
        """
        if value is None or not math.isfinite(value):
            return None
        number = self._number(value)
        if number is None:
            return None
        if self.tripped:
            if self.rule.is_clear(number):
                self.tripped = False
                self._streak, self._since = 0, None
            return None
        if not self.rule.is_out(number):
            self._streak, self._since = 0, None
            return None
        if self._since is None:
            self._since = step
        self._streak += 1
        if self._streak < self.rule.patience:
            return None
        self.tripped = True
        return Alarm(step=step, since=self._since, rule=self.rule, number=number)

    def rearm(self) -> None:
        """Quiet again, as after a roll-back; the baseline stays."""
        self.tripped = False
        self._streak, self._since = 0, None

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; JSON."""
        return {
            "sum": self._sum,
            "count": self._count,
            "since": self._since,
            "streak": self._streak,
            "tripped": self.tripped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._sum, self._count = float(state["sum"]), int(state["count"])
        self._since, self._streak = state["since"], int(state["streak"])
        self.tripped = bool(state["tripped"])

    def _number(self, value: float) -> float | None:
        if self.rule.versus is Versus.VALUE:
            return value
        if self._count < self._baseline_steps:
            self._sum += value
            self._count += 1
            return None
        baseline = self._sum / self._count
        return value / baseline if baseline > 0.0 else None
