"""Completions cut into steps, and the steps put into the text or tokens that a model reads.

Steps come from `step_separator` alone: a step token that stands in a completion is text like any
other (see `_guard`) and closes no step.

|assembly|what the model reads|
|---|---|
|text|one text, in which every step is closed by the step token|
|tokens|prompt and steps tokenised one by one, the step token's id after each step|
|turns|a chat: every step a user's turn, the step token the assistant's answer to it|
|segments|one text, in which a special token closes prompt and steps and is then left out|
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardsvc.errors import ItemErrorCode, ItemFailure
from rewardsvc.scorers._guard import Draft
from rewardsvc.scorers._text import Marking, SampleEncoder
from rewardsvc.scorers._tokens import Tokens
from rewardsvc.scorers._writing import Written, with_markers
from rewardsvc.scoring.types import Message, Sample

if TYPE_CHECKING:
    from rewardsvc.scorers.prm import PrmConfig

FIELDS = re.compile(r"(\{step\}|\{token\}|\{n\})")


class StepEncoder:
    """Turns samples into tokens with marks where steps are to be read.

    Args:
        encoder: Of the model.
        config: How steps are found and put together.
        tokenizer: Of the model; None if only token ids will be sent.
        step_id: The step token; None where steps are only text.
    """

    def __init__(
        self, encoder: SampleEncoder, config: PrmConfig, tokenizer: Any, step_id: int | None
    ) -> None:
        self._encoder = encoder
        self._config = config
        self._step_id = step_id
        self._pieces = FIELDS.split(config.step_template)
        self._marker = str(config.step_token)
        if config.assembly == "segments" and tokenizer is not None:
            self._marker = tokenizer.pad_token or tokenizer.eos_token or tokenizer.bos_token

    def encode(self, sample: Sample) -> Tokens:
        """The sample's tokens, however many, with a mark for each step.

        Raises:
            ItemFailure: NO_STEPS, if there is none; INVALID_SAMPLE, as the encoder does.
        """
        completion = sample.completion
        is_text = isinstance(completion, str) or (
            len(completion) > 0 and isinstance(completion[0], Message)
        )
        if self._config.step_separator is None or not (is_text or not completion):
            return self._found(sample)
        texts = _texts(sample)
        num_steps = sum(len(self._split(text)) for text in texts)
        if not num_steps:
            raise ItemFailure(
                ItemErrorCode.NO_STEPS,
                "the completion has no step: nothing stands between "
                f"{self._config.step_separator!r}",
            )
        build = {
            "text": self._as_text,
            "tokens": self._as_tokens,
            "turns": self._as_turns,
            "segments": self._as_segments,
        }[self._config.assembly]
        tokens = build(sample)
        if int(tokens.marks.sum()) != num_steps:
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                f"the completion has {num_steps} steps, of which only {int(tokens.marks.sum())} "
                "end in a token of their own",
            )
        return tokens

    def _found(self, sample: Sample) -> Tokens:
        """Step tokens that the completion holds already."""
        tokens = self._encoder.encode_whole(sample)
        places = np.flatnonzero((tokens.ids == self._step_id) & tokens.in_completion)
        if not len(places):
            raise ItemFailure(
                ItemErrorCode.NO_STEPS,
                f"the completion has no step token {self._config.step_token!r}; mark the steps, or "
                "set step_separator",
            )
        places = places - (self._config.read == "before") + self._config.read_shift
        if places[0] < 0:
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                "the sample begins with a step token, and read: before needs one before it",
            )
        tokens.marks[places] = True
        return tokens

    def _split(self, text: str) -> list[str]:
        assert self._config.step_separator is not None
        steps = text.split(self._config.step_separator)
        if self._config.strip_steps:
            steps = [step.strip() for step in steps]
        keep = self._config.empty_steps == "keep" and text
        return [step for step in steps if keep or step.strip()]

    def _prefix(self, step: str, number: int) -> str:
        """What is put before a step that does not say its number itself."""
        prefix = self._config.step_prefix
        if prefix is None or step.lower().startswith(prefix.partition("{n}")[0].strip().lower()):
            return ""
        return prefix.replace("{n}", str(number))

    def _write(self, text: str, draft: Draft) -> str:
        """All steps in the step template, with marks for the step token."""
        written = []
        for number, step in enumerate(self._split(text), 1):
            for piece in self._pieces:
                if piece == "{step}":
                    written.append(self._prefix(step, number) + draft.theirs(step))
                elif piece == "{token}":
                    written.append(draft.mark())
                else:
                    written.append(str(number) if piece == "{n}" else piece)
        return "".join(written)

    def _marking(self, **changes: Any) -> Marking:
        config = self._config
        options = {"read": config.read, "shift": config.read_shift} | changes
        return Marking(write=self._write, marker=self._marker, **options)

    def _as_text(self, sample: Sample) -> Tokens:
        return self._encoder.encode_marked(sample, self._marking())

    def _as_segments(self, sample: Sample) -> Tokens:
        question, text = _one(sample)

        def write(draft: Draft) -> Written:
            opening = self._encoder.writer.opening(question, draft)
            start = opening.text + draft.mark()
            steps = self._split(text)
            closed = "".join(
                self._prefix(step, n) + draft.theirs(step) + draft.mark()
                for n, step in enumerate(steps, 1)
            )
            whole = Written(text=start + closed, start=len(opening.text))
            return with_markers(whole, draft, self._marker)

        marking = self._marking(read="before", keep=False, skip=1)
        return self._encoder.encode_written(write, marking, special=True)

    def _as_turns(self, sample: Sample) -> Tokens:
        (text,) = _texts(sample)
        writer = self._encoder.writer

        def write(draft: Draft) -> Written:
            turns = writer.turns(sample.prompt, "user", draft) if sample.prompt else []
            turns = writer.with_system(turns)
            for number, step in enumerate(self._split(text), 1):
                content = self._prefix(step, number) + draft.theirs(step)
                if number == 1 and turns and turns[-1]["role"] == "user":
                    turns[-1]["content"] += " " + content
                else:
                    turns.append({"role": "user", "content": content})
                turns.append({"role": "assistant", "content": draft.mark()})
            return with_markers(writer.render([], turns), draft, self._marker)

        self._encoder.is_chat(sample)  # refuses where there is no template
        return self._encoder.encode_written(write, self._marking(), special=False)

    def _as_tokens(self, sample: Sample) -> Tokens:
        question, text = _one(sample)
        special = self._config.bos != "never"
        parts: list[Tokens] = []
        opening = self._encoder.writer.opening
        if opening(question, self._encoder.texts.draft()).text or special:
            encoding, _ = self._encoder.texts.tokenize(
                lambda d: opening(question, d), special=special
            )
            parts.append(Tokens.of(encoding.ids, is_special=encoding.added))
        at_marker = self._config.read == "at"
        assert self._step_id is not None
        marker = Tokens.of(
            np.asarray([self._step_id]), in_completion=True, marks=np.asarray([at_marker])
        )
        for number, step in enumerate(self._split(text), 1):
            if step:
                ids = self._encoder.texts.ids_of(step, before=self._prefix(step, number))
                tokens = Tokens.of(ids, in_completion=True)
                if len(ids) and not at_marker:
                    tokens.marks[-1] = True
                parts.append(tokens)
            parts.append(marker)
        return self._encoder.ended(parts)


def _texts(sample: Sample) -> Sequence[str]:
    """The completion's texts."""
    if isinstance(sample.completion, str):
        return [sample.completion]
    return [m.content for m in sample.completion if isinstance(m, Message)]


def _one(sample: Sample) -> tuple[Sample, str]:
    """The question as text, and the completion's one text.

    Raises:
        ItemFailure: INVALID_SAMPLE, if either is more than one message, or token ids.
    """
    prompt = sample.prompt
    if not isinstance(prompt, str) and len(prompt) == 1 and isinstance(prompt[0], Message):
        prompt = prompt[0].content
    texts = _texts(sample)
    if (prompt and not isinstance(prompt, str)) or len(texts) != 1:
        raise ItemFailure(
            ItemErrorCode.INVALID_SAMPLE,
            "this model reads one question and one answer; send prompt and completion as text",
        )
    return Sample(prompt=prompt or "", completion=texts[0]), texts[0]
