"""`prm`: a process reward model, one number per step of a completion.

A step ends at a step token, where (or just before which) a head is read. How models differ is data,
and for published ones it is known already (docs/models.md); for others these fields say it:

|model|step_token|head|rest|
|---|---|---|---|
|TRL's PRMTrainer|`\\n`|token_classification|assembly: tokens, step_separator "\\n"|
|language models that say good or bad|`ки`|causal_lm|good_token `+`, bad_token `-`|
|the same, where the judgement is predicted|`+`|causal_lm|read: before|
|one-logit heads|`\\n`|value_head|activation: sigmoid|

Where `step_separator` is given, it alone decides where steps end: a step token that stands in a
completion is text. Without it, completions are expected to bring step tokens, and whoever writes
them decides on the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rewardsvc.engine.types import Answer, Encoded, Output
from rewardsvc.errors import ConfigError, ItemError, ItemErrorCode, ItemFailure
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers._heads import find_head, load_head, mean_logit_head, token_head
from rewardsvc.scorers._loading import check_same, has_architecture, load_model, probe_ids
from rewardsvc.scorers._model_config import ModelConfig
from rewardsvc.scorers._onnx import check_tokens
from rewardsvc.scorers._served import ModelScorer, padded_backend
from rewardsvc.scorers._steps import StepEncoder
from rewardsvc.scorers._tokens import token_id
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.types import Sample, Score

if TYPE_CHECKING:
    from rewardsvc.engine.onnx.folder import OnnxFolder
    from rewardsvc.engine.torch_backend import Reading

SOFTMIN_TEMPERATURE = 0.1
"""PURE's, at which the weighted sum is close to the least step."""


def softmin(steps: Sequence[float]) -> float:
    """The sum of the steps, weighted by softmax(-step / T).

    Source: Cheng et al., "Stop Summation: Min-Form Credit Assignment Is All Process Reward Model
        Needs for Reasoning", arXiv:2504.15275; the card of PURE-PRM-7B.
    """
    least = min(steps)
    weights = [math.exp((least - step) / SOFTMIN_TEMPERATURE) for step in steps]
    return math.fsum(w * s for w, s in zip(weights, steps, strict=True)) / math.fsum(weights)


REDUCE: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "prod": math.prod,
    "mean": lambda steps: math.fsum(steps) / len(steps),
    "last": lambda steps: steps[-1],
    "sum": math.fsum,
    "softmin": softmin,
}
"""Step rewards → the sample's reward."""


class PrmConfig(ModelConfig):
    """Configuration of `prm`.

    Attributes:
        step_token: The token that ends a step, as text or id. Needed, unless a recipe has it.
        step_separator: Text that separates steps in completions; each step is closed with the step
            token in its place. None: completions hold step tokens already.
        assembly: How prompt and steps are put together: one text; tokenised one by one; a chat in
            which every step is a turn that the step token answers; one text without step tokens.
        step_template: For one text: how a step is written, with `{step}`, `{token}` and its number
            `{n}`.
        step_prefix: Put before steps that do not begin like it; `{n}` is the step's number.
        strip_steps: Whether white space around steps is removed.
        empty_steps: Whether nothing between two separators is a step.
        head: What is read there; "auto" looks at the checkpoint and at `good_token`.
        value_head_prefix: Name of the head's tensors for `head: value_head`; None looks for it.
        good_token: For `head: causal_lm`, the token whose logit stands for a good step.
        bad_token: The token that it is compared with.
        good_label: The label of a good step, for heads with more than one; of several labels the
            probabilities are added up.
        label_components: Component → label: the largest probability of that label in any step.
        activation: From logits to the step's reward: probability of the good label, sigmoid of its
            logit, the logit itself ("none"), or the probability of the good label less that of the
            others. "auto" is softmax for several labels, sigmoid for one.
        read: Whether the head is read at the step token, at its first token if it is several, or at
            the token before.
        read_shift: Added to the place that is read.
        reduce: From step rewards to the sample's reward. "softmin" is the sum that is weighted by
            softmax(-reward / 0.1).
    """

    type: Literal["prm"] = "prm"
    step_token: str | int | None = None
    step_separator: str | None = Field(default=None, min_length=1)
    assembly: Literal["text", "tokens", "turns", "segments"] = "text"
    step_template: str = "{step}{token}"
    step_prefix: str | None = None
    strip_steps: bool = False
    empty_steps: Literal["drop", "keep"] = "drop"
    head: Literal["auto", "token_classification", "causal_lm", "mean_logit", "value_head"] = "auto"
    value_head_prefix: str | None = None
    good_token: str | int | None = None
    bad_token: str | int | None = None
    good_label: int | tuple[int, ...] = 1
    label_components: dict[str, int] = Field(default_factory=dict)
    activation: Literal["auto", "softmax", "sigmoid", "none", "difference"] = "auto"
    read: Literal["at", "first", "before"] = "at"
    read_shift: int = 0
    reduce: Literal["min", "prod", "mean", "last", "sum", "softmin"] = "min"

    @model_validator(mode="after")
    def _tokens_fit_the_head(self) -> PrmConfig:
        given = [token is not None for token in (self.good_token, self.bad_token)]
        if any(given) != all(given):
            raise ValueError("good_token and bad_token belong together: give both or none")
        if self.head == "causal_lm" and not all(given):
            raise ValueError("head: causal_lm needs good_token and bad_token")
        if all(given) and self.head not in ("auto", "causal_lm"):
            raise ValueError(f"good_token: only for head: causal_lm, not {self.head}")
        labels = self.good_labels + tuple(self.label_components.values())
        if not self.good_labels or min(labels) < 0:
            raise ValueError(f"good_label: {self.good_label} must be labels from 0 on")
        return self

    @model_validator(mode="after")
    def _steps_can_be_put_together(self) -> PrmConfig:
        if any(self.step_template.count(field) != 1 for field in ("{step}", "{token}")):
            raise ValueError(
                f"step_template: {self.step_template!r} must contain {{step}} and {{token}} once"
            )
        if self.assembly != "text" and self.step_separator is None:
            raise ValueError(f"assembly: {self.assembly} needs step_separator")
        template = self.text_template or "{completion}"
        if self.assembly in ("tokens", "segments") and not template.endswith("{completion}"):
            raise ValueError(f"text_template: {template!r} must end with {{completion}}")
        return self

    @property
    def good_labels(self) -> tuple[int, ...]:
        """`good_label` as labels."""
        return (self.good_label,) if isinstance(self.good_label, int) else self.good_label


class Prm(ModelScorer):
    """See the module's text."""

    Config = PrmConfig

    def __init__(self, config: PrmConfig, env: BuildEnv) -> None:
        super().__init__(config, env)
        self._step_id: int | None = None
        self._steps: StepEncoder | None = None
        self._good_labels = config.good_labels

    @property
    def _prm(self) -> PrmConfig:
        assert isinstance(self._source, PrmConfig)
        return self._source

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Step rewards in `steps`; the reduced one is the value."""
        return [self._scored(answer) for answer in await self._submit(samples, self._encode)]

    def _encode(self, sample: Sample) -> Encoded:
        if self._steps is None:
            self._steps = StepEncoder(self.encoder, self._prm, self._tokenizer, self._step_id)
        whole = self._steps.encode(sample)
        num_steps = int(whole.marks.sum())
        tokens = self.encoder.cut(whole)
        positions = np.flatnonzero(tokens.marks)
        if len(positions) < num_steps:
            raise ItemFailure(
                ItemErrorCode.TOO_LONG,
                f"the sample has {len(whole.ids)} tokens and the model takes {len(tokens.ids)}; "
                f"truncation would cut off {num_steps - len(positions)} of {num_steps} steps",
            )
        return Encoded(token_ids=tokens.ids, positions=positions.astype(np.int32))

    def _scored(self, answer: Answer) -> Score:
        if isinstance(answer, ItemError):
            return Score(error=answer)
        logits = answer.astype(np.float64)
        steps = tuple(self._activated(logits).tolist())
        components = {
            name: float(_softmax(logits)[:, label].max())
            for name, label in self._prm.label_components.items()
        }
        return Score.of(REDUCE[self._prm.reduce](steps), steps=steps, components=components)

    def _activated(self, logits_KC: NDArray[np.float64]) -> NDArray[np.float64]:
        good = list(self._good_labels)
        activation = self._prm.activation
        if activation == "auto":
            activation = "softmax" if logits_KC.shape[1] > 1 else "sigmoid"
        if activation in ("softmax", "difference"):
            probability: NDArray[np.float64] = _softmax(logits_KC)[:, good].sum(1)
            return 2 * probability - 1 if activation == "difference" else probability
        if activation == "sigmoid":
            return np.exp(-np.logaddexp(0.0, -logits_KC[:, good[0]]))
        return logits_KC[:, good[0]]

    def _load_reading(
        self, checkpoint: Checkpoint, tokenizer: Any, device: str
    ) -> tuple[Any, Reading]:
        config = self._prm
        self._good_labels = config.good_labels
        self._use_step_token(tokenizer)
        head = config.head
        if head == "auto":
            if config.good_token is not None:
                head = "causal_lm"
            elif has_architecture(checkpoint, "ForTokenClassification"):
                head = "token_classification"
            elif find_head(checkpoint, config.value_head_prefix) is not None:
                head = "value_head"
            else:
                raise ConfigError(
                    f"head: {checkpoint.folder} has no head for steps; for a causal language model "
                    "set good_token and bad_token, else head and value_head_prefix"
                )
        load = {
            "causal_lm": self._load_causal_lm,
            "mean_logit": self._load_causal_lm,
            "token_classification": self._load_token_classifier,
            "value_head": self._load_value_head,
        }[head]
        self._head = head
        model, reading = load(checkpoint, tokenizer, device)
        self._check(model, reading, device)
        return model, reading

    def _use_export(self, export: OnnxFolder, tokenizer: Any) -> None:
        self._good_labels = self._prm.good_labels
        self._use_step_token(tokenizer)
        if export.description.head == "causal_lm":
            self._good_labels = (0,)
            if self._prm.good_token is not None:
                check_tokens(export, self._chosen_tokens(tokenizer))
        self._check_labels(export.description.num_outputs)

    def _use_step_token(self, tokenizer: Any) -> None:
        config = self._prm
        self._tokenizer = tokenizer
        self._step_id, self._steps = None, None
        if config.assembly == "segments":
            return
        if config.step_token is None:
            raise ConfigError(
                "step_token: missing, and the checkpoint is none that a recipe is known for; add "
                "it, or name a recipe"
            )
        if config.step_separator is not None and isinstance(config.step_token, int):
            raise ConfigError("step_separator: needs step_token as text, not as an id")
        # Read at its first token, a marker may be several.
        if config.read != "first" or config.assembly == "tokens":
            self._step_id = token_id(tokenizer, config.step_token, "step_token")

    def _guarding(self) -> dict[str, tuple[int, ...]]:
        if self._step_id is None:
            return {}
        marked = self._prm.step_separator is None
        return {"allowed" if marked else "control": (self._step_id,)}

    def _check(self, model: Any, reading: Reading, device: str) -> None:
        """Tries the reading on a few tokens: as many labels as expected?"""
        ids = probe_ids(model)
        probe = Encoded(token_ids=ids, positions=np.arange(len(ids), dtype=np.int32))
        self._check_labels(padded_backend(model, reading, device).run([probe])[0].shape[1])

    def _check_labels(self, num_labels: int) -> None:
        labels = (*self._good_labels, *self._prm.label_components.values())
        if num_labels == 1:
            self._good_labels = (0,)
        elif max(labels) >= num_labels:
            raise ConfigError(
                f"good_label: {max(labels)}, but the model's labels are 0 to {num_labels - 1}"
            )
        if num_labels == 1 and self._prm.activation in ("softmax", "difference"):
            raise ConfigError(
                f"activation: {self._prm.activation} of one label is always 1; use sigmoid or none"
            )

    def _load_token_classifier(
        self, checkpoint: Checkpoint, tokenizer: Any, device: str
    ) -> tuple[Any, Reading]:
        from rewardsvc.engine.torch_backend import OwnForward

        model = load_model("AutoModelForTokenClassification", self._source, checkpoint, device)
        # A few labels per token are small, so the model's own forward gives them all.
        return model, OwnForward(model)

    def _load_value_head(
        self, checkpoint: Checkpoint, tokenizer: Any, device: str
    ) -> tuple[Any, Reading]:
        from rewardsvc.engine.torch_backend import HiddenStates, ModuleHead

        trunk = load_model("AutoModel", self._source, checkpoint, device)
        head = load_head(
            checkpoint,
            self._prm.value_head_prefix,
            hidden_size=trunk.config.get_text_config().hidden_size,
            dtype=self._source.dtype,
            device=device,
        )
        return trunk, HiddenStates(trunk, ModuleHead(head))

    def _load_causal_lm(
        self, checkpoint: Checkpoint, tokenizer: Any, device: str
    ) -> tuple[Any, Reading]:
        import torch

        from rewardsvc.engine.torch_backend import HiddenStates, ModuleHead

        self._good_labels = (0,)
        chosen = self._chosen_tokens(tokenizer) if self._head == "causal_lm" else []
        self._head_tokens = tuple(chosen)
        model = load_model("AutoModelForCausalLM", self._source, checkpoint, device)
        head = ModuleHead(token_head(model, chosen) if chosen else mean_logit_head(model))
        reading = HiddenStates(model.base_model, head)
        ids = probe_ids(model)
        probe = Encoded(token_ids=ids, positions=np.arange(len(ids), dtype=np.int32))
        with torch.inference_mode():
            plain = model(input_ids=torch.from_numpy(ids)[None].long().to(device)).logits[0]
        ours = padded_backend(model, reading, device).run([probe])[0]
        expected = plain[:, chosen] if chosen else plain.float().mean(-1, keepdim=True)
        check_same(ours, expected, model)
        return model, reading

    def _chosen_tokens(self, tokenizer: Any) -> list[int]:
        good, bad = self._prm.good_token, self._prm.bad_token
        assert good is not None and bad is not None  # noqa: PT018 - the model validator saw to it
        return [token_id(tokenizer, good, "good_token"), token_id(tokenizer, bad, "bad_token")]


def _softmax(logits_KC: Output | NDArray[np.float64]) -> NDArray[np.float64]:
    log_z: NDArray[np.float64] = np.logaddexp.reduce(logits_KC, axis=1)
    return np.exp(logits_KC - log_z[:, None])
