"""What a client accepts, and what it says of the rest."""

import pickle
from typing import Any

import grpc
import pytest

from rewardsvc.policy_client import (
    AsyncRewardClient,
    Cancelled,
    RetryPolicy,
    RewardClient,
    TlsConfig,
)
from rewardsvc.policy_client.client.channels import call_metadata, rpc_failure
from rewardsvc.policy_client.client.errors import CallFacts, RpcFailure, error_of


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"addresses": []}, "addresses"),
        ({"addresses": "a:1,,b:2"}, "addresses"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"timeout_s": float("inf")}, "timeout_s is inf"),
        ({"priority": 101}, "priority is 101"),
        ({"client_id": "ä" * 65}, "client_id has 130 bytes"),
        ({"max_samples_per_call": 0}, "max_samples_per_call is 0"),
        ({"max_in_flight": 0}, "max_in_flight is 0"),
        ({"max_message_bytes": 10}, "max_message_bytes is 10"),
    ],
)
@pytest.mark.parametrize("client", [RewardClient, AsyncRewardClient])
def test_a_setting_out_of_range_is_named(
    client: Any, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        client(**{"addresses": "a:1", **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"initial_backoff_s": 0},
        {"initial_backoff_s": 2, "max_backoff_s": 1},
        {"multiplier": 0.5},
        {"max_attempts": 0},
        {"max_item_attempts": 0},
    ],
)
def test_a_retry_policy_out_of_range_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="RetryPolicy"):
        RetryPolicy(**arguments)


def test_addresses_may_be_listed_with_commas() -> None:
    assert RewardClient("a:1, b:2,a:1").settings.addresses == ("a:1", "b:2")


def test_a_client_travels_as_its_settings_and_keeps_its_key_to_itself() -> None:
    client = RewardClient("a:1", api_key="hidden-key", tls=TlsConfig(server_name="x"), priority=3)
    assert pickle.loads(pickle.dumps(client)).settings == client.settings
    assert "hidden-key" not in repr(client.settings)
    assert call_metadata(client.settings) == (("authorization", "Bearer hidden-key"),)


def test_a_closed_client_says_so() -> None:
    client = RewardClient("127.0.0.1:1")
    client.close()
    client.close()
    with pytest.raises(Cancelled, match="closed"):
        client.score("s", ["p"], ["c"])


def test_tls_needs_key_and_certificate_together() -> None:
    with pytest.raises(ValueError, match="client_key"):
        TlsConfig(client_certificate="cert.pem")


@pytest.mark.parametrize(
    ("value", "seconds"), [("250", 0.25), (b"1000", 1.0), ("-5", None), ("soon", None)]
)
def test_the_retry_delay_is_read_from_the_trailers(
    value: str | bytes, seconds: float | None
) -> None:
    trailers = (("x", "y"), ("retry-delay-ms", value))
    failure = rpc_failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", trailers)
    assert failure == RpcFailure("RESOURCE_EXHAUSTED", "full", seconds)


def test_a_write_to_a_broken_stream_counts_as_a_broken_connection() -> None:
    assert rpc_failure(grpc.StatusCode.INTERNAL, "Internal error from Core", None).code == (
        "UNAVAILABLE"
    )
    assert rpc_failure(grpc.StatusCode.INTERNAL, "a bug", ()).code == "INTERNAL"


FACTS = CallFacts(what="Score with 's'", address="h:1", num_attempts=3, elapsed_s=1.5, timeout_s=9)


@pytest.mark.parametrize("code", [c.name for c in grpc.StatusCode if c.name != "OK"])
def test_every_status_becomes_an_error_that_says_what_where_and_how_often(code: str) -> None:
    message = str(error_of(RpcFailure(code, "because"), FACTS))
    assert message.startswith(f"Score with 's' at h:1, 3 attempts in 1.5 s: {code}: because")
    assert message.endswith(")")
