"""Runs Python code inside a child: as a script, as functions to call, or across from another run.

This code shares the process with what it runs. It can be patched, walked over by frame, or cut
short by `os._exit`; all of that only changes what the process says about *itself*. It holds no
expected value, no other run's data, and no descriptor but those of its own output.
"""

from __future__ import annotations

import _thread
import atexit
import builtins
import json
import linecache
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any, NoReturn, TextIO

from rewardsvc.verifiers.sandbox.rpc import Channel, ChannelClosedError, Remote, serve
from rewardsvc.verifiers.sandbox.values import decode, encode

FIRST_EXTRA_FD = 20
"""Descriptors beyond the standard three that a mode uses are installed from here on."""

MEMORY_NOTE, COMPILE_NOTE = b"memory", b"compile"
NOTES = frozenset({MEMORY_NOTE, COMPILE_NOTE})
"""What the harness may say of its end beside the exit code. The program could say it too, and would
only make its own failure another failure."""

_MAIN_FILE = "main.py"
_MAX_MESSAGE_CHARS = 2000
_EXIT_FLUSH_FAILED = 120
NUM_REHEARSALS = 24
"""More often than the interpreter runs code before it specialises it."""
_REHEARSAL = "import sys\nfor line in sys.stdin:\n    print(int(line))\nprint(0)\n"


def run(order: dict[str, Any], sources: dict[str, str], control_fd: int) -> NoReturn:
    """Runs one order and ends the process.

    Args:
        order: Its "mode" is "script", "calls", "serve" or "judge", "settings" are the mode's, and
            "piped" says whether stdin or stdout is no memory file.
        sources: The code under "code", and whatever else the mode takes.
        control_fd: Where to say that memory ran out.
    """
    if order["piped"]:
        _open_standard_streams()  # those made in advance take their files for seekable
    runner = _MODES[order["mode"]]
    try:
        exit_code = runner(sources, order["settings"])
    except SystemExit as error:
        exit_code = _exit_code(error)
    except BaseException as error:
        if isinstance(error, MemoryError):
            os.write(control_fd, MEMORY_NOTE)
        elif isinstance(error, CompileError):
            os.write(control_fd, COMPILE_NOTE)
            error = error.__cause__ or error
        _print_traceback(error)
        exit_code = 1
    _leave(exit_code)


def rehearse() -> None:
    """Runs a small program in this process, from which the processes of runs will be forked.

    At its first executions the interpreter notes things down: types of operands beside the
    instructions, places of methods, free blocks. What is noted here is not noted by each run anew,
    in memory that it would have to copy first. Nothing of the program stays behind.
    """
    main, argv = sys.modules["__main__"], sys.argv
    for _ in range(NUM_REHEARSALS):
        _memory_streams(b"1\n2\n")
        _script({"code": _REHEARSAL}, {})
        _flush(0)
    sys.modules["__main__"], sys.argv = main, argv
    linecache.cache.clear()
    _memory_streams(b"")


def _memory_streams(stdin: bytes) -> None:
    """Streams on memory files, as those of runs are: with other files behind the descriptors a run
    uses them as they are."""
    for target, content in ((0, stdin), (1, b"")):
        fd = os.memfd_create("stream", os.MFD_CLOEXEC)
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        os.dup2(fd, target)
        os.close(fd)
    _open_standard_streams()


def _open_standard_streams() -> None:
    """As the interpreter does at its start, in UTF-8 mode."""
    streams: dict[str, TextIO] = {
        "stdin": open(0, encoding="utf-8", errors="surrogateescape", closefd=False),  # noqa: SIM115
        "stdout": open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False),  # noqa: SIM115
        "stderr": open(  # noqa: SIM115
            2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
        ),
    }
    for name, stream in streams.items():
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)  # noqa: T201 - what the interpreter does
    return 1


def _print_traceback(error: BaseException) -> None:
    """As the interpreter does, without the frames of this file."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    try:
        traceback.print_exception(type(error), error, frames)
    except BaseException:
        os.write(2, b"the traceback could not be printed\n")


def _leave(exit_code: int) -> NoReturn:
    """Ends the process as the interpreter does: threads, exit functions, buffers."""
    try:
        if _thread._count() or threading._threading_atexits:  # type: ignore[attr-defined]
            threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException as error:
        _print_traceback(error)
    os._exit(_flush(exit_code))


def _flush(exit_code: int) -> int:
    """Flushes the streams; returns `exit_code`, or if that is 0 whether it failed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            exit_code = exit_code or _EXIT_FLUSH_FAILED
    return exit_code


class CompileError(Exception):
    """The text is no Python."""


def _module(name: str, code: str, filename: str) -> tuple[ModuleType, CodeType]:
    """A fresh module under `name`, and its compiled code."""
    module = ModuleType(name)
    module.__file__ = filename
    module.__builtins__ = builtins  # type: ignore[attr-defined]
    sys.modules[name] = module
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    try:
        return module, compile(code, filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise CompileError(str(error)) from error


def _script(sources: dict[str, str], settings: dict[str, Any]) -> int:
    sys.argv = [_MAIN_FILE, *settings.get("argv", [])]
    module, code = _module("__main__", sources["code"], _MAIN_FILE)
    exec(code, module.__dict__)  # noqa: S102 - this is the sandbox
    return 0


class _Records:
    """Appends one JSON line a case; each reaches the file before the next case starts."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._dumps = json.JSONEncoder(separators=(",", ":")).encode
        self._write = os.write

    def append(self, record: dict[str, object]) -> None:
        data = memoryview(self._dumps(record).encode() + b"\n")
        while data:
            data = data[self._write(self._fd, data) :]


def _failure(error: BaseException) -> dict[str, object]:
    try:
        message = str(error)[:_MAX_MESSAGE_CHARS]
    except BaseException:
        message = ""
    return {"exception": type(error).__name__, "message": message}


def _load(sources: dict[str, str], records: _Records) -> ModuleType | None:
    """Runs the candidate's module body; None if it raised, which is then on record."""
    try:
        module, code = _module("solution", sources["code"], _MAIN_FILE)
        exec(code, module.__dict__)  # noqa: S102
    except (MemoryError, CompileError):
        raise
    except BaseException as error:
        records.append({"load": _failure(error)})
        return None
    return module


def find(module: ModuleType, name: str) -> Callable[..., object]:
    """`function`, or `Class.method` of a fresh instance.

    Raises:
        AttributeError: If there is none.
    """
    owner, _, method = name.partition(".")
    found = getattr(module, owner)
    return getattr(found(), method) if method else found  # type: ignore[no-any-return]


def _calls(sources: dict[str, str], settings: dict[str, Any]) -> int:
    """Calls a function case by case; arguments are decoded anew for each."""
    records = _Records(FIRST_EXTRA_FD)
    cases = json.loads(sources["cases"])
    clock = time.perf_counter
    module = _load(sources, records)
    if module is None:
        return 1
    for index, (args, kwargs) in enumerate(cases):
        start = clock()
        try:
            function = find(module, settings["function"])
            value = encode(function(*decode(args), **decode(kwargs)))
        except MemoryError:
            raise
        except BaseException as error:
            record: dict[str, object] = {"case": index, **_failure(error)}
        else:
            record = {"case": index, "value": value}
        record["ms"] = (clock() - start) * 1000
        records.append(record)
    return 0


def _serve(sources: dict[str, str], settings: dict[str, Any]) -> int:
    """Loads the candidate and answers the calls of the run at the other end of the channel."""
    channel = Channel(FIRST_EXTRA_FD)
    try:
        module, code = _module("solution", sources["code"], _MAIN_FILE)
        exec(code, module.__dict__)  # noqa: S102
    except BaseException as error:
        channel.send({"load": _failure(error)})
        raise
    channel.send({"load": None})
    serve(channel, module.__dict__)
    return 0


def _judge(sources: dict[str, str], settings: dict[str, Any]) -> int:
    """Runs test code whose free names are functions of the run at the other end."""
    channel, records = Channel(FIRST_EXTRA_FD), _Records(FIRST_EXTRA_FD + 1)
    try:
        loaded = channel.receive().get("load")
    except ChannelClosedError:
        records.append({"candidate": "ended while it was loaded"})
        return 0
    if loaded is not None:
        records.append({"candidate": f"{loaded.get('exception')}: {loaded.get('message')}"})
        return 0
    try:
        module, code = _module("tests", sources["code"], "tests.py")
        module.__dict__.update({name: Remote(channel, name) for name in settings["names"]})
    except CompileError as error:
        records.append({"tests": str(error)})
        return 0
    try:
        exec(code, module.__dict__)  # noqa: S102 - the tests, in a jail of their own
    except ChannelClosedError:
        records.append({"candidate": "ended before it had answered"})
    except BaseException as error:
        line = next(
            (f.lineno for f in traceback.extract_tb(error.__traceback__) if f.name != "_judge"), 0
        )
        records.append({"failed": f"line {line}: {type(error).__name__}: {error}"})
    else:
        records.append({"passed": True})
    return 0


_MODES: dict[str, Callable[[dict[str, str], dict[str, Any]], int]] = {
    "script": _script,
    "calls": _calls,
    "serve": _serve,
    "judge": _judge,
}
