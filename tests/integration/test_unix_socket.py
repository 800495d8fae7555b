"""The unix socket beside the port, from a caller's and an operator's side."""

import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from rewardsvc.config import load_config
from rewardsvc.errors import ConfigError
from rewardsvc.policy_client import (
    AsyncRewardClient,
    DeadlineExceeded,
    RetryPolicy,
    RewardClient,
    ServiceUnavailable,
)
from rewardsvc.server import Server

Start = Callable[..., Any]
ONCE = RetryPolicy(max_attempts=1)
QUICK = RetryPolicy(initial_backoff_s=0.05, max_backoff_s=0.3)

CONFIG = """
server: {{port: 0, unix_socket: "{path}", unix_socket_access: {access}}}
scorers:
  obey: {{type: python, function: "user_scorers.py:obey"}}
  exact: {{type: exact}}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: pytest's own may be too long for the path of a socket."""
    with TemporaryDirectory(prefix="rs-", dir="/tmp") as name:
        yield Path(name)


def config(path: Path | str, access: str = "owner") -> str:
    return CONFIG.format(path=path, access=access)


async def test_port_and_socket_give_the_same_scores(connect: Start, folder: Path) -> None:
    server = (await connect(config(folder / "s"))).server
    values = []
    for address in (f"127.0.0.1:{server.port}", f"unix:{folder / 's'}"):
        async with AsyncRewardClient(address, timeout_s=30) as client:
            batch = await client.score("exact", ["", ""], ["2", "3"], answers=["2", "2"])
            values.append(batch.values.tolist())
    assert values == [[1.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize(("access", "mode"), [("owner", 0o600), ("group", 0o660), ("all", 0o666)])
async def test_the_file_has_the_permissions_asked_for(
    connect: Start, folder: Path, access: str, mode: int
) -> None:
    await connect(config(folder / "s", access))
    assert stat.S_IMODE((folder / "s").stat().st_mode) == mode


async def test_a_relative_path_starts_at_the_configuration(folder: Path) -> None:
    (folder / "service.yaml").write_text(
        'server: {port: 0, unix_socket: "s"}\nscorers: {exact: {type: exact}}', encoding="utf-8"
    )
    server = Server(load_config(folder / "service.yaml"), folder)
    await server.start()
    try:
        await server.ready()
        assert server.unix_socket == folder / "s"
        assert (folder / "s").is_socket()
    finally:
        await server.stop()


async def test_a_socket_in_use_is_not_taken(connect: Start, folder: Path) -> None:
    await connect(config(folder / "s"))
    with pytest.raises(ConfigError, match="another server listens there"):
        await connect(config(folder / "s"))
    async with AsyncRewardClient(f"unix:{folder / 's'}", timeout_s=30) as client:
        assert (await client.score("obey", [""], ["go"])).values.tolist() == [1.0]


async def test_a_socket_that_a_dead_server_left_is_replaced(connect: Start, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "s"))
        dead.listen()
    await connect(config(folder / "s"))
    async with AsyncRewardClient(f"unix:{folder / 's'}", timeout_s=30) as client:
        assert (await client.score("obey", [""], ["go"])).values.tolist() == [1.0]


async def test_what_cannot_be_listened_on_is_named(connect: Start, folder: Path) -> None:
    (folder / "file").write_text("precious", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"server\.unix_socket: .*file that is no socket"):
        await connect(config(folder / "file"))
    assert (folder / "file").read_text(encoding="utf-8") == "precious"
    with pytest.raises(ConfigError, match=r"at most 107 fit"):
        await connect(config(folder / ("x" * 120)))
    with pytest.raises(ConfigError, match=r"missing is no directory; create it"):
        await connect(config(folder / "missing" / "s"))


def test_sigterm_takes_the_socket_away(server_process: Start, folder: Path) -> None:
    server = server_process(config(folder / "s"))
    assert (folder / "s").is_socket()
    assert any(f"unix:{folder / 's'}" in line for line in server.log)
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert not (folder / "s").exists()


@pytest.mark.parametrize("over", ["port", "socket"])
def test_a_killed_server_is_noticed_and_found_again(
    server_process: Start, folder: Path, over: str
) -> None:
    server = server_process(config(folder / "s"))
    address = server.address if over == "port" else f"unix:{folder / 's'}"
    with (
        RewardClient(address, timeout_s=60, retry=ONCE) as impatient,
        RewardClient(address, timeout_s=60, retry=QUICK) as patient,
    ):
        assert impatient.score("obey", [""], ["warm"]).values.tolist() == [1.0]
        assert patient.score("obey", [""], ["warm"]).values.tolist() == [1.0]
        killer = threading.Timer(0.5, server.kill)
        killer.start()
        began = time.monotonic()
        with pytest.raises(ServiceUnavailable) as caught:
            impatient.score("obey", [""], ["sleep:50"])
        killer.join()
        # Of 60 seconds; generous for a loaded machine.
        assert time.monotonic() - began < 20
        assert address.removeprefix("unix:") in str(caught.value)
        server.start()
        assert patient.score("obey", [""], ["again"]).values.tolist() == [1.0]


@pytest.mark.parametrize("over", ["port", "socket"])
def test_a_server_that_hangs_costs_no_more_than_the_deadline(
    server_process: Start, folder: Path, over: str
) -> None:
    server = server_process(config(folder / "s"))
    address = server.address if over == "port" else f"unix:{folder / 's'}"
    with RewardClient(address, timeout_s=60) as client:
        client.score("obey", [""], ["warm"])
        server.send(signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                client.score("obey", [""], ["late"], timeout_s=1.0)
            assert time.monotonic() - began < 20
        finally:
            server.send(signal.SIGCONT)
        assert client.score("obey", [""], ["go"]).values.tolist() == [1.0]
