"""From samples to the messages that workers take, and from their replies to scores.

The mirror image of `rewardsvc.convert`, which has the other two directions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np

from rewardsvc.convert import ERROR_CODES, VERDICTS
from rewardsvc.errors import ItemError, ItemErrorCode
from rewardsvc.scoring.tokens import TokenScores, TokenSequence
from rewardsvc.scoring.types import Message, Sample, Score, Text
from rewardsvc.v1 import reward_pb2 as pb

VERDICT_OF = {number: verdict for verdict, number in VERDICTS.items()}
CODE_OF = {number: code for code, number in ERROR_CODES.items()}


def sample_to_proto(sample: Sample) -> pb.Sample:
    """The message of a sample.

    Raises:
        UnicodeEncodeError: If a text is not valid Unicode.
    """
    message = pb.Sample(id=sample.id)
    _set_text(message, "prompt", sample.prompt)
    _set_text(message, "completion", sample.completion)
    if sample.answer is not None:
        message.answer = sample.answer
    if sample.tests_json is not None:
        message.tests_json = sample.tests_json
    if sample.rubric is not None:
        message.rubric = sample.rubric
    if sample.metadata:
        message.metadata_json = json.dumps(sample.metadata)
    return message


def _set_text(message: pb.Sample, side: str, text: Text) -> None:
    if isinstance(text, str):
        setattr(message, f"{side}_text", text)
    elif text and isinstance(text[0], Message):
        turns = [pb.Message(role=m.role, content=m.content) for m in text if isinstance(m, Message)]
        getattr(message, f"{side}_messages").CopyFrom(pb.Messages(messages=turns))
    else:
        ids = np.asarray(text, "<i4").tobytes()
        getattr(message, f"{side}_ids").CopyFrom(pb.TokenIds(ids=ids))


def scores_from_proto(batch: pb.ScoreBatch) -> list[Score]:
    """The scores of a reply, in order."""
    values = np.frombuffer(batch.values, "<f4").tolist()
    components: list[dict[str, float]] = [{} for _ in values]
    for column in batch.components:
        for parts, value in zip(components, np.frombuffer(column.values, "<f4"), strict=True):
            if not math.isnan(value):
                parts[column.name] = float(value)
    steps: list[tuple[float, ...]] = [()] * len(values)
    if batch.step_counts:
        stops = np.cumsum(np.frombuffer(batch.step_counts, "<i4"))
        split = np.split(np.frombuffer(batch.steps, "<f4"), stops[:-1])
        steps = [tuple(part.tolist()) for part in split]
    details = {detail.index: detail for detail in batch.details}
    scores = []
    for index, value in enumerate(values):
        detail = details.get(index)
        error = _error(detail)
        scores.append(
            Score(
                value=None if error else value,
                components=components[index],
                steps=steps[index],
                verdict=VERDICT_OF.get(detail.verdict) if detail else None,
                explanation=detail.explanation if detail else "",
                error=error,
            )
        )
    return scores


def _error(detail: pb.ItemDetail | None) -> ItemError | None:
    if detail is None or not detail.HasField("error"):
        return None
    code = CODE_OF.get(detail.error.code, ItemErrorCode.INTERNAL)
    return ItemError(code, detail.error.message, detail.error.retryable)


def sequence_to_proto(sequence: TokenSequence) -> pb.TokenSequence:
    """The message of a token sequence."""
    return pb.TokenSequence(
        prompt_ids=sequence.prompt_ids.astype("<i4").tobytes(),
        completion_ids=sequence.completion_ids.astype("<i4").tobytes(),
    )


def token_scores_from_proto(
    reply: pb.TokenLogProbsResponse, sequences: Sequence[TokenSequence]
) -> list[TokenScores]:
    """The log-probs of a reply, one answer a sequence."""
    stops = np.cumsum([len(s.completion_ids) for s in sequences])[:-1]
    logprobs = np.split(np.frombuffer(reply.logprobs, "<f4").astype(np.float32), stops)
    none = [np.empty(0, np.float32)] * len(sequences)
    entropies = none
    if reply.entropies:
        entropies = np.split(np.frombuffer(reply.entropies, "<f4").astype(np.float32), stops)
    errors = {detail.index: _error(detail) for detail in reply.details}
    return [
        TokenScores(error=errors[i])
        if errors.get(i) is not None
        else TokenScores(logprobs=logprobs[i], entropies=entropies[i])
        for i in range(len(sequences))
    ]
