"""Verdicts that need not be reached twice."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from rewardsvc.verifiers.code.verdict import CodeVerdict


class VerdictCache:
    """The last verdicts, by a digest of program, tests and limits. Thread-safe.

    A verdict without a reward is not kept: what broke may work the next time.
    """

    def __init__(self, max_entries: int) -> None:
        """Starts empty.

        Args:
            max_entries: How many verdicts to keep; 0 for none.
        """
        self._max_entries = max_entries
        self._entries: OrderedDict[str, CodeVerdict] = OrderedDict()
        self._lock = threading.Lock()
        self.num_hits = 0

    @staticmethod
    def key(*parts: str) -> str:
        """A digest of all parts; no two lists of parts have the same."""
        digest = hashlib.blake2b()
        for part in parts:
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.hexdigest()

    def get(self, key: str) -> CodeVerdict | None:
        """The verdict under `key`, if it is still there."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
                self.num_hits += 1
            return found

    def put(self, key: str, verdict: CodeVerdict) -> None:
        """Keeps a verdict that has a reward."""
        if verdict.reward is None or not self._max_entries:
            return
        with self._lock:
            self._entries[key] = verdict
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)
