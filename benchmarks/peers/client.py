"""The client, in a process of its own: a closed loop of single-sample requests, the same for all.

Reads one JSON object from standard input, and writes one to standard output:

    {"kind", "port", "texts", "concurrency", "warmup_s", "duration_s"}
    {"per_s", "words_per_s", "p50_ms", "p99_ms", "errors", "first"}

HTTP is spoken with a few lines of asyncio over kept connections, which costs a tenth of what a
general library does and so leaves the cores to the servers; gRPC with bare calls.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

Send = Callable[[str], Awaitable[float]]
"""Sends a text and gives its score; raises if it is refused."""

REQUEST_TIMEOUT_S = 60.0


def _infinity(text: str) -> tuple[str, Any]:
    return "/classify", {"model": "reward", "input": [text], "raw_scores": True}


def _unbatched(text: str) -> tuple[str, Any]:
    return "/get_reward", {"query": [text]}


def _litserve(text: str) -> tuple[str, Any]:
    return "/predict", {"text": text}


def _pytriton(text: str) -> tuple[str, Any]:
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    return "/v2/models/reward/infer", {"inputs": [tensor]}


REQUESTS: dict[str, Callable[[str], tuple[str, Any]]] = {
    "infinity": _infinity,
    "unbatched": _unbatched,
    "litserve": _litserve,
    "pytriton": _pytriton,
}
"""Peer → path and body of a request."""


def _log_odds(reply: Any) -> float:
    """The second label's logit, the first one's being 0.

    infinity 0.0.78 gives probabilities even with `raw_scores`: its pipeline has applied the softmax
    before it looks (transformer/classifier/torch.py).
    """
    share = {row["label"]: row["score"] for row in reply["data"][0]}
    return math.log(share["LABEL_1"]) - math.log(share["LABEL_0"])


SCORES: dict[str, Callable[[Any], float]] = {
    "infinity": _log_odds,
    "unbatched": lambda reply: reply["rewards"][0],
    "litserve": lambda reply: reply["score"],
    "pytriton": lambda reply: reply["outputs"][0]["data"][0],
}


class HttpConnection:
    """One kept connection."""

    def __init__(self, kind: str, port: int) -> None:
        self._make, self._read, self._port = REQUESTS[kind], SCORES[kind], port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __call__(self, text: str) -> float:
        """See `Send`."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        path, body = self._make(text)
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        try:
            status, reply = await _reply(reader)
        except (OSError, asyncio.IncompleteReadError):
            self._streams = None
            raise
        if status != 200:
            raise RuntimeError(f"status {status}: {reply[:200]!r}")
        return float(self._read(json.loads(reply)))

    async def close(self) -> None:
        """Closes the connection."""
        if self._streams is not None:
            _, writer = self._streams
            writer.close()
            await writer.wait_closed()


async def _reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(" ", 2)[1])
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    if "content-length" in headers:
        return status, await reader.readexactly(int(headers["content-length"]))
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return status, body


def _grpc_sender(port: int) -> tuple[Send, Any]:
    import grpc
    import numpy as np

    from rewardsvc.v1 import reward_pb2 as pb

    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    score = channel.unary_unary(
        "/rewardsvc.v1.RewardService/Score",
        request_serializer=pb.ScoreRequest.SerializeToString,
        response_deserializer=pb.ScoreResponse.FromString,
    )

    async def send(text: str) -> float:
        sample = pb.Sample(completion_text=text)
        reply = await score(pb.ScoreRequest(scorer="rm", samples=[sample]), timeout=60.0)
        value = float(np.frombuffer(reply.batch.values, "<f4")[0])
        if value != value:
            raise RuntimeError(str(reply.batch.details[0].error))
        return value

    return send, channel


async def run(order: dict[str, Any]) -> dict[str, Any]:
    """Runs the loop."""
    kind, port, texts = order["kind"], order["port"], order["texts"]
    channel = None
    connections: list[HttpConnection] = []
    if kind == "rewardsvc":
        sender, channel = _grpc_sender(port)
        senders = [sender] * order["concurrency"]
    else:
        senders = connections = [HttpConnection(kind, port) for _ in range(order["concurrency"])]
    started = time.perf_counter()
    start = started + order["warmup_s"]
    stop = start + order["duration_s"]
    endless = itertools.cycle(enumerate(texts))
    rows: list[tuple[float, float, int]] = []
    errors: list[str] = []
    first: dict[int, float] = {}

    async def slot(send: Send) -> None:
        while (began := time.perf_counter()) < stop:
            index, text = next(endless)
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    score = await send(text)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.05)
                continue
            rows.append((began, time.perf_counter(), text.count(" ") + 1))
            if index < order["num_compared"]:
                first[index] = score

    await asyncio.gather(*(slot(send) for send in senders))
    if channel is not None:
        await channel.close()
    for connection in connections:
        await connection.close()
    inside = [row for row in rows if start <= row[1] < stop]
    latencies = sorted(1000 * (done - began) for began, done, _ in inside)
    seconds = stop - start
    return {
        "per_s": len(inside) / seconds,
        "words_per_s": sum(words for *_, words in inside) / seconds,
        "p50_ms": latencies[len(latencies) // 2] if latencies else None,
        "p99_ms": latencies[int(0.99 * len(latencies))] if latencies else None,
        "errors": len(errors),
        "first_error": errors[0] if errors else None,
        "first": first,
    }


if __name__ == "__main__":
    json.dump(asyncio.run(run(json.load(sys.stdin))), sys.stdout)
