"""Places go to those who asked first, all that one needs at once, and none is lost."""

from __future__ import annotations

import threading
import time

from rewardsvc.verifiers.sandbox.turns import Turns


def waiting(turns: Turns, count: int, log: list[str], name: str) -> threading.Thread:
    """A thread that takes places and notes its name; it is waiting when this returns."""

    def wait() -> None:
        log.append(name if turns.take(count, 10.0) else f"{name} not")

    num_before = len(turns._waiting)
    thread = threading.Thread(target=wait)
    thread.start()
    while len(turns._waiting) == num_before and not log:
        time.sleep(0.001)
    return thread


def test_first_come_first_served() -> None:
    turns, log = Turns(1), []  # type: ignore[var-annotated]
    assert turns.take(1, 0.0)
    threads = [waiting(turns, 1, log, name) for name in "abc"]
    for number in range(3):
        turns.give_back(1)
        threads[number].join(10)
    assert log == ["a", "b", "c"]


def test_one_who_needs_several_is_not_overtaken() -> None:
    turns, log = Turns(2), []  # type: ignore[var-annotated]
    assert turns.take(1, 0.0)
    pair = waiting(turns, 2, log, "pair")
    assert not turns.take(1, 0.01), "a place is free, but it is somebody's turn"
    turns.give_back(1)
    pair.join(10)
    assert log == ["pair"]


def test_place_that_came_too_late_goes_to_the_next() -> None:
    turns, log = Turns(2), []  # type: ignore[var-annotated]
    assert turns.take(1, 0.0)
    assert not turns.take(2, 0.01)
    one = waiting(turns, 1, log, "one")
    one.join(10)
    assert log == ["one"], "who gave up is not in the way"
    assert not turns.take(1, 0.0)


def test_closing_sends_everybody_away() -> None:
    turns, log = Turns(1), []  # type: ignore[var-annotated]
    assert turns.take(1, 0.0)
    thread = waiting(turns, 1, log, "a")
    turns.close()
    turns.close()
    thread.join(10)
    assert log == ["a not"]
    turns.give_back(1)
    assert not turns.take(1, 0.0)


def test_no_place_is_lost_or_given_twice() -> None:
    turns = Turns(3)
    taken, most, lock = 0, 0, threading.Lock()

    def work(count: int, timeout_seconds: float) -> None:
        nonlocal taken, most
        for _ in range(200):
            if turns.take(count, timeout_seconds):
                with lock:
                    taken += count
                    most = max(most, taken)
                with lock:
                    taken -= count
                turns.give_back(count)

    kinds = [(1, 1.0), (2, 1.0), (3, 1.0), (1, 0.0), (2, 0.0001), (1, 1.0)]
    threads = [threading.Thread(target=work, args=kind) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most <= 3
    assert turns.take(3, 0.0)
