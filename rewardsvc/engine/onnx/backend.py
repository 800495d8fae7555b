"""The ONNX Runtime backend: padded rows of similar length through an exported graph.

Needs neither torch nor the checkpoint. Nothing but the graph's standard and ONNX Runtime's own
operators can run: libraries of custom operators, which are native code, are never registered.

Shape letters: B rows, T padded length, N positions of interest in all rows, C numbers per position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardsvc.engine.onnx.folder import OnnxFolder
from rewardsvc.engine.onnx.shape import CpuShape
from rewardsvc.engine.shape import PaddedShape
from rewardsvc.engine.types import BatchShape, Encoded, Output
from rewardsvc.errors import ConfigError

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

LOG_ERRORS = 3
"""ONNX Runtime's severity from which on it writes to stderr."""

OUT_OF_MEMORY = ("Failed to allocate memory", "bad allocation", "out of memory")
"""What its errors say then; they have no class of their own."""


class OnnxBackend:
    """See the module's text, and `rewardsvc.engine.types.Backend` for the methods.

    Args:
        folder: What to serve.
        device: "cpu", or "cuda:0" and so on.
        num_threads: Of one forward pass on the CPU; 0 leaves ONNX Runtime's own choice.

    Raises:
        ConfigError: If ONNX Runtime or its CUDA provider is not installed, or the graph cannot be
            loaded or is not of the described form.
    """

    def __init__(self, folder: OnnxFolder, *, device: str, num_threads: int = 0) -> None:
        self._runtime = import_onnxruntime(device)
        self._pad_id = folder.description.pad_id
        self._on_cpu = device == "cpu"
        self._shape: BatchShape = CpuShape() if self._on_cpu else PaddedShape()
        self._session: Any = self._open(folder, device, num_threads)
        self._inputs = {i.name for i in self._session.get_inputs()}
        self._shrink_next = False
        _check_signature(self._session, folder)

    def _open(self, folder: OnnxFolder, device: str, num_threads: int) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = LOG_ERRORS
        options.intra_op_num_threads = num_threads
        # Threads that spin while they wait would take the cores from the event loop, and from the
        # other models.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = [CPU_PROVIDER]
        if not self._on_cpu:
            providers.insert(0, (CUDA_PROVIDER, {"device_id": int(device.partition(":")[2] or 0)}))
        try:
            session = self._runtime.InferenceSession(
                str(folder.model_file), options, providers=providers
            )
        except Exception as error:  # of many kinds, and all of them mean the same
            raise ConfigError(
                f"model: {folder.model_file} cannot be loaded by ONNX Runtime: {error}"
            ) from error
        if not self._on_cpu and session.get_providers()[0] != CUDA_PROVIDER:
            raise ConfigError(
                f"device: {device!r}, but ONNX Runtime could not start its CUDA provider and would "
                "compute on the CPU; its log says which library it misses"
            )
        return session

    @property
    def shape(self) -> BatchShape:
        """Rows of similar length; on the CPU few, and nearly equal."""
        return self._shape

    def run(self, batch: Sequence[Encoded]) -> list[Output]:
        """One output per item."""
        assert self._session is not None, "the backend is closed"
        feed = padded_feed(batch, self._pad_id)
        options = self._runtime.RunOptions()
        if self._shrink_next:
            self._shrink_next = False
            arena = "cpu:0" if self._on_cpu else "gpu:0"
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)
        kept = {name: array for name, array in feed.items() if name in self._inputs}
        try:
            (numbers,) = self._session.run(None, kept, options)
        except Exception as error:
            if any(text in str(error) for text in OUT_OF_MEMORY):
                raise MemoryError(str(error)) from None
            raise
        bounds = np.cumsum([len(item.positions) for item in batch])[:-1]
        return np.split(np.asarray(numbers, np.float32), bounds)

    def recover(self) -> None:
        """The next pass gives what the arena does not need back."""
        self._shrink_next = True

    def close(self) -> None:
        """Drops the model."""
        self._session = None


def padded_feed(batch: Sequence[Encoded], pad_id: int) -> dict[str, NDArray[np.int64]]:
    """All inputs that a graph may have, by name; see `rewardsvc.engine.onnx.folder`."""
    num_rows, length = len(batch), max(map(len, batch))
    ids_BT = np.full((num_rows, length), pad_id, np.int64)
    mask_BT = np.zeros((num_rows, length), np.int64)
    types_BT = np.zeros((num_rows, length), np.int64)
    for row, item in enumerate(batch):
        ids_BT[row, : len(item)] = item.token_ids
        mask_BT[row, : len(item)] = 1
        if item.token_type_ids is not None:
            types_BT[row, : len(item)] = item.token_type_ids
    counts = [len(item.positions) for item in batch]
    return {
        "input_ids": ids_BT,
        "attention_mask": mask_BT,
        "token_type_ids": types_BT,
        "rows": np.repeat(np.arange(num_rows), counts),
        "columns": np.concatenate([item.positions for item in batch]).astype(np.int64),
    }


def import_onnxruntime(device: str) -> Any:
    """The package.

    Raises:
        ConfigError: If it is not installed, or not for this device; names the extra.
    """
    extra = "onnx" if device == "cpu" else "onnx-gpu"
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"backend: onnx needs onnxruntime, which is not installed ({error}); "
            f"`pip install 'rewardsvc[{extra}]'`"
        ) from None
    if device != "cpu" and CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise ConfigError(
            f"device: {device!r}, but the installed onnxruntime has no CUDA provider; uninstall it "
            "and `pip install 'rewardsvc[onnx-gpu]'`, or set device: cpu"
        )
    return onnxruntime


def _check_signature(session: Any, folder: OnnxFolder) -> None:
    """Refuses a graph that is not what its description says."""
    allowed = {"input_ids", "attention_mask", "rows", "columns"}
    if folder.description.pair:
        allowed.add("token_type_ids")
    found = {i.name for i in session.get_inputs()}
    outputs = session.get_outputs()
    width = outputs[0].shape[-1] if len(outputs) == 1 else None
    if not {"input_ids", "rows"} <= found <= allowed or width != folder.description.num_outputs:
        raise ConfigError(
            f"model: {folder.model_file} takes {sorted(found)} and gives "
            f"{[(o.name, o.shape) for o in outputs]}, which is not what {folder.description.scorer}"
            " was exported as; export it again"
        )
