"""RewardService: Score, ScoreStream, TokenLogProbs, GetServerInfo."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

import rewardsvc
from rewardsvc.config import MIB, ServerSettings
from rewardsvc.convert import info_to_proto, sequences_from_proto, token_scores_to_proto
from rewardsvc.errors import InvalidRequestError
from rewardsvc.scoring.registry import Registry
from rewardsvc.scoring.slot import Slot
from rewardsvc.scoring.tokens import TokenScores
from rewardsvc.servicers.auth import ApiKeys
from rewardsvc.servicers.gate import Gate
from rewardsvc.servicers.guard import deadline, statuses
from rewardsvc.servicers.identity import caller_of
from rewardsvc.servicers.lenient import Request
from rewardsvc.servicers.messages import score_messages
from rewardsvc.servicers.stream import ScoreStreamSession
from rewardsvc.v1 import reward_pb2 as pb
from rewardsvc.v1 import reward_pb2_grpc


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """Answers RewardService from a registry of scorers."""

    def __init__(
        self, registry: Registry, settings: ServerSettings, gate: Gate, keys: ApiKeys
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._gate = gate
        self._keys = keys

    async def Score(self, request: Any, context: Any) -> pb.ScoreResponse:  # noqa: N802
        """Scores N samples with one scorer; see the proto."""
        async with statuses(context):
            request, bad = _unpack(request)
            with self._gate.enter():
                self._check_size("samples", len(request.samples))
                slot = self._slot(request.scorer)
                async with deadline(
                    context,
                    self._settings.default_deadline_s,
                    priority=request.priority,
                    client=caller_of(context, self._keys).client(request.client_id),
                ):
                    batch = await score_messages(slot, request.samples, bad)
                    return pb.ScoreResponse(batch=batch)
        raise AssertionError("abort raises")

    async def ScoreStream(  # noqa: N802
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        """Scores samples as they come; see the proto."""
        async with statuses(context):
            with self._gate.enter():
                async with deadline(context, self._settings.default_deadline_s):
                    session = ScoreStreamSession(
                        self._slot,
                        self._gate,
                        caller_of(context, self._keys),
                        max_in_flight=self._settings.max_stream_samples,
                    )
                    async for reply in session.run(_unpack(r) async for r in request_iterator):
                        yield reply

    async def TokenLogProbs(  # noqa: N802
        self, request: pb.TokenLogProbsRequest, context: Any
    ) -> pb.TokenLogProbsResponse:
        """Log-probs of given tokens; see the proto."""
        async with statuses(context):
            with self._gate.enter():
                self._check_size("sequences", len(request.sequences))
                temperature = request.temperature or 1.0
                if not math.isfinite(temperature) or temperature < 0:
                    raise InvalidRequestError(
                        f"temperature: {temperature} must be finite and above 0, or 0 for 1.0"
                    )
                slot = self._slot(request.scorer)
                async with deadline(
                    context,
                    self._settings.default_deadline_s,
                    priority=request.priority,
                    client=caller_of(context, self._keys).client(request.client_id),
                ):
                    good, indices, failed = sequences_from_proto(request.sequences)
                    answers, version = await slot.token_logprobs_versioned(
                        good, temperature, request.entropy
                    )
                    by_index = {i: TokenScores(error=error) for i, error in failed.items()}
                    by_index.update(zip(indices, answers, strict=True))
                    return token_scores_to_proto(
                        request.sequences, by_index, version, request.entropy
                    )
        raise AssertionError("abort raises")

    async def GetServerInfo(  # noqa: N802
        self, request: pb.GetServerInfoRequest, context: Any
    ) -> pb.GetServerInfoResponse:
        """Names, kinds, states and limits; answered in every phase."""
        return pb.GetServerInfoResponse(
            server_version=rewardsvc.__version__,
            scorers=[info_to_proto(info) for info in self._registry.infos()],
            max_samples_per_call=self._settings.max_samples_per_call,
            max_message_bytes=self._settings.max_message_mib * MIB,
        )

    def _slot(self, name: str) -> Slot:
        if not name:
            raise InvalidRequestError("scorer: empty; name one of the server's scorers")
        return self._registry.get(name)

    def _check_size(self, field: str, size: int) -> None:
        limit = self._settings.max_samples_per_call
        if size > limit:
            raise InvalidRequestError(
                f"{field}: {size} in one call, at most {limit}; split the call, "
                "or raise server.max_samples_per_call"
            )


def _unpack(request: Any) -> tuple[Any, dict[int, str]]:
    """The message and its known-bad samples; a host that parses by itself (Ray) has no second."""
    if isinstance(request, Request):
        return request.message, request.bad
    return request, {}
