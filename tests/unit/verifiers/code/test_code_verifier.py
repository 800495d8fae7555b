"""Verdicts of the code verifier on programs that mean well."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from rewardsvc.verifiers.code import (
    AssertTests,
    CallCase,
    Checker,
    CodeVerifier,
    Credit,
    FunctionTests,
    InteractiveTests,
    StdioCase,
    StdioTests,
    ValueComparison,
    calls,
)
from rewardsvc.verifiers.code.cache import VerdictCache
from rewardsvc.verifiers.code.calls import read_records
from rewardsvc.verifiers.code.verdict import CodeVerdict
from rewardsvc.verifiers.sandbox import (
    Limits,
    RunResult,
    RunStatus,
    Sandbox,
    UnknownLanguageError,
    find_languages,
)
from rewardsvc.verifiers.types import ErrorKind, Status, Verdict

ADD = "def add(a, b): return a + b"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_slots=2) as made:
        yield made


@pytest.fixture(scope="module")
def verifier(sandbox: Sandbox) -> CodeVerifier:
    return CodeVerifier(time_limit_ms=600, sandbox=sandbox)


@pytest.fixture(scope="module")
def partial(sandbox: Sandbox) -> CodeVerifier:
    return CodeVerifier(time_limit_ms=600, sandbox=sandbox, credit=Credit.FRACTION)


def fenced(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}\n```"


def test_right_program_is_accepted(verifier: CodeVerifier) -> None:
    verdict = verifier.verify(fenced(ADD), FunctionTests("add", [((1, 2), 3)]))
    assert isinstance(verdict, Verdict)
    assert (verdict.status, verdict.reward, verdict.num_tests) == (Status.ACCEPTED, 1.0, 1)
    assert [t.status for t in verdict.tests] == [Status.ACCEPTED]
    assert verdict.program == f"{ADD}\n"


def test_wrong_program_says_what_was_expected(verifier: CodeVerifier) -> None:
    verdict = verifier.verify(
        fenced("def add(a, b): return a"), FunctionTests("add", [((1, 2), 3)])
    )
    assert (verdict.status, verdict.reward) == (Status.WRONG_ANSWER, 0.0)
    assert "expected 3, got 1" in verdict.explanation


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("def add(a, b): raise KeyError(a)", Status.RUNTIME_ERROR),
        ("def add(a, b):\n    while True: pass", Status.TIME_LIMIT),
        ("def add(a, b): return bytearray(1 << 40)", Status.MEMORY_LIMIT),
        ("def add(a, b): return 'x' * (8 << 20)", Status.OUTPUT_LIMIT),
        ("def add(a, b) return", Status.COMPILE_ERROR),
        ("raise ImportError('no')", Status.RUNTIME_ERROR),
        ("def other(): pass", Status.RUNTIME_ERROR),
        ("def add(a): return a", Status.RUNTIME_ERROR),
    ],
)
def test_failures_have_names(verifier: CodeVerifier, code: str, status: Status) -> None:
    verdict = verifier.verify(fenced(code), FunctionTests("add", [((1, 2), 3)]))
    assert (verdict.status, verdict.reward) == (status, 0.0), verdict


def test_completion_without_code_is_no_answer(verifier: CodeVerifier) -> None:
    verdict = verifier.verify("I cannot.", FunctionTests("add", [((1, 2), 3)]))
    assert (verdict.status, verdict.reward) == (Status.NO_ANSWER, 0.0)


def test_class_method_and_keyword_arguments(verifier: CodeVerifier) -> None:
    code = "class Solution:\n    def add(self, a, *, b): return a + b"
    suite = FunctionTests("Solution.add", [CallCase((1,), 3, kwargs={"b": 2})])
    assert verifier.verify(fenced(code), suite).reward == 1.0


def test_main_block_does_not_run_in_function_tests(verifier: CodeVerifier) -> None:
    code = f"{ADD}\nif __name__ == '__main__': raise SystemExit(1)"
    assert verifier.verify(fenced(code), FunctionTests("add", [((1, 2), 3)])).reward == 1.0


def test_one_slow_call_is_blamed_and_the_others_are_not(partial: CodeVerifier) -> None:
    code = "def f(x):\n    while x == 3: pass\n    return x"
    suite = FunctionTests("f", [((i,), i) for i in range(6)])
    verdict = partial.verify(fenced(code), suite)
    assert [t.status for t in verdict.tests] == [
        Status.TIME_LIMIT if i == 3 else Status.ACCEPTED for i in range(6)
    ]
    assert verdict.reward == pytest.approx(5 / 6)
    assert verdict.status is Status.PARTIAL


def test_limits_are_those_of_one_test_not_of_the_suite(sandbox: Sandbox) -> None:
    """Each call takes more than half of the limit; a suite of four takes twice the limit."""
    code = (
        "import time\ndef f(x):\n    end = time.process_time() + 0.3\n"
        "    while time.process_time() < end: pass\n    return x"
    )
    verifier = CodeVerifier(time_limit_ms=500, sandbox=sandbox)
    suite = FunctionTests("f", [((i,), i) for i in range(4)])
    assert verifier.verify(fenced(code), suite).reward == 1.0


def test_crash_in_one_call_costs_one_test(partial: CodeVerifier) -> None:
    code = "import os\ndef f(x):\n    if x in (1, 2): os._exit(0)\n    return x"
    verdict = partial.verify(fenced(code), FunctionTests("f", [((i,), i) for i in range(5)]))
    assert [t.passed for t in verdict.tests] == [True, False, False, True, True]


def test_weights_and_partial_credit(partial: CodeVerifier) -> None:
    suite = FunctionTests("f", [CallCase((1,), 1, weight=3.0), CallCase((2,), 0, weight=1.0)])
    verdict = partial.verify(fenced("def f(x): return x"), suite)
    assert verdict.reward == 0.75
    assert partial.verify(fenced("def f(x): return 9"), suite).reward == 0.0


def test_early_stop_leaves_the_rest_out(verifier: CodeVerifier) -> None:
    suite = StdioTests([("1", "1"), ("2", "0"), ("3", "0"), ("4", "4")])
    verdict = verifier.verify(fenced("print(input())"), suite)
    assert [t.index for t in verdict.tests] == [0, 1]
    assert verdict.num_tests == 4
    assert "test 1" in verdict.explanation


def test_all_tests_are_run_without_early_stop(sandbox: Sandbox) -> None:
    verifier = CodeVerifier(sandbox=sandbox, stop_early=False)
    suite = StdioTests([("1", "0"), ("2", "2"), ("3", "0")])
    verdict = verifier.verify(fenced("print(input())"), suite)
    assert [t.passed for t in verdict.tests] == [False, True, False]
    assert verdict.reward == 0.0


def test_right_output_with_a_failing_exit_is_not_right(verifier: CodeVerifier) -> None:
    verdict = verifier.verify(fenced("print(1); raise SystemExit(1)"), StdioTests([("", "1")]))
    assert verdict.status is Status.RUNTIME_ERROR


@pytest.mark.parametrize("language", ["c", "cpp", "javascript", "java", "rust", "bash"])
def test_other_languages(sandbox: Sandbox, language: str) -> None:
    if language not in find_languages():
        pytest.skip(f"{language} is not installed")
    code = {
        "c": '#include <stdio.h>\nint main(){int a;scanf("%d",&a);printf("%d",a+1);}',
        "cpp": "#include <iostream>\nint main(){int a;std::cin>>a;std::cout<<a+1;}",
        "javascript": "console.log(+require('fs').readFileSync(0,'utf8')+1)",
        "java": "public class Main{public static void main(String[] x){"
        "System.out.println(new java.util.Scanner(System.in).nextInt()+1);}}",
        "rust": "fn main(){let mut s=String::new();std::io::stdin().read_line(&mut s).unwrap();"
        'println!("{}",s.trim().parse::<i64>().unwrap()+1);}',
        "bash": "read a; echo $((a+1))",
    }[language]
    verifier = CodeVerifier(language, sandbox=sandbox)
    suite = StdioTests([("1\n", "2\n"), ("41\n", "42\n"), ("-1\n", "0\n")])
    verdict = verifier.verify(fenced(code, language), suite)
    assert verdict.reward == 1.0, verdict
    broken = verifier.verify(fenced("(", language), suite)
    assert broken.reward == 0.0


def test_function_tests_are_for_python_only(sandbox: Sandbox) -> None:
    verifier = CodeVerifier("bash", sandbox=sandbox)
    verdict = verifier.verify(fenced("true", "bash"), FunctionTests("f", [((1,), 1)]))
    assert (verdict.reward, verdict.error) == (None, ErrorKind.INVALID_SAMPLE)


def test_checker_decides_and_scores(partial: CodeVerifier, verifier: CodeVerifier) -> None:
    checker = Checker(
        "def check(stdin, stdout, expected):\n"
        "    return abs(int(stdout) - int(stdin)) <= 1 and (0.5 if stdout == stdin else True)"
    )
    suite = StdioTests([("4", ""), ("5", "")], checker=checker)
    assert verifier.verify(fenced("print(int(input()) + 1)"), suite).reward == 1.0
    assert verifier.verify(fenced("print(int(input()) + 2)"), suite).reward == 0.0
    half = partial.verify(fenced("print(input(), end='')"), suite)
    assert (half.reward, half.status) == (0.5, Status.PARTIAL)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("def check(i, o, e): return 1 / 0", ErrorKind.BAD_REFERENCE),
        ("def check(i, o, e): return 'yes'", ErrorKind.BAD_REFERENCE),
        ("def check(i, o, e): return 7", ErrorKind.BAD_REFERENCE),
        ("def check(i, o, e", ErrorKind.BAD_REFERENCE),
        ("def check(i, o, e):\n    while True: pass", ErrorKind.VERIFIER_TIMEOUT),
    ],
)
def test_broken_checker_is_an_error_and_no_reward(
    sandbox: Sandbox, code: str, kind: ErrorKind
) -> None:
    verifier = CodeVerifier(sandbox=sandbox, judge_limits=Limits(cpu_ms=300))
    verdict = verifier.verify(fenced("print(1)"), StdioTests([("", "1")], checker=Checker(code)))
    assert (verdict.reward, verdict.error) == (None, kind), verdict


INTERACTOR = """
import sys
secret = int(open("input.txt").read())
for _ in range(12):
    try:
        guess = int(input())
    except (EOFError, ValueError):
        print("no number", file=sys.stderr)
        sys.exit(1)
    if guess == secret:
        print("right", flush=True)
        sys.exit(0)
    print("low" if guess < secret else "high", flush=True)
print("too many guesses", file=sys.stderr)
sys.exit(1)
"""

BISECT = """
low, high = 0, 1000
while True:
    middle = (low + high) // 2
    print(middle, flush=True)
    answer = input()
    if answer == "right": break
    if answer == "low": low = middle + 1
    else: high = middle - 1
"""


def test_interactive_problem(verifier: CodeVerifier) -> None:
    suite = InteractiveTests(INTERACTOR, [("7", ""), ("1000", "")])
    assert verifier.verify(fenced(BISECT), suite).reward == 1.0
    slow = BISECT.replace("middle + 1", "low + 1")
    verdict = verifier.verify(fenced(slow), suite)
    assert (verdict.status, verdict.reward) == (Status.WRONG_ANSWER, 0.0)
    assert "too many guesses" in verdict.explanation
    assert verifier.verify(fenced("pass"), suite).reward == 0.0
    assert verifier.verify(fenced("while True: pass"), suite).status is Status.TIME_LIMIT


@pytest.mark.parametrize(
    "program",
    [
        "print(1)",
        "print(1, flush=True)",
        "import time; time.sleep(0.3); print(1)",  # flushed into a closed pipe at exit
        "import time; time.sleep(0.3); print(1, flush=True)",
        "print(input())",
    ],
)
def test_broken_interactor_is_an_error_and_no_reward(verifier: CodeVerifier, program: str) -> None:
    verdict = verifier.verify(fenced(program), InteractiveTests("1 / 0", [("", "")]))
    assert (verdict.reward, verdict.error) == (None, ErrorKind.BAD_REFERENCE), verdict


def test_crash_of_the_program_is_its_own_though_the_interactor_then_fails_too(
    verifier: CodeVerifier,
) -> None:
    suite = InteractiveTests("int(input())", [("", "")])
    verdict = verifier.verify(fenced("1 / 0"), suite)
    assert (verdict.reward, verdict.status) == (0.0, Status.RUNTIME_ERROR), verdict


@pytest.mark.parametrize(
    "code",
    [
        "assert add(1, 2) == 3\nassert add(1.5, 2) == 3.5\nassert add([1], [2]) == [1, 2]",
        "import math\nassert math.isclose(add(0.1, 0.2), 0.3)",
        "try:\n    add(1, 'a')\nexcept TypeError:\n    pass\nelse:\n    raise AssertionError",
        "assert [add(i, 1) for i in range(3)] == [1, 2, 3]",
    ],
)
def test_assert_tests(verifier: CodeVerifier, code: str) -> None:
    assert verifier.verify(fenced(ADD), AssertTests(code)).reward == 1.0
    assert verifier.verify(fenced("def add(a, b): return 0"), AssertTests(code)).reward == 0.0
    assert verifier.verify(fenced("add = 3"), AssertTests(code)).reward == 0.0 or "try" in code


def test_humaneval_form_and_objects_across_the_wall(verifier: CodeVerifier) -> None:
    check = (
        "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0"
    )
    assert verifier.verify(fenced(ADD), AssertTests(check, entry_point="add")).reward == 1.0
    stack = (
        "class Stack:\n    def __init__(self): self.items = []\n"
        "    def push(self, x): self.items.append(x)\n    def pop(self): return self.items.pop()"
    )
    uses = "s = Stack()\ns.push(1)\ns.push(2)\nassert s.pop() == 2\nassert s.items == [1]"
    assert verifier.verify(fenced(stack), AssertTests(uses)).reward == 1.0


@pytest.mark.parametrize("code", ["assert add(", "assert undefined_helper + 1 ==", "\x00"])
def test_tests_that_are_no_python_are_an_error(verifier: CodeVerifier, code: str) -> None:
    verdict = verifier.verify(fenced(ADD), AssertTests(code))
    assert (verdict.reward, verdict.error) == (None, ErrorKind.BAD_REFERENCE)


def test_values_that_cannot_be_sent_are_a_bad_reference(verifier: CodeVerifier) -> None:
    verdict = verifier.verify(fenced(ADD), FunctionTests("add", [((1, object()), 3)]))
    assert verdict.error is ErrorKind.BAD_REFERENCE
    assert "args of test 0 contains a object" in verdict.explanation


def test_comparison_is_the_suites(verifier: CodeVerifier) -> None:
    third = fenced("def f(): return 1 / 3")
    assert verifier.verify(third, FunctionTests("f", [((), 0.333333)])).reward == 0.0
    tolerant = ValueComparison(abs_tol=1e-6)
    suite = FunctionTests("f", [((), 0.333333)], comparison=tolerant)
    assert verifier.verify(third, suite).reward == 1.0


def test_verdicts_are_remembered_by_program_tests_and_limits(sandbox: Sandbox) -> None:
    verifier = CodeVerifier(sandbox=sandbox)
    suite = FunctionTests("add", [((1, 2), 3)])
    first = verifier.verify(fenced(ADD), suite)
    assert verifier.verify(fenced(ADD), FunctionTests("add", [((1, 2), 3)])) is first
    assert verifier.verify(fenced(ADD), FunctionTests("add", [((1, 2), 4)])).reward == 0.0
    assert verifier.verify(fenced(f"{ADD} "), suite) is not first


def test_cache_forgets_the_oldest_and_never_keeps_errors() -> None:
    cache = VerdictCache(2)
    verdict = CodeVerdict(status=Status.ACCEPTED, reward=1.0)
    for key in ("a", "b"):
        cache.put(key, verdict)
    assert cache.get("a") is verdict
    cache.put("c", verdict)
    assert cache.get("b") is None
    assert cache.get("a") is verdict
    cache.put("d", CodeVerdict(status=Status.ERROR, reward=None, error=ErrorKind.SANDBOX_FAILURE))
    assert cache.get("d") is None
    assert VerdictCache.key("ab", "c") != VerdictCache.key("a", "bc")


def test_verifier_serves_many_threads(verifier: CodeVerifier) -> None:
    def one(i: int) -> float | None:
        return verifier.verify(fenced(ADD), FunctionTests("add", [((i, 1), i + 1 + i % 2)])).reward

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(one, range(24))) == [1.0 - i % 2 for i in range(24)]


def test_cases_are_checked_when_they_are_written() -> None:
    with pytest.raises(ValueError, match="one argument x is"):
        FunctionTests("f", [(1, 2)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="function is"):
        FunctionTests("f()", [])
    with pytest.raises(ValueError, match="weight is 0"):
        StdioCase("", "", weight=0)
    with pytest.raises(ValueError, match="stdin of a test is a bytes"):
        StdioTests([(b"", "")])  # type: ignore[list-item]


def test_settings_are_checked() -> None:
    with pytest.raises(UnknownLanguageError, match="cobol"):
        CodeVerifier("cobol")
    with pytest.raises(ValueError, match="stop_early"):
        CodeVerifier(credit="fraction", stop_early=True)
    with pytest.raises(ValueError, match="cpu_ms"):
        CodeVerifier(time_limit_ms=0)


DONE = RunResult(status=RunStatus.FINISHED)


@pytest.mark.parametrize(
    ("content", "num_records", "complete"),
    [
        (b'{"case":0,"value":1}\n{"case":1,"value":2}\n', 2, True),
        (b'{"case":0,"value":1}\n', 1, False),
        (b'{"case":0,"value":1}\n{"case":0,"value":2}\n', 1, False),
        (b'{"case":1,"value":1}\n', 0, False),
        (b'{"case":0,"value":1}\n{"case":1,"val', 1, False),
        (b'{"case":0,"value":1}\n{"case":1,"value":2}\n{"case":2,"value":3}\n', 2, False),
        (b"[" * 100_000 + b"\n", 0, False),
        (b'{"case":0,"value":' + b"9" * 5000 + b"}\n", 0, False),
        (b"\xff\xfe\n", 0, False),
        (b"3\n", 0, False),
        (b"", 0, False),
        (b'{"case":0}\n', 1, False),
        (b'{"case":0,"value":1,"ms":"x"}\n{"load":{}}\n', 1, False),
        (b'{"case":0,"value":1,"ms":1' + b"0" * 400 + b"}\n", 1, False),
        (b'{"case":0,"value":1,"ms":NaN}\n{"case":1,"value":1,"ms":1e999}\n', 2, True),
        (b'{"case":0,"exception":"E","message":' + b"[" * 900 + b"]" * 900 + b"}\n", 1, False),
    ],
)
def test_records_are_read_up_to_the_first_that_is_not_ours(
    content: bytes, num_records: int, complete: bool
) -> None:
    outcome = read_records(content, 2, DONE, 1 << 20)
    assert len(outcome.records) == num_records
    assert outcome.complete is complete
    assert all(math.isfinite(record.elapsed_ms) for record in outcome.records)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), KeyError("oom")])
def test_what_breaks_on_our_side_is_an_error_and_no_reward(
    verifier: CodeVerifier, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(name: str) -> int:
        raise error

    monkeypatch.setattr(calls, "memory_file", fails)
    verdict = verifier.verify(fenced(f"# {error!r}\n{ADD}"), FunctionTests("add", [((1, 2), 3)]))
    assert verdict.error is ErrorKind.SANDBOX_FAILURE
    assert verdict.reward is None
    assert type(error).__name__ in verdict.explanation


def test_integers_larger_than_any_float_are_compared(verifier: CodeVerifier) -> None:
    code = "import math\ndef f(n): return math.factorial(n)"
    suite = FunctionTests("f", [((200,), math.factorial(200)), ((3,), 6)])
    assert verifier.verify(fenced(code), suite).reward == 1.0
    wrong = FunctionTests("f", [((200,), math.factorial(200) + 1)])
    assert verifier.verify(fenced(code), wrong).status is Status.WRONG_ANSWER
