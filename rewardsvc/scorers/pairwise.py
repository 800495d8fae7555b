"""`pairwise`: a preference model, which of two completions of a prompt is better.

Such a model has no score of one completion. What a sample gets here is how often it wins:

* `against: group`: the samples of a call that have the same prompt are a group, as GRPO and RLOO
  send it, and each is compared with the others (with all of them, or with `opponents` of them). The
  value is the mean probability of being the better one, from 0 to 1; the mean over a group is 0.5.
  All samples of a group must come in one call: a sample without another has INVALID_SAMPLE.
  Clients keep them together as long as they fit into one message; errors are not retryable, because
  the rest of the group would be missing.
* `against: reference`: each is compared with its own `answer`, a completion that is known.

Every two are shown in both orders and the probabilities averaged, so that the order does not count.
A group of G costs G (G - 1) sequences; `opponents: K` costs 2 G K.

Components: `margin`, the mean difference of logits in the sample's favour; `opponents`, how many it
was compared with. Where a comparison fails (a text is too long), the rest count; where all fail,
the sample has the error.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from rewardsvc.engine.types import Answer, Encoded
from rewardsvc.errors import ConfigError, ItemError, ItemErrorCode
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers._model_config import ModelConfig
from rewardsvc.scorers._pairs import Choice, Comparison, Markers, PairHead
from rewardsvc.scorers._served import ModelScorer
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.types import Message, Sample, Score, Text

if TYPE_CHECKING:
    from rewardsvc.engine.torch_backend import Reading

PIECES = re.compile(r"(\{context\}|\{a\}|\{b\})")

PLAIN_CONTEXT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


class PairwiseConfig(ModelConfig):
    """Configuration of `pairwise`.

    Attributes:
        head: How two are compared: by the markers of PairRM, or by the logits of two names that a
            language model chooses from. Needed, unless a recipe has it.
        against: What a sample is compared with: the others of its prompt, or its `answer`.
        opponents: With how many of its group a sample is compared, those that follow it in the
            call; None: with all.
        choices: For `head: choice`, the names of the two, as text or token id.
        pair_template: For `head: choice`, the question, with `{context}`, `{a}` and `{b}`.
        context_template: For `head: choice`, a Jinja chat template for the prompt.
        generation_prompt: For `head: choice`, whether the chat ends with the start of an answer.
        source_length: For `head: markers`, tokens of the prompt at most; completions share what is
            left of `max_length`.
    """

    type: Literal["pairwise"] = "pairwise"
    head: Literal["markers", "choice"] | None = None
    against: Literal["group", "reference"] = "group"
    opponents: int | None = Field(default=None, ge=1)
    choices: tuple[str | int, str | int] = ("A", "B")
    pair_template: str = "{context}\nA: {a}\n\nB: {b}\n\nWhich answer is better, A or B?"
    context_template: str = PLAIN_CONTEXT
    generation_prompt: bool = False
    source_length: int | None = Field(default=None, ge=1)

    @field_validator("pair_template")
    @classmethod
    def _has_both(cls, template: str) -> str:
        if any(template.count(field) != 1 for field in ("{context}", "{a}", "{b}")):
            raise ValueError(f"{template!r} must contain {{context}}, {{a}} and {{b}} once")
        return template

    @property
    def pair_pieces(self) -> list[str]:
        """`pair_template`, cut at its fields."""
        return PIECES.split(self.pair_template)


class Pairwise(ModelScorer):
    """See the module's text."""

    Config = PairwiseConfig

    def __init__(self, config: PairwiseConfig, env: BuildEnv) -> None:
        super().__init__(config, env)
        self._pair_head: PairHead | None = None

    @property
    def _pairwise(self) -> PairwiseConfig:
        assert isinstance(self._source, PairwiseConfig)
        return self._source

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """How often each sample wins."""
        texts = [_text_of(sample.completion) for sample in samples]
        failed: dict[int, ItemError] = {
            i: text for i, text in enumerate(texts) if isinstance(text, ItemError)
        }
        if self._pairwise.against == "reference":
            fights = self._with_references(samples, texts, failed)
        else:
            fights = self._with_groups(samples, texts, failed)
        return await self._fought(samples, fights, failed)

    def _with_references(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str | ItemError],
        failed: dict[int, ItemError],
    ) -> list[tuple[int, int | None, Comparison]]:
        fights: list[tuple[int, int | None, Comparison]] = []
        for i, (sample, text) in enumerate(zip(samples, texts, strict=True)):
            if isinstance(text, ItemError):
                continue
            if not sample.answer:
                failed[i] = ItemError(
                    ItemErrorCode.BAD_REFERENCE,
                    "answer is empty: against: reference compares with it; send it, or set "
                    "against: group",
                )
                continue
            fights.append((i, None, Comparison(sample.prompt, text, sample.answer)))
        return fights

    def _with_groups(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str | ItemError],
        failed: dict[int, ItemError],
    ) -> list[tuple[int, int | None, Comparison]]:
        groups: dict[Text, list[int]] = defaultdict(list)
        for i, sample in enumerate(samples):
            if i not in failed:
                groups[sample.prompt].append(i)
        fights: list[tuple[int, int | None, Comparison]] = []
        for prompt, members in groups.items():
            if len(members) == 1:
                failed[members[0]] = ItemError(
                    ItemErrorCode.INVALID_SAMPLE,
                    "no other sample of this call has the same prompt: against: group needs at "
                    "least two completions of a prompt in one call; send the group together, or "
                    "set against: reference",
                )
            for a, b in _opponents(members, self._pairwise.opponents):
                first, second = texts[a], texts[b]
                assert isinstance(first, str)
                assert isinstance(second, str)
                fights.append((a, b, Comparison(prompt, first, second)))
        return fights

    async def _fought(
        self,
        samples: Sequence[Sample],
        fights: Sequence[tuple[int, int | None, Comparison]],
        failed: dict[int, ItemError],
    ) -> list[Score]:
        unequal = [fight for *_, fight in fights if fight.first != fight.second]
        shown = [
            order
            for fight in unequal
            for order in (fight, Comparison(fight.prompt, fight.second, fight.first))
        ]
        answers = iter(await self._submit(shown, self._encode) if shown else [])
        wins: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for a, b, fight in fights:
            if fight.first == fight.second:
                chance, margin = 0.5, 0.0
            else:
                pair = [self._logit(next(answers)), self._logit(next(answers))]
                errors = [found for found in pair if isinstance(found, ItemError)]
                if errors:
                    for i in (a, b):
                        if i is not None:
                            failed.setdefault(i, errors[0])
                    continue
                forth, back = (float(found) for found in pair)  # type: ignore[arg-type]
                chance = (_sigmoid(forth) + _sigmoid(-back)) / 2
                margin = (forth - back) / 2
            wins[a].append((chance, margin))
            if b is not None:
                wins[b].append((1.0 - chance, -margin))
        if self._pairwise.against == "group":
            # Sent again, a few samples of a group would be compared with each other alone.
            failed = {i: replace(error, retryable=False) for i, error in failed.items()}
        return [_mean(wins[i]) if wins[i] else Score(error=failed[i]) for i in range(len(samples))]

    def _logit(self, answer: Answer) -> float | ItemError:
        if isinstance(answer, ItemError):
            return answer
        assert self._pair_head is not None
        logit = self._pair_head.logit(answer)
        if math.isfinite(logit):
            return logit
        return ItemError(ItemErrorCode.NON_FINITE, f"the comparison gave {logit}")

    def _encode(self, pair: Comparison) -> Encoded:
        assert self._pair_head is not None
        return self._pair_head.encode(pair, self.encoder)

    def _load_reading(
        self, checkpoint: Checkpoint, tokenizer: Any, device: str
    ) -> tuple[Any, Reading]:
        config = self._pairwise
        if config.head is None:
            raise ConfigError(
                "head: missing, and the checkpoint is none that a recipe is known for; set head: "
                "choice or markers, or name a recipe"
            )
        self._head = config.head
        if config.head == "choice":
            self._pair_head = Choice(config)
        else:
            limit = config.max_length or model_limit(checkpoint)
            self._pair_head = Markers(config, max_length=limit)
        return self._pair_head.load(checkpoint, tokenizer, device)


def model_limit(checkpoint: Checkpoint) -> int:
    """The positions that a checkpoint states."""
    from rewardsvc.scorers._loading import UNLIMITED, model_settings

    return int(model_settings(checkpoint).get("max_position_embeddings") or UNLIMITED)


def _opponents(members: Sequence[int], num: int | None) -> Iterable[tuple[int, int]]:
    """Who meets whom, every two once: each meets the next `num` behind it, around the group."""
    size = len(members)
    met: set[tuple[int, int]] = set()
    for i in range(size):
        for step in range(1, min(num or size, size - 1) + 1):
            j = (i + step) % size
            if (j, i) not in met:
                met.add((i, j))
                yield members[i], members[j]


def _mean(wins: Sequence[tuple[float, float]]) -> Score:
    chances, margins = zip(*wins, strict=True)
    components = {"margin": math.fsum(margins) / len(wins), "opponents": float(len(wins))}
    return Score.of(math.fsum(chances) / len(wins), components=components)


def _text_of(side: Text) -> str | ItemError:
    """A completion as one text."""
    if isinstance(side, str):
        return side
    if len(side) == 1 and isinstance(side[0], Message):
        return side[0].content
    return ItemError(
        ItemErrorCode.INVALID_SAMPLE,
        "a completion that is compared must be text or one message, not "
        f"{'token ids' if side and isinstance(side[0], int) else f'{len(side)} messages'}",
    )


def _sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else 1.0 - _sigmoid(-logit)
