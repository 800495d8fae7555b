"""How `rewardsvc evaluate` looks in a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rewardsvc.commands.evaluate_comparisons import WinReport
    from rewardsvc.commands.evaluate_samples import SampleReport
    from rewardsvc.policy_client.evaluation import Calibration, PairReport


def print_pairs(report: PairReport, errors: Mapping[str, int], *, num_sections: int) -> None:
    """A row for each subset, RewardBench's sections, and what went wrong.

    Args:
        report: What to show.
        errors: What went wrong → how often.
        num_sections: Sections that the whole of RewardBench has.
    """
    console = Console()
    table = _table("subset", "pairs", "missing", "accuracy", "95%", "margin")
    for name, result in (*report.subsets.items(), ("all", report.overall)):
        table.add_row(
            escape(name) or "(empty)",
            str(result.num_pairs),
            str(result.num_missing),
            _percent(result.accuracy),
            f"{_percent(result.low)} – {_percent(result.high)}",
            _number(result.mean_margin),
        )
    console.print(table)
    if report.sections:
        table = _table("section", "accuracy")
        for name, accuracy in report.sections.items():
            table.add_row(name, _percent(accuracy))
        found = len(report.sections)
        mean = "RewardBench" if found == num_sections else f"mean of {found} of {num_sections}"
        table.add_row(mean, _percent(report.score))
        console.print()
        console.print(table)
    _print_errors(console, errors)


def print_samples(report: SampleReport, errors: Mapping[str, int]) -> None:
    """A row for each number of samples, the votes, and what went wrong."""
    console = Console()
    console.print(
        f"{report.num_problems} problems, {report.num_samples} completions, "
        f"{report.num_rewards_missing} without a reward"
        + (
            ""
            if report.num_scores_missing is None
            else f", {report.num_scores_missing} without a score"
        )
    )
    table = _table("n", "pass@n", "±", "problems", "best-scored of n", "best of n", "problems")
    curve = report.best_of_n
    for at, (k, passed) in enumerate(report.pass_at_k.items()):
        table.add_row(
            str(k),
            _percent(passed.value),
            _percent(passed.standard_error),
            str(passed.num_problems),
            *(
                ("", "", "")
                if curve is None
                else (_number(curve.chosen[at]), _number(curve.oracle[at]),
                      str(curve.num_problems[at]))
            ),
        )  # fmt: skip
    console.print(table)
    if not math.isnan(report.majority_vote):
        console.print(
            f"majority vote: {_percent(report.majority_vote)} of {report.num_voted} problems"
        )
    if not math.isnan(report.weighted_majority_vote):
        console.print(f"weighted by score: {_percent(report.weighted_majority_vote)}")
    if report.calibration is not None:
        found = report.calibration
        console.print(
            f"scores as probabilities: calibration error {_number(found.ece)}, "
            f"Brier {_number(found.brier)}, AUROC {_number(found.auroc)}"
        )
        console.print(_reliability(found))
    _print_errors(console, errors)


def print_wins(report: WinReport, errors: Mapping[str, int], *, confidence: float) -> None:
    """A row for each subset, what is left of the win rate at equal lengths, and what went wrong."""
    console = Console()
    table = _table("subset", "wins", "ties", "losses", "missing", "win rate", f"{confidence:.4g}")
    for name, result in (*report.subsets.items(), ("all", report.overall)):
        table.add_row(
            escape(name) or "(empty)",
            str(result.wins),
            str(result.ties),
            str(result.losses),
            str(result.num_missing),
            _percent(result.value),
            f"{_percent(result.low)} – {_percent(result.high)}",
        )
    console.print(table)
    ours, theirs = report.mean_lengths
    even = report.length_controlled
    console.print(
        f"at equal lengths: {_percent(even.value)} ({_percent(even.low)} – {_percent(even.high)}); "
        f"completions have {ours:.0f} characters against {theirs:.0f} in the mean"
    )
    _print_errors(console, errors)


def _reliability(found: Calibration) -> Table:
    """What is given a score, how often it is right: a row for each bin with completions."""
    table = _table("scores", "completions", "mean score", "right")
    for at, count in enumerate(found.counts):
        if count:
            table.add_row(
                f"{found.edges[at]:.1f} – {found.edges[at + 1]:.1f}",
                str(count),
                _percent(found.predicted[at]),
                _percent(found.observed[at]),
            )
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for at, heading in enumerate(headings):
        table.add_column(heading, justify="right" if at else "left")
    return table


def _print_errors(console: Console, errors: Mapping[str, int]) -> None:
    for what, number in errors.items():
        console.print(f"missing, {number}: {what}", markup=False, style="yellow")


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
