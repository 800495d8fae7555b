"""A worker process: an engine and the models on one device, served over a unix socket.

It is a server like any other, with the same RewardService and AdminService, but for one caller: the
front process that started it. Its settings come as one line of JSON on standard input. Standard
input then stays open for as long as the front process lives; its end means: drain and stop. So no
worker outlives its front, however that ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import generate_latest
from pydantic import BaseModel, ConfigDict

from rewardsvc.config import ServerSettings
from rewardsvc.engine.host import EngineHost, EngineSettings
from rewardsvc.engine.process import tune_process
from rewardsvc.logs import configure_logging
from rewardsvc.metrics import Metrics
from rewardsvc.scoring.registry import Registry
from rewardsvc.servicers.admin import AdminServicer
from rewardsvc.servicers.auth import ApiKeys
from rewardsvc.servicers.gate import Gate
from rewardsvc.servicers.lenient import LenientParsing
from rewardsvc.servicers.reward import RewardServicer
from rewardsvc.v1 import admin_pb2_grpc, reward_pb2_grpc

log = logging.getLogger(__name__)

METRICS = "/rewardsvc.internal.Worker/Metrics"
"""Prometheus' text of this process; also shows that its event loop is alive."""

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
"""The front process has checked sizes already."""

STOP_GRACE_S = 0.2
EXIT_OK = 0


class WorkerSettings(BaseModel):
    """What a worker is told when it starts.

    Attributes:
        name: For logs: "cuda:0", "cpu/1".
        socket: Path of the unix socket to listen on.
        base_dir: Where relative paths in scorer configurations start.
        engine: The engine's settings.
        log_level: As in the server's settings.
        log_format: As in the server's settings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    socket: Path
    base_dir: Path
    engine: EngineSettings
    log_level: str
    log_format: str


async def serve(settings: WorkerSettings) -> None:
    """Serves until standard input ends, then drains."""
    metrics, gate = Metrics(), Gate()
    engine = EngineHost(settings.engine, metrics)
    registry = Registry(engine, settings.base_dir, metrics)
    keys = ApiKeys(None, None, admin_enabled=True)
    limits = ServerSettings(max_samples_per_call=sys.maxsize)
    server = grpc.aio.server(interceptors=[LenientParsing()], options=UNLIMITED)
    reward_pb2_grpc.add_RewardServiceServicer_to_server(
        RewardServicer(registry, limits, gate, keys), server
    )
    admin_pb2_grpc.add_AdminServiceServicer_to_server(
        # What may run code was decided where the operator's file or the caller's key was seen.
        AdminServicer(registry, gate, allow_code=True, changed=_nothing),
        server,
    )
    server.add_generic_rpc_handlers((_metrics_handler(metrics),))
    server.add_insecure_port(f"unix:{settings.socket}")
    gate.open()
    await server.start()
    log.info("worker %s is up", settings.name)
    await _end_of_input()
    gate.drain()
    await gate.wait_empty(settings.engine.drain_s)
    await server.stop(STOP_GRACE_S)
    await registry.close()
    await engine.close()
    log.info("worker %s stopped", settings.name)


async def _nothing() -> None:
    """Nobody watches this process's health but the front process."""


def _metrics_handler(metrics: Metrics) -> Any:
    async def text(_request: bytes, _context: Any) -> bytes:
        return generate_latest(metrics.registry)

    service, _, method = METRICS[1:].partition("/")
    handler: Any = grpc.unary_unary_rpc_method_handler(text)
    return grpc.method_handlers_generic_handler(service, {method: handler})


async def _end_of_input() -> None:
    """Waits until the front process closes our standard input, or is gone."""
    ended = asyncio.Event()
    loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()

    def read() -> None:
        if not os.read(stdin, 4096):
            loop.remove_reader(stdin)
            ended.set()

    loop.add_reader(stdin, read)
    await ended.wait()


def main() -> None:
    """The process."""
    # Byte by byte up to the newline: a buffered read would take what follows it as well.
    line = bytearray()
    while (byte := os.read(sys.stdin.fileno(), 1)) not in (b"", b"\n"):
        line += byte
    settings = WorkerSettings.model_validate_json(bytes(line))
    configure_logging(settings.log_level, settings.log_format)
    os.environ.setdefault("TQDM_DISABLE", "1")
    tune_process()
    asyncio.run(serve(settings))
    logging.shutdown()
    # A thread that hangs in a device would otherwise keep the process for ever.
    os._exit(EXIT_OK)


if __name__ == "__main__":
    main()
