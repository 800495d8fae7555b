"""Reward hacking and collapse, each constructed, and each caught; and a healthy run left alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from rewardsvc.policy_client.train.monitor import (
    RULES,
    Action,
    MonitorConfig,
    Rule,
    RuleState,
    Versus,
    Watch,
    text_stats,
)
from rewardsvc.policy_client.train.monitor.text_stats import (
    distinct_n,
    is_refusal,
    repeated_ngrams,
    self_bleu,
)
from rewardsvc.policy_client.train.monitor.trends import ProxyGap, bimodality, slope_t
from rewardsvc.policy_client.train.monitor.watch import Judgement, Observation

WORDS = ("the", "a", "sum", "of", "two", "and", "three", "is", "five", "so", "we", "get", "now")
STEPS = 60


def sentence(shuffler: random.Random, num_words: int = 20) -> str:
    return " ".join(shuffler.choices(WORDS, k=num_words))


def healthy(seed: int = 0) -> Iterator[Observation]:
    """A run that learns: reward and truth rise, texts vary, the rest wobbles."""
    shuffler = random.Random(seed)
    for step in range(STEPS):
        progress = step / STEPS
        texts = [sentence(shuffler, shuffler.randint(15, 25)) for _ in range(16)]
        yield Observation(
            metrics={
                "reward": progress + shuffler.gauss(0, 0.05),
                "true_quality": progress + shuffler.gauss(0, 0.05),
                "completions/mean_length": 20 * (1 + 0.5 * progress) + shuffler.gauss(0, 1),
                "completions/clipped_ratio": 0.05,
                "entropy": 1.0 - 0.6 * progress + shuffler.gauss(0, 0.02),
                "kl": 0.1 * progress,
                "frac_reward_zero_std": 0.3,
            },
            texts=texts,
            rewards=[shuffler.gauss(progress, 0.3) for _ in texts],
        )


def changed(
    change: Callable[[float, Observation], dict[str, Any]], seed: int = 0
) -> Iterator[Observation]:
    """A healthy run in which something goes wrong; `change` is given the progress, 0 to 1."""
    for step, seen in enumerate(healthy(seed)):
        new = change(step / STEPS, seen)
        texts = new.pop("texts", seen.texts)
        yield Observation(metrics={**seen.metrics, **new}, texts=texts, rewards=seen.rewards)


def run(steps: Iterable[Observation], **config: Any) -> tuple[Watch, list[Judgement]]:
    watch = Watch(MonitorConfig(**config))
    return watch, [watch.observe(step, seen) for step, seen in enumerate(steps, 1)]


def names(watch: Watch) -> set[str]:
    return {alarm.rule.name for alarm in watch.alarms}


@pytest.mark.parametrize("seed", range(8))
def test_healthy_run_gives_no_alarm(seed: int) -> None:
    watch, judgements = run(healthy(seed))
    assert names(watch) == set()
    assert all(judgement.action is None for judgement in judgements)


def length_exploitation(progress: float, seen: Observation) -> dict[str, Any]:
    return {"completions/mean_length": 20.0 + 60.0 * progress, "true_quality": 0.5}


def repetition(progress: float, seen: Observation) -> dict[str, Any]:
    if progress < 0.5:
        return {}
    return {"texts": [" ".join(text.split()[:3] * 8) for text in seen.texts]}


def proxy_with_a_hole(progress: float, seen: Observation) -> dict[str, Any]:
    if progress < 0.5:
        return {}
    return {"true_quality": 1.0 - progress + random.Random(progress).gauss(0, 0.05)}


def collapsed_policy(progress: float, seen: Observation) -> dict[str, Any]:
    if progress < 0.5:
        return {}
    return {"texts": ["the answer is five"] * len(seen.texts), "entropy": 0.001}


def refusing(progress: float, seen: Observation) -> dict[str, Any]:
    if progress < 0.5:
        return {}
    return {"texts": [f"I'm sorry, but I can't help: {text}" for text in seen.texts]}


def runaway(progress: float, seen: Observation) -> dict[str, Any]:
    return {"kl": 4.0 * progress}


FAILURES = {
    "length_growth": length_exploitation,
    "repetition": repetition,
    "proxy_gap": proxy_with_a_hole,
    "identical_completions": collapsed_policy,
    "entropy_collapse": collapsed_policy,
    "refusals": refusing,
    "kl_runaway": runaway,
    "length_collapse": lambda p, s: {"completions/mean_length": 20.0 * (1 - p)},
    "cut_off": lambda p, s: {"completions/clipped_ratio": p},
    "empty": lambda p, s: {"texts": [*s.texts[:8], *[""] * 8]} if p > 0.5 else {},
    "flat_groups": lambda p, s: {"frac_reward_zero_std": min(1.0, 2 * p)},
    "entropy_explosion": lambda p, s: {"entropy": 1.0 + 8.0 * p},
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_constructed_failure_is_caught(name: str) -> None:
    watch, judgements = run(changed(FAILURES[name]))
    assert name in names(watch)
    alarm = next(alarm for alarm in watch.alarms if alarm.rule.name == name)
    assert alarm.rule.meaning in alarm.text
    assert alarm.rule.advice in alarm.text
    assert sum(found.rule.name == name for found in watch.alarms) == 1, "one alarm, not fifty"
    assert judgements[-1].metrics["watch/num_tripped"] >= 1


def test_ensemble_that_comes_to_disagree_is_caught() -> None:
    def spread(progress: float, seen: Observation) -> dict[str, Any]:
        return {"rewards/std/mean": 0.1 + 0.5 * progress}

    watch, _ = run(changed(spread), disagreement="rewards/std/mean")
    assert names(watch) == {"disagreement"}
    assert names(run(changed(spread))[0]) == set()


def test_graded_rewards_in_two_heaps_are_caught_and_verdicts_are_not() -> None:
    shuffler = random.Random(0)

    def rewards(step: int) -> list[float]:
        heaps = [0.0, 10.0] if step > 20 else [0.0]
        return [shuffler.choice(heaps) + shuffler.gauss(0, 0.5) for _ in range(128)]

    graded = [Observation(metrics={}, rewards=rewards(step)) for step in range(STEPS)]
    assert names(run(graded)[0]) == {"two_heaps"}
    verdicts = [Observation(metrics={}, rewards=[0.0, 1.0] * 64) for _ in range(STEPS)]
    assert names(run(verdicts)[0]) == set()


def test_proxy_gap_stops_and_the_gravest_action_wins() -> None:
    def both(progress: float, seen: Observation) -> dict[str, Any]:
        return proxy_with_a_hole(progress, seen) | runaway(progress, seen)

    actions_of = {"proxy_gap": {"action": "stop"}, "kl_runaway": {"action": "raise_kl"}}
    _, judgements = run(changed(both), rules=actions_of)
    actions = [judgement.action for judgement in judgements if judgement.action is not None]
    assert Action.RAISE_KL in actions
    assert Action.STOP in actions


def test_used_up_actions_turn_into_others() -> None:
    raising = {"kl_runaway": {"action": "raise_kl"}}
    _, judgements = run(changed(runaway), rules=raising)
    assert [found.action for found in judgements if found.action] == [Action.RAISE_KL]
    _, judgements = run(changed(runaway), rules=raising, max_kl_raises=0)
    assert [found.action for found in judgements if found.action] == [Action.WARN]
    back = {"rules": {"kl_runaway": {"action": "roll_back"}}}
    _, judgements = run(changed(runaway), **back)
    assert Action.ROLL_BACK in [found.action for found in judgements]
    _, judgements = run(changed(runaway), max_roll_backs=0, **back)
    assert Action.STOP in [found.action for found in judgements]


def test_raised_kl_multiplies_and_lifts_zero() -> None:
    watch = Watch(MonitorConfig(kl_factor=3.0, kl_floor=0.02))
    assert watch.raised_kl(0.1) == pytest.approx(0.3)
    assert watch.raised_kl(0.0) == 0.02


def line(above: float, clear: float, **fields: Any) -> RuleState:
    rule = Rule(
        name="line", metric="m", above=above, clear=clear, meaning="m", advice="a", **fields
    )
    return RuleState(rule, baseline_steps=2)


def test_patience_counts_steps_in_a_row_and_steps_without_a_value_change_nothing() -> None:
    state = line(1.0, 0.5, patience=3)
    values = [2, 2, 0, 2, None, 2, math.nan, 2]
    alarms = [state.update(step, value) for step, value in enumerate(values)]
    assert [alarm is not None for alarm in alarms] == [False] * 7 + [True]
    assert alarms[-1] is not None
    assert (alarms[-1].since, alarms[-1].step) == (3, 7)


def test_hysteresis_gives_one_alarm_until_the_number_is_clear() -> None:
    state = line(1.0, 0.5, patience=1)
    tripped = [state.update(step, value) for step, value in enumerate([2, 0.9, 2, 0.4, 2])]
    assert [alarm is not None for alarm in tripped] == [True, False, False, False, True]


def test_baseline_is_the_mean_of_the_first_steps() -> None:
    state = line(2.0, 1.5, patience=1, versus=Versus.BASELINE)
    values = [100.0, 300.0, 399.0, 400.0]
    alarms = [state.update(step, value) for step, value in enumerate(values)]
    assert [alarm is not None for alarm in alarms] == [False, False, False, True]
    assert alarms[3] is not None
    assert alarms[3].number == pytest.approx(2.0)


@pytest.mark.parametrize("cut", [5, 12, 35, 45])
def test_interrupted_and_resumed_gives_the_same_alarms(cut: int) -> None:
    steps = list(changed(proxy_with_a_hole))
    whole, _ = run(steps)
    first, _ = run(steps[:cut])
    second = Watch()
    second.load_state_dict(first.state_dict())
    for step, seen in enumerate(steps[cut:], cut + 1):
        second.observe(step, seen)
    found = [(alarm.step, alarm.rule.name, alarm.number) for alarm in first.alarms + second.alarms]
    assert found == [(alarm.step, alarm.rule.name, alarm.number) for alarm in whole.alarms]


def test_after_a_roll_back_rules_can_trip_again_and_trends_start_anew() -> None:
    watch, _ = run(changed(runaway))
    assert watch.tripped
    watch.rolled_back()
    assert watch.tripped == ()
    for step in range(3):
        judgement = watch.observe(100 + step, Observation(metrics={"kl": 4.0}))
    assert judgement.alarm is not None


def test_watch_that_is_off_says_nothing() -> None:
    _, judgements = run(changed(collapsed_policy), enabled=False)
    assert all(not found.metrics and not found.alarms for found in judgements)
    _, judgements = run(changed(runaway), rules={"kl_runaway": {"enabled": False}})
    assert all(not found.alarms for found in judgements)


def test_unknown_rules_and_impossible_lines_are_named() -> None:
    with pytest.raises(ValidationError, match="no such rule"):
        MonitorConfig(rules={"length": {"above": 1.0}})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="either `above` or `below`"):
        Rule(name="r", metric="m", clear=0.0, meaning="", advice="")
    with pytest.raises(ValueError, match="clear is 2"):
        Rule(name="r", metric="m", above=1.0, clear=2.0, meaning="", advice="")
    assert len({rule.name for rule in RULES}) == len(RULES)


def plain_self_bleu(rows: list[list[str]]) -> float:
    def grams(row: list[str], n: int) -> list[tuple[str, ...]]:
        return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]

    scores = []
    for index, row in enumerate(rows):
        others = rows[:index] + rows[index + 1 :]
        logs = []
        for n in range(1, 5):
            mine = grams(row, n)
            if not mine:
                continue
            shared = sum(
                min(mine.count(gram), max(grams(other, n).count(gram) for other in others))
                for gram in set(mine)
            )
            smooth = 1 if n > 1 else 0
            precision = (shared + smooth) / (len(mine) + smooth)
            logs.append(math.log(precision) if precision else -math.inf)
        scores.append(math.exp(sum(logs) / len(logs)))
    return sum(scores) / len(scores)


def test_self_bleu_is_the_plain_loop() -> None:
    shuffler = random.Random(0)
    rows = [shuffler.choices(WORDS[:6], k=shuffler.randint(1, 12)) for _ in range(12)]
    assert self_bleu(rows) == pytest.approx(plain_self_bleu(rows))
    assert self_bleu([["a", "b", "c", "d", "e"]] * 3) == pytest.approx(1.0)
    assert self_bleu([["a"]]) == 0.0
    assert self_bleu([["a"], ["b"]]) == 0.0


def test_statistics_of_texts() -> None:
    assert distinct_n([["a", "a", "b"], ["a"]], 1) == pytest.approx(2 / 4)
    assert distinct_n([["a"], []], 2) == 1.0
    assert repeated_ngrams(list("abababa"), 2) == pytest.approx(4 / 6)
    assert repeated_ngrams([]) == 0.0
    found = text_stats(["yes it is", "yes it is", "no", ""], prompts=["p", "p", "q", "r"])
    assert found.identical == 0.0, "answers to one prompt may agree"
    assert found.identical_openings == 0.0
    assert found.empty == 0.25
    same = text_stats(["yes it is", "yes it is", "no"], prompts=["p", "q", "r"])
    assert same.identical == pytest.approx(2 / 3)
    assert same.identical_openings == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="2 token lists"):
        text_stats(["a"], [[1], [2]])


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot assist.", True),
        ("As an AI language model, I …", True),
        ("Sorry! That is not possible.", True),
        ("Unfortunately, I am unable to.", True),
        ("I can do that.", False),
        ("She said: I'm sorry.", False),
        ("The sorry state of things", False),
        ("", False),
    ],
)
def test_refusals(text: str, want: bool) -> None:
    assert is_refusal(text) is want


def test_slope_t_is_that_of_a_regression() -> None:
    generator = np.random.default_rng(0)
    series = 0.1 * np.arange(12) + generator.normal(size=12)
    x = np.arange(12.0)
    slope, intercept = np.polyfit(x, series, 1)
    residual = series - slope * x - intercept
    error = math.sqrt((residual**2).sum() / 10 / ((x - x.mean()) ** 2).sum())
    assert slope_t(series) == pytest.approx(slope / error)
    assert slope_t(np.full(5, 3.0)) == 0.0
    assert slope_t(np.arange(5.0)) > 1e6


def test_proxy_gap_of_noise_is_small_and_nothing_before_the_window_is_half_full() -> None:
    generator = np.random.default_rng(1)
    gap = ProxyGap(20)
    values = [gap.update(*generator.normal(size=2)) for _ in range(400)]
    assert all(math.isnan(value) for value in values[:9])
    assert np.nanmax(values) < 4.0
    assert math.isnan(ProxyGap(20).update(None, 1.0))


def test_bimodality() -> None:
    generator = np.random.default_rng(0)
    assert bimodality(generator.normal(size=5000)) == pytest.approx(1 / 3, abs=0.03)
    assert bimodality(generator.random(5000)) == pytest.approx(5 / 9, abs=0.02)
    assert bimodality([0.0] * 100 + [1.0] * 100) > 0.95
    assert math.isnan(bimodality([1.0, 1.0, 1.0, 1.0, 1.0]))
    assert math.isnan(bimodality([1.0, math.nan, 2.0, 3.0]))
