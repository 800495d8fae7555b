"""The process that asks Math-Verify. Started as a script; imports nothing of this package.

Frames on stdin and stdout are a length (4 bytes, big-endian) and UTF-8 JSON. On start it sends
`{"ready": true}`, or `{"ready": false, "error": …}` where Math-Verify is missing. To each
`{"reference", "answer", "spent_seconds"}` it sends two frames: `{"reference_ok": bool}` as soon as
the reference has been parsed and, if it is a number, evaluated, so that the parent knows whom to
blame if the second is long in coming, and `{"equal": bool, "detail": str}`.

Imports take a second, so they happen once: this process forks a child that serves the requests. A
run-away expression ends the child, by its limits of memory and of CPU time per request; then this
process sends `{"ended": exit code}` in place of what the child did not send, and forks another,
which takes milliseconds. The parent has a deadline for the whole.

Answers are only ever parsed as LaTeX, by a grammar; the reader of plain expressions in Math-Verify
hands text to Python's `eval` and is not used.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import signal
import struct
import sys
from typing import Any, BinaryIO, NoReturn

_HEADER = struct.Struct(">I")
_PR_SET_PDEATHSIG = 1
_MEMORY_EXIT_CODE = 77
"""As `pool.MEMORY_EXIT_CODE`; this script imports nothing of the package."""
_ENDING_SECONDS = 0.05
"""By how much a process may outlive its CPU time: the kernel looks at its clock at ticks, other
processes get the processor now and then, and freeing memory takes a while. It counts as the
answer's time too."""
_MIN_SHARE = 0.5
"""Of the limit, which a comparison has in any case."""
_RELATIVE_TOLERANCE = 1e-5
"""Two numbers that Math-Verify takes for equal may differ by this; it compares absolute digits."""
_EXACT_TOLERANCE = 1e-25
"""The same, where neither has a decimal point."""


def main() -> None:
    """Serves requests until stdin ends. Arguments: memory in bytes, CPU seconds a request."""
    memory_bytes, cpu_seconds = int(sys.argv[1]), float(sys.argv[2])
    # Parsers print; what they print must not end up between the frames.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that uses us
    try:
        judge = _Judge()
    except Exception as error:  # a broken installation can fail in any way
        _send(replies, {"ready": False, "error": f"{type(error).__name__}: {error}"})
        return
    _send(replies, {"ready": True})
    gc.freeze()  # or each child's first collection would copy all that it shares with us
    own_pid = os.getpid()
    while True:
        child = os.fork()
        if not child:
            _serve_as_child(own_pid, judge, replies, memory_bytes, cpu_seconds)
        _, status = os.waitpid(child, 0)
        exit_code = os.waitstatus_to_exitcode(status)
        if exit_code == 0:
            return
        _send(replies, {"ended": exit_code})


def _serve_as_child(
    parent: int, judge: _Judge, replies: BinaryIO, memory_bytes: int, cpu_seconds: float
) -> NoReturn:
    """Serves requests until stdin ends or a limit is reached, and ends this process."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:  # or it died before it could take us along
            _limit(memory_bytes)
            _serve(judge, replies, cpu_seconds)
    except MemoryError:
        os._exit(_MEMORY_EXIT_CODE)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _serve(judge: _Judge, replies: BinaryIO, cpu_seconds: float) -> None:
    with os.fdopen(os.dup(0), "rb") as requests:
        while True:
            header = requests.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return
            request = json.loads(requests.read(_HEADER.unpack(header)[0]))
            # The default action of SIGPROF ends the process, even inside one long C call.
            left = cpu_seconds - request["spent_seconds"] - _ENDING_SECONDS
            signal.setitimer(signal.ITIMER_PROF, max(cpu_seconds * _MIN_SHARE, left))
            reference = judge.read_reference(request["reference"])
            _send(replies, {"reference_ok": reference is not None})
            if reference is None:
                detail, equal = "the reference cannot be read as mathematics", False
            else:
                equal, detail = judge.compare(reference, request["answer"])
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(replies, {"equal": equal, "detail": detail})


class _Judge:
    """Math-Verify with its own clocks off, and two corrections to what it calls equal."""

    def __init__(self) -> None:
        import logging

        import math_verify
        import sympy

        logging.disable(logging.CRITICAL)
        self._sympy = sympy
        self._parse = math_verify.parse
        self._verify = math_verify.verify
        self._config = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
        # The grammar and its caches are built on first use; that time is nobody's answer's.
        self.compare(self.read(r"\frac{\sqrt{2}}{2}"), r"\frac{1}{\sqrt{2}}")

    def read(self, text: str) -> Any:
        """The sympy object that a text writes; None if it cannot be read."""
        try:
            found = self._parse(
                r"\boxed{" + text + "}",
                extraction_config=self._config,
                fallback_mode="no_fallback",
                parsing_timeout=None,
                raise_on_error=True,
            )
        except MemoryError:
            raise
        except Exception:  # RecursionError and whatever else hostile text provokes
            return None
        return found[0] if found else None

    def read_reference(self, text: str) -> Any:
        """As `read`; None also if it is a number that cannot be worked out."""
        reference = self.read(text)
        if self._is_constant(reference):
            try:
                reference.evalf()
            except MemoryError:
                raise
            except Exception:
                return None
        return reference

    def compare(self, reference: Any, text: str) -> tuple[bool, str]:
        """Whether a text equals the reference, and how that was found."""
        answer = self.read(text)
        if answer is None:
            return False, "the answer cannot be read as mathematics"
        try:
            equal = bool(self._verify(reference, answer, timeout_seconds=None, raise_on_error=True))
            if equal and self._differ_in_size(reference, answer):
                return False, "equal in its first decimals only"
            if not equal and self._complex_equal(reference, answer):
                return True, "equal as complex numbers"
        except MemoryError:
            raise
        except Exception as error:
            return False, f"the comparison failed: {type(error).__name__}"
        return equal, "Math-Verify finds them equal" if equal else "Math-Verify finds them unequal"

    def _differ_in_size(self, reference: Any, answer: Any) -> bool:
        """Whether two constants are apart by more than rounding, relative to their size."""
        if not (self._is_constant(reference) and self._is_constant(answer)):
            return False
        # Not as floats: 1/2004! is none.
        left, right = reference.evalf(30), answer.evalf(30)
        if left == right or 100 * left == right or left == 100 * right:
            return False  # Math-Verify reads 50% as 50 and as 0.5
        rounded = reference.has(self._sympy.Float) or answer.has(self._sympy.Float)
        tolerance = _RELATIVE_TOLERANCE if rounded else _EXACT_TOLERANCE
        if abs(left - right) <= tolerance * max(abs(left), abs(right)):
            return False
        return bool(self._sympy.simplify(reference - answer) != 0)

    def _complex_equal(self, reference: Any, answer: Any) -> bool:
        """Whether two constants are equal if `i` is the imaginary unit, not a variable."""
        sympy = self._sympy
        if not all(isinstance(side, sympy.Expr) for side in (reference, answer)):
            return False
        sides = [self._with_imaginary_unit(side) for side in (reference, answer)]
        if not all(self._is_constant(side) for side in sides) or sides == [reference, answer]:
            return False
        return bool(sympy.simplify(sides[0] - sides[1]) == 0)

    def _with_imaginary_unit(self, expression: Any) -> Any:
        units = {s: self._sympy.I for s in expression.free_symbols if s.name == "i"}
        return expression.subs(units) if units else expression

    def _is_constant(self, value: Any) -> bool:
        return isinstance(value, self._sympy.Expr) and not value.free_symbols


def _limit(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def _send(replies: BinaryIO, message: dict[str, object]) -> None:
    data = json.dumps(message).encode()
    view = memoryview(_HEADER.pack(len(data)) + data)
    while view:
        view = view[replies.write(view) or 0 :]


if __name__ == "__main__":
    main()
