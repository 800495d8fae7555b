"""A run that is told to stop: it saves where it is, in the middle of a step too, and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class PreemptedError(RuntimeError):
    """The run was told to stop, and has saved a checkpoint to go on from."""


class StopFlag:
    """Whether the process has been sent SIGTERM, as schedulers do before they take a machine."""

    def __init__(self) -> None:
        """Not yet."""
        self.is_set = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hears signals inside, if this is the main thread; others have no handlers of signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def heard(_: int, __: FrameType | None) -> None:
            self.is_set = True

        before = signal.signal(signal.SIGTERM, heard)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
