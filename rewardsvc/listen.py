"""Where gRPC listens: a TCP port, and a unix socket beside it for callers on this machine.

A unix socket is a file, and two things follow. A server that was killed leaves it behind: it is
told from one in use by connecting to it, and replaced. And whoever may write to the file may
connect: it is created with the permissions that it is to have, so that others never could.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from rewardsvc.config import ServerSettings, SocketAccess, TlsSettings
from rewardsvc.errors import ConfigError

MAX_SOCKET_PATH_BYTES = 107
"""What `sun_path` holds on Linux, less its final zero."""

PROBE_TIMEOUT_S = 1.0
"""For a connection on this machine, which is made at once or not at all."""

_MODES = {SocketAccess.OWNER: 0o600, SocketAccess.GROUP: 0o660, SocketAccess.ALL: 0o666}
_ALL_BITS = 0o777


def listen_on_port(server: Any, settings: ServerSettings) -> int:
    """Makes `server` listen on `host` and `port`, with TLS where that is set.

    Returns:
        The port, which the system chose if the settings say 0.

    Raises:
        ConfigError: If the port cannot be had, or a TLS file cannot be read.
    """
    address = f"{settings.host}:{settings.port}"
    credentials = None if settings.tls is None else _credentials(settings.tls)
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise ConfigError(
            f"server.port: cannot listen on {address}: {error}; choose another, or 0"
        ) from None


def listen_on_socket(server: Any, settings: ServerSettings, base_dir: Path) -> Path | None:
    """Makes `server` listen on `unix_socket`, if there is one in the settings.

    Without TLS: the bytes do not leave the machine, and the file's permissions say who connects.

    Args:
        server: The gRPC server, not started yet.
        settings: The server's settings.
        base_dir: Where a relative path starts.

    Returns:
        The socket's absolute path; None if there is none. gRPC removes it when the server stops.

    Raises:
        ConfigError: If the path is too long, is in use, or cannot be created.
    """
    if settings.unix_socket is None:
        return None
    path = (base_dir / settings.unix_socket).absolute()
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise _refused(path, f"the path has {size} bytes, at most {MAX_SOCKET_PATH_BYTES} fit")
    _remove_stale(path)
    mode = _MODES[settings.unix_socket_access]
    try:
        with _umask(_ALL_BITS & ~mode):
            server.add_insecure_port(f"unix:{path}")
    except RuntimeError:
        raise _refused(path, _why_not(path.parent)) from None
    return path


def _remove_stale(path: Path) -> None:
    """Makes room for a new socket where the old one's server is gone."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise _refused(path, "there is a file that is no socket")
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from None
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        found = probe.connect_ex(str(path))
    if found != errno.ECONNREFUSED:
        why = "another server listens there" if not found else os.strerror(found)
        raise _refused(path, why)
    path.unlink(missing_ok=True)


def _why_not(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is no directory; create it"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} cannot be written to"
    return "the system refuses it"


def _refused(path: Path, why: str) -> ConfigError:
    return ConfigError(f"server.unix_socket: cannot listen on {path}: {why}; choose another path")


@contextmanager
def _umask(bits: int) -> Iterator[None]:
    """The umask is the process's: to be used before there are threads that create files."""
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


def _credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    def read(path: Path, field: str) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"server.tls.{field}: {path}: {error.strerror}") from None

    return grpc.ssl_server_credentials(
        [(read(tls.private_key, "private_key"), read(tls.certificate, "certificate"))],
        root_certificates=read(tls.client_ca, "client_ca") if tls.client_ca else None,
        require_client_auth=tls.client_ca is not None,
    )
