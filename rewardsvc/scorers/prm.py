"""`prm`: a process reward model, one number per step of a completion.

A step ends at a step token, where (or just before which) a head is read. How models differ is data:

|model|step_token|head|rest|
|---|---|---|---|
|Qwen2.5-Math-PRM|`<extra_0>`|value_head|step_separator "\\n\\n", input: chat|
|math-shepherd|`ки`|causal_lm|good_token `+`, bad_token `-`|
|RLHFlow PRMs|`+`|causal_lm|good_token `+`, bad_token `-`, read: before|
|TRL's PRMTrainer|`\\n`|token_classification| |
|one-logit heads|`\\n`|value_head|activation: sigmoid|
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
from rewardsvc.scorers._heads import find_head, load_head
from rewardsvc.scorers._loading import (
    check_same,
    has_architecture,
    load_model,
    logit_rule,
    probe_ids,
)
from rewardsvc.scorers._model_config import ModelConfig
from rewardsvc.scorers._served import ModelScorer, padded_backend
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.types import Message, Sample, Score, Text

if TYPE_CHECKING:
    from rewardsvc.engine.torch_backend import Reading

REDUCE: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "prod": math.prod,
    "mean": lambda steps: math.fsum(steps) / len(steps),
    "last": lambda steps: steps[-1],
    "sum": math.fsum,
}
"""Step rewards → the sample's reward."""


class PrmConfig(ModelConfig):
    """Configuration of `prm`.

    Attributes:
        step_token: The token that ends a step, as text or id.
        step_separator: Text that separates steps in completions; each step is closed with the step
            token in its place. None: completions hold step tokens already.
        head: What is read there; "auto" looks at the checkpoint and at `good_token`.
        value_head_prefix: Name of the head's tensors for `head: value_head`; None looks for it.
        good_token: For `head: causal_lm`, the token whose logit stands for a good step.
        bad_token: The token that it is compared with.
        good_label: The label of a good step, for heads with more than one.
        activation: From logits to the step's reward: probability of the good label, sigmoid of its
            logit, or the logit itself ("none"). "auto" is softmax for several labels, sigmoid for
            one.
        read: Whether the head is read at the step token or at the token before it.
        reduce: From step rewards to the sample's reward.
    """

    type: Literal["prm"] = "prm"
    step_token: str | int
    step_separator: str | None = Field(default=None, min_length=1)
    head: Literal["auto", "token_classification", "causal_lm", "value_head"] = "auto"
    value_head_prefix: str | None = None
    good_token: str | int | None = None
    bad_token: str | int | None = None
    good_label: int = Field(default=1, ge=0)
    activation: Literal["auto", "softmax", "sigmoid", "none"] = "auto"
    read: Literal["at", "before"] = "at"
    reduce: Literal["min", "prod", "mean", "last", "sum"] = "min"

    @model_validator(mode="after")
    def _tokens_fit_the_head(self) -> PrmConfig:
        given = [token is not None for token in (self.good_token, self.bad_token)]
        if any(given) != all(given):
            raise ValueError("good_token and bad_token belong together: give both or none")
        if self.head == "causal_lm" and not all(given):
            raise ValueError("head: causal_lm needs good_token and bad_token")
        if all(given) and self.head not in ("auto", "causal_lm"):
            raise ValueError(f"good_token: only for head: causal_lm, not {self.head}")
        return self


class Prm(ModelScorer):
    """See the module's text."""

    Config = PrmConfig

    def __init__(self, config: PrmConfig, env: BuildEnv) -> None:
        super().__init__(config, env)
        self._prm = config
        self._step_id = 0
        self._good_label = config.good_label

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Step rewards in `steps`; the reduced one is the value."""
        return [self._scored(answer) for answer in await self._submit(samples, self._encode)]

    def _encode(self, sample: Sample) -> Encoded:
        if self._prm.step_separator is not None:
            sample = self._with_step_tokens(sample)
        whole = self.encoder.encode_whole(sample)
        ends = (whole.ids == self._step_id) & whole.in_completion
        num_steps = int(ends.sum())
        if not num_steps:
            raise ItemFailure(
                ItemErrorCode.NO_STEPS,
                f"the completion has no step token {self._prm.step_token!r}; mark the steps, or "
                "set step_separator",
            )
        tokens = self.encoder.cut(whole)
        positions = np.flatnonzero((tokens.ids == self._step_id) & tokens.in_completion)
        if len(positions) < num_steps:
            raise ItemFailure(
                ItemErrorCode.TOO_LONG,
                f"the sample has {len(whole.ids)} tokens and the model takes {len(tokens.ids)}; "
                f"truncation would cut off {num_steps - len(positions)} of {num_steps} steps",
            )
        if self._prm.read == "before":
            positions = positions - 1
            if positions[0] < 0:
                raise ItemFailure(
                    ItemErrorCode.INVALID_SAMPLE,
                    "the sample begins with a step token, and read: before needs one before it",
                )
        return Encoded(token_ids=tokens.ids, positions=positions.astype(np.int32))

    def _with_step_tokens(self, sample: Sample) -> Sample:
        """The sample with every step closed by the step token, where the completion is text."""
        separator, token = self._prm.step_separator, self._prm.step_token
        assert separator is not None
        assert isinstance(token, str)  # checked when loading

        def close_steps(text: str) -> str:
            steps = [step for step in text.split(separator) if step.strip()]
            return "".join(step + token for step in steps)

        completion: Text = sample.completion
        if isinstance(completion, str):
            completion = close_steps(completion)
        elif completion and isinstance(completion[0], Message):
            messages = [m for m in completion if isinstance(m, Message)]
            completion = tuple(Message(m.role, close_steps(m.content)) for m in messages)
        # No step at all must stay visible as such, even if the prompt is empty too.
        if not completion and not sample.prompt:
            raise ItemFailure(ItemErrorCode.NO_STEPS, "the completion is empty: it has no steps")
        return Sample(prompt=sample.prompt, completion=completion)

    def _scored(self, answer: Answer) -> Score:
        if isinstance(answer, ItemError):
            return Score(error=answer)
        steps = tuple(self._activated(answer).tolist())
        return Score.of(REDUCE[self._prm.reduce](steps), steps=steps)

    def _activated(self, logits_KC: Output) -> NDArray[np.float64]:
        logits = logits_KC.astype(np.float64)
        activation = self._prm.activation
        if activation == "auto":
            activation = "softmax" if logits.shape[1] > 1 else "sigmoid"
        good = logits[:, self._good_label]
        if activation == "softmax":
            log_z: NDArray[np.float64] = np.logaddexp.reduce(logits, axis=1)
            return np.exp(good - log_z)
        if activation == "sigmoid":
            return np.exp(-np.logaddexp(0.0, -good))
        return good

    def _load_reading(
        self, checkpoint: Checkpoint, tokenizer: Any, device: str
    ) -> tuple[Any, Reading]:
        config = self._prm
        self._step_id = _token_id(tokenizer, config.step_token, "step_token")
        if config.step_separator is not None and isinstance(config.step_token, int):
            raise ConfigError("step_separator: needs step_token as text, not as an id")
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
            "token_classification": self._load_token_classifier,
            "value_head": self._load_value_head,
        }[head]
        model, reading = load(checkpoint, tokenizer, device)
        self._check(model, reading, device)
        return model, reading

    def _check(self, model: Any, reading: Reading, device: str) -> None:
        """Tries the reading on a few tokens: as many labels as expected?"""
        ids = probe_ids(model)
        probe = Encoded(token_ids=ids, positions=np.arange(len(ids), dtype=np.int32))
        num_labels = padded_backend(model, reading, device).run([probe])[0].shape[1]
        if num_labels == 1:
            self._good_label = 0
        elif self._good_label >= num_labels:
            raise ConfigError(
                f"good_label: {self._good_label}, but the model's labels are 0 to {num_labels - 1}"
            )
        if num_labels == 1 and self._prm.activation == "softmax":
            raise ConfigError("activation: softmax of one label is always 1; use sigmoid or none")

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
        from torch.nn import functional as F

        from rewardsvc.engine.torch_backend import HiddenStates, ModuleHead

        self._good_label = 0
        chosen = [
            _token_id(tokenizer, self._prm.good_token, "good_token"),
            _token_id(tokenizer, self._prm.bad_token, "bad_token"),
        ]
        model = load_model("AutoModelForCausalLM", self._source, checkpoint, device)
        output = model.get_output_embeddings()
        weight_2D = output.weight[chosen]
        bias_2 = None if output.bias is None else output.bias[chosen]
        rule = logit_rule(model)
        head = ModuleHead(lambda hidden_ND: rule.apply(F.linear(hidden_ND, weight_2D, bias_2)))
        reading = HiddenStates(model.base_model, head)
        ids = probe_ids(model)
        probe = Encoded(token_ids=ids, positions=np.arange(len(ids), dtype=np.int32))
        with torch.inference_mode():
            plain = model(input_ids=torch.from_numpy(ids)[None].long().to(device)).logits[0]
        ours = padded_backend(model, reading, device).run([probe])[0]
        check_same(ours, plain[:, chosen], model)
        return model, reading


def _token_id(tokenizer: Any, token: str | int | None, field: str) -> int:
    """The id of a token that is given as text or id.

    Raises:
        ConfigError: If the text is not one token.
    """
    assert token is not None
    if isinstance(token, int):
        return token
    if tokenizer is None:
        raise ConfigError(
            f"{field}: {token!r} is text, but the model has no tokenizer; give the id"
        )
    found = tokenizer.get_vocab().get(token)
    if found is not None:
        return int(found)
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1:
        raise ConfigError(
            f"{field}: {token!r} is {len(ids)} tokens {ids} of this tokenizer; give one token or "
            "its id"
        )
    return int(ids[0])
