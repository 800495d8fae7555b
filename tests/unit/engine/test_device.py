"""Names of devices."""

from __future__ import annotations

import pytest
import torch

from rewardsvc.engine.device import resolve_device
from rewardsvc.errors import ConfigError


def test_auto_is_the_first_cuda_device_or_the_cpu() -> None:
    assert resolve_device("auto") == ("cuda:0" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", ""])
def test_unknown_device_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="use auto, cpu, cuda"):
        resolve_device(name)


def test_device_that_is_not_there_is_refused_with_how_many_there_are() -> None:
    with pytest.raises(ConfigError, match=r"torch sees \d+ CUDA devices"):
        resolve_device("cuda:99")
