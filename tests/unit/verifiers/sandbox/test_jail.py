"""The jail's steps are written once, and a chain takes the same ones in the same order."""

from __future__ import annotations

import resource

import pytest

from rewardsvc.verifiers.sandbox import jail, linux
from rewardsvc.verifiers.sandbox.chain import Chain, ChainError
from rewardsvc.verifiers.sandbox.jail import JailPlan, Outfit
from rewardsvc.verifiers.sandbox.layers import Layer
from rewardsvc.verifiers.sandbox.linux import Call

LIMITS = {
    "cpu_ms": 1500,
    "disk_mib": 2,
    "output_bytes": 100,
    "num_processes": 7,
    "memory_mib": 3,
}


def plan(kind: str = "python", **changes: object) -> JailPlan:
    values: dict[str, object] = {
        "kind": kind,
        "layers": frozenset(Layer),
        "readable": (),
        "ruleset": 9,
        "uid": -1,
        "base_bytes": 1000,
        "grouped": True,
        "limited": True,
    }
    return JailPlan(**(values | changes))  # type: ignore[arg-type]


def steps(of: JailPlan) -> tuple[jail.Step, ...]:
    return tuple(jail._steps(of))


def test_full_jail_starts_by_a_chain() -> None:
    assert all(isinstance(step, Call) for step in steps(plan()))


@pytest.mark.parametrize(
    "lesser",
    [plan(uid=1234), plan(ruleset=-1), plan(layers=frozenset(Layer) - {Layer.MOUNT_NS})],
    ids=["as root", "without a common ruleset", "without mounts"],
)
def test_lesser_jails_need_more_than_system_calls(lesser: JailPlan) -> None:
    assert not all(isinstance(step, Call) for step in steps(lesser))


def test_chain_takes_the_steps_in_their_order() -> None:
    try:
        chain = Chain(max_rows=32, data_bytes=256)
    except ChainError as error:
        pytest.skip(str(error))
    outfit = Outfit(
        plan=plan(),
        channel=None,  # type: ignore[arg-type]
        steps=steps(plan()),
        install_filter=linux.seccomp_call(bytes(8)),
        confine=None,
    )
    jail.add_steps(chain, outfit, control_fd=3)
    assert [chain.name(row) for row in range(chain.num_rows)] == [
        "setsid",
        "dup3",
        "close_range",
        "close_range",
        "capset",
        "landlock_restrict_self",
        "prctl",
        "close",
        "write",
        "prctl",
    ]


def test_limits_of_an_order() -> None:
    assert jail.limits_of_order(plan(), LIMITS, 10) == {
        resource.RLIMIT_CPU: 3,
        resource.RLIMIT_FSIZE: (2 << 20) + 1,
        resource.RLIMIT_NPROC: 7 + jail.NUM_OWN_PROCESSES,
        resource.RLIMIT_AS: 1000 + (3 << 20) + 20,
    }
    assert resource.RLIMIT_AS not in jail.limits_of_order(plan("exec"), LIMITS, 10)
    alone = jail.limits_of_order(plan("exec", grouped=False), LIMITS, 10)
    assert alone[resource.RLIMIT_DATA] == 3 << 20
    assert jail.limits_of_order(plan(limited=False), LIMITS, 10) == {}
