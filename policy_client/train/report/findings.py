"""What a run's numbers say at a glance, in words, the doubtful things first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rewardsvc.policy_client.train.run_data import RunData

FLAT_GROUPS = 0.5
CUT_OFF = 0.1
COLLAPSED_ENTROPY = 0.05
FEWEST_STEPS = 10
REAL_CHANGE = 0.15


class Mood(StrEnum):
    """How to take a finding."""

    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One sentence about a run.

    Attributes:
        mood: How to take it.
        text: The sentence.
    """

    mood: Mood
    text: str


def find(run: RunData) -> list[Finding]:
    """What is worth saying about `run`, warnings first."""
    warnings = [f"Step {alarm['step']}: {alarm.get('text', '')}" for alarm in run.alarms]
    notes: list[str] = []
    last = run.steps[-1] if run.steps else 0
    if not run.steps:
        warnings.append("No step was logged: the run did not start, or its log is elsewhere.")
    elif run.total_steps and last < run.total_steps:
        warnings.append(
            f"The run stopped at step {last} of {run.total_steps}, or is still going on."
        )
    broken = [name for name in ("loss", "reward", "grad_norm") if _has_new_gap(run, name)]
    if broken:
        warnings.append(
            f"Not a number at some steps: {', '.join(broken)}. For the reward this means that no "
            "completion of the step had one."
        )
    peak = hacked_since(run)
    if peak is not None and not any(alarm.get("rule") == "proxy_gap" for alarm in run.alarms):
        warnings.append(
            f"The true quality has fallen since about step {peak} while the reward went on rising: "
            "the policy exploits the reward model. Stop there, raise the KL coefficient, or "
            "improve the reward model."
        )
    flat = _tenth(run, "frac_reward_zero_std", last=True)
    if flat is not None and flat > FLAT_GROUPS:
        warnings.append(
            f"At the end {flat:.0%} of the groups had no variance and taught nothing: the task is "
            "too easy or too hard for the policy by now."
        )
    cut = _tenth(run, "completions/clipped_ratio", last=True)
    if cut is not None and cut > CUT_OFF:
        warnings.append(f"At the end {cut:.0%} of the completions hit the length limit.")
    entropy = _tenth(run, "entropy", last=True)
    if entropy is not None and entropy < COLLAPSED_ENTROPY:
        notes.append(f"Entropy ended at {entropy:.3f} nats a token: the policy barely explores.")
    skipped = sum(1 for value in run.metrics.get("grad_norm", ()) if value == 0.0)
    if skipped:
        notes.append(f"{skipped} steps had a gradient of zero.")
    return [Finding(mood=Mood.WARNING, text=text) for text in warnings] + [
        Finding(mood=Mood.NOTE, text=text) for text in notes
    ]


def first_and_last(run: RunData, name: str) -> tuple[float, float] | None:
    """Means of a metric's first and last tenth; None if it has no finite value."""
    first, last = _tenth(run, name, last=False), _tenth(run, name, last=True)
    return None if first is None or last is None else (first, last)


def _tenth(run: RunData, name: str, *, last: bool) -> float | None:
    finite = [value for value in run.metrics.get(name, ()) if math.isfinite(value)]
    if not finite:
        return None
    size = max(1, len(finite) // 10)
    return _mean(finite[-size:] if last else finite[:size])


def hacked_since(run: RunData) -> int | None:
    """The step from which the reward rose while the true quality fell; None if that is not so.

    Both are compared as means of tenths of the run, from the best tenth of the true quality to the
    last; a change counts from `REAL_CHANGE` of a series' own range on.
    """
    points = [
        (step, reward, quality)
        for step, reward, quality in zip(
            run.steps,
            run.metrics.get("reward", ()),
            run.metrics.get("true_quality", ()),
            strict=False,
        )
        if math.isfinite(reward) and math.isfinite(quality)
    ]
    if len(points) < FEWEST_STEPS:
        return None
    size = len(points) // 10
    tenths = [points[i * size : (i + 1) * size] for i in range(9)] + [points[9 * size :]]
    rewards = [_mean([reward for _, reward, _ in tenth]) for tenth in tenths]
    qualities = [_mean([quality for _, _, quality in tenth]) for tenth in tenths]
    best = max(reversed(range(10)), key=qualities.__getitem__)  # the last of a plateau
    fall = (qualities[best] - qualities[-1]) / (max(qualities) - min(qualities) or 1.0)
    rise = (rewards[-1] - rewards[best]) / (max(rewards) - min(rewards) or 1.0)
    return tenths[best][-1][0] if min(fall, rise) > REAL_CHANGE else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _has_new_gap(run: RunData, name: str) -> bool:
    """Whether a metric that had begun is missing at a later step."""
    series = run.metrics.get(name, ())
    begun = next((i for i, value in enumerate(series) if math.isfinite(value)), len(series))
    return any(not math.isfinite(value) for value in series[begun:])
