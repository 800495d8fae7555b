"""From a torch model and the way it is read to an ONNX graph, checked against the original.

Shape letters: B rows, T padded length, N positions of interest in all rows, C numbers per position.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardsvc.engine.onnx.folder import MODEL_FILE
from rewardsvc.engine.types import Encoded
from rewardsvc.errors import ConfigError

if TYPE_CHECKING:
    from rewardsvc.engine.types import Backend

DEFAULT_OPSET = 18
"""From 23 on there are operators for attention and rotary embeddings, but ONNX Runtime's refuse the
rotary tables of a batch (tried with 1.31), and encoders gain less than a tenth."""

EXAMPLE_ROWS = 3
EXAMPLE_LENGTH = 11
"""Of the example that is traced; both stay free in the graph. Unlike each other and 1, which the
tracer would take for constants."""

CHECKED_SHAPES = ((1, 1), (1, 7), (2, 33), (5, 16))
"""Rows and longest row of the batches that the graph is checked with."""

TOLERANCE = 1e-3
"""Largest difference, relative to the largest number of the batch, between graph and model."""

NUM_INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")

Reading = Callable[[Any], Any]


def export_graph(model: Any, reading: Reading, folder: Path, *, pair: bool, opset: int) -> None:
    """Writes `model.onnx` into a folder that exists.

    Args:
        model: The transformers model, float32 or float16, on the CPU, in evaluation mode.
        reading: How it is read: a `rewardsvc.engine.torch_backend.Reading`.
        folder: Where to.
        pair: Whether the graph takes `token_type_ids`.
        opset: Of the graph.

    Raises:
        ConfigError: If the exporter cannot express the model, or is not installed.
    """
    import torch

    _check_exporter()
    names = [*NUM_INPUT_NAMES[: 3 if pair else 2], "rows", "columns"]
    lengths = np.linspace(EXAMPLE_LENGTH, 4, EXAMPLE_ROWS).astype(int)
    mask_BT = torch.from_numpy((np.arange(EXAMPLE_LENGTH) < lengths[:, None]).astype(np.int64))
    values = {
        "input_ids": torch.ones_like(mask_BT),
        "attention_mask": mask_BT,
        "token_type_ids": torch.zeros_like(mask_BT),
        "rows": torch.arange(EXAMPLE_ROWS),
        "columns": torch.from_numpy(lengths.astype(np.int64)) - 1,
    }
    free = torch.export.Dim.DYNAMIC
    axes = {name: ({0: free, 1: free} if name in NUM_INPUT_NAMES else {0: free}) for name in names}
    exporter_log = logging.getLogger("torch.onnx._internal.exporter")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of the exporter about its own insides
            program = torch.onnx.export(
                _as_module(model, reading, pair=pair),
                tuple(values[name] for name in names),
                input_names=names,
                output_names=["numbers"],
                opset_version=opset,
                dynamic_shapes=(tuple(axes[name] for name in names),),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # of many kinds, and all of them mean the same
        raise ConfigError(
            f"model: {type(model).__name__} cannot be exported to ONNX (opset {opset}): "
            f"{_first_line(error)}"
        ) from error
    finally:
        exporter_log.setLevel(level)
    assert program is not None
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    from rewardsvc.engine.onnx.quantise import MAX_PROTO_BYTES

    program.save(str(folder / MODEL_FILE), external_data=num_bytes > MAX_PROTO_BYTES)


def _first_line(error: BaseException) -> str:
    """What the exporter stumbled over: the exceptions around it tell how to ask its authors."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _check_exporter() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"export-onnx needs {error.name}, which is not installed; `pip install "
            "'rewardsvc[onnx]'`"
        ) from None


def _as_module(model: Any, reading: Reading, *, pair: bool) -> Any:
    """A torch module whose inputs and output are those of the graph."""
    import torch
    from torch import Tensor

    from rewardsvc.engine.torch_backend import TensorBatch

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model  # so that its weights are the graph's

        def forward(self, *arrays: Tensor) -> Tensor:
            *inputs, rows, columns = arrays
            names = NUM_INPUT_NAMES[: len(inputs)]
            batch = TensorBatch(
                items=(), inputs=dict(zip(names, inputs, strict=True)), rows=rows, columns=columns
            )
            numbers: Tensor = reading(batch)
            return numbers.float()

    return Graph().eval()


def check_graph(exact: Backend, exported: Backend, *, vocab_size: int, max_length: int) -> float:
    """Compares two backends on random batches of several shapes, with padding and without.

    Returns:
        The largest difference, relative to the largest number of its batch.

    Raises:
        ConfigError: If it is above `TOLERANCE`.
    """
    rng = np.random.default_rng(0)
    worst = 0.0
    for num_rows, longest in CHECKED_SHAPES:
        batch = random_batch(rng, num_rows, min(longest, max_length), vocab_size)
        ours = np.concatenate([output.ravel() for output in exported.run(batch)])
        theirs = np.concatenate([output.ravel() for output in exact.run(batch)])
        scale = max(float(np.abs(theirs).max()), 1e-6)
        worst = max(worst, float(np.abs(ours - theirs).max()) / scale)
    if not worst <= TOLERANCE:
        raise ConfigError(
            f"the exported graph's numbers differ from the model's by {worst:.1e} of their size; "
            "it must not be served. Try another --opset"
        )
    return worst


def random_batch(
    rng: np.random.Generator, num_rows: int, longest: int, vocab_size: int
) -> Sequence[Encoded]:
    """Rows of random tokens, the first of the full length; read at the last token and at others."""
    batch = []
    for row in range(num_rows):
        length = longest if row == 0 else int(rng.integers(1, longest + 1))
        others = rng.random(length - 1) < 0.2
        batch.append(
            Encoded(
                token_ids=rng.integers(0, vocab_size, length).astype(np.int32),
                positions=np.append(np.flatnonzero(others), length - 1).astype(np.int32),
            )
        )
    return batch
