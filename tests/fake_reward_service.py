# ruff: noqa: N802 - methods are named as in the contract
"""A real gRPC server with a scripted RewardService, for tests of the client.

What a sample is worth is its completion: a number is its value, and words ask for misbehaviour (see
`_score_one`). What a call does can be scripted from the outside with `Script`. As a program, it
serves on the port of its argument until it is killed.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from rewardsvc.v1 import reward_pb2 as pb
from rewardsvc.v1 import reward_pb2_grpc


@dataclass
class Script:
    """What the server does, and what it saw.

    Attributes:
        statuses: One a Score or TokenLogProbs call, consumed in order: (status code, retry delay in
            milliseconds or None). Calls after the last one are answered.
        delay_s: How long every Score call takes.
        corrupt: Changes a reply before it is sent.
        flaky: Completions that get a retryable error the first so many times.
        break_stream_after: Abort the stream when so many answers were sent, once.
        stream_code: Status of that abort.
        max_samples: Samples that a call may have.
    """

    statuses: list[tuple[grpc.StatusCode, int | None]] = field(default_factory=list)
    delay_s: float = 0.0
    corrupt: Any = None
    flaky: dict[str, int] = field(default_factory=dict)
    break_stream_after: int | None = None
    stream_code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    version: str = "v1"
    states: list[int] = field(default_factory=lambda: [pb.SCORER_STATE_READY])
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    times_left: list[float] = field(default_factory=list)
    num_cancelled: int = 0
    num_streams: int = 0
    num_active: int = 0
    max_active: int = 0
    lock: Any = field(default_factory=threading.Lock)


class FakeRewardService(reward_pb2_grpc.RewardServiceServicer):
    """Plays a script."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def Score(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        try:
            self._sleep(self.script.delay_s, context)
            batch = self._batch(list(request.samples))
            response = pb.ScoreResponse(batch=batch)
            if self.script.corrupt is not None:
                self.script.corrupt(response)
            return response
        finally:
            with self.script.lock:
                self.script.num_active -= 1

    def ScoreStream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        script = self.script
        script.num_streams += 1
        held: list[Any] = []
        num_sent = 0
        for request in requests:
            script.requests.append(request)
            # Last sample first: answers of a stream come in any order.
            for sample in reversed(request.samples):
                if sample.completion_text == "hold":
                    held.append(sample)
                    continue
                if script.break_stream_after is not None and num_sent >= script.break_stream_after:
                    script.break_stream_after = None
                    context.abort(script.stream_code, "scripted end of the stream")
                if sample.completion_text == "never":
                    continue
                yield self._stream_answer([sample])
                num_sent += 1
                if sample.completion_text == "twice":
                    yield self._stream_answer([sample])
        if held:
            yield self._stream_answer(held)

    def TokenLogProbs(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        with self.script.lock:
            self.script.num_active -= 1
        response = pb.TokenLogProbsResponse(version=self.script.version)
        logprobs, entropies = [], []
        for index, sequence in enumerate(request.sequences):
            ids = np.frombuffer(sequence.completion_ids, "<i4").astype(np.float32)
            if len(ids) and ids[0] == 666:
                ids = np.full(len(ids), np.nan, np.float32)
                detail = response.details.add(index=index)
                detail.error.code = pb.ITEM_ERROR_CODE_TOO_LONG
            # Anything that depends on each token and on the temperature.
            logprobs.append(-ids / request.temperature)
            entropies.append(ids / 2)
        response.logprobs = np.concatenate(logprobs).astype("<f4").tobytes()
        if request.entropy:
            response.entropies = np.concatenate(entropies).astype("<f4").tobytes()
        if self.script.corrupt is not None:
            self.script.corrupt(response)
        return response

    def GetServerInfo(self, request: Any, context: Any) -> Any:
        self.script.metadata.append(dict(context.invocation_metadata()))
        states = self.script.states
        state = states.pop(0) if len(states) > 1 else states[0]
        info = pb.ScorerInfo(
            name="s", type="math", state=state, version="v1", message="out of luck"
        )
        return pb.GetServerInfoResponse(
            server_version="0", scorers=[info], max_samples_per_call=7, max_message_bytes=9
        )

    def _enter(self, request: Any, context: Any) -> None:
        script = self.script
        with script.lock:
            script.requests.append(request)
            script.metadata.append(dict(context.invocation_metadata()))
            script.times_left.append(context.time_remaining())
            status = script.statuses.pop(0) if script.statuses else None
            if status is None:
                script.num_active += 1
                script.max_active = max(script.max_active, script.num_active)
        if request.scorer == "missing":
            status = (grpc.StatusCode.NOT_FOUND, None)
        if status is not None:
            code, delay_ms = status
            if delay_ms is not None:
                context.set_trailing_metadata((("retry-delay-ms", str(delay_ms)),))
            context.abort(code, "scripted failure")

    def _sleep(self, delay_s: float, context: Any) -> None:
        until = time.monotonic() + delay_s
        while time.monotonic() < until:
            time.sleep(0.01)
            if not context.is_active():
                with self.script.lock:
                    self.script.num_cancelled += 1
                return

    def _stream_answer(self, samples: list[Any]) -> Any:
        return pb.ScoreStreamResponse(ids=[s.id for s in samples], batch=self._batch(samples))

    def _batch(self, samples: list[Any]) -> Any:
        batch = pb.ScoreBatch(version=self.script.version)
        values = [self._score_one(batch, row, sample) for row, sample in enumerate(samples)]
        batch.values = np.array(values, "<f4").tobytes()
        lengths = np.array([len(s.prompt_text) for s in samples], "<f4")
        batch.components.add(name="prompt_length", values=lengths.tobytes())
        return batch

    def _score_one(self, batch: Any, row: int, sample: Any) -> float:
        text = sample.completion_text
        with self.script.lock:
            left = self.script.flaky.get(text, 0)
            if left:
                self.script.flaky[text] = left - 1
        if text == "bad" or left:
            detail = batch.details.add(index=row)
            detail.error.code = pb.ITEM_ERROR_CODE_SANDBOX_FAILURE
            detail.error.message = "scripted"
            detail.error.retryable = bool(left)
            return float("nan")
        if sample.HasField("answer"):
            right = sample.answer == text
            verdict = pb.VERDICT_ACCEPTED if right else pb.VERDICT_WRONG_ANSWER
            batch.details.add(index=row, verdict=verdict, explanation="compared")
            return float(right)
        if sample.metadata_json:
            return float(json.loads(sample.metadata_json)["bonus"])
        return float(text) if text.replace(".", "").isdecimal() else float(len(text))


def start(script: Script, port: int = 0, **options: int) -> tuple[grpc.Server, int]:
    """A running server and its port."""
    server = grpc.server(
        futures.ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0), *options.items()]
    )
    reward_pb2_grpc.add_RewardServiceServicer_to_server(FakeRewardService(script), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, bound


def main() -> None:
    """Serves until killed: `python fake_reward_service.py PORT DELAY_S`."""
    server, port = start(Script(delay_s=float(sys.argv[2])), int(sys.argv[1]))
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
