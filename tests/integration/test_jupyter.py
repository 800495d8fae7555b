"""In the cells of a real Jupyter kernel, whose main thread runs an event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_reward_service import Script
from jupyter_client.manager import start_new_kernel
from waiting import wait_until

Cell = Callable[[str], str]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    folder = tmp_path_factory.mktemp("jupyter")
    manager, client = start_new_kernel(
        startup_timeout=60, cwd=str(folder), extra_arguments=[f"--IPythonApp.ipython_dir={folder}"]
    )
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def cell(kernel: tuple[Any, Any]) -> Cell:
    """Runs a cell; returns what it printed, and raises what it raised."""
    _, client = kernel

    def run(code: str) -> str:
        said = execute(client, code)
        assert said["status"] == "ok", said
        return said["text"]

    return run


def execute(client: Any, code: str) -> dict[str, str]:
    said = {"text": "", "error": ""}

    def hear(message: dict[str, Any]) -> None:
        content = message["content"]
        if message["msg_type"] == "stream":
            said["text"] += content["text"]
        elif message["msg_type"] == "error":
            said["error"] = content["ename"] + "\n".join(content["traceback"])

    reply = client.execute_interactive(code, timeout=60, output_hook=hear)
    said["status"] = reply["content"]["status"]
    return said


def test_programs_run_in_the_sandbox(cell: Cell) -> None:
    said = cell(
        "from rewardsvc.verifiers import CodeVerifier, FunctionTests, Sandbox\n"
        "sandbox = Sandbox(num_slots=2)\n"
        "print(sandbox.run('python', 'print(6 * 7)').stdout)\n"
        "tests = FunctionTests('add', [((1, 2), 3)])\n"
        "verifier = CodeVerifier('python', sandbox=sandbox)\n"
        "for body in ('a + b', 'a - b'):\n"
        "    text = f'```python\\ndef add(a, b):\\n    return {body}\\n```'\n"
        "    print(verifier.verify(text, tests).reward)\n"
    )
    assert said.split() == ["b'42\\n'", "1.0", "0.0"]


def test_programs_run_behind_an_await(cell: Cell) -> None:
    said = cell(
        "import asyncio\n"
        "from rewardsvc.verifiers import Sandbox\n"
        "sandbox = Sandbox(num_slots=2)\n"
        "runs = [sandbox.arun('python', f'print({n} ** 2)') for n in range(4)]\n"
        "print([run.stdout.decode().strip() for run in await asyncio.gather(*runs)])\n"
    )
    assert said.strip() == "['0', '1', '4', '9']"


def test_mathematics_is_graded(cell: Cell) -> None:
    said = cell(
        "from rewardsvc.verifiers import MathVerifier\n"
        "verifier = MathVerifier()\n"
        "print(verifier.verify(r'\\boxed{\\frac{1}{2}}', '0.5').reward,"
        " verifier.verify(r'\\boxed{(x+1)^2}', 'x^2+2x+1').reward,"
        " verifier.verify(r'\\boxed{3}', '4').reward)\n"
    )
    assert said.split() == ["1.0", "1.0", "0.0"]


def test_both_clients_score(cell: Cell, address: str) -> None:
    said = cell(
        "from rewardsvc.policy_client import AsyncRewardClient, RewardClient\n"
        f"with RewardClient('{address}', max_samples_per_call=1) as client:\n"
        "    print(client.score('s', ['p'] * 3, ['1', '2', '3']).values.tolist())\n"
        f"async with AsyncRewardClient('{address}') as client:\n"
        "    print((await client.score('s', ['p'] * 2, ['4', '5'])).values.tolist())\n"
    )
    assert said.splitlines() == ["[1.0, 2.0, 3.0]", "[4.0, 5.0]"]


def stop(kernel: tuple[Any, Any], code: str, has_begun: Callable[[], bool]) -> str:
    """Runs a cell and interrupts it once it has begun; the name of the error it ends with."""
    manager, client = kernel
    # Or the kernel would drop the cells that come just after an error.
    request = client.execute(code, stop_on_error=False)
    assert wait_until(has_begun)
    manager.interrupt_kernel()
    reply = client.get_shell_msg(timeout=20)
    while reply["parent_header"].get("msg_id") != request:
        reply = client.get_shell_msg(timeout=20)
    return str(reply["content"].get("ename"))


def test_the_stop_button_ends_a_call(
    kernel: tuple[Any, Any], cell: Cell, address: str, script: Script
) -> None:
    script.delay_s = 60.0
    cell("from rewardsvc.policy_client import RewardClient")
    code = f"RewardClient('{address}', max_samples_per_call=1).score('s', ['p'] * 2, ['1'] * 2)"
    assert stop(kernel, code, lambda: script.num_active == 2) == "KeyboardInterrupt"
    assert wait_until(lambda: script.num_cancelled == 2)
    assert cell("print(1)") == "1\n"


def test_the_stop_button_ends_a_run_and_the_sandbox_is_usable(
    kernel: tuple[Any, Any], cell: Cell, tmp_path: Path
) -> None:
    cell("from rewardsvc.verifiers import Sandbox, Limits\nsandbox = Sandbox(num_slots=1)")
    cell("sandbox.start()")
    mark = tmp_path / "begun"
    code = (
        f"open({str(mark)!r}, 'w').close()\n"
        "sandbox.run('python', 'import time; time.sleep(50)', limits=Limits(wall_ms=60_000))"
    )
    assert stop(kernel, code, mark.exists) == "KeyboardInterrupt"
    assert cell("print(sandbox.run('python', 'print(2)').stdout)") == "b'2\\n'\n"
