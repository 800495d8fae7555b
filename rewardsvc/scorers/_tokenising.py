"""Texts to tokens: a model's tokenizer behind the guard that keeps foreign text from control."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardsvc.errors import ConfigError, ItemErrorCode, ItemFailure
from rewardsvc.scorers._guard import Draft, Encoding, TokenGuard
from rewardsvc.scorers._model_config import ModelConfig
from rewardsvc.scorers._writing import Written


class TextTokenizer:
    """Tokenises what is written of a sample. Safe to call from several threads.

    Args:
        tokenizer: A fast transformers tokenizer, or None if only token ids will be sent.
        config: Says what becomes of text that looks like a control token, and is checked to ask
            for nothing that the tokenizer lacks.
        control: Token ids that texts must not produce, besides special tokens.
        allowed: Special tokens that texts may produce.

    Raises:
        ConfigError: If the tokenizer lacks what the configuration asks for.
    """

    def __init__(
        self,
        tokenizer: Any,
        config: ModelConfig,
        *,
        control: Iterable[int] = (),
        allowed: Iterable[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._split = config.special_tokens_in_text == "split"
        self._guard: TokenGuard | None = None
        if tokenizer is not None:
            _check_tokenizer(tokenizer, config)
            # A fast tokenizer is safe to share between threads once the truncation and padding that
            # are stored with it are gone: then no call changes it.
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
            self._guard = TokenGuard(tokenizer, control=control, allowed=allowed)

    @property
    def guard(self) -> TokenGuard:
        """Knows the tokenizer's control tokens.

        Raises:
            ItemFailure: INVALID_SAMPLE, if there is no tokenizer.
        """
        if self._guard is None:
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                "the sample is text and the model has no tokenizer; send token ids",
            )
        return self._guard

    def draft(self) -> Draft:
        """A draft to try a text with."""
        return Draft(self.guard, hide=False)

    def tokenize(
        self, write: Callable[[Draft], Written], *, special: bool
    ) -> tuple[Encoding, Written]:
        """Writes a text and tokenises it; see `rewardsvc.scorers._guard` for how and why.

        Args:
            write: Writes the text with a draft; called again if the first one is suspicious.
            special: Whether the tokenizer adds its own tokens around the text.

        Returns:
            The encoding, and the places in the text as its offsets count.

        Raises:
            ItemFailure: INVALID_SAMPLE, if there is no tokenizer or the text is not Unicode.
        """
        guard = self.guard
        draft = Draft(guard, hide=False)
        written = write(draft)
        if not (self._split and draft.suspicious):
            encoding = Encoding.of(self._backend_encode(written.text, special=special))
            if not (self._split and guard.is_forged(encoding, written.text)):
                return encoding, written
        draft = Draft(guard, hide=True)
        written = write(draft)
        try:
            encoding, points = guard.encode(written.text, draft, written.points, special=special)
        except (UnicodeError, TypeError) as error:
            raise _not_unicode(error, [written.text]) from None
        return encoding, written.moved(points)

    def tokenize_pair(self, first: str, second: str) -> Encoding:
        """Two texts, as the tokenizer puts them together.

        Raises:
            ItemFailure: As `tokenize`.
        """
        guard = self.guard
        encoding = Encoding.of(self._backend_encode(first, second, special=True), pair=True)
        if self._split:
            looks = guard.lookalikes(first) or guard.lookalikes(second)
            if looks or guard.is_forged(encoding, first, second):
                return guard.encode_pair(first, second)
        return encoding

    def ids_of(self, text: str, *, trusted: bool = False, before: str = "") -> NDArray[np.int64]:
        """A text's ids with nothing around it.

        Args:
            text: Not empty.
            trusted: Whether control tokens in it are meant.
            before: Text of ours that it follows.
        """

        def write(draft: Draft) -> Written:
            return Written(text=before + (text if trusted else draft.theirs(text)), start=0)

        return self.tokenize(write, special=False)[0].ids

    def _backend_encode(self, *texts: str, special: bool) -> Any:
        try:
            return self._tokenizer(
                *texts,
                add_special_tokens=special,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            ).encodings[0]
        except (UnicodeError, TypeError) as error:
            raise _not_unicode(error, texts) from None


def _not_unicode(error: Exception, texts: Sequence[str]) -> Exception:
    for text in texts:
        if any("\ud800" <= char <= "\udfff" for char in text):
            return ItemFailure(
                ItemErrorCode.INVALID_SAMPLE, f"the text is not valid Unicode: {error}"
            )
    return error


def _check_tokenizer(tokenizer: Any, config: ModelConfig) -> None:
    if not tokenizer.is_fast:
        raise ConfigError(
            f"tokenizer: {type(tokenizer).__name__} has no fast form (tokenizer.json); convert it"
        )
    if config.input == "chat" and not tokenizer.chat_template:
        raise ConfigError("input: 'chat', but the tokenizer has no chat template; use 'text'")
    if tokenizer.chat_template:
        _check_template(tokenizer)
    if config.bos == "always" and tokenizer.bos_token_id is None:
        raise ConfigError("bos: 'always', but the tokenizer has no BOS token; use 'auto'")
    if config.append_eos and tokenizer.eos_token_id is None:
        raise ConfigError("append_eos: true, but the tokenizer has no EOS token")


def _check_template(tokenizer: Any) -> None:
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    except TemplateSyntaxError as error:
        raise ConfigError(f"chat_template: is no Jinja template: {error}") from None
    except (TemplateError, TypeError, ValueError, LookupError):
        pass  # it wants other messages than these
