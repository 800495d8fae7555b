"""A sample as tokens: parallel columns, so that a cut or an added token keeps them in step."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardsvc.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """A sample as tokens; columns of the same length T.

    Attributes:
        ids: int32 [T].
        in_completion: bool [T], whether the token belongs to the completion or stands after it.
        is_special: bool [T], whether the tokenizer added it; such tokens are never cut off.
        type_ids: int32 [T], 1 for the second text of a pair.
        marks: bool [T], where a head is to be read, for process rewards.
    """

    ids: NDArray[np.int32]
    in_completion: NDArray[np.bool_]
    is_special: NDArray[np.bool_]
    type_ids: NDArray[np.int32]
    marks: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        ids: NDArray[Any],
        *,
        in_completion: NDArray[np.bool_] | bool = False,
        is_special: NDArray[np.bool_] | None = None,
        type_ids: NDArray[Any] | None = None,
        marks: NDArray[np.bool_] | None = None,
    ) -> Tokens:
        """Columns that are not given are False or 0 throughout."""
        length = len(ids)
        return cls(
            ids=np.asarray(ids, np.int32),
            in_completion=np.broadcast_to(np.asarray(in_completion, bool), length).copy(),
            is_special=np.zeros(length, bool) if is_special is None else is_special,
            type_ids=np.zeros(length, np.int32) if type_ids is None else type_ids.astype(np.int32),
            marks=np.zeros(length, bool) if marks is None else marks,
        )

    @classmethod
    def joined(cls, *parts: Tokens) -> Tokens:
        """One after the other."""
        names = [field.name for field in fields(cls)]
        return cls(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})

    def pick(self, keep: NDArray[Any]) -> Tokens:
        """The tokens at some places."""
        return Tokens(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})

    def insert(self, at: int, token_id: int, *, in_completion: bool) -> Tokens:
        """With a special token at a place."""
        new = Tokens.of(
            np.asarray([token_id]), in_completion=in_completion, is_special=np.ones(1, bool)
        )
        places = np.arange(len(self.ids))
        return Tokens.joined(self.pick(places < at), new, self.pick(places >= at))


def leading(ids: NDArray[np.int32], token_id: int | None) -> int:
    """How often `token_id` stands at the start."""
    others = np.flatnonzero(ids != token_id) if token_id is not None else np.zeros(1, np.int64)
    return int(others[0]) if len(others) else len(ids)


def overlapping(starts: NDArray[Any], ends: NDArray[Any], span: tuple[int, int]) -> NDArray[Any]:
    """Indices of the tokens that hold a character of a span: int64 [n], ascending."""
    found: NDArray[Any] = np.flatnonzero((ends > span[0]) & (starts < span[1]) & (ends > starts))
    return found


def token_id(tokenizer: Any, token: str | int, field: str) -> int:
    """The id of a token that is given as text or id.

    Raises:
        ConfigError: If the text is not one token; names `field`.
    """
    if isinstance(token, int):
        return token
    if tokenizer is None:
        raise ConfigError(
            f"{field}: {token!r} is text, but the model has no tokenizer; give the id"
        )
    found = tokenizer.get_vocab().get(token)
    if found is not None:
        return int(found)
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1:
        raise ConfigError(
            f"{field}: {token!r} is {len(ids)} tokens {ids} of this tokenizer; give one token or "
            "its id"
        )
    return int(ids[0])
