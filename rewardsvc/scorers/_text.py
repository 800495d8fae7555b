"""Samples to token ids: chat templates, special tokens, truncation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rewardsvc.errors import ItemErrorCode, ItemFailure
from rewardsvc.scorers._guard import Draft, Encoding
from rewardsvc.scorers._model_config import ModelConfig
from rewardsvc.scorers._tokenising import TextTokenizer
from rewardsvc.scorers._tokens import Tokens, leading, overlapping, token_id
from rewardsvc.scorers._writing import Complete, Writer, Written, plain, with_markers
from rewardsvc.scoring.types import Message, Sample, Text

__all__ = ["Marking", "SampleEncoder", "Tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Marking:
    """How the steps of a completion are marked, and which token of a marker is read.

    Attributes:
        write: Writes a completion's text with marks.
        marker: What stands at the marks.
        read: The marker's last token, its first, or the token before that.
        keep: Whether the marker's tokens stay; if not, `read` is "before".
        shift: Added to the place of the token that is read.
        skip: This many marks at the start close no step.
    """

    write: Complete
    marker: str
    read: Literal["at", "first", "before"]
    keep: bool = True
    shift: int = 0
    skip: int = 0


class SampleEncoder:
    """Turns samples into tokens, as a `ModelConfig` says. Safe to call from several threads.

    Args:
        tokenizer: A fast transformers tokenizer, or None if only token ids will be sent.
        config: How.
        max_length: In tokens.
        vocab_size: Ids are below this.
        pair: Whether prompt and completion are a text pair, as for BERT-like cross-encoders.
        control: Token ids that texts must not produce, besides special tokens.
        allowed: Special tokens that texts may produce.

    Attributes:
        texts: The tokenizer, behind its guard.
        writer: Writes samples as texts.

    Raises:
        ConfigError: If the tokenizer lacks what the configuration asks for.
    """

    def __init__(
        self,
        tokenizer: Any,
        config: ModelConfig,
        *,
        max_length: int,
        vocab_size: int,
        pair: bool = False,
        control: Iterable[int] = (),
        allowed: Iterable[int] = (),
    ) -> None:
        self.texts = TextTokenizer(tokenizer, config, control=control, allowed=allowed)
        self._last_id: int | None = None
        if config.append_token is not None:
            self._last_id = token_id(tokenizer, config.append_token, "append_token")
        self.writer = Writer(tokenizer, config)
        self._tokenizer = tokenizer
        self._config = config
        self._max_length = max_length
        self._vocab_size = vocab_size
        self._pair = pair

    def encode(self, sample: Sample) -> Tokens:
        """The sample's tokens, cut to the maximal length if the configuration allows.

        Raises:
            ItemFailure: As `encode_whole` and `cut` do.
        """
        return self.cut(self.encode_whole(sample))

    def encode_whole(self, sample: Sample) -> Tokens:
        """The sample's tokens, however many.

        Raises:
            ItemFailure: INVALID_SAMPLE, if there is nothing to attend to, the text is not valid
                Unicode, or messages have no template that takes them.
        """
        if _is_ids(sample.prompt) or _is_ids(sample.completion):
            return self.checked(self._of_ids(sample))
        sample = self._unwrapped(sample)
        chat = self.is_chat(sample)
        if self._pair and not chat:
            return self.checked(self._of_pair(sample))
        write = self.writer.chat if chat else self.writer.text
        encoding, written = self.texts.tokenize(
            lambda draft: write(sample, draft), special=not chat
        )
        return self.checked(self._ended(_columns(encoding, written)))

    def encode_marked(self, sample: Sample, marking: Marking) -> Tokens:
        """The sample's tokens, however many, with marks where its steps are to be read.

        Raises:
            ItemFailure: As `encode_whole`.
        """
        sample = self._unwrapped(sample)
        chat = self.is_chat(sample)
        write = self.writer.chat if chat else self.writer.text

        def written(draft: Draft) -> Written:
            return with_markers(write(sample, draft, marking.write), draft, marking.marker)

        return self.encode_written(written, marking, special=not chat)

    def encode_written(
        self, write: Callable[[Draft], Written], marking: Marking, *, special: bool
    ) -> Tokens:
        """The same for a text that the caller writes."""
        encoding, written = self.texts.tokenize(write, special=special)
        tokens = _columns(encoding, written)
        keep = np.ones(len(tokens.ids), bool)
        for number, span in enumerate(written.spans):
            held = overlapping(encoding.starts, encoding.ends, span)
            keep[held] = marking.keep
            if not len(held) or number < marking.skip:
                continue
            place = int(held[-1] if marking.read == "at" else held[0])
            place += marking.shift - (marking.read == "before")
            if place < 0:
                raise ItemFailure(
                    ItemErrorCode.INVALID_SAMPLE,
                    "the sample begins with a step's marker, and read: before needs one before it",
                )
            tokens.marks[place] = True
        return self.checked(self._ended(tokens.pick(keep)))

    def encode_asked(self, write: Callable[[Draft], Written]) -> Tokens:
        """The tokens of a chat that the caller writes, however many."""
        encoding, written = self.texts.tokenize(write, special=False)
        return self.checked(self._ended(_columns(encoding, written)))

    def _of_ids(self, sample: Sample) -> Tokens:
        """Ids are taken as they are; where only one side is ids, the other is plain text."""
        sides: list[Any] = []
        for side, name in ((sample.prompt, "prompt"), (sample.completion, "completion")):
            if isinstance(side, str):
                sides.append(self.texts.ids_of(side, trusted=name == "prompt") if side else ())
            elif _is_messages(side):
                raise ItemFailure(
                    ItemErrorCode.INVALID_SAMPLE,
                    f"{name} is messages while the other side is token ids; send both as token ids",
                )
            else:
                sides.append(side)
        ids = np.concatenate([np.asarray(side, np.int64) for side in sides])
        self.check_ids(ids)
        return Tokens.of(ids, in_completion=np.repeat([False, True], [len(s) for s in sides]))

    def check_ids(self, ids: NDArray[Any]) -> None:
        """Refuses ids that the model has no embedding for.

        Raises:
            ItemFailure: INVALID_SAMPLE, with the first such id.
        """
        bad = ids[(ids < 0) | (ids >= self._vocab_size)]
        if len(bad):
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                f"token id {bad[0]} is out of the model's vocabulary of {self._vocab_size}",
            )

    def checked(self, tokens: Tokens) -> Tokens:
        """The tokens, if there are any and the model knows them.

        Raises:
            ItemFailure: INVALID_SAMPLE.
        """
        if not len(tokens.ids):
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                "prompt and completion are empty: there is no token to score",
            )
        self.check_ids(tokens.ids)
        return tokens

    def _of_pair(self, sample: Sample) -> Tokens:
        encoding = self.texts.tokenize_pair(plain(sample.prompt), plain(sample.completion))
        return Tokens.of(
            encoding.ids,
            in_completion=encoding.sequence == 1,
            is_special=encoding.added,
            type_ids=encoding.type_ids,
        )

    def _unwrapped(self, sample: Sample) -> Sample:
        """One question and one answer, sent as messages, where a text template wants texts."""
        if self._config.text_template is None or self._config.input != "text":
            return sample
        prompt = _only(sample.prompt, "user")
        completion = _only(sample.completion, "assistant")
        if prompt is sample.prompt and completion is sample.completion:
            return sample
        return Sample(prompt=prompt, completion=completion)

    def is_chat(self, sample: Sample) -> bool:
        """Whether the chat template writes this sample.

        Raises:
            ItemFailure: INVALID_SAMPLE, if it is messages and they cannot be written.
        """
        messages = _is_messages(sample.prompt) or _is_messages(sample.completion)
        if self._config.input == "text" and messages:
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                "the sample is chat messages and the scorer's configuration says input: text; send "
                "text, or set input: auto",
            )
        if messages and (self._tokenizer is None or not self._tokenizer.chat_template):
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                "the sample is chat messages and the model's tokenizer has no chat template; send "
                "text",
            )
        return messages or self._config.input == "chat"

    def _ended(self, tokens: Tokens) -> Tokens:
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        num_bos = leading(tokens.ids, bos)
        wanted = {"auto": min(num_bos, 1), "always": 1, "never": 0}[self._config.bos]
        if num_bos > wanted:
            tokens = tokens.pick(np.arange(len(tokens.ids)) >= num_bos - wanted)
        elif num_bos < wanted:
            tokens = tokens.insert(0, bos, in_completion=False)
        if wanted:
            tokens.is_special[0] = True  # a template's BOS is not to be cut off either
        for last in (eos if self._config.append_eos else None, self._last_id):
            if last is not None and (not len(tokens.ids) or tokens.ids[-1] != last):
                tokens = tokens.insert(len(tokens.ids), last, in_completion=True)
        return tokens

    def ended(self, parts: Sequence[Tokens]) -> Tokens:
        """Parts that were tokenised on their own, as one sample.

        Raises:
            ItemFailure: As `checked`.
        """
        return self.checked(self._ended(Tokens.joined(*parts)))

    def cut(self, tokens: Tokens) -> Tokens:
        """The tokens that fit the model.

        Raises:
            ItemFailure: TOO_LONG, if some do not and none may be cut off.
        """
        excess = len(tokens.ids) - self._max_length
        if excess <= 0:
            return tokens
        side = self._config.truncation_side
        cuttable = np.flatnonzero(~tokens.is_special)
        if side == "error" or excess > len(cuttable):
            raise ItemFailure(
                ItemErrorCode.TOO_LONG,
                f"the sample has {len(tokens.ids)} tokens and the model takes {self._max_length}; "
                "shorten it, or set truncation_side: left or right",
            )
        keep = np.ones(len(tokens.ids), bool)
        keep[cuttable[:excess] if side == "left" else cuttable[-excess:]] = False
        return tokens.pick(keep)


def _columns(encoding: Encoding, written: Written) -> Tokens:
    # A token on the border counts as completion: it holds some of its characters.
    in_completion = (encoding.ends > written.start) & ~encoding.added
    # Whatever the tokenizer adds at the end comes after the completion's start.
    in_completion |= encoding.added & (np.cumsum(in_completion) > 0)
    return Tokens.of(encoding.ids, in_completion=in_completion, is_special=encoding.added)


def _only(side: Text, role: str) -> Text:
    """The content of a side's only message, if that is all it has."""
    if not isinstance(side, str) and len(side) == 1:
        message = side[0]
        if isinstance(message, Message) and message.role == role:
            return message.content
    return side


def _is_ids(side: Text) -> bool:
    return not isinstance(side, str) and len(side) > 0 and not isinstance(side[0], Message)


def _is_messages(side: Text) -> bool:
    return not isinstance(side, str) and len(side) > 0 and isinstance(side[0], Message)
