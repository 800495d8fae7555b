"""What scorers with a hosted model share: loading, closing, and the way through the engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rewardsvc.errors import ScorerUnusableError
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers._loading import load_tokenizer, max_length, pad_id, vocab_size
from rewardsvc.scorers._model_config import ModelConfig
from rewardsvc.scorers._text import SampleEncoder
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.scorer import Scorer

if TYPE_CHECKING:
    from rewardsvc.engine.batcher import Batcher
    from rewardsvc.engine.torch_backend import PaddedTorchBackend, Reading
    from rewardsvc.engine.types import Answer, Backend, Encoded

T = TypeVar("T")


class ModelScorer(Scorer):
    """A scorer in front of one model on one device."""

    def __init__(self, config: ModelConfig, env: BuildEnv) -> None:
        tokenizer = config.tokenizer and env.path(config.tokenizer)
        self._source = config.model_copy(
            update={"model": env.path(config.model), "tokenizer": tokenizer}
        )
        self._config = config
        self._env = env
        self._batcher: Batcher | None = None
        self._encoder: SampleEncoder | None = None
        self._max_length = 0
        self._version = ""

    @property
    def version(self) -> str:
        """The model's name and a digest of weights, tokenizer and configuration."""
        return self._version

    @property
    def encoder(self) -> SampleEncoder:
        """Turns samples into tokens; there after `start`."""
        if self._encoder is None:
            raise ScorerUnusableError(f"{self._env.name}: used before it was started")
        return self._encoder

    async def start(self) -> None:
        """Loads model and tokenizer."""
        self._batcher = await self._env.engine.add_model(
            self._env.name, self._load, device=self._config.device
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
        checkpoint = Checkpoint.find(
            self._source.model,
            revision=self._source.revision,
            with_code=self._source.trust_remote_code,
        )
        tokenizer = load_tokenizer(self._source, checkpoint)
        model, reading = self._load_reading(checkpoint, tokenizer, device)
        settings = self._config.model_dump_json(exclude={"model", "tokenizer", "device"})
        self._version = f"{Path(self._config.model).name}@{checkpoint.digest(settings)}"
        self._max_length = max_length(self._source, model, tokenizer)
        self._encoder = SampleEncoder(
            tokenizer,
            self._source,
            max_length=self._max_length,
            vocab_size=vocab_size(model),
            pair=self._is_pair(model),
        )
        return padded_backend(model, reading, device)

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
    """The backend for a model. The one place that chooses how batches are computed."""
    from rewardsvc.engine.torch_backend import PaddedTorchBackend

    return PaddedTorchBackend(reading, device=device, pad_id=pad_id(model))
