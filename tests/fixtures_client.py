"""Fixtures of tests that call a service which does as it is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_reward_service import Script, start


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def address(script: Script) -> Iterator[str]:
    """Of a service that plays `script`."""
    server, port = start(script)
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()
