"""The table of charts: which metrics share one, what they mean, and what to look out for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rewardsvc.policy_client.train.monitor.table import BIMODALITY, PROXY_GAP
from rewardsvc.policy_client.train.monitor.watch import DISAGREEMENT


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
        right: Metrics with an axis of their own on the right; the legend says so.
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


CHARTS = (
    ChartSpec(
        title="Reward",
        metrics=("reward", "true_quality"),
        words="Mean reward of the step's completions; the band is one standard deviation either "
        "side. It should rise and then flatten. A sudden jump is more often a loophole in the "
        "scorer than a breakthrough: read the completions below. Where a true quality is known it "
        "is drawn beside the reward, on its own axis: reward up while quality falls is reward "
        "hacking.",
        labels={"true_quality": "true quality"},
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
        words="Share of right answers on rows that were never trained on; where a learned reward "
        "judges, of rewards above one half. This is the curve to choose a checkpoint by; where it "
        "falls behind the training curve, the run is memorising. Sampled answers gain from mere "
        "sharpening, greedy ones do not.",
        labels={
            "eval/sampled_accuracy": "sampled",
            "eval/greedy_accuracy": "greedy",
            "eval_mean_token_accuracy": "of tokens",
        },
        from_zero=True,
        percent=True,
    ),
    ChartSpec(
        title="Held-out reward",
        metrics=("eval/*_reward", "eval/*_true_quality"),
        words="Mean reward on prompts that were never trained on, and the true quality of the same "
        "completions where it is known (right axis). The two should rise together.",
        labels={
            "eval/sampled_reward": "sampled",
            "eval/greedy_reward": "greedy",
            "eval/sampled_true_quality": "true quality, sampled",
            "eval/greedy_true_quality": "true quality, greedy",
        },
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
        title="Reward against truth",
        metrics=(PROXY_GAP,),
        words="How surely the reward rises while the held-out truth falls, in standard errors of "
        "the two slopes; 0 while they agree. Noise stays below 2; from 4 on the policy exploits "
        "the reward. Go back to the checkpoint before the rise, raise the KL coefficient, or mend "
        "the reward.",
        from_zero=True,
        smooth=False,
    ),
    ChartSpec(
        title="Disagreement of the ensemble",
        metrics=(DISAGREEMENT,),
        words="How far the members of the reward ensemble are apart. A rise says that the policy "
        "writes what they were never taught to judge: penalise the deviation, or label new data.",
        from_zero=True,
    ),
    ChartSpec(
        title="Two heaps of rewards",
        metrics=(BIMODALITY,),
        words="Sarle's coefficient: a third for a normal distribution, near 1 for two separate "
        "heaps. Graded rewards that split so are often a trick that some completions have found: "
        "read samples of both heaps.",
        from_zero=True,
    ),
    ChartSpec(
        title="Repetition within a completion",
        metrics=("text/repeated_ngrams",),
        words="Share of a completion's runs of four tokens that it has written before. A climb "
        "means that saying things again is rewarded: penalise repetition, raise the KL "
        "coefficient.",
        from_zero=True,
        percent=True,
    ),
    ChartSpec(
        title="Sameness across prompts",
        metrics=("text/self_bleu", "text/identical_openings", "text/identical"),
        words="How much of a completion is found in those of other prompts, how many prompts get "
        "the most frequent opening, and how many exactly the answer of another. A format that is "
        "asked for raises the first two; if all rise, the policy has stopped reading the prompt: "
        "go back, lower the learning rate, raise the KL coefficient.",
        labels={
            "text/self_bleu": "found in others",
            "text/identical_openings": "same opening",
            "text/identical": "same answer",
        },
        from_zero=True,
        percent=True,
    ),
    ChartSpec(
        title="Variety of words",
        metrics=("text/distinct_1", "text/distinct_2"),
        words="Different tokens, and different pairs of neighbours, as shares of all. Their height "
        "depends on the size of a batch; a fall to a fraction of the start is a policy that "
        "narrows. An entropy bonus or a lower learning rate keeps it wide.",
        labels={"text/distinct_1": "tokens", "text/distinct_2": "pairs"},
        from_zero=True,
        percent=True,
    ),
    ChartSpec(
        title="Refusals and empty completions",
        metrics=("text/refusals", "text/empty"),
        words="Share of completions that begin like a refusal (English phrases), and of those "
        "without a token. Where one rises, see what such a completion is paid.",
        labels={"text/refusals": "refusals", "text/empty": "empty"},
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
        "one that wrote them. Zero when every batch is used once; above about 20% the steps are "
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
        labels={"critic/vf_loss": "loss", "critic/vf_explained_var": "explained variance"},
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
    "watch/num_alarms",
    "watch/num_tripped",
)
"""Bands of other charts, counters, and second names; all of them are in metrics.jsonl. Alarms are
sentences at the top of the page."""
