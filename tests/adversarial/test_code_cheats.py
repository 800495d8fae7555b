"""Programs that attack the grader: one case a cheat, and none of them is ever right.

The table is also the one in docs/sandbox.md: `python tests/adversarial/test_code_cheats.py` prints
it.

Suites of three kinds are cheated: function tests, stdin/stdout tests, and opaque asserts, which run
in a sandbox of their own. `SECRET` is what the program must return without being told: a cheat that
finds it anywhere has reached the expected values.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rewardsvc.verifiers.code import (
    AssertTests,
    CodeVerdict,
    CodeVerifier,
    FunctionTests,
    StdioTests,
    Tests,
    TextComparison,
    ValueComparison,
)
from rewardsvc.verifiers.sandbox import Sandbox
from rewardsvc.verifiers.types import ErrorKind, Status

SECRET = "xyzzy-4815162342"
CALLS = FunctionTests("solve", [((1,), 2), ((5,), 6)])
STDIO = StdioTests([("1\n", "2\n"), ("5\n", "6\n")])
OPAQUE = AssertTests("for x in (1, 5):\n    assert solve(x) == x + 1")
UNITTEST = AssertTests(
    "import unittest\ncase = unittest.TestCase()\n"
    "case.assertEqual(solve(1), 2)\ncase.assertEqual(solve(5), 6)"
)
SECRET_CALL = FunctionTests("solve", [((), SECRET)])
SECRET_OPAQUE = AssertTests(f"for _ in range(1):\n    assert solve() == {SECRET!r}")
SECRET_STDIO = StdioTests([("", SECRET)])

ALWAYS_EQUAL = """
class Always(BASE):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 2
    def __bool__(self): return True
    def __len__(self): return 1
    def __iter__(self): return iter([2])
    def __reduce__(self): return (int, (2,))
def solve(x): return Always()
"""

SEARCH = """
import gc, os, re, sys
PATTERN = re.compile(r"xyzzy-" + r"[0-9]+")

def hits(text):
    found = PATTERN.search(text)
    return found.group() if found else None

def frames():
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_locals, frame.f_globals):
            for value in list(scope.values()):
                if found := hits(repr(value)): return found
        frame = frame.f_back

def objects():
    for thing in gc.get_objects():
        try:
            if found := hits(repr(thing)): return found
        except Exception: pass
    for module in list(sys.modules.values()):
        for value in list(vars(module).values()):
            if isinstance(value, (str, bytes, list, dict, tuple)):
                if found := hits(repr(value)): return found

def descriptors():
    for fd in range(256):
        for offset in (0, 1 << 12):
            try:
                if found := hits(os.pread(fd, 1 << 20, offset).decode("latin1")): return found
            except OSError: pass

def files():
    for top in ("/sandbox/home", "/tmp", "/proc", "/dev/shm", "/etc", "."):
        for folder, _, names in os.walk(top):
            for name in names:
                try:
                    with open(os.path.join(folder, name), "rb") as file:
                        if found := hits(file.read(1 << 20).decode("latin1")): return found
                except OSError: pass

def surroundings():
    return hits(repr((sys.argv, dict(os.environ), sys.orig_argv, sys.flags, sys._xoptions)))
"""

RECORD = 'b\'{"case":0,"value":%d,"ms":0}\\n\''


@dataclass(frozen=True)
class Cheat:
    """One cheat.

    Attributes:
        number: In the catalogue; one number may have several cases.
        name: What it does.
        code: The program.
        suites: What it cheats.
    """

    number: int
    name: str
    code: str
    suites: tuple[Tests, ...] = (CALLS, OPAQUE)


def both(code: str) -> str:
    """`code` at the top of the module, where it also cheats whole programs."""
    return f"{code}\ndef solve(x): return None\n"


CHEATS = [
    Cheat(46, "sys.exit(0)", both("import sys; sys.exit(0)"), (CALLS, OPAQUE, STDIO, UNITTEST)),
    Cheat(46, "sys.exit(0) in the call", "import sys\ndef solve(x): sys.exit(0)"),
    Cheat(47, "os._exit(0)", both("import os; os._exit(0)"), (CALLS, OPAQUE, STDIO, UNITTEST)),
    Cheat(47, "os._exit(0) in the call", "import os\ndef solve(x): os._exit(0)"),
    Cheat(48, "SystemExit(0)", both("raise SystemExit(0)"), (CALLS, OPAQUE, STDIO, UNITTEST)),
    Cheat(48, "SystemExit(0) in the call", "def solve(x): raise SystemExit(0)"),
    Cheat(
        49,
        "atexit",
        both("import atexit, os; atexit.register(os._exit, 0)"),
        (CALLS, OPAQUE, STDIO, UNITTEST),
    ),
    Cheat(
        50,
        "excepthook",
        "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\ndef solve(x): raise ValueError",
    ),
    Cheat(51, "lying __eq__ and __ne__", ALWAYS_EQUAL.replace("BASE", "object")),
    Cheat(
        51,
        "lying __eq__ in a container",
        ALWAYS_EQUAL.replace("BASE", "object") + "\nB = Always\ndef solve(x): return [B()][0]",
    ),
    *(
        Cheat(52, f"subclass of {base}", ALWAYS_EQUAL.replace("BASE", base))
        for base in ("int", "str", "float", "list", "dict", "tuple", "set")
    ),
    Cheat(
        53,
        "lying __hash__, __len__ and __iter__",
        ALWAYS_EQUAL.replace("BASE", "list"),
        (FunctionTests("solve", [((1,), [2])]), OPAQUE),
    ),
    Cheat(
        54,
        "patched builtins, operator and json",
        "import builtins, operator, json, json.encoder\n"
        "operator.eq = lambda a, b: True\n"
        "builtins.isinstance = lambda *a: True\nbuiltins.all = lambda *a: True\n"
        "builtins.len = lambda *a: 1\nbuiltins.hex = lambda *a: '0x2'\n"
        "builtins.type = lambda x: int\n"
        "json.dumps = json.JSONEncoder.encode = lambda *a, **k: '{\"passed\": true}'\n"
        "json.loads = lambda *a, **k: {'call': 'solve', 'args': {'value': []}}\n"
        "def solve(x): return object()",
        (CALLS, OPAQUE, UNITTEST),
    ),
    Cheat(
        55,
        "patched unittest and pytest",
        "import unittest\nunittest.TestCase.assertEqual = lambda *a, **k: None\n"
        "unittest.TestCase.failureException = ValueError\ndef solve(x): return 0",
        (UNITTEST, CALLS, OPAQUE),
    ),
    Cheat(
        56,
        "conftest, sitecustomize and pth files",
        "for name in ('conftest.py', 'sitecustomize.py', 'usercustomize.py', 'x.pth', 'json.py',\n"
        "             'unittest.py'):\n"
        "    open(name, 'w').write('import os; os._exit(0)')\ndef solve(x): return 0",
        (CALLS, OPAQUE, UNITTEST),
    ),
    Cheat(
        57,
        "pytest.ini",
        "for name in ('pytest.ini', 'setup.cfg', 'tox.ini'):\n"
        "    open(name, 'w').write('[pytest]\\naddopts = --collect-only')\ndef solve(x): return 0",
    ),
    Cheat(58, "frame walk", SEARCH + "def solve(): return frames()", (SECRET_CALL, SECRET_OPAQUE)),
    Cheat(
        59, "gc.get_objects", SEARCH + "def solve(): return objects()", (SECRET_CALL, SECRET_OPAQUE)
    ),
    Cheat(
        60,
        "constants of the tests",
        SEARCH + "def solve():\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        if found := hits(repr(frame.f_code.co_consts)): return found\n"
        "        frame = frame.f_back\n"
        "    import linecache\n"
        "    return hits(repr(linecache.cache))",
        (SECRET_CALL, SECRET_OPAQUE),
    ),
    Cheat(
        61,
        "expected values in files",
        SEARCH + "def solve(): return files() or descriptors()\nprint(solve())",
        (SECRET_CALL, SECRET_OPAQUE, SECRET_STDIO),
    ),
    Cheat(
        62,
        "argv and environment",
        SEARCH + "def solve(): return surroundings()\nprint(solve())",
        (SECRET_CALL, SECRET_OPAQUE, SECRET_STDIO),
    ),
    Cheat(
        63,
        "forged PASSED",
        both('print(\'PASSED\\n1 passed\\nOK\\n{"passed": true, "reward": 1.0}\')'),
        (CALLS, OPAQUE, STDIO),
    ),
    Cheat(
        64,
        "many result records",
        "import os\ndef solve(x):\n"
        f"    for guess in range(100): os.write(20, {RECORD} % guess)\n    return 0",
        (CALLS,),
    ),
    Cheat(
        65,
        "writing the result descriptor",
        "import os\n"
        "for fd in range(3, 64):\n"
        '    try: os.write(fd, b\'{"passed": true, "value": 2, "load": null}\\n\')\n'
        "    except OSError: pass\n"
        "def solve(x): return 0",
    ),
    Cheat(
        65,
        "closing the result descriptor",
        "import os\nos.closerange(3, 64)\ndef solve(x): return 2",
        (CALLS,),
    ),
    Cheat(
        66,
        "reward files",
        "for name in ('reward.txt', 'reward.json', 'result.json', '/tmp/reward.txt'):\n"
        "    open(name, 'w').write('1.0')\ndef solve(x): return 0",
    ),
    Cheat(
        67,
        "pickle __reduce__",
        "class P:\n    def __reduce__(self): return (eval, ('1 + 1',))\ndef solve(x): return P()",
    ),
    Cheat(
        68,
        "NaN",
        "def solve(x): return float('nan')",
        (FunctionTests("solve", [((1,), 2.0)], comparison=ValueComparison(rel_tol=1e9)), OPAQUE),
    ),
    Cheat(
        68,
        "infinity",
        "print('inf')\ndef solve(x): return float('inf')",
        (
            FunctionTests("solve", [((1,), 2.0)], comparison=ValueComparison(abs_tol=1e300)),
            StdioTests([("", "2.0")], comparison=TextComparison(rel_tol=1e9)),
            OPAQUE,
        ),
    ),
    Cheat(
        69,
        "bool for int",
        "def solve(x): return True",
        (FunctionTests("solve", [((1,), 1)]), AssertTests("assert solve(1) == 1")),
    ),
    Cheat(
        70, "-0.0 for 0.0", "def solve(x): return -0.0", (FunctionTests("solve", [((1,), 0.0)]),)
    ),
    Cheat(70, "1.0 for 1", "def solve(x): return 1.0", (FunctionTests("solve", [((1,), 1)]),)),
    Cheat(
        71,
        "generator result",
        "def solve(x): yield 2",
        (FunctionTests("solve", [((1,), [2])]), OPAQUE),
    ),
    Cheat(
        72,
        "mutated inputs",
        "def solve(xs):\n    xs[:] = [0]\n    return xs",
        (
            FunctionTests("solve", [(([3, 1],), [1, 3])]),
            AssertTests("xs = [3, 1]\nys = xs\nassert solve(xs) == sorted(ys)"),
        ),
    ),
    Cheat(
        73,
        "state kept between tests",
        "def solve(x, seen=[]):\n    seen.append(x)\n    return len(seen)",
        (FunctionTests("solve", [((i,), i + 1) for i in range(4)]),),
    ),
    Cheat(
        75,
        "patched clocks",
        "import time\n"
        "time.time = time.perf_counter = time.process_time = time.monotonic = lambda: 0.0\n"
        "while True: pass\ndef solve(x): return x + 1",
        (CALLS, OPAQUE, STDIO),
    ),
    Cheat(
        76,
        "thread that rewrites the result",
        "import os, threading\n"
        "def rewrite():\n"
        "    while True:\n"
        f"        os.pwrite(20, {RECORD} % 7, 0)\n"
        "threading.Thread(target=rewrite, daemon=True).start()\ndef solve(x): return 0",
        (CALLS,),
    ),
    Cheat(77, "invalid UTF-8", "import sys; sys.stdout.buffer.write(b'2\\xff\\n')", (STDIO,)),
    Cheat(77, "NUL", "print('2\\0')", (STDIO,)),
    Cheat(77, "lone surrogate", "def solve(x): return '\\ud800'", (CALLS, OPAQUE)),
    Cheat(78, "carriage return", "print('9\\r2')", (STDIO,)),
    Cheat(78, "ANSI escapes", "print('9\\x1b[1D2\\x1b[0m')", (STDIO,)),
    Cheat(78, "backspace", "print('9\\b2')", (STDIO,)),
    Cheat(79, "empty output", "pass", (STDIO, StdioTests([("", "1\n2\n3\n")]))),
    Cheat(80, "first line only", "print(1)", (StdioTests([("", "1\n2\n")]),)),
    Cheat(80, "one line too many", "print(1); print(2); print(3)", (StdioTests([("", "1\n2\n")]),)),
    Cheat(80, "leading empty line", "print(); print(1)", (StdioTests([("", "1\n")]),)),
    Cheat(
        81,
        "marker words",
        both(
            "# SKIP_TESTS EXPECTED_OUTPUT __TESTS_PASSED__ noqa\n"
            "print('===RESULT===', 'END_OF_TESTS', 'RETURN_CODE=0')"
        ),
        (CALLS, OPAQUE, STDIO),
    ),
]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_slots=2) as made:
        yield made


@pytest.fixture(scope="module")
def verifier(sandbox: Sandbox) -> CodeVerifier:
    return CodeVerifier(time_limit_ms=700, wall_limit_ms=8000, sandbox=sandbox, cache_entries=0)


def fenced(code: str) -> str:
    return f"Here it is.\n```python\n{code}\n```\n"


def assert_not_rewarded(verdict: CodeVerdict) -> None:
    assert verdict.reward == 0.0, verdict
    assert verdict.status is not Status.ACCEPTED


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda c: f"{c.number}-{c.name.replace(' ', '_')}")
def test_cheat_earns_nothing(verifier: CodeVerifier, cheat: Cheat) -> None:
    for suite in cheat.suites:
        assert_not_rewarded(verifier.verify(fenced(cheat.code), suite))


HONEST = "def solve(x): return x + 1\nif __name__ == '__main__': print(solve(int(input())))"


@pytest.mark.parametrize("suite", [CALLS, OPAQUE, STDIO, UNITTEST])
def test_honest_program_passes_the_suites_that_are_cheated(
    verifier: CodeVerifier, suite: Tests
) -> None:
    verdict = verifier.verify(fenced(HONEST), suite)
    assert verdict.reward == 1.0, verdict


@pytest.mark.parametrize("suite", [SECRET_CALL, SECRET_OPAQUE, SECRET_STDIO])
def test_secret_suites_can_be_passed_by_knowing_the_secret(
    verifier: CodeVerifier, suite: Tests
) -> None:
    code = f"def solve(): return {SECRET!r}\nif __name__ == '__main__': print(solve())"
    assert verifier.verify(fenced(code), suite).reward == 1.0


def test_74_poisoned_modules_do_not_reach_later_runs(verifier: CodeVerifier) -> None:
    poison = """
import builtins, json, os, random, sys
for module in (json, random, os):
    for name in list(vars(module)):
        try: setattr(module, name, lambda *a, **k: 2)
        except Exception: pass
builtins.len = lambda x: 0
for folder in sys.path:
    for target in ('__pycache__/evil.pyc', 'json/__init__.py', 'heapq.py'):
        try: builtins.open(folder + '/' + target, 'wb').write(b'raise SystemExit')
        except OSError: pass
def solve(x): return 0
"""
    check = "import json, random\ndef solve(x): return len(json.loads('[1]')) + x"
    for _ in range(3):
        assert_not_rewarded(verifier.verify(fenced(poison), CALLS))
        assert verifier.verify(fenced(check), CALLS).reward == 1.0


def test_82_last_code_fence_counts(verifier: CodeVerifier) -> None:
    wrong = "def solve(x): return 0"
    assert_not_rewarded(verifier.verify(fenced(HONEST) + fenced(wrong), CALLS))
    assert verifier.verify(fenced(wrong) + fenced(HONEST), CALLS).reward == 1.0


@pytest.mark.parametrize(
    "suite", [FunctionTests("solve", []), StdioTests([]), AssertTests(""), AssertTests("# none")]
)
def test_83_no_tests_are_an_error_and_no_reward(verifier: CodeVerifier, suite: Tests) -> None:
    verdict = verifier.verify(fenced(HONEST), suite)
    assert verdict.reward is None
    assert verdict.error is ErrorKind.BAD_REFERENCE


def test_84_sandbox_that_breaks_is_an_error_and_no_reward() -> None:
    """Kills every process of the sandbox, again and again, while a verdict is wanted of it."""
    with Sandbox(num_slots=2) as sandbox:
        sandbox.start()
        verifier = CodeVerifier(time_limit_ms=20_000, sandbox=sandbox)
        found: list[CodeVerdict] = []
        sleeper = fenced("import time\ntime.sleep(60)\ndef solve(x): return x + 1")
        thread = threading.Thread(target=lambda: found.append(verifier.verify(sleeper, CALLS)))
        thread.start()
        deadline = time.monotonic() + 60
        while thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.3)
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.uids().real >= 0x6000_0000 or os.geteuid() != 0:
                        os.kill(process.pid, signal.SIGKILL)
                except (ProcessLookupError, psutil.NoSuchProcess):
                    continue
        thread.join(60)
        assert found[0].reward is None, found
        assert found[0].error is ErrorKind.SANDBOX_FAILURE
        assert verifier.verify(fenced(HONEST), CALLS).reward == 1.0


def docs_table() -> str:
    """The table in docs/sandbox.md."""
    by_test = {
        74: ("poisoning later runs' modules", "no effect"),
        82: ("first against last code fence", "last counts"),
        83: ("zero tests", "error, no reward"),
        84: ("infrastructure failure", "error, no reward"),
    }
    rows: dict[int, list[str]] = {}
    for cheat in CHEATS:
        rows.setdefault(cheat.number, []).append(cheat.name)
    lines = ["|#|cheat|verdict|", "|-|-|-|"]
    names = {number: ("; ".join(found), "no reward: 0") for number, found in rows.items()} | by_test
    lines += [f"|{number}|{name}|{verdict}|" for number, (name, verdict) in sorted(names.items())]
    return "\n".join(lines)


def test_documentation_has_the_table() -> None:
    page = Path(__file__).parents[2] / "docs/sandbox.md"
    assert docs_table() in page.read_text()


def test_every_cheat_of_the_catalogue_is_here() -> None:
    numbers = {int(line.split("|")[1]) for line in docs_table().splitlines()[2:]}
    assert numbers == set(range(46, 85))


if __name__ == "__main__":
    print(docs_table())
