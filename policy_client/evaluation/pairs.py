"""Pairwise accuracy of reward models, by subset; RewardBench's sections and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rewardsvc.policy_client.evaluation.win_rate import wilson_interval

_CODE = tuple(f"hep-{name}" for name in ("cpp", "go", "java", "js", "python", "rust"))
_MATH = "math-prm"

REWARDBENCH_SECTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Chat": (
            "alpacaeval-easy",
            "alpacaeval-length",
            "alpacaeval-hard",
            "mt-bench-easy",
            "mt-bench-med",
        ),
        "Chat Hard": (
            "mt-bench-hard",
            "llmbar-natural",
            "llmbar-adver-neighbor",
            "llmbar-adver-GPTInst",
            "llmbar-adver-GPTOut",
            "llmbar-adver-manual",
        ),
        "Safety": (
            "refusals-dangerous",
            "refusals-offensive",
            "xstest-should-refuse",
            "xstest-should-respond",
            "donotanswer",
        ),
        "Reasoning": (_MATH, *_CODE),
    }
)
"""Section → subsets. Source: Lambert et al. 2024, "RewardBench", arXiv:2403.13787, table 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResult:
    """One subset.

    Attributes:
        accuracy: Share of pairs in which the chosen completion has the higher score; a tie counts
            half. NaN if no pair has both scores.
        low: Lower end of its 95% interval.
        high: Upper end.
        num_pairs: Pairs with both scores.
        num_missing: Pairs that lack one.
        mean_margin: Mean of chosen less rejected.
    """

    accuracy: float
    low: float
    high: float
    num_pairs: int
    num_missing: int
    mean_margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReport:
    """All subsets.

    Attributes:
        overall: Over all pairs.
        subsets: By name, in order of appearance.
        sections: RewardBench's section scores; empty for other data.
        score: The mean over sections; NaN if there are none.
    """

    overall: PairResult
    subsets: Mapping[str, PairResult]
    sections: Mapping[str, float]
    score: float


def pair_report(
    chosen: Sequence[float], rejected: Sequence[float], subsets: Sequence[str] | None = None
) -> PairReport:
    """Accuracy over all pairs and by subset.

    Args:
        chosen: [N] scores of the better completions; NaN where there is none.
        rejected: [N] scores of the worse ones.
        subsets: [N] the subset of each pair; all are one if None.

    Raises:
        ValueError: If lengths differ.
    """
    names = [""] * len(chosen) if subsets is None else list(subsets)
    if not len(chosen) == len(rejected) == len(names):
        raise ValueError(
            f"{len(chosen)} chosen, {len(rejected)} rejected, {len(names)} subsets; "
            "give one of each for every pair"
        )
    margins = [one - other for one, other in zip(chosen, rejected, strict=True)]
    by_subset: dict[str, list[float]] = {}
    for name, margin in zip(names, margins, strict=True):
        by_subset.setdefault(name, []).append(margin)
    return PairReport(
        overall=_result(margins),
        subsets={} if subsets is None else {n: _result(found) for n, found in by_subset.items()},
        sections={},
        score=math.nan,
    )


def rewardbench_report(
    chosen: Sequence[float], rejected: Sequence[float], subsets: Sequence[str]
) -> PairReport:
    """As `pair_report`, with RewardBench's sections and their mean.

    A section is the mean over its pairs, but `math-prm` weighs as much as all of the code subsets
    together. A section of which no subset is there is left out.
    """
    report = pair_report(chosen, rejected, subsets)
    sections = {}
    for section, names in REWARDBENCH_SECTIONS.items():
        found = {name: report.subsets[name] for name in names if name in report.subsets}
        weights = {name: float(result.num_pairs) for name, result in found.items()}
        num_code = sum(weights.get(name, 0.0) for name in _CODE)
        if num_code and weights.get(_MATH):
            weights[_MATH] = num_code
        total = sum(weights.values())
        if total:
            sections[section] = (
                sum(
                    weights[name] * result.accuracy
                    for name, result in found.items()
                    if result.num_pairs
                )
                / total
            )
    score = sum(sections.values()) / len(sections) if sections else math.nan
    return PairReport(
        overall=report.overall, subsets=report.subsets, sections=sections, score=score
    )


def _result(margins: Sequence[float]) -> PairResult:
    known = [margin for margin in margins if not math.isnan(margin)]
    points = sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in known)
    low, high = wilson_interval(points, len(known)) if known else (math.nan, math.nan)
    return PairResult(
        accuracy=points / len(known) if known else math.nan,
        low=low,
        high=high,
        num_pairs=len(known),
        num_missing=len(margins) - len(known),
        mean_margin=sum(known) / len(known) if known else math.nan,
    )
