"""All rules over one run."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewardsvc.policy_client.train.monitor.config import MonitorConfig, RuleOverride
from rewardsvc.policy_client.train.monitor.rules import Action, Alarm, Rule, RuleState
from rewardsvc.policy_client.train.monitor.table import BIMODALITY, PROXY_GAP, RULES
from rewardsvc.policy_client.train.monitor.text_stats import Tokens, text_stats
from rewardsvc.policy_client.train.monitor.trends import ProxyGap, bimodality

logger = logging.getLogger(__name__)

DISAGREEMENT = "watch/disagreement"

GRADED = 0.25
"""Rewards with fewer different values than this share of them are verdicts, which are in heaps by
nature."""


class PolicyCollapsedError(RuntimeError):
    """A rule stopped the run; the message says which, since when, and what to try."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """What one step gives to look at.

    Attributes:
        metrics: The trainer's.
        texts: Completions.
        tokens: Their token ids.
        prompts: What each completes, by any name that is equal for equal prompts.
        rewards: Of the same completions; NaN where there is none.
    """

    metrics: Mapping[str, float]
    texts: Sequence[str] = ()
    tokens: Sequence[Tokens] | None = None
    prompts: Sequence[Hashable] | None = None
    rewards: Sequence[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the watch has to say of a step.

    Attributes:
        metrics: To be logged beside the trainer's.
        alarms: Rules that tripped at this step.
        action: The gravest of what is to be done; None if nothing tripped.
        alarm: The alarm that asks for it.
    """

    metrics: Mapping[str, float]
    alarms: tuple[Alarm, ...] = ()
    action: Action | None = None
    alarm: Alarm | None = None


_GRAVITY = (Action.WARN, Action.RAISE_KL, Action.ROLL_BACK, Action.STOP)


class Watch:
    """Looks at every step of a run. Its state belongs into the run's checkpoints."""

    def __init__(self, config: MonitorConfig | None = None, rules: Sequence[Rule] = RULES) -> None:
        self._config = config or MonitorConfig()
        given = [(rule, self._config.rules.get(rule.name, RuleOverride())) for rule in rules]
        self._rules = [
            RuleState(_changed(rule, change), baseline_steps=self._config.baseline_steps)
            for rule, change in given
            if change.enabled
        ]
        self._gap = ProxyGap(self._config.window)
        self._num_kl_raises = 0
        self._num_roll_backs = 0
        self.alarms: list[Alarm] = []

    @property
    def num_roll_backs(self) -> int:
        """How often the run has gone back."""
        return self._num_roll_backs

    @property
    def is_on(self) -> bool:
        """Whether there is anything to look for."""
        return self._config.enabled

    @property
    def tripped(self) -> tuple[str, ...]:
        """Names of the rules that are out of bounds now."""
        return tuple(state.rule.name for state in self._rules if state.tripped)

    def observe(self, step: int, seen: Observation) -> Judgement:
        """Takes one step.

        Actions that have been used up turn into others: raising the KL into a warning, rolling back
        into a stop.
        """
        if not self._config.enabled:
            return Judgement(metrics={})
        metrics = self._numbers(seen)
        everything = {**seen.metrics, **metrics}
        found = [state.update(step, everything.get(state.rule.metric)) for state in self._rules]
        alarms = tuple(alarm for alarm in found if alarm is not None)
        for alarm in alarms:
            logger.warning("step %d: %s", step, alarm.text)
        self.alarms += alarms
        metrics["watch/num_alarms"] = float(len(self.alarms))
        metrics["watch/num_tripped"] = float(len(self.tripped))
        if not alarms:
            return Judgement(metrics=metrics)
        worst = max(alarms, key=lambda alarm: _GRAVITY.index(self._allowed(alarm.rule.action)))
        return Judgement(
            metrics=metrics,
            alarms=alarms,
            action=self._allowed(worst.rule.action),
            alarm=worst,
        )

    def raised_kl(self, coefficient: float) -> float:
        """The KL coefficient to go on with after an alarm that raises it; counts the raise."""
        self._num_kl_raises += 1
        return max(coefficient * self._config.kl_factor, self._config.kl_floor)

    def rolled_back(self) -> None:
        """Says that the run is back at an earlier step: streaks and trends begin anew."""
        self._num_roll_backs += 1
        self._gap.clear()
        for state in self._rules:
            state.rearm()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; JSON."""
        return {
            "rules": {state.rule.name: state.state_dict() for state in self._rules},
            "gap": self._gap.state_dict(),
            "num_kl_raises": self._num_kl_raises,
            "num_roll_backs": self._num_roll_backs,
            "num_alarms": len(self.alarms),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint; rules that it does not know start anew. Roll-backs stay counted."""
        for rule in self._rules:
            if rule.rule.name in state["rules"]:
                rule.load_state_dict(state["rules"][rule.rule.name])
        self._gap.load_state_dict(state["gap"])
        self._num_kl_raises = max(self._num_kl_raises, int(state["num_kl_raises"]))
        self._num_roll_backs = max(self._num_roll_backs, int(state["num_roll_backs"]))

    def _allowed(self, action: Action) -> Action:
        if action is Action.RAISE_KL and self._num_kl_raises >= self._config.max_kl_raises:
            return Action.WARN
        if action is Action.ROLL_BACK and self._num_roll_backs >= self._config.max_roll_backs:
            return Action.STOP
        return action

    def _numbers(self, seen: Observation) -> dict[str, float]:
        config = self._config
        numbers = describe(seen)
        gap = self._gap.update(seen.metrics.get(config.proxy), seen.metrics.get(config.truth))
        numbers[PROXY_GAP] = gap
        if config.disagreement is not None and config.disagreement in seen.metrics:
            numbers[DISAGREEMENT] = seen.metrics[config.disagreement]
        return {name: value for name, value in numbers.items() if math.isfinite(value)}


def describe(seen: Observation) -> dict[str, float]:
    """What one step alone tells: statistics of its texts, and how its rewards are distributed."""
    numbers: dict[str, float] = {}
    if seen.texts:
        numbers |= text_stats(seen.texts, seen.tokens, seen.prompts).metrics()
    if len(set(seen.rewards)) > GRADED * len(seen.rewards):
        numbers[BIMODALITY] = bimodality(seen.rewards)
    return numbers


def _changed(rule: Rule, change: RuleOverride) -> Rule:
    given = change.model_dump(exclude={"enabled"}, exclude_none=True)
    if "above" in given:
        given["below"] = None
    elif "below" in given:
        given["above"] = None
    return replace(rule, **given)
