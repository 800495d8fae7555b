"""The connections of the blocking client, and how it drives a job over them."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc

from rewardsvc.policy_client.client.addresses import AddressPool
from rewardsvc.policy_client.client.channels import (
    MAX_BLOCKING_WAIT_S,
    call_metadata,
    channel_credentials,
    channel_options,
    rpc_failure,
)
from rewardsvc.policy_client.client.jobs import Attempt, Job
from rewardsvc.policy_client.client.settings import ClientSettings
from rewardsvc.policy_client.client.stream import MAX_CONNECTION_AGE_S
from rewardsvc.v1.reward_pb2_grpc import RewardServiceStub

_forked = False


def _note_fork() -> None:
    """In a forked child gRPC may hang where it should fail; there, nobody waits inside of it."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


class Connections:
    """The channels of one process, one an address, opened when first used."""

    def __init__(self, settings: ClientSettings) -> None:
        self.pid = os.getpid()
        self.pool = AddressPool(settings.addresses)
        self._settings = settings
        self._metadata = call_metadata(settings)
        self._lock = threading.Lock()
        self._channels: dict[str, tuple[grpc.Channel, RewardServiceStub]] = {}

    def run(self, job: Job) -> None:
        """Runs a job to its end on this thread.

        Raises:
            RewardClientError: If the call as a whole failed.
        """
        in_flight: dict[Attempt, Any] = {}
        try:
            # In here, because CPython 3.11 skips the `finally` of a `try` that begins with a loop,
            # if an interrupt comes as the loop starts again.
            ended: queue.SimpleQueue[tuple[Attempt, Any]] = queue.SimpleQueue()
            while True:
                attempts = job.starts(time.monotonic())
                if job.is_single and len(attempts) == 1 and not _forked:
                    self._finish(job, attempts[0])
                    continue
                in_flight |= dict.fromkeys(attempts)  # an interrupt may come before they start
                for attempt in attempts:
                    in_flight[attempt] = call = self._start(attempt)
                    call.add_done_callback(partial(_report, ended, attempt))
                if job.done:
                    break
                try:
                    attempt, call = ended.get(
                        timeout=min(job.wait_s(time.monotonic()), MAX_BLOCKING_WAIT_S)
                    )
                except queue.Empty:
                    continue
                del in_flight[attempt]
                _settle(job, attempt, call)
        finally:
            for attempt, call in in_flight.items():
                if call is not None:
                    call.cancel()
                job.abandoned(attempt)

    def open_stream(self, address: str, requests: Iterator[Any]) -> Any:
        """Opens a score stream; returns grpc's call."""
        return self._stub(address).ScoreStream(
            requests, timeout=MAX_CONNECTION_AGE_S, metadata=self._metadata
        )

    def close(self) -> None:
        """Closes the channels."""
        with self._lock:
            channels, self._channels = self._channels, {}
        for channel, _ in channels.values():
            channel.close()

    def _start(self, attempt: Attempt) -> Any:
        """Starts the RPC of an attempt; returns grpc's future."""
        method = getattr(self._stub(attempt.address), attempt.method)
        return method.future(attempt.request, timeout=attempt.timeout_s, metadata=self._metadata)

    def _finish(self, job: Job, attempt: Attempt) -> None:
        """Runs the RPC of an attempt to its end on this thread, and tells the job.

        A future costs a thread of grpc's for each call: on two cores, 0.15 ms of 0.5.
        """
        method = getattr(self._stub(attempt.address), attempt.method)
        try:
            response = method(attempt.request, timeout=attempt.timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            _failed(job, attempt, error)
        except BaseException:
            job.abandoned(attempt)
            raise
        else:
            job.succeeded(attempt, response, time.monotonic())

    def _stub(self, address: str) -> RewardServiceStub:
        with self._lock:
            if address not in self._channels:
                options = channel_options(self._settings)
                if self._settings.tls is None:
                    channel = grpc.insecure_channel(address, options)
                else:
                    credentials = channel_credentials(self._settings.tls)
                    channel = grpc.secure_channel(address, credentials, options)
                self._channels[address] = (channel, RewardServiceStub(channel))
            return self._channels[address][1]


def _settle(job: Job, attempt: Attempt, call: Any) -> None:
    """Tells the job what became of an attempt that has ended."""
    if call.code() is grpc.StatusCode.OK:
        job.succeeded(attempt, call.result(), time.monotonic())
    else:
        _failed(job, attempt, call)


def _failed(job: Job, attempt: Attempt, call: Any) -> None:
    failure = rpc_failure(call.code(), call.details(), call.trailing_metadata())
    job.failed(attempt, failure, time.monotonic())


def _report(ended: queue.SimpleQueue[tuple[Attempt, Any]], attempt: Attempt, call: Any) -> None:
    ended.put((attempt, call))
