"""What is refused, and what still works, where the kernel does not grant every layer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from child_process import processes_named

import rewardsvc
from rewardsvc.verifiers.sandbox import (
    Isolation,
    IsolationError,
    Layer,
    LayerReport,
    RunStatus,
    Sandbox,
    probe,
)
from rewardsvc.verifiers.sandbox.layers import WHAT_IS_LOST, choose

NAMESPACES = (
    Layer.USER_NS,
    Layer.PID_NS,
    Layer.MOUNT_NS,
    Layer.NET_NS,
    Layer.IPC_NS,
    Layer.UTS_NS,
    Layer.PROC,
)


def reports(*missing: Layer) -> list[LayerReport]:
    return [
        LayerReport(
            layer=layer, available=layer not in missing, detail="denied", lost=WHAT_IS_LOST[layer]
        )
        for layer in Layer
    ]


def test_every_layer_is_reported_with_what_is_lost() -> None:
    rows = probe()
    assert [row.layer for row in rows] == list(Layer)
    assert all(row.detail and row.lost for row in rows)


def test_full_isolation_is_refused_where_a_layer_is_missing() -> None:
    with pytest.raises(IsolationError) as caught:
        choose(Isolation.FULL, reports(Layer.SECCOMP))
    message = str(caught.value)
    assert "seccomp (denied)" in message
    assert WHAT_IS_LOST[Layer.SECCOMP] in message
    assert "best-effort" in message


def test_full_isolation_does_without_cgroups_and_strict_does_not() -> None:
    assert Layer.CGROUPS not in choose(Isolation.FULL, reports(Layer.CGROUPS))
    with pytest.raises(IsolationError, match="cgroups"):
        choose(Isolation.STRICT, reports(Layer.CGROUPS))
    assert choose(Isolation.STRICT, reports()) == frozenset(Layer)


def test_best_effort_takes_what_there_is() -> None:
    granted = choose(Isolation.BEST_EFFORT, reports(Layer.LANDLOCK, Layer.MOUNT_NS))
    assert granted == frozenset(Layer) - {Layer.LANDLOCK, Layer.MOUNT_NS, Layer.PROC}


def test_sandbox_refuses_to_start_without_what_was_asked_for() -> None:
    with pytest.raises(IsolationError, match="Landlock"):
        Sandbox(without=[Layer.LANDLOCK])
    with pytest.raises(ValueError, match="'none'"):
        Sandbox(isolation="none")


DAEMON = """
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>
int main() {
    prctl(PR_SET_NAME, "{name}");
    puts("done"); fflush(stdout);
    if (!fork()) { setsid(); if (!fork()) sleep(50); sleep(50); }
    return 0;
}
"""


@pytest.mark.parametrize(
    "without",
    [
        (Layer.CGROUPS,),
        (Layer.PROC,),
        (Layer.USER_NS,),
        (Layer.PID_NS,),
        NAMESPACES,
        (*NAMESPACES, Layer.LANDLOCK, Layer.CGROUPS),
        tuple(Layer),
    ],
    ids=lambda without: "-".join(layer.name for layer in without)[:40],
)
def test_best_effort_runs_and_cleans_up_with_less(
    without: tuple[Layer, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tmp_path.chmod(0o711)
    for parent in tmp_path.parents:
        if parent != Path(parent.root) and parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | 0o011)
    with Sandbox(num_slots=1, isolation="best-effort", without=without) as sandbox:
        for _ in range(2):
            result = sandbox.run(
                "python",
                "import os\nprint(os.listdir('.'))\nopen('x', 'w').write('1')",
                fetch=["x"],
            )
            assert result.stdout == b"[]\n", result
            assert result.files == {"x": b"1"}
        name = f"left-{os.urandom(4).hex()}"
        result = sandbox.run("c", DAEMON.replace("{name}", name))
        assert result.status is RunStatus.FINISHED, result
        assert result.stdout == b"done\n"
    assert list(tmp_path.iterdir()) == []
    assert processes_named(name) == []


ORDINARY_USER = """
import json, os
from rewardsvc.verifiers.sandbox import Layer, Limits, Sandbox, probe
os.environ["KEY"] = "secret"
with Sandbox(num_slots=1, isolation="full") as sandbox:
    run = lambda code: sandbox.run("python", code, limits=Limits(cpu_ms=500, memory_mib=96))
    secret = "try:\\n    open('/proc/1/environ').read()\\nexcept OSError: print('blocked')"
    print(json.dumps({
        "layers": sorted(sandbox.layers),
        "uid": os.geteuid(),
        "add": run("print(1 + 1)").stdout.decode(),
        "busy": run("while True: pass").status,
        "memory": run("bytearray(1 << 33)").status,
        "fork": run("import os; os.fork()").exit_code,
        "socket": run("import socket; socket.socket()").exit_code,
        "environ": run(secret).stdout.decode(),
        "c": sandbox.run("c", "#include <stdio.h>\\nint main(){puts(\\"hi\\");}").stdout.decode(),
    }))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user is what the other tests run as")
def test_ordinary_user_gets_the_whole_jail(tmp_path: Path) -> None:
    python = shutil.which("python3", path="/usr/bin:/bin")
    root = Path(rewardsvc.__file__).parents[1]
    setpriv = shutil.which("setpriv")
    if python is None or setpriv is None:
        pytest.skip("needs /usr/bin/python3 and setpriv")
    command = [setpriv, "--reuid", "54321", "--regid", "54321", "--clear-groups", python]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    check = [*command, "-c", "import sys, rewardsvc; sys.exit(sys.version_info < (3, 11))"]
    if subprocess.run(check, env=env, cwd="/", check=False).returncode:
        pytest.skip("an ordinary user cannot read this checkout or has no Python 3.11")
    done = subprocess.run(
        [*command, "-c", ORDINARY_USER], env=env, cwd="/", capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert set(found.pop("layers")) >= {str(layer) for layer in set(Layer) - {Layer.CGROUPS}}
    assert found == {
        "uid": 54321,
        "add": "2\n",
        "busy": "time_limit",
        "memory": "memory_limit",
        "fork": 1,
        "socket": 1,
        "environ": "blocked\n",
        "c": "hi\n",
    }


def test_probe_runs_in_a_process_of_its_own() -> None:
    """The prober enters namespaces; this process must not have moved."""
    before = Path("/proc/self/ns/mnt").readlink()
    probe.cache_clear()
    probe()
    assert Path("/proc/self/ns/mnt").readlink() == before
    assert "rewardsvc.verifiers.sandbox.layer_probe" not in sys.modules
