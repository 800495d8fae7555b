"""The server's YAML file as pydantic models.

    server:
      port: 50051
      api_key_env: REWARDSVC_API_KEY
    engine:
      max_batch_tokens: 8192
    scorers:
      helpful: {type: orm, model: ./models/helpful-rm, dtype: bfloat16}
      math:    {type: math}
      rlvr:    {type: sum, of: {math: 1.0, think: {weight: 0.1, type: format, preset: think}}}

Scorers may be written in place wherever one is named under `of`. They are hoisted here, before
validation, into entries of their own (`rlvr/think`), so that everything downstream sees a flat
table of names. Every error says which field, which value, and what to do about it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rewardsvc.engine.host import EngineSettings
from rewardsvc.errors import ConfigError
from rewardsvc.scorers import scorer_class, scorer_types
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.validation import explain
from rewardsvc.verifiers.sandbox import Isolation
from rewardsvc.yaml_file import read_yaml

MIB = 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TlsSettings(_Section):
    """Server-side TLS, from PEM files. With `client_ca`, clients must show a certificate of it."""

    certificate: Path
    private_key: Path
    client_ca: Path | None = None


class AdminSettings(_Section):
    """Loading, reloading and unloading scorers over the network."""

    enabled: bool = Field(False, description="Whether AdminService answers at all.")
    api_key_env: str | None = Field(
        None, description="Environment variable with the admin key; None: the server's own key."
    )
    allow_code: bool = Field(
        False,
        description="Accept scorers that run code of the caller's choice (`python`, remote code).",
    )


class SocketAccess(StrEnum):
    """Who may connect to the unix socket, by the permissions of its file: 0600, 0660 or 0666."""

    OWNER = "owner"
    GROUP = "group"
    ALL = "all"


class ServerSettings(_Section):
    """Where the server listens, and what it accepts."""

    host: str = "127.0.0.1"
    port: int = Field(50051, ge=0, le=65535, description="0 picks a free port.")
    unix_socket: Path | None = Field(
        None, description="Path of a unix socket to listen on beside the port; None: none."
    )
    unix_socket_access: SocketAccess = Field(
        SocketAccess.OWNER, description="Who may connect to it: owner, group or all."
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Prometheus /metrics; None turns it off, 0 picks a port."
    )
    metrics_host: str = "127.0.0.1"
    max_message_mib: int = Field(64, ge=1, le=1024)
    max_samples_per_call: int = Field(16_384, ge=1)
    max_stream_samples: int = Field(
        4096, ge=1, description="Samples of one ScoreStream that may be in flight."
    )
    default_deadline_s: float = Field(
        600.0, gt=0, description="For calls that come without a deadline: nothing waits for ever."
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="How long SIGTERM lets calls in flight finish."
    )
    api_key_env: str | None = Field(
        None, description="Environment variable with the key that callers must send; None: no key."
    )
    client_keys: dict[str, str] = Field(
        default_factory=dict,
        description="Client → environment variable with a key of its own, which names the client "
        "for fair sharing; as good as the common key but for AdminService.",
    )
    tls: TlsSettings | None = None
    reflection: bool = True
    admin: AdminSettings = AdminSettings()
    log_format: str = Field("text", pattern="^(text|json)$")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")

    def secret(self, variable: str | None, field: str) -> str | None:
        """The key in an environment variable; None if no variable is named.

        Raises:
            ConfigError: If the variable is named and unset or empty: a server must not come up open
                because a secret failed to arrive.
        """
        if variable is None:
            return None
        value = os.environ.get(variable, "")
        if not value:
            raise ConfigError(
                f"{field}: environment variable {variable!r} is unset or empty; set it"
            )
        return value


class SandboxSettings(_Section):
    """SandboxService.RunCode. `code` scorers have sandboxes of their own and do not need this."""

    enabled: bool = Field(False, description="Whether callers may run programs here.")
    num_slots: int | None = Field(
        None, ge=1, le=1024, description="Programs at a time; None: one a core, at least two."
    )
    isolation: Isolation = Field(
        Isolation.FULL, description="What must stand before untrusted code runs."
    )
    max_queue: int = Field(256, ge=1, description="Programs that may wait or run; then refused.")
    max_cpu_time_ms: int = Field(60_000, ge=1)
    max_wall_time_ms: int = Field(300_000, ge=1)
    max_memory_mib: int = Field(2048, ge=16)
    max_output_bytes: int = Field(16 * MIB, ge=1)
    max_num_processes: int = Field(256, ge=1)


class ServiceConfig(_Section):
    """The whole file."""

    server: ServerSettings = ServerSettings()
    sandbox: SandboxSettings = SandboxSettings()
    engine: EngineSettings = EngineSettings()
    scorers: dict[str, ScorerConfigBase]

    @model_validator(mode="before")
    @classmethod
    def _parse_scorers(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise ConfigError(f"the file must be a mapping with `scorers`, not {data!r}")
        scorers = data.get("scorers")
        if not isinstance(scorers, Mapping) or not scorers:
            raise ConfigError("scorers: must be a mapping from names to scorers, with at least one")
        parsed: dict[str, ScorerConfigBase] = {}
        for name, section in scorers.items():
            parsed.update(parse_scorers(check_name(name), section))
        _check_references(parsed)
        return {**data, "scorers": parsed}


def check_name(name: object) -> str:
    """`name`, if a scorer may be called so. "/" is kept for scorers written inside others.

    Raises:
        ConfigError: If it may not.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"scorers: {name!r} cannot be a name; use letters, digits, '.', '_' and '-', "
            "at most 128, the first a letter or digit"
        )
    return name


def parse_scorers(name: str, section: Any) -> dict[str, ScorerConfigBase]:
    """Parses one section and the scorers written in place inside it.

    Returns:
        Name → configuration; children stand before their parents.

    Raises:
        ConfigError: Names field, value and fix.
    """
    field = f"scorers.{name}"
    if isinstance(section, ScorerConfigBase):
        return {name: section}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{field}: must be a mapping with `type`, not {section!r}")
    if "type" not in section:
        raise ConfigError(f"{field}.type: missing; one of {', '.join(scorer_types())}")
    found: dict[str, ScorerConfigBase] = {}
    flat = dict(section)
    if "of" in flat:
        flat["of"] = _hoist(name, flat["of"], found)
    try:
        model = scorer_class(str(flat["type"])).Config
    except ConfigError as error:
        raise ConfigError(f"{field}.{error}") from None
    try:
        found[name] = model.model_validate(flat)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, model, field))) from None
    return found


def _hoist(parent: str, of: Any, found: dict[str, ScorerConfigBase]) -> Any:
    """Replaces scorers written in place by names; adds their configurations to `found`."""

    def child(label: str, section: Mapping[str, Any]) -> str:
        name = f"{parent}/{label}"
        found.update(parse_scorers(name, section))
        return name

    if isinstance(of, Mapping) and "type" in of:
        return child(str(of["type"]), of)
    if isinstance(of, Mapping):
        weights: dict[str, Any] = {}
        for label, value in of.items():
            if isinstance(value, Mapping) and "type" in value:
                section = {k: v for k, v in value.items() if k != "weight"}
                weights[child(str(label), section)] = value.get("weight", 1.0)
            else:
                weights[str(label)] = value
        return weights
    if isinstance(of, list):
        return [
            child(str(i), value) if isinstance(value, Mapping) else value
            for i, value in enumerate(of)
        ]
    return of


def _check_references(scorers: Mapping[str, ScorerConfigBase]) -> None:
    """Refuses names that do not exist, and scorers that are built on themselves."""
    for name, config in scorers.items():
        for child in config.children():
            if child not in scorers:
                raise ConfigError(
                    f"scorers.{name}.of: no scorer is named {child!r}; "
                    f"the file has {', '.join(sorted(scorers))}"
                )
    build_order(scorers)


def build_order(scorers: Mapping[str, ScorerConfigBase]) -> list[str]:
    """Names, children before parents.

    Raises:
        ConfigError: If a scorer is built on itself, directly or not.
    """
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in path:
            loop = " -> ".join([*path[path.index(name) :], name])
            raise ConfigError(f"scorers.{name}.of: a scorer cannot be built on itself: {loop}")
        path.append(name)
        for child in scorers[name].children():
            if child in scorers:
                visit(child)
        path.pop()
        order.append(name)

    for name in scorers:
        visit(name)
    return order


def load_config(path: Path) -> ServiceConfig:
    """Reads and checks a configuration file.

    Raises:
        ConfigError: Names file, field, value and fix.
    """
    data = read_yaml(path)
    try:
        return ServiceConfig.model_validate(data)
    except ValidationError as error:
        lines = explain(error, ServiceConfig)
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
