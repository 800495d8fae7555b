"""The scorers of a running server: which there are, in what state, and how one replaces another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rewardsvc.engine.host import EngineHost
from rewardsvc.errors import (
    ConfigError,
    ItemError,
    ScorerExistsError,
    ScorerUnusableError,
    ServiceError,
    UnknownScorerError,
)
from rewardsvc.scorers import scorer_class
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.scorer import Scorer
from rewardsvc.scoring.slot import Live, ScorerInfo, ScoringObserver, Slot, State

log = logging.getLogger(__name__)

RETIRE_TIMEOUT_S = 600.0
"""How long a replaced scorer may go on serving the calls that began on it."""


class NullScoringObserver:
    """Watches nothing."""

    def answered(self, scorer: str, seconds: float, errors: Sequence[ItemError | None]) -> None:
        """Does nothing."""

    def refused(self, scorer: str, error: Exception) -> None:
        """Does nothing."""


class Registry:
    """All scorers by name. Methods are for one event loop; none of them blocks it."""

    def __init__(
        self,
        engine: EngineHost,
        base_dir: Path,
        observer: ScoringObserver | None = None,
        *,
        remote: Callable[[ScorerConfigBase, BuildEnv], Scorer] | None = None,
    ) -> None:
        """Starts empty.

        Args:
            engine: Devices and batchers for the scorers that hold models.
            base_dir: Where relative paths in scorer configurations start.
            observer: Told of every call to every scorer.
            remote: Makes the scorer of a section with `worker_devices`; None: there are no workers.
        """
        self._engine = engine
        self._base_dir = base_dir
        self._observer = observer or NullScoringObserver()
        self._remote = remote
        self._slots: dict[str, Slot] = {}
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    def get(self, name: str) -> Slot:
        """The slot of this name.

        Raises:
            UnknownScorerError: If there is none; names those that exist.
        """
        slot = self._slots.get(name)
        if slot is None:
            known = ", ".join(sorted(self._slots)) or "none"
            raise UnknownScorerError(
                f"scorer: no scorer is named {name!r}; this server has {known}"
            )
        return slot

    def infos(self) -> list[ScorerInfo]:
        """What is known of every scorer, in the order of the configuration."""
        return [slot.info for slot in self._slots.values()]

    async def load_all(self, configs: Mapping[str, ScorerConfigBase]) -> None:
        """Loads scorers, children before parents. One that fails is FAILED; the others load.

        Args:
            configs: Name → configuration, children before parents.
        """
        async with self._changing:
            for name, config in configs.items():
                self._slots[name] = Slot(name, config, self._observer)
            for name in configs:
                slot = self._slots[name]
                try:
                    slot.live = Live(await self._start(slot))
                    slot.state = State.READY
                    log.info("scorer %s (%s) is ready", name, slot.config.type)
                except Exception as error:
                    slot.state, slot.message = State.FAILED, _reason(error)
                    expected = isinstance(error, ServiceError)
                    log.error(
                        "scorer %s (%s) failed to load: %s",
                        *(name, slot.config.type, slot.message),
                        exc_info=None if expected else error,
                    )

    async def load(self, name: str, configs: Mapping[str, ScorerConfigBase]) -> ScorerInfo:
        """Adds a scorer, with those written in place inside it, and waits until it is ready.

        Args:
            name: The new scorer's name.
            configs: Its configuration and those of the scorers in it, children first.

        Raises:
            ScorerExistsError: If one of the names is taken.
            ConfigError: If it names a child that does not exist.
            ScorerUnusableError: If loading failed; nothing was added.
        """
        async with self._changing:
            taken = sorted(set(configs) & set(self._slots))
            if taken:
                raise ScorerExistsError(f"name: {taken[0]!r} exists; reload it, or unload it first")
            for parent, config in configs.items():
                for child in config.children():
                    if child not in self._slots and child not in configs:
                        raise ConfigError(f"scorers.{parent}.of: no scorer is named {child!r}")
            added: list[Slot] = []
            try:
                for new_name, config in configs.items():
                    slot = Slot(new_name, config, self._observer)
                    self._slots[new_name] = slot
                    added.append(slot)
                    slot.live = Live(await self._start(slot))
                    slot.state = State.READY
            except BaseException as error:
                for slot in reversed(added):
                    del self._slots[slot.name]
                    if slot.live:
                        await slot.live.retire(0.0)
                if isinstance(error, ServiceError) or not isinstance(error, Exception):
                    raise
                raise ScorerUnusableError(f"{name!r} failed to load: {_reason(error)}") from error
            return self._slots[name].info

    async def reload(self, name: str) -> ScorerInfo:
        """Loads a scorer again from its configuration and swaps it in.

        Raises:
            UnknownScorerError: If there is none of this name.
            ScorerUnusableError: If loading failed; the old one, if any, keeps serving.
        """
        async with self._changing:
            slot = self.get(name)
            try:
                fresh = Live(await self._start(slot))
            except Exception as error:
                if slot.live is None:
                    slot.message = _reason(error)
                raise ScorerUnusableError(
                    f"{name!r} failed to load: {_reason(error)}"
                    + ("; the old one keeps serving" if slot.live else "")
                ) from error
            old, slot.live = slot.live, fresh
            slot.state, slot.message = State.READY, ""
            if old is not None:
                self._retire(old)
            log.info("scorer %s reloaded, version %s", name, slot.version)
            return slot.info

    async def unload(self, name: str) -> None:
        """Stops serving a scorer; calls in flight finish.

        Raises:
            UnknownScorerError: If there is none of this name.
            ScorerUnusableError: If another scorer is built on it.
        """
        async with self._changing:
            slot = self.get(name)
            inside = [s for s in self._slots.values() if s.name.startswith(f"{name}/")]
            leaving = {s.name: s for s in [slot, *inside]}
            for parent in self._slots.values():
                used = sorted(leaving.keys() & set(parent.config.children()))
                if used and parent.name not in leaving:
                    raise ScorerUnusableError(
                        f"{used[0]!r} is part of {parent.name!r}; unload that first"
                    )
            for gone in leaving.values():
                gone.state = State.UNLOADING
                del self._slots[gone.name]
                live, gone.live = gone.live, None
                if live is not None:
                    self._retire(live)

    async def close(self) -> None:
        """Closes every scorer, parents before children."""
        async with self._changing:
            for slot in reversed(self._slots.values()):
                slot.state = State.UNLOADING
                if slot.live is not None:
                    live, slot.live = slot.live, None
                    await live.retire(0.0)
        for task in list(self._retiring):
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    async def _start(self, slot: Slot) -> Scorer:
        env = BuildEnv(name=slot.name, base_dir=self._base_dir, child=self.get, engine=self._engine)
        for child in slot.config.children():
            self.get(child).require()
        if slot.config.worker_devices():
            if self._remote is None:
                raise ConfigError("devices, replicas: there are no worker processes here")
            scorer = self._remote(slot.config, env)
        else:
            scorer = scorer_class(slot.config.type)(slot.config, env)
        try:
            await scorer.start()
        except BaseException:
            await scorer.close()
            raise
        return scorer

    def _retire(self, live: Live) -> None:
        task = asyncio.create_task(live.retire(RETIRE_TIMEOUT_S))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


def _reason(error: BaseException) -> str:
    """Why loading failed, for people: our own errors speak for themselves."""
    if isinstance(error, ServiceError):
        return str(error)
    return f"{type(error).__name__}: {error}"
