"""What is sent: synthetic samples of chosen lengths in groups of one prompt, or a recorded file.

Calls are made beforehand, as finished messages, so that while the load runs the generator does
nothing but send and wait.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from rewardsvc.v1 import reward_pb2 as pb

FIRST_ID = 10
"""Random token ids start here: those below are special in most vocabularies."""

SHORTEST, LONGEST = 1, 1_000_000

WORDS = tuple(
    re.findall(
        r"\w+",
        """
the of and to in is that it for was on are as with his they at be this have from or one had by
but not what all were we when your can said there use an each which she do how their if will
up other about out many then them these so some her would make like him into time has look
two more write go see number no way could people my than first water been call who its now
find long down day did get come made may part
        """,
    )
)


class Unit(StrEnum):
    """What lengths are counted in: words of text, or token ids, which need no tokenizer."""

    WORDS = "words"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A distribution of lengths.

    Attributes:
        kind: "fixed", "uniform" or "lognormal".
        first: The length; the least; or the mean.
        second: Unused; the greatest; or the deviation of the logarithm.
    """

    kind: str
    first: float
    second: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Reads "128", "uniform:16:512" or "lognormal:102:0.8".

        Raises:
            ValueError: If it is none of these.
        """
        kind, *numbers = text.split(":") if ":" in text else ("fixed", text)
        count = {"fixed": 1, "uniform": 2, "lognormal": 2}.get(kind)
        try:
            values = [float(number) for number in numbers]
        except ValueError:
            values = []
        if count is None or len(values) != count or not all(0 <= v <= LONGEST for v in values):
            raise ValueError(
                f"length {text!r}: write a number, uniform:LOW:HIGH or lognormal:MEAN:SIGMA"
            )
        found = cls(kind=kind, first=values[0], second=values[-1] if count == 2 else 0.0)
        if (kind == "uniform" and found.second < found.first) or (
            kind == "lognormal" and not values[0]
        ):
            raise ValueError(f"length {text!r}: HIGH is below LOW, or the mean is 0")
        return found

    def draw(self, rng: np.random.Generator) -> int:
        """One length; at least 1 unless it is fixed at 0."""
        if self.kind == "fixed":
            return int(self.first)
        if self.kind == "uniform":
            return max(SHORTEST, int(rng.integers(int(self.first), int(self.second) + 1)))
        # The mean of a log-normal is exp(mu + sigma^2 / 2).
        mu = math.log(self.first) - self.second**2 / 2
        return int(np.clip(round(rng.lognormal(mu, self.second)), SHORTEST, LONGEST))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Synthetic load.

    Attributes:
        prompt: Lengths of prompts.
        completion: Lengths of completions.
        unit: What both are counted in.
        group_size: Completions of each prompt; they are sent one after another.
        vocab_size: Random token ids are below this.
        max_length: Prompt and completion together are cut to this; 0 does not cut.
        seed: Of everything.
    """

    prompt: Lengths
    completion: Lengths
    unit: Unit = Unit.WORDS
    group_size: int = 1
    vocab_size: int = 1000
    max_length: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    Attributes:
        request: A serialised `ScoreRequest`, which a `ScoreStreamRequest` is field by field too.
        num_samples: In it.
        num_tokens: Token ids in it; 0 for text, whose tokens only the server knows.
    """

    request: bytes
    num_samples: int
    num_tokens: int


def synthetic_samples(shape: Shape) -> Iterator[tuple[pb.Sample, int]]:
    """Samples without end, and their tokens."""
    rng = np.random.default_rng(shape.seed)
    words = random.Random(shape.seed)
    while True:
        prompt_length = shape.prompt.draw(rng)
        prompt = _side(shape, prompt_length, rng, words)
        for _ in range(shape.group_size):
            length = shape.completion.draw(rng)
            if shape.max_length:
                length = max(SHORTEST, min(length, shape.max_length - prompt_length))
            completion = _side(shape, length, rng, words)
            sample = pb.Sample()
            if shape.unit is Unit.TOKENS:
                sample.prompt_ids.ids = prompt
                sample.completion_ids.ids = completion
                yield sample, prompt_length + length
            else:
                sample.prompt_text, sample.completion_text = prompt, completion
                yield sample, 0


def _side(shape: Shape, length: int, rng: np.random.Generator, words: random.Random) -> Any:
    if shape.unit is Unit.TOKENS:
        ids = rng.integers(min(FIRST_ID, shape.vocab_size - 1), shape.vocab_size, length)
        return ids.astype("<i4").tobytes()
    return " ".join(words.choices(WORDS, k=length))


def recorded_samples(file: Path) -> list[tuple[pb.Sample, int]]:
    """Samples of a JSONL file with `completion` and optionally `prompt`, `answer`, `metadata`.

    Raises:
        ValueError: If it cannot be read, or has no sample; names the line.
    """
    samples = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            samples.append((_sample(json.loads(line)), 0))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file}:{number}: no sample with `completion`: {error!r}") from None
    if not samples:
        raise ValueError(f"{file}: has no sample")
    return samples


def _sample(row: dict[str, Any]) -> pb.Sample:
    sample = pb.Sample()
    for name in ("prompt", "completion"):
        value = row[name] if name == "completion" else row.get(name, "")
        if isinstance(value, str):
            setattr(sample, f"{name}_text", value)
        else:
            messages = getattr(sample, f"{name}_messages").messages
            messages.extend(pb.Message(role=m["role"], content=m["content"]) for m in value)
    if row.get("answer") is not None:
        sample.answer = row["answer"]
    if row.get("metadata"):
        sample.metadata_json = json.dumps(row["metadata"])
    return sample


def calls(
    scorer: str,
    samples: Iterator[tuple[pb.Sample, int]] | Sequence[tuple[pb.Sample, int]],
    *,
    num_calls: int,
    per_call: int,
) -> list[Call]:
    """Calls of `per_call` samples each; a recorded list is gone through again from its start."""
    source = _endless(samples) if isinstance(samples, Sequence) else samples
    made = []
    for _ in range(num_calls):
        batch = [next(source) for _ in range(per_call)]
        request = pb.ScoreRequest(scorer=scorer, samples=[sample for sample, _ in batch])
        tokens = sum(num_tokens for _, num_tokens in batch)
        made.append(Call(request.SerializeToString(), per_call, tokens))
    return made


def _endless(samples: Sequence[tuple[pb.Sample, int]]) -> Iterator[tuple[pb.Sample, int]]:
    while True:
        yield from samples


def parse_steps(text: str, name: str) -> list[float]:
    """Reads "1,4,16,64".

    Raises:
        ValueError: If it is not a list of numbers above 0.
    """
    parts = [part for part in re.split(r"[,\s]+", text) if part]
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(f"{name}: {text!r} is not a list of numbers above 0, such as 1,4,16,64")
    return values
