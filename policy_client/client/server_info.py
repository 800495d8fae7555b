"""What a server says about itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from rewardsvc.policy_client.client.errors import ScorerUnusable, UnknownScorer
from rewardsvc.v1 import reward_pb2 as pb


class ScorerState(StrEnum):
    """Whether a scorer can be called."""

    UNSPECIFIED = "unspecified"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerInfo:
    """One configured scorer.

    Attributes:
        name: What `score` takes.
        type: The `type` in the server's configuration.
        state: Whether it can be called.
        version: Changes when weights are reloaded.
        message: Why it failed, when it failed.
    """

    name: str
    type: str
    state: ScorerState
    version: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server can do.

    Attributes:
        server_version: The version of its software.
        scorers: All configured scorers.
        max_samples_per_call: Most samples that it takes in one RPC; 0 if it did not say.
        max_message_bytes: Largest message that it takes; 0 if it did not say.
    """

    server_version: str
    scorers: tuple[ScorerInfo, ...]
    max_samples_per_call: int
    max_message_bytes: int

    def scorer(self, name: str) -> ScorerInfo:
        """The scorer of this name.

        Raises:
            UnknownScorer: If there is none; names those that there are.
        """
        for info in self.scorers:
            if info.name == name:
                return info
        known = ", ".join(sorted(info.name for info in self.scorers)) or "none"
        raise UnknownScorer(f"no scorer {name!r} on the server; there are: {known}")


def decode_server_info(response: pb.GetServerInfoResponse) -> ServerInfo:
    """The reply as Python values."""
    states = list(ScorerState)
    return ServerInfo(
        server_version=response.server_version,
        scorers=tuple(
            ScorerInfo(
                name=info.name,
                type=info.type,
                state=states[info.state] if info.state < len(states) else ScorerState.UNSPECIFIED,
                version=info.version,
                message=info.message,
            )
            for info in response.scorers
        ),
        max_samples_per_call=response.max_samples_per_call,
        max_message_bytes=response.max_message_bytes,
    )


def not_ready(info: ServerInfo, names: Collection[str]) -> str:
    """What has to be waited for still, in words; empty if nothing.

    Args:
        info: What the server says.
        names: The scorers that are needed; all of them if empty.

    Raises:
        ScorerUnusable: If one of them failed, which waiting does not cure.
        UnknownScorer: If there is none of this name.
    """
    needed = [info.scorer(name) for name in names] if names else list(info.scorers)
    for scorer in needed:
        if scorer.state is ScorerState.FAILED:
            raise ScorerUnusable(
                f"scorer {scorer.name!r} failed to load: {scorer.message or 'no reason given'}"
            )
    waiting = [f"{s.name} is {s.state}" for s in needed if s.state is not ScorerState.READY]
    return ", ".join(waiting)
