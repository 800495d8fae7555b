"""Languages as a table of data; adding one is adding a row.

A row says how to compile and how to run, and which commands that takes. Rows of the same name are
alternatives: the first whose commands exist on this machine is used. Python is not run by exec but
by warm interpreters; its row is here so that everything asks one table.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rewardsvc.verifiers.sandbox.rootfs import WORK_DIR
from rewardsvc.verifiers.sandbox.types import Limits, UnknownLanguageError

_QUERY_TIMEOUT_SECONDS = 20.0

COMPILE_LIMITS = Limits(
    cpu_ms=30_000, memory_mib=2048, num_processes=64, disk_mib=512, num_files=16_384
)
"""What a compiler may use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """One row.

    Attributes:
        name: What callers say.
        aliases: Other names, as written behind a code fence.
        source: Name of the file that the code is put into.
        compile_command: How to compile it, its command by name; None if nothing needs compiling.
        run_command: How to run it; `{memory_mib}` is the run's limit.
        artifacts: What the compiler leaves that the run needs; `*` stands for any name. Without a
            compiler, the source.
        query: A command whose output is the folder to use the tools of instead of those on PATH,
            which may be shims: its `bin` is searched first.
        check: A command that must succeed for the row to be used.
        env: Environment beyond the sandbox's own.
        overhead_mib: Memory that the runtime takes for itself.
        extra_processes: Threads that the runtime starts for itself.
        paths: Folders that the jail must show; filled in by `find_languages`.
    """

    name: str
    aliases: tuple[str, ...] = ()
    source: str
    compile_command: tuple[str, ...] | None = None
    run_command: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ("program",)
    query: tuple[str, ...] | None = None
    check: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    overhead_mib: int = 0
    extra_processes: int = 0
    paths: tuple[str, ...] = ()


_JAVA_FLAGS = ("-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xshare:auto", "-XX:TieredStopAtLevel=1")
_NODE_RUN = ("node", "--stack-size=16384", "--max-old-space-size={memory_mib}")

TABLE: tuple[Language, ...] = (
    Language(name="python", aliases=("py", "python3"), source="main.py"),
    Language(
        name="c",
        source="main.c",
        compile_command=("cc", "-O2", "-std=c17", "-o", "program", "main.c", "-lm"),
        run_command=("./program",),
    ),
    Language(
        name="cpp",
        aliases=("c++", "cc", "cxx"),
        source="main.cpp",
        compile_command=("c++", "-O2", "-std=c++17", "-o", "program", "main.cpp"),
        run_command=("./program",),
    ),
    Language(
        name="javascript",
        aliases=("js", "node"),
        source="main.js",
        run_command=(*_NODE_RUN, "main.js"),
        overhead_mib=96,
        extra_processes=16,
    ),
    Language(
        name="typescript",
        aliases=("ts",),
        source="main.ts",
        compile_command=("tsc", "--target", "es2022", "--module", "commonjs", "main.ts"),
        run_command=(*_NODE_RUN, "main.js"),
        artifacts=("main.js",),
        overhead_mib=96,
        extra_processes=16,
    ),
    Language(
        name="typescript",
        aliases=("ts",),
        source="main.ts",
        run_command=(*_NODE_RUN, "--experimental-strip-types", "--no-warnings", "main.ts"),
        check=("node", "--experimental-strip-types", "-e", ""),
        overhead_mib=96,
        extra_processes=16,
    ),
    Language(
        name="java",
        source="Main.java",
        compile_command=("javac", "-J-XX:+UseSerialGC", "-encoding", "UTF-8", "Main.java"),
        run_command=("java", *_JAVA_FLAGS, "-Xss64m", "-Xmx{memory_mib}m", "-cp", ".", "Main"),
        artifacts=("*.class",),
        overhead_mib=192,
        extra_processes=32,
    ),
    Language(
        name="go",
        aliases=("golang",),
        source="main.go",
        compile_command=("go", "build", "-o", "program", "main.go"),
        run_command=("./program",),
        query=("go", "env", "GOROOT"),
        env={"GOCACHE": f"{WORK_DIR}/.cache", "GOPATH": f"{WORK_DIR}/.go", "GO111MODULE": "off"},
        overhead_mib=16,
        extra_processes=16,
    ),
    Language(
        name="rust",
        aliases=("rs",),
        source="main.rs",
        compile_command=("rustc", "-O", "--edition", "2021", "-o", "program", "main.rs"),
        run_command=("./program",),
        query=("rustc", "--print", "sysroot"),
    ),
    Language(
        name="bash",
        aliases=("sh", "shell"),
        source="main.sh",
        run_command=("bash", "main.sh"),
    ),
)
"""All languages, in the order in which they are listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageReport:
    """Whether a language works here.

    Attributes:
        name: As in the table.
        available: Whether its commands were found.
        detail: Where they are, or what is missing.
    """

    name: str
    available: bool
    detail: str


@functools.cache
def find_languages() -> dict[str, Language]:
    """The rows that work on this machine by name, with the commands as absolute paths."""
    found: dict[str, Language] = {}
    for row in TABLE:
        if row.name not in found:
            resolved = _resolve(row)
            if isinstance(resolved, Language):
                found[row.name] = resolved
    return found


def report_languages() -> list[LanguageReport]:
    """One row a language, found or not."""
    found = find_languages()
    rows = []
    for name in dict.fromkeys(row.name for row in TABLE):
        if name in found:
            language = found[name]
            command = language.compile_command or language.run_command or ("warm interpreters",)
            rows.append(LanguageReport(name=name, available=True, detail=command[0]))
        else:
            reasons = "; or ".join(str(_resolve(row)) for row in TABLE if row.name == name)
            rows.append(LanguageReport(name=name, available=False, detail=reasons))
    return rows


@functools.cache
def _names_by_alias() -> dict[str, str]:
    return {alias: row.name for row in TABLE for alias in (row.name, *row.aliases)}


def language(name: str) -> Language:
    """The row of a language, by name or alias.

    Raises:
        UnknownLanguageError: If there is none, or its tools are not installed.
    """
    known = _names_by_alias()
    if name not in known:
        names = ", ".join(dict.fromkeys(known.values()))
        raise UnknownLanguageError(f"language is {name!r}, known: {names}")
    found = find_languages().get(known[name])
    if found is None:
        reasons = [str(_resolve(row)) for row in TABLE if row.name == known[name]]
        raise UnknownLanguageError(f"language {name!r} does not work here: {'; or '.join(reasons)}")
    return found


def _resolve(row: Language) -> Language | str:
    """`row` with absolute commands and the folders they need, or what is missing."""
    folder = ""
    if row.query is not None:
        if shutil.which(row.query[0]) is None:
            return f"{row.query[0]} is not installed"
        folder = _output(row.query) or ""
        if not folder:
            return f"{' '.join(row.query)} failed"
    commands = []
    paths = [folder] if folder else []
    for command in (row.compile_command, row.run_command):
        if not command or command[0].startswith("./"):
            commands.append(command)
            continue
        place = shutil.which(command[0], path=f"{folder}/bin") if folder else None
        place = place or shutil.which(command[0])
        if place is None:
            return f"{command[0]} is not installed"
        real = Path(place).resolve()
        paths.append(str(real.parent.parent if real.parent.name == "bin" else real.parent))
        commands.append((str(real), *command[1:]))
    if row.check is not None and _output(row.check, want_output=False) is None:
        return f"{' '.join(row.check)} failed"
    compile_command, run_command = commands
    return replace(
        row, compile_command=compile_command, run_command=run_command or (), paths=tuple(paths)
    )


def _output(command: Iterable[str], *, want_output: bool = True) -> str | None:
    """What a command of the operator's own tools prints; None if it fails."""
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_QUERY_TIMEOUT_SECONDS,
            check=True,
            text=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if want_output else ""
