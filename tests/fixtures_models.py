"""Fixtures for tests that put models behind the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rewardsvc.engine.host import EngineHost, EngineSettings
from rewardsvc.scorers import scorer_class
from rewardsvc.scoring import Scorer
from rewardsvc.scoring.build import BuildEnv

StartScorer = Callable[..., Awaitable[Any]]


def _no_child(name: str) -> Scorer:
    raise AssertionError(f"a model has no child, and asked for {name!r}")


@pytest.fixture
async def engine() -> AsyncIterator[EngineHost]:
    """An engine on the CPU with small limits; closed after the test."""
    settings = EngineSettings(
        device="cpu", max_batch_tokens=256, num_torch_threads=1, tokenizer_threads=2, drain_s=5
    )
    host = EngineHost(settings)
    yield host
    await host.close()


@pytest.fixture
def start_scorer(engine: EngineHost) -> StartScorer:
    """`await start_scorer("orm", model=folder, …)` gives a started scorer."""

    async def start(type_name: str, *, model: Path | str, **config: Any) -> Any:
        cls = scorer_class(type_name)
        section = cls.Config(type=type_name, model=str(model), **config)
        env = BuildEnv(name="tested", base_dir=Path.cwd(), child=_no_child, engine=engine)
        scorer = cls(section, env)
        await scorer.start()
        return scorer

    return start
