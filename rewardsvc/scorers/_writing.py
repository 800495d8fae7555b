"""Samples as one text: templates filled in, and places in the text that matter."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rewardsvc.errors import ItemErrorCode, ItemFailure
from rewardsvc.scorers._guard import Draft
from rewardsvc.scorers._model_config import ModelConfig
from rewardsvc.scoring.types import Message, Sample, Text

Turn: TypeAlias = "dict[str, str]"
"""A message as chat templates take them: `role` and `content`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A sample as text.

    Attributes:
        text: What is tokenised.
        start: Where the completion starts.
        spans: Where each step's marker stands, in order.
    """

    text: str
    start: int
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def points(self) -> list[int]:
        """All places, in the order in which `moved` takes them back."""
        return [self.start, *(point for span in self.spans for point in span)]

    def moved(self, points: Sequence[int]) -> Written:
        """The same places in another form of the text."""
        pairs = tuple(zip(points[1::2], points[2::2], strict=True))
        return Written(text=self.text, start=points[0], spans=pairs)


class Writer:
    """Writes samples as a model's configuration says.

    Args:
        tokenizer: Has the chat template; None where only text is written.
        config: How.
    """

    def __init__(self, tokenizer: Any, config: ModelConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        template = config.text_template or "{prompt}{completion}"
        self._before, _, self._after = template.partition("{completion}")

    def text(self, sample: Sample, draft: Draft, complete: Complete | None = None) -> Written:
        """Prompt and completion in the text template.

        A prompt without a template is taken as ours: it may be a chat that the caller rendered.
        """
        prompt, completion = plain(sample.prompt), plain(sample.completion)
        if self._config.text_template is not None:
            prompt = draft.theirs(prompt)
        # Replaced piece by piece: braces in untrusted text mean nothing.
        before = self._before.replace("{prompt}", prompt)
        written = complete(completion, draft) if complete else self._with_end(completion, draft)
        after = self._after.replace("{prompt}", prompt)
        return Written(text=before + written + after, start=len(before))

    def opening(self, sample: Sample, draft: Draft) -> Written:
        """What the text template has before the completion."""
        text = self._before.replace("{prompt}", draft.theirs(plain(sample.prompt)))
        return Written(text=text, start=len(text))

    def _with_end(self, completion: str, draft: Draft) -> str:
        """A policy's text may keep the token that ended it; only there is that token meant."""
        end: str | None = self._tokenizer.eos_token if self._tokenizer is not None else None
        if end and completion.endswith(end):
            return draft.theirs(completion[: -len(end)]) + end
        return draft.theirs(completion)

    def chat(self, sample: Sample, draft: Draft, complete: Complete | None = None) -> Written:
        """The chat as its template writes it."""
        prompt = self.turns(sample.prompt, "user", draft) if sample.prompt else []
        completion = self.turns(sample.completion, "assistant", draft, complete)
        return self.render(self.with_system(prompt), completion)

    def turns(
        self, side: Text, role: str, draft: Draft, complete: Complete | None = None
    ) -> list[Turn]:
        """A side of the sample as messages, theirs guarded."""
        write = complete or (lambda text, draft: draft.theirs(text))
        messages = [Message(role, side)] if isinstance(side, str) else side
        return [
            {"role": draft.theirs(m.role), "content": write(m.content, draft)}
            for m in messages
            if isinstance(m, Message)
        ]

    def with_system(self, turns: list[Turn]) -> list[Turn]:
        """With the configured system message, unless there is one."""
        system = self._config.system
        if system is None or any(turn["role"] == "system" for turn in turns):
            return turns
        return [{"role": "system", "content": system}, *turns]

    def render(
        self, prompt: list[Turn], completion: list[Turn], *, generation_prompt: bool = False
    ) -> Written:
        """The template's text, and where the content of the completion's first turn starts."""
        full = self.apply(prompt + completion, add_generation_prompt=generation_prompt)
        if not prompt:
            return Written(text=full, start=0)
        opening = self.apply(prompt, add_generation_prompt=True)
        shared = len(os.path.commonprefix([full, opening]))  # noqa: RUF071 - characters are meant
        content = completion[0]["content"].strip() if completion else ""
        # Some templates put something before the content, for instance an empty thought.
        return Written(text=full, start=max(shared, full.find(content, shared)))

    def apply(self, messages: list[Turn], **options: Any) -> str:
        """A chat template's text; options are those of transformers' `apply_chat_template`.

        Raises:
            ItemFailure: INVALID_SAMPLE, if the template does not take the messages.
        """
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except TemplateError as error:
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                f"the model's chat template does not take these messages: {error}",
            ) from None
        assert isinstance(text, str)
        return text


Complete: TypeAlias = Callable[[str, Draft], str]
"""Writes a completion's text, theirs guarded and markers as marks of the draft."""


def with_markers(written: Written, draft: Draft, marker: str) -> Written:
    """The text with markers in the place of the draft's marks, and where they stand."""
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    done = length = 0
    start = written.start
    for match in re.finditer(draft.mark_pattern, written.text):
        parts.append(written.text[done : match.start()])
        length += len(parts[-1])
        if match.end() <= written.start:
            start += len(marker) - len(match[0])
        parts.append(marker)
        spans.append((length, length + len(marker)))
        length += len(marker)
        done = match.end()
    return Written(text="".join([*parts, written.text[done:]]), start=start, spans=tuple(spans))


def plain(side: Text) -> str:
    """A side that is text, or empty."""
    assert not side or isinstance(side, str), "messages are chats and ids are ids"
    return side if isinstance(side, str) else ""
