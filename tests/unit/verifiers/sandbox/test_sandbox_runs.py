"""What a run does and says."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rewardsvc.verifiers.sandbox import (
    Limits,
    RunStatus,
    Sandbox,
    UnknownLanguageError,
    find_languages,
    report_languages,
)
from rewardsvc.verifiers.sandbox.languages import TABLE


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_slots=2) as made:
        yield made


def test_program_reads_stdin_and_writes_stdout(sandbox: Sandbox) -> None:
    result = sandbox.run("python", "print(int(input()) * 2)", stdin=b"21\n")
    assert result.ok
    assert result.stdout == b"42\n"
    assert result.stderr == b""
    assert result.cpu_ms > 0
    assert result.wall_ms > 0
    assert result.peak_mib > 1


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("pass", 0),
        ("raise SystemExit", 0),
        ("raise SystemExit(7)", 7),
        ("raise SystemExit('why')", 1),
        ("import os; os._exit(9)", 9),
        ("1 / 0", 1),
    ],
)
def test_exit_code_is_the_interpreters(sandbox: Sandbox, code: str, exit_code: int) -> None:
    result = sandbox.run("python", code)
    assert result.status is RunStatus.FINISHED
    assert result.exit_code == exit_code


def test_traceback_shows_the_program_and_nothing_of_ours(sandbox: Sandbox) -> None:
    result = sandbox.run("python", "def f():\n    return 1 / 0\nf()")
    text = result.stderr.decode()
    assert 'File "main.py", line 2, in f' in text
    assert "return 1 / 0" in text
    assert "harness" not in text
    assert "rewardsvc" not in text


def test_crash_is_a_signal(sandbox: Sandbox) -> None:
    result = sandbox.run("python", "import ctypes; ctypes.string_at(0)")
    assert (result.status, result.signal, result.message) == (RunStatus.SIGNALED, 11, "SIGSEGV")


def test_syntax_error_is_a_compile_error(sandbox: Sandbox) -> None:
    result = sandbox.run("python", "def f(:")
    assert result.status is RunStatus.COMPILE_ERROR
    assert b"SyntaxError" in result.stderr


def test_exit_functions_and_threads_run_as_usual(sandbox: Sandbox) -> None:
    code = (
        "import atexit, threading, time\natexit.register(print, 'exit')\n"
        "def late():\n    time.sleep(0.05)\n    print('thread')\n"
        "threading.Thread(target=late).start()\nprint('main')"
    )
    assert sandbox.run("python", code).stdout == b"main\nthread\nexit\n"


def test_order_of_sets_does_not_change_from_run_to_run(sandbox: Sandbox) -> None:
    code = "print(list({str(i) for i in range(50)}))"
    assert len({sandbox.run("python", code).stdout for _ in range(6)}) == 1


def test_random_numbers_do_change(sandbox: Sandbox) -> None:
    code = "import random; print(random.random())"
    assert len({sandbox.run("python", code).stdout for _ in range(4)}) == 4


def test_modules_of_the_standard_library_can_be_imported(sandbox: Sandbox) -> None:
    code = (
        "import email, sqlite3, hashlib, csv, xml.dom, asyncio\nprint(hashlib.md5(b'').hexdigest())"
    )
    assert sandbox.run("python", code).stdout == b"d41d8cd98f00b204e9800998ecf8427e\n"


def test_asyncio_and_its_threads_work(sandbox: Sandbox) -> None:
    code = """
import asyncio, time

async def main():
    loop = asyncio.get_running_loop()
    slow = loop.run_in_executor(None, lambda: time.sleep(0.01) or 3)
    return await asyncio.gather(asyncio.sleep(0.01, 1), asyncio.to_thread(int, "2"), slow)

print(asyncio.run(main()))
"""
    result = sandbox.run("python", code)
    assert (result.stdout, result.stderr) == (b"[1, 2, 3]\n", b"")


def test_pairs_of_sockets_carry_no_descriptors_and_have_no_addresses(sandbox: Sandbox) -> None:
    code = """
import array, os, socket

ours, theirs = socket.socketpair()
ours.send(b"hi")
print(theirs.recv(2))
for attempt in (
    lambda: ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))]),
    lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"x", "/tmp/there"),
    lambda: socket.socketpair(socket.AF_INET),
    lambda: socket.socket(),
):
    try:
        attempt()
    except PermissionError:
        print("denied")
"""
    result = sandbox.run("python", code)
    assert (result.stdout, result.stderr) == (b"b'hi'\n" + b"denied\n" * 4, b"")


def test_our_own_package_is_not_there(sandbox: Sandbox) -> None:
    assert b"ModuleNotFoundError" in sandbox.run("python", "import rewardsvc").stderr


def test_packages_of_the_operator_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "answers.py").write_text("ANSWER = 42\n")
    (tmp_path / "second.py").write_text("from answers import ANSWER\n")
    tmp_path.chmod(0o755)
    path = [str(tmp_path)]
    with Sandbox(num_slots=1, python_path=path, preload=["answers"]) as made:
        code = "import sys\nprint('answers' in sys.modules, 'second' in sys.modules)"
        assert made.run("python", code).stdout == b"True False\n"
        assert made.run("python", "import second; print(second.ANSWER)").stdout == b"42\n"


def test_many_files_with_long_names_come_out(sandbox: Sandbox) -> None:
    code = "for i in range(200): open(f'{i:03}' + '\u20ac' * 80, 'w').write(str(i))"
    result = sandbox.run("python", code, fetch=["*"])
    assert len(result.files) == 200, result
    assert {int(content) for content in result.files.values()} == set(range(200))


def test_large_programs_and_inputs_need_no_special_care(sandbox: Sandbox) -> None:
    files = {"data": bytes(30_000_001)}
    code = f"# {'x' * 1_000_000}\nimport os\nprint(os.path.getsize('data'))"
    result = sandbox.run("python", code, files=files, limits=Limits(memory_mib=64))
    assert result.stdout == b"30000001\n", result


def test_threads_work(sandbox: Sandbox) -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool: print(sum(pool.map(lambda x: x * x, range(10))))"
    )
    assert sandbox.run("python", code).stdout == b"285\n"


def test_files_go_in_and_come_out(sandbox: Sandbox) -> None:
    code = "data = open('in/a.bin', 'rb').read()\nopen('out.txt', 'wb').write(data * 2)"
    result = sandbox.run(
        "python", code, files={"in/a.bin": b"\x00\xff"}, fetch=["out.txt", "missing", "in/a.bin"]
    )
    assert result.files == {"out.txt": b"\x00\xff\x00\xff", "in/a.bin": b"\x00\xff"}


def test_pattern_fetches_what_it_matches(sandbox: Sandbox) -> None:
    code = "for n in ('a.x', 'b.x', 'c.y'): open(n, 'w').write(n)"
    assert sandbox.run("python", code, fetch=["*.x"]).files == {"a.x": b"a.x", "b.x": b"b.x"}


def test_files_larger_than_the_disk_are_a_sandbox_failure_or_refused(sandbox: Sandbox) -> None:
    result = sandbox.run("python", "pass", files={"x": bytes(3 << 20)}, limits=Limits(disk_mib=1))
    assert result.status is RunStatus.SANDBOX_FAILURE
    assert "No space left" in result.message


def test_output_is_cut_at_the_limit(sandbox: Sandbox) -> None:
    result = sandbox.run("python", "print('x' * 100)", limits=Limits(output_bytes=10))
    assert result.status is RunStatus.OUTPUT_LIMIT
    assert result.stdout == b"x" * 10


def test_cpu_time_is_what_is_limited(sandbox: Sandbox) -> None:
    limits = Limits(cpu_ms=300)
    busy = sandbox.run("python", "while True: pass", limits=limits)
    assert busy.status is RunStatus.TIME_LIMIT
    assert busy.message == "cpu time"
    asleep = sandbox.run("python", "import time; time.sleep(0.8)", limits=limits)
    assert asleep.ok


def test_several_programs_run_at_once_and_see_nothing_of_each_other(sandbox: Sandbox) -> None:
    code = (
        "import os, time\nopen('mine', 'w').write(input())\ntime.sleep(0.05)\n"
        "print(open('mine').read(), os.listdir('.') if hasattr(os, 'x') else os.getpid())"
    )
    with ThreadPoolExecutor(8) as threads:
        inputs = [f"{i}\n".encode() for i in range(24)]
        results = list(threads.map(lambda i: sandbox.run("python", code, stdin=i), inputs))
    assert [r.stdout for r in results] == [i.strip() + b" 1\n" for i in inputs]


def test_surrogates_in_code_do_no_harm(sandbox: Sandbox) -> None:
    result = sandbox.run("python", "print('\ud800')")
    assert result.status is RunStatus.COMPILE_ERROR or result.exit_code == 1


ADD = {
    "python": "print(sum(map(int, input().split())))",
    "c": '#include <stdio.h>\nint main(){int a,b;scanf("%d %d",&a,&b);printf("%d\\n",a+b);}',
    "cpp": "#include <iostream>\nint main(){int a,b;std::cin>>a>>b;std::cout<<a+b<<std::endl;}",
    "javascript": "const [a,b]=require('fs').readFileSync(0,'utf8').split(' ').map(Number);"
    "console.log(a+b)",
    "typescript": "declare const require: any;\n"
    "const [a,b]: number[] = require('fs').readFileSync(0,'utf8').split(' ').map(Number);"
    "console.log(a+b)",
    "java": "import java.util.*;public class Main{public static void main(String[] x){"
    "Scanner s=new Scanner(System.in);System.out.println(s.nextInt()+s.nextInt());}}",
    "go": 'package main\nimport "fmt"\nfunc main(){var a,b int;fmt.Scan(&a,&b);fmt.Println(a+b)}',
    "rust": "fn main(){let mut s=String::new();std::io::stdin().read_line(&mut s).unwrap();"
    "let v:Vec<i64>=s.split_whitespace().map(|x|x.parse().unwrap()).collect();"
    'println!("{}",v[0]+v[1]);}',
    "bash": "read a b; echo $((a+b))",
}


@pytest.mark.parametrize("name", ADD)
def test_language_compiles_and_runs(sandbox: Sandbox, name: str) -> None:
    if name not in find_languages():
        pytest.skip(f"{name} is not installed")
    program = sandbox.compile(name, ADD[name])
    assert program.failure is None, program.failure
    for a, b in ((1, 2), (19, 23)):
        result = sandbox.run_program(program, stdin=f"{a} {b}\n".encode())
        assert result.stdout == f"{a + b}\n".encode(), result


def test_every_language_of_the_table_is_reported() -> None:
    assert {row.name for row in report_languages()} == {row.name for row in TABLE}
    assert all(row.detail for row in report_languages())


def test_compiler_errors_are_the_compilers_words(sandbox: Sandbox) -> None:
    result = sandbox.run("c", "int main( {")
    assert result.status is RunStatus.COMPILE_ERROR
    assert "main.c:1" in result.message


def test_unknown_language_names_the_known_ones(sandbox: Sandbox) -> None:
    with pytest.raises(UnknownLanguageError, match=r"language is 'cobol', known: python, c,"):
        sandbox.run("cobol", "")


@pytest.mark.parametrize("name", ["cpu_ms", "memory_mib", "output_bytes", "num_files", "wall_ms"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_limits_must_be_whole_and_positive(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"Limits\.{name}"):
        Limits(**{name: value})  # type: ignore[arg-type]
