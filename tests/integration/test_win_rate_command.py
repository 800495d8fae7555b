"""`rewardsvc evaluate win-rate` against a scripted server: who wins, what is missing or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_reward_service import Script
from typer.testing import CliRunner

from rewardsvc.commands import app
from rewardsvc.policy_client.evaluation import win_rate

# The scripted server's value of a numeric completion is its number; "bad" has an error.
OURS = [
    {"prompt": "a", "completion": "3", "subset": "x"},
    {"prompt": "b", "completion": "1", "subset": "x"},
    {"prompt": "c", "completion": "2", "subset": "y"},
    {"prompt": "d", "completion": "9", "subset": "y"},
]
THEIRS = [
    {"prompt": "d", "completion": "bad"},
    {"prompt": "c", "completion": "2.0"},
    {"prompt": "b", "completion": "10"},
    {"prompt": "a", "completion": "1"},
]


def written(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def run(folder: Path, ours: list[dict[str, Any]], theirs: list[dict[str, Any]], *more: str) -> Any:
    data, against = written(folder / "ours.jsonl", ours), written(folder / "theirs.jsonl", theirs)
    return CliRunner().invoke(
        app,
        ["evaluate", "win-rate", "--data", data, "--against", against, *more],
        env={"COLUMNS": "120", "REWARDSVC_API_KEY": ""},
    )


def judged(address: str) -> tuple[str, ...]:
    return ("--scorer", "judge", "--address", address)


def test_prompts_are_matched_and_what_cannot_be_scored_is_missing(
    address: str, tmp_path: Path
) -> None:
    result = run(tmp_path, OURS, THEIRS, *judged(address), "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    want = win_rate([3, 1, 2], [1, 10, 2])
    assert report["overall"] == {
        "value": 0.5, "low": want.low, "high": want.high,
        "wins": 1, "ties": 1, "losses": 1, "num_missing": 1,
    }  # fmt: skip
    assert report["subsets"]["x"]["value"] == 0.5
    assert (report["subsets"]["y"]["ties"], report["subsets"]["y"]["num_missing"]) == (1, 1)
    assert report["errors"] == {"sandbox_failure: scripted": 1}
    assert report["num_prompts"] == 4
    assert report["mean_lengths"] == [1.0, 9 / 4]


def test_the_table_has_the_counts_and_both_rates(address: str, tmp_path: Path) -> None:
    shown = run(tmp_path, OURS, THEIRS, *judged(address)).stdout
    last = next(line for line in shown.splitlines() if line.startswith("all "))
    assert last.split()[:6] == ["all", "1", "1", "1", "1", "50.0%"]
    assert "at equal lengths: " in shown
    assert "1 characters against 2 in the mean" in shown
    assert "missing, 1: sandbox_failure: scripted" in shown


def test_a_call_has_exactly_two_completions_of_a_prompt_and_no_verdict_of_the_file(
    address: str, script: Script, tmp_path: Path
) -> None:
    ours = [{"prompt": p, "completions": ["1", "2", "3"], "scores": [0, 0, 0]} for p in "ab"]
    theirs = [{"prompt": p, "completion": "2", "score": 5.0} for p in "ba"]
    report = json.loads(run(tmp_path, ours, theirs, *judged(address), "--json").stdout)
    assert (report["overall"]["wins"], report["overall"]["ties"]) == (2, 2)
    for request in script.requests:
        prompts = [sample.prompt_text for sample in request.samples]
        assert all(prompts.count(prompt) == 2 for prompt in prompts)
        assert not any(sample.metadata_json for sample in request.samples)
    assert sum(len(request.samples) for request in script.requests) == 12


def test_several_comparisons_of_a_prompt_have_an_interval_over_prompts(tmp_path: Path) -> None:
    ours = [{"prompt": p, "completions": ["x"] * 8, "scores": [float(p < "c")] * 8} for p in "abcd"]
    theirs = [{"prompt": p, "completion": "y", "score": 0.5} for p in "abcd"]
    report = json.loads(run(tmp_path, ours, theirs, "--json").stdout)
    assert (report["overall"]["value"], report["num_prompts"]) == (0.5, 4)
    # 32 comparisons that are worth 4: the bootstrap reaches both ends.
    assert (report["overall"]["low"], report["overall"]["high"]) == (0.0, 1.0)


def test_scores_of_the_files_need_no_server_and_confidence_widens(tmp_path: Path) -> None:
    ours = [{"prompt": str(n), "completion": "x", "score": float(n % 3)} for n in range(12)]
    theirs = [{"prompt": str(n), "completion": "y", "score": None if n == 0 else 1.0}
              for n in range(12)]  # fmt: skip
    reports = [
        json.loads(run(tmp_path, ours, theirs, "--json", "--confidence", share).stdout)
        for share in ("0.5", "0.99")
    ]
    some, most = (report["overall"] for report in reports)
    assert (some["wins"], some["ties"], some["losses"], some["num_missing"]) == (4, 4, 3, 1)
    assert most["low"] < some["low"] < some["value"] < some["high"] < most["high"]
    assert reports[0]["subsets"] == {}


def test_an_answer_that_wins_by_length_alone_does_not_win_at_equal_lengths(
    address: str, tmp_path: Path
) -> None:
    # Words are worth their length to the scripted server.
    ours = [{"prompt": str(n), "completion": "word" * (1 + n % 7)} for n in range(80)]
    theirs = [{"prompt": str(n), "completion": "word" * (1 + n % 4)} for n in range(80)]
    report = json.loads(run(tmp_path, ours, theirs, *judged(address), "--json").stdout)
    assert report["overall"]["value"] > 0.6
    assert report["length_controlled"]["value"] < report["overall"]["value"] - 0.05
    assert report["length_controlled"]["length_effect"] > 2.0


def test_limit_takes_the_first_of_ours_and_the_same_prompts_of_theirs(
    address: str, tmp_path: Path
) -> None:
    result = run(tmp_path, OURS, THEIRS, *judged(address), "--json", "--limit", "1")
    assert json.loads(result.stdout)["overall"]["wins"] == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([{"prompt": "a"}], [{"prompt": "a", "completion": "x"}], "column 'completions'"),
        (
            [{"prompt": "a", "completion": "x"}, {"prompt": "b", "completion": "x"}],
            [{"prompt": "a", "completion": "x"}],
            "line 2: ",
        ),
        (
            [{"prompt": "a", "completion": "x"}],
            [{"prompt": "a", "completion": "x"}, {"prompt": "b", "completion": "x"}],
            "both need the same prompts",
        ),
        (
            [{"prompt": "a", "completions": ["x", "y", "z"]}],
            [{"prompt": "a", "completions": ["x", "y"]}],
            "3 completions of this prompt against 2",
        ),
        (
            [{"prompt": "a", "completion": "x", "completions": ["x"]}],
            [{"prompt": "a", "completion": "x"}],
            "'completion' and 'completions'; give one",
        ),
        (
            [{"prompt": "a", "completion": "x", "score": "high"}],
            [{"prompt": "a", "completion": "x"}],
            "column 'score': a finite number",
        ),
        (
            [{"prompt": "a", "completion": "x"}],
            [{"prompt": "a", "completion": "x"}],
            "nothing says which completions are better; name a scorer",
        ),
    ],
)
def test_what_cannot_be_compared_is_named(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    result = run(tmp_path, ours, theirs)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_confidence_that_is_none_is_named(tmp_path: Path) -> None:
    result = run(tmp_path, OURS, THEIRS, "--confidence", "95")
    assert result.exit_code == 2
    assert "--confidence: 95.0 is not between 0 and 1" in result.stderr


def test_nothing_scored_fails_with_the_reason(address: str, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "bad"}]
    result = run(tmp_path, rows, rows, *judged(address), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["overall"]["value"] is None
    assert "nothing could be compared; sandbox_failure: scripted" in result.stderr
