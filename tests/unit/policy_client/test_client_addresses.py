"""Which address gets the next RPC."""

from rewardsvc.policy_client.client.addresses import AddressPool
from rewardsvc.policy_client.client.errors import RpcFailure

DOWN = RpcFailure("UNAVAILABLE")


def test_the_address_with_the_least_in_flight_is_taken() -> None:
    pool = AddressPool(["a", "b"])
    taken = [pool.acquire(0.0) for _ in range(4)]
    assert sorted(taken) == ["a", "a", "b", "b"]
    pool.succeeded("b")
    assert pool.acquire(0.0) == "b"


def test_idle_addresses_take_turns() -> None:
    pool = AddressPool(["a", "b", "c"])
    taken = []
    for _ in range(6):
        taken.append(pool.acquire(0.0))
        pool.succeeded(taken[-1])
    assert taken == ["a", "b", "c"] * 2


def test_a_failing_address_rests_and_comes_back() -> None:
    pool = AddressPool(["a", "b"])
    assert pool.acquire(0.0) == "a"
    pool.failed("a", DOWN, 0.0)
    assert pool.any_healthy(0.0)
    assert [pool.acquire(0.1) for _ in range(3)] == ["b"] * 3
    assert pool.acquire(100.0) == "a"


def test_rest_doubles_and_ends_with_an_answer() -> None:
    pool = AddressPool(["a"])
    rests = []
    now = 0.0
    for _ in range(8):
        pool.acquire(now)
        pool.failed("a", DOWN, now)
        start = now
        while not pool.any_healthy(now):
            now += 0.25
        rests.append(now - start)
    assert rests == [0.5, 1, 2, 4, 8, 15, 15, 15]
    pool.acquire(now)
    pool.succeeded("a")
    pool.acquire(now)
    pool.failed("a", DOWN, now)
    assert pool.any_healthy(now + 0.5)


def test_rpcs_that_fail_together_count_once() -> None:
    pool = AddressPool(["a"])
    for _ in range(8):
        pool.acquire(0.0)
    for _ in range(8):
        pool.failed("a", DOWN, 0.0)
    assert pool.any_healthy(0.5)


def test_a_full_address_rests_for_as_long_as_it_asked() -> None:
    pool = AddressPool(["a", "b"])
    pool.acquire(0.0)
    pool.failed("a", RpcFailure("RESOURCE_EXHAUSTED", "", 3.0), 0.0)
    assert {pool.acquire(2.9) for _ in range(5)} == {"b"}
    assert pool.acquire(3.0) == "a"


def test_a_single_address_is_never_shut_out() -> None:
    pool = AddressPool(["a"])
    pool.acquire(0.0)
    pool.failed("a", DOWN, 0.0)
    assert not pool.any_healthy(0.1)
    assert pool.acquire(0.1) == "a"
