"""Training against a real service that is killed in the middle, over gRPC."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policies import ROWS, digit_config, digit_policy
from transformers import AutoModelForCausalLM

from rewardsvc.policy_client.train.online import OnlineResult, run_online
from rewardsvc.policy_client.train.online.rewards import RewardRequest, Rewards, ServiceReward
from rewardsvc.policy_client.train.online.sources import build_client

NUM_STEPS = 8
KILL_AT_CALL = 4

SERVICE = """
server: {port: 0}
scorers: {digits: {type: exact}}
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Watched:
    """Rewards of the service; does something just before a given call."""

    def __init__(self, address: str, at_call: int, action: Callable[[], None]) -> None:
        self._source = ServiceReward(build_client(address, timeout_s=60.0), "digits")
        self._at_call = at_call
        self._action = action
        self._lock = threading.Lock()
        self.num_calls = 0

    def score(self, request: RewardRequest) -> Rewards:
        with self._lock:
            self.num_calls += 1
            if self.num_calls == self._at_call:
                self._action()
        return self._source.score(request)


def train(folder: Path, source: Watched) -> OnlineResult:
    config = digit_config(folder, max_steps=NUM_STEPS, max_service_outage_s=60.0)
    return run_online("grpo", config, reward=source, **digit_policy())


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_service_killed_in_the_middle_costs_no_step_and_none_counts_twice(
    server_process: Callable[..., Any], tmp_path: Path
) -> None:
    server = server_process(SERVICE)
    untouched = Watched(server.address, 0, lambda: None)
    whole = train(tmp_path / "whole", untouched)

    restarted = threading.Event()

    def restart_later() -> None:
        server.start()
        restarted.set()

    def kill() -> None:
        server.kill()
        threading.Timer(2.0, restart_later).start()

    source = Watched(server.address, KILL_AT_CALL, kill)
    result = train(tmp_path / "killed", source)

    assert restarted.is_set()
    assert source.num_calls >= NUM_STEPS
    steps = [line["step"] for line in logged(tmp_path / "killed")]
    assert steps == list(range(1, NUM_STEPS + 1))
    for with_kill, without in zip(
        logged(tmp_path / "killed"), logged(tmp_path / "whole"), strict=True
    ):
        for metric in ("reward", "loss", "num_tokens", "epoch", "grad_norm"):
            assert with_kill["metrics"][metric] == without["metrics"][metric]
        assert with_kill["metrics"]["rewards/num_missing"] == 0
    weights = [
        AutoModelForCausalLM.from_pretrained(run.model_dir).state_dict() for run in (whole, result)
    ]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_rewards_of_the_service_are_those_of_the_verifier_in_process(
    server_process: Callable[..., Any], tmp_path: Path
) -> None:
    server = server_process(SERVICE)
    train(tmp_path / "served", Watched(server.address, 0, lambda: None))
    config = digit_config(
        tmp_path / "local", max_steps=NUM_STEPS, reward={"type": "verifier", "name": "exact"}
    )
    run_online("grpo", config, **digit_policy())
    served, local = logged(tmp_path / "served"), logged(tmp_path / "local")
    assert len(ROWS) == 10
    assert [r["metrics"]["reward"] for r in served] == [r["metrics"]["reward"] for r in local]
