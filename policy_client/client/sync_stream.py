"""The blocking driver of a stream.

The caller's own thread, inside `next`, handles events from one queue. Others fill it: the *feeder*
runs the caller's iterable, so that a slow source never holds back answers; the *reader* takes
replies. gRPC's sender takes requests from a second queue. All are daemons: a source that blocks for
ever does not keep the process alive.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import grpc

from rewardsvc.policy_client.client.channels import MAX_BLOCKING_WAIT_S, rpc_failure
from rewardsvc.policy_client.client.stream import (
    Answer,
    Ended,
    Event,
    Fed,
    Received,
    SourceEnded,
    StreamState,
)
from rewardsvc.policy_client.client.types import ScoreItem

# How long to wait for the server's goodbye after the last answer.
_LINGER_S = 1.0

OpenStream = Callable[[str, Iterator[Any]], Any]
"""(address, requests) → the RPC."""


def run_stream(
    state: StreamState,
    samples: Iterable[ScoreItem | Mapping[str, Any]],
    window: int,
    open_stream: OpenStream,
) -> Iterator[Answer]:
    """Yields answers as they come, with at most `window` samples on their way."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    feeder = _Feeder(samples, window, events)
    connection: _Connection | None = None
    try:
        while not state.finished:
            now = time.monotonic()
            address = state.connect_to(now)
            if address is not None:
                connection = _Connection(open_stream, address, events)
            for message in state.messages(now):
                assert connection is not None
                connection.send(message)
            try:
                event = events.get(timeout=min(state.wait_s(now), MAX_BLOCKING_WAIT_S))
            except queue.Empty:
                answers = state.expired(time.monotonic())
            else:
                answers = state.handle(event, time.monotonic())
            for answer in answers:
                yield answer
                feeder.free_slot()
        if connection is not None and state.connected:
            connection.half_close()
            _wait_for_end(state, events)
    finally:
        feeder.stop()
        if connection is not None:
            connection.cancel()
        state.closed()


def _wait_for_end(state: StreamState, events: queue.SimpleQueue[Event]) -> None:
    """Lets the server end the stream in good order; nothing depends on it any more."""
    until = time.monotonic() + _LINGER_S
    while state.connected and time.monotonic() < until:
        try:
            event = events.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return
        if isinstance(event, Ended):
            return


class _Feeder:
    """Runs the caller's iterable in a thread, never more than a window ahead of the answers."""

    def __init__(
        self,
        samples: Iterable[ScoreItem | Mapping[str, Any]],
        window: int,
        events: queue.SimpleQueue[Event],
    ) -> None:
        self._slots = threading.Semaphore(window)
        self._stopped = False
        self._samples = samples
        self._events = events
        threading.Thread(target=self._run, name="score-stream-feeder", daemon=True).start()

    def free_slot(self) -> None:
        """One answer was handed out."""
        self._slots.release()

    def stop(self) -> None:
        """Takes no further sample."""
        self._stopped = True
        self._slots.release()

    def _run(self) -> None:
        try:
            source = iter(self._samples)
            while True:
                self._slots.acquire()
                if self._stopped:
                    return
                try:
                    item = next(source)
                except StopIteration:
                    break
                self._events.put(Fed(item))
        except BaseException as error:  # handed to the caller's thread, whatever it is
            self._events.put(SourceEnded(error))
        else:
            self._events.put(SourceEnded())


class _Connection:
    """One RPC: a queue of requests, and a thread that turns replies into events."""

    def __init__(
        self, open_stream: OpenStream, address: str, events: queue.SimpleQueue[Event]
    ) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call = open_stream(address, iter(self._requests.get, None))
        self._events = events
        threading.Thread(target=self._read, name="score-stream-reader", daemon=True).start()

    def send(self, message: Any) -> None:
        """Queues a message."""
        self._requests.put(message)

    def half_close(self) -> None:
        """Says that no more messages come."""
        self._requests.put(None)

    def cancel(self) -> None:
        """Ends the RPC, and with it both threads; harmless if it has ended."""
        self._requests.put(None)
        self._call.cancel()

    def _read(self) -> None:
        failure = None
        try:
            for response in self._call:
                self._events.put(Received(response))
        except grpc.RpcError:
            call = self._call
            failure = rpc_failure(call.code(), call.details(), call.trailing_metadata())
        finally:
            # Releases gRPC's sender, which otherwise waits for a next request for ever.
            self._requests.put(None)
            self._events.put(Ended(failure))
