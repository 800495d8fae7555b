"""Runs a user's function on a thread that nobody has to wait for.

An executor will not do: its threads are joined when the interpreter exits, so one function that
hangs keeps the server from ending. Here every call has a daemon thread of its own. A call that has
timed out makes room for the next although its thread lives on; there may be as many of those as
calls at a time, then further calls are refused until one of them returns.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

_T = TypeVar("_T")


class BoundedThreads(Generic[_T]):
    """At most `limit` calls at a time, for use from one event loop."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._room = asyncio.Semaphore(limit)
        self._num_hanging = 0
        self._name = name

    async def run(self, function: Callable[[], _T], timeout_s: float) -> _T:
        """What `function` returns; it must not raise.

        Raises:
            TimeoutError: If it does not return within `timeout_s`, or too many before it have not.
        """
        async with self._room:
            if self._num_hanging >= self._limit:
                raise TimeoutError(f"{self._num_hanging} earlier calls never returned")
            loop = asyncio.get_running_loop()
            result: asyncio.Future[_T] = loop.create_future()

            def finish(value: _T) -> None:
                if result.cancelled():
                    self._num_hanging -= 1
                else:
                    result.set_result(value)

            def call() -> None:
                value = function()
                with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                    loop.call_soon_threadsafe(finish, value)

            threading.Thread(target=call, name=self._name, daemon=True).start()
            try:
                async with asyncio.timeout(timeout_s):
                    return await result
            finally:
                if result.cancelled():
                    self._num_hanging += 1
