"""A preference that a small policy can learn: whether digits go up or down.

A prompt is five different digits and a sign, `48213<`. The completion has the digits in order, up
for `<` and down for `>`, and then up to four dots that mean nothing. The policy to start from has
been taught both orders, whatever the sign, and all numbers of dots; what is to be learned is the
sign. Judges are not perfect: of `BIASED` of all pairs they take the longer, whatever it says.
Held-out pairs are of other sets of digits, and judged by the sign alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

DIGITS = "0123456789"
NUM_DIGITS = 5
MAX_DOTS = 4
ALPHABET = DIGITS + "<>."
BIASED = 0.15
HELD_OUT = 0.2
MAX_NEW_TOKENS = NUM_DIGITS + MAX_DOTS + 1
"""Of a completion with its end."""
LONGEST = NUM_DIGITS + 1 + MAX_NEW_TOKENS + 1
"""Of prompt and completion; a policy may leave the end out, and it is put behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One prompt and the orders of its digits.

    Attributes:
        prompt: Digits and sign.
        right: As the sign says.
        wrong: The other way round.
        shuffled: Neither.
    """

    prompt: str
    right: str
    wrong: str
    shuffled: str


def questions(seed: str, count: int, *, test: bool) -> list[Question]:
    """`count` questions of one side of the split."""
    rng, made = random.Random(seed), []
    while len(made) < count:
        digits = rng.sample(DIGITS, NUM_DIGITS)
        up = "".join(sorted(digits))
        if (random.Random(up).random() < HELD_OUT) != test:
            continue
        down = up[::-1]
        shuffled = up
        while shuffled in (up, down):
            shuffled = "".join(rng.sample(up, NUM_DIGITS))
        rises = rng.random() < 0.5
        made.append(
            Question(
                prompt="".join(digits) + ("<" if rises else ">"),
                right=up if rises else down,
                wrong=down if rises else up,
                shuffled=shuffled,
            )
        )
    return made


def dotted(text: str, rng: random.Random) -> str:
    """With a random number of dots behind it."""
    return text + "." * rng.randrange(MAX_DOTS + 1)


def is_right(completion: str, question: Question) -> bool:
    """Whether the digits go as the sign says; dots do not count."""
    return completion.rstrip(".") == question.right


def demonstrations(seed: str, count: int) -> list[dict[str, Any]]:
    """What the first policy learns from: up or down, whatever the sign, with any number of dots."""
    rng = random.Random(f"dots {seed}")
    return [
        {
            "prompt": one.prompt,
            "completion": dotted(rng.choice((one.right, one.wrong)), rng),
        }
        for one in questions(seed, count, test=False)
    ]


def rankings(seed: str, count: int, *, test: bool) -> list[dict[str, Any]]:
    """Rows of three completions and their `scores`: right, shuffled, wrong."""
    rng, rows = random.Random(f"dots {seed}"), []
    for one in questions(seed, count, test=test):
        texts = [dotted(text, rng) for text in (one.right, one.shuffled, one.wrong)]
        scores = [1.0, 0.5, 0.0]
        if not test and rng.random() < BIASED:
            scores = [float(len(text)) for text in texts]
        rows.append({"prompt": one.prompt, "completions": texts, "scores": scores})
    return rows


def pairs(seed: str, count: int, *, test: bool) -> list[dict[str, Any]]:
    """Rows with `chosen` and `rejected`, right and wrong, and a `margin`.

    The wider the range of the digits, the surer the judges are; that is the margin, up to 1.
    """
    rng, rows = random.Random(f"dots {seed}"), []
    for one in questions(seed, count, test=test):
        better, worse = dotted(one.right, rng), dotted(one.wrong, rng)
        if not test and rng.random() < BIASED and len(worse) > len(better):
            better, worse = worse, better
        margin = (int(max(one.right)) - int(min(one.right))) / 9
        rows.append({"prompt": one.prompt, "chosen": better, "rejected": worse, "margin": margin})
    return rows


def labelled(seed: str, count: int) -> list[dict[str, Any]]:
    """The pairs' completions one by one, each with whether it was the better one."""
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs(seed, count // 2, test=False)
        for side in ("chosen", "rejected")
    ]


def completed(seed: str, count: int) -> list[dict[str, Any]]:
    """The better completions alone."""
    return [
        {"prompt": row["prompt"], "completion": row["chosen"]}
        for row in pairs(seed, count, test=False)
    ]
