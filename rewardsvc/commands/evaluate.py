"""`rewardsvc evaluate`: how good a reward model is on pairs, and at choosing among completions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewardsvc.cli import fail
from rewardsvc.errors import ConfigError

if TYPE_CHECKING:
    from rewardsvc.commands.evaluate_scoring import Scored, Unit
    from rewardsvc.policy_client.evaluation import PairReport
    from rewardsvc.policy_client.train.data import Examples

Data = Annotated[
    str, typer.Option(help="JSONL, JSON or Parquet file, a folder, or a data set's id on the hub.")
]
Address = Annotated[str, typer.Option(help="HOST:PORT of the server.")]
Split = Annotated[str, typer.Option(help="Which part of a folder or hub data set.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Read only so many rows.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds that a call may take.")]
ApiKey = Annotated[str | None, typer.Option(envvar="REWARDSVC_API_KEY", help="The server's key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; what is not known is null.")]

LOCAL = "localhost:50051"
TIMEOUT_S = 300.0


def add_evaluate_commands(app: typer.Typer) -> None:
    """Adds `evaluate` and what it can evaluate to the command line."""
    evaluate = typer.Typer(
        name="evaluate", help="Measure a reward model, or what choosing by it is worth.",
        no_args_is_help=True,
    )  # fmt: skip
    evaluate.command("pairs")(pairs)
    evaluate.command("best-of-n")(best_of_n)
    app.add_typer(evaluate)


def pairs(
    scorer: Annotated[str, typer.Option(help="The scorer to measure.")],
    data: Data,
    address: Address = LOCAL,
    split: Split = "train",
    limit: Limit = None,
    subset_column: Annotated[str, typer.Option(help="The column with the subset.")] = "subset",
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

    examples = _read(data, split, limit, ("chosen", "rejected"))
    units = [
        Unit(example=row, completions=(row.chosen, row.rejected), left_out=(subset_column,))
        for row in examples
    ]
    scored = _scored(units, scorer, (address, api_key, timeout))
    chosen = [values[0] for values in scored.values]
    rejected = [values[1] for values in scored.values]
    subsets = None
    if any(subset_column in row.metadata for row in examples):
        subsets = [str(row.metadata.get(subset_column, "(none)")) for row in examples]
    known = {name for names in REWARDBENCH_SECTIONS.values() for name in names}
    report: PairReport
    if subsets is not None and known.issuperset(subsets):
        report = rewardbench_report(chosen, rejected, subsets)
    else:
        report = pair_report(chosen, rejected, subsets)
    if as_json:
        _print_json({"scorer": scorer, **asdict(report), "errors": scored.errors})
    else:
        print_pairs(report, scored.errors, num_sections=len(REWARDBENCH_SECTIONS))
    if not report.overall.num_pairs:
        fail(f"--scorer: {scorer!r} scored no pair; {scored.first_error}", 1)


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

    examples = _read(data, split, limit, ())
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
        found = _scored(units, scorer, server)
        scores = found.values
        errors |= {f"{scorer}: {what}": number for what, number in found.errors.items()}
    if verifier is not None:
        found = _scored(units, verifier, server)
        rewards = found.values
        errors |= {f"{verifier}: {what}": number for what, number in found.errors.items()}
    assert rewards is not None
    try:
        report = sample_report(rewards, scores, votes, ks)
    except ValueError as error:
        fail(str(error), 1)
    if as_json:
        _print_json({"scorer": scorer, "verifier": verifier, **asdict(report), "errors": errors})
    else:
        print_samples(report, errors)
    if report.num_rewards_missing == report.num_samples:
        fail("no completion has a reward; " + "; ".join(errors), 1)


def _read(data: str, split: str, limit: int | None, columns: Sequence[str]) -> Examples:
    from rewardsvc.policy_client.train.data import load_examples

    try:
        return load_examples(data, split=split, limit=limit).require(*columns)
    except (ConfigError, OSError) as error:
        fail(f"--data: {error}")


def _scored(units: Sequence[Unit], scorer: str, server: tuple[str, str | None, float]) -> Scored:
    from rewardsvc.commands.evaluate_scoring import score_units
    from rewardsvc.policy_client import RewardClient, RewardClientError

    address, api_key, timeout_s = server
    try:
        with RewardClient(address, api_key=api_key, timeout_s=timeout_s) as client:
            return score_units(client, scorer, units)
    except (RewardClientError, ValueError, TypeError) as error:
        fail(str(error), 1)


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(_without_nan(document), ensure_ascii=False, indent=2))


def _without_nan(value: Any) -> Any:
    """The same with None for NaN, which is not JSON."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
