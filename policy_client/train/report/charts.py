"""Which metrics share a chart, what they mean, and what to look out for."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rewardsvc.policy_client.train.report.svg import Drawing, Line, line_chart, stacked_chart
from rewardsvc.policy_client.train.run_data import RunData


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartSpec:
    """One chart of the page.

    Attributes:
        title: Its heading.
        metrics: Names of metrics, or patterns with `*`, in order; what a run lacks is left out.
        words: What it shows and what to look out for.
        labels: Legend entries by name of metric; the name itself where there is none.
        bands: Lower and upper edge by name of metric: two metrics, or "-name" and "+name" for the
            metric minus and plus another.
        right: Metrics with an axis of their own on the right.
        from_zero: Whether the axis must show zero.
        percent: Whether values are shares.
        smooth: Whether to draw a moving average.
    """

    title: str
    metrics: tuple[str, ...]
    words: str
    labels: Mapping[str, str] = field(default_factory=dict)
    bands: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    right: frozenset[str] = frozenset()
    from_zero: bool = False
    percent: bool = False
    smooth: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart as the page shows it."""

    title: str
    words: str
    drawing: Drawing


CHARTS = (
    ChartSpec(
        title="Reward",
        metrics=("reward", "true_quality"),
        words="Mean reward of the step's completions; the band is one standard deviation either "
        "side. It should rise and then flatten. A sudden jump is more often a loophole in the "
        "scorer than a breakthrough: read the completions below. Where a true quality is known it "
        "is drawn beside the reward, on its own axis: reward up while quality falls is reward "
        "hacking.",
        labels={"reward": "reward", "true_quality": "true quality (right axis)"},
        bands={"reward": ("-reward_std", "+reward_std")},
        right=frozenset({"true_quality"}),
    ),
    ChartSpec(
        title="Reward components",
        metrics=("rewards/*/mean",),
        words="The named parts that the reward is made of. If one part carries the whole rise, "
        "the policy may be learning that part alone, a format for instance, and not the task.",
    ),
    ChartSpec(
        title="Held-out accuracy",
        metrics=("eval/*_accuracy", "eval_accuracy", "eval_mean_token_accuracy"),
        words="Measured on prompts that were never trained on. This is the curve to choose a "
        "checkpoint by; where it falls behind the training curve, the run is memorising. Sampled "
        "answers gain from mere sharpening, greedy ones do not.",
        from_zero=True,
        percent=True,
    ),
    ChartSpec(
        title="Held-out reward",
        metrics=("eval/*_reward", "eval/*_true_quality"),
        words="Mean reward on prompts that were never trained on, and the true quality of the same "
        "completions where it is known (right axis). The two should rise together.",
        right=frozenset({"eval/sampled_true_quality", "eval/greedy_true_quality"}),
    ),
    ChartSpec(
        title="Loss",
        metrics=("loss", "eval_loss"),
        words="Training loss and loss on held-out rows. The point where the held-out loss turns "
        "up again is where overfitting starts. In policy optimisation the loss itself says "
        "little: it is near zero by construction, and learning goes on all the same.",
        labels={"loss": "training", "eval_loss": "held out"},
    ),
    ChartSpec(
        title="Accuracy",
        metrics=("accuracy", "mean_token_accuracy"),
        words="Training share of right answers: pairs that a reward model orders as people did, or "
        "tokens that a policy ranks first.",
        percent=True,
    ),
    ChartSpec(
        title="Rewards of pairs",
        metrics=("rewards/chosen", "rewards/rejected", "margin"),
        words="Scores of the better and the worse completions, and the gap between them. A gap "
        "that grows without end while accuracy stands still is overconfidence.",
    ),
    ChartSpec(
        title="Distance from the reference (KL)",
        metrics=("kl",),
        words="How far the policy has moved from where it started, in nats. A slow rise is "
        "learning; a steep one says that the policy has left the texts that a learned reward can "
        "judge. Raise the KL coefficient or lower the learning rate.",
        from_zero=True,
    ),
    ChartSpec(
        title="Entropy",
        metrics=("entropy",),
        words="How undecided the policy is, in nats a token. It falls as the policy grows sure. "
        "Near zero all completions of a prompt are the same and nothing is left to learn from.",
        from_zero=True,
    ),
    ChartSpec(
        title="Completion length",
        metrics=("completions/mean_length",),
        words="Mean tokens a completion; the band runs from the shortest to the longest. Length "
        "that climbs without a better held-out result means that length itself is rewarded.",
        labels={"completions/mean_length": "mean length"},
        bands={"completions/mean_length": ("completions/min_length", "completions/max_length")},
        from_zero=True,
    ),
    ChartSpec(
        title="Cut-off completions",
        metrics=("completions/clipped_ratio",),
        words="Share of completions that hit the length limit before they ended. They often earn "
        "nothing for want of room: above a few percent, raise the limit.",
        from_zero=True,
        percent=True,
    ),
    ChartSpec(
        title="Groups without variance",
        metrics=("frac_reward_zero_std",),
        words="Share of prompts whose completions all got the same reward. They teach nothing. "
        "High at the start: the task is too hard for the policy. High at the end: it is solved.",
        from_zero=True,
        percent=True,
    ),
    ChartSpec(
        title="Missing rewards",
        metrics=("rewards/num_missing", "eval/num_missing"),
        labels={"rewards/num_missing": "training", "eval/num_missing": "held out"},
        words="Completions for which the scorer gave no reward: a broken sandbox, a server out of "
        "reach. They are left out of training, never counted as zero. Anything above zero is worth "
        "a look at the server's log.",
        from_zero=True,
    ),
    ChartSpec(
        title="Clipped updates",
        metrics=("clip_ratio/region_mean", "clip_ratio/low_mean", "clip_ratio/high_mean"),
        words="Share of tokens whose update was cut because the policy had moved too far from the "
        "one that wrote them. Zero when every batch is used once; above about 0.2 the steps are "
        "too large.",
        labels={
            "clip_ratio/region_mean": "all",
            "clip_ratio/low_mean": "below",
            "clip_ratio/high_mean": "above",
        },
        from_zero=True,
        percent=True,
    ),
    ChartSpec(
        title="Importance ratio",
        metrics=("sampling/importance_sampling_ratio/mean",),
        words="How much more likely the policy finds its completions now than when it wrote them; "
        "the band is the range. It belongs near 1. Elsewhere, generation and training disagree.",
        labels={"sampling/importance_sampling_ratio/mean": "mean ratio"},
        bands={
            "sampling/importance_sampling_ratio/mean": (
                "sampling/importance_sampling_ratio/min",
                "sampling/importance_sampling_ratio/max",
            )
        },
    ),
    ChartSpec(
        title="Critic",
        metrics=("critic/vf_loss", "critic/vf_explained_var"),
        words="Loss of the value function, and the share of the returns' variance that it explains "
        "(right axis): 1 is perfect, 0 no better than a constant. Below zero it does harm.",
        right=frozenset({"critic/vf_explained_var"}),
    ),
    ChartSpec(
        title="KL coefficient",
        metrics=("kl_coef", "kl_coefficient", "beta"),
        words="What a nat of KL costs. An adaptive controller moves it to hold the KL at its "
        "target; one that only rises has lost that fight.",
        from_zero=True,
    ),
    ChartSpec(
        title="Gradient norm",
        metrics=("grad_norm",),
        words="Length of the gradient before it is clipped. Spikes are normal, a climb is not: "
        "lower the learning rate.",
        from_zero=True,
    ),
    ChartSpec(
        title="Learning rate",
        metrics=("learning_rate",),
        words="As scheduled: warm-up, then decay.",
        from_zero=True,
        smooth=False,
    ),
)

NOT_DRAWN = (
    "num_tokens",
    "epoch",
    "step_time",
    "reward_std",
    "rewards/*/std",
    "rewards/accuracies",
    "rewards/margins",
    "eval_margin",
    "eval/num_prompts",
    "eval_rewards/*",
    "completions/*",
    "sampling/*",
    "clip_ratio/*",
)
"""Bands of other charts, counters, and second names; all of them are in metrics.jsonl."""


def draw_charts(runs: Sequence[RunData]) -> list[Chart]:
    """The charts for which there are numbers. With several runs, one line a run and metric."""
    charts = []
    for spec in CHARTS:
        lines = [line for run in runs for line in _lines(spec, run, several=len(runs) > 1)]
        drawing = line_chart(
            lines, title=spec.title, from_zero=spec.from_zero, percent=spec.percent
        )
        if drawing is not None:
            charts.append(Chart(title=spec.title, words=spec.words, drawing=drawing))
    return charts


def draw_others(runs: Sequence[RunData]) -> list[Chart]:
    """One chart each for the metrics that no chart of ours names."""
    known = [name for spec in CHARTS for name in spec.metrics] + list(NOT_DRAWN)
    names = dict.fromkeys(
        name
        for run in runs
        for name in run.metrics
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in known)
    )
    charts = []
    for name in names:
        spec = ChartSpec(title=name, metrics=(fnmatch_literal(name),), words="")
        lines = [line for run in runs for line in _lines(spec, run, several=len(runs) > 1)]
        drawing = line_chart(lines, title=name)
        if drawing is not None:
            charts.append(Chart(title=name, words="", drawing=drawing))
    return charts


def draw_phases(run: RunData) -> Drawing | None:
    """Seconds a step, by what they were spent on."""
    return stacked_chart(
        [Line(label=name, steps=run.steps, values=run.phases[name]) for name in run.phases],
        title="Time per step",
    )


def fnmatch_literal(name: str) -> str:
    """A pattern that matches `name` and nothing else."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lines(spec: ChartSpec, run: RunData, *, several: bool) -> list[Line]:
    found = []
    names = [name for pattern in spec.metrics for name in fnmatch.filter(run.metrics, pattern)]
    has_left = any(name not in spec.right for name in names)
    for name in names:
        label = spec.labels.get(
            name, name.removeprefix("rewards/").removeprefix("eval/").removesuffix("/mean")
        )
        low, high = (None, None) if several else _band(spec, run, name)
        # Evaluations are few: joined over the steps between them, these are no gaps.
        at = [
            i
            for i, value in enumerate(run.metrics[name])
            if not name.startswith("eval") or math.isfinite(value)
        ]
        found.append(
            Line(
                label=f"{run.directory.name}: {label}" if several else label,
                steps=[run.steps[i] for i in at],
                values=[run.metrics[name][i] for i in at],
                low=low,
                high=high,
                right=has_left and name in spec.right,
                smooth=spec.smooth and not name.startswith("eval"),
            )
        )
    return found


def _band(
    spec: ChartSpec, run: RunData, name: str
) -> tuple[list[float] | None, list[float] | None]:
    edges = spec.bands.get(name)
    if edges is None or any(edge.lstrip("+-") not in run.metrics for edge in edges):
        return None, None

    def series(edge: str) -> list[float]:
        other = run.metrics[edge.lstrip("+-")]
        if edge[0] not in "+-":
            return list(other)
        sign = 1.0 if edge[0] == "+" else -1.0
        return [v + sign * o for v, o in zip(run.metrics[name], other, strict=True)]

    low, high = series(edges[0]), series(edges[1])
    return (low, high) if any(map(math.isfinite, low)) else (None, None)
