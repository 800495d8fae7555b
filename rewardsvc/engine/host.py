"""`EngineHost`: the devices of this process, their threads, and the batchers of its models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rewardsvc.engine.batcher import Batcher
from rewardsvc.engine.device import Device, resolve_device
from rewardsvc.engine.observe import EngineObserver, NullObserver
from rewardsvc.engine.reuse import CacheSettings
from rewardsvc.engine.settings import EngineSettings
from rewardsvc.engine.types import Backend
from rewardsvc.errors import NotServingError

__all__ = ["EngineHost", "EngineSettings"]


class EngineHost:
    """Owns what models share. Makes nothing before the first model is added; imports no torch.

    Belongs to one event loop, the one that `add_model` is first awaited on.
    """

    def __init__(
        self,
        settings: EngineSettings | None = None,
        observer: EngineObserver | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self._observer: EngineObserver = observer or NullObserver()
        self._devices: dict[str, Device] = {}
        self._batchers: list[Batcher] = []
        # One model at a time: loading two at once doubles the peak of host memory, and
        # transformers' lazy imports are not safe from several threads.
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")
        self._tokenizers = ThreadPoolExecutor(
            max_workers=self.settings.tokenizer_threads, thread_name_prefix="tokenize"
        )
        self._closed = False

    async def add_model(
        self,
        name: str,
        load: Callable[[str], Backend],
        *,
        device: str = "auto",
        cache: CacheSettings | None = None,
    ) -> Batcher:
        """Loads a model and returns the batcher in front of it.

        Args:
            name: The scorer's name, for metrics and logs.
            load: Gets the full name of the device, returns the model on it; called on a thread of
                its own.
            device: As in `EngineSettings.device`; "auto" is the settings' device.
            cache: Keeps answers of identical samples; None: not.

        Raises:
            ConfigError: If there is no such device.
            NotServingError: If the host is closed.
            Exception: Whatever `load` raises.
        """
        self._refuse_if_closed()
        wanted = self.settings.device if device == "auto" else device

        def resolve_and_load() -> tuple[str, Backend]:
            full_name = resolve_device(wanted)
            return full_name, load(full_name)

        loop = asyncio.get_running_loop()
        full_name, backend = await loop.run_in_executor(self._loader, resolve_and_load)
        self._refuse_if_closed()
        batcher = Batcher(
            name,
            backend,
            device=self._device(full_name),
            encoders=self._tokenizers,
            settings=self.settings,
            observer=self._observer,
            cache=cache,
        )
        # The closed ones would keep their models in memory.
        self._batchers = [b for b in self._batchers if not b.is_closed] + [batcher]
        return batcher

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise NotServingError("the engine is closed")

    def _device(self, name: str) -> Device:
        if name not in self._devices:
            self._devices[name] = Device(name, num_torch_threads=self.settings.num_torch_threads)
        return self._devices[name]

    async def close(self) -> None:
        """Closes all models, each after its work in flight (at most `drain_s`), and all threads."""
        self._closed = True
        await asyncio.gather(*(batcher.close() for batcher in self._batchers))
        for device in self._devices.values():
            device.close()
        self._tokenizers.shutdown(wait=False, cancel_futures=True)
        self._loader.shutdown(wait=False, cancel_futures=True)
