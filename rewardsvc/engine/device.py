"""A device and its one forward thread, shared by the models on it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from rewardsvc.errors import ConfigError

T = TypeVar("T")

BATCHES_IN_FLIGHT = 2
"""One that computes and one behind it, so that the device never waits for the event loop. More
would only take items out of the queue before their order is settled."""


class Device:
    """One device.

    Attributes:
        name: "cpu", "cuda:0", …
        slots: Held by a batch from before it leaves its queue until it is computed. Waiters are
            served in turn, which shares the device between its models.
    """

    def __init__(self, name: str, *, num_torch_threads: int = 0) -> None:
        self.name = name
        self.slots = asyncio.Semaphore(BATCHES_IN_FLIGHT)
        self._thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix=f"forward-{name}",
            initializer=partial(_set_torch_threads, num_torch_threads),
        )

    async def run(self, work: Callable[[], T]) -> T:
        """Runs `work` on the device's thread, after what was given to it before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def run_detached(self, work: Callable[[], object]) -> None:
        """Runs `work` there as well, without anybody waiting for it."""
        self._thread.submit(work)

    def close(self) -> None:
        """Ends the thread after what was given to it; does not wait for it."""
        self._thread.shutdown(wait=False)


def _set_torch_threads(num_threads: int) -> None:
    """OpenMP keeps the number per thread, so it is set on the thread that computes."""
    if num_threads:
        import torch

        torch.set_num_threads(num_threads)


def resolve_device(name: str) -> str:
    """The full name of a device: "auto" and "cuda" get their index. Imports torch if need be.

    "auto:3" is the fourth CUDA device, counted round where there are fewer, or the CPU.

    Raises:
        ConfigError: If the name is unknown, or this machine has no such device.
    """
    if name == "cpu":
        return name
    if not re.fullmatch(r"(auto|cuda)(:\d+)?", name):
        raise ConfigError(f"device: {name!r} is unknown; use auto, cpu, cuda or cuda:<index>")
    import torch

    num_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(name.partition(":")[2] or 0)
    if name.startswith("auto"):
        return f"cuda:{index % num_cuda}" if num_cuda else "cpu"
    if index >= num_cuda:
        raise ConfigError(
            f"device: {name!r} does not exist here; torch sees {num_cuda} CUDA devices"
        )
    return f"cuda:{index}"
