"""The engine's benchmarks run small: their rows are there and make sense."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_engine_on_a_gpu_runs_small_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    kept = {"name": "gemm", "flops": 1e9, "kept": True}
    out.write_text(json.dumps({"rows": [kept]}))
    script = BENCHMARKS / "bench_engine_gpu.py"
    command = [sys.executable, str(script), "--quick", "--json", str(out)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["gemm", "singles", "groups", "prompts"]
    assert rows["gemm"] == kept
    singles, groups = rows["singles"], rows["groups"]
    assert singles["gemm_share"] == pytest.approx(singles["flops"] / 1e9)
    assert singles["computed_share"] >= 1
    assert groups["computed_share"] < 0.8, "sixteen completions share a prompt"
    assert min(singles["samples_per_s"], groups["samples_per_s"]) > 0


def load(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script as a module, under a name of its own."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_peer_that_cannot_be_installed_is_reported_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = load("peers_environments", BENCHMARKS / "peers/environments.py", monkeypatch)

    def no_index(command: list[str], **options: Any) -> Any:
        text = "ERROR: No matching distribution found for nothing"
        is_pip = "pip" in command
        if not is_pip:
            (tmp_path / "peer" / "lib/python3/site-packages").mkdir(parents=True)
        return subprocess.CompletedProcess(command, int(is_pip), stdout="", stderr=text)

    monkeypatch.setattr(environments.subprocess, "run", no_index)
    made = environments.environment(tmp_path / "peer", ["nothing"])

    assert made.python is None
    assert "No matching distribution" in made.problem
    assert not (tmp_path / "peer" / environments.READY_FILE).exists(), "it is tried again"


async def test_client_of_the_peers_reads_whole_and_chunked_replies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import asyncio

    client = load("peers_client", BENCHMARKS / "peers/client.py", monkeypatch)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(2):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            size = int(head.split("content-length: ")[1].split("\r\n")[0])
            text = json.loads(await reader.readexactly(size))["text"]
            body = json.dumps({"score": float(len(text))}).encode()
            start = b"HTTP/1.1 200 OK\r\n"
            if number:
                chunks = (body[:3], body[3:], b"")
                data = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
                writer.write(start + b"transfer-encoding: chunked\r\n\r\n" + data)
            else:
                writer.write(start + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connection = client.HttpConnection("litserve", port)
        assert await connection("abc") == 3
        assert await connection("abcde") == 5
        await connection.close()
