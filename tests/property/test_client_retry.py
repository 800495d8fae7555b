"""Retries never pass the deadline, and never come before the server wants them."""

import random

from hypothesis import given
from hypothesis import strategies as st

from rewardsvc.policy_client import RetryPolicy
from rewardsvc.policy_client.client.errors import RpcFailure

policies = st.builds(
    RetryPolicy,
    initial_backoff_s=st.floats(0.001, 1),
    max_backoff_s=st.floats(1, 60),
    multiplier=st.floats(1, 10),
    max_attempts=st.none() | st.integers(1, 20),
)
failures = st.builds(
    RpcFailure,
    st.sampled_from(["UNAVAILABLE", "RESOURCE_EXHAUSTED"]),
    st.just(""),
    st.none() | st.floats(0, 100),
)
seeds = st.integers(0, 2**32).map(random.Random)


@given(policies, failures, st.floats(0, 400), seeds)
def test_the_schedule_ends_before_the_deadline(
    policy: RetryPolicy, failure: RpcFailure, timeout_s: float, rng: random.Random
) -> None:
    now, num_failures = 0.0, 0
    while num_failures < 200:
        num_failures += 1
        delay = policy.delay_s(
            failure,
            num_failures=num_failures,
            seconds_left=timeout_s - now,
            other_address=False,
            rng=rng,
        )
        if delay is None:
            break
        assert delay >= (failure.retry_delay_s or 0)
        assert delay <= (failure.retry_delay_s or 0) + policy.max_backoff_s
        now += delay
        assert now <= timeout_s
    if policy.max_attempts is not None:
        assert num_failures <= policy.max_attempts


@given(policies, st.integers(1, 5000), seeds)
def test_backoff_stays_below_its_exponential_bound(
    policy: RetryPolicy, num_failures: int, rng: random.Random
) -> None:
    growth = min(policy.multiplier ** min(num_failures - 1, 200), 1e300)
    bound = min(policy.initial_backoff_s * growth, policy.max_backoff_s)
    assert 0 <= policy.backoff_s(num_failures, rng) <= bound * (1 + 1e-9)


@given(
    policies,
    st.sampled_from(
        ["INTERNAL", "CANCELLED", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED", "UNKNOWN"]
    ),
    st.booleans(),
    seeds,
)
def test_what_may_have_been_done_or_cannot_succeed_is_not_retried(
    policy: RetryPolicy, code: str, other_address: bool, rng: random.Random
) -> None:
    delay = policy.delay_s(
        RpcFailure(code),
        num_failures=1,
        seconds_left=100.0,
        other_address=other_address,
        rng=rng,
    )
    assert delay is None


@given(seeds)
def test_another_address_is_tried_at_once(rng: random.Random) -> None:
    delay = RetryPolicy().delay_s(
        RpcFailure("RESOURCE_EXHAUSTED", "", 50.0),
        num_failures=1,
        seconds_left=1.0,
        other_address=True,
        rng=rng,
    )
    assert delay == 0.0
