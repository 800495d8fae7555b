"""The report is one safe page that says what a run did, whatever state the run is in."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rewardsvc.policy_client.train.monitor.rules import Alarm
from rewardsvc.policy_client.train.monitor.table import BIMODALITY, PROXY_GAP, RULES
from rewardsvc.policy_client.train.monitor.text_stats import text_stats
from rewardsvc.policy_client.train.monitor.watch import DISAGREEMENT
from rewardsvc.policy_client.train.report import write_report
from rewardsvc.policy_client.train.run_log import RunLog, SampleRow

ATTACKS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</pre></style><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% include 'page.css' %}",
    "&lt;script&gt; &amp; ]]> <!-- -->",
]

URL_ATTRIBUTES = {"src", "href", "action", "data", "poster", "srcset", "formaction", "xlink:href"}


class Page(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif not self._open or self._open[-1] != "style":
            self.text += data

    def count(self, tag: str) -> int:
        return sum(1 for name, _ in self.elements if name == tag)

    def titles(self) -> set[str]:
        labels = (a["aria-label"] for tag, a in self.elements if tag == "svg" and "aria-label" in a)
        return {label or "" for label in labels}


def make_run(directory: Path, *, num_steps: int = 60, total: int = 60, **series: Any) -> Path:
    """A run with the usual metrics; `series` are functions of the step that replace or add one."""
    metrics = {
        "reward": lambda s: 0.2 + 0.01 * s,
        "reward_std": lambda s: 0.1,
        "rewards/countdown/mean": lambda s: 0.2,
        "kl": lambda s: 0.001 * s,
        "entropy": lambda s: 1.0,
        "completions/mean_length": lambda s: 12.0,
        "completions/clipped_ratio": lambda s: 0.01,
        "frac_reward_zero_std": lambda s: 0.2,
        "clip_ratio/region_mean": lambda s: 0.02,
        "grad_norm": lambda s: 0.5,
        "learning_rate": lambda s: 1e-4,
        "rewards/num_missing": lambda s: 0.0,
        **series,
    }
    with RunLog(
        directory, algorithm="grpo", total_steps=total, config={"seed": 1}, tensorboard=False
    ) as log:
        for step in range(1, num_steps + 1):
            values = {name: float(f(step)) for name, f in metrics.items()}
            log.step(step, values, {"rollout": 0.5, "reward": 0.1, "update": 0.4})
    return directory


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_page_shows_curves_times_samples_and_configuration(tmp_path: Path) -> None:
    make_run(tmp_path)
    with RunLog(
        tmp_path, algorithm="grpo", total_steps=60, config={"seed": 1}, tensorboard=False
    ) as log:
        log.samples(0, "before", [SampleRow(prompt="p?", completion="bad", reward=0.0)])
        log.samples(60, "after", [SampleRow(prompt="p?", completion="good", reward=1.0)])
    summary = {
        "sampled_before": 0.318,
        "sampled_after": 0.592,
        "greedy_before": 0.462,
        "greedy_after": 0.61,
        "num_prompts": 500,
        "train_seconds": 213.0,
        "reward_rpcs": 200,
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = read(write_report(tmp_path))
    for text in ("31.8% → 59.2%", "+27.4 points", "500 prompts", "46.2% → 61.0%", "3 min 33 s"):
        assert text in page.text
    for text in ("rollout", "50.0%", "Waiting for rewards", "bad", "good", "seed"):
        assert text in page.text
    assert page.text.index("bad") < page.text.index("good")
    expected = {
        "Reward",
        "Reward components",
        "Distance from the reference (KL)",
        "Entropy",
        "Completion length",
        "Groups without variance",
        "Clipped updates",
        "Gradient norm",
        "Learning rate",
        "Missing rewards",
        "Time per step",
    }
    assert expected <= page.titles()


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_text_stays_text_wherever_it_comes_from(tmp_path: Path, attack: str) -> None:
    plain = read(write_report(make_run(tmp_path / "plain"), tmp_path / "plain.html"))
    directory = tmp_path / "hostile"
    make_run(directory, **{f"rewards/{attack}/mean": lambda s: 1.0, attack: lambda s: 2.0})
    with RunLog(
        directory,
        algorithm=attack,
        total_steps=60,
        config={attack: attack, "deep": {attack: [attack]}},
        tensorboard=False,
    ) as log:
        row = SampleRow(
            prompt=attack, completion=attack, answer=attack, reward=1.0, components={attack: 1.0}
        )
        log.samples(0, attack, [row])
        log.samples(60, attack, [row])
        log.step(61, {"reward": 1.0}, {attack: 1.0})
    page = read(write_report(directory))
    for tag in ("script", "img", "iframe", "object", "style", "meta"):
        assert page.count(tag) == plain.count(tag), tag
    assert page.scripts == plain.scripts
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), tag
    assert attack in page.text


def test_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path))
    page = read(path)
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not URL_ATTRIBUTES & set(attributes), (tag, attributes)
    html = path.read_text()
    assert not re.search(r"https?://|@import|url\(", html)
    [policy] = [a["content"] or "" for tag, a in page.elements if a.get("http-equiv")]
    assert "default-src 'none'" in policy
    [script] = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy


def test_empty_run_has_a_page_that_says_so(tmp_path: Path) -> None:
    page = read(write_report(tmp_path))
    assert "No step was logged" in page.text
    assert page.count("svg") == 0


def test_interrupted_run_is_named_as_such(tmp_path: Path) -> None:
    page = read(write_report(make_run(tmp_path, num_steps=30, total=90)))
    assert "stopped at step 30 of 90" in page.text


def test_metrics_that_are_missing_or_nan_leave_gaps_and_no_page_broken(tmp_path: Path) -> None:
    nan = math.nan
    make_run(
        tmp_path,
        num_steps=20,
        total=20,
        reward=lambda s: nan if 5 < s < 9 else s,
        kl=lambda s: nan,
        entropy=lambda s: math.inf,
    )
    path = write_report(tmp_path)
    page = read(path)
    assert "Not a number at some steps: reward" in page.text
    assert not {"Distance from the reference (KL)", "Entropy"} & page.titles()
    assert "nan" not in "".join(re.findall(r'(?:points|d|cx|cy)="([^"]*)"', path.read_text()))
    charts = [json.loads(a["data-chart"] or "") for _, a in page.elements if "data-chart" in a]
    [chart] = [c for c in charts if [line["label"] for line in c["series"]] == ["reward"]]
    assert chart["series"][0]["y"][4:10] == ["5", None, None, None, "9", "10"]


def test_true_quality_falling_under_a_rising_reward_is_called_out(tmp_path: Path) -> None:
    def quality(step: int) -> float:
        return 0.01 * min(step, 30) - 0.01 * max(0, step - 30)

    page = read(write_report(make_run(tmp_path / "hacked", true_quality=quality)))
    assert "exploits the reward model" in page.text
    assert "true quality (right axis)" in page.text
    page = read(write_report(make_run(tmp_path / "honest", true_quality=lambda s: 0.01 * s)))
    assert "exploits the reward model" not in page.text


def test_proxy_and_true_quality_of_a_summary_stand_side_by_side(tmp_path: Path) -> None:
    make_run(
        tmp_path,
        **{
            "eval/sampled_reward": lambda s: s if s % 20 == 0 else math.nan,
            "eval/sampled_true_quality": lambda s: 0.5 if s % 20 == 0 else math.nan,
        },
    )
    summary = {
        "proxy_before": -1.25,
        "proxy_after": 3.5,
        "true_quality_before": 0.5,
        "true_quality_after": 0.25,
        "num_prompts": 64,
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = read(write_report(tmp_path))
    assert "-1.25 → 3.5" in page.text
    assert "0.5 → 0.25" in page.text
    [chart] = [a["data-chart"] or "" for _, a in page.elements if "true quality, sampled" in str(a)]
    series = json.loads(chart)["series"]
    assert [line["label"] for line in series] == [
        "sampled",
        "true quality, sampled (right axis)",
    ]
    assert series[0]["x"] == [20, 40, 60]


def test_no_reward_is_not_shown_as_zero(tmp_path: Path) -> None:
    make_run(tmp_path)
    with RunLog(tmp_path, algorithm="grpo", total_steps=60, config={}, tensorboard=False) as log:
        log.samples(60, "eval", [SampleRow(prompt="p", completion="c", reward=None)])
    page = read(write_report(tmp_path))
    assert "no reward" in page.text


def test_secrets_of_the_configuration_are_hidden(tmp_path: Path) -> None:
    config = {"reward": {"api_key": "hunter2"}, "tokenizer": "tok", "keys": {"secret": "hunter3"}}
    RunLog(tmp_path, algorithm="x", total_steps=1, config=config, tensorboard=False).close()
    page = read(write_report(tmp_path))
    assert "hunter" not in page.text
    assert "reward.api_key" in page.text
    assert "tok" in page.text


def test_text_that_hides_or_reorders_is_made_visible(tmp_path: Path) -> None:
    make_run(tmp_path)
    with RunLog(tmp_path, algorithm="grpo", total_steps=60, config={}, tensorboard=False) as log:
        row = SampleRow(prompt="p", completion="a\u202eb\x00c\ud800d" + "x" * 20_000)
        log.samples(60, "eval", [row])
    path = write_report(tmp_path)
    text = read(path).text
    assert "a⟨U+202E⟩b⟨U+0000⟩c⟨U+D800⟩d" in text
    assert "more characters" in text
    assert path.stat().st_size < 400_000


def test_long_runs_stay_small(tmp_path: Path) -> None:
    make_run(tmp_path, num_steps=5000, total=5000)
    path = write_report(tmp_path)
    assert path.stat().st_size < 1_000_000
    assert read(path).count("svg") > 10


def test_several_runs_are_drawn_over_each_other(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, num_steps=40, total=40) for name in ("seed-0", "seed-1")]
    path = write_report(runs, tmp_path / "sub" / "both.html")
    page = read(path)
    assert path == tmp_path / "sub" / "both.html"
    assert "seed-0: reward" in page.text
    assert "seed-1: reward" in page.text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="run_dir is empty"):
        write_report([])


def test_numbers_of_the_watch_have_charts_with_words(tmp_path: Path) -> None:
    stats = text_stats(["a b", "c d"]).metrics()
    watched = {*stats, PROXY_GAP, BIMODALITY, DISAGREEMENT}
    make_run(tmp_path, **{name: lambda s: 0.1 for name in watched})
    page = read(write_report(tmp_path))
    assert not watched & page.titles()
    for title in (
        "Reward against truth",
        "Disagreement of the ensemble",
        "Two heaps of rewards",
        "Repetition within a completion",
        "Sameness across prompts",
        "Variety of words",
        "Refusals and empty completions",
    ):
        assert title in page.titles()
    assert all(name not in page.text for name in watched)


def test_an_alarm_begins_with_what_it_means_and_is_not_told_twice(tmp_path: Path) -> None:
    def quality(step: int) -> float:
        return 0.5 - 0.01 * max(0, step - 30)

    make_run(tmp_path, true_quality=quality)
    rule = next(rule for rule in RULES if rule.name == "proxy_gap")
    text = Alarm(step=40, since=38, rule=rule, number=5.0).text
    alarm = {"step": 40, "rule": rule.name, "text": text}
    (tmp_path / "alarms.jsonl").write_text(json.dumps(alarm) + "\n")
    page = read(write_report(tmp_path))
    assert f"Step 40: {rule.meaning} {rule.advice} (proxy_gap: " in page.text
    assert "exploits the reward model" not in page.text


def test_the_fall_begins_at_the_end_of_a_plateau(tmp_path: Path) -> None:
    make_run(tmp_path, true_quality=lambda s: 0.5 - 0.01 * max(0, s - 30))
    assert "fallen since about step 30" in read(write_report(tmp_path)).text


def test_a_folder_named_like_its_algorithm_is_named_with_its_parent(tmp_path: Path) -> None:
    make_run(tmp_path / "monday" / "grpo")
    assert "GRPO: monday/grpo" in read(write_report(tmp_path / "monday" / "grpo")).text
