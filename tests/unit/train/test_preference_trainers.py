"""Preference trainers: each learns to order held-out pairs, and costs what TRL says it costs."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from rewardsvc.policy_client.train.data import DataError
from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.data.tokenize import TokenizedPair
from rewardsvc.policy_client.train.models import load_policy
from rewardsvc.policy_client.train.offline import OfflineResult
from rewardsvc.policy_client.train.preference import (
    PREFERENCE_TRAINERS,
    DpoConfig,
    KtoConfig,
    PreferenceConfig,
    run_preference,
)
from rewardsvc.policy_client.train.preference.data import LabelledRow, PairRow
from rewardsvc.policy_client.train.preference.logps import CompletionLogps
from rewardsvc.policy_client.train.preference.losses import PAIR_ALGORITHMS
from rewardsvc.policy_client.train.preference.tasks import KtoTask, Models, PairTask

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
NUM_ROWS, NUM_HELD_OUT = 120, 40


def word(shuffler: random.Random, share_of_x: float) -> str:
    return "".join(
        "x" if shuffler.random() < share_of_x else shuffler.choice("ab")
        for _ in range(shuffler.randint(3, 8))
    )


def rows(kind: str) -> list[dict[str, Any]]:
    """A preference that a tiny model can learn: a larger share of the letter x is better."""
    shuffler = random.Random(0)
    made: list[dict[str, Any]] = []
    for number in range(NUM_ROWS):
        prompt = "?" if number % 2 else "??"
        good, bad = word(shuffler, 0.8), word(shuffler, 0.2)
        if kind == "kto":
            label = bool(shuffler.getrandbits(1))
            made.append({"prompt": prompt, "completion": good if label else bad, "label": label})
        elif kind == "rrhf":
            made.append(
                {
                    "prompt": prompt,
                    "completions": [bad, good, word(shuffler, 0.5)],
                    "scores": [0.0, 1.0, 0.5],
                }
            )
        elif kind == "spin":
            made.append({"prompt": prompt, "completion": good})
        else:
            made.append({"prompt": prompt, "chosen": good, "rejected": bad})
    return made


def config_of(name: str, folder: Path, **changes: Any) -> PreferenceConfig:
    character_tokenizer("abx?").save_pretrained(folder / "tokenizer")
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(name)))
    fields: dict[str, Any] = {
        "config": TINY,
        "tokenizer": str(folder / "tokenizer"),
        "train_data": str(data),
        "eval_size": NUM_HELD_OUT,
        "output_dir": folder / "run",
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 16,
        "max_steps": 25,
        "save_steps": 1000,
        "device": "cpu",
    }
    if name == "spin":
        fields["max_new_tokens"] = 8
    return PREFERENCE_TRAINERS[name].model_validate(fields | changes)


@pytest.mark.parametrize("name", sorted(PREFERENCE_TRAINERS))
def test_learns_to_order_held_out_pairs(name: str, tmp_path: Path) -> None:
    result = run_preference(name, config_of(name, tmp_path))
    before = result.eval_before["eval_rewards/accuracies"]
    after = result.eval_after["eval_rewards/accuracies"]
    assert after >= 0.85
    assert after > before
    if name != "kto":
        return
    assert result.eval_after["eval_rewards/desirable"] > 0.0
    assert result.eval_after["eval_rewards/undesirable"] < 0.0


def test_cdpo_and_margins_of_the_variants_train_too(tmp_path: Path) -> None:
    changes = {"label_smoothing": 0.1, "sft_coefficient": 0.1, "length_coefficient": 0.01}
    result = run_preference("dpo", config_of("dpo", tmp_path, **changes))
    assert result.eval_after["eval_rewards/accuracies"] >= 0.85


def models_and_pairs(folder: Path) -> tuple[Models, list[PairRow]]:
    torch.manual_seed(0)
    config = config_of("dpo", folder)
    policy, tokenizer = load_policy(config)
    reference, _ = load_policy(config)
    pairs = [
        PairRow(
            chosen=TokenizedPair(input_ids=[7, 7, 4, 6, 6, 2], num_prompt_tokens=2),
            rejected=TokenizedPair(input_ids=[7, 7, 5, 2], num_prompt_tokens=2),
        ),
        PairRow(
            chosen=TokenizedPair(input_ids=[7, 6, 2], num_prompt_tokens=1),
            rejected=TokenizedPair(input_ids=[7, 4, 5, 4, 5, 2], num_prompt_tokens=1),
        ),
    ]
    return Models(policy=policy, tokenizer=tokenizer, reference=reference), pairs


def plain_logp(model: PreTrainedModel, pair: TokenizedPair) -> torch.Tensor:
    ids = torch.tensor([pair.input_ids])
    logp_TV = model(input_ids=ids).logits[0].double().log_softmax(-1)
    steps = range(pair.num_prompt_tokens - 1, len(pair.input_ids) - 1)
    return torch.stack([logp_TV[t, pair.input_ids[t + 1]] for t in steps]).sum()


def test_completion_logps_equal_one_unpadded_pass_each(tmp_path: Path) -> None:
    models, pairs = models_and_pairs(tmp_path)
    flat = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    logps = CompletionLogps(models.policy, pad_token_id=0)
    want = [plain_logp(models.policy, pair).item() for pair in flat]
    assert logps(flat).tolist() == pytest.approx(want, abs=1e-5)
    assert logps.in_batches(flat, 3).tolist() == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "loss_type", "changes"),
    [
        ("dpo", "sigmoid", {"beta": 0.3}),
        ("ipo", "ipo", {"beta": 0.3, "compat": "trl"}),
        ("slic", "hinge", {"beta": 0.3, "use_reference": True, "sft_coefficient": 0.0}),
        ("sppo", "sppo_hard", {"beta": 0.3, "compat": "trl"}),
        ("spin", "sigmoid", {"beta": 0.3}),
    ],
)
def test_loss_and_gradient_equal_those_of_trl(
    name: str, loss_type: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer
    models, pairs = models_and_pairs(tmp_path)
    assert models.reference is not None
    assert isinstance(models.policy, torch.nn.Module)
    config = config_of(name, tmp_path, **changes)
    algorithm = PAIR_ALGORITHMS[name]
    task = PairTask(
        name,
        models,
        {"train": pairs, "eval": []},
        config,
        loss=algorithm.loss(config),
        reward=algorithm.reward(config),
    )
    sums = task.forward("train", [0, 1])
    (sums.loss / 2).backward()  # type: ignore[no-untyped-call]
    ours = {n: p.grad.clone() for n, p in models.policy.named_parameters() if p.grad is not None}
    models.policy.zero_grad()
    decode = models.tokenizer.decode
    table = Dataset.from_list(
        [
            {
                "prompt": decode(pair.chosen.input_ids[: pair.chosen.num_prompt_tokens]),
                "chosen": decode(pair.chosen.input_ids[pair.chosen.num_prompt_tokens : -1]),
                "rejected": decode(pair.rejected.input_ids[pair.rejected.num_prompt_tokens : -1]),
            }
            for pair in pairs
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = DPOTrainer(
            model=models.policy,
            ref_model=models.reference,
            args=DPOConfig(
                output_dir=str(tmp_path / "trl"),
                loss_type=[loss_type],
                beta=0.3,
                per_device_train_batch_size=2,
                report_to=[],
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                dataloader_pin_memory=False,
                disable_dropout=True,
            ),
            train_dataset=table,
            processing_class=models.tokenizer,
        )
        batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
        loss = trainer.compute_loss(models.policy, batch)
    loss.backward()
    assert sums.loss.item() / 2 == pytest.approx(loss.item(), rel=1e-5)
    for parameter_name, parameter in models.policy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                ours[parameter_name], parameter.grad, rtol=1e-3, atol=1e-6, msg=parameter_name
            )


def kto_task(folder: Path) -> KtoTask:
    models, pairs = models_and_pairs(folder)
    shifted = models.policy.get_input_embeddings().weight
    with torch.no_grad():
        shifted.add_(0.05 * torch.randn(shifted.shape, generator=torch.Generator().manual_seed(1)))
    found = [
        LabelledRow(completion=side, desirable=good)
        for pair in pairs
        for side, good in ((pair.chosen, True), (pair.rejected, False))
    ]
    config = config_of("kto", folder)
    assert isinstance(config, KtoConfig)
    return KtoTask(models, {"train": found, "eval": []}, config)


def test_loss_of_a_kto_batch_does_not_depend_on_how_it_is_cut(tmp_path: Path) -> None:
    task = kto_task(tmp_path)
    task.begin("train", [0, 1, 2, 3], 1)
    whole = task.forward("train", [0, 1, 2, 3])
    parts = [task.forward("train", cut) for cut in ([0], [1, 2], [3])]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-5)


def test_reference_point_of_kto_is_of_other_prompts(tmp_path: Path) -> None:
    task = kto_task(tmp_path)
    kl = task.begin("train", [0, 1, 2, 3], 1)["kl"]
    policy = task.model
    models, pairs = models_and_pairs(tmp_path)
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    partners = [2, 2, 0, 0]  # the next row, cyclically, with another prompt
    total = 0.0
    for row, partner in enumerate(partners):
        prompt = sides[row].input_ids[: sides[row].num_prompt_tokens]
        answer = sides[partner].input_ids[sides[partner].num_prompt_tokens :]
        pair = TokenizedPair(input_ids=prompt + answer, num_prompt_tokens=len(prompt))
        total += (plain_logp(policy, pair) - plain_logp(models.reference, pair)).item()  # type: ignore[arg-type]
    assert total > 0.0, "the test would see only the clamp"
    assert kl == pytest.approx(total / 4, abs=1e-5)


@pytest.mark.parametrize("name", ["dpo", "kto", "spin"])
def test_interrupted_and_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    def run(folder: str, **changes: Any) -> OfflineResult:
        settings = {"save_steps": 3, "output_dir": tmp_path / folder, "learning_rate": 1e-3}
        return run_preference(name, config_of(name, tmp_path, **settings, **changes))

    whole = run("whole", max_steps=6, lr_scheduler_type="constant")
    run("halves", max_steps=3, lr_scheduler_type="constant")
    resumed = run("halves", max_steps=6, lr_scheduler_type="constant", resume=True)
    want = load_file(whole.model_dir / "model.safetensors")
    found = load_file(resumed.model_dir / "model.safetensors")
    assert want.keys() == found.keys()
    assert all(torch.equal(want[key], found[key]) for key in want)


def test_orpo_likelihood_over_prompt_and_completion(tmp_path: Path) -> None:
    models, pairs = models_and_pairs(tmp_path)
    losses = []
    for compat in ("llamafactory", "trl"):
        config = config_of("orpo", tmp_path, compat=compat)
        algorithm = PAIR_ALGORITHMS["orpo"]
        task = PairTask(
            "orpo",
            models,
            {"train": pairs, "eval": []},
            config,
            loss=algorithm.loss(config),
            reward=algorithm.reward(config),
        )
        losses.append(task.forward("train", [0, 1]).loss.item())

    def mean_nll(pair: TokenizedPair) -> float:
        num = len(pair.input_ids) - pair.num_prompt_tokens
        return -plain_logp(models.policy, pair).item() / num

    whole = [TokenizedPair(input_ids=pair.chosen.input_ids, num_prompt_tokens=1) for pair in pairs]
    want = sum(map(mean_nll, whole)) - sum(mean_nll(pair.chosen) for pair in pairs)
    assert losses[1] - losses[0] == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("dpo", {"prompt": "?", "chosen": "x"}, "'rejected' is missing"),
        ("kto", {"prompt": "?", "completion": "x", "label": "good"}, "'label': true or false"),
        ("rrhf", {"prompt": "?", "completions": ["x", "a"], "scores": [1.0]}, "2 completions"),
        (
            "rrhf",
            {"prompt": "?", "completions": ["x", "a"], "scores": [1.0, None]},
            "a finite number is needed",
        ),
        (
            "sppo",
            {"prompt": "?", "chosen": "x", "rejected": "a", "chosen_win_rate": 1.5},
            "a probability",
        ),
    ],
)
def test_malformed_rows_are_named(
    name: str, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = config_of(name, tmp_path, eval_size=0)
    Path(config.train_data).write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        run_preference(name, config)


def test_kto_with_one_prompt_only_says_what_is_missing(tmp_path: Path) -> None:
    config = config_of("kto", tmp_path, eval_size=0)
    row = {"prompt": "?", "completion": "x", "label": True}
    Path(config.train_data).write_text((json.dumps(row) + "\n") * 2)
    with pytest.raises(DataError, match="the same prompt"):
        run_preference("kto", config)


def test_unknown_names_and_foreign_configurations_are_refused(tmp_path: Path) -> None:
    config = config_of("dpo", tmp_path)
    assert isinstance(config, DpoConfig)
    with pytest.raises(ValueError, match="unknown"):
        run_preference("dop", config)
    with pytest.raises(ValueError, match="configured by KtoConfig"):
        run_preference("kto", config)
