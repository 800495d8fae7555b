"""`rewardsvc evaluate win-rate`: how often one policy's completions beat another's."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated

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
from rewardsvc.errors import ConfigError


def win_rate(
    data: Data,
    against: Annotated[str, typer.Option(help="The other policy's completions, as --data.")],
    scorer: Annotated[
        str | None,
        typer.Option(help="The scorer that judges; without it, the columns `score` or `scores`."),
    ] = None,
    address: Address = LOCAL,
    split: Split = "train",
    limit: Limit = None,
    subset_column: SubsetColumn = SUBSET,
    confidence: Annotated[float, typer.Option(help="Of the intervals, between 0 and 1.")] = 0.95,
    timeout: Timeout = TIMEOUT_S,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """How often the completions of one policy beat those of another, on the same prompts.

    Rows have `prompt` and `completion`, or `completions`; prompts may be in any order. The higher
    score wins, a tie is half a win. The two of a comparison are scored in one call, so a `pairwise`
    scorer compares exactly these two, in both orders. A comparison of which a side could not be
    scored is missing, not lost.
    """
    from rewardsvc.commands.evaluate_comparisons import OWN_COLUMNS, comparisons, report_of
    from rewardsvc.commands.evaluate_scoring import Unit
    from rewardsvc.commands.evaluate_tables import print_wins

    if not 0.0 < confidence < 1.0:
        fail(f"--confidence: {confidence} is not between 0 and 1")
    ours = read_examples(data, split, limit)
    theirs = read_examples(against, split, None, option="--against")
    try:
        compared = comparisons(ours, theirs, with_scores=scorer is None, part=limit is not None)
    except ConfigError as error:
        fail(str(error))
    errors: dict[str, int] = {}
    if scorer is None:
        scores = [one.scores for one in compared]
        if all(math.isnan(value) for pair in scores for value in pair):
            fail(
                f"{data}: nothing says which completions are better; name a scorer with --scorer, "
                "or add the column `score` to both"
            )
    else:
        units = [
            Unit(
                example=one.example,
                completions=(one.ours, one.theirs),
                left_out=(subset_column, *OWN_COLUMNS),
            )
            for one in compared
        ]
        found = scored(units, scorer, (address, api_key, timeout))
        scores = [(values[0], values[1]) for values in found.values]
        errors = found.errors
    subsets = None
    if any(subset_column in row.metadata for row in ours):
        subsets = [str(one.example.metadata.get(subset_column, NO_SUBSET)) for one in compared]
    report = report_of(compared, scores, subsets, confidence)
    if as_json:
        print_json({"scorer": scorer, "confidence": confidence, **asdict(report), "errors": errors})
    else:
        print_wins(report, errors, confidence=confidence)
    if math.isnan(report.overall.value):
        reason = next(iter(errors), "no comparison has both scores")
        fail(f"nothing could be compared; {reason}", 1)
