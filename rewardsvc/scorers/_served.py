"""What scorers with a hosted model share: loading, closing, and the way through the engine."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rewardsvc.errors import ConfigError, ScorerUnusableError
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers._loading import load_tokenizer, max_length, pad_id, vocab_size
from rewardsvc.scorers._model_config import WHERE, ModelConfig
from rewardsvc.scorers._text import SampleEncoder
from rewardsvc.scorers.known import AUTO, with_recipe
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.scorer import Scorer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rewardsvc.engine.batcher import Batcher
    from rewardsvc.engine.onnx.folder import OnnxFolder
    from rewardsvc.engine.torch_backend import PaddedTorchBackend, Reading
    from rewardsvc.engine.types import Answer, Backend, Encoded

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """A checkpoint in memory.

    Attributes:
        checkpoint: Where it is from.
        tokenizer: None if it has none.
        model: The transformers model, on its device.
        reading: How it is read.
    """

    checkpoint: Checkpoint
    tokenizer: Any
    model: Any
    reading: Reading


class ModelScorer(Scorer):
    """A scorer in front of one model on one device."""

    def __init__(self, config: ModelConfig, env: BuildEnv) -> None:
        tokenizer = config.tokenizer and env.path(config.tokenizer)
        self._given = config.model_copy(
            update={"model": env.path(config.model), "tokenizer": tokenizer}
        )
        self._source = self._given  # with the recipe's settings once the checkpoint is known
        self._config = config
        self._env = env
        self._batcher: Batcher | None = None
        self._encoder: SampleEncoder | None = None
        self._max_length = 0
        self._version = ""
        self._batching = ""
        self._head = ""  # which head is read, and of which tokens if it is a language model's:
        self._head_tokens: tuple[int, ...] = ()  # an export has no other

    @property
    def version(self) -> str:
        """The model's name and a digest of weights, tokenizer and configuration."""
        return self._version

    @property
    def batching(self) -> str:
        """How batches are computed, for people: "packed, shares prefixes"; "" before `start`."""
        return self._batching

    @property
    def encoder(self) -> SampleEncoder:
        """Turns samples into tokens; there after `start`."""
        if self._encoder is None:
            raise ScorerUnusableError(f"{self._env.name}: used before it was started")
        return self._encoder

    async def start(self) -> None:
        """Loads model and tokenizer."""
        self._batcher = await self._env.engine.add_model(
            self._env.name, self._load, device=self._config.device, cache=self._config.cache
        )

    async def close(self) -> None:
        """Finishes the work in flight and frees the model."""
        if self._batcher is not None:
            await self._batcher.close()

    async def _submit(self, inputs: Sequence[T], encode: Callable[[T], Encoded]) -> list[Answer]:
        if self._batcher is None:
            raise ScorerUnusableError(f"{self._env.name}: used before it was started")
        return await self._batcher.submit(inputs, encode)

    def _load(self, device: str) -> Backend:
        if self._source.backend == "onnx":
            return self._load_export(device)
        loaded = self.load_checkpoint(device)
        return self._choose_backend(loaded, device)

    def _choose_backend(self, loaded: Loaded, device: str) -> Backend:
        from rewardsvc.engine.cpu_feedforward import speed_up_feed_forward
        from rewardsvc.engine.cpu_linear import speed_up
        from rewardsvc.engine.packing.choice import Wishes, choose_backend

        if speed_up(loaded.model):
            speed_up_feed_forward(loaded.model)
            logger.info("%s: float32 layers compute through oneDNN", self._env.name)
        wishes = Wishes(
            attention=self._source.attention,
            deterministic=self._source.deterministic,
            max_length=self._max_length,
            pad_id=pad_id(loaded.model),
            pair=self._is_pair(loaded.model),
        )
        backend = choose_backend(loaded.model, loaded.reading, device=device, wishes=wishes)
        self._batching = str(backend.batching)
        level = logging.WARNING if backend.batching.reason else logging.INFO
        logger.log(level, "%s: batches are %s", self._env.name, self._batching)
        return backend

    def load_checkpoint(self, device: str) -> Loaded:
        """Loads model and tokenizer and makes this scorer ready to encode and read for them.

        Raises:
            ConfigError: If the checkpoint does not fit the configuration.
        """
        checkpoint = Checkpoint.find(
            self._source.model,
            revision=self._source.revision,
            with_code=self._source.trust_remote_code,
            allow_bin=self._source.allow_bin,
        )
        self._source = with_recipe(self._given, checkpoint)
        tokenizer = load_tokenizer(self._source, checkpoint)
        model, reading = self._load_reading(checkpoint, tokenizer, device)
        settings = self._source.model_dump_json(exclude={"model", "tokenizer", *WHERE})
        self._version = f"{Path(self._config.model).name}@{checkpoint.digest(settings)}"
        self._max_length = max_length(self._source, model, tokenizer)
        self._encoder = SampleEncoder(
            tokenizer,
            self._source,
            max_length=self._max_length,
            vocab_size=vocab_size(model),
            pair=self._is_pair(model),
            **self._guarding(),
        )
        return Loaded(checkpoint=checkpoint, tokenizer=tokenizer, model=model, reading=reading)

    def _load_export(self, device: str) -> Backend:
        from rewardsvc.engine.onnx.backend import OnnxBackend
        from rewardsvc.engine.onnx.folder import OnnxFolder
        from rewardsvc.scorers._onnx import check_export

        export = OnnxFolder.open(self._given.model)
        given = self._given
        if given.recipe == AUTO:
            given = given.model_copy(update={"recipe": export.description.recipe})
        self._source = with_recipe(given, Checkpoint(export.folder))
        check_export(export, self._source, pair=self._is_pair(None))
        tokenizer = load_tokenizer(self._source, Checkpoint(export.folder))
        self._use_export(export, tokenizer)
        settings = self._config.model_dump_json(exclude={"model", "tokenizer", *WHERE})
        self._version = f"{Path(self._config.model).name}@{export.digest(settings)}"
        self._max_length = self._source.max_length or export.description.max_length
        self._encoder = SampleEncoder(
            tokenizer,
            self._source,
            max_length=self._max_length,
            vocab_size=export.description.vocab_size,
            pair=export.description.pair,
            **self._guarding(),
        )
        if self._source.deterministic:
            raise ConfigError("deterministic: only with backend: torch")
        num_threads = self._env.engine.settings.num_torch_threads
        return OnnxBackend(export, device=device, num_threads=num_threads)

    def _use_export(self, export: OnnxFolder, tokenizer: Any) -> None:
        """Makes this scorer ready to read an export's numbers, as `_load_reading` does a model's.

        Raises:
            ConfigError: If the export does not fit the configuration.
        """
        raise ConfigError(f"backend: onnx serves orm and prm, not {self._config.type}")

    def as_sample(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.int32], Sequence[int]]:
        """Random tokens as a sample: with what the head needs in it, and where that is read."""
        return ids, (len(ids) - 1,)

    @property
    def head(self) -> tuple[str, tuple[int, ...]]:
        """Which head is read, as the configuration calls it, and the tokens it is read for."""
        return self._head, self._head_tokens

    def _guarding(self) -> dict[str, tuple[int, ...]]:
        """Tokens that texts must not produce (`control`), or may (`allowed`), besides special ones.

        See `rewardsvc.scorers._guard`. Asked for after the model is loaded.
        """
        return {}

    def _is_pair(self, model: Any) -> bool:
        """Whether prompt and completion are a text pair of this model."""
        return False

    @abstractmethod
    def _load_reading(
        self, checkpoint: Checkpoint, tokenizer: Any, device: str
    ) -> tuple[Any, Reading]:
        """The transformers model, and how it is read.

        Raises:
            ConfigError: If the checkpoint does not fit the configuration.
        """


def padded_backend(model: Any, reading: Reading, device: str) -> PaddedTorchBackend:
    """A backend to try a reading with, before it is known how batches will be computed."""
    from rewardsvc.engine.torch_backend import PaddedTorchBackend

    return PaddedTorchBackend(reading, device=device, pad_id=pad_id(model))
