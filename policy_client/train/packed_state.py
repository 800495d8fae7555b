"""States of optimizers and random generators as JSON and tensors, exactly, and without pickle."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rewardsvc.policy_client.train.sharding import whole


def random_states() -> dict[str, Any]:
    """Of the global generators of torch, Python and numpy."""
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Brings the global generators back to `random_states`."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    if torch.cuda.is_available() and len(states.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON; its tensors move into `tensors`.

    JSON lacks tuples and keys of other types than text, so these, arrays and tensors become an
    object with one key that says what it is. Divided tensors are put together, for which all
    processes must call.

    Raises:
        ValueError: If there is something in it that cannot be held.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        key = str(len(tensors))
        tensors[key] = whole(value.detach()).cpu().contiguous().clone()
        return {"__tensor__": key}
    if isinstance(value, np.ndarray):
        return {"__array__": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return {"__tuple__": [pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [pack(item, tensors) for item in value]
    if isinstance(value, Mapping):
        return {"__dict__": [[pack(k, tensors), pack(v, tensors)] for k, v in value.items()]}
    raise ValueError(f"a checkpoint cannot hold {value!r} of type {type(value).__name__}")


def unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What `pack` was called on."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__array__" in value:
        return np.array(value["__array__"], dtype=value["dtype"])
    if "__tuple__" in value:
        return tuple(unpack(item, tensors) for item in value["__tuple__"])
    return {unpack(k, tensors): unpack(v, tensors) for k, v in value["__dict__"]}
