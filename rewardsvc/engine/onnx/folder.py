"""An exported model on disk, and the small file that says how it is read.

    model.onnx            the graph; large weights in model.onnx.data beside it
    rewardsvc-onnx.json   `Description`
    config.json           of the checkpoint that was exported, as are the tokenizer's files

The graph takes int64 `input_ids`, `attention_mask` and, for text pairs, `token_type_ids` [B, T],
padded on the right, and the places of interest, `rows` and `columns` [N]; it gives `numbers`, float
[N, C]. Where the numbers do not depend on the column (an encoder's own pooler), the exporter drops
that input.

Shape letters: B rows, T padded length, N positions of interest in all rows, C numbers per position.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewardsvc.errors import ConfigError

MODEL_FILE = "model.onnx"
DESCRIPTION_FILE = "rewardsvc-onnx.json"
FORMAT_VERSION = 1

DIGEST_CHARS = 12
NUM_BLOCKS = 64
BLOCK_BYTES = 4096
"""So much of each file goes into the digest: an optimiser step moves all weights, so a sample that
is spread over the file sees it."""


class Agreement(BaseModel):
    """How the ranks of an approximate model's scores agree with the exact model's.

    Attributes:
        num_samples: Samples compared.
        spearman: Correlation of ranks, from -1 to 1; NaN if all scores are alike.
        kendall: Kendall's tau-b, from -1 to 1.
        pairwise: Share of pairs, unequal by the exact model, that are ordered the same.
        max_difference: Largest difference of two scores, in units of the scores.
        deviation: Standard deviation of the exact scores, to compare that with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_samples: int
    spearman: float
    kendall: float
    pairwise: float
    max_difference: float
    deviation: float


class Description(BaseModel):
    """How an exported model is read.

    Attributes:
        format_version: Of this file.
        scorer: The type that it was exported for: "orm" or "prm".
        head: What is read, in the words of that scorer's `head` field.
        head_tokens: For `head: causal_lm`, the good and the bad token's id.
        precision: What the graph computes in.
        num_outputs: C.
        max_length: In tokens.
        vocab_size: Token ids are below this.
        pad_id: Fills rows up.
        pair: Whether it takes `token_type_ids`: prompt and completion are a text pair.
        opset: Of the graph.
        source: Name and digest of the checkpoint.
        recipe: Of the published model that it is, or what the configuration said of that: "auto" if
            it is none that is known. An export is not known by its name any more.
        agreement: Of an int8 graph with the exact model; None for others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    scorer: str
    head: str
    head_tokens: tuple[int, ...] = ()
    precision: str
    num_outputs: int = Field(ge=1)
    max_length: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    pad_id: int = Field(ge=0)
    pair: bool
    opset: int
    source: str
    recipe: str = "auto"
    agreement: Agreement | None = None


class OnnxFolder:
    """A folder that `rewardsvc export-onnx` wrote.

    Attributes:
        folder: Where it is.
        description: How its model is read.
    """

    def __init__(self, folder: Path, description: Description) -> None:
        self.folder = folder
        self.description = description

    @classmethod
    def open(cls, model: str) -> OnnxFolder:
        """The export at a path.

        Raises:
            ConfigError: If it is no such folder; says how to make one.
        """
        folder = Path(model)
        missing = [n for n in (DESCRIPTION_FILE, MODEL_FILE) if not (folder / n).is_file()]
        if missing:
            raise ConfigError(
                f"model: {model!r} has no {' and no '.join(missing)}, which backend: onnx needs; "
                "export the model with `rewardsvc export-onnx`, or remove backend: onnx"
            )
        file = folder / DESCRIPTION_FILE
        try:
            description = Description.model_validate_json(file.read_text("utf-8"))
        except (OSError, ValidationError) as error:
            raise ConfigError(f"model: {file} cannot be read: {error}") from None
        if description.format_version != FORMAT_VERSION:
            raise ConfigError(
                f"model: {file} has format_version {description.format_version}, and this version "
                f"reads {FORMAT_VERSION}; export the model again"
            )
        return cls(folder, description)

    @property
    def model_file(self) -> Path:
        """The graph."""
        return self.folder / MODEL_FILE

    def digest(self, *extra: str) -> str:
        """Changes when the weights, the description, the tokenizer or `extra` change."""
        digest = hashlib.sha256("\0".join(extra).encode())
        for file in sorted({*self.folder.glob("*.json"), *self.folder.glob("*.jinja")}):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        for file in sorted(self.folder.glob(f"{MODEL_FILE}*")):
            digest.update(file.name.encode() + b"\0" + _sampled(file))
        return digest.hexdigest()[:DIGEST_CHARS]


def _sampled(file: Path) -> bytes:
    """The file's size, and blocks of it at equal distances."""
    size = file.stat().st_size
    blocks = [str(size).encode()]
    with file.open("rb") as data:
        for i in range(NUM_BLOCKS):
            data.seek(i * max(0, size - BLOCK_BYTES) // max(1, NUM_BLOCKS - 1))
            blocks.append(data.read(BLOCK_BYTES))
    return b"\0".join(blocks)
