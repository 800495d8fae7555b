"""`orm`: an outcome reward model, one number per sample.

Serves sequence-classification checkpoints of transformers, causal ones (read at the last *attended*
token, whatever the pad id) and encoders (their own pooler and head), base models with a value head
of their own as OpenRLHF and TRL save them, language models whose logit of one token is the reward,
and heads that are described in the configuration. Published models are recognised (docs/models.md).

An empty completion is a legitimate sample and is scored: a policy may well say nothing. Only when
prompt and completion together have no token is there nothing to score: INVALID_SAMPLE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rewardsvc.engine.types import Answer, Encoded
from rewardsvc.errors import ConfigError, ItemError, ItemErrorCode, ItemFailure
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers._heads import (
    LinearHead,
    build_head,
    find_head,
    gated_head,
    is_linear,
    load_head,
    num_outputs,
    token_head,
)
from rewardsvc.scorers._loading import (
    check_same,
    has_architecture,
    load_model,
    probe_ids,
)
from rewardsvc.scorers._model_config import ModelConfig
from rewardsvc.scorers._normalize import Scale, stated_scale
from rewardsvc.scorers._served import ModelScorer, padded_backend
from rewardsvc.scorers._tokens import token_id
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.types import Sample, Score

if TYPE_CHECKING:
    from rewardsvc.engine.onnx.folder import OnnxFolder
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


class AtToken(BaseModel):
    """Pooling at a token.

    Attributes:
        token: As text or id; the head is read where it stands last.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    token: str | int


class OrmConfig(ModelConfig):
    """Configuration of `orm`.

    Attributes:
        head: Where the score comes from; "auto" looks at the checkpoint. A mapping of `layers`,
            `activation` and `file` describes any other head by its tensors.
        value_head_prefix: Name of the head's tensors for `head: value_head`; None looks for it.
        score_token: For `head: causal_lm`, the token whose logit is the score, as text or id.
        gating_pattern: For `head: gated`, the text or token ids where the gate is read: at the
            first token of where it stands last.
        gating_temperature: Of the gate, where `config.json` does not say.
        pooling: Where a causal model's head is read: at the last token, the first, at all (the mean
            of what linear heads give), or at a token, `{token: …}`.
        label: Which output is the score, for heads with more than one.
        label_weights: In place of `label`: the score is the outputs' sum with these weights.
        pair: Whether prompt and completion are a text pair, as for BERT-like cross-encoders.
        activation: Applied to the score: the sigmoid of a logit is a probability.
        normalize: Applied to the score; "checkpoint" takes what the checkpoint says, as OpenRLHF
            (`mean` and `std`) and safe-rlhf keep it.
        components: Whether the outputs or objectives that the score is made of are told as well.
    """

    type: Literal["orm"] = "orm"
    head: (
        Literal["auto", "sequence_classification", "value_head", "causal_lm", "gated"] | LinearHead
    ) = "auto"
    value_head_prefix: str | None = None
    score_token: str | int | None = None
    gating_pattern: str | tuple[int, ...] | None = None
    gating_temperature: float = Field(default=1.0, gt=0)
    pooling: Literal["last", "first", "mean"] | AtToken = "last"
    label: int | None = Field(default=None, ge=0)
    label_weights: tuple[float, ...] | None = None
    pair: bool = False
    activation: Literal["none", "sigmoid"] = "none"
    normalize: Normalization | Literal["checkpoint"] | None = None
    components: bool = False

    @model_validator(mode="after")
    def _fields_fit_the_head(self) -> OrmConfig:
        if (self.head == "causal_lm") != (self.score_token is not None):
            raise ValueError("head: causal_lm and score_token belong together")
        if (self.head == "gated") != (self.gating_pattern is not None):
            raise ValueError("head: gated and gating_pattern belong together")
        if self.label is not None and self.label_weights is not None:
            raise ValueError("label and label_weights exclude each other")
        if self.head == "gated" and (self.pooling != "last" or self.label_weights or self.label):
            raise ValueError("head: gated has its own pooling and weights")
        return self


class Orm(ModelScorer):
    """See the module's text."""

    Config = OrmConfig

    def __init__(self, config: OrmConfig, env: BuildEnv) -> None:
        super().__init__(config, env)
        self._weights: NDArray[np.float64] = np.ones(1)
        self._scale: Scale | None = None
        self._pool_id = 0
        self._pattern: NDArray[np.int32] = np.zeros(0, np.int32)

    @property
    def _orm(self) -> OrmConfig:
        assert isinstance(self._source, OrmConfig)
        return self._source

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One number per sample; the raw one as a component where it is normalised."""
        return [self._scored(answer) for answer in await self._submit(samples, self._encode)]

    def _encode(self, sample: Sample) -> Encoded:
        tokens = self.encoder.encode(sample)
        return Encoded(
            token_ids=tokens.ids,
            positions=np.asarray(self._positions(tokens.ids), np.int32),
            token_type_ids=tokens.type_ids if self._orm.pair else None,
        )

    def _positions(self, ids: NDArray[np.int32]) -> Sequence[int]:
        pooling = self._orm.pooling
        if self._orm.head == "gated":
            return (self._gate_position(ids), len(ids) - 1)
        if pooling == "mean":
            return range(len(ids))
        if pooling == "first":
            return (0,)
        if pooling == "last":
            return (len(ids) - 1,)
        places = np.flatnonzero(ids == self._pool_id)
        if not len(places):
            raise ItemFailure(
                ItemErrorCode.INVALID_SAMPLE,
                f"the sample has no token {pooling.token!r}, where the head is read",
            )
        return (int(places[-1]),)

    def as_sample(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.int32], Sequence[int]]:
        """Has the gate's pattern, or the token that is pooled, in its middle."""
        needed = self._pattern
        if isinstance(self._orm.pooling, AtToken):
            needed = np.asarray([self._pool_id], np.int32)
        ids = np.resize(ids, max(len(ids), len(needed) + 1))
        middle = (len(ids) - len(needed)) // 2
        ids[middle : middle + len(needed)] = needed
        return ids, self._positions(ids)

    def _gate_position(self, ids: NDArray[np.int32]) -> int:
        """Where the gating pattern begins the last time: the end of the prompt."""
        pattern = self._pattern
        for start in range(len(ids) - len(pattern), -1, -1):
            if np.array_equal(ids[start : start + len(pattern)], pattern):
                return start
        raise ItemFailure(
            ItemErrorCode.INVALID_SAMPLE,
            f"the sample has no {self._orm.gating_pattern!r}, where the model's gate is read; send "
            "the prompt as messages, or set input: chat",
        )

    def _scored(self, answer: Answer) -> Score:
        if isinstance(answer, ItemError):
            return Score(error=answer)
        numbers = answer.astype(np.float64)
        components: dict[str, float] = {}
        if self._orm.head == "gated":
            num_objectives = numbers.shape[1] // 2
            worth, weights = numbers[-1, :num_objectives], numbers[0, num_objectives:]
            raw = math.fsum(worth * weights)
            if self._orm.components:
                components = {f"objective_{i}": float(w) for i, w in enumerate(worth)}
        else:
            outputs = numbers.mean(0)
            raw = math.fsum(outputs * self._weights) if len(self._weights) > 1 else outputs[0]
            if self._orm.components:
                components = {f"output_{i}": float(x) for i, x in enumerate(outputs)}
        value = float(raw)
        if self._orm.activation == "sigmoid":
            value = float(np.exp(-np.logaddexp(0.0, -value)))
        if self._scale is not None:
            value = (value - self._scale.mean) / self._scale.std
        if value != raw or self._scale is not None:
            components["raw"] = float(raw)
        return Score.of(value, components=components)

    def _is_pair(self, model: Any) -> bool:
        return self._orm.pair

    def _load_reading(
        self, checkpoint: Checkpoint, tokenizer: Any, device: str
    ) -> tuple[Any, Reading]:
        config = self._orm
        self._scale = self._find_scale(checkpoint)
        self._use_tokenizer(tokenizer)
        if isinstance(config.head, LinearHead):
            self._head = "linear"
            return self._load_trunk(checkpoint, device)
        if config.head == "gated":
            self._head = "gated"
            return self._load_gated(checkpoint, device)
        if config.head == "causal_lm":
            self._head = "causal_lm"
            return self._load_causal_lm(checkpoint, tokenizer, device)
        if self._uses_value_head(checkpoint):
            self._head = "value_head"
            return self._load_trunk(checkpoint, device)
        self._head = "sequence_classification"
        return self._load_classifier(checkpoint, device)

    def _use_tokenizer(self, tokenizer: Any) -> None:
        """Looks the tokens up that the configuration names."""
        pooling, pattern = self._orm.pooling, self._orm.gating_pattern
        if isinstance(pooling, AtToken):
            self._pool_id = token_id(tokenizer, pooling.token, "pooling.token")
        if isinstance(pattern, str):
            if tokenizer is None:
                raise ConfigError(
                    "gating_pattern: is text, but the model has no tokenizer; give token ids"
                )
            pattern = tuple(tokenizer.encode(pattern, add_special_tokens=False))
        self._pattern = np.asarray(pattern or (), np.int32)

    def _use_export(self, export: OnnxFolder, tokenizer: Any) -> None:
        self._scale = self._find_scale(Checkpoint(export.folder))
        self._use_tokenizer(tokenizer)
        if export.description.head != "gated":
            self._weights = self._checked_weights(export.description.num_outputs)

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
        self._weights = self._checked_weights(model.config.num_labels)
        # Causal classifiers call their head `score` and read it at the last token that is not the
        # pad token, which is wrong where padding and end of text are one; so it is read here.
        if not isinstance(getattr(model, "score", None), torch.nn.Module):
            if self._orm.pooling != "last":
                raise ConfigError(
                    f"pooling: {type(model).__name__} pools in its own way; leave it out"
                )
            return model, OwnForward(model)
        reading = HiddenStates(model.base_model, ModuleHead(model.score))
        ids = probe_ids(model)
        probe = Encoded(token_ids=ids, positions=np.asarray([len(ids) - 1], np.int32))
        with torch.inference_mode():
            plain = model(input_ids=torch.from_numpy(ids)[None].long().to(device)).logits
        check_same(padded_backend(model, reading, device).run([probe])[0], plain, model)
        return model, reading

    def _load_trunk(self, checkpoint: Checkpoint, device: str) -> tuple[Any, Reading]:
        """A base model and a head from its own tensors."""
        from rewardsvc.engine.torch_backend import HiddenStates, ModuleHead

        trunk = load_model("AutoModel", self._source, checkpoint, device)
        shape = {
            "hidden_size": trunk.config.get_text_config().hidden_size,
            "dtype": self._source.dtype,
            "device": device,
        }
        described = self._orm.head
        if isinstance(described, LinearHead):
            head = build_head(described, checkpoint, **shape)
        else:
            head = load_head(checkpoint, self._orm.value_head_prefix, **shape)
        if self._orm.pooling == "mean" and not is_linear(head):
            raise ConfigError("pooling: mean is for heads of one linear layer")
        self._weights = self._checked_weights(num_outputs(head))
        return trunk, HiddenStates(trunk, ModuleHead(head))

    def _load_gated(self, checkpoint: Checkpoint, device: str) -> tuple[Any, Reading]:
        from rewardsvc.engine.torch_backend import HiddenStates, ModuleHead

        trunk = load_model("AutoModel", self._source, checkpoint, device)
        head, _ = gated_head(
            checkpoint,
            hidden_size=trunk.config.get_text_config().hidden_size,
            temperature=self._orm.gating_temperature,
            device=device,
        )
        return trunk, HiddenStates(trunk, ModuleHead(head))

    def _load_causal_lm(
        self, checkpoint: Checkpoint, tokenizer: Any, device: str
    ) -> tuple[Any, Reading]:
        import torch

        from rewardsvc.engine.torch_backend import HiddenStates, ModuleHead

        assert self._orm.score_token is not None  # the model validator saw to it
        chosen = [token_id(tokenizer, self._orm.score_token, "score_token")]
        model = load_model("AutoModelForCausalLM", self._source, checkpoint, device)
        self._head_tokens = tuple(chosen)
        self._weights = self._checked_weights(1)
        reading = HiddenStates(model.base_model, ModuleHead(token_head(model, chosen)))
        ids = probe_ids(model)
        probe = Encoded(token_ids=ids, positions=np.arange(len(ids), dtype=np.int32))
        with torch.inference_mode():
            plain = model(input_ids=torch.from_numpy(ids)[None].long().to(device)).logits[0]
        check_same(padded_backend(model, reading, device).run([probe])[0], plain[:, chosen], model)
        return model, reading

    def _checked_weights(self, num_labels: int) -> NDArray[np.float64]:
        """What each output counts."""
        label, weights = self._orm.label, self._orm.label_weights
        if weights is not None:
            if len(weights) != num_labels:
                raise ConfigError(
                    f"label_weights: {len(weights)} weights, but the model has {num_labels} labels"
                )
            return np.asarray(weights, np.float64)
        if label is None and num_labels > 1:
            raise ConfigError(
                f"label: the model has {num_labels} labels; say which one's logit is the reward, "
                f"from 0 to {num_labels - 1}, or weigh them with label_weights"
            )
        if label is not None and label >= num_labels:
            raise ConfigError(f"label: {label}, but the model's labels are 0 to {num_labels - 1}")
        chosen: NDArray[np.float64] = np.eye(num_labels)[label or 0]
        return chosen

    def _find_scale(self, checkpoint: Checkpoint) -> Scale | None:
        wanted = self._orm.normalize
        if wanted == "checkpoint":
            return stated_scale(checkpoint)
        return None if wanted is None else Scale(mean=wanted.mean, std=wanted.std)
