"""Programs that attack the machine: one case an attack, with the end that it owes.

The table is also the one in docs/sandbox.md: `python tests/adversarial/test_sandbox_attacks.py`
prints it.

An attack on a wall prints `blocked` for each attempt that the sandbox refused and `ESCAPED` for
each that it did not. A case passes only if something was attempted and everything attempted was
refused, so an attack that is broken fails its test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from child_process import processes_named

from rewardsvc.verifiers.sandbox import Limits, RunResult, RunStatus, Sandbox, find_languages

TIME, MEMORY, OUTPUT = RunStatus.TIME_LIMIT, RunStatus.MEMORY_LIMIT, RunStatus.OUTPUT_LIMIT
DONE, DIED, NOT_COMPILED = RunStatus.FINISHED, RunStatus.SIGNALED, RunStatus.COMPILE_ERROR
SMALL = Limits(
    cpu_ms=400, wall_ms=4000, memory_mib=96, output_bytes=1 << 20, disk_mib=8, num_files=64
)
ROOMY = Limits(cpu_ms=10_000, memory_mib=64)
SLEEPY = Limits(cpu_ms=400, wall_ms=700, memory_mib=96)

PRELUDE = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)

def syscall(number, *args):
    if libc.syscall(ctypes.c_long(number), *args) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def attempt(what, action):
    try:
        action()
    except (OSError, ValueError, AttributeError) as error:
        print("blocked", what, error)
    else:
        print("ESCAPED", what)

"""


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        number: In the catalogue; one number may have several cases.
        name: What it does.
        code: The program.
        owed: The statuses that are right; of FINISHED, with `exit_code` (None: any).
        verdict: For the table.
        language: Of the program.
        limits: Of the run.
        stdout: What it must have printed, if that matters.
    """

    number: int
    name: str
    code: str
    owed: tuple[RunStatus, ...] = (DONE,)
    verdict: str = "RE"
    exit_code: int | None = 1
    language: str = "python"
    limits: Limits = SMALL
    stdin: bytes = b""
    stdout: bytes | None = None
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def case_id(self) -> str:
        return f"{self.number}-{self.name.replace(' ', '_')}-{self.language}"


def resource(number: int, name: str, code: str, verdict: str, *owed: RunStatus, **more: object):
    return Attack(number, name, code, owed or (DONE,), verdict, **more)  # type: ignore[arg-type]


def escape(number: int, name: str, code: str, **more: object) -> Attack:
    full = PRELUDE + code if more.get("language", "python") == "python" else code
    return Attack(number, name, full, verdict="blocked", exit_code=0, **more)  # type: ignore[arg-type]


C_PRELUDE = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
static void attempt(const char *what, long result) {
    if (result < 0) printf("blocked %s %s\\n", what, strerror(errno));
    else printf("ESCAPED %s\\n", what);
    fflush(stdout);
}
"""

ATTACKS = [
    resource(1, "busy loop", "while True: pass", "TLE", TIME),
    resource(1, "busy loop", "int main(){for(;;);}", "TLE", TIME, language="c"),
    resource(
        1,
        "busy children",
        "#include <sys/wait.h>\n#include <unistd.h>\n"
        "int main(){for(int i=0;i<3;i++) if(!fork()) for(;;); while(wait(0)>0);}",
        "TLE",
        TIME,
        language="c",
        limits=Limits(cpu_ms=400, wall_ms=60_000, memory_mib=96),
    ),
    resource(2, "sleep", "import time; time.sleep(60)", "TLE (wall)", TIME, limits=SLEEPY),
    resource(3, "fork bomb", "import os\nwhile True: os.fork()", "RE"),
    resource(
        3,
        "fork bomb",
        "#include <unistd.h>\nint main(){for(;;) if (fork() < 0) _exit(1);}",
        "RE",
        DONE,
        language="c",
        limits=Limits(cpu_ms=400, wall_ms=4000, memory_mib=96, num_processes=16),
    ),
    resource(
        4,
        "thread bomb",
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "RE",
    ),
    resource(5, "8 GB bytearray", "x = bytearray(8 << 30)", "MLE", MEMORY),
    resource(
        6,
        "many small allocations",
        "x = []\nwhile True: x.append([0])",
        "MLE",
        MEMORY,
        limits=ROOMY,
    ),
    resource(
        6,
        "many small allocations",
        "#include <stdlib.h>\n#include <string.h>\n"
        "int main(){for(;;) memset(malloc(65536), 1, 65536);}",
        "MLE",
        MEMORY,
        language="c",
        limits=ROOMY,
    ),
    resource(7, "memfd fill", "import os\nos.memfd_create('x')", "blocked"),
    resource(8, "tmpfs fill", "f = open('x', 'wb', 0)\nwhile True: f.write(bytes(1 << 20))", "RE"),
    resource(9, "a million files", "for i in range(10**6): open(str(i), 'w').close()", "RE"),
    resource(10, "endless stdout", "while True: print('x' * 1000)", "OLE", OUTPUT),
    resource(
        11,
        "endless stderr",
        "import sys\nwhile True: print('x' * 1000, file=sys.stderr)",
        "OLE",
        OUTPUT,
    ),
    resource(
        12,
        "1 MB of right output",
        "print('x' * 999_999)",
        "AC",
        exit_code=0,
        stdout=b"x" * 999_999 + b"\n",
    ),
    resource(
        13,
        "300 KB of right output",
        "for _ in range(100): print('y' * 2999)",
        "AC",
        exit_code=0,
        stdout=(b"y" * 2999 + b"\n") * 100,
    ),
    resource(14, "deep recursion", "def f(): f()\nf()", "RE"),
    resource(15, "descriptor exhaustion", "import os\nwhile True: os.dup(0)", "RE"),
    resource(16, "pipe hoarding", "import os\nwhile True: os.pipe()", "bounded (RE)"),
    resource(
        17,
        "huge int to str",
        "import sys\nsys.set_int_max_str_digits(0)\nstr(1 << (1 << 26))",
        "TLE",
        TIME,
    ),
    resource(
        18, "regex backtracking", "import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')", "TLE", TIME
    ),
    resource(
        19,
        "signals ignored",
        "import signal\n"
        "for s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\n"
        "while True: pass",
        "TLE",
        TIME,
    ),
    resource(20, "10**10**9 in C", "10**10**9", "TLE", TIME, MEMORY),
    resource(21, "compile bomb of brackets", "(" * 100_000, "CE", NOT_COMPILED),
    resource(21, "compile bomb of constants", f"x = {'-' * 50_000}1", "CE", NOT_COMPILED),
    resource(22, "unread stdin", "print(1)", "normal", exit_code=0, stdin=b"x" * (1 << 20)),
    resource(
        23,
        "100 MB of stdin",
        "import sys\nn = 0\nwhile c := sys.stdin.buffer.read(1 << 16): n += len(c)\nprint(n)",
        "normal",
        exit_code=0,
        stdin=b"x" * 100_000_000,
        stdout=b"100000000\n",
        limits=Limits(cpu_ms=4000, memory_mib=96),
    ),
    resource(24, "sparse file", "open('x', 'wb').truncate(1 << 40)", "RE"),
    escape(
        25,
        "read host files and keys",
        "for path in ('/etc/shadow', '/root', '/home', '/proc/1/environ', '/var', '/',\n"
        "             '{secret}'):\n"
        "    look = os.listdir if os.path.isdir(path) else open\n"
        "    attempt(path, lambda: look(path))\n"
        "known = 'SANDBOX_TEST_KEY' in os.environ\n"
        "attempt('environment', lambda: None if known else open('/nowhere'))",
    ),
    escape(
        26,
        "write outside the working folder",
        "for path in ('/x', '/usr/x', '/etc/passwd', '/dev/x', '/dev/shm/x', '/usr/bin/env',\n"
        "             '/proc/x', '/sandbox/x'):\n"
        "    attempt(path, lambda: open(path, 'ab'))",
    ),
    escape(
        27,
        "sockets",
        "import socket\n"
        "for family in (1, 2, 10, 16, 17, 40):\n"
        "    attempt(family, lambda: socket.socket(family, 3 if family == 17 else 1))",
    ),
    escape(
        27,
        "sockets",
        C_PRELUDE + "int main(){int f[]={1,2,10,16,17,40};"
        'for(int i=0;i<6;i++) attempt("socket", socket(f[i], SOCK_STREAM, 0));}',
        language="c",
    ),
    escape(28, "io_uring", "attempt('io_uring', lambda: syscall(425, 8, bytes(120)))"),
    escape(
        28,
        "io_uring",
        C_PRELUDE + 'int main(){char p[120]={0}; attempt("io_uring", syscall(425, 8, p));}',
        language="c",
    ),
    escape(
        29,
        "nested namespaces and mounts",
        "for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000):\n"
        "    attempt(hex(flag), lambda: syscall(272, flag))\n"
        "attempt('mount', lambda: syscall(165, b'none', b'/sandbox/home', b'tmpfs', 0, 0))\n"
        "attempt('chroot', lambda: os.chroot('/sandbox/home'))",
    ),
    escape(
        29,
        "nested namespaces and mounts",
        C_PRELUDE + 'int main(){attempt("unshare", unshare(CLONE_NEWUSER));'
        'attempt("clone", syscall(SYS_clone, CLONE_NEWUSER|SIGCHLD, 0, 0, 0, 0));'
        'attempt("clone3", syscall(435, 0, 0));'
        'attempt("mount", mount("none", "/sandbox/home", "tmpfs", 0, 0));}',
        language="c",
    ),
    escape(
        30,
        "ptrace and process_vm",
        "attempt('traceme', lambda: syscall(101, 0, 0, 0, 0))\n"
        "attempt('attach', lambda: syscall(101, 16, 1, 0, 0))\n"
        "attempt('process_vm_readv', lambda: syscall(310, 1, 0, 0, 0, 0, 0))",
    ),
    escape(
        30,
        "ptrace and process_vm",
        C_PRELUDE + 'int main(){attempt("attach", ptrace(PTRACE_ATTACH, 1, 0, 0));'
        'attempt("process_vm_readv", syscall(310, 1, 0, 0, 0, 0, 0));}',
        language="c",
    ),
    escape(
        31,
        "memory through proc",
        "for path in ('/proc/self/mem', '/proc/1/mem', '/proc/2/mem', '/proc/self/maps'):\n"
        "    attempt(path, lambda: open(path, 'rb').read(1))",
    ),
    escape(
        31,
        "memory through proc",
        C_PRELUDE + 'int main(){attempt("init", open("/proc/1/mem", O_RDWR));'
        'attempt("init environ", open("/proc/1/environ", O_RDONLY));'
        'attempt("root of init", open("/proc/1/root/etc", O_RDONLY));}',
        language="c",
    ),
    escape(
        32,
        "kill everybody",
        "attempt('all', lambda: os.kill(-1, 9))\n"
        "attempt('parent', lambda: os.kill(os.getppid() or 2, 9))\n",
    ),
    escape(
        33,
        "setsid daemon",
        "attempt('fork', os.fork)\nattempt('vfork', lambda: syscall(58))\n"
        "attempt('exec', lambda: os.execv('/bin/sh', ['sh']))\n"
        "attempt('spawn', lambda: os.posix_spawn('/bin/sh', ['sh'], {}))",
    ),
    escape(
        37,
        "pipe or device as output",
        "import stat\n"
        "attempt('fifo', lambda: os.mkfifo('out'))\n"
        "attempt('device', lambda: os.mknod('out', stat.S_IFCHR | 0o600, os.makedev(1, 5)))",
    ),
    escape(
        37,
        "pipe or device as output",
        C_PRELUDE + 'int main(){attempt("fifo", mkfifo("out", 0600));}',
        language="c",
    ),
    resource(
        38,
        "int 0x80",
        'int main(){int r; __asm__ volatile("int $0x80":"=a"(r):"a"(20)); return 0;}',
        "blocked (killed)",
        DIED,
        language="c",
    ),
    resource(
        38,
        "x32 calls",
        "#include <unistd.h>\n#include <sys/syscall.h>\n"
        "int main(){return syscall(0x40000000 | 39) < 0;}",
        "blocked (killed)",
        DIED,
        language="c",
    ),
    escape(
        39,
        "bpf userfaultfd keyctl",
        "attempt('bpf', lambda: syscall(321, 0, 0, 0))\n"
        "attempt('userfaultfd', lambda: syscall(323, 0))\n"
        "attempt('keyctl', lambda: syscall(250, 0, -3, 1))",
    ),
    escape(
        39,
        "bpf userfaultfd keyctl",
        C_PRELUDE + 'int main(){char a[128]={0}; attempt("bpf", syscall(321, 0, a, 128));'
        'attempt("userfaultfd", syscall(323, 1)); attempt("keyctl", syscall(250, 0, -3, 1));'
        'attempt("perf", syscall(298, a, 0, -1, -1, 0));}',
        language="c",
    ),
    escape(
        40,
        "core_pattern",
        "attempt('core_pattern', lambda: open('/proc/sys/kernel/core_pattern', 'w'))",
    ),
    escape(
        40,
        "core_pattern",
        C_PRELUDE + 'int main(){attempt("core", open("/proc/sys/kernel/core_pattern", O_WRONLY));}',
        language="c",
    ),
    escape(
        42,
        "locks and leases",
        "import fcntl\nf = open('/usr/bin/env', 'rb')\n"
        "attempt('flock', lambda: fcntl.flock(f, fcntl.LOCK_EX))\n"
        "attempt('lease', lambda: fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_RDLCK))",
    ),
    escape(
        43,
        "leaked descriptors",
        "found = []\n"
        "for fd in range(3, 1024):\n"
        "    try:\n        os.fstat(fd)\n        found.append(fd)\n"
        "    except OSError:\n        pass\n"
        "import stat\n"
        # What is left is the socket that a lack of memory is told by: nothing comes out of it, and
        # no descriptors go into it.
        "import socket\n"
        "for fd in found:\n"
        "    if fd != 50 or not stat.S_ISSOCK(os.fstat(fd).st_mode):\n"
        "        print('ESCAPED', fd)\n"
        "        continue\n"
        "    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)\n"
        "    if control.recv(1) or socket.recv_fds(control, 1, 1)[:2] != (b'', []):\n"
        "        print('ESCAPED', 'something to read')\n"
        "    attempt('send', lambda: socket.send_fds(control, [b'x'], [0]))",
    ),
    escape(
        44,
        "ctypes",
        "attempt('fork', lambda: syscall(57))\n"
        "attempt('execve', lambda: syscall(59, b'/bin/sh', 0, 0))\n"
        "attempt('socket', lambda: syscall(41, 2, 1, 0))\n"
        "attempt('clone', lambda: syscall(56, 17, 0, 0, 0, 0))\n"
        "attempt('clone3', lambda: syscall(435, bytes(88), 88))",
    ),
    escape(
        45,
        "raising limits",
        "import resource\n"
        "for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC,\n"
        "             resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):\n"
        "    attempt(kind, lambda: resource.setrlimit(kind, (-1, -1)))\n"
        "attempt('parent', lambda: resource.prlimit(2, resource.RLIMIT_AS))",
    ),
]


@pytest.fixture(scope="module", params=[True, False], ids=["snapshot", "fork"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    os.environ["SANDBOX_TEST_KEY"] = "a key of the grader's"
    try:
        with Sandbox(num_slots=2, snapshots=request.param) as made:
            yield made
    finally:
        del os.environ["SANDBOX_TEST_KEY"]


def run(sandbox: Sandbox, attack: Attack, secret: str = "") -> RunResult:
    if attack.language not in find_languages():
        pytest.skip(f"{attack.language} is not installed")
    code = attack.code.replace("{secret}", secret)
    return sandbox.run(attack.language, code, stdin=attack.stdin, limits=attack.limits)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.case_id)
def test_attack_ends_as_owed(sandbox: Sandbox, attack: Attack, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    result = run(sandbox, attack, str(secret))
    assert result.status in attack.owed, result
    if attack.name == "busy children":
        assert result.message == "cpu time"
    if result.status is DONE and attack.exit_code is not None:
        assert result.exit_code == attack.exit_code, result
    if attack.verdict == "blocked" and attack.exit_code == 0:
        assert b"blocked" in result.stdout, result
        assert b"ESCAPED" not in result.stdout, result
    if attack.stdout is not None:
        assert result.stdout == attack.stdout
    after = sandbox.run("python", "print('still here')")
    assert after.stdout == b"still here\n", after


DAEMON = """
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>
int main(int n, char **a) {
    prctl(PR_SET_NAME, "{name}");
    if (n > 1) sleep(60);
    printf("done\\n"); fflush(stdout);
    if (fork() == 0) {
        setsid();
        if (fork() == 0) execl("./program", "./program", "daemon", (char *)0);
        sleep(60);
    }
    return 0;
}
"""


def test_33_setsid_daemon_is_dead_on_return(sandbox: Sandbox) -> None:
    name = f"left-{os.urandom(4).hex()}"
    code = DAEMON.replace("{name}", name)
    result = sandbox.run("c", code, limits=Limits(cpu_ms=1000, wall_ms=30_000))
    assert result.status is DONE
    assert result.stdout == b"done\n"
    assert processes_named(name) == []


def test_34_daemon_that_holds_stdout_is_not_waited_for(sandbox: Sandbox) -> None:
    code = DAEMON.replace("{name}", "holds-stdout")
    result = sandbox.run("c", code, limits=Limits(cpu_ms=1000, wall_ms=30_000))
    assert result.status is DONE
    assert result.wall_ms < 30_000


def test_32_init_survives_a_program_that_kills_everybody(sandbox: Sandbox) -> None:
    code = (
        "#include <signal.h>\n#include <stdio.h>\n#include <unistd.h>\n"
        'int main(){kill(-1, 9); kill(1, 9); kill(getppid(), 9); puts("done"); return 0;}'
    )
    result = sandbox.run("c", code, limits=SMALL)
    assert result.status is DONE
    assert result.stdout == b"done\n"


def test_35_symbolic_link_is_no_output_file(sandbox: Sandbox) -> None:
    code = (
        "import os\nos.symlink('/etc/passwd', 'out')\nos.symlink('/etc', 'folder')\n"
        "open('real', 'w').write('x')\nos.symlink('real', 'inner')"
    )
    names = ["out", "folder/passwd", "inner", "real"]
    result = sandbox.run("python", code, fetch=names)
    assert result.files == {"real": b"x"}, result


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "x\0y", "." * 300])
def test_36_paths_that_leave_the_folder_are_refused(sandbox: Sandbox, name: str) -> None:
    with pytest.raises(ValueError, match="not a path within"):
        sandbox.run("python", "pass", fetch=[name])
    with pytest.raises(ValueError, match="not a path within"):
        sandbox.run("python", "pass", files={name: b""})


def test_37_folder_is_no_output_file(sandbox: Sandbox) -> None:
    result = sandbox.run("python", "import os\nos.mkdir('out')", fetch=["out", "*"])
    assert result.status is DONE
    assert result.files == {}


def test_41_nothing_is_passed_on_between_runs(sandbox: Sandbox) -> None:
    leave = (
        "for p in ('/dev/shm/x', '/tmp/x', 'x'):\n"
        "    try: open(p, 'w').write('1')\n"
        "    except OSError: pass"
    )
    look = "import os\nprint([p for p in ('/dev/shm/x', '/tmp/x', 'x') if os.path.exists(p)])"
    for _ in range(4):
        assert sandbox.run("python", leave).status is DONE
        assert sandbox.run("python", look).stdout == b"[]\n"


def docs_table() -> str:
    """The table in docs/sandbox.md."""
    by_test = {
        33: ("setsid daemon", "dead on return"),
        34: ("daemon that holds stdout", "not waited for"),
        35: ("symbolic link as output file", "blocked"),
        36: ("../ and absolute paths", "blocked"),
        41: ("/dev/shm between runs", "blocked"),
    }
    rows: dict[int, tuple[str, str]] = {}
    for attack in ATTACKS:
        names = dict.fromkeys(a.name for a in ATTACKS if a.number == attack.number)
        rows[attack.number] = "; ".join(names), attack.verdict
    rows |= by_test
    lines = ["|#|attack|verdict|", "|-|-|-|"]
    lines += [f"|{number}|{name}|{verdict}|" for number, (name, verdict) in sorted(rows.items())]
    return "\n".join(lines)


def test_documentation_has_the_table() -> None:
    page = Path(__file__).parents[2] / "docs/sandbox.md"
    assert docs_table() in page.read_text()


def test_every_attack_of_the_catalogue_is_here() -> None:
    numbers = {int(line.split("|")[1]) for line in docs_table().splitlines()[2:]}
    assert numbers == set(range(1, 46))


if __name__ == "__main__":
    print(docs_table())
