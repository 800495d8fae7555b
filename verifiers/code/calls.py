"""Calls Python functions in the sandbox and brings their results out as data."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rewardsvc.verifiers.code.suite import Bench, memory_file
from rewardsvc.verifiers.sandbox import wire
from rewardsvc.verifiers.sandbox.jobs import Job
from rewardsvc.verifiers.sandbox.types import Limits, RunResult, RunStatus
from rewardsvc.verifiers.sandbox.values import Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """What one call did, as the candidate's process says.

    Attributes:
        value: What it returned, in the tagged form; meaningless if it raised.
        raised: Type and message of what it raised; empty if it returned.
        elapsed_ms: Elapsed time of the call.
    """

    value: Tree = None
    raised: str = ""
    elapsed_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsOutcome:
    """What one process did.

    Attributes:
        records: Of the first calls, in order; shorter than asked for if the process ended early, or
            if what follows is not what the harness writes.
        load_failure: What the module's body raised; empty if it was loaded.
        complete: Whether there is nothing but one record for each call.
        run: How the process ended.
    """

    records: list[CallRecord] = field(default_factory=list)
    load_failure: str = ""
    complete: bool = False
    run: RunResult


def call(
    bench: Bench, code: str, function: str, cases: Sequence[tuple[Tree, Tree]], *, limits: Limits
) -> CallsOutcome:
    """Loads `code` in a fresh process and calls `function` once a case.

    Args:
        bench: Where to run it.
        code: Python.
        function: Name of a function, or `Class.method`.
        cases: Positional and named arguments, in the tagged form.
        limits: Of the process.

    Raises:
        JudgingError: If the sandbox broke.
        CompileFailedError: If `code` is no Python.
    """
    results: list[int] = []

    def make_job() -> Job:
        _close(results)
        results.append(memory_file("results"))
        return Job(
            mode="calls",
            sources={"code": code, "cases": json.dumps(cases)},
            settings={"function": function},
            limits=limits,
            extra_fds=[results[0]],
        )

    try:
        run = bench.run(make_job)
        content = wire.read_memory_file(results[0], limits.output_bytes + 1)
    finally:
        _close(results)
    if len(content) > limits.output_bytes:
        run = replace(run, status=RunStatus.OUTPUT_LIMIT)
    return read_records(content, len(cases), run, limits.output_bytes)


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def read_records(content: bytes, count: int, run: RunResult, limit_bytes: int) -> CallsOutcome:
    """Reads what a candidate's process has left; nothing about it can be relied upon.

    Reading stops at the first line that the harness would not have written there: a second record
    of the same call, one too many, one out of order, no JSON.
    """
    records: list[CallRecord] = []
    lines = content.split(b"\n")
    complete = len(content) <= limit_bytes and lines.pop() == b""
    for line in lines:
        record = parse_line(line)
        if record is not None and "load" in record and not records:
            return CallsOutcome(load_failure=_raised(record["load"]) or "failed", run=run)
        if record is None or record.get("case") != len(records) or len(records) == count:
            complete = False
            break
        records.append(
            CallRecord(
                value=record.get("value"),
                raised="" if "value" in record else _raised(record) or "no value",
                elapsed_ms=_elapsed_ms(record.get("ms")),
            )
        )
    return CallsOutcome(records=records, complete=complete and len(records) == count, run=run)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The JSON object that a line holds, or None."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if type(record) is dict else None


def _elapsed_ms(said: object) -> float:
    """The time that a call took by its process's own account; 0.0 for what is no time."""
    return said if type(said) is float and math.isfinite(said) else 0.0


def _raised(record: object) -> str:
    if type(record) is not dict or type(record.get("exception")) is not str:
        return ""
    message = record.get("message")  # perhaps a list of lists of lists …
    return f"{record['exception']}: {message if type(message) is str else ''}"
