"""Checkpoints on disk: where they are, which tensors they hold, and a digest of their contents."""

from __future__ import annotations

import difflib
import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rewardsvc.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE_BYTES = 4096
"""How much of each tensor goes into the digest."""

BIN_SAMPLES = 512
"""How many places of a pickled file go into it."""

DIGEST_CHARS = 12

SEPARATE_HEAD = "value_head.safetensors"
"""Where LLaMA-Factory keeps the value head, beside the model's own files."""

BIN_FILES = ("pytorch_model*.bin", "*.pt")
"""Weights as PyTorch pickles them."""

HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
HUB_CODE = "*.py"


class Checkpoint:
    """A folder with a model in transformers' layout.

    Attributes:
        folder: Where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def find(
        cls, model: str, *, revision: str | None, with_code: bool, allow_bin: bool = False
    ) -> Checkpoint:
        """The checkpoint behind a folder's path or a hub id; the latter is downloaded.

        Raises:
            ConfigError: If there is no such thing, or it has no weights that may be read.
        """
        folder = Path(model)
        if not folder.is_dir():
            if folder.is_absolute():
                raise ConfigError(f"model: {model!r} does not exist or is not a folder")
            patterns = (*([HUB_CODE] if with_code else ()), *(BIN_FILES if allow_bin else ()))
            folder = _download(model, revision, patterns)
        found = cls(folder)
        if found.weight_files or (allow_bin and found.bin_files):
            return found
        fix = (
            "convert its weights, for instance with model.save_pretrained(folder), or set "
            "allow_bin: true to unpickle tensors alone"
            if found.bin_files
            else "convert its weights, for instance with model.save_pretrained(folder)"
        )
        raise ConfigError(f"model: {model!r} has no *.safetensors file; {fix}")

    @cached_property
    def bin_files(self) -> list[Path]:
        """The pickled files, if there are no others."""
        if self.weight_files:
            return []
        return sorted({file for pattern in BIN_FILES for file in self.folder.glob(pattern)})

    @cached_property
    def weight_files(self) -> list[Path]:
        """The safetensors files, sorted; where there is an index, its files and a separate head."""
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            missing = [name for name in names if not (self.folder / name).is_file()]
            if missing:
                raise ConfigError(f"model: {self.folder} lacks {', '.join(missing)} of its index")
            if (self.folder / SEPARATE_HEAD).is_file():
                names.append(SEPARATE_HEAD)
            return [self.folder / name for name in names]
        return sorted(self.folder.glob("*.safetensors"))

    @cached_property
    def tensor_files(self) -> dict[str, Path]:
        """Tensor name → the file that holds it."""
        held = {name: file for file in self.weight_files for name, *_ in _tensors(file)}
        return held | {name: file for file in self.bin_files for name in _unpickled(file, "meta")}

    def read(self, name: str, file: str | None = None) -> Tensor:
        """One tensor, on the CPU.

        Args:
            name: In this file, or in one of the checkpoint's own.
            file: A safetensors file; below the checkpoint's folder if the path is relative.

        Raises:
            ConfigError: If there is no such tensor.
        """
        from safetensors import safe_open

        if file is not None:
            path = self.folder / file
            if not path.is_file():
                raise ConfigError(f"head.file: {str(path)!r} does not exist")
            held = [known for known, *_ in _tensors(path)]
        else:
            held = sorted(self.tensor_files)
            path = self.tensor_files.get(name, self.folder)
        if name not in held:
            close = difflib.get_close_matches(name, held, n=3)
            raise ConfigError(
                f"model: {path} has no tensor {name!r}"
                + (f"; did you mean {' or '.join(map(repr, close))}?" if close else "")
            )
        if path in self.bin_files:
            return _unpickled(path, "cpu")[name]
        with safe_open(path, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor

    def read_all(self) -> dict[str, Tensor]:
        """All tensors, on the CPU."""
        found: dict[str, Tensor] = {}
        for file in self.bin_files:
            found |= _unpickled(file, "cpu")
        return found or {name: self.read(name) for name in self.tensor_files}

    def digest(self, *extra: str) -> str:
        """Changes when the weights are trained on, or config, tokenizer or `extra` change.

        Reads the start of each tensor, not all of it: an optimiser step moves them all. Does not
        depend on where the folder is or when it was written, so replicas agree.
        """
        digest = hashlib.sha256("\0".join(extra).encode())
        for file in sorted({*self.folder.glob("*.json"), *self.folder.glob("*.jinja")}):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        for file in self.weight_files:
            digest.update(file.name.encode())
            with file.open("rb") as data:
                for name, start, stop in _tensors(file):
                    data.seek(start)
                    sample = data.read(min(stop - start, SAMPLE_BYTES))
                    digest.update(f"{name}\0{stop - start}\0".encode() + sample)
        for file in self.bin_files:
            digest.update(file.name.encode())
            size = file.stat().st_size
            with file.open("rb") as data:
                for start in range(0, size, max(1, size // BIN_SAMPLES)):
                    data.seek(start)
                    digest.update(data.read(SAMPLE_BYTES))
        return digest.hexdigest()[:DIGEST_CHARS]


def _tensors(file: Path) -> Iterator[tuple[str, int, int]]:
    """Name, start and stop of each tensor in a safetensors file, in bytes from its beginning.

    Source: https://github.com/huggingface/safetensors#format
    """
    try:
        with file.open("rb") as data:
            (header_bytes,) = struct.unpack("<Q", data.read(8))
            header = json.loads(data.read(header_bytes))
    except (OSError, ValueError, struct.error) as error:
        raise ConfigError(f"model: {file} is not a safetensors file: {error}") from None
    for name, entry in sorted(header.items()):
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            yield name, 8 + header_bytes + start, 8 + header_bytes + stop


def _unpickled(file: Path, device: str) -> dict[str, Tensor]:
    """The tensors of a file that PyTorch wrote; nothing else is unpickled.

    Raises:
        ConfigError: If it is not a mapping of names to tensors, or holds anything else.
    """
    import torch

    try:
        found = torch.load(file, map_location=device, weights_only=True, mmap=True)
    except Exception as error:  # of many kinds, and all of them mean the same
        raise ConfigError(f"model: {file} cannot be read as tensors alone: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"model: {file} holds a {type(found).__name__}, not tensors by name")
    return {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _download(model: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [*HUB_FILES, *patterns]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except Exception as error:  # a dozen kinds: network, not found, gated, malformed id
        raise ConfigError(
            f"model: {model!r} is neither a folder here nor can it be had from the hub: {error}"
        ) from None
