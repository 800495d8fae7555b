"""AdminService: list, load, reload and unload scorers of a running server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from rewardsvc.config import build_order, check_name, parse_scorers
from rewardsvc.convert import info_to_proto
from rewardsvc.errors import InvalidRequestError, NotAllowedError
from rewardsvc.scoring.registry import Registry
from rewardsvc.servicers.gate import Gate
from rewardsvc.servicers.guard import statuses
from rewardsvc.v1 import admin_pb2 as pb
from rewardsvc.v1 import admin_pb2_grpc


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Answers AdminService. Whether a caller may is decided before, by `ApiKeys`."""

    def __init__(
        self,
        registry: Registry,
        gate: Gate,
        *,
        allow_code: bool,
        changed: Callable[[], Awaitable[object]],
    ) -> None:
        """Takes what it operates.

        Args:
            registry: The scorers.
            gate: Whether the server takes work.
            allow_code: Whether callers may load scorers that run code of their choice.
            changed: Awaited after every change of the scorers.
        """
        self._registry = registry
        self._gate = gate
        self._allow_code = allow_code
        self._changed = changed

    async def ListScorers(  # noqa: N802
        self, request: pb.ListScorersRequest, context: Any
    ) -> pb.ListScorersResponse:
        """All scorers with state and version."""
        return pb.ListScorersResponse(scorers=map(info_to_proto, self._registry.infos()))

    async def LoadScorer(  # noqa: N802
        self, request: pb.LoadScorerRequest, context: Any
    ) -> pb.LoadScorerResponse:
        """Adds a scorer; see the proto."""
        async with statuses(context):
            self._gate.check()
            try:
                section = json.loads(request.config_json)
            except (ValueError, RecursionError) as error:
                raise InvalidRequestError(f"config_json: not JSON: {error}") from None
            name = check_name(request.name)
            parsed = parse_scorers(name, section)
            configs = {inner: parsed[inner] for inner in build_order(parsed)}
            for inner, config in configs.items():
                if config.runs_code_of_the_config() and not self._allow_code:
                    raise NotAllowedError(
                        f"scorers.{inner}: type {config.type!r} would run code of the caller's "
                        "choice; the operator can set server.admin.allow_code"
                    )
            info = await self._registry.load(name, configs)
            await self._changed()
            return pb.LoadScorerResponse(scorer=info_to_proto(info))
        raise AssertionError("abort raises")

    async def ReloadScorer(  # noqa: N802
        self, request: pb.ReloadScorerRequest, context: Any
    ) -> pb.ReloadScorerResponse:
        """Loads a scorer again and swaps it in; see the proto."""
        async with statuses(context):
            self._gate.check()
            info = await self._registry.reload(request.name)
            await self._changed()
            return pb.ReloadScorerResponse(scorer=info_to_proto(info))
        raise AssertionError("abort raises")

    async def UnloadScorer(  # noqa: N802
        self, request: pb.UnloadScorerRequest, context: Any
    ) -> pb.UnloadScorerResponse:
        """Stops serving a scorer; see the proto."""
        async with statuses(context):
            self._gate.check()
            await self._registry.unload(request.name)
            await self._changed()
            return pb.UnloadScorerResponse()
        raise AssertionError("abort raises")
