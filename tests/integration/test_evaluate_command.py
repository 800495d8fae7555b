"""`rewardsvc evaluate` against a scripted server: numbers, what is missing, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_reward_service import Script
from typer.testing import CliRunner

from rewardsvc.commands import app

# The scripted server's value of a numeric completion is its number, of another text its length,
# and with an answer whether it is the answer. "bad" has an error.
PAIRS = [
    {"prompt": "p", "chosen": "3", "rejected": "1", "subset": "hep-go"},
    {"prompt": "p", "chosen": "1", "rejected": "2", "subset": "hep-go"},
    {"prompt": "p", "chosen": "2", "rejected": "2", "subset": "math-prm"},
    {"prompt": "q", "chosen": "9", "rejected": "bad", "subset": "math-prm"},
    {"prompt": "q", "chosen": "9", "rejected": "1", "subset": "donotanswer"},
]
SAMPLES = [
    {"prompt": "1+1=", "answer": "2", "completions": ["2", "3", "2", "1"]},
    {"prompt": "2+1=", "answer": "3", "completions": ["4", "bad", "3", "4"]},
]


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(
        app, ["evaluate", *arguments], env={"COLUMNS": "120", "REWARDSVC_API_KEY": ""}
    )


def pairs(address: str, data: str, *more: str) -> Any:
    return run("pairs", "--scorer", "rm", "--address", address, "--data", data, *more)


def test_pairs_of_rewardbench_have_subsets_and_sections(address: str, tmp_path: Path) -> None:
    result = pairs(address, written(tmp_path, PAIRS), "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["subsets"]["hep-go"]["accuracy"] == 0.5
    assert report["subsets"]["hep-go"]["low"] < 0.5 < report["subsets"]["hep-go"]["high"]
    # The pair of which a side could not be scored is missing; the tie counts half.
    assert report["subsets"]["math-prm"] == {
        "accuracy": 0.5,
        "low": pytest.approx(0.0546, abs=1e-3),
        "high": pytest.approx(0.9454, abs=1e-3),
        "num_pairs": 1,
        "num_missing": 1,
        "mean_margin": 0.0,
    }
    assert report["overall"]["accuracy"] == pytest.approx(2.5 / 4)
    assert report["sections"] == {"Safety": 1.0, "Reasoning": 0.5}
    assert report["score"] == 0.75
    assert report["errors"] == {"sandbox_failure: scripted": 1}


def test_pairs_are_shown_as_a_table(address: str, tmp_path: Path) -> None:
    shown = pairs(address, written(tmp_path, PAIRS)).stdout
    assert next(line for line in shown.splitlines() if line.startswith("all ")).split()[:4] == [
        "all",
        "4",
        "1",
        "62.5%",
    ]
    assert "mean of 2 of 4" in shown
    assert "missing, 1: sandbox_failure: scripted" in shown


def test_subsets_of_other_data_have_no_sections(address: str, tmp_path: Path) -> None:
    rows = [{**row, "kind": f"k{number % 2}"} for number, row in enumerate(PAIRS)]
    table = pa.Table.from_pylist([{k: v for k, v in row.items() if k != "subset"} for row in rows])
    pq.write_table(table, tmp_path / "rows.parquet")
    data = str(tmp_path / "rows.parquet")
    report = json.loads(pairs(address, data, "--subset-column", "kind", "--json").stdout)
    assert list(report["subsets"]) == ["k0", "k1"]
    assert (report["sections"], report["score"]) == ({}, None)


def test_a_prompt_is_not_twice_in_a_call_and_the_scorer_is_not_told_the_subset(
    address: str, script: Script, tmp_path: Path
) -> None:
    assert pairs(address, written(tmp_path, PAIRS)).exit_code == 0
    for request in script.requests:
        prompts = [sample.prompt_text for sample in request.samples]
        assert prompts == sorted(prompts)
        assert all(prompts.count(prompt) == 2 for prompt in prompts)
        assert not any(sample.metadata_json for sample in request.samples)
    assert len(script.requests) == 4


def test_limit_reads_the_first_rows(address: str, tmp_path: Path) -> None:
    result = pairs(address, written(tmp_path, PAIRS), "--limit", "2", "--json")
    assert json.loads(result.stdout)["overall"]["num_pairs"] == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p", "chosen": "a"}], "line 1: column 'rejected' is missing"),
        ([{"prompt": "p"}], "line 1: column 'chosen'"),
        ([], "no rows"),
    ],
)
def test_malformed_pairs_are_named(
    rows: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    result = pairs("127.0.0.1:1", written(tmp_path, rows))
    assert result.exit_code == 2
    assert message in result.stderr


def test_nothing_scored_fails_with_the_reason(address: str, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "bad", "rejected": "bad"}]
    result = pairs(address, written(tmp_path, rows), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["overall"]["accuracy"] is None
    assert "'rm' scored no pair; sandbox_failure: scripted" in result.stderr


def test_a_refused_call_fails_and_gives_no_numbers(
    address: str, script: Script, tmp_path: Path
) -> None:
    script.statuses = [(grpc.StatusCode.NOT_FOUND, None)] * 9
    result = pairs(address, written(tmp_path, PAIRS), "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("rewardsvc: ")


def best_of_n(address: str, data: str, *more: str) -> Any:
    return run("best-of-n", "--address", address, "--data", data, *more)


def test_completions_are_verified_and_what_cannot_be_is_missing(
    address: str, tmp_path: Path
) -> None:
    rows = [
        {**row, "scores": scores, "answers": answers}
        for row, scores, answers in zip(
            SAMPLES,
            [[0.9, 0.5, 0.4, None], [0.1, 0.9, 0.8, 0.2]],
            [["2", "3", "2", "1"], ["4", None, "3", "4"]],
            strict=True,
        )
    ]
    result = best_of_n(address, written(tmp_path, rows), "--verifier", "right", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["num_samples"], report["num_rewards_missing"]) == (8, 1)
    assert report["num_scores_missing"] == 1
    assert list(report["pass_at_k"]) == ["1", "2", "4"]
    # Two of four, and one of three that could be judged.
    assert report["pass_at_k"]["1"]["value"] == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert report["pass_at_k"]["4"] == {
        "value": 1.0, "standard_error": None, "num_problems": 1, "num_skipped": 1
    }  # fmt: skip
    assert report["majority_vote"] == 0.5
    assert report["weighted_majority_vote"] == 1.0
    curve = report["best_of_n"]
    # Of three, 0.9 is right and has the best place; of the other three, 0.8 is.
    assert curve["ns"] == [1, 2, 4]
    assert curve["chosen"][1] == pytest.approx(2 / 3)
    assert curve["chosen"][2] is None
    assert report["calibration"]["num_missing"] == 2
    assert report["errors"] == {"right: sandbox_failure: scripted": 1}


def test_a_scorer_chooses_among_samples_with_known_rewards(address: str, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completions": ["1", "7", "bad"], "rewards": [0, 1, 1]}]
    data = written(tmp_path, rows)
    result = best_of_n(address, data, "--scorer", "rm", "--k", "2,1", "--json")
    report = json.loads(result.stdout)
    assert report["best_of_n"]["ns"] == [1, 2]
    assert report["best_of_n"]["chosen"] == [0.5, 1.0]
    assert (report["num_scores_missing"], report["calibration"]) == (1, None)
    shown = best_of_n(address, data, "--scorer", "rm").stdout
    assert "1 problems, 3 completions, 0 without a reward, 1 without a score" in shown
    assert "missing, 1: rm: sandbox_failure: scripted" in shown


def test_scores_between_0_and_1_are_compared_with_what_came_true(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completions": list("abcd"), "rewards": [1, 0, 1, 1],
         "scores": [0.95, 0.92, 0.12, None]}
    ]  # fmt: skip
    shown = best_of_n("127.0.0.1:1", written(tmp_path, rows)).stdout
    assert "scores as probabilities: calibration error 0.583" in shown
    bins = [line.split() for line in shown.splitlines() if line.startswith("0.")]
    assert bins == [
        ["0.1", "–", "0.2", "1", "12.0%", "100.0%"],
        ["0.9", "–", "1.0", "2", "93.5%", "50.0%"],
    ]


def test_votes_can_be_taken_from_the_completions(tmp_path: Path) -> None:
    completions = [r"\boxed{0.5}", r"so \boxed{ \frac{1}{2} }", r"\boxed{3}", "no idea"]
    rows = [{"prompt": "p", "completions": completions, "rewards": [1, 1, 0, 0]}]
    result = best_of_n("127.0.0.1:1", written(tmp_path, rows), "--extract", "math", "--json")
    report = json.loads(result.stdout)
    assert (report["majority_vote"], report["num_voted"]) == (1.0, 1)
    assert report["best_of_n"] is None
    assert report["num_scores_missing"] is None


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({}, (), "column 'completions': a list of at least one"),
        ({"completions": []}, (), "column 'completions': a list of at least one"),
        ({"completions": ["a", 1]}, (), "column 'completions', entry 1: text or"),
        ({"completions": ["a"]}, (), "nothing says which completions are right; name a scorer"),
        ({"completions": ["a"], "rewards": [1, 0]}, (), "column 'rewards': a list of 1"),
        ({"completions": ["a"], "rewards": ["x"]}, (), "column 'rewards': a finite number"),
        ({"completions": ["a"], "rewards": [1]}, ("--k", "2"), "--k: '2' is not a number from 1"),
        ({"completions": ["a"], "rewards": [1]}, ("--extract", "x"), "--extract: 'x' is unknown"),
    ],
)
def test_malformed_samples_and_options_are_named(
    row: dict[str, Any], options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    data = written(tmp_path, [{"prompt": "p", **row}])
    result = best_of_n("127.0.0.1:1", data, *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_no_reward_at_all_fails(address: str, tmp_path: Path) -> None:
    data = written(tmp_path, [{"prompt": "p", "completions": ["bad", "bad"]}])
    result = best_of_n(address, data, "--verifier", "right")
    assert result.exit_code == 1
    assert "no completion has a reward; right: sandbox_failure: scripted" in result.stderr
