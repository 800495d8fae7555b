"""`orm`: an outcome reward model, one number per sample.

Serves sequence-classification checkpoints of transformers, causal ones (read at the last *attended*
token, whatever the pad id) and encoders (their own pooler and head), and base models with a value
head of their own as OpenRLHF and TRL save them.

An empty completion is a legitimate sample and is scored: a policy may well say nothing. Only when
prompt and completion together have no token is there nothing to score: INVALID_SAMPLE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rewardsvc.engine.types import Answer, Encoded
from rewardsvc.errors import ConfigError, ItemError
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers._heads import find_head, load_head
from rewardsvc.scorers._loading import (
    check_same,
    has_architecture,
    load_model,
    model_settings,
    probe_ids,
)
from rewardsvc.scorers._model_config import ModelConfig
from rewardsvc.scorers._served import ModelScorer, padded_backend
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.types import Sample, Score

if TYPE_CHECKING:
    from rewardsvc.engine.torch_backend import Reading


class Normalization(BaseModel):
    """`(score - mean) / std`.

    Attributes:
        mean: Subtracted.
        std: Divided by; above 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: float
    std: float = Field(gt=0)


class OrmConfig(ModelConfig):
    """Configuration of `orm`.

    Attributes:
        head: Where the score comes from; "auto" looks at the checkpoint.
        value_head_prefix: Name of the head's tensors for `head: value_head`; None looks for it.
        label: Which label's logit is the score, for models with more than one.
        pair: Whether prompt and completion are a text pair, as for BERT-like cross-encoders.
        normalize: Applied to the score; "checkpoint" takes `mean` and `std` from `config.json`,
            where OpenRLHF keeps them.
    """

    type: Literal["orm"] = "orm"
    head: Literal["auto", "sequence_classification", "value_head"] = "auto"
    value_head_prefix: str | None = None
    label: int | None = Field(default=None, ge=0)
    pair: bool = False
    normalize: Normalization | Literal["checkpoint"] | None = None


class Orm(ModelScorer):
    """See the module's text."""

    Config = OrmConfig

    def __init__(self, config: OrmConfig, env: BuildEnv) -> None:
        super().__init__(config, env)
        self._orm = config
        self._label = 0
        self._normalization: Normalization | None = None

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One number per sample; the raw one as a component where it is normalised."""
        return [self._scored(answer) for answer in await self._submit(samples, self._encode)]

    def _encode(self, sample: Sample) -> Encoded:
        tokens = self.encoder.encode(sample)
        last = np.asarray([len(tokens.ids) - 1], np.int32)
        return Encoded(
            token_ids=tokens.ids,
            positions=last,
            token_type_ids=tokens.type_ids if self._orm.pair else None,
        )

    def _scored(self, answer: Answer) -> Score:
        if isinstance(answer, ItemError):
            return Score(error=answer)
        raw = float(answer[0, self._label])
        if self._normalization is None:
            return Score.of(raw)
        value = (raw - self._normalization.mean) / self._normalization.std
        return Score.of(value, components={"raw": raw})

    def _is_pair(self, model: Any) -> bool:
        return self._orm.pair

    def _load_reading(
        self, checkpoint: Checkpoint, tokenizer: Any, device: str
    ) -> tuple[Any, Reading]:
        self._normalization = self._find_normalization(checkpoint)
        if self._uses_value_head(checkpoint):
            return self._load_value_head(checkpoint, device)
        return self._load_classifier(checkpoint, device)

    def _uses_value_head(self, checkpoint: Checkpoint) -> bool:
        if self._orm.head != "auto":
            return self._orm.head == "value_head"
        if self._orm.value_head_prefix is not None:
            return True
        if has_architecture(checkpoint, "ForSequenceClassification"):
            return False
        return find_head(checkpoint, None) is not None

    def _load_classifier(self, checkpoint: Checkpoint, device: str) -> tuple[Any, Reading]:
        import torch

        from rewardsvc.engine.torch_backend import HiddenStates, ModuleHead, OwnForward

        overrides = {}
        if "score.weight" in checkpoint.tensor_files:
            # Not all trainers write the number of labels down, and transformers assumes two.
            overrides["num_labels"] = len(checkpoint.read("score.weight"))
        model = load_model(
            "AutoModelForSequenceClassification", self._source, checkpoint, device, **overrides
        )
        self._label = self._checked_label(model.config.num_labels)
        # Causal classifiers call their head `score` and read it at the last token that is not the
        # pad token, which is wrong where padding and end of text are one; so it is read here.
        if not isinstance(getattr(model, "score", None), torch.nn.Module):
            return model, OwnForward(model)
        reading = HiddenStates(model.base_model, ModuleHead(model.score))
        ids = probe_ids(model)
        probe = Encoded(token_ids=ids, positions=np.asarray([len(ids) - 1], np.int32))
        with torch.inference_mode():
            plain = model(input_ids=torch.from_numpy(ids)[None].long().to(device)).logits
        check_same(padded_backend(model, reading, device).run([probe])[0], plain, model)
        return model, reading

    def _load_value_head(self, checkpoint: Checkpoint, device: str) -> tuple[Any, Reading]:
        from rewardsvc.engine.torch_backend import HiddenStates, ModuleHead

        trunk = load_model("AutoModel", self._source, checkpoint, device)
        head = load_head(
            checkpoint,
            self._orm.value_head_prefix,
            hidden_size=trunk.config.get_text_config().hidden_size,
            dtype=self._source.dtype,
            device=device,
        )
        return trunk, HiddenStates(trunk, ModuleHead(head))

    def _checked_label(self, num_labels: int) -> int:
        label = self._orm.label
        if label is None and num_labels > 1:
            raise ConfigError(
                f"label: the model has {num_labels} labels; say which one's logit is the reward, "
                f"from 0 to {num_labels - 1}"
            )
        if label is not None and label >= num_labels:
            raise ConfigError(f"label: {label}, but the model's labels are 0 to {num_labels - 1}")
        return label or 0

    def _find_normalization(self, checkpoint: Checkpoint) -> Normalization | None:
        if self._orm.normalize != "checkpoint":
            return self._orm.normalize
        settings = model_settings(checkpoint)
        try:
            return Normalization(mean=settings["mean"], std=settings["std"])
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"normalize: 'checkpoint', but config.json has no usable mean and std: {error}"
            ) from None
