"""Samples to token ids: chat templates, special tokens, truncation.

All of it works on four parallel columns, so that a cut or an added token keeps them in step.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardsvc.errors import ConfigError, ItemErrorCode, ItemFailure
from rewardsvc.scorers._model_config import ModelConfig
from rewardsvc.scoring.types import Message, Sample, Text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """A sample as tokens; four columns of the same length T.

    Attributes:
        ids: int32 [T].
        in_completion: bool [T], whether the token belongs to the completion or stands after it.
        is_special: bool [T], whether the tokenizer added it; such tokens are never cut off.
        type_ids: int32 [T], 1 for the second text of a pair.
    """

    ids: NDArray[np.int32]
    in_completion: NDArray[np.bool_]
    is_special: NDArray[np.bool_]
    type_ids: NDArray[np.int32]

    def pick(self, keep: NDArray[Any]) -> Tokens:
        """The tokens at some places."""
        return Tokens(
            ids=self.ids[keep],
            in_completion=self.in_completion[keep],
            is_special=self.is_special[keep],
            type_ids=self.type_ids[keep],
        )


class SampleEncoder:
    """Turns samples into tokens, as a `ModelConfig` says. Safe to call from several threads.

    Args:
        tokenizer: A fast transformers tokenizer, or None if only token ids will be sent.
        config: How.
        max_length: In tokens.
        vocab_size: Ids are below this.
        pair: Whether prompt and completion are a text pair, as for BERT-like cross-encoders.

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
    ) -> None:
        if tokenizer is not None:
            _check_tokenizer(tokenizer, config)
            # A fast tokenizer is safe to share between threads once the truncation and padding that
            # are stored with it are gone: then no call changes it.
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
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
            tokens = self._of_ids(sample)
        else:
            tokens = self._of_text(sample)
        if not len(tokens.ids):
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                "prompt and completion are empty: there is no token to score",
            )
        self.check_ids(tokens.ids)
        return tokens

    def _of_ids(self, sample: Sample) -> Tokens:
        """Ids are taken as they are; where only one side is ids, the other is plain text."""
        sides = [
            np.asarray(self._ids_of(side, name), np.int64)
            for side, name in ((sample.prompt, "prompt"), (sample.completion, "completion"))
        ]
        ids = np.concatenate(sides)
        self.check_ids(ids)
        in_completion = np.repeat([False, True], [len(side) for side in sides])
        return _tokens(ids, in_completion=in_completion)

    def _ids_of(self, side: Text, name: str) -> Sequence[int]:
        if isinstance(side, str):
            return self._tokenize(side, special=False)["input_ids"] if side else ()
        if _is_messages(side):
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                f"{name} is messages while the other side is token ids; send both as token ids",
            )
        return side  # type: ignore[return-value]

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

    def _of_text(self, sample: Sample) -> Tokens:
        chat = self._is_chat(sample)
        if self._pair and not chat:
            return self._of_pair(sample)
        text, start = self._rendered(sample) if chat else self._joined(sample)
        encoding = self._tokenize(text, special=not chat)
        ids = np.asarray(encoding["input_ids"], np.int32)
        special = np.asarray(encoding["special_tokens_mask"], bool)
        ends = np.asarray([end for _, end in encoding["offset_mapping"]], np.int64)
        # A token on the border counts as completion: it holds some of its characters.
        in_completion = (ends > start) & ~special
        # Whatever the tokenizer adds at the end comes after the completion's start.
        in_completion |= special & (np.cumsum(in_completion) > 0)
        return self._with_bos_and_eos(_tokens(ids, in_completion=in_completion, is_special=special))

    def _of_pair(self, sample: Sample) -> Tokens:
        encoding = self._tokenize(
            self._plain(sample.prompt), self._plain(sample.completion), special=True
        )
        type_ids = np.asarray(encoding["token_type_ids"], np.int32)
        sequence = encoding.sequence_ids(0)
        return _tokens(
            np.asarray(encoding["input_ids"], np.int32),
            in_completion=np.asarray([s == 1 for s in sequence], bool),
            is_special=np.asarray(encoding["special_tokens_mask"], bool),
            type_ids=type_ids,
        )

    def _is_chat(self, sample: Sample) -> bool:
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

    def _plain(self, side: Text) -> str:
        assert not side or isinstance(side, str), "messages are chats and ids are ids"
        return side if isinstance(side, str) else ""

    def _joined(self, sample: Sample) -> tuple[str, int]:
        """Prompt and completion as one text, and where the completion starts in it."""
        prompt, completion = self._plain(sample.prompt), self._plain(sample.completion)
        if self._config.text_template is None:
            return prompt + completion, len(prompt)
        before, _, after = self._config.text_template.partition("{completion}")
        # Replaced piece by piece: braces in untrusted text mean nothing.
        before, after = before.replace("{prompt}", prompt), after.replace("{prompt}", prompt)
        return before + completion + after, len(before)

    def _rendered(self, sample: Sample) -> tuple[str, int]:
        """The chat as its template writes it, and where the completion's content starts in it."""
        prompt = _as_messages(sample.prompt, "user") if sample.prompt else []
        completion = _as_messages(sample.completion, "assistant")
        full = self._apply_template(prompt + completion, add_generation_prompt=False)
        if not prompt:
            return full, 0
        opening = self._apply_template(prompt, add_generation_prompt=True)
        shared = len(os.path.commonprefix([full, opening]))  # noqa: RUF071 - characters are meant
        content = completion[0]["content"].strip() if completion else ""
        # Some templates put something before the content, for instance an empty thought.
        return full, max(shared, full.find(content, shared))

    def _apply_template(self, messages: list[dict[str, str]], **options: Any) -> str:
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

    def _tokenize(self, *texts: str, special: bool) -> Any:
        if self._tokenizer is None:
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                "the sample is text and the model has no tokenizer; send token ids",
            )
        try:
            return self._tokenizer(
                *texts,
                add_special_tokens=special,
                return_special_tokens_mask=True,
                return_offsets_mapping=True,
                return_token_type_ids=self._pair,
                return_attention_mask=False,
                verbose=False,
            )
        except (UnicodeError, TypeError) as error:
            for text in texts:
                if any("\ud800" <= char <= "\udfff" for char in text):
                    raise ItemFailure(
                        ItemErrorCode.INVALID_SAMPLE,
                        f"the text is not valid Unicode: {error}",
                    ) from None
            raise

    def _with_bos_and_eos(self, tokens: Tokens) -> Tokens:
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        num_bos = _leading(tokens.ids, bos)
        wanted = {"auto": min(num_bos, 1), "always": 1, "never": 0}[self._config.bos]
        if num_bos > wanted:
            tokens = tokens.pick(np.arange(len(tokens.ids)) >= num_bos - wanted)
        elif num_bos < wanted:
            tokens = _insert(tokens, 0, bos, in_completion=False)
        if wanted:
            tokens.is_special[0] = True  # a template's BOS is not to be cut off either
        if self._config.append_eos and (not len(tokens.ids) or tokens.ids[-1] != eos):
            tokens = _insert(tokens, len(tokens.ids), eos, in_completion=True)
        return tokens

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


def _check_tokenizer(tokenizer: Any, config: ModelConfig) -> None:
    if not tokenizer.is_fast:
        raise ConfigError(
            f"tokenizer: {type(tokenizer).__name__} has no fast form (tokenizer.json); convert it"
        )
    if config.input == "chat" and not tokenizer.chat_template:
        raise ConfigError("input: 'chat', but the tokenizer has no chat template; use 'text'")
    if config.bos == "always" and tokenizer.bos_token_id is None:
        raise ConfigError("bos: 'always', but the tokenizer has no BOS token; use 'auto'")
    if config.append_eos and tokenizer.eos_token_id is None:
        raise ConfigError("append_eos: true, but the tokenizer has no EOS token")


def _tokens(
    ids: NDArray[Any],
    *,
    in_completion: NDArray[np.bool_],
    is_special: NDArray[np.bool_] | None = None,
    type_ids: NDArray[np.int32] | None = None,
) -> Tokens:
    return Tokens(
        ids=ids.astype(np.int32),
        in_completion=in_completion,
        is_special=np.zeros(len(ids), bool) if is_special is None else is_special,
        type_ids=np.zeros(len(ids), np.int32) if type_ids is None else type_ids,
    )


def _insert(tokens: Tokens, at: int, token_id: int, *, in_completion: bool) -> Tokens:
    return Tokens(
        ids=np.insert(tokens.ids, at, token_id),
        in_completion=np.insert(tokens.in_completion, at, in_completion),
        is_special=np.insert(tokens.is_special, at, True),
        type_ids=np.insert(tokens.type_ids, at, 0),
    )


def _leading(ids: NDArray[np.int32], token_id: int | None) -> int:
    """How often `token_id` stands at the start."""
    others = np.flatnonzero(ids != token_id) if token_id is not None else np.zeros(1, np.int64)
    return int(others[0]) if len(others) else len(ids)


def _is_ids(side: Text) -> bool:
    return not isinstance(side, str) and len(side) > 0 and not isinstance(side[0], Message)


def _is_messages(side: Text) -> bool:
    return not isinstance(side, str) and len(side) > 0 and isinstance(side[0], Message)


def _as_messages(side: Text, role: str) -> list[dict[str, str]]:
    if isinstance(side, str):
        return [{"role": role, "content": side}]
    return [{"role": m.role, "content": m.content} for m in side if isinstance(m, Message)]
