"""Protobuf to our types and back: the one conversion at the edge.

Nothing here fails a batch because of one sample: what cannot be understood becomes that sample's
`ItemError`, and the rest is scored.

Shape legend: N items, S steps in all, T tokens in all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rewardsvc.errors import ItemError, ItemErrorCode, ItemFailure
from rewardsvc.scoring.slot import ScorerInfo, State
from rewardsvc.scoring.tokens import TokenScores, TokenSequence
from rewardsvc.scoring.types import JsonValue, Message, Sample, Score, Text, Verdict
from rewardsvc.v1 import reward_pb2 as pb

MAX_ID_BYTES = 256
MAX_METADATA_BYTES = 1 << 20
INT32_BYTES = 4

VERDICTS: dict[Verdict, pb.Verdict.ValueType] = {
    verdict: pb.Verdict.Value(f"VERDICT_{verdict.name}") for verdict in Verdict
}
ERROR_CODES: dict[ItemErrorCode, pb.ItemErrorCode.ValueType] = {
    code: pb.ItemErrorCode.Value(f"ITEM_ERROR_CODE_{code.name}") for code in ItemErrorCode
}
STATES: dict[State, pb.ScorerState.ValueType] = {
    state: pb.ScorerState.Value(f"SCORER_STATE_{state.name}") for state in State
}


def sample_from_proto(message: pb.Sample) -> Sample:
    """One sample of a request.

    Raises:
        ItemFailure: INVALID_SAMPLE, if a field is missing or malformed.
    """
    if len(message.id.encode()) > MAX_ID_BYTES:
        raise _invalid(f"id: {len(message.id.encode())} bytes; use at most {MAX_ID_BYTES}")
    completion = _text(message, "completion")
    if completion is None:
        raise _invalid(
            "completion: missing; set completion_text, completion_messages or completion_ids"
        )
    return Sample(
        prompt=_text(message, "prompt") or "",
        completion=completion,
        answer=message.answer if message.HasField("answer") else None,
        tests_json=message.tests_json if message.HasField("tests_json") else None,
        rubric=message.rubric if message.HasField("rubric") else None,
        id=message.id,
        metadata=_metadata(message.metadata_json),
    )


def _text(message: pb.Sample, field: Literal["prompt", "completion"]) -> Text | None:
    which = message.WhichOneof(field)
    if which is None:
        return None
    value = getattr(message, which)
    if isinstance(value, str):
        return value
    if isinstance(value, pb.Messages):
        return tuple(Message(m.role, m.content) for m in value.messages)
    return tuple(_int32(value.ids, which).tolist())


def _int32(data: bytes, field: str) -> NDArray[np.int32]:
    if len(data) % INT32_BYTES:
        raise _invalid(f"{field}: {len(data)} bytes is not a whole number of little-endian int32")
    return np.frombuffer(data, "<i4").astype(np.int32, copy=False)


def _metadata(text: str) -> Mapping[str, JsonValue]:
    if not text:
        return {}
    if len(text) > MAX_METADATA_BYTES:
        raise _invalid(f"metadata_json: {len(text)} characters; at most {MAX_METADATA_BYTES}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"metadata_json: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _invalid(f"metadata_json: must be a JSON object, not {type(value).__name__}")
    return value


def _invalid(message: str) -> ItemFailure:
    return ItemFailure(ItemErrorCode.INVALID_SAMPLE, message)


def samples_from_proto(
    messages: Sequence[pb.Sample], bad: Mapping[int, str]
) -> tuple[list[Sample], list[int], dict[int, Score]]:
    """The samples of a request, and what is wrong with the others.

    Args:
        messages: The request's samples.
        bad: Index → complaint, for samples already known to be malformed.

    Returns:
        The good samples, their indices in the request, and index → error score for the bad ones.
    """
    good: list[Sample] = []
    indices: list[int] = []
    failed: dict[int, Score] = {}
    for index, message in enumerate(messages):
        if index in bad:
            failed[index] = Score.failed(ItemErrorCode.INVALID_SAMPLE, bad[index])
            continue
        try:
            good.append(sample_from_proto(message))
            indices.append(index)
        except ItemFailure as failure:
            failed[index] = Score(error=failure.error)
    return good, indices, failed


def merge(
    num_items: int, indices: Sequence[int], scores: Sequence[Score], failed: Mapping[int, Score]
) -> list[Score]:
    """Puts scores and failures back into the request's order."""
    by_index = {**failed, **dict(zip(indices, scores, strict=True))}
    return [by_index[i] for i in range(num_items)]


def batch_to_proto(scores: Sequence[Score], version: str) -> pb.ScoreBatch:
    """Scores as columns of little-endian bytes."""
    values_N = np.array([_nan_if_none(s.value) for s in scores], "<f4")
    batch = pb.ScoreBatch(values=values_N.tobytes(), version=version)
    for name in dict.fromkeys(name for s in scores for name in s.components):
        column_N = np.array([s.components.get(name, math.nan) for s in scores], "<f4")
        batch.components.add(name=name, values=column_N.tobytes())
    if any(s.steps for s in scores):
        batch.steps = np.array([step for s in scores for step in s.steps], "<f4").tobytes()
        batch.step_counts = np.array([len(s.steps) for s in scores], "<i4").tobytes()
    for index, score in enumerate(scores):
        if score.verdict is None and not score.explanation and score.error is None:
            continue
        detail = batch.details.add(index=index, explanation=wire_text(score.explanation))
        if score.verdict is not None:
            detail.verdict = VERDICTS[score.verdict]
        if score.error is not None:
            _set_error(detail.error, score.error)
    return batch


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else value


def _set_error(target: pb.ItemError, error: ItemError) -> None:
    target.code = ERROR_CODES[error.code]
    target.message = wire_text(error.message)
    target.retryable = error.retryable


def wire_text(text: str) -> str:
    """`text` as valid UTF-8: explanations quote hostile completions, lone surrogates included."""
    return text.encode("utf-8", "replace").decode("utf-8")


def sequences_from_proto(
    messages: Sequence[pb.TokenSequence],
) -> tuple[list[TokenSequence], list[int], dict[int, ItemError]]:
    """The token sequences of a request, their indices, and what is wrong with the others."""
    good: list[TokenSequence] = []
    indices: list[int] = []
    failed: dict[int, ItemError] = {}
    for index, message in enumerate(messages):
        try:
            prompt_P = _int32(message.prompt_ids, "prompt_ids")
            if not prompt_P.size:
                raise _invalid("prompt_ids: empty; the first completion token needs a context")
            completion_C = _int32(message.completion_ids, "completion_ids")
            good.append(TokenSequence(prompt_ids=prompt_P, completion_ids=completion_C))
            indices.append(index)
        except ItemFailure as failure:
            failed[index] = failure.error
    return good, indices, failed


def token_scores_to_proto(
    messages: Sequence[pb.TokenSequence],
    answers: Mapping[int, TokenScores],
    version: str,
    entropy: bool,
) -> pb.TokenLogProbsResponse:
    """Log-probs one sequence after another; NaN for each token of a failed sequence.

    Args:
        messages: The request's sequences.
        answers: Index → answer, for every sequence.
        version: The model's version.
        entropy: Whether entropies were asked for.
    """
    reply = pb.TokenLogProbsResponse(version=version)
    logprobs_T: list[NDArray[np.float32]] = []
    entropies_T: list[NDArray[np.float32]] = []
    for index, message in enumerate(messages):
        answer = answers[index]
        if answer.error is not None:
            _set_error(reply.details.add(index=index).error, answer.error)
            nan_C = np.full(len(message.completion_ids) // INT32_BYTES, np.nan, np.float32)
            logprobs_T.append(nan_C)
            entropies_T.append(nan_C)
        else:
            logprobs_T.append(answer.logprobs)
            entropies_T.append(answer.entropies)
    reply.logprobs = _concatenated(logprobs_T)
    if entropy:
        reply.entropies = _concatenated(entropies_T)
    return reply


def _concatenated(arrays: Sequence[NDArray[np.float32]]) -> bytes:
    return np.concatenate(arrays).astype("<f4").tobytes() if arrays else b""


def info_to_proto(info: ScorerInfo) -> pb.ScorerInfo:
    """One scorer's state."""
    return pb.ScorerInfo(
        name=info.name,
        type=info.type,
        state=STATES[info.state],
        version=info.version,
        message=wire_text(info.message),
    )
