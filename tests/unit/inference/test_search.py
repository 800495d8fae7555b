"""Best-of-n and beam search: what is kept, what is dropped, when a search ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_policies import EOS, PAD, plain_logprobs, tiny_policy

from rewardsvc.policy_client.inference import (
    BeamResult,
    BeamSearch,
    BeamSettings,
    BestOfN,
    BestOfNResult,
    BestOfNSettings,
    Candidate,
    ScoreBy,
    SearchEnd,
    step_end_ids,
    weighted_best,
)
from rewardsvc.policy_client.train.data import Example
from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.online.decode import TransformersRollout
from rewardsvc.policy_client.train.online.rewards import CallableReward, RewardRequest, Rewards
from rewardsvc.policy_client.train.online.rollout import FinishReason, Rollout
from rewardsvc.policy_client.train.online.sampling import SamplingParams

TOKENIZER = character_tokenizer("abcdefgx?|0123456789")
SAMPLING = SamplingParams(max_new_tokens=8)
QUESTION = Example(prompt="?")
NAN = math.nan


class ScriptedEngine:
    """Continues a text as the script says; "." is the end, "!" an abort, "|" ends a step.

    Attributes:
        seen: (texts, completions of each) of every call.
    """

    def __init__(self, script: dict[str, list[str]]) -> None:
        self.script = script
        self.seen: list[tuple[list[str], int]] = []

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        num_return: int,
        sampling: SamplingParams,
        generator: torch.Generator | None = None,
    ) -> Rollout:
        prompts = [TOKENIZER.decode(list(ids)) for ids in prompt_ids]
        self.seen.append((prompts, num_return))
        rows, finish = [], []
        for prompt in prompts:
            options = self.script[prompt]
            for number in range(num_return):
                text = options[number % len(options)]
                rows.append(TOKENIZER.encode(text.rstrip(".!")) + [EOS] * text.endswith("."))
                stopped = text.endswith((".", "|"))
                finish.append(
                    FinishReason.ABORT
                    if text.endswith("!")
                    else FinishReason.STOP if stopped else FinishReason.LENGTH
                )  # fmt: skip
        width = max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
        mask = torch.tensor([[t < len(row) for t in range(width)] for row in rows])
        zeros = torch.zeros(ids.shape)
        return Rollout(
            prompt_ids=tuple(tuple(p) for p in prompt_ids for _ in range(num_return)),
            completion_ids=ids,
            completion_mask=mask,
            logprobs=zeros,
            draw_logprobs=zeros,
            finish=tuple(finish),
        )


class ScriptedReward:
    """Scores by text; a text that is not listed has no reward.

    Attributes:
        seen: The texts of every request.
    """

    def __init__(self, scores: dict[str, float], *, with_steps: bool = True) -> None:
        self.scores = scores
        self.with_steps = with_steps
        self.seen: list[list[str]] = []

    def score(self, request: RewardRequest) -> Rewards:
        self.seen.append(list(request.completions))
        values = [self.scores.get(text, NAN) for text in request.completions]
        steps = None
        if self.with_steps:
            # All but the last step would turn every order around, were they looked at.
            steps = [None if math.isnan(value) else [1.0 - value, value] for value in values]
        # Nor is the value what decides, where steps are asked for.
        return Rewards(values=np.array([-value for value in values], np.float32), steps=steps)


def beam_search(
    script: dict[str, list[str]], scores: dict[str, float], **settings: Any
) -> tuple[BeamResult, ScriptedEngine, ScriptedReward]:
    engine, reward = ScriptedEngine(script), ScriptedReward(scores)
    search = BeamSearch(
        engine, TOKENIZER, reward, SAMPLING, eos_ids=[EOS], settings=BeamSettings(**settings)
    )
    [result] = search.run([QUESTION])
    return result, engine, reward


def texts(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.text for candidate in candidates]


def test_beam_search_goes_on_with_the_best_steps_and_beats_greedy_choice_of_one() -> None:
    script = {
        "?": ["a|", "b|", "c|", "d|"],
        "?a|": ["e.", "f."],
        "?b|": ["e.", "g."],
    }
    scores = {"a|": 0.9, "b|": 0.8, "c|": 0.2, "d|": 0.1}
    scores |= {"a|e": 0.3, "a|f": 0.4, "b|e": 0.95, "b|g": 0.35}
    result, engine, _ = beam_search(script, scores, num_beams=2, num_expansions=2)
    assert engine.seen == [(["?"], 4), (["?a|", "?b|"], 2)]
    assert texts(result.finished) == ["b|e", "a|f", "b|g", "a|e"]
    assert result.best is not None
    assert (result.best.text, result.best.finished) == ("b|e", True)
    assert result.best.score == pytest.approx(0.95)
    assert result.best.completion_ids == (*TOKENIZER.encode("b|e"), EOS)
    assert (result.end, result.num_steps, result.num_missing) == (SearchEnd.FINISHED, 2, 0)
    alone, _, _ = beam_search(
        {"?": ["a|", "b|"], "?a|": ["e.", "f."]}, scores, num_beams=1, num_expansions=2
    )
    assert texts(alone.finished) == ["a|f", "a|e"]


def test_a_finished_beam_keeps_its_place_and_is_not_extended() -> None:
    script = {"?": ["a.", "b|", "c|"], "?b|": ["c|", "d|"], "?b|c|": ["e."], "?b|d|": ["e."]}
    scores = {"a": 0.7, "b|": 0.6, "c|": 0.1, "b|c|": 0.8, "b|d|": 0.2, "b|c|e": 0.65}
    result, engine, _ = beam_search(script, scores, num_beams=2, num_expansions=2)
    # b|d| would have had a place if the finished one did not hold it.
    assert engine.seen == [(["?"], 4), (["?b|"], 2), (["?b|c|"], 2)]
    assert texts(result.finished) == ["a", "b|c|e"]


def test_a_finished_beam_that_loses_its_place_is_still_in_the_result() -> None:
    script = {"?": ["a.", "b|"], "?b|": ["c.", "d."]}
    scores = {"a": 0.5, "b|": 0.6, "b|c": 0.9, "b|d": 0.8}
    result, _, _ = beam_search(script, scores, num_beams=2, num_expansions=2)
    assert texts(result.finished) == ["b|c", "b|d", "a"]


def test_identical_candidates_are_scored_and_kept_once() -> None:
    script = {"?": ["a|", "a|", "a|", "b|"], "?a|": ["c."], "?b|": ["c."]}
    scores = {"a|": 0.9, "b|": 0.1, "a|c": 0.5, "b|c": 0.4}
    result, engine, reward = beam_search(script, scores, num_beams=2, num_expansions=2)
    assert reward.seen == [["a|", "b|"], ["a|c", "b|c"]]
    assert engine.seen[1] == (["?a|", "?b|"], 2)
    assert texts(result.finished) == ["a|c", "b|c"]


def test_a_candidate_without_a_reward_is_dropped_and_is_not_a_bad_one() -> None:
    script = {"?": ["a|", "b|", "x|", "x|!"], "?a|": ["x.", "d."], "?b|": ["x."]}
    scores = {"a|": -5.0, "b|": -6.0, "a|d": -9.0}
    result, _, _ = beam_search(script, scores, num_beams=2, num_expansions=2)
    assert texts(result.finished) == ["a|d"]
    # x| and the aborted one; then x. behind a| and, twice the same, behind b|.
    assert result.num_missing == 4


def test_nothing_with_a_reward_is_told_and_no_completion_is_made_up() -> None:
    result, _, _ = beam_search({"?": ["x|"]}, {}, num_beams=2, num_expansions=2)
    assert result.best is None
    assert (result.end, result.num_missing) == (SearchEnd.NO_REWARD, 1)
    aborted, _, reward = beam_search({"?": ["x!"]}, {}, num_beams=1, num_expansions=3)
    assert (aborted.best, aborted.num_missing, reward.seen) == (None, 3, [])


def test_where_no_next_step_has_a_reward_the_last_good_start_is_left() -> None:
    result, _, _ = beam_search({"?": ["a|"], "?a|": ["x|"]}, {"a|": 0.5}, num_beams=1)
    assert result.end is SearchEnd.NO_REWARD
    assert (texts(result.unfinished), result.finished) == (["a|"], ())
    assert result.best is not None
    assert not result.best.finished


def test_search_is_bounded_by_max_steps() -> None:
    script = {"?": ["a|"], "?a|": ["a|"], "?a|a|": ["a|"]}
    scores = {"a|": 0.1, "a|a|": 0.2, "a|a|a|": 0.3}
    result, engine, _ = beam_search(script, scores, num_beams=1, num_expansions=2, max_steps=3)
    assert len(engine.seen) == result.num_steps == 3
    assert result.end is SearchEnd.MAX_STEPS
    assert texts(result.unfinished) == ["a|a|a|"]


def test_a_step_cut_at_the_limit_goes_on_where_it_was_cut() -> None:
    result, engine, _ = beam_search(
        {"?": ["ab"], "?ab": ["c."]}, {"ab": 0.5, "abc": 0.5}, num_beams=1
    )
    assert [seen[0] for seen in engine.seen] == [["?"], ["?ab"]]
    assert texts(result.finished) == ["abc"]


def test_examples_are_searched_side_by_side_each_for_itself() -> None:
    script = {"?": ["a|", "b|"], "0": ["c.", "d."], "?a|": ["e."], "?b|": ["e."]}
    scores = {"a|": 0.2, "b|": 0.1, "c": 0.8, "d": 0.9, "a|e": 0.3, "b|e": 0.3}
    engine, reward = ScriptedEngine(script), ScriptedReward(scores)
    search = BeamSearch(
        engine,
        TOKENIZER,
        reward,
        SAMPLING,
        eos_ids=[EOS],
        settings=BeamSettings(num_beams=2, num_expansions=1, batch_size=1),
    )
    first, second = search.run([QUESTION, Example(prompt="0")])
    assert texts(first.finished) == ["a|e", "b|e"]  # equal scores: the earlier is first
    assert texts(second.finished) == ["d", "c"]
    assert (first.num_steps, second.num_steps) == (2, 1)
    assert [seen[0] for seen in engine.seen] == [["?"], ["0"], ["?a|"], ["?b|"]]
    assert len(reward.seen) == 2, "one request a step"


def test_the_value_decides_where_it_is_asked_for() -> None:
    engine, reward = ScriptedEngine({"?": ["a.", "b."]}), ScriptedReward({"a": 0.1, "b": 0.9})
    settings = BeamSettings(num_beams=1, num_expansions=2, score_by=ScoreBy.VALUE)
    search = BeamSearch(engine, TOKENIZER, reward, SAMPLING, eos_ids=[EOS], settings=settings)
    [result] = search.run([QUESTION])
    assert texts(result.finished) == ["a", "b"]  # the values are the negated steps


def test_a_source_without_steps_is_named_and_failures_are_not_taken_for_one() -> None:
    def run(scores: dict[str, float]) -> BeamResult:
        reward = ScriptedReward(scores, with_steps=False)
        engine = ScriptedEngine({"?": ["a."]})
        return BeamSearch(engine, TOKENIZER, reward, SAMPLING, eos_ids=[EOS]).run([QUESTION])[0]

    with pytest.raises(ValueError, match="score_by is 'last_step', but the reward source gives no"):
        run({"a": 1.0})
    assert run({}).end is SearchEnd.NO_REWARD


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BeamSettings(num_beams=0), "num_beams is 0"),
        (lambda: BeamSettings(max_steps=0), "max_steps is 0"),
        (lambda: BestOfNSettings(num_samples=0), "num_samples is 0"),
        (lambda: BeamSearch(None, None, None, SAMPLING, eos_ids=[]), "eos_ids is empty"),
        (
            lambda: BeamSearch(
                None, None, None, SamplingParams(max_new_tokens=1, greedy=True), eos_ids=[EOS]
            ),
            "sampling is greedy, so the 4 expansions",
        ),
        (
            lambda: BestOfN(None, None, None, SamplingParams(max_new_tokens=1, greedy=True)),
            "sampling is greedy, so the 16 samples",
        ),
        (lambda: step_end_ids(TOKENIZER, ""), "separator is empty"),
        (lambda: step_end_ids(TOKENIZER, "|?"), "no token of this vocabulary ends with '|\\?'"),
    ],
)
def test_settings_that_cannot_work_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def best_of(script: list[str], scores: dict[str, float]) -> BestOfNResult:
    engine, reward = ScriptedEngine({"?": script}), ScriptedReward(scores)
    settings = BestOfNSettings(num_samples=len(script), score_by=ScoreBy.LAST_STEP)
    [result] = BestOfN(engine, TOKENIZER, reward, SAMPLING, settings=settings).run([QUESTION])
    return result


def test_best_of_n_takes_the_first_of_the_highest_and_never_one_without_a_reward() -> None:
    result = best_of(["a.", "b", "c.", "x.", "d!"], {"a": -3.0, "b": -1.0, "c": -1.0, "d": 7.0})
    assert result.best is result.candidates[1]
    assert (result.best.text, result.best.finished) == ("b", False)
    assert [candidate.score for candidate in result.candidates] == [-3, -1, -1, None, None]
    assert result.num_missing == 2


def test_best_of_n_of_which_none_has_a_reward_has_no_best() -> None:
    assert best_of(["x.", "x."], {}).best is None
    assert best_of(["a!", "a!"], {"a": 1.0}).best is None


def test_best_of_n_scores_all_completions_of_a_prompt_together() -> None:
    engine = ScriptedEngine({"?": ["a.", "b."], "0": ["c.", "d."], "1": ["e.", "f."]})
    reward = ScriptedReward({"a": 1, "b": 2, "c": 4, "d": 3, "e": 0, "f": 5})
    search = BestOfN(
        engine,
        TOKENIZER,
        reward,
        SAMPLING,
        settings=BestOfNSettings(num_samples=2, batch_size=2, score_by=ScoreBy.LAST_STEP),
    )
    results = search.run([QUESTION, Example(prompt="0"), Example(prompt="1")])
    assert [result.best.text for result in results if result.best] == ["b", "c", "f"]
    assert reward.seen == [["a", "b", "c", "d"], ["e", "f"]]
    assert search.run([]) == []


def candidate(text: str, score: float | None, *, finished: bool = True) -> Candidate:
    return Candidate(completion_ids=(), text=text, finished=finished, score=score)


def test_weighted_best_sums_the_scores_of_equal_answers() -> None:
    many = [candidate("a1", 0.5), candidate("b2", 0.7), candidate("c1", 0.4)]
    assert weighted_best(many, lambda text: text[-1]) is many[0]
    votes = [candidate("a1", 0.6), candidate("b2", None), candidate("c2", 0.5, finished=False)]
    assert weighted_best([*votes, candidate("x", 9.0)], lambda text: text[1:] or None) is votes[0]
    assert weighted_best([candidate("a1", None)], lambda text: text) is None
    with pytest.raises(ValueError, match="a score is -1"):
        weighted_best([candidate("a", -1.0)], lambda text: text)


def test_every_token_that_ends_with_the_separator_ends_a_step() -> None:
    class Vocabulary:
        all_special_ids = (3,)
        tokens = ("a", ".\n\n", "\n\n", "\n\n", "\n", "\n\nb")

        def __len__(self) -> int:
            return len(self.tokens)

        def batch_decode(self, rows: list[list[int]]) -> list[str]:
            return [self.tokens[row[0]] for row in rows]

    vocabulary: Any = Vocabulary()
    assert step_end_ids(vocabulary, "\n\n") == {1, 2}
    assert step_end_ids(TOKENIZER, "|") == {TOKENIZER.convert_tokens_to_ids("|")}


def test_beam_search_with_a_real_policy_finds_more_reward_than_one_sample_has() -> None:
    policy = tiny_policy(vocab_size=len(TOKENIZER), spread=0.15)
    ends = step_end_ids(TOKENIZER, "|")
    engine = TransformersRollout(policy, eos_ids=[EOS, *ends], pad_id=PAD)

    def share_of_letters(completions: Sequence[str], **_: Any) -> list[list[float] | None]:
        """A step is as good as its share of the letter a; the solution so far counts."""
        return [
            [text.count("a") / (1 + len(text)), text.count("a") / (1 + len(text))]
            for text in completions
        ]

    reward = CallableReward(share_of_letters)
    examples = [Example(prompt=f"{digit}?") for digit in range(6)]
    search = BeamSearch(
        engine,
        TOKENIZER,
        reward,
        SAMPLING,
        eos_ids=[EOS],
        settings=BeamSettings(num_beams=2, num_expansions=4, max_steps=4),
    )
    found = search.run(examples, torch.Generator().manual_seed(0))
    again = search.run(examples, torch.Generator().manual_seed(0))
    assert found == again
    for result in found:
        for one in (*result.finished, *result.unfinished):
            assert one.finished == (one.completion_ids[-1] == EOS)
            assert EOS not in one.completion_ids[:-1]
            assert one.text == TOKENIZER.decode(one.completion_ids, skip_special_tokens=True)
            assert plain_logprobs(policy, [4], one.completion_ids, 1.0).isfinite().all()
    single = BestOfN(
        TransformersRollout(policy, eos_ids=[EOS], pad_id=PAD),
        TOKENIZER,
        reward,
        SamplingParams(max_new_tokens=32),
        settings=BestOfNSettings(num_samples=1),
    ).run(examples, torch.Generator().manual_seed(0))
    means = [
        np.mean([result.best.score for result in results if result.best])
        for results in (found, single)
    ]
    assert means[0] > means[1]
