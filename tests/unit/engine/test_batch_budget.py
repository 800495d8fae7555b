"""The budget of a batch, by device."""

from __future__ import annotations

from rewardsvc.engine.settings import BATCH_TOKENS, EngineSettings


def test_budget_is_the_devices_unless_it_is_given() -> None:
    assert EngineSettings().batch_tokens("cpu") == BATCH_TOKENS["cpu"]
    assert EngineSettings().batch_tokens("cuda:3") == BATCH_TOKENS["cuda"]
    assert EngineSettings(max_batch_tokens=7).batch_tokens("cuda:0") == 7
