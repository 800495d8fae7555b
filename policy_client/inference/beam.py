"""Step-level beam search: a process reward model decides, step by step, what to go on with.

From each prompt, num_beams × num_expansions first steps are sampled. Of all candidates the
num_beams with the highest scores are kept, and num_expansions next steps are sampled from each,
until all that are kept have ended.

A finished candidate keeps its place among the kept ones for as long as its score does, and is not
extended: a process reward says how likely the solution is to be right, whether it has ended or not,
so the two are compared. Those that lose their place are still in the result.

Source: Snell et al. 2024, "Scaling LLM test-time compute optimally", arXiv:2408.03314, section 5.2.
Their N is num_beams × num_expansions and their beam width M is num_expansions. We deviate in two
places: identical candidates are scored and kept once, and a candidate without a reward is dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from transformers import PreTrainedTokenizerBase

from rewardsvc.policy_client.inference.candidates import (
    Candidate,
    ScoreBy,
    best_first,
    scores_of,
    texts_of,
)
from rewardsvc.policy_client.train.data import Example
from rewardsvc.policy_client.train.data.tokenize import tokenize_prompt
from rewardsvc.policy_client.train.online.rewards import RewardSource
from rewardsvc.policy_client.train.online.rollout import FinishReason, RolloutEngine
from rewardsvc.policy_client.train.online.sampling import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSettings:
    """How wide and how deep the search is.

    Attributes:
        num_beams: Candidates kept after each step.
        num_expansions: Next steps sampled from each of them.
        max_steps: Rounds of sampling at most; a solution has at most as many steps.
        score_by: What of the reward decides.
        batch_size: Beams to extend at a time, over all prompts.

    Raises:
        ValueError: If a number is less than 1.
    """

    num_beams: int = 4
    num_expansions: int = 4
    max_steps: int = 40
    score_by: ScoreBy = ScoreBy.LAST_STEP
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("num_beams", "num_expansions", "max_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


class SearchEnd(StrEnum):
    """Why a search ended.

    FINISHED: All kept candidates have ended.
    MAX_STEPS: At the limit, with candidates that have not.
    NO_REWARD: No next step of any kept candidate has a reward, so there is nothing to choose by.
    """

    FINISHED = "finished"
    MAX_STEPS = "max_steps"
    NO_REWARD = "no_reward"


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamResult:
    """What came of one prompt.

    Attributes:
        finished: All candidates that ended and have a score, also those that lost their place
            later; best first.
        unfinished: Candidates kept to the end that have not ended; best first.
        end: Why the search ended.
        num_steps: Rounds of sampling.
        num_missing: Candidates that were dropped since they have no reward.
    """

    finished: tuple[Candidate, ...]
    unfinished: tuple[Candidate, ...]
    end: SearchEnd
    num_steps: int
    num_missing: int

    @property
    def best(self) -> Candidate | None:
        """The best that has ended, else the best that has not; None if nothing had a reward."""
        return next(iter((*self.finished, *self.unfinished)), None)


@dataclass(slots=True, kw_only=True)
class _Search:
    """The state of one prompt."""

    example: Example
    prompt_ids: tuple[int, ...]
    kept: list[Candidate]
    finished: list[Candidate] = dataclasses.field(default_factory=list)
    end: SearchEnd | None = None
    num_steps: int = 0
    num_missing: int = 0

    @property
    def open(self) -> list[Candidate]:
        """What can be extended."""
        return [candidate for candidate in self.kept if not candidate.finished]


class BeamSearch:
    """Searches solutions step by step."""

    def __init__(
        self,
        engine: RolloutEngine,
        tokenizer: PreTrainedTokenizerBase,
        reward: RewardSource,
        sampling: SamplingParams,
        *,
        eos_ids: Collection[int],
        settings: BeamSettings | None = None,
    ) -> None:
        """Puts the parts together.

        Args:
            engine: Its completions must end with a step: give a `TransformersRollout` both the
                tokens of `eos_ids` and those of `step_end_ids` as its `eos_ids`.
            tokenizer: The policy's.
            reward: Process rewards of starts of solutions.
            sampling: How steps are drawn. A step of more than `max_new_tokens` is scored and
                extended where it was cut.
            eos_ids: The tokens that end a solution, and not merely a step.
            settings: The rest.

        Raises:
            ValueError: If there are no `eos_ids`, or sampling is greedy and a beam has several
                expansions.
        """
        self._engine = engine
        self._tokenizer = tokenizer
        self._reward = reward
        self._sampling = sampling
        self._eos_ids = frozenset(eos_ids)
        self._settings = settings or BeamSettings()
        if not self._eos_ids:
            raise ValueError("eos_ids is empty; no solution would ever end")
        if sampling.greedy and self._settings.num_expansions > 1:
            raise ValueError(
                f"sampling is greedy, so the {self._settings.num_expansions} expansions of a beam "
                "are one; set greedy to False, or num_expansions to 1"
            )

    def run(
        self, examples: Sequence[Example], generator: torch.Generator | None = None
    ) -> list[BeamResult]:
        """One result for each example, in order; all are searched side by side.

        Raises:
            UnavailableError: If the reward source is away.
            ValueError: If the last step decides and the source rewards no steps.
        """
        start = Candidate(completion_ids=(), text="", finished=False)
        searches = [
            _Search(
                example=example,
                prompt_ids=tuple(tokenize_prompt(self._tokenizer, example.prompt)),
                kept=[start],
            )
            for example in examples
        ]
        while going := [search for search in searches if search.end is None]:
            self._step(going, generator)
        return [_result(search) for search in searches]

    def _step(self, searches: Sequence[_Search], generator: torch.Generator | None) -> None:
        """One more step of all."""
        beams = [(search, beam) for search in searches for beam in search.open]
        first = all(search.num_steps == 0 for search in searches)
        width = self._settings.num_expansions * (self._settings.num_beams if first else 1)
        grown: dict[int, list[Candidate]] = {id(search): [] for search in searches}
        size = self._settings.batch_size
        for at in range(0, len(beams), size):
            for search, candidate in self._extended(beams[at : at + size], width, generator):
                grown[id(search)].append(candidate)
        for search in searches:
            grown[id(search)] = _distinct(grown[id(search)])
        self._score(searches, grown)
        for search in searches:
            self._choose(search, grown[id(search)])

    def _extended(
        self,
        beams: Sequence[tuple[_Search, Candidate]],
        width: int,
        generator: torch.Generator | None,
    ) -> list[tuple[_Search, Candidate]]:
        """`width` candidates of each beam, without those that the engine aborted."""
        prompts = [search.prompt_ids + beam.completion_ids for search, beam in beams]
        rollout = self._engine.generate(prompts, width, self._sampling, generator)
        whole = [
            (*beams[row // width][1].completion_ids, *ids)
            for row, ids in enumerate(rollout.completion_lists())
        ]
        rows = zip(whole, texts_of(self._tokenizer, whole), rollout.finish, strict=True)
        found = []
        for row, (ids, text, reason) in enumerate(rows):
            search = beams[row // width][0]
            if reason is FinishReason.ABORT:
                search.num_missing += 1
                continue
            # The engine stops at steps too, so its reason does not tell whether this is the end.
            finished = not self._eos_ids.isdisjoint(ids[-1:])
            found.append((search, Candidate(completion_ids=ids, text=text, finished=finished)))
        return found

    def _score(self, searches: Sequence[_Search], grown: dict[int, list[Candidate]]) -> None:
        """Puts scores on the new candidates, all in one request."""
        new = [(search, candidate) for search in searches for candidate in grown[id(search)]]
        if not new:
            return
        scores = scores_of(
            self._reward,
            [search.example for search, _ in new],
            [candidate for _, candidate in new],
            self._settings.score_by,
        )
        for search in searches:
            grown[id(search)] = []
        for (search, candidate), score in zip(new, scores, strict=True):
            grown[id(search)].append(dataclasses.replace(candidate, score=score))

    def _choose(self, search: _Search, grown: Sequence[Candidate]) -> None:
        """Keeps the best of the new candidates and of the kept ones that have ended."""
        search.num_steps += 1
        scored = best_first(grown)
        search.num_missing += len(grown) - len(scored)
        if not scored:
            search.end = SearchEnd.NO_REWARD
            return
        ended = [candidate for candidate in search.kept if candidate.finished]
        search.finished += [candidate for candidate in scored if candidate.finished]
        search.kept = best_first([*ended, *scored])[: self._settings.num_beams]
        if not search.open:
            search.end = SearchEnd.FINISHED
        elif search.num_steps == self._settings.max_steps:
            search.end = SearchEnd.MAX_STEPS


def step_end_ids(tokenizer: PreTrainedTokenizerBase, separator: str) -> frozenset[int]:
    """The tokens after which a step has ended.

    Vocabularies have more than one of them: beside a blank line alone, one behind a full stop, one
    behind a bracket, and so on. A separator that a policy writes as several tokens is not seen.

    Args:
        tokenizer: The policy's; every token of it is decoded once.
        separator: Text between steps, such as a blank line.

    Raises:
        ValueError: If the separator is empty, or no token ends with it.
    """
    if not separator:
        raise ValueError("separator is empty; give the text between steps")
    special = set(tokenizer.all_special_ids)
    ids = [number for number in range(len(tokenizer)) if number not in special]
    texts = tokenizer.batch_decode([[number] for number in ids])
    found = frozenset(
        number for number, text in zip(ids, texts, strict=True) if text.endswith(separator)
    )
    if not found:
        raise ValueError(
            f"separator: no token of this vocabulary ends with {separator!r}; use a shorter one, "
            "such as its last character"
        )
    return found


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first of each, in order."""
    return list({candidate.completion_ids: candidate for candidate in candidates}.values())


def _result(search: _Search) -> BeamResult:
    assert search.end is not None
    return BeamResult(
        finished=tuple(best_first(search.finished)),
        unfinished=tuple(best_first(search.open)),
        end=search.end,
        num_steps=search.num_steps,
        num_missing=search.num_missing,
    )
