"""Rollouts: what is sampled, how likely it was, and when it ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_policies import plain_logprobs, tiny_policy

from rewardsvc.policy_client.train.online.decode import TransformersRollout
from rewardsvc.policy_client.train.online.rollout import FinishReason, concat_rollouts
from rewardsvc.policy_client.train.online.sampling import SamplingParams, draw_tokens, truncate

PAD, EOS = 0, 2
RAGGED = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [16], [17, 18, 19]]
EQUAL = [[5, 6, 7], [8, 9, 10], [11, 12, 13]]


def rollout_engine(model: Any, *, eos_ids: tuple[int, ...] = (EOS,)) -> TransformersRollout:
    return TransformersRollout(model, eos_ids=eos_ids, pad_id=PAD)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# mistral's window of 8 tokens is shorter than the longest prompt.
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("prompts", [RAGGED, EQUAL], ids=["ragged", "equal"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_logprobs_equal_a_plain_forward(
    family: str, prompts: list[list[int]], temperature: float
) -> None:
    model = tiny_policy(family)
    sampling = SamplingParams(max_new_tokens=12, temperature=temperature)
    engine = rollout_engine(model, eos_ids=tuple(range(20, 30)))
    rollout = engine.generate(prompts, 4, sampling, seeded())
    assert rollout.prompt_ids == tuple(tuple(p) for p in prompts for _ in range(4))
    completions = rollout.completion_lists()
    assert len({len(ids) for ids in completions}) > 1, "rows must end at different times"
    for row, ids in enumerate(completions):
        expected = plain_logprobs(model, rollout.prompt_ids[row], ids, temperature)
        found = rollout.logprobs[row, : len(ids)]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert (rollout.logprobs[row, len(ids) :] == 0).all()
    assert rollout.draw_logprobs.equal(rollout.logprobs)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_greedy_equals_transformers_generate(family: str) -> None:
    model = tiny_policy(family)
    sampling = SamplingParams(max_new_tokens=10, greedy=True)
    completions = rollout_engine(model).generate(RAGGED, 1, sampling).completion_lists()
    for prompt, ids in zip(RAGGED, completions, strict=True):
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )[0, len(prompt) :]
        assert ids == expected.tolist()


def test_dropping_ended_rows_changes_nothing_for_the_others() -> None:
    # Half of the vocabulary ends a completion, so the batch shrinks at almost every token.
    model = tiny_policy(seed=3)
    engine = rollout_engine(model, eos_ids=tuple(range(25)))
    prompts = [[token] for token in range(25, 50)]
    sampling = SamplingParams(max_new_tokens=15, greedy=True)
    together = engine.generate(prompts, 1, sampling).completion_lists()
    alone = [engine.generate([prompt], 1, sampling).completion_lists()[0] for prompt in prompts]
    assert together == alone
    assert len({len(ids) for ids in together}) > 3


def test_equal_seeds_give_equal_rollouts_and_others_do_not() -> None:
    engine = rollout_engine(tiny_policy())
    sampling = SamplingParams(max_new_tokens=8)
    first, second, other = (engine.generate(RAGGED, 2, sampling, seeded(s)) for s in (1, 1, 2))
    assert first.completion_ids.equal(second.completion_ids)
    assert first.logprobs.equal(second.logprobs)
    assert first.completion_lists() != other.completion_lists()


def test_completions_end_with_eos_or_at_the_limit() -> None:
    sampling = SamplingParams(max_new_tokens=6)
    engine = rollout_engine(tiny_policy(), eos_ids=(EOS, 20, 21, 22, 23, 24))
    rollout = engine.generate(RAGGED, 16, sampling, seeded())
    ends = {EOS, 20, 21, 22, 23, 24}
    assert {FinishReason.STOP, FinishReason.LENGTH} == set(rollout.finish)
    for ids, reason in zip(rollout.completion_lists(), rollout.finish, strict=True):
        assert not ends & set(ids[:-1])
        assert (ids[-1] in ends) == (reason is FinishReason.STOP)
        assert reason is FinishReason.STOP or len(ids) == 6
    assert (rollout.completion_ids[~rollout.completion_mask] == PAD).all()


def test_a_width_is_only_as_long_as_the_longest_completion() -> None:
    engine = rollout_engine(tiny_policy(), eos_ids=tuple(range(100)))
    rollout = engine.generate(EQUAL, 2, SamplingParams(max_new_tokens=50), seeded())
    assert rollout.completion_ids.shape == (6, 1)


@pytest.mark.parametrize(("prompts", "num"), [([], 1), ([[5], []], 1), ([[5]], 0)])
def test_nothing_to_complete_is_refused(prompts: list[list[int]], num: int) -> None:
    with pytest.raises(ValueError, match="prompt_ids|num_return"):
        rollout_engine(tiny_policy()).generate(prompts, num, SamplingParams(max_new_tokens=1))


def test_a_training_model_is_sampled_without_dropout_and_stays_in_training() -> None:
    model = tiny_policy(attention_dropout=0.9)
    sampling = SamplingParams(max_new_tokens=8)
    expected = rollout_engine(model).generate(EQUAL, 2, sampling, seeded())
    model.train()
    found = rollout_engine(model).generate(EQUAL, 2, sampling, seeded())
    assert model.training
    assert found.logprobs.equal(expected.logprobs)


def test_rollouts_of_different_widths_are_put_together_in_order() -> None:
    engine = rollout_engine(tiny_policy())
    parts = [
        engine.generate([[5, 6]], 2, SamplingParams(max_new_tokens=n), seeded()) for n in (2, 5)
    ]
    whole = concat_rollouts(parts, pad_id=PAD)
    assert whole.completion_lists() == [ids for part in parts for ids in part.completion_lists()]
    assert whole.prompt_ids == ((5, 6),) * 4
    with pytest.raises(ValueError, match="parts"):
        concat_rollouts([], pad_id=PAD)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 1}, [0]),
        ({"top_k": 2}, [0, 1]),
        ({"top_p": 0.49}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 1e-9}, [0]),
        ({"top_k": 3, "top_p": 0.8}, [0, 1]),
        ({"top_k": 100}, [0, 1, 2, 3]),
    ],
)
def test_truncation_keeps_the_likeliest_tokens(params: dict[str, Any], kept: list[int]) -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    shuffled = torch.tensor([2, 0, 3, 1])
    sampling = SamplingParams(max_new_tokens=1, **params)
    result = truncate(probs.log()[shuffled][None], sampling).exp()[0]
    expected = torch.zeros(4)
    expected[kept] = probs[kept] / probs[kept].sum()
    torch.testing.assert_close(result, expected[shuffled])


def test_truncated_sampling_records_both_distributions() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(500, 1)
    sampling = SamplingParams(max_new_tokens=1, top_k=2, temperature=0.5)
    tokens, logprobs, draw_logprobs = draw_tokens(logits, sampling, seeded())
    assert set(tokens.tolist()) == {0, 1}
    policy = (logits[0] / 0.5).log_softmax(-1)
    torch.testing.assert_close(logprobs, policy[tokens])
    inside = torch.logsumexp(policy[:2], 0)
    torch.testing.assert_close(draw_logprobs, policy[tokens] - inside)


def test_frequencies_are_those_of_the_policy() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0]]).repeat(20_000, 1)
    tokens, _, _ = draw_tokens(logits, SamplingParams(max_new_tokens=1), seeded())
    shares = torch.bincount(tokens, minlength=3) / 20_000
    torch.testing.assert_close(shares, logits[0].softmax(-1), rtol=0, atol=0.015)


@pytest.mark.parametrize(
    "params",
    [{"max_new_tokens": 0}, {"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}],
)
def test_sampling_refuses_what_makes_no_sense(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(params))):
        SamplingParams(**{"max_new_tokens": 1} | params)
