"""Model scorers and ONNX: how one is exported, and how an export is served.

An export stands for a checkpoint and the part of the scorer's configuration that says which head is
read. All the rest (templates, labels, step tokens, normalisation) is configuration as ever.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardsvc.engine.onnx.folder import (
    DESCRIPTION_FILE,
    MODEL_FILE,
    Agreement,
    Description,
    OnnxFolder,
)
from rewardsvc.engine.types import Answer, Encoded
from rewardsvc.errors import ConfigError
from rewardsvc.scorers._loading import pad_id, vocab_size
from rewardsvc.scorers._model_config import ModelConfig

if TYPE_CHECKING:
    from rewardsvc.engine.types import Backend
    from rewardsvc.scorers.orm import Orm
    from rewardsvc.scorers.prm import Prm
    from rewardsvc.scoring.types import Sample

CARRIED_FILES = ("*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt")
"""What goes with the graph: configuration and tokenizer."""

NOT_CARRIED = ("model.safetensors.index.json",)

NUM_SYNTHETIC = 256
MEAN_LOG_TOKENS = 4.3
SIGMA_LOG_TOKENS = 0.8
"""Synthetic samples are random tokens with log-normal lengths, a hundred tokens in the mean."""


def check_export(export: OnnxFolder, config: ModelConfig, *, pair: bool) -> None:
    """Compares a configuration with the export that it names.

    Raises:
        ConfigError: If a field does not fit it or has no meaning with it.
    """
    for field in ("dtype", "attention", "revision"):
        value = getattr(config, field)
        if value not in ("auto", None):
            raise ConfigError(f"{field}: {value!r} has no meaning with backend: onnx; leave it out")
    described = export.description
    if described.scorer != config.type:
        raise ConfigError(
            f"model: {config.model!r} was exported from a scorer of type {described.scorer}, not "
            f"{config.type}"
        )
    head = getattr(config, "head", "auto")
    if head not in ("auto", described.head):
        raise ConfigError(f"head: {head}, but the model was exported with head: {described.head}")
    if pair != described.pair:
        raise ConfigError(f"pair: {pair}, but the model was exported with pair: {described.pair}")
    if config.max_length is not None and config.max_length > described.max_length:
        raise ConfigError(
            f"max_length: {config.max_length}, but the model was exported with "
            f"{described.max_length}"
        )


def check_tokens(export: OnnxFolder, tokens: Sequence[int]) -> None:
    """Compares a configuration's good and bad token with those of the export.

    Raises:
        ConfigError: If they differ.
    """
    if tuple(tokens) != export.description.head_tokens:
        raise ConfigError(
            f"good_token, bad_token: ids {list(tokens)}, but the model was exported with "
            f"{list(export.description.head_tokens)}"
        )


def export_scorer(
    scorer: Orm | Prm, target: Path, *, precision: str, opset: int, samples: Sequence[Sample] = ()
) -> tuple[Description, float]:
    """Exports a scorer that has not been started; leaves nothing behind if that fails.

    Args:
        scorer: An `orm` or `prm`.
        target: A folder; made if need be, and must hold no export yet.
        precision: "float32" or "int8".
        opset: Of the graph.
        samples: What ranks are compared on, for int8; none: random tokens.

    Returns:
        The description, and the largest relative difference between float graph and model.

    Raises:
        ConfigError: If it cannot be exported, or the graph does not compute what the model does.
    """
    from rewardsvc.engine.onnx.backend import OnnxBackend
    from rewardsvc.engine.onnx.export import check_graph, export_graph
    from rewardsvc.engine.torch_backend import PaddedTorchBackend

    if (target / DESCRIPTION_FILE).exists():
        raise ConfigError(f"{target}: holds an export already; name another folder or remove it")
    loaded = scorer.load_checkpoint("cpu")
    head, head_tokens = scorer.head
    pair = scorer._is_pair(None)
    described = Description(
        scorer=scorer._config.type,
        head=head,
        head_tokens=head_tokens,
        precision="float32",
        num_outputs=1,
        max_length=scorer._max_length,
        vocab_size=vocab_size(loaded.model),
        pad_id=pad_id(loaded.model),
        pair=pair,
        opset=opset,
        source=scorer.version,
        recipe=scorer._source.recipe,
    )
    exact = PaddedTorchBackend(loaded.reading, device="cpu", pad_id=described.pad_id)
    (probe,) = exact.run([_ids([1], (0,), pair)])
    described = described.model_copy(update={"num_outputs": probe.shape[1]})
    with TemporaryDirectory(prefix="rewardsvc-onnx-") as scratch:
        made = Path(scratch)
        export_graph(loaded.model, loaded.reading, made, pair=pair, opset=opset)
        exported: Backend = OnnxBackend(OnnxFolder(made, described), device="cpu")
        worst = check_graph(
            exact, exported, vocab_size=described.vocab_size, max_length=described.max_length
        )
        if precision == "int8":
            from rewardsvc.engine.onnx.quantise import quantise

            small = made / "int8"
            small.mkdir()
            quantise(made, small)
            made = small
            approximate = OnnxBackend(OnnxFolder(made, described), device="cpu")
            items = [scorer._encode(sample) for sample in samples] or _synthetic(scorer, described)
            found = compare(scorer, exact, approximate, items)
            described = described.model_copy(update={"precision": precision, "agreement": found})
        _write(target, made, described, loaded.checkpoint.folder, loaded.tokenizer)
    return described, worst


def compare(
    scorer: Orm | Prm, exact: Backend, approximate: Backend, items: Sequence[Encoded]
) -> Agreement:
    """Agreement of the values that callers would get."""
    from rewardsvc.engine.onnx.agreement import rank_agreement

    values = [
        np.asarray([_value(scorer, backend.run([item])[0]) for item in items])
        for backend in (exact, approximate)
    ]
    return rank_agreement(*values)


def _value(scorer: Orm | Prm, answer: Answer) -> float:
    score = scorer._scored(answer)
    if score.value is None:
        raise ConfigError(f"the model gives no score: {score.error}")
    return score.value


def _synthetic(scorer: Orm | Prm, described: Description) -> list[Encoded]:
    """Random tokens, read where the scorer reads its samples."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(MEAN_LOG_TOKENS, SIGMA_LOG_TOKENS, NUM_SYNTHETIC).astype(int)
    found = []
    for length in np.clip(lengths, 2, described.max_length):
        ids = rng.integers(0, described.vocab_size, length).astype(np.int32)
        found.append(_ids(*scorer.as_sample(ids), described.pair))
    return found


def _ids(ids: Any, positions: Sequence[int], pair: bool) -> Encoded:
    array = np.asarray(ids, np.int32)
    types = np.zeros_like(array) if pair else None
    return Encoded(token_ids=array, positions=np.asarray(positions, np.int32), token_type_ids=types)


def _write(
    target: Path, made: Path, described: Description, checkpoint: Path, tokenizer: Any
) -> None:
    """Puts everything in place, the description last: a folder without it is no export."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in CARRIED_FILES:
        for file in checkpoint.glob(pattern):
            if file.name not in NOT_CARRIED:
                shutil.copyfile(file, target / file.name)
    if tokenizer is not None:
        tokenizer.save_pretrained(target)
    for file in made.glob(f"{MODEL_FILE}*"):
        shutil.copyfile(file, target / file.name)
    text = described.model_dump_json(indent=2) + "\n"
    (target / DESCRIPTION_FILE).write_text(text, "utf-8")
