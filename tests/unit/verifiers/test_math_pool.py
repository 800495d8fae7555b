"""The processes behind the mathematics verifier: shared, bounded, killed, replaced."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rewardsvc.verifiers import ErrorKind, MathVerifier, Status
from rewardsvc.verifiers.math import pool as pool_module
from rewardsvc.verifiers.math import process as process_module
from rewardsvc.verifiers.math.pool import ComparisonPool, Outcome
from rewardsvc.verifiers.math.process import PoolLimits, Worker

POWER_TOWER = "9^{9^{9^{9^9}}}"


@pytest.fixture(scope="module")
def pool() -> Iterator[ComparisonPool]:
    pool = ComparisonPool(PoolLimits(num_workers=1, cpu_seconds=1.0))
    yield pool
    pool.close()


def test_expressions_are_compared_as_mathematics(pool: ComparisonPool) -> None:
    assert pool.compare("2x + 1", "1 + 2x").outcome is Outcome.EQUAL
    assert pool.compare("2x + 1", "1 + 3x").outcome is Outcome.UNEQUAL
    assert pool.compare(r"\{1, 2\}", "2, 1").outcome is Outcome.EQUAL
    assert pool.compare("-1", r"e^{i\pi}").outcome is Outcome.EQUAL
    assert pool.compare(r"\frac{\sqrt{2}}{2^{98}}", r"\frac{\sqrt{2}}{2^{99}}").outcome is (
        Outcome.UNEQUAL
    )


def test_a_runaway_answer_is_the_answers_fault_and_the_next_one_is_served(
    pool: ComparisonPool,
) -> None:
    assert pool.compare("3", POWER_TOWER).outcome is Outcome.TIME_LIMIT
    assert pool.compare("2x", "x + x").outcome is Outcome.EQUAL


def test_a_runaway_or_unreadable_reference_is_a_bad_reference(pool: ComparisonPool) -> None:
    assert pool.compare("???", "x").outcome is Outcome.BAD_REFERENCE
    assert pool.compare(POWER_TOWER, "x").outcome is Outcome.BAD_REFERENCE


def test_a_worker_that_is_killed_between_requests_is_replaced(pool: ComparisonPool) -> None:
    pool.start()
    [worker] = pool._idle
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait(30)
    assert pool.compare("x", "x + 1").outcome is Outcome.UNEQUAL
    assert pool._idle != [worker]


def test_a_server_that_is_killed_between_requests_is_replaced(pool: ComparisonPool) -> None:
    pool.start()
    [worker] = pool._idle
    os.kill(server_of(worker), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while worker.is_quiet() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pool.compare("x", "x + 1").outcome is Outcome.UNEQUAL
    assert pool.compare("2x", "x + x").outcome is Outcome.EQUAL


def server_of(worker: Worker) -> int:
    """The child of a worker that serves its requests."""
    tasks = Path(f"/proc/{worker._process.pid}/task/{worker._process.pid}/children")
    deadline = time.monotonic() + 30
    while not (children := tasks.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return int(children[0])


@pytest.mark.parametrize("whom", ["worker", "server"])
def test_a_worker_that_is_killed_in_the_middle_is_no_verdict(whom: str) -> None:
    pool = ComparisonPool(PoolLimits(num_workers=1, cpu_seconds=300.0, wall_seconds=300.0))
    pool.start()
    [worker] = pool._idle
    victim = worker._process.pid if whom == "worker" else server_of(worker)
    outcomes: list[Outcome] = []
    thread = threading.Thread(
        target=lambda: outcomes.append(pool.compare("3", POWER_TOWER).outcome), daemon=True
    )
    thread.start()
    deadline = time.monotonic() + 60
    while not pool._busy and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)
    thread.join(60)
    assert outcomes == [Outcome.BROKEN]
    assert pool.compare("2x", "x + x").outcome is Outcome.EQUAL
    pool.close()


def test_a_runaway_answer_costs_a_fork_and_no_new_interpreter(pool: ComparisonPool) -> None:
    pool.start()
    [worker] = pool._idle
    assert pool.compare("3", POWER_TOWER).outcome is Outcome.TIME_LIMIT
    assert pool.compare("2x", "x + x").outcome is Outcome.EQUAL
    assert pool._idle == [worker]


def test_many_threads_share_few_workers(pool: ComparisonPool) -> None:
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: pool.compare(f"{n}x", f"x*{n % 4}"), range(16)))
    expected = [Outcome.EQUAL if n < 4 else Outcome.UNEQUAL for n in range(16)]
    assert [result.outcome for result in results] == expected
    assert len(pool._idle) == 1


# From Python 3.12 on; a thread that another test left behind must not fail this one.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_of_fork_starts_workers_of_its_own(pool: ComparisonPool) -> None:
    pool.start()
    [parents_worker] = pool._idle
    child = os.fork()
    if child == 0:
        # Only this thread lives on; leave without running the parent's exit handlers.
        try:
            fine = pool.compare("2x", "x + x").outcome is Outcome.EQUAL
            pool.close()
            os._exit(0 if fine else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert pool._idle == [parents_worker]
    assert pool.compare("2x", "x + x").outcome is Outcome.EQUAL


def test_waiting_for_a_worker_has_a_deadline(pool: ComparisonPool) -> None:
    small = ComparisonPool(PoolLimits(num_workers=1, queue_seconds=0.05))
    with small._slots:
        assert small.compare("x", "y").outcome is Outcome.GAVE_UP


def test_closing_ends_the_workers_and_later_comparisons_are_no_verdict() -> None:
    pool = ComparisonPool(PoolLimits(num_workers=1))
    pool.start()
    [worker] = pool._idle
    pool.close()
    assert worker._process.poll() is not None
    assert pool.compare("x", "y").outcome is Outcome.BROKEN


def test_closing_releases_a_caller_that_waits_for_a_result() -> None:
    pool = ComparisonPool(PoolLimits(num_workers=1, cpu_seconds=300.0, wall_seconds=300.0))
    pool.start()
    outcomes: list[Outcome] = []
    thread = threading.Thread(
        target=lambda: outcomes.append(pool.compare("3", POWER_TOWER).outcome), daemon=True
    )
    thread.start()
    deadline = time.monotonic() + 60
    while not pool._busy and time.monotonic() < deadline:
        time.sleep(0.01)
    pool.close()
    thread.join(60)
    assert outcomes == [Outcome.BROKEN]


def test_workers_do_not_inherit_secrets(
    monkeypatch: pytest.MonkeyPatch, pool: ComparisonPool
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    fresh = ComparisonPool(PoolLimits(num_workers=1))
    try:
        fresh.start()
        [worker] = fresh._idle
        environment = Path(f"/proc/{worker._process.pid}/environ").read_bytes()
        assert b"PATH=" in environment
        assert b"hunter2" not in environment
    finally:
        fresh.close()


def test_a_worker_that_cannot_start_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    limits = PoolLimits(num_workers=1, queue_seconds=121.0)
    verdict = MathVerifier(limits=limits).verify(r"\boxed{\sin x}", r"\cos x")
    assert verdict.error is ErrorKind.SANDBOX_FAILURE
    assert verdict.reward is None
    assert "rewardsvc[math]" in verdict.explanation


def test_a_worker_that_talks_nonsense_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "worker.py"
    script.write_text("import os; os.write(1, b'\\xff' * 100)")
    monkeypatch.setattr(process_module, "_SCRIPT", script)
    result = ComparisonPool(PoolLimits(num_workers=1)).compare("x", "y")
    assert result.outcome is Outcome.BROKEN


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="cpu_seconds is 0"):
        PoolLimits(cpu_seconds=0)


def test_the_verifier_is_picklable_and_equal_limits_share_a_pool() -> None:
    verifier = pickle.loads(pickle.dumps(MathVerifier(require_box=True)))
    assert verifier == MathVerifier(require_box=True)
    assert pool_module.shared_pool(PoolLimits()) is pool_module.shared_pool(verifier.limits)


async def test_the_verifier_can_be_awaited() -> None:
    verdict = await MathVerifier().averify(r"\boxed{0.5}", r"\frac{1}{2}")
    assert verdict.status is Status.ACCEPTED
