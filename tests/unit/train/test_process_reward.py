"""Process reward models: learned from step labels, hosted by the service, labelled by rollouts."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_models import StartScorer
from transformers import AutoModelForTokenClassification, AutoTokenizer

from rewardsvc.policy_client.train.data import DataError, Example, Examples
from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.data.tokenize import tokenize_prompt
from rewardsvc.policy_client.train.online.rewards import RewardRequest, Rewards
from rewardsvc.policy_client.train.online.rollout import FinishReason, Rollout
from rewardsvc.policy_client.train.online.sampling import SamplingParams
from rewardsvc.policy_client.train.process_reward import PrmTrainConfig, run_prm, step_rows
from rewardsvc.policy_client.train.step_labels import LabelSettings, Solution, StepLabeller
from rewardsvc.scoring.types import Sample

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, Any]:
    """Steps that a tiny model can judge: one with an x in it is wrong."""
    character_tokenizer("abx?\n").save_pretrained(tmp_path / "tokenizer")
    shuffler = random.Random(0)
    rows = []
    for _ in range(120):
        steps = ["".join(shuffler.choices("aabbx", k=3)) for _ in range(shuffler.randint(1, 4))]
        rows.append(
            {"prompt": "?", "completions": steps, "labels": ["x" not in step for step in steps]}
        )
    data = tmp_path / "steps.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "config": TINY,
        "tokenizer": str(tmp_path / "tokenizer"),
        "train_data": str(data),
        "eval_size": 30,
        "output_dir": tmp_path / "run",
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 16,
        "max_steps": 60,
        "save_steps": 1000,
        "device": "cpu",
    }


async def test_learns_to_judge_held_out_steps_and_is_hosted_as_it_learned(
    fields: dict[str, Any], start_scorer: StartScorer
) -> None:
    result = run_prm(PrmTrainConfig(**fields))
    assert result.eval_after["eval_accuracy"] >= 0.9
    assert result.eval_after["eval_accuracy"] > result.eval_before["eval_accuracy"]
    scorer = await start_scorer(
        "prm", model=result.model_dir, step_token="\n", step_separator="\n", assembly="tokens"
    )
    steps = ["aab", "axb", "bba"]
    [score] = await scorer.score([Sample(prompt="?", completion="\n".join(steps))])
    model = AutoModelForTokenClassification.from_pretrained(result.model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.model_dir)
    row = step_rows(
        Examples(
            [Example(prompt="?", metadata={"completions": steps, "labels": [1, 0, 1]})],
            source="rows",
        ),
        tokenizer,
        PrmTrainConfig(**fields),
    )[0]
    with torch.no_grad():
        logits_T2 = model(input_ids=torch.tensor([row.input_ids])).logits[0]
    want = logits_T2[list(row.positions)].softmax(-1)[:, 1].tolist()
    assert score.steps == pytest.approx(want, abs=1e-5)


def test_layout_of_a_row(fields: dict[str, Any]) -> None:
    tokenizer = character_tokenizer("abx?\n")
    config = PrmTrainConfig(**fields)
    newline, bos = tokenizer.convert_tokens_to_ids("\n"), tokenizer.bos_token_id
    example = Example(
        prompt="?", metadata={"completions": ["ab", "x"], "labels": [0.75, None]}, where="row 1"
    )
    [row] = step_rows(Examples([example], source="rows"), tokenizer, config)
    assert row.input_ids == (
        bos,
        *tokenizer.encode("?ab"),
        newline,
        *tokenizer.encode("x"),
        newline,
    )
    assert row.positions == (4,)
    assert row.labels == (0.75,)
    last = config.model_copy(update={"last_step_only": True})
    with pytest.raises(DataError, match="no labelled step"):
        step_rows(Examples([example], source="rows"), tokenizer, last)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"completions": "ab", "labels": [1]}, "'completions': a list of steps"),
        ({"completions": ["ab"], "labels": [1, 0]}, "'labels': one for each of the 1 steps"),
        ({"completions": ["ab"], "labels": [1.5]}, "a probability is needed, got 1.5"),
        ({"completions": ["ab"], "labels": [math.nan]}, "a probability is needed, got nan"),
    ],
)
def test_malformed_rows_are_named(
    columns: dict[str, Any], message: str, fields: dict[str, Any]
) -> None:
    example = Example(prompt="?", metadata=columns, where="row 1")
    with pytest.raises(DataError, match=message):
        step_rows(
            Examples([example], source="rows"),
            character_tokenizer("abx?\n"),
            PrmTrainConfig(**fields),
        )


class ScriptedEngine:
    """Ends with "a" as often as the prefix has letters a, otherwise with "b"; aborts on demand."""

    def __init__(self, tokenizer: Any, *, aborts: int = 0) -> None:
        self.tokenizer = tokenizer
        self.aborts = aborts
        self.prompts: list[str] = []

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        num_return: int,
        sampling: SamplingParams,
        generator: torch.Generator | None = None,
    ) -> Rollout:
        texts, finish = [], []
        for ids in prompt_ids:
            text = self.tokenizer.decode(list(ids))
            self.prompts.append(text)
            good = text.count("a")
            texts += ["a" if number < good else "b" for number in range(num_return)]
            finish += [
                FinishReason.ABORT if number < self.aborts else FinishReason.STOP
                for number in range(num_return)
            ]
        ids_N1 = torch.tensor([self.tokenizer.encode(text) for text in texts])
        zeros_N1 = torch.zeros(ids_N1.shape)
        return Rollout(
            prompt_ids=tuple(tuple(ids) for ids in prompt_ids for _ in range(num_return)),
            completion_ids=ids_N1,
            completion_mask=torch.ones_like(ids_N1, dtype=torch.bool),
            logprobs=zeros_N1,
            draw_logprobs=zeros_N1,
            finish=tuple(finish),
        )


class EndsWell:
    """1 for a text that ends with a; no reward for one that contains x."""

    def score(self, request: RewardRequest) -> Rewards:
        values = [
            math.nan if "x" in text else float(text.rstrip("\n").endswith("a"))
            for text in request.completions
        ]
        return Rewards(values=np.array(values, np.float32))


@pytest.mark.parametrize(
    ("mode", "want"),
    [("soft", [[0.25, 0.75, 0.0], [None, None], [1.0]]), ("hard", [[1, 1, 0], [None, None], [1]])],
)
def test_step_labels_are_shares_of_rollouts_that_end_right(
    mode: Any, want: list[list[float | None]]
) -> None:
    tokenizer = character_tokenizer("abx?\n")
    engine = ScriptedEngine(tokenizer)
    settings = LabelSettings(num_rollouts=4, mode=mode, batch_size=2)
    labeller = StepLabeller(
        engine, tokenizer, EndsWell(), SamplingParams(max_new_tokens=1), settings=settings
    )
    example = Example(prompt="?")
    solutions = [
        Solution(example=example, steps=("a", "aa", "b")),
        Solution(example=example, steps=("x", "a")),
        Solution(example=example, steps=("ba",)),
    ]
    assert labeller.label(solutions) == want
    assert engine.prompts == ["?a\n", "?a\naa\n", "?x\n"]
    assert tokenize_prompt(tokenizer, "?") == tokenizer.encode("?")


def test_aborted_rollouts_do_not_count(fields: dict[str, Any]) -> None:
    tokenizer = character_tokenizer("abx?\n")
    settings = LabelSettings(num_rollouts=4)
    labels = [
        StepLabeller(
            ScriptedEngine(tokenizer, aborts=aborts),
            tokenizer,
            EndsWell(),
            SamplingParams(max_new_tokens=1),
            settings=settings,
        ).label([Solution(example=Example(prompt="?"), steps=("aa", "b"))])
        for aborts in (0, 1, 4)
    ]
    assert [row[0][0] for row in labels] == [0.5, pytest.approx(1 / 3), None]


def test_solution_without_steps_is_named() -> None:
    tokenizer = character_tokenizer("ab?\n")
    labeller = StepLabeller(
        ScriptedEngine(tokenizer), tokenizer, EndsWell(), SamplingParams(max_new_tokens=1)
    )
    with pytest.raises(ValueError, match=r"solutions\[0\] has no steps"):
        labeller.label([Solution(example=Example(prompt="?"), steps=())])
