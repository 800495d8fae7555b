"""Checkpoints on disk: where they are, which tensors they hold, and a digest of their contents."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rewardsvc.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE_BYTES = 4096
"""How much of each tensor goes into the digest."""

DIGEST_CHARS = 12

SEPARATE_HEAD = "value_head.safetensors"
"""Where LLaMA-Factory keeps the value head, beside the model's own files."""

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
    def find(cls, model: str, *, revision: str | None, with_code: bool) -> Checkpoint:
        """The checkpoint behind a folder's path or a hub id; the latter is downloaded.

        Raises:
            ConfigError: If there is no such thing, or it has no safetensors weights.
        """
        folder = Path(model)
        if not folder.is_dir():
            if folder.is_absolute():
                raise ConfigError(f"model: {model!r} does not exist or is not a folder")
            folder = _download(model, revision, with_code)
        found = cls(folder)
        if not found.weight_files:
            raise ConfigError(
                f"model: {model!r} has no *.safetensors file; convert its weights, for instance "
                "with model.save_pretrained(folder)"
            )
        return found

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
        return {name: file for file in self.weight_files for name, *_ in _tensors(file)}

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU. `name` is in `tensor_files`."""
        from safetensors import safe_open

        with safe_open(self.tensor_files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

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


def _download(model: str, revision: str | None, with_code: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*HUB_FILES, *([HUB_CODE] if with_code else [])]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:  # a dozen kinds: network, not found, gated, malformed id
        raise ConfigError(
            f"model: {model!r} is neither a folder here nor can it be had from the hub: {error}"
        ) from None
