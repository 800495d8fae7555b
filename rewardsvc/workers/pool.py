"""All worker processes of a server: made when a model needs them, ended when none does."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families

from rewardsvc.engine.settings import EngineSettings
from rewardsvc.errors import NotServingError
from rewardsvc.scorers import scorer_class
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.scorer import Scorer
from rewardsvc.scoring.tokens import TokenScorer
from rewardsvc.workers.child import WorkerSettings
from rewardsvc.workers.process import Worker
from rewardsvc.workers.remote import RemoteScorer, RemoteTokenScorer

MAX_NAME_CHARS = 100
METRICS_TIMEOUT_S = 2.0
SCORER_LABELS = ("model", "scorer")


class WorkerPool:
    """Workers by name, and the scorers that use them. For one event loop.

    A worker has one device and serves all models that are placed on it: two models with `replicas:
    2` share two processes.
    """

    def __init__(
        self,
        engine: EngineSettings,
        base_dir: Path,
        *,
        log_level: str = "info",
        log_format: str = "text",
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts nothing.

        Args:
            engine: The settings of the workers' engines.
            base_dir: Where relative paths in scorer configurations start.
            log_level: Of the workers' logs.
            log_format: Of the workers' logs.
            changed: Called when a worker, or a model on one, comes up or goes down.
        """
        self._engine = engine
        self._base_dir = base_dir
        self._log_level = log_level
        self._log_format = log_format
        self._changed = changed
        self._workers: dict[str, Worker] = {}
        self._users: Counter[str] = Counter()
        self._ending: set[asyncio.Task[None]] = set()
        self._names: dict[str, str] = {}
        self._num_models = 0
        self._folder: Path | None = None
        self._closed = False

    @property
    def workers(self) -> list[Worker]:
        """All there are."""
        return list(self._workers.values())

    def scorer(self, config: ScorerConfigBase, env: BuildEnv) -> Scorer:
        """A scorer for a section with `worker_devices`; `start` loads it on them.

        Raises:
            NotServingError: If the pool is closed.
        """
        if self._closed:
            raise NotServingError("the server is stopping")
        self._num_models += 1
        safe = re.sub(r"[^A-Za-z0-9._-]", ".", env.name)[:MAX_NAME_CHARS]
        model = f"{safe}.{self._num_models}"
        self._names[model] = env.name
        wanted = [self._resolved(device) for device in config.worker_devices()]
        seen: Counter[str] = Counter()
        placed = []
        for device in wanted:
            index = seen[device]
            seen[device] += 1
            worker = self._worker(f"{device}/{index}", device, wanted.count(device))
            placed.append((worker, f"auto:{index}" if device == "auto" else device))
        names = [worker.name for worker, _ in placed]
        self._users.update(names)

        async def released() -> None:
            self._names.pop(model, None)
            await self._release(names)

        is_token_scorer = issubclass(scorer_class(config.type), TokenScorer)
        kind = RemoteTokenScorer if is_token_scorer else RemoteScorer
        return kind(config, env, model=model, workers=placed, released=released)

    def _resolved(self, device: str) -> str:
        return self._engine.device if device == "auto" else device

    def _worker(self, place: str, device: str, num_alike: int) -> Worker:
        if place not in self._workers:
            if self._folder is None:
                # Not readable by others, and short: the path of a socket has 107 bytes at most.
                self._folder = Path(tempfile.mkdtemp(prefix="rewardsvc-", dir="/tmp"))
            engine = self._engine.model_copy(update={"device": device})
            if device in ("cpu", "auto") and not engine.num_torch_threads:
                # Each would take all cores, and they would stand in each other's way.
                threads = max(1, (os.cpu_count() or 1) // num_alike)
                engine = engine.model_copy(update={"num_torch_threads": threads})
            settings = WorkerSettings(
                name=place,
                socket=self._folder / f"{len(self._workers)}-{self._num_models}.sock",
                base_dir=self._base_dir.resolve(),
                engine=engine,
                log_level=self._log_level,
                log_format=self._log_format,
            )
            self._workers[place] = Worker(settings, self._changed)
        return self._workers[place]

    async def _release(self, names: Iterable[str]) -> None:
        self._users.subtract(names)
        for name in [name for name in self._workers if self._users[name] <= 0]:
            # In a task of its own: whoever waits here may be cancelled, and the process must end.
            ending = asyncio.create_task(self._workers.pop(name).close())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Drains and ends all processes."""
        self._closed = True
        workers, self._workers = self.workers, {}
        await asyncio.gather(*(worker.close() for worker in workers), *self._ending)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def metrics(self) -> dict[str, str]:
        """Prometheus' text of every worker that answers, by its name."""
        workers = self.workers
        texts = await asyncio.gather(*(w.metrics_text(METRICS_TIMEOUT_S) for w in workers))
        return {w.name: text for w, text in zip(workers, texts, strict=True) if text}

    def real_name(self, model: str) -> str:
        """The scorer's name behind what it is called on the workers."""
        return self._names.get(model, model)


class MergedRegistry(CollectorRegistry):
    """What `/metrics` exposes: the front's metrics, and the workers' with a label `worker`."""

    def __init__(
        self, own: CollectorRegistry, pool: WorkerPool, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Takes what it merges; `loop` is the pool's. Scraped from other threads."""
        super().__init__()
        self._own = own
        self._pool = pool
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        """One family a name, samples of all processes in it."""
        families = {metric.name: metric for metric in self._own.collect()}
        for worker, text in self._texts().items():
            for metric in text_string_to_metric_families(text):
                # The same families are here; what is not are parts of some of them (`_created`),
                # which this text format writes as families of their own.
                known = families.get(metric.name)
                if known is None:
                    continue
                for sample in metric.samples:
                    labels = {
                        key: self._pool.real_name(value) if key in SCORER_LABELS else value
                        for key, value in sample.labels.items()
                    }
                    known.samples.append(sample._replace(labels={**labels, "worker": worker}))
        return iter(families.values())

    def _texts(self) -> dict[str, str]:
        asking = asyncio.run_coroutine_threadsafe(self._pool.metrics(), self._loop)
        try:
            return asking.result(2 * METRICS_TIMEOUT_S)
        except (TimeoutError, RuntimeError):
            asking.cancel()
            return {}
