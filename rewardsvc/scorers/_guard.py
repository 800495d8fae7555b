"""Keeps text that a caller or a policy wrote from turning into control tokens.

A completion that says `</s>`, `<|im_end|>` or a step token would otherwise be tokenised as that
token: a policy could end its turn in the reward model's eyes, open a new one, or insert steps. So
texts are of two kinds. *Ours* are templates, whose control tokens are meant; *theirs* are prompts
and completions, whose control tokens are only characters that look like some.

How it works. A text in which nothing of theirs looks like a control token is tokenised as ever, so
honest texts have the tokens that they have always had. Only for others, everything of theirs that
looks like one is replaced by a placeholder that nobody can guess before templates are filled in.
Whatever still looks like a control token after that is ours. A twin of the tokenizer, which takes
control tokens for plain characters, then reads the text with *our* control tokens in the form of
private tokens of the twin, and theirs as they were written. The private tokens are exchanged for
the real ones at the end.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardsvc.errors import ItemErrorCode, ItemFailure

KEY_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoding:
    """A tokenised text, or pair of texts; columns of the same length T.

    Attributes:
        ids: int64 [T].
        starts: int64 [T], where each token's characters begin in its text.
        ends: int64 [T], where they end.
        added: bool [T], whether the tokenizer added the token around the text.
        sequence: int64 [T], of a pair: 0 for the first text, 1 for the second, -1 for added tokens.
        type_ids: int64 [T], as the tokenizer tells the texts of a pair apart.
    """

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    added: NDArray[np.bool_]
    sequence: NDArray[np.int64]
    type_ids: NDArray[np.int64]

    @classmethod
    def of(cls, encoding: Any, *, pair: bool = False) -> Encoding:
        """From an encoding of the tokenizers library."""
        offsets = np.asarray(encoding.offsets, np.int64).reshape(-1, 2)
        sequence = np.zeros(len(offsets), np.int64)
        if pair:
            sequence[:] = [-1 if owner is None else owner for owner in encoding.sequence_ids]
        return cls(
            ids=np.asarray(encoding.ids, np.int64),
            starts=offsets[:, 0],
            ends=offsets[:, 1],
            added=np.asarray(encoding.special_tokens_mask, bool),
            sequence=sequence,
            type_ids=np.asarray(encoding.type_ids, np.int64),
        )


class Draft:
    """One attempt at writing a sample as text; says what of theirs is to be written how.

    Args:
        guard: Knows the control tokens.
        hide: Whether to write placeholders for what looks like control tokens.

    Attributes:
        suspicious: Whether anything of theirs looked like a control token so far.
    """

    def __init__(self, guard: TokenGuard, *, hide: bool) -> None:
        self._guard = guard
        self._hide = hide
        self._num_marks = 0
        self.hidden: list[str] = []
        self.suspicious = False

    def mark(self) -> str:
        """A placeholder for a step's marker."""
        self._num_marks += 1
        return self._guard.placeholder("M", self._num_marks)

    @property
    def mark_pattern(self) -> str:
        """Matches what `mark` gave."""
        return self._guard.placeholder("M", r"\d+")

    def theirs(self, text: str) -> str:
        """A text of theirs, as it is to stand in the sample's text."""
        spans = self._guard.lookalikes(text)
        if not spans:
            return text
        self.suspicious = True
        if not self._hide:
            return text
        parts, done = [], 0
        for start, stop in spans:
            parts += [text[done:start], self._guard.placeholder("H", len(self.hidden))]
            self.hidden.append(text[start:stop])
            done = stop
        return "".join([*parts, text[done:]])


class TokenGuard:
    """See the module's text. Safe to use from several threads.

    Args:
        tokenizer: A fast transformers tokenizer.
        control: Further token ids that texts of theirs must not produce.
        allowed: Control tokens that they may write all the same.
    """

    def __init__(
        self, tokenizer: Any, *, control: Iterable[int] = (), allowed: Iterable[int] = ()
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        added = self._backend.get_added_tokens_decoder()
        wanted = {*tokenizer.all_special_ids, *control}
        self._tokens = {
            i: t for i, t in added.items() if (t.special or i in wanted) and i not in {*allowed}
        }
        self._id_of = {token.content: i for i, token in self._tokens.items()}
        # Unknown characters are the unknown token with good reason; only its name is a forgery.
        self._unk = tokenizer.unk_token_id
        self._is_control = np.zeros(1 + max(self._backend.get_vocab().values(), default=0), bool)
        self._is_control[list(self._tokens)] = True
        names = sorted(self._id_of, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)) if names else r"(?!)")
        self._heads = {name[:n] for name in names for n in range(1, len(name))}
        self._tails = {name[n:] for name in names for n in range(1, len(name))}
        self._longest = max(map(len, names), default=0)
        self._key = secrets.token_hex(KEY_BYTES)
        # Placeholders first: a control token may be a letter that stands in one.
        hidden = self.placeholder("H", r"(?P<hidden>\d+)")
        self._either = re.compile(f"{hidden}|{self._pattern.pattern}")
        self._lock = threading.Lock()
        self._twin_and_ids: tuple[Any, dict[int, int]] | None = None

    def placeholder(self, kind: str, index: int | str) -> str:
        """A text that nobody else can write; letters and digits, so that templates keep it."""
        return f"Q{self._key}{kind}{index}Q"

    def lookalikes(self, text: str) -> list[tuple[int, int]]:
        """Where the text looks like a control token, or its ends like a piece of one."""
        spans = [match.span() for match in self._pattern.finditer(text)]
        low, high = (spans[0][0], spans[-1][1]) if spans else (len(text), 0)
        reach = min(self._longest - 1, len(text))
        head = next((n for n in range(min(reach, low), 0, -1) if text[:n] in self._tails), 0)
        room = len(text) - max(high, head)
        tail = next((n for n in range(min(reach, room), 0, -1) if text[-n:] in self._heads), 0)
        ends = [(0, head)] if head else []
        return [*ends, *spans, *([(len(text) - tail, len(text))] if tail else [])]

    def is_forged(self, encoding: Encoding, *texts: str) -> bool:
        """Whether a control token stands where its name does not: normalisation made it."""
        for at in np.flatnonzero(self._controls(encoding)):
            text = texts[max(encoding.sequence[at], 0)]
            token = int(encoding.ids[at])
            written = text[encoding.starts[at] : encoding.ends[at]].strip()
            if token != self._unk and written != self._tokens[token].content.strip():
                return True
        return False

    def _controls(self, encoding: Encoding) -> NDArray[np.bool_]:
        controls: NDArray[np.bool_] = self._is_control[encoding.ids] & ~encoding.added
        return controls

    def encode(
        self, text: str, draft: Draft, points: Sequence[int], *, special: bool
    ) -> tuple[Encoding, list[int]]:
        """Tokenises a text of a draft with placeholders.

        Args:
            text: Ours and theirs; what of theirs looked like control tokens is hidden.
            draft: What hid it.
            points: Places in `text`, ascending.
            special: Whether the tokenizer adds its own tokens around the text.

        Returns:
            The encoding, and the points as its offsets count.

        Raises:
            ItemFailure: INVALID_SAMPLE, if the tokenizer knows no other way to write a text of
                theirs than with a control token.
        """
        written, moved = self._write(text, draft, points)
        twin, real_ids = self._twin()
        raw = Encoding.of(twin.encode(written, add_special_tokens=special))
        encoding = self._without_leaks(raw, written)
        for private, real in real_ids.items():
            encoding.ids[encoding.ids == private] = real
        return encoding, moved

    def encode_pair(self, first: str, second: str) -> Encoding:
        """Tokenises two texts of theirs as a pair."""
        twin, _ = self._twin()
        raw = Encoding.of(twin.encode(first, second), pair=True)
        return self._without_leaks(raw, first, second)

    def _write(self, text: str, draft: Draft, points: Sequence[int]) -> tuple[str, list[int]]:
        """The text for the twin: our control tokens as private ones, theirs as they were."""

        def write(match: re.Match[str]) -> str:
            if match["hidden"] is not None:
                return draft.hidden[int(match["hidden"])]
            return self.placeholder("T", self._id_of[match[0]])

        moved, pieces, length = [], [], 0
        for start, stop in zip([0, *points], [*points, len(text)], strict=True):
            piece = self._either.sub(write, text[start:stop])
            pieces.append(piece)
            length += len(piece)
            moved.append(length)
        return "".join(pieces), moved[:-1]

    def _twin(self) -> tuple[Any, dict[int, int]]:
        """The twin, and the real id of each of its private tokens. Made when first needed."""
        from tokenizers import AddedToken, Tokenizer

        with self._lock:
            if self._twin_and_ids is None:
                twin = Tokenizer.from_str(self._backend.to_str())
                twin.encode_special_tokens = True
                real_ids: dict[int, int] = {}
                for real, token in self._tokens.items():
                    name = self.placeholder("T", real)
                    private = AddedToken(
                        name,
                        special=False,
                        single_word=token.single_word,
                        lstrip=token.lstrip,
                        rstrip=token.rstrip,
                        normalized=token.normalized,
                    )
                    twin.add_tokens([private])
                    private_id = twin.token_to_id(name)
                    assert private_id is not None
                    real_ids[private_id] = real
                self._twin_and_ids = twin, real_ids
            return self._twin_and_ids

    def _without_leaks(self, encoding: Encoding, *texts: str) -> Encoding:
        """Some models have control tokens in their vocabulary and match them even as characters."""
        leaks = self._leaks(encoding, texts)
        if not leaks.any():
            return encoding
        rows: list[tuple[int, int, int, bool, int, int]] = []
        columns = (encoding.ids, encoding.starts, encoding.ends, encoding.added)
        for at, (token, start, end, added) in enumerate(zip(*columns, strict=True)):
            owner, kind = int(encoding.sequence[at]), int(encoding.type_ids[at])
            if not leaks[at]:
                rows.append((int(token), int(start), int(end), bool(added), owner, kind))
                continue
            text = texts[max(owner, 0)]
            for piece in self._spell(text, int(start), int(end)):
                rows.append((*piece, False, owner, kind))
        ids, starts, ends, added_, owners, kinds = (np.asarray(c) for c in zip(*rows, strict=True))
        return Encoding(
            ids=ids, starts=starts, ends=ends, added=added_, sequence=owners, type_ids=kinds
        )

    def _leaks(self, encoding: Encoding, texts: Sequence[str]) -> NDArray[np.bool_]:
        known = encoding.ids < len(self._is_control)
        leaks = np.zeros(len(encoding.ids), bool)
        leaks[known] = self._is_control[encoding.ids[known]] & ~encoding.added[known]
        if self._unk in self._tokens:
            name = self._tokens[self._unk].content
            for at in np.flatnonzero(leaks & (encoding.ids == self._unk)):
                text = texts[max(encoding.sequence[at], 0)]
                leaks[at] = text[encoding.starts[at] : encoding.ends[at]].strip() == name
        return leaks

    def _spell(self, text: str, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Ids and places of text[start:end], broken after its first character."""
        if end - start < 2:
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                f"the text {text[start:end]!r} is a control token of this model and cannot be "
                "written in another way; leave it out, or set special_tokens_in_text: allow",
            )
        twin, _ = self._twin()
        for low, high in ((start, start + 1), (start + 1, end)):
            piece = text[low:high]
            encoding = Encoding.of(twin.encode(piece, add_special_tokens=False))
            leaks = self._leaks(encoding, [piece])
            for at, token in enumerate(encoding.ids):
                first, last = low + int(encoding.starts[at]), low + int(encoding.ends[at])
                if leaks[at]:
                    yield from self._spell(text, first, last)
                else:
                    yield int(token), first, last
