"""Which address gets the next RPC: the one with the least in flight that is not known to fail."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from rewardsvc.policy_client.client.errors import RpcFailure

_FIRST_COOL_DOWN_S = 0.5
_MAX_COOL_DOWN_S = 15.0


@dataclass(slots=True)
class _State:
    num_in_flight: int = 0
    num_failures: int = 0
    cool_until: float = float("-inf")
    last_used: int = 0


class AddressPool:
    """The addresses of one service, and how each is doing. Thread-safe.

    An address that fails gets no RPCs for a while, twice as long each time, unless every address
    is in that state: then the one that comes back first is tried, so that a single address is
    never shut out.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._states = {address: _State() for address in addresses}
        self._num_acquired = 0

    def acquire(self, now: float) -> str:
        """Takes an address for one RPC; `succeeded`, `failed` or `released` must follow."""
        with self._lock:

            def rank(address: str) -> tuple[float, int, int]:
                state = self._states[address]
                return max(state.cool_until, now), state.num_in_flight, state.last_used

            address = min(self._states, key=rank)
            self._num_acquired += 1
            state = self._states[address]
            state.num_in_flight += 1
            state.last_used = self._num_acquired
            return address

    def released(self, address: str) -> None:
        """The RPC ended in a way that says nothing about the address."""
        with self._lock:
            self._states[address].num_in_flight -= 1

    def succeeded(self, address: str) -> None:
        """The RPC was answered."""
        with self._lock:
            state = self._states[address]
            state.num_in_flight -= 1
            state.num_failures = 0
            state.cool_until = float("-inf")

    def failed(self, address: str, failure: RpcFailure, now: float) -> None:
        """The RPC failed; an address that is down or full is left alone for a while."""
        with self._lock:
            state = self._states[address]
            state.num_in_flight -= 1
            if failure.code == "UNAVAILABLE":
                # RPCs that were under way together fail together, and count as one failure.
                if now >= state.cool_until:
                    doubled = _FIRST_COOL_DOWN_S * 2 ** min(state.num_failures, 10)
                    state.num_failures += 1
                    state.cool_until = now + min(doubled, _MAX_COOL_DOWN_S)
            elif failure.code == "RESOURCE_EXHAUSTED" and not failure.too_large:
                state.cool_until = now + (failure.retry_delay_s or _FIRST_COOL_DOWN_S)

    def any_healthy(self, now: float) -> bool:
        """Whether an address is not cooling down."""
        with self._lock:
            return any(state.cool_until <= now for state in self._states.values())
