"""Waiting for a service that is away, so that a restart of it costs time and nothing else."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0

_log = logging.getLogger(__name__)


class UnavailableError(Exception):
    """A service cannot be reached or has no room. Asking again later is safe and may help."""


class OutageError(RuntimeError):
    """A service stayed away for longer than the run may wait."""


class Patience:
    """Repeats a call for as long as the service behind it is away, up to a limit.

    Safe to use from several threads at once.
    """

    def __init__(self, max_outage_s: float, *, first_delay_s: float = FIRST_DELAY_S) -> None:
        """Sets the limits.

        Args:
            max_outage_s: An outage may last this long, in seconds; 0 for none at all.
            first_delay_s: Pause before the first repetition; each next one is twice as long, up to
                half a minute.
        """
        self._max_outage_s = max_outage_s
        self._first_delay_s = first_delay_s
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._waited_s = 0.0

    def call(self, work: Callable[[], T], what: str) -> T:
        """The result of `work`.

        Args:
            work: Raises `UnavailableError` while the service is away. Whatever else it raises
                passes through.
            what: The service in words, for logs.

        Raises:
            OutageError: If the outage lasts longer than allowed, or `close` was called meanwhile.
        """
        began = time.monotonic()
        delay_s = self._first_delay_s
        while True:
            try:
                result = work()
            except UnavailableError as error:
                waited_s = time.monotonic() - began
                if self._closed.is_set() or waited_s >= self._max_outage_s:
                    raise OutageError(
                        f"{what} was away for {waited_s:.0f} s, and max_service_outage_s is "
                        f"{self._max_outage_s:g}: {error}"
                    ) from error
                _log.warning("%s is away, next try in %.1f s: %s", what, delay_s, error)
                self._closed.wait(min(delay_s, self._max_outage_s - waited_s))
                delay_s = min(2 * delay_s, MAX_DELAY_S)
            else:
                waited_s = time.monotonic() - began
                if delay_s > self._first_delay_s:
                    _log.warning("%s is back after %.1f s", what, waited_s)
                    with self._lock:
                        self._waited_s += waited_s
                return result

    def take_waited_s(self) -> float:
        """Seconds of outage since this was last asked."""
        with self._lock:
            waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s

    def close(self) -> None:
        """Ends all waits: calls in progress fail instead of trying again."""
        self._closed.set()
