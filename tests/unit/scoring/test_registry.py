"""Loading, reloading and unloading scorers under calls in flight."""

import asyncio
import sys
import types
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from rewardsvc.config import parse_scorers
from rewardsvc.engine.host import EngineHost
from rewardsvc.errors import (
    ConfigError,
    NotServingError,
    ScorerExistsError,
    ScorerUnusableError,
    UnknownScorerError,
)
from rewardsvc.scorers import BUILTIN
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.registry import Registry
from rewardsvc.scoring.scorer import Scorer
from rewardsvc.scoring.slot import State
from rewardsvc.scoring.types import Sample, Score

SAMPLES = [Sample(completion="a"), Sample(completion="b")]


class World:
    """What the fake scorers share with a test."""

    def __init__(self) -> None:
        self.weights = 1.0
        self.broken = False
        self.closed: list[float] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.num_scores_off = 0


class FakeConfig(ScorerConfigBase):
    type: Literal["fake"]


class ParentConfig(ScorerConfigBase):
    type: Literal["parent"]
    of: str

    def children(self) -> tuple[str, ...]:
        return (self.of,)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()

    class Fake(Scorer):
        Config = FakeConfig

        def __init__(self, config: FakeConfig, env: BuildEnv) -> None:
            self.weights = float("nan")

        @property
        def version(self) -> str:
            return f"w{self.weights}"

        async def start(self) -> None:
            if world.broken:
                raise ConfigError("model: the file is gone; restore it")
            self.weights = world.weights

        async def close(self) -> None:
            world.closed.append(self.weights)

        async def score(self, samples: Sequence[Sample]) -> list[Score]:
            await world.hold.wait()
            return [Score(value=self.weights)] * (len(samples) + world.num_scores_off)

    class Parent(Scorer):
        Config = ParentConfig

        def __init__(self, config: ParentConfig, env: BuildEnv) -> None:
            self.child = env.child(config.of)

        async def score(self, samples: Sequence[Sample]) -> list[Score]:
            return await self.child.score(samples)

    module: Any = types.ModuleType("fake_scorers")
    module.Fake, module.Parent = Fake, Parent
    monkeypatch.setitem(sys.modules, "fake_scorers", module)
    monkeypatch.setitem(BUILTIN, "fake", "fake_scorers:Fake")
    monkeypatch.setitem(BUILTIN, "parent", "fake_scorers:Parent")
    return world


@pytest.fixture
async def registry(world: World) -> AsyncIterator[Registry]:
    engine = EngineHost()
    registry = Registry(engine, Path())
    yield registry
    world.hold.set()
    await registry.close()
    await engine.close()


def configs(**sections: object) -> dict[str, ScorerConfigBase]:
    found: dict[str, ScorerConfigBase] = {}
    for name, section in sections.items():
        found.update(parse_scorers(name, section))
    return found


FAKE = {"type": "fake"}


async def test_a_loaded_scorer_scores_and_tells_its_version(registry: Registry) -> None:
    await registry.load_all(configs(a=FAKE))
    scores, version = await registry.get("a").score_versioned(SAMPLES)
    assert [s.value for s in scores] == [1.0, 1.0]
    assert version == "w1.0"
    assert [i.state for i in registry.infos()] == [State.READY]


async def test_an_unknown_name_is_answered_with_the_known_ones(registry: Registry) -> None:
    await registry.load_all(configs(a=FAKE, b=FAKE))
    with pytest.raises(UnknownScorerError, match="'c'; this server has a, b"):
        registry.get("c")


async def test_a_scorer_that_fails_to_load_harms_no_other(world: World, registry: Registry) -> None:
    await registry.load_all(configs(a=FAKE))
    world.broken = True
    await registry.load_all(configs(gone=FAKE, above={"type": "parent", "of": "gone"}))
    assert [(i.name, i.state) for i in registry.infos()] == [
        ("a", State.READY),
        ("gone", State.FAILED),
        ("above", State.FAILED),
    ]
    with pytest.raises(ScorerUnusableError, match="failed to load: model: the file is gone"):
        await registry.get("gone").score(SAMPLES)
    with pytest.raises(ScorerUnusableError, match="'gone' failed to load"):
        await registry.get("above").score(SAMPLES)
    assert (await registry.get("a").score(SAMPLES))[0].value == 1.0


async def test_a_failed_scorer_recovers_by_reload(world: World, registry: Registry) -> None:
    world.broken = True
    await registry.load_all(configs(a=FAKE))
    world.broken = False
    info = await registry.reload("a")
    assert info.state is State.READY
    assert info.message == ""


async def test_reload_swaps_weights_and_loses_no_call(world: World, registry: Registry) -> None:
    await registry.load_all(configs(a=FAKE))
    world.hold.clear()
    before = asyncio.create_task(registry.get("a").score_versioned(SAMPLES))
    await asyncio.sleep(0)
    world.weights = 2.0
    info = await registry.reload("a")
    assert info.version == "w2.0"
    after = asyncio.create_task(registry.get("a").score_versioned(SAMPLES))
    await asyncio.sleep(0)
    assert world.closed == []
    world.hold.set()
    scores, version = await before
    assert ({s.value for s in scores}, version) == ({1.0}, "w1.0")
    scores, version = await after
    assert ({s.value for s in scores}, version) == ({2.0}, "w2.0")
    await asyncio.sleep(0.01)
    assert world.closed == [1.0]


async def test_a_reload_that_fails_leaves_the_old_one_serving(
    world: World, registry: Registry
) -> None:
    await registry.load_all(configs(a=FAKE))
    world.broken = True
    with pytest.raises(ScorerUnusableError, match="the file is gone.*the old one keeps serving"):
        await registry.reload("a")
    assert (await registry.get("a").score(SAMPLES))[0].value == 1.0
    assert registry.infos()[0].state is State.READY


async def test_a_parent_sees_the_reloaded_child(world: World, registry: Registry) -> None:
    await registry.load_all(configs(a=FAKE, p={"type": "parent", "of": "a"}))
    world.weights = 5.0
    await registry.reload("a")
    assert (await registry.get("p").score(SAMPLES))[0].value == 5.0


async def test_load_adds_all_or_nothing(world: World, registry: Registry) -> None:
    await registry.load_all(configs(a=FAKE))
    nested = {"type": "parent", "of": {"type": "fake"}}
    info = await registry.load("n", configs(n=nested))
    assert info.state is State.READY
    assert {i.name for i in registry.infos()} == {"a", "n", "n/fake"}
    with pytest.raises(ScorerExistsError, match="'a' exists"):
        await registry.load("a", configs(a=FAKE))
    with pytest.raises(ConfigError, match="no scorer is named 'nope'"):
        await registry.load("x", configs(x={"type": "parent", "of": "nope"}))
    world.broken = True
    with pytest.raises(ConfigError, match="the file is gone"):
        await registry.load("m", configs(m=nested))
    assert {i.name for i in registry.infos()} == {"a", "n", "n/fake"}


async def test_unload_takes_what_was_written_inside_with_it(registry: Registry) -> None:
    await registry.load_all(configs(a=FAKE, p={"type": "parent", "of": {"type": "fake"}}))
    with pytest.raises(ScorerUnusableError, match="'p/fake' is part of 'p'"):
        await registry.unload("p/fake")
    await registry.unload("p")
    assert [i.name for i in registry.infos()] == ["a"]
    with pytest.raises(UnknownScorerError):
        await registry.unload("p")


async def test_unload_spares_what_others_use_of_its_inside(registry: Registry) -> None:
    nested = {"type": "parent", "of": {"type": "fake"}}
    await registry.load_all(configs(p=nested, other={"type": "parent", "of": "p/fake"}))
    with pytest.raises(ScorerUnusableError, match="'p/fake' is part of 'other'"):
        await registry.unload("p")
    assert (await registry.get("other").score(SAMPLES))[0].value == 1.0


async def test_unload_lets_calls_in_flight_finish(world: World, registry: Registry) -> None:
    await registry.load_all(configs(a=FAKE))
    world.hold.clear()
    slot = registry.get("a")
    call = asyncio.create_task(slot.score(SAMPLES))
    await asyncio.sleep(0)
    await registry.unload("a")
    with pytest.raises(NotServingError, match="unloading"):
        await slot.score(SAMPLES)
    world.hold.set()
    assert len(await call) == 2
    await asyncio.sleep(0.01)
    assert world.closed == [1.0]


@pytest.mark.parametrize("off", [-1, 1])
async def test_a_wrong_number_of_scores_is_never_broadcast(
    world: World, registry: Registry, off: int
) -> None:
    await registry.load_all(configs(a=FAKE))
    world.num_scores_off = off
    with pytest.raises(RuntimeError, match=rf"gave {2 + off} scores for 2 samples"):
        await registry.get("a").score(SAMPLES)


async def test_log_probs_of_what_is_no_language_model_are_refused(registry: Registry) -> None:
    await registry.load_all(configs(a=FAKE))
    with pytest.raises(ScorerUnusableError, match="of type 'fake'.*causal_lm"):
        await registry.get("a").token_logprobs([])


async def test_close_closes_every_scorer_once(world: World, registry: Registry) -> None:
    await registry.load_all(configs(a=FAKE, b=FAKE))
    await registry.close()
    assert world.closed == [1.0, 1.0]
