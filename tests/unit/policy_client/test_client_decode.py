"""A reply is read as it is, or refused."""

from collections.abc import Callable

import numpy as np
import pytest

from rewardsvc.errors import ItemErrorCode
from rewardsvc.policy_client import ServerBug, Verdict
from rewardsvc.policy_client.client.decode import decode_items, decode_logprobs
from rewardsvc.v1 import reward_pb2 as pb

NAN = float("nan")


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def ints(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


def good() -> pb.ScoreBatch:
    batch = pb.ScoreBatch(
        values=floats(1, NAN, -0.5),
        components=[pb.Component(name="a/b", values=floats(2, NAN, 3))],
        steps=floats(0.1, 0.2),
        step_counts=ints(2, 0, 0),
        version="v7",
    )
    batch.details.add(index=2, verdict=pb.VERDICT_PARTIAL, explanation="half")
    error = pb.ItemError(code=pb.ITEM_ERROR_CODE_NON_FINITE, message="inf", retryable=True)
    batch.details.add(index=1, error=error)
    return batch


def test_rows_hold_what_the_columns_hold() -> None:
    first, second, third = decode_items(good(), ["x", "y", "z"])
    assert (first.value, first.components, first.version) == (1.0, {"a/b": 2.0}, "v7")
    np.testing.assert_array_equal(first.steps, np.float32([0.1, 0.2]))
    assert first.steps.flags.writeable
    assert second.value is None
    assert second.components == {}
    assert second.error is not None
    assert second.error.code is ItemErrorCode.NON_FINITE
    assert second.error.retryable
    assert (third.value, third.verdict, third.explanation) == (-0.5, Verdict.PARTIAL, "half")


def _add_detail(batch: pb.ScoreBatch, index: int) -> None:
    batch.details.add(index=index)


BREAKAGES: dict[str, tuple[str, Callable[[pb.ScoreBatch], object]]] = {
    "short values": ("values", lambda b: setattr(b, "values", floats(1))),
    "ragged values": ("values", lambda b: setattr(b, "values", b.values + b"\0")),
    "no values": ("values", lambda b: setattr(b, "values", b"")),
    "infinite": (r"values\[0\]", lambda b: setattr(b, "values", floats(np.inf, NAN, 1))),
    "NaN without error": (r"values\[0\]", lambda b: setattr(b, "values", floats(NAN, NAN, 1))),
    "value with error": (r"values\[1\]", lambda b: setattr(b, "values", floats(1, 1, 1))),
    "short component": ("a/b", lambda b: setattr(b.components[0], "values", floats(1))),
    "same component": ("twice", lambda b: b.components.append(b.components[0])),
    "step counts": ("step_counts", lambda b: setattr(b, "step_counts", ints(2))),
    "negative count": ("step_counts", lambda b: setattr(b, "step_counts", ints(-1, 2, 1))),
    "steps": ("steps", lambda b: setattr(b, "step_counts", ints(1, 0, 0))),
    "steps without counts": ("steps", lambda b: setattr(b, "step_counts", b"")),
    "index too high": ("index 3", lambda b: _add_detail(b, 3)),
    "negative index": ("index -1", lambda b: _add_detail(b, -1)),
    "index twice": ("index 2 twice", lambda b: _add_detail(b, 2)),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_malformed_reply_is_a_server_bug_that_names_the_field(name: str) -> None:
    named, corrupt = BREAKAGES[name]
    batch = good()
    corrupt(batch)
    with pytest.raises(ServerBug, match=named):
        decode_items(batch, ["x", "y", "z"])


def test_every_verdict_and_error_code_of_the_contract_is_known() -> None:
    for name, number in pb.Verdict.items():
        batch = pb.ScoreBatch(values=floats(1))
        batch.details.add(index=0, verdict=number)
        verdict = decode_items(batch, ["x"])[0].verdict
        assert (verdict is None) == (number == 0)
        assert verdict is None or f"VERDICT_{verdict.name}" == name
    for name, number in pb.ItemErrorCode.items():
        batch = pb.ScoreBatch(values=floats(NAN))
        batch.details.add(index=0, error=pb.ItemError(code=number))
        error = decode_items(batch, ["x"])[0].error
        assert error is not None
        assert number == 0 or f"ITEM_ERROR_CODE_{error.code.name}" == name


def test_codes_of_a_newer_server_do_not_break_the_client() -> None:
    batch = pb.ScoreBatch(values=floats(1, NAN))
    batch.details.add(index=0, verdict=99, explanation="new")  # type: ignore[arg-type]
    batch.details.add(index=1, error=pb.ItemError(code=99, message="new"))  # type: ignore[arg-type]
    first, second = decode_items(batch, ["x", "y"])
    assert (first.value, first.verdict, first.explanation) == (1.0, None, "new")
    assert second.error is not None
    assert second.error.code is ItemErrorCode.INTERNAL
    assert "99" in second.error.message


def test_logprobs_are_split_by_the_counts_that_were_asked_for() -> None:
    response = pb.TokenLogProbsResponse(logprobs=floats(-1, -2, -3), entropies=floats(1, 2, 3))
    logprobs, entropies, errors = decode_logprobs(response, [2, 0, 1], entropy=True)
    assert [row.tolist() for row in logprobs] == [[-1, -2], [], [-3]]
    assert [row.tolist() for row in entropies] == [[1, 2], [], [3]]
    assert errors == {}


@pytest.mark.parametrize(
    ("logprobs", "entropies", "named"),
    [
        (floats(-1), floats(1, 1), "logprobs"),
        (floats(-1, -1), b"", "entropies"),
        (floats(-1, NAN), floats(1, 1), "sequence 0"),
    ],
)
def test_malformed_logprobs_are_a_server_bug(logprobs: bytes, entropies: bytes, named: str) -> None:
    response = pb.TokenLogProbsResponse(logprobs=logprobs, entropies=entropies)
    with pytest.raises(ServerBug, match=named):
        decode_logprobs(response, [2], entropy=True)
