"""A server's life: listen, load, serve, drain, stop.

It listens before it loads, so that health checks and GetServerInfo answer from the first second;
until everything is loaded, and again while it drains, the health service says NOT_SERVING and
calls are refused with UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from rewardsvc.config import MIB, ServerSettings, ServiceConfig, build_order
from rewardsvc.engine.host import EngineHost
from rewardsvc.engine.process import tune_process
from rewardsvc.errors import ConfigError
from rewardsvc.listen import listen_on_port, listen_on_socket
from rewardsvc.metrics import Metrics
from rewardsvc.scoring.registry import Registry
from rewardsvc.scoring.slot import State
from rewardsvc.servicers.admin import AdminServicer
from rewardsvc.servicers.auth import ApiKeys
from rewardsvc.servicers.gate import Gate, Phase
from rewardsvc.servicers.lenient import LenientParsing
from rewardsvc.servicers.reward import RewardServicer
from rewardsvc.servicers.sandbox import SandboxServicer
from rewardsvc.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    reward_pb2,
    reward_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
)
from rewardsvc.workers.pool import MergedRegistry, WorkerPool

log = logging.getLogger(__name__)

REWARD = reward_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name
SANDBOX = sandbox_pb2.DESCRIPTOR.services_by_name["SandboxService"].full_name
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
STOP_GRACE_S = 1.0
"""For calls that outlive the drain timeout: how long cancellation may take."""

EXIT_TIMEOUT_S = 5.0
"""How long a drained process may take to end; then it is ended. A thread that hangs in a device or
in a user's function would otherwise keep it for ever: the interpreter waits for its threads."""


class Server:
    """One server on one event loop.

    Example:
        server = Server(config, base_dir=Path("."))
        await server.start()       # listening; loading goes on
        await server.ready()       # SERVING
        await server.stop()        # drained
    """

    def __init__(self, config: ServiceConfig, base_dir: Path) -> None:
        """Builds everything, starts nothing. Must be called on the running event loop.

        Args:
            config: The whole configuration.
            base_dir: Where relative paths in it start.

        Raises:
            ConfigError: If a secret or a TLS file that it names is missing.
        """
        self._config = config
        self._settings = config.server
        self.metrics = Metrics()
        self.gate = Gate()
        self.engine = EngineHost(config.engine, self.metrics)
        self.workers = WorkerPool(
            config.engine,
            base_dir,
            log_level=config.server.log_level,
            log_format=config.server.log_format,
            changed=self._workers_changed,
        )
        self.registry = Registry(self.engine, base_dir, self.metrics, remote=self.workers.scorer)
        self.metrics.watch_calls(lambda: self.gate.num_calls)
        self._sandbox = SandboxServicer(config.sandbox, config.server, self.gate)
        self._health = health.aio.HealthServicer()
        self._keys = _api_keys(self._settings)
        self._grpc = _grpc_server(self._settings, self._keys)
        self._add_services()
        self._loading: asyncio.Task[None] | None = None
        self._updates: set[asyncio.Task[int]] = set()
        self._metrics_server: Any = None
        self._base_dir = base_dir
        self.port = 0
        """The port that gRPC listens on, once started."""
        self.unix_socket: Path | None = None
        """The socket that gRPC listens on beside it, once started; None without one."""
        self.metrics_port: int | None = None
        """The port that /metrics listens on, once started."""

    async def start(self) -> None:
        """Listens, and begins to load.

        Raises:
            ConfigError: If a port or the unix socket cannot be had.
        """
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        settings = self._settings
        self.unix_socket = listen_on_socket(self._grpc, settings, self._base_dir)
        self.port = listen_on_port(self._grpc, settings)
        if settings.metrics_port is not None:
            try:
                self._metrics_server, _ = start_http_server(
                    settings.metrics_port,
                    settings.metrics_host,
                    MergedRegistry(self.metrics.registry, self.workers, asyncio.get_running_loop()),
                )
            except OSError as error:
                raise ConfigError(
                    f"server.metrics_port: cannot listen on {settings.metrics_host}:"
                    f"{settings.metrics_port}: {error.strerror}; choose another, or 0"
                ) from None
            self.metrics_port = self._metrics_server.server_port
        await self._grpc.start()
        log.info(
            "listening on %s:%d%s%s",
            settings.host,
            self.port,
            f" and unix:{self.unix_socket}" if self.unix_socket is not None else "",
            f", metrics on {self.metrics_port}" if self.metrics_port is not None else "",
        )
        self._loading = asyncio.create_task(self._load())

    async def ready(self) -> None:
        """Waits until loading has ended, well or not for each scorer.

        Raises:
            Exception: Whatever a bug in loading raised; a scorer that fails to load does not raise.
        """
        assert self._loading is not None, "start() comes first"
        await asyncio.shield(self._loading)

    async def stop(self) -> None:
        """Drains: refuses new calls, lets those in flight finish, then frees everything."""
        self.gate.drain()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        if not await self.gate.wait_empty(self._settings.drain_timeout_s):
            log.warning(
                "%d calls did not finish within server.drain_timeout_s=%g; cancelling them",
                self.gate.num_calls,
                self._settings.drain_timeout_s,
            )
        await self._grpc.stop(STOP_GRACE_S)
        await self._sandbox.close()
        await self.registry.close()
        await self.workers.close()
        await asyncio.gather(*self._updates)
        await self.engine.close()
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.shutdown)
            self._metrics_server.server_close()
        log.info("stopped")

    async def _load(self) -> None:
        scorers = self._config.scorers
        await self._sandbox.start()
        await self.registry.load_all({name: scorers[name] for name in build_order(scorers)})
        self.gate.open()
        num_ready = await self._update_health()
        if num_ready:
            log.info("serving %d scorers", num_ready)
        else:
            log.error("no scorer could be loaded; the health service stays NOT_SERVING")

    async def _update_health(self) -> int:
        """SERVING if any scorer is ready and the server takes work; how many are ready."""
        num_ready = sum(info.state is State.READY for info in self.registry.infos())
        serving = num_ready > 0 and self.gate.phase is Phase.SERVING
        status = health_pb2.HealthCheckResponse
        await self._set_health(status.SERVING if serving else status.NOT_SERVING)
        return num_ready

    def _workers_changed(self) -> None:
        task = asyncio.create_task(self._update_health())
        self._updates.add(task)
        task.add_done_callback(self._updates.discard)

    async def _set_health(self, status: Any) -> None:
        for service in ("", REWARD):
            await self._health.set(service, status)

    def _add_services(self) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reward_pb2_grpc.add_RewardServiceServicer_to_server(
            RewardServicer(self.registry, self._settings, self.gate, self._keys), self._grpc
        )
        sandbox_pb2_grpc.add_SandboxServiceServicer_to_server(self._sandbox, self._grpc)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(
            AdminServicer(
                self.registry,
                self.gate,
                allow_code=self._settings.admin.allow_code,
                changed=self._update_health,
            ),
            self._grpc,
        )
        if self._settings.reflection:
            names = (
                REWARD,
                SANDBOX,
                ADMIN,
                health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            )
            reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self._grpc)


def _api_keys(settings: ServerSettings) -> ApiKeys:
    client_keys: dict[str, str] = {}
    for client, variable in settings.client_keys.items():
        key = settings.secret(variable, f"server.client_keys.{client}")
        assert key is not None
        if key in client_keys.values():
            raise ConfigError(f"server.client_keys.{client}: another client has this key too")
        client_keys[client] = key
    return ApiKeys(
        settings.secret(settings.api_key_env, "server.api_key_env"),
        settings.secret(settings.admin.api_key_env, "server.admin.api_key_env"),
        admin_enabled=settings.admin.enabled,
        client_keys=client_keys,
    )


def _grpc_server(settings: ServerSettings, keys: ApiKeys) -> Any:
    limit = settings.max_message_mib * MIB
    return grpc.aio.server(
        interceptors=[keys, LenientParsing()],
        options=[
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
            # Two servers on one port would silently share the calls.
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )


async def serve(config: ServiceConfig, base_dir: Path) -> None:
    """Runs a server until SIGTERM or SIGINT, then drains it. A second signal stops at once.

    Raises:
        ConfigError: If it cannot listen.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stopping.is_set():
            raise SystemExit(128 + number)
        log.info("%s: draining", signal.Signals(number).name)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    tune_process()
    server = Server(config, base_dir)
    try:
        await server.start()
        loaded = asyncio.create_task(server.ready())
        stop = asyncio.create_task(stopping.wait())
        done, _ = await asyncio.wait({loaded, stop}, return_when=asyncio.FIRST_COMPLETED)
        if loaded in done:
            loaded.result()
        await stop
    finally:
        await server.stop()
        _end_anyway(EXIT_TIMEOUT_S)


def _end_anyway(after_s: float) -> None:
    """Ends this process in `after_s` seconds if it has not ended by then."""

    def end() -> None:
        log.error("a thread hangs; ending the process")
        logging.shutdown()
        os._exit(70)

    timer = threading.Timer(after_s, end)
    timer.daemon = True
    timer.start()
