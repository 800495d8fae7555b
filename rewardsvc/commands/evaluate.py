"""`rewardsvc evaluate`: reward models on pairs and at choosing, and policies beside each other."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from rewardsvc.cli import fail
from rewardsvc.commands.evaluate_common import (
    LOCAL,
    NO_SUBSET,
    SUBSET,
    TIMEOUT_S,
    Address,
    ApiKey,
    AsJson,
    Data,
    Limit,
    Split,
    SubsetColumn,
    Timeout,
    print_json,
    read_examples,
    scored,
)
from rewardsvc.commands.evaluate_win_rate import win_rate
from rewardsvc.errors import ConfigError

if TYPE_CHECKING:
    from rewardsvc.policy_client.evaluation import PairReport


def add_evaluate_commands(app: typer.Typer) -> None:
    """Adds `evaluate` and what it can evaluate to the command line."""
    evaluate = typer.Typer(
        name="evaluate", no_args_is_help=True,
        help="Measure a reward model, what choosing by it is worth, or one policy beside another.",
    )  # fmt: skip
    evaluate.command("pairs")(pairs)
    evaluate.command("best-of-n")(best_of_n)
    evaluate.command("win-rate")(win_rate)
    app.add_typer(evaluate)


def pairs(
    scorer: Annotated[str, typer.Option(help="The scorer to measure.")],
    data: Data,
    address: Address = LOCAL,
    split: Split = "train",
    limit: Limit = None,
    subset_column: SubsetColumn = SUBSET,
    timeout: Timeout = TIMEOUT_S,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """How often a scorer prefers the chosen completion to the rejected one, by subset.

    Rows have `prompt`, `chosen`, `rejected` and, if there are subsets, `subset`. Where all subsets
    are RewardBench's, its sections and their mean are told as well. A pair of which a completion
    could not be scored is missing, not wrong.
    """
    from rewardsvc.commands.evaluate_scoring import Unit
    from rewardsvc.commands.evaluate_tables import print_pairs
    from rewardsvc.policy_client.evaluation import pair_report, rewardbench_report
    from rewardsvc.policy_client.evaluation.pairs import REWARDBENCH_SECTIONS

    examples = read_examples(data, split, limit, ("chosen", "rejected"))
    units = [
        Unit(example=row, completions=(row.chosen, row.rejected), left_out=(subset_column,))
        for row in examples
    ]
    found = scored(units, scorer, (address, api_key, timeout))
    chosen = [values[0] for values in found.values]
    rejected = [values[1] for values in found.values]
    subsets = None
    if any(subset_column in row.metadata for row in examples):
        subsets = [str(row.metadata.get(subset_column, NO_SUBSET)) for row in examples]
    known = {name for names in REWARDBENCH_SECTIONS.values() for name in names}
    report: PairReport
    if subsets is not None and known.issuperset(subsets):
        report = rewardbench_report(chosen, rejected, subsets)
    else:
        report = pair_report(chosen, rejected, subsets)
    if as_json:
        print_json({"scorer": scorer, **asdict(report), "errors": found.errors})
    else:
        print_pairs(report, found.errors, num_sections=len(REWARDBENCH_SECTIONS))
    if not report.overall.num_pairs:
        fail(f"--scorer: {scorer!r} scored no pair; {found.first_error}", 1)


def best_of_n(
    data: Data,
    scorer: Annotated[
        str | None, typer.Option(help="Scores to choose by; without it, the column `scores`.")
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option(help="A scorer that knows what is right; without it, the column `rewards`."),
    ] = None,
    address: Address = LOCAL,
    split: Split = "train",
    limit: Limit = None,
    k: Annotated[
        str | None, typer.Option("--k", help="Numbers of samples, such as 1,4,16; powers of two.")
    ] = None,
    extract: Annotated[
        str | None,
        typer.Option(help="`math`: take votes from the completions; else the column `answers`."),
    ] = None,
    timeout: Timeout = TIMEOUT_S,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """pass@k, majority vote, and the quality of the sample that a scorer likes best.

    Rows have `prompt` and `completions`, a list; `answer` and what else the verifier needs; and
    optionally lists beside the completions: `scores`, `rewards` (above 1/2 is right), `answers` to
    vote by. What could not be scored is missing, neither right nor wrong.
    """
    from rewardsvc.commands.evaluate_samples import (
        completions_of,
        counts,
        numbers_of,
        sample_report,
        votes_of,
    )
    from rewardsvc.commands.evaluate_scoring import Unit
    from rewardsvc.commands.evaluate_tables import print_samples

    examples = read_examples(data, split, limit)
    server = (address, api_key, timeout)
    errors: dict[str, int] = {}
    try:
        texts = [completions_of(row) for row in examples]
        votes = votes_of(examples, texts, extract)
        ks = counts(k, most=max(map(len, texts)))
        scores = None if scorer else numbers_of(examples, texts, "scores")
        rewards = None if verifier else numbers_of(examples, texts, "rewards")
    except ConfigError as error:
        fail(str(error))
    if rewards is None and verifier is None:
        fail(
            f"{data}: nothing says which completions are right; name a scorer with --verifier, or "
            "add the column `rewards`"
        )
    units = [
        Unit(example=row, completions=tuple(some), left_out=("completions", "scores", "rewards",
             "answers"))
        for row, some in zip(examples, texts, strict=True)
    ]  # fmt: skip
    if scorer is not None:
        found = scored(units, scorer, server)
        scores = found.values
        errors |= {f"{scorer}: {what}": number for what, number in found.errors.items()}
    if verifier is not None:
        found = scored(units, verifier, server)
        rewards = found.values
        errors |= {f"{verifier}: {what}": number for what, number in found.errors.items()}
    assert rewards is not None
    try:
        report = sample_report(rewards, scores, votes, ks)
    except ValueError as error:
        fail(str(error), 1)
    if as_json:
        print_json({"scorer": scorer, "verifier": verifier, **asdict(report), "errors": errors})
    else:
        print_samples(report, errors)
    if report.num_rewards_missing == report.num_samples:
        fail("no completion has a reward; " + "; ".join(errors), 1)
