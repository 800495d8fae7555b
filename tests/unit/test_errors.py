"""The table from errors to statuses is complete."""

import grpc

from rewardsvc import errors
from rewardsvc.convert import ERROR_CODES, STATES, VERDICTS
from rewardsvc.errors import STATUS_OF, ItemErrorCode, ServiceError, status_of
from rewardsvc.scoring.slot import State
from rewardsvc.scoring.types import Verdict
from rewardsvc.v1 import reward_pb2 as pb
from rewardsvc.verifiers.types import ErrorKind, Status


def all_subclasses(cls: type) -> set[type]:
    return set(cls.__subclasses__()).union(*(all_subclasses(c) for c in cls.__subclasses__()))


def test_every_domain_error_has_a_status() -> None:
    ours = {cls for cls in all_subclasses(ServiceError) if cls.__module__ == errors.__name__}
    assert ours == set(STATUS_OF)


def test_a_more_special_error_has_the_status_of_its_base() -> None:
    class BadColumnError(errors.ConfigError):
        pass

    assert status_of(BadColumnError("x")) == "INVALID_ARGUMENT"
    assert status_of(errors.QueueFullError("x", retry_delay_ms=1)) == "RESOURCE_EXHAUSTED"
    assert status_of(RuntimeError("x")) == "INTERNAL"
    for cls in all_subclasses(ServiceError):
        assert any(base in STATUS_OF for base in cls.__mro__)


def test_every_status_exists_in_grpc() -> None:
    for name in STATUS_OF.values():
        assert hasattr(grpc.StatusCode, name)


def test_every_domain_error_is_public_and_documented() -> None:
    for cls in STATUS_OF:
        assert getattr(errors, cls.__name__) is cls
        assert cls.__doc__


def test_every_item_error_code_has_its_number_on_the_wire_and_back() -> None:
    assert set(ERROR_CODES) == set(ItemErrorCode)
    named = {v.name for v in pb.DESCRIPTOR.enum_types_by_name["ItemErrorCode"].values}
    assert named == {f"ITEM_ERROR_CODE_{c.name}" for c in ItemErrorCode} | {
        "ITEM_ERROR_CODE_UNSPECIFIED"
    }


def test_every_verdict_and_state_has_its_number_on_the_wire_and_back() -> None:
    for enum, table, prefix in (
        ("Verdict", VERDICTS, "VERDICT_"),
        ("ScorerState", STATES, "SCORER_STATE_"),
    ):
        named = {v.name for v in pb.DESCRIPTOR.enum_types_by_name[enum].values}
        assert named == {f"{prefix}{member.name}" for member in table} | {f"{prefix}UNSPECIFIED"}
        assert 0 not in table.values()


def test_what_verifiers_say_can_be_said_by_the_service() -> None:
    assert {s.value for s in Status} - {"error"} == {v.value for v in Verdict}
    assert {e.value for e in ErrorKind} <= {c.value for c in ItemErrorCode}
    assert len(State) == 4
